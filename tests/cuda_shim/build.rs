//! With the feature `emulate`: compiles the unmodified kernels as C++, once for each way of `mma`. Without it there is nothing to do.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "emulate")]
    emulate::build();
}

#[cfg(feature = "emulate")]
mod emulate {
    use std::{
        env,
        fmt::Write,
        fs,
        path::{Path, PathBuf},
    };

    use yuan_cuda::{KERNELS, Param};

    /// Architectures that the kernels have different code for.
    const ARCHITECTURES: [u32; 3] = [700, 750, 800];

    pub fn build() {
        assert_eq!(var("CARGO_CFG_TARGET_OS"), "linux", "the emulator knows the sections of ELF files only");
        let here = PathBuf::from(var("CARGO_MANIFEST_DIR"));
        let (cpp, kernels) = (here.join("cpp"), here.join("../../kernels/cuda"));
        println!("cargo:rerun-if-changed={}", cpp.display());
        println!("cargo:rerun-if-changed={}", kernels.display());
        let out = PathBuf::from(var("OUT_DIR"));

        let mut machine = plain();
        machine.files([cpp.join("machine.cpp"), cpp.join("memory.cpp")]);
        // Every load and store of the kernels becomes a call (memory.cpp).
        let mut checked = plain();
        checked.flag("-fsanitize=thread,alignment").include(&cpp).include(&kernels);
        checked.flag("-ffp-contract=off").flag("-fno-strict-aliasing").flag("-Wno-attributes");
        let list = KERNELS.iter().map(|kernel| (kernel.name, kinds(kernel.params)));
        let table = table(list);
        for architecture in ARCHITECTURES {
            // A namespace for each, since functions of one name are otherwise one.
            let text = format!(
                "#define __CUDA_ARCH__ {architecture}\n#include \"shim.h\"\n#include \"table.h\"\n\
                 namespace sm_{architecture} {{\n#include \"yuan.cu\"\n{}}}\n",
                table.replace("NAME", &format!("shim_kernels_{architecture}"))
            );
            checked.file(write(&out, &format!("kernels_{architecture}.cpp"), &text));
        }
        checked.file(cpp.join("faults.cpp"));
        checked.compile("yuan_cuda_kernels");
        machine.compile("yuan_cuda_machine");
    }

    fn plain() -> cc::Build {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(2).warnings(false);
        build
    }

    /// The list of kernels as C++, whose types are checked against what Rust says of them.
    fn table<'k>(kernels: impl Iterator<Item = (&'k str, String)>) -> String {
        let mut text = String::from("extern \"C\" const ShimKernel NAME[] = {\n");
        for (name, kinds) in kernels {
            writeln!(text, "SHIM_KERNEL({name}, \"{kinds}\"),").expect("a string");
        }
        text + "{nullptr, nullptr, nullptr}};\n"
    }

    fn kinds(params: &[Param]) -> String {
        let kind = |param: &Param| match param {
            Param::Pointer => 'p',
            Param::I32 => 'i',
            Param::F32 => 'f',
        };
        params.iter().map(kind).collect()
    }

    fn write(out: &Path, name: &str, text: &str) -> PathBuf {
        let path = out.join(name);
        fs::write(&path, text).expect("a file in OUT_DIR");
        path
    }

    fn var(name: &str) -> String {
        env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
    }
}

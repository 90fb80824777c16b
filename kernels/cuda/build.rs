//! With the feature `cuda`: compiles the kernels for every architecture. Without it there is nothing to do.

#[cfg(feature = "cuda")]
#[path = "build/nvrtc.rs"]
mod nvrtc;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    images::build();
}

#[cfg(feature = "cuda")]
mod images {
    use std::{
        env,
        fmt::Write,
        fs,
        path::{Path, PathBuf},
        sync::Mutex,
    };

    use super::nvrtc::{Compiled, Nvrtc};

    /// Real architectures, from Volta to Hopper.
    const ARCHITECTURES: [u32; 6] = [70, 75, 80, 86, 89, 90];
    /// Whose PTX serves the GPUs that come after those: the oldest that has all the instructions that the kernels use.
    const PORTABLE: u32 = 80;

    pub fn build() {
        let here = PathBuf::from(var("CARGO_MANIFEST_DIR"));
        println!("cargo:rerun-if-changed=build");
        for entry in fs::read_dir(&here).expect("the folder of the crate") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|e| e == "cu" || e == "cuh") {
                println!("cargo:rerun-if-changed={}", path.display());
            }
        }
        let nvrtc = Nvrtc::find(&here);
        let supported = nvrtc.architectures();
        let wanted: Vec<u32> = ARCHITECTURES.into_iter().filter(|a| supported.contains(a)).collect();
        let missing: Vec<u32> = ARCHITECTURES.into_iter().filter(|a| !supported.contains(a)).collect();
        if !missing.is_empty() {
            println!(
                "cargo:warning=this CUDA toolkit does not know {missing:?}; 12.4 to 12.9 know all architectures"
            );
        }
        let compiled = compile(&nvrtc, &here, &wanted);
        write(&PathBuf::from(var("OUT_DIR")), &compiled, &nvrtc.version());
    }

    /// All architectures, on as many threads as cargo grants.
    fn compile(nvrtc: &Nvrtc, here: &Path, wanted: &[u32]) -> Vec<(u32, Compiled)> {
        let source = fs::read_to_string(here.join("yuan.cu")).expect("yuan.cu");
        let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
        let (next, done) = (Mutex::new(wanted.iter()), Mutex::new(Vec::new()));
        let take = || next.lock().expect("no panic").next().copied();
        std::thread::scope(|scope| {
            for _ in 0..wanted.len().min(jobs) {
                scope.spawn(|| {
                    while let Some(architecture) = take() {
                        let compiled = nvrtc.compile(&source, here, architecture);
                        done.lock().expect("no panic").push((architecture, compiled));
                    }
                });
            }
        });
        let mut done = done.into_inner().expect("no panic");
        done.sort_by_key(|(architecture, _)| *architecture);
        done
    }

    /// The images, the list of them, and what the assembler says of registers.
    fn write(out: &Path, compiled: &[(u32, Compiled)], version: &str) {
        let mut list = String::from("&[\n");
        let mut registers = format!("# NVRTC {version}\n");
        let mut image = |name: &str, architecture: u32, ptx: bool, bytes: &[u8]| {
            fs::write(out.join(name), bytes).expect("a file in OUT_DIR");
            let bytes = format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))");
            writeln!(list, "Image {{ architecture: {architecture}, ptx: {ptx}, bytes: {bytes} }},")
                .expect("a string");
        };
        for (architecture, compiled) in compiled {
            image(&format!("sm_{architecture}.cubin"), *architecture, false, &compiled.cubin);
            registers += &compiled.registers;
        }
        let portable = compiled.iter().find(|(architecture, _)| *architecture == PORTABLE);
        let (architecture, compiled) = portable.expect("a toolkit that knows sm_80");
        image(&format!("compute_{architecture}.ptx"), *architecture, true, &compiled.ptx);
        list.push(']');
        fs::write(out.join("images.rs"), list).expect("a file in OUT_DIR");
        fs::write(out.join("registers.txt"), registers).expect("a file in OUT_DIR");
    }

    fn var(name: &str) -> String {
        env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
    }
}

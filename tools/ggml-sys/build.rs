//! With the feature `build`: builds ggml with cmake and its bindings with bindgen. Without it there is nothing to do.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "build")]
    ggml::build();
}

#[cfg(feature = "build")]
mod ggml {
    use std::{
        collections::hash_map::DefaultHasher,
        env, fs,
        hash::{Hash, Hasher},
        path::{Path, PathBuf},
        process::Command,
    };

    /// The crate that carries the sources.
    const CARRIER: &str = "llama-cpp-sys-2";
    const HEADERS: [&str; 5] = ["ggml.h", "ggml-alloc.h", "ggml-backend.h", "ggml-cpu.h", "gguf.h"];

    pub fn build() {
        let here = PathBuf::from(var("CARGO_MANIFEST_DIR"));
        for file in ["CMakeLists.txt", "source/Cargo.toml", "source/Cargo.lock"] {
            println!("cargo:rerun-if-changed={file}");
        }
        assert_eq!(var("HOST"), var("TARGET"), "ggml is built for the machine that builds it");
        let (version, ggml) = sources(&here);

        let folder = build_folder(&version);
        fs::create_dir_all(&folder).expect("a folder in target");
        let lock = fs::File::create(folder.join("lock")).expect("a file in target");
        lock.lock().expect("builds of ggml in turn");
        run(Command::new("cmake").arg("-S").arg(&here).arg("-B").arg(&folder).args([
            format!("-DGGML_DIR={}", ggml.display()),
            "-DCMAKE_BUILD_TYPE=Release".to_owned(),
            "-Wno-dev".to_owned(),
        ]));
        // cargo's share of the cores; the environment's MAKEFLAGS speak of a job server that cmake does not reach.
        let jobs = env::var("NUM_JOBS").unwrap_or_else(|_| "1".to_owned());
        run(Command::new("cmake")
            .arg("--build")
            .arg(&folder)
            .args(["--target", "ggml", "--parallel", &jobs])
            .env_remove("MAKEFLAGS"));
        drop(lock);

        for library in ["ggml/src", "ggml/src/ggml-cpu"] {
            println!("cargo:rustc-link-search=native={}", folder.join(library).display());
        }
        for library in ["ggml", "ggml-cpu", "ggml-base"] {
            println!("cargo:rustc-link-lib=static={library}");
        }
        println!("cargo:rustc-link-lib=stdc++");
        let include = ggml.join("include");
        println!("cargo:include={}", include.display());
        bindings(&include);
    }

    /// The version of the carrier and the folder of ggml in it. cargo downloads it where it is not there yet.
    fn sources(here: &Path) -> (String, PathBuf) {
        let manifest = here.join("source/Cargo.toml");
        let output = Command::new(var("CARGO"))
            .args(["metadata", "--format-version=1", "--locked", "--manifest-path"])
            .arg(manifest)
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let packages = metadata["packages"].as_array().expect("packages");
        let carrier = packages.iter().find(|p| p["name"] == CARRIER).expect("the carrier of the sources");
        let manifest = Path::new(carrier["manifest_path"].as_str().expect("a path"));
        let version = carrier["version"].as_str().expect("a version").to_owned();
        (version, manifest.with_file_name("llama.cpp").join("ggml"))
    }

    /// One folder in `target` for all profiles: a minute and a half of C++ is built once. Another CPU has another folder,
    /// since the code is for this one.
    fn build_folder(version: &str) -> PathBuf {
        let out = PathBuf::from(var("OUT_DIR"));
        // cargo marks `target` itself as a cache.
        let target = out.ancestors().find(|f| f.join("CACHEDIR.TAG").exists()).unwrap_or(&out);
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let features = cpu.lines().find(|l| l.starts_with("flags") || l.starts_with("Features"));
        let mut hasher = DefaultHasher::new();
        features.hash(&mut hasher);
        target.join("ggml-sys").join(format!("{version}-{:08x}", hasher.finish() as u32))
    }

    fn bindings(include: &Path) {
        let includes: String = HEADERS.iter().map(|h| format!("#include \"{h}\"\n")).collect();
        bindgen::builder()
            .header_contents("wrapper.h", &includes)
            .clang_arg(format!("-I{}", include.display()))
            .allowlist_item("(ggml|gguf|GGML|GGUF)_.*")
            .blocklist_type("_IO_FILE|FILE")
            .raw_line("pub type FILE = ::std::os::raw::c_void;")
            .prepend_enum_name(false)
            .layout_tests(false)
            .generate_comments(false)
            .generate()
            .expect("bindings of ggml's headers; libclang must be installed")
            .write_to_file(PathBuf::from(var("OUT_DIR")).join("bindings.rs"))
            .expect("a file in OUT_DIR");
    }

    fn run(command: &mut Command) {
        let status =
            command.status().expect("cmake is installed (Debian: apt-get install cmake clang libclang-dev)");
        assert!(status.success(), "{command:?} ended with {status}");
    }

    fn var(name: &str) -> String {
        env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
    }
}

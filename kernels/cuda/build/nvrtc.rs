//! NVRTC, CUDA's compiler as a library: found, opened, and asked for one architecture at a time.

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr::null,
};

use libloading::{Library, Symbol};

/// The opened library.
pub struct Nvrtc(Library);

/// The kernels for one architecture.
pub struct Compiled {
    /// Machine code.
    pub cubin: Vec<u8>,
    /// The assembly that newer GPUs' drivers compile.
    pub ptx: Vec<u8>,
    /// A line for every kernel: architecture, name, registers, bytes of stack, bytes spilled, bytes of static shared memory.
    pub registers: String,
}

type Program = *mut c_void;

impl Nvrtc {
    /// Opens NVRTC of the toolkit that YUAN_CUDA, CUDA_HOME or CUDA_PATH names, of /usr/local/cuda, or of target/cuda-toolkit.
    ///
    /// # Panics
    /// Where there is none, with what to do about it.
    pub fn find(here: &Path) -> Self {
        let mut roots = Vec::new();
        for name in ["YUAN_CUDA", "CUDA_HOME", "CUDA_PATH"] {
            println!("cargo:rerun-if-env-changed={name}");
            roots.extend(env::var_os(name).map(PathBuf::from));
        }
        roots.extend(["/usr/local/cuda".into(), here.join("../../target/cuda-toolkit")]);
        let mut problems = String::new();
        for root in &roots {
            for file in libraries(root) {
                // SAFETY: a library whose initialisers only register its own state.
                match unsafe { Library::new(&file) } {
                    Ok(library) => return Self(library),
                    Err(problem) => problems += &format!("\n{}: {problem}", file.display()),
                }
            }
        }
        panic!(
            "the feature `cuda` needs NVRTC, CUDA's compiler, and none was found in {roots:?}. Install a CUDA toolkit (12.4 or later), or run \
             `.ci/cuda-toolkit`, which puts NVIDIA's packages from PyPI (50 MB) into target/cuda-toolkit, or name a toolkit's folder by \
             YUAN_CUDA=... A GPU is not needed.{problems}"
        );
    }

    fn symbol<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: callers name functions of nvrtc.h with the types that it gives them.
        unsafe { self.0.get(name.as_bytes()) }.unwrap_or_else(|e| panic!("NVRTC has no {name}: {e}"))
    }

    /// Its version, as `12.4`.
    pub fn version(&self) -> String {
        let version: Symbol<'_, extern "C" fn(*mut c_int, *mut c_int) -> c_int> = self.symbol("nvrtcVersion");
        let (mut major, mut minor) = (0, 0);
        assert_eq!(version(&mut major, &mut minor), 0, "nvrtcVersion");
        format!("{major}.{minor}")
    }

    /// The architectures that this version compiles for.
    pub fn architectures(&self) -> Vec<u32> {
        let count: Symbol<'_, extern "C" fn(*mut c_int) -> c_int> = self.symbol("nvrtcGetNumSupportedArchs");
        let list: Symbol<'_, extern "C" fn(*mut c_int) -> c_int> = self.symbol("nvrtcGetSupportedArchs");
        let mut n = 0;
        assert_eq!(count(&mut n), 0, "nvrtcGetNumSupportedArchs");
        let mut all = vec![0; usize::try_from(n).expect("a count")];
        assert_eq!(list(all.as_mut_ptr()), 0, "nvrtcGetSupportedArchs");
        all.into_iter().filter_map(|a| u32::try_from(a).ok()).collect()
    }

    /// Compiles `source`, whose headers lie in `folder`. A warning is an error.
    ///
    /// # Panics
    /// With the compiler's log, where it has anything to say but the use of registers.
    pub fn compile(&self, source: &str, folder: &Path, architecture: u32) -> Compiled {
        type Create = extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        let create: Symbol<'_, Create> = self.symbol("nvrtcCreateProgram");
        let compile: Symbol<'_, extern "C" fn(Program, c_int, *const *const c_char) -> c_int> =
            self.symbol("nvrtcCompileProgram");
        let destroy: Symbol<'_, extern "C" fn(*mut Program) -> c_int> = self.symbol("nvrtcDestroyProgram");

        let text = |s: String| CString::new(s).expect("no zero inside");
        let (source, name) = (text(source.into()), text("yuan.cu".into()));
        let options = [
            format!("--gpu-architecture=sm_{architecture}"),
            format!("-I{}", folder.display()),
            "--std=c++17".into(),
            // Floats round as on the CPU.
            "--fmad=false".into(),
            "--ptxas-options=-v".into(),
        ]
        .map(text);
        let options: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();

        let mut program: Program = std::ptr::null_mut();
        assert_eq!(
            create(&mut program, source.as_ptr(), name.as_ptr(), 0, null(), null()),
            0,
            "nvrtcCreateProgram"
        );
        let status = compile(program, options.len() as c_int, options.as_ptr());
        let log = self.bytes(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog");
        let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned();
        let complaint: Vec<_> =
            log.lines().filter(|l| !l.starts_with("ptxas info") && !l.starts_with("ptxas   ")).collect();
        let complaint = complaint.join("\n");
        assert!(status == 0 && complaint.trim().is_empty(), "kernels for sm_{architecture}:\n{complaint}");
        let compiled = Compiled {
            cubin: self.bytes(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN"),
            ptx: self.bytes(program, "nvrtcGetPTXSize", "nvrtcGetPTX"),
            registers: registers(&log, architecture),
        };
        destroy(&mut program);
        compiled
    }

    /// What a pair of functions, one for the size and one for the bytes, says of a program.
    fn bytes(&self, program: Program, size_of: &str, bytes_of: &str) -> Vec<u8> {
        let size: Symbol<'_, extern "C" fn(Program, *mut usize) -> c_int> = self.symbol(size_of);
        let get: Symbol<'_, extern "C" fn(Program, *mut c_char) -> c_int> = self.symbol(bytes_of);
        let mut n = 0;
        assert_eq!(size(program, &mut n), 0, "{size_of}");
        let mut bytes = vec![0; n];
        assert_eq!(get(program, bytes.as_mut_ptr().cast()), 0, "{bytes_of}");
        bytes
    }
}

/// Files below a toolkit's folder that could be NVRTC, a package of PyPI included.
fn libraries(root: &Path) -> Vec<PathBuf> {
    let folders = [
        "lib64",
        "lib",
        "targets/x86_64-linux/lib",
        "nvidia/cuda_nvrtc/lib",
        "nvidia/cu13/lib",
        "bin",
        "bin/x64",
    ];
    let is_nvrtc = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let is = name.starts_with("libnvrtc.so") || (name.starts_with("nvrtc64") && name.ends_with(".dll"));
        is && !name.contains("builtins") && !name.contains(".alt")
    };
    let mut found: Vec<PathBuf> = folders
        .iter()
        .filter_map(|f| std::fs::read_dir(root.join(f)).ok())
        .flat_map(|entries| entries.filter_map(|e| Some(e.ok()?.path())))
        .filter(is_nvrtc)
        .collect();
    found.sort();
    found
}

/// The assembler's account of every kernel, as lines in the order of their names.
fn registers(log: &str, architecture: u32) -> String {
    let number = |line: &str, unit: &str| -> u32 {
        let before = line.split(unit).next().unwrap_or_default();
        before.split([' ', ',']).rfind(|s| !s.is_empty()).and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let (mut lines, mut name, mut stack, mut spilled) = (Vec::new(), "", 0, 0);
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            name = rest.split('\'').next().unwrap_or_default();
        } else if line.contains("bytes spill stores") {
            (stack, spilled) = (number(line, " bytes stack frame"), number(line, " bytes spill stores"));
        } else if line.contains("Used ") {
            let shared = if line.contains("bytes smem") { number(line, " bytes smem") } else { 0 };
            let used = number(line, " registers");
            lines.push(format!("sm_{architecture} {name:28} {used:3} {stack:4} {spilled:4} {shared:6}\n"));
        }
    }
    lines.sort();
    lines.concat()
}

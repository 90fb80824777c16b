//! What comes before every use of ggml: its tables, its log, and the numbers of its types.

use std::{
    ffi::{CStr, c_char, c_void},
    ptr,
    sync::Once,
};

use ggml_sys::*;
use yuan_kernels::DType;

/// ggml's number of a type.
pub fn type_of(dtype: DType) -> ggml_type {
    dtype as ggml_type
}

/// Fills ggml's tables. Its functions ask for this to be done once, before all else.
///
/// # Panics
/// Where this CPU lacks instructions of the one that ggml was built for.
pub fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: plain functions that tell what ggml was compiled with.
            let built_for =
                unsafe { [ggml_cpu_has_avx2(), ggml_cpu_has_avx512(), ggml_cpu_has_avx512_vnni()] };
            let here = [
                is_x86_feature_detected!("avx2"),
                is_x86_feature_detected!("avx512f"),
                is_x86_feature_detected!("avx512vnni"),
            ];
            let lacks = built_for.iter().zip(here).any(|(&built, here)| built != 0 && !here);
            assert!(!lacks, "ggml was built for another CPU; run: rm -r target/ggml-sys");
        }
        // SAFETY: `Once` keeps other threads out; `log` has the type that ggml calls, and is given no data.
        unsafe {
            ggml_log_set(Some(log), ptr::null_mut());
            ggml_cpu_init();
        }
    });
}

/// Warnings and errors only: ggml has a word on every tensor that it repacks.
unsafe extern "C" fn log(level: ggml_log_level, text: *const c_char, _: *mut c_void) {
    if matches!(level, GGML_LOG_LEVEL_WARN | GGML_LOG_LEVEL_ERROR) {
        // SAFETY: ggml gives a string that lives as long as the call.
        eprint!("{}", unsafe { CStr::from_ptr(text) }.to_string_lossy());
    }
}

/// ggml's version.
pub fn version() -> String {
    // SAFETY: ggml returns a constant string.
    unsafe { CStr::from_ptr(ggml_version()) }.to_string_lossy().into_owned()
}

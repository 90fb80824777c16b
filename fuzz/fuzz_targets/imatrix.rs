#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| yuan_fuzz::imatrix::run(data));

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| yuan_fuzz::sampler::run(data));

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| diffused_fuzz::safetensors::check(bytes));

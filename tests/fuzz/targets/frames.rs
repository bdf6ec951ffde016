//! libFuzzer's entry to `frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ztunnel_fuzz::frames(data));

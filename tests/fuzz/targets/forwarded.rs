//! libFuzzer's entry to `forwarded`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ztunnel_fuzz::forwarded(data));

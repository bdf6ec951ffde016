//! libFuzzer's entry to `control_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ztunnel_fuzz::control_request(data));

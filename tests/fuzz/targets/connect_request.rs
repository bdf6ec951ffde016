//! libFuzzer's entry to `connect_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ztunnel_fuzz::connect_request(data));

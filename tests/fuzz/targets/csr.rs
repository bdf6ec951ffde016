//! libFuzzer's entry to `csr`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ztunnel_fuzz::csr(data));

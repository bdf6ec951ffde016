//! libFuzzer's entry to `tls_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ztunnel_fuzz::tls_record(data));

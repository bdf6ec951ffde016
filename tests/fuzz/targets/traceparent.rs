//! libFuzzer's entry to `traceparent`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ztunnel_fuzz::traceparent(data));

//! libFuzzer's entry to `baggage`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ztunnel_fuzz::baggage(data));

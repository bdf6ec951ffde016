//! libFuzzer's entry to `header_blocks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ztunnel_fuzz::header_blocks(data));

//! libFuzzer's entry to `spiffe`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ztunnel_fuzz::spiffe(data));

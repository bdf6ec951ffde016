//! libFuzzer's entry to `peer_certificate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ztunnel_fuzz::peer_certificate(data));

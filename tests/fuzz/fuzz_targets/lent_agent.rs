#![no_main]
mod bounded;

use gpudeck::api::lend::message::{Asked, asked, is_answer, keys};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    bounded::run(|| {
        let _ = asked(bytes);
        for what in [Asked::Identities, Asked::Signature] {
            if is_answer(what, bytes) {
                assert!(keys(bytes).len() <= 2048);
            }
        }
    });
});

#![no_main]
mod bounded;

use gpudeck::fleet::readers::{Reader, read};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    bounded::run(|| read(Reader::Messages, bytes).unwrap());
});

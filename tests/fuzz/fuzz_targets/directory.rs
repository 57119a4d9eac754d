#![no_main]
mod bounded;

use gpudeck::engine::memory;
use gpudeck::model::readers::{Reader, read};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    bounded::run(|| read(Reader::Directory, bytes, memory::VLLM).unwrap());
});

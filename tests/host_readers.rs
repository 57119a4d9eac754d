//! The readers of what hosts and shared files say, on mutated seeds: what `tests/fuzz` does with a
//! fuzzer, bounded, under plain `cargo test`. The seeds are the fuzzer's (`tests/fuzz/seeds`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::cast_possible_truncation)] // random numbers

use std::path::Path;

use gpudeck::api::lend::message::{Asked, asked, is_answer, keys};
use gpudeck::fleet::readers::{self, Reader};
use gpudeck::wire::{FromAgent, ToAgent};

/// A small generator: the same bytes for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target}");
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Pieces that these readers are likely to trip over.
const PIECES: [&str; 16] = [
    "\"",
    "\\",
    "%",
    "%h",
    "${",
    "\r\n",
    "\0",
    "!",
    "*",
    ", ",
    "null",
    "-1",
    "1e400",
    "18446744073709551616",
    "\u{1b}[2J",
    "\u{202e}",
];

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(5) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        let end = (at + random.below(40)).min(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => {
                bytes.drain(at..end);
            }
            _ => {
                let piece = PIECES[random.below(PIECES.len())];
                bytes.splice(at..at, piece.bytes());
            }
        }
    }
}

#[test]
fn the_seeds_are_what_they_are_to_be() {
    for seed in seeds("messages") {
        for line in seed.split(|b| *b == b'\n') {
            let read = serde_json::from_slice::<FromAgent>(line).err();
            let written = serde_json::from_slice::<ToAgent>(line).err();
            let text = String::from_utf8_lossy(line);
            assert!(read.is_none() || written.is_none(), "{text}: {read:?}, {written:?}");
        }
    }
    let known = seeds("lent_agent");
    assert_eq!(known.iter().filter(|m| asked(m).is_some()).count(), 2);
    let answers = |what| known.iter().filter(|m| is_answer(what, m)).count();
    assert_eq!((answers(Asked::Identities), answers(Asked::Signature)), (2, 2));
}

/// Inputs made of each seed; at night more.
fn rounds() -> usize {
    if std::env::var("GPUDECK_NIGHTLY").as_deref() == Ok("1") { 20_000 } else { 500 }
}

#[test]
fn no_bytes_make_a_reader_fail() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let targets = [
        (Reader::Messages, "messages"),
        (Reader::SshConfig, "ssh_config"),
        (Reader::KnownHosts, "known_hosts"),
        (Reader::NvidiaSmi, "nvidia_smi"),
    ];
    assert_eq!(targets.map(|(reader, _)| reader), readers::ALL);
    let mut read = 0;
    for (reader, target) in targets {
        for seed in seeds(target) {
            readers::read(reader, &seed).unwrap();
            for _ in 0..rounds() {
                let mut bytes = seed.clone();
                mutate(&mut bytes, &mut random);
                if let Err(why) = readers::read(reader, &bytes) {
                    panic!("{reader:?}: {why}\n{}", String::from_utf8_lossy(&bytes));
                }
                read += 1;
            }
        }
    }
    assert!(read > 5_000);
    for seed in seeds("lent_agent") {
        for _ in 0..rounds() {
            let mut bytes = seed.clone();
            mutate(&mut bytes, &mut random);
            let _ = asked(&bytes);
            if is_answer(Asked::Identities, &bytes) {
                assert!(keys(&bytes).len() <= 2048);
            }
        }
    }
}

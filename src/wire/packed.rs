//! A long line as a short one: deflated and in base64. A host's first sample says the same names over
//! and over; packed it fits into what a server may send at once, however many GPUs and processes the
//! host has. (What changes after it is short anyway.)

use std::io::{Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::codec::{CodecError, MAX_LINE_BYTES, encode_line};
use super::request::FromAgent;

/// Shorter lines stay as they are: they fit into two packets.
const WORTH_IT: usize = 2_800;

/// A packed line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed(String);

/// The same line, packed if that makes it shorter.
pub fn pack_line(line: Vec<u8>) -> Vec<u8> {
    if line.len() < WORTH_IT {
        return line;
    }
    match packed(&line) {
        Ok(packed) if packed.len() < line.len() => packed,
        // It says the same.
        Ok(_) | Err(_) => line,
    }
}

fn packed(line: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut encoder =
        flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(line)?;
    encode_line(&FromAgent::Packed(Packed(STANDARD.encode(encoder.finish()?))))
}

impl Packed {
    fn unpack(&self) -> Result<Vec<u8>, CodecError> {
        let damaged = |error: base64::DecodeError| CodecError::Damaged(error.to_string());
        let deflated = STANDARD.decode(&self.0).map_err(damaged)?;
        let mut line = Vec::new();
        let most = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
        let mut inflated = flate2::read::DeflateDecoder::new(deflated.as_slice()).take(most + 1);
        inflated.read_to_end(&mut line).map_err(|error| CodecError::Damaged(error.to_string()))?;
        if line.len() > MAX_LINE_BYTES { Err(CodecError::TooLong) } else { Ok(line) }
    }
}

/// Reads an agent's line; a packed one as what it is, so that [`FromAgent::Packed`] never comes out.
///
/// # Errors
/// It is no message, or was packed and is damaged, too long, or packed twice.
pub fn read_line(line: &[u8]) -> Result<FromAgent, CodecError> {
    match serde_json::from_slice(line)? {
        FromAgent::Packed(packed) => match serde_json::from_slice(&packed.unpack()?)? {
            FromAgent::Packed(_) => Err(CodecError::Damaged("it was packed twice".to_owned())),
            message => Ok(message),
        },
        message => Ok(message),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::{Gpu, Gpus, HostSample};

    fn sample(gpus: u32) -> FromAgent {
        let gpu = |index| Gpu { index, uuid: format!("GPU-{index:032}").into(), ..Gpu::default() };
        let gpus = Gpus::Some((0..gpus).map(gpu).collect());
        FromAgent::Sample(Box::new(HostSample { gpus, ..HostSample::default() }))
    }

    #[test]
    fn a_long_line_comes_out_as_it_was_and_a_short_one_is_left_alone() {
        let long = encode_line(&sample(100)).unwrap();
        let packed = pack_line(long.clone());
        assert!(packed.len() < long.len() / 4, "{} of {}", packed.len(), long.len());
        assert_eq!(String::from_utf8_lossy(&packed).lines().count(), 1);
        assert_eq!(read_line(&packed).unwrap(), sample(100));
        assert_eq!(read_line(&long).unwrap(), sample(100));
        let short = encode_line(&sample(1)).unwrap();
        assert_eq!(pack_line(short.clone()), short);
    }

    #[test]
    fn what_was_damaged_or_would_fill_memory_is_refused() {
        let line = |text: String| encode_line(&FromAgent::Packed(Packed(text))).unwrap();
        let is_damaged = |line: &[u8]| matches!(read_line(line), Err(CodecError::Damaged(_)));
        assert!(is_damaged(&line("!".to_owned())));
        assert!(is_damaged(&line(STANDARD.encode([0xff, 0, 1]))));
        let mut twice = packed(&encode_line(&sample(1)).unwrap()).unwrap();
        twice = packed(&twice).unwrap();
        assert!(is_damaged(&twice));
        let bomb = packed(&vec![b' '; MAX_LINE_BYTES + 1]).unwrap();
        assert!(bomb.len() < 20_000 && matches!(read_line(&bomb), Err(CodecError::TooLong)));
    }
}

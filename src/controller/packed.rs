//! States as text: JSON, deflated and in base64, behind a word for the version.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::OnceLock;

use base64::Engine as _;
use serde::Serialize;

use super::saved::Saved;
use crate::base::ReleaseNumber;
use crate::rollout::{Release, Shared};

/// Largest state that is read back, unpacked.
const MAX_UNPACKED: u64 = 64 << 20;

/// JSON, deflated and in base64, behind a word for its version.
pub(super) fn pack_json(prefix: &str, value: &impl Serialize) -> std::io::Result<String> {
    let json = serde_json::to_vec(value)?;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&json)?;
    let packed = encoder.finish()?;
    Ok(format!("{prefix}{}", base64::engine::general_purpose::STANDARD.encode(packed)))
}

/// Reads what [`pack_json`] made: hostile bytes.
pub(super) fn unpack_json<T: serde::de::DeserializeOwned>(
    prefix: &str,
    text: &str,
) -> Result<T, String> {
    let packed = text.strip_prefix(prefix).ok_or("it is of another version")?;
    let packed = base64::engine::general_purpose::STANDARD
        .decode(packed)
        .map_err(|e| format!("it is damaged: {e}"))?;
    let mut json = Vec::new();
    flate2::read::DeflateDecoder::new(packed.as_slice())
        .take(MAX_UNPACKED)
        .read_to_end(&mut json)
        .map_err(|e| format!("it is damaged: {e}"))?;
    serde_json::from_slice(&json).map_err(|e| format!("it cannot be read: {e}"))
}

/// The releases of a state, packed once: they are the larger part of it and hardly ever change.
pub(super) struct Releases {
    all: BTreeMap<ReleaseNumber, Shared<Release>>,
    packed: OnceLock<Vec<u8>>,
}

impl Releases {
    /// Not packed yet.
    pub(super) fn new(all: BTreeMap<ReleaseNumber, Shared<Release>>) -> Self {
        Self { all, packed: OnceLock::new() }
    }

    /// Whether it is of these.
    pub(super) fn is_of(&self, all: &BTreeMap<ReleaseNumber, Shared<Release>>) -> bool {
        self.all.len() == all.len()
            && self.all.values().zip(all.values()).all(|(a, b)| a.is_same(b))
    }

    fn packed(&self) -> std::io::Result<&[u8]> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        let packed = deflate_part(&serde_json::to_vec(&self.all)?)?;
        Ok(self.packed.get_or_init(|| packed))
    }
}

/// A piece of a deflated stream that others may follow: it ends at a whole byte and refers to nothing
/// before it.
fn deflate_part(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    encoder.flush()?;
    Ok(std::mem::take(encoder.get_mut()))
}

/// As a host keeps it, of a state whose releases were taken out.
pub(super) fn pack_with(
    prefix: &str,
    saved: &Saved,
    releases: &Releases,
) -> std::io::Result<String> {
    let json = serde_json::to_vec(saved)?;
    // No text in it can look like this: its quotation marks would be escaped.
    let service = serde_json::to_string(&saved.state.service)?;
    let place = format!("\"state\":{{\"service\":{service},\"releases\":");
    let at = json.windows(place.len()).position(|part| part == place.as_bytes());
    let parts = at.and_then(|at| {
        let (head, rest) = json.split_at_checked(at + place.len())?;
        Some((head, rest.strip_prefix(b"{}")?))
    });
    let Some((head, rest)) = parts else {
        return Err(std::io::Error::other("the releases have no place in the state"));
    };
    let mut packed = deflate_part(head)?;
    packed.extend_from_slice(releases.packed()?);
    let mut encoder = flate2::write::DeflateEncoder::new(packed, flate2::Compression::fast());
    encoder.write_all(rest)?;
    let packed = encoder.finish()?;
    Ok(format!("{prefix}{}", base64::engine::general_purpose::STANDARD.encode(packed)))
}

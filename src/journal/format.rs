//! Lines of a segment, as text: no disk here.

use std::fmt::Write as _;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::JournalError;

/// Version of the format that is written. Version 2 added who wrote a segment to its header; since version 3 a replica
/// may run under the name of another release, which an older gpudeck would look for in vain. Lines are the same since
/// version 1.
pub const VERSION: u32 = 3;

/// The oldest version that is still read. A journal of it gets a checkpoint, and with that a segment
/// of [`VERSION`], as soon as it is opened by a controller.
pub const OLDEST_VERSION: u32 = 1;

/// Longest line, in bytes; nothing longer is written or read.
pub const MAX_LINE_BYTES: usize = 64 << 20;

/// What every header line begins with; the version follows.
const MAGIC: &str = "gpudeck-journal ";

/// A link of the chain: 16 hexadecimal digits of BLAKE3 over the link before and the JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link([u8; 16]);

impl Link {
    /// Before the first record of the first segment.
    pub const START: Self = Self(*b"0000000000000000");

    /// The link of a record whose JSON is `json`.
    #[must_use]
    pub fn then(self, json: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        hasher.update(json.as_bytes());
        let hex = hasher.finalize().to_hex();
        let mut link = Self::START;
        for (to, from) in link.0.iter_mut().zip(hex.bytes()) {
            *to = from;
        }
        link
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The first line of a segment: `gpudeck-journal VERSION HASH JSON`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Number of the segment, from 1; as in the file name.
    pub segment: u32,
    /// Sequence number of its first record.
    pub first_seq: u64,
    /// The link of the last record of the segment before.
    pub previous: String,
    /// The gpudeck that wrote it: `gpudeck 0.1.0`; empty in version 1.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub written_by: String,
    /// The version of its format once more, under the header's hash: one that is read as another is found. Since
    /// version 3.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub format: u32,
    /// The version of its format, which stands before the JSON.
    #[serde(skip)]
    pub version: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Header {
    /// The header of a segment that this gpudeck writes.
    pub fn new(segment: u32, first_seq: u64, previous: Link) -> Self {
        Self {
            segment,
            first_seq,
            previous: previous.as_str().to_owned(),
            written_by: concat!("gpudeck ", env!("CARGO_PKG_VERSION")).to_owned(),
            format: VERSION,
            version: VERSION,
        }
    }
}

/// What one line of the journal holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its number: the first one ever is 1, and none is left out.
    pub seq: u64,
    /// State or change.
    pub kind: RecordKind,
    /// What was appended, as JSON.
    pub value: serde_json::Value,
}

/// State or change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The whole state after everything before; always the first record of a segment.
    Checkpoint,
    /// Something that was appended.
    Appended,
}

impl Record {
    /// The value as the type that was appended.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, JournalError> {
        T::deserialize(&self.value).map_err(|e| JournalError::Record {
            what: format!("record {} is not what was expected: {e}", self.seq),
        })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum EnvelopeOut<'a, T> {
    Checkpoint(&'a T),
    Record(&'a T),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum EnvelopeIn {
    Checkpoint(serde_json::Value),
    Record(serde_json::Value),
}

/// The header as a line, and the link that its first record follows.
pub fn header_line(header: &Header) -> Result<(String, Link), JournalError> {
    let json = encode(header)?;
    let link = Link::START.then(&json);
    Ok((format!("{MAGIC}{VERSION} {} {json}\n", link.as_str()), link))
}

/// Why a header line is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// Another version.
    Version(u32),
    /// Not a header.
    Damaged(&'static str),
}

/// Reads a header line (without its line end).
pub fn parse_header(text: &str) -> Result<(Header, Link), BadHeader> {
    let rest = text.strip_prefix(MAGIC).ok_or(BadHeader::Damaged("this is not a journal"))?;
    let (version, rest) =
        rest.split_once(' ').ok_or(BadHeader::Damaged("the header is incomplete"))?;
    let version: u32 =
        version.parse().map_err(|_| BadHeader::Damaged("the header has no version"))?;
    if !(OLDEST_VERSION..=VERSION).contains(&version) {
        return Err(BadHeader::Version(version));
    }
    let (stated, json) =
        rest.split_once(' ').ok_or(BadHeader::Damaged("the header is incomplete"))?;
    let link = Link::START.then(json);
    if stated != link.as_str() {
        return Err(BadHeader::Damaged("the header does not match its hash"));
    }
    let header: Header =
        serde_json::from_str(json).map_err(|_| BadHeader::Damaged("the header is not readable"))?;
    if header.format != if version < 3 { 0 } else { version } {
        return Err(BadHeader::Damaged("the header is of another version than it says"));
    }
    Ok((Header { version, ..header }, link))
}

/// Appends one record as a line to `out`; returns its link.
pub fn push_record<T: Serialize>(
    out: &mut String,
    seq: u64,
    previous: Link,
    kind: RecordKind,
    value: &T,
) -> Result<Link, JournalError> {
    let json = match kind {
        RecordKind::Checkpoint => encode(&EnvelopeOut::Checkpoint(value))?,
        RecordKind::Appended => encode(&EnvelopeOut::Record(value))?,
    };
    if json.len() > MAX_LINE_BYTES - 64 {
        return Err(JournalError::Record {
            what: format!("it is longer than {MAX_LINE_BYTES} bytes"),
        });
    }
    let link = previous.then(&json);
    writeln!(out, "{seq} {} {json}", link.as_str())
        .map_err(|e| JournalError::Record { what: e.to_string() })?;
    Ok(link)
}

/// Reads a record line (without its line end) that must follow `previous` as number `seq`.
pub fn parse_record(text: &str, seq: u64, previous: Link) -> Result<(Record, Link), String> {
    let mut parts = text.splitn(3, ' ');
    let (Some(number), Some(stated), Some(json)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err("the record is incomplete".to_owned());
    };
    // Compared as text, so that no other spelling of the number passes.
    if number != seq.to_string() {
        return Err(format!("record {seq} was expected here"));
    }
    let link = previous.then(json);
    if stated != link.as_str() {
        return Err(format!("record {seq} does not match its hash"));
    }
    let (kind, value) = match serde_json::from_str(json) {
        Ok(EnvelopeIn::Checkpoint(value)) => (RecordKind::Checkpoint, value),
        Ok(EnvelopeIn::Record(value)) => (RecordKind::Appended, value),
        Err(e) => return Err(format!("record {seq} is not readable: {e}")),
    };
    Ok((Record { seq, kind, value }, link))
}

/// `serde_json` escapes line ends inside strings, so the result is always one line.
fn encode<T: Serialize>(value: &T) -> Result<String, JournalError> {
    serde_json::to_string(value).map_err(|e| JournalError::Record { what: e.to_string() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_told_apart_from_damage() {
        let header = Header::new(1, 1, Link::START);
        let (text, link) = header_line(&header).unwrap();
        assert_eq!(parse_header(text.trim_end()), Ok((header, link)));
        let newer = text.trim_end().replace("gpudeck-journal 3 ", "gpudeck-journal 7 ");
        assert_eq!(parse_header(&newer), Err(BadHeader::Version(7)));
        assert!(matches!(
            parse_header(&text.trim_end().replace("segment", "segmemt")),
            Err(BadHeader::Damaged(_))
        ));
    }
}

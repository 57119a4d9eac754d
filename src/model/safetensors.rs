//! The header of a safetensors file, and the index of a model in several files.
//!
//! The format is `safetensors/README.md`; what is refused follows `safetensors/src/tensor.rs`:
//! names may not repeat, data may neither overlap nor have gaps, and the file ends with the data.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::tensors::{self, Tensor, Tensors};
use super::{HeaderError, Progress};
use crate::base::{Bytes, text};

/// Longest header that is read (the format allows 100 MB; the largest models have a few MB in one
/// file).
pub const MAX_HEADER: u64 = 16 << 20;
/// Most tensors of a file.
pub const MAX_TENSORS: usize = 100_000;
/// Longest index that is read.
pub const MAX_INDEX: u64 = 24 << 20;

/// Most files that an index names.
const MAX_FILES: usize = 10_000;
/// Most dimensions of a tensor: more than any framework's layers have.
const MAX_DIMENSIONS: usize = 8;

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SafetensorsHeader {
    /// Tensors in the file.
    pub tensors: u32,
    /// All tensors together.
    pub weight_bytes: u64,
    /// Bytes by type of data (`BF16`, `F8_E4M3`), cleaned.
    pub by_dtype: BTreeMap<String, u64>,
    /// The tensors.
    pub list: Vec<Tensor>,
    /// There are more than the list has.
    pub cut: bool,
    /// Digests of their whole names, by which a tensor that several files hold is found.
    pub digests: Vec<u64>,
}

/// A tensor's dimensions.
#[derive(Debug, Default)]
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                // Each number of a header may be two bytes, and eight here.
                let mut shape = Vec::new();
                while let Some(side) = list.next_element()? {
                    if shape.len() >= MAX_DIMENSIONS {
                        return Err(serde::de::Error::custom(format!(
                            "a tensor with more than {MAX_DIMENSIONS} dimensions"
                        )));
                    }
                    shape.push(side);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

#[derive(Deserialize)]
struct Info<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Shape,
    data_offsets: (u64, u64),
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

type Entries<'a> = Vec<(Cow<'a, str>, Info<'a>)>;

/// Reads the header's JSON object, with at most so many tensors.
struct AtMost(usize);

impl<'de> DeserializeSeed<'de> for AtMost {
    type Value = Entries<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for AtMost {
    type Value = Entries<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry a tensor")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        let mut described = false;
        while let Some(Name(name)) = map.next_key()? {
            if name == "__metadata__" && !std::mem::replace(&mut described, true) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if entries.len() >= self.0 {
                return Err(serde::de::Error::custom(if self.0 < MAX_TENSORS {
                    format!("with the other files more than {} tensors", tensors::MAX_TENSORS)
                } else {
                    format!("more than {MAX_TENSORS} tensors")
                }));
            }
            entries.push((name, map.next_value()?));
        }
        Ok(entries)
    }
}

/// Bits of one value; none for types this version does not know.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ"
        | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// Reads the header from `prefix`, the beginning of a file of `file_bytes`.
pub fn parse(prefix: &[u8], file_bytes: u64) -> Result<Progress<SafetensorsHeader>, HeaderError> {
    parse_at_most(prefix, file_bytes, MAX_TENSORS)
}

/// The same for a file that may have no more than `most` tensors: what the model's other files have
/// left of them.
pub(super) fn parse_at_most(
    prefix: &[u8],
    file_bytes: u64,
    most: usize,
) -> Result<Progress<SafetensorsHeader>, HeaderError> {
    let more = |at_least: u64| {
        if at_least > file_bytes {
            Err(HeaderError::truncated_header(file_bytes, at_least))
        } else {
            Ok(Progress::NeedMore { at_least })
        }
    };
    let Some(length) = prefix.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) else {
        return more(8);
    };
    if prefix.get(8).is_some_and(|b| *b != b'{') {
        return Err(HeaderError::NotThisFormat(
            "not a safetensors file (its header is not a JSON object)".to_owned(),
        ));
    }
    if length > MAX_HEADER {
        return Err(HeaderError::TooLarge {
            limit: Bytes(MAX_HEADER),
            what: format!("it claims {length} bytes"),
        });
    }
    let end = 8 + length;
    let Some(json) = usize::try_from(end).ok().and_then(|end| prefix.get(8..end)) else {
        return more(end);
    };
    let mut reader = serde_json::Deserializer::from_slice(json);
    let read = AtMost(most.min(MAX_TENSORS)).deserialize(&mut reader);
    let entries = read.and_then(|entries| reader.end().map(|()| entries)).map_err(|e| {
        HeaderError::broken(format!(
            "its header cannot be read: {}",
            text::clean(&e.to_string(), 200)
        ))
    })?;
    let mut seen = HashSet::with_capacity(entries.len());
    if let Some((twice, _)) = entries.iter().find(|(name, _)| !seen.insert(name.as_ref())) {
        return Err(HeaderError::broken(format!("`{}` occurs twice", text::clean(twice, 120))));
    }
    drop(seen);
    check(entries, end, file_bytes).map(|header| Progress::Parsed(Box::new(header)))
}

fn check(
    mut entries: Vec<(Cow<'_, str>, Info<'_>)>,
    data_start: u64,
    file_bytes: u64,
) -> Result<SafetensorsHeader, HeaderError> {
    entries.sort_by_key(|(_, info)| info.data_offsets);
    let mut header = SafetensorsHeader::default();
    let mut list = Tensors::default();
    let mut at = 0;
    header.digests.reserve_exact(entries.len());
    for (name, info) in entries {
        header.digests.push(tensors::digest(&name));
        let name = text::clean(&name, 120);
        let (begin, end) = info.data_offsets;
        if end < begin {
            return Err(HeaderError::broken(format!("the data of `{name}` ends before it begins")));
        }
        if begin != at {
            let what = if begin < at { "overlaps" } else { "leaves a gap after" };
            return Err(HeaderError::broken(format!("`{name}` {what} the tensor before it")));
        }
        let length = end - begin;
        if let Some(bits) = bits(&info.dtype) {
            let stated = info.shape.0.iter().try_fold(bits, |n, d| n.checked_mul(*d));
            if stated.map(|n| n.div_ceil(8)) != Some(length) {
                return Err(HeaderError::broken(format!(
                    "`{name}` has {length} bytes, its shape says otherwise"
                )));
            }
        }
        let dtype = text::clean(&info.dtype, 20);
        list.add(&name, &dtype, &info.shape.0, length);
        *header.by_dtype.entry(dtype).or_default() += length;
        header.tensors = header.tensors.saturating_add(1);
        at = end;
    }
    header.weight_bytes = at;
    header.cut = list.cut;
    header.list = list.finish();
    match data_start.checked_add(at) {
        Some(end) if end > file_bytes => Err(HeaderError::truncated(file_bytes, end)),
        Some(end) if end == file_bytes => Ok(header),
        _ => Err(HeaderError::broken("the file goes on after its last tensor")),
    }
}

/// The files that an index (`model.safetensors.index.json`) names, sorted.
pub fn parse_index(json: &[u8]) -> Result<BTreeSet<String>, HeaderError> {
    /// The values of a map whose keys (every tensor's name) are not kept.
    struct Files(BTreeSet<String>);
    impl<'de> Deserialize<'de> for Files {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Map;
            impl<'de> Visitor<'de> for Map {
                type Value = Files;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object from tensors to files")
                }
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Files, A::Error> {
                    let mut files = BTreeSet::new();
                    while map.next_key::<IgnoredAny>()?.is_some() {
                        let file = map.next_value::<String>()?;
                        if files.len() >= MAX_FILES {
                            return Err(serde::de::Error::custom("too many files"));
                        }
                        files.insert(file);
                    }
                    Ok(Files(files))
                }
            }
            deserializer.deserialize_map(Map)
        }
    }
    #[derive(Deserialize)]
    struct Index {
        weight_map: Files,
    }
    let index: Index = serde_json::from_slice(json).map_err(|e| {
        HeaderError::broken(format!("not an index: {}", text::clean(&e.to_string(), 200)))
    })?;
    let files = index.weight_map.0;
    for file in &files {
        let plain = !file.is_empty()
            && file.len() <= 255
            && !file.starts_with('.')
            && !file.contains(['/', '\\', '\0'])
            && text::clean(file, 300) == *file;
        if !plain {
            return Err(HeaderError::broken(format!(
                "it names `{}`, which is not a file beside it",
                text::clean(file, 80)
            )));
        }
    }
    if files.is_empty() {
        return Err(HeaderError::broken("it names no file"));
    }
    Ok(files)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    #![allow(clippy::cast_possible_truncation)] // small numbers of small tests
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn file(json: &str, data: usize) -> Vec<u8> {
        let mut out = (json.len() as u64).to_le_bytes().to_vec();
        out.extend(json.as_bytes());
        out.resize(out.len() + data, 0);
        out
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[16,20]},
        "a":{"dtype":"BF16","shape":[2,4],"data_offsets":[0,16]}}   "#;

    #[test]
    fn reads_a_header_and_asks_for_what_it_needs() {
        let bytes = file(GOOD, 20);
        let length = bytes.len() as u64;
        let needed = 8 + GOOD.len() as u64;
        assert_eq!(parse(&bytes[..3], length), Ok(Progress::NeedMore { at_least: 8 }));
        assert_eq!(parse(&bytes[..30], length), Ok(Progress::NeedMore { at_least: needed }));
        let Ok(Progress::Parsed(header)) = parse(&bytes[..needed as usize], length) else {
            panic!()
        };
        assert_eq!((header.tensors, header.weight_bytes), (2, 20));
        assert_eq!(header.by_dtype["BF16"], 16);
    }

    #[test]
    fn unknown_types_are_as_long_as_their_range() {
        let json = r#"{"a":{"dtype":"F9_NEW","shape":[3],"data_offsets":[0,7]}}"#;
        let bytes = file(json, 7);
        let Ok(Progress::Parsed(header)) = parse(&bytes, bytes.len() as u64) else { panic!() };
        assert_eq!(header.weight_bytes, 7);
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        let one = |offsets: &str| {
            format!(r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}}}"#)
        };
        let two = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                      "b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
        let twice = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                        "a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
        let cases = [
            ("gap", file(&one("[4,8]"), 8)),
            ("ends before", file(&one("[4,0]"), 8)),
            ("its shape", file(&one("[0,5]"), 5)),
            ("overlaps", file(two, 6)),
            ("twice", file(twice, 8)),
            ("goes on", file(&one("[0,4]"), 5)),
            ("truncated: 1 byte is", file(&one("[0,4]"), 3)),
            ("cannot be read", file(&one("[0,-4]"), 4)),
            (
                "more than 8 dimensions",
                file(&one("[0,4]").replace("[4]", "[4,1,1,1,1,1,1,1,1]"), 4),
            ),
            ("cannot be read", file(&one("[0,99999999999999999999]"), 4)),
            (
                "its shape",
                file(
                    r#"{"a":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#,
                    8,
                ),
            ),
            (
                "too large",
                file("{}", 0)
                    .iter()
                    .enumerate()
                    .map(|(i, b)| if i == 7 { 0x10 } else { *b })
                    .collect(),
            ),
            ("not a safetensors", file("[]", 0)),
            ("truncated", vec![1, 2, 3]),
        ];
        for (expected, bytes) in cases {
            let error = parse(&bytes, bytes.len() as u64).unwrap_err().to_string();
            assert!(error.contains(expected), "expected `{expected}`, got `{error}`");
        }
    }

    #[test]
    fn no_more_tensors_are_read_than_are_left() {
        let bytes = file(GOOD, 20);
        let of = |most| parse_at_most(&bytes, bytes.len() as u64, most);
        assert!(of(2).is_ok());
        assert!(of(1).unwrap_err().to_string().contains("the other files more than 400000"));
        let eight = r#"{"a":{"dtype":"U8","shape":[4,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#;
        let bytes = file(eight, 4);
        assert!(parse(&bytes, bytes.len() as u64).is_ok());
        let bytes = file(&format!("{eight} x"), 4);
        assert!(parse(&bytes, bytes.len() as u64).is_err());
    }

    #[test]
    fn an_index_names_files_beside_it_and_nothing_else() {
        let files = parse_index(
            br#"{"metadata":{"total_size":1},
            "weight_map":{"x":"m-2.safetensors","y":"m-1.safetensors","z":"m-2.safetensors"}}"#,
        );
        assert_eq!(files.unwrap().len(), 2);
        for bad in ["../x", "/etc/passwd", "a/b", "", ".hidden", "a\\u001bb"] {
            let json = format!(r#"{{"weight_map":{{"x":"{bad}"}}}}"#);
            assert!(parse_index(json.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse_index(br#"{"weight_map":{}}"#).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0usize..200, value in any::<u8>(), claimed in any::<u64>()) {
            let mut bytes = file(GOOD, 20);
            let length = bytes.len();
            bytes[at % length] = value;
            let _ = parse(&bytes, claimed);
            if let Ok(Progress::NeedMore { at_least }) = parse(&bytes, length as u64) {
                prop_assert!(at_least <= length as u64);
            }
        }
    }
}

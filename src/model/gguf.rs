//! The header of a GGUF file (version 2 and 3), read from the file's first bytes.
//!
//! The format is `ggml/docs/gguf.md`; what is refused follows `ggml/src/gguf.cpp`. Every length in
//! the header is hostile: it is compared with its limit and with the file's length before anything
//! is done with it, and arrays (a tokenizer has a million strings) are counted, not kept.

use std::collections::{BTreeMap, BTreeSet};

use super::ggml::{self, TensorType};
use super::{HeaderError, Progress};
use crate::base::{Bytes, text};

/// Most tensors of a file (the largest models have some thousands).
pub const MAX_TENSORS: u64 = 32_768;
/// Most key/value pairs of a file.
pub const MAX_PAIRS: u64 = 100_000;
/// Longest string value; longer than any chat template or licence.
pub const MAX_STRING: u64 = 16 << 20;
/// Longest key (the format's limit) and tensor name (ggml has 64).
const MAX_KEY: u64 = 65_535;
const MAX_TENSOR_NAME: u64 = 256;
/// Longest beginning of a file that is read for its header.
pub const MAX_HEADER: u64 = 32 << 20;
/// Longest file that is believed.
const MAX_FILE: u64 = 1 << 50;
/// Largest distance between tensors.
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Keys of interest that are kept, at most.
const MAX_KEPT: usize = 4_096;

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name, cleaned.
    pub name: String,
    /// Its type; none if unknown, then `bytes` is what lies up to the next tensor.
    pub kind: Option<TensorType>,
    /// Its dimensions, the fastest first.
    pub dims: Vec<u64>,
    /// Where its data begins in the file.
    pub offset: u64,
    /// Length of its data.
    pub bytes: u64,
}

/// A number (or numbers, one a layer) that the header states.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Number {
    largest: u64,
    sum: u64,
    differs: bool,
    /// One a layer, where it is an array.
    each: Vec<u64>,
}

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufHeader {
    /// 2 or 3.
    pub version: u32,
    /// `general.architecture`, cleaned.
    pub architecture: Option<String>,
    /// `general.type`: `model`, `mmproj`, `adapter`.
    pub kind: Option<String>,
    /// `general.file_type`.
    pub file_type: Option<u64>,
    /// `split.no`, from 0.
    pub split_no: u64,
    /// `split.count`; 0 and 1 mean: not split.
    pub split_count: u64,
    /// Entries of `tokenizer.ggml.tokens`.
    pub tokens: Option<u64>,
    /// Distance that data is aligned to.
    pub alignment: u64,
    /// The tensors, in file order.
    pub tensors: Vec<Tensor>,
    /// Where data begins.
    pub data_start: u64,
    numbers: BTreeMap<String, Number>,
}

impl GgufHeader {
    /// `{architecture}.{suffix}`; the largest one where layers differ.
    pub fn number(&self, suffix: &str) -> Option<u64> {
        self.find(suffix).map(|n| n.largest)
    }

    /// `{architecture}.{suffix}` summed over all layers, where layers differ.
    pub fn number_sum_if_differing(&self, suffix: &str) -> Option<u64> {
        self.find(suffix).filter(|n| n.differs).map(|n| n.sum)
    }

    /// `{architecture}.{suffix}` of one layer.
    pub fn number_of(&self, suffix: &str, layer: usize) -> Option<u64> {
        let number = self.find(suffix)?;
        if number.each.is_empty() { Some(number.largest) } else { number.each.get(layer).copied() }
    }

    /// `{architecture}.{suffix}`, where it is one number for all layers.
    pub fn number_of_all(&self, suffix: &str) -> Option<u64> {
        self.find(suffix).filter(|n| n.each.is_empty()).map(|n| n.largest)
    }

    fn find(&self, suffix: &str) -> Option<&Number> {
        self.numbers.get(&format!("{}.{suffix}", self.architecture.as_deref()?))
    }

    /// All tensors together.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, t| sum.saturating_add(t.bytes))
    }

    /// The name of the file type; failing that, of the type that most bytes have.
    pub fn quantisation(&self) -> Option<String> {
        if let Some(name) = self.file_type.and_then(ggml::file_type) {
            return Some(name.to_owned());
        }
        let mut by_type: BTreeMap<&str, u64> = BTreeMap::new();
        for tensor in &self.tensors {
            *by_type.entry(tensor.kind.map_or("unknown", |k| k.name)).or_default() += tensor.bytes;
        }
        by_type.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(name, _)| name.to_owned())
    }
}

/// Keys whose numbers are kept, after `{architecture}.`.
const KEPT: [&str; 31] = [
    "block_count",
    "context_length",
    "embedding_length",
    "vocab_size",
    "expert_count",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.kv_lora_rank",
    "attention.sliding_window",
    "rope.dimension_count",
    "attention.sliding_window_pattern",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "attention.chunk_size",
    "feed_forward_length",
    "expert_feed_forward_length",
    "nextn_predict_layers",
    "ssm.conv_kernel",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.group_count",
    "ssm.time_step_rank",
    "full_attention_interval",
    "attention.shared_kv_layers",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "shortconv.l_cache",
    "kda.head_dim",
];

/// Reads the header from `prefix`, the beginning of a file of `file_bytes`.
pub fn parse(prefix: &[u8], file_bytes: u64) -> Result<Progress<GgufHeader>, HeaderError> {
    let mut reader = Reader { prefix, at: 0, file_bytes };
    match header(&mut reader) {
        Ok(header) => Ok(Progress::Parsed(Box::new(header))),
        Err(Stop::More(at_least)) if at_least > file_bytes => {
            Err(HeaderError::truncated_header(file_bytes, at_least))
        }
        Err(Stop::More(at_least)) if at_least > MAX_HEADER => Err(HeaderError::TooLarge {
            limit: Bytes(MAX_HEADER),
            what: format!("it needs at least {}", Bytes(at_least)),
        }),
        Err(Stop::More(at_least)) => Ok(Progress::NeedMore { at_least }),
        Err(Stop::Bad(error)) => Err(error),
    }
}

enum Stop {
    More(u64),
    Bad(HeaderError),
}

fn bad<T>(what: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Bad(HeaderError::broken(what)))
}

struct Reader<'a> {
    prefix: &'a [u8],
    at: u64,
    file_bytes: u64,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], Stop> {
        let Some(end) = self.at.checked_add(length) else {
            return bad("a length in the header is beyond any file");
        };
        let range = usize::try_from(self.at).ok().zip(usize::try_from(end).ok());
        match range.and_then(|(from, to)| self.prefix.get(from..to)) {
            Some(bytes) => {
                self.at = end;
                Ok(bytes)
            }
            None => Err(Stop::More(end)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let bytes = self.take(N as u64)?;
        bytes.try_into().or_else(|_| bad("internal: wrong length"))
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self, limit: u64, what: &str) -> Result<&'a [u8], Stop> {
        let length = self.u64()?;
        if length > limit {
            return bad(format!("{what} of {length} bytes (at most {limit})"));
        }
        self.take(length)
    }

    /// A count of things that take at least `each` bytes: more than the file can hold is nonsense.
    fn count(&mut self, limit: u64, each: u64, what: &str) -> Result<u64, Stop> {
        let count = self.u64()?;
        if count > limit {
            return bad(format!("it claims {count} {what} (at most {limit})"));
        }
        match count.checked_mul(each).and_then(|n| n.checked_add(self.at)) {
            Some(end) if end <= self.file_bytes => Ok(count),
            // No file is this long: not a cut, a lie.
            Some(end) if end > MAX_FILE => bad(format!("it claims {count} {what}")),
            Some(end) => Err(Stop::More(end)),
            None => bad(format!("it claims {count} {what}")),
        }
    }
}

fn header(r: &mut Reader<'_>) -> Result<GgufHeader, Stop> {
    let magic: [u8; 4] = r.array()?;
    if &magic != b"GGUF" {
        let shown = text::clean(&String::from_utf8_lossy(&magic), 8);
        return Err(Stop::Bad(HeaderError::NotThisFormat(format!(
            "not a GGUF file (it begins with `{shown}`)"
        ))));
    }
    let version = r.u32()?;
    if !(2..=3).contains(&version) {
        let big_endian = (2..=3).contains(&version.swap_bytes());
        let what = if big_endian { "big-endian".to_owned() } else { format!("version {version}") };
        return Err(Stop::Bad(HeaderError::NotThisFormat(format!(
            "a GGUF file of an unsupported kind ({what}; 2 and 3, little-endian, are supported)"
        ))));
    }
    // A tensor takes at least 8 + 4 + 4 + 8 bytes in the header, a pair 8 + 4 + 1.
    let tensor_count = r.count(MAX_TENSORS, 24, "tensors")?;
    let pair_count = r.count(MAX_PAIRS, 13, "key/value pairs")?;
    let mut header = GgufHeader { version, alignment: 32, ..GgufHeader::default() };
    let mut seen = BTreeSet::new();
    for _ in 0..pair_count {
        let key = r.string(MAX_KEY, "a key")?;
        if !seen.insert(key) {
            return bad(format!("the key `{}` occurs twice", shown(key)));
        }
        pair(r, &mut header, &shown(key))?;
    }
    tensors(r, &mut header, tensor_count)?;
    Ok(header)
}

fn shown(name: &[u8]) -> String {
    text::clean(&String::from_utf8_lossy(name), 120)
}

/// Bytes of a value of a scalar type; none for strings (8), arrays (9) and unknown types.
const fn scalar_size(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

/// The value as a whole number; none for floats and negative numbers.
fn whole(kind: u32, bytes: &[u8]) -> Option<u64> {
    if matches!(kind, 6 | 12) {
        return None;
    }
    let signed = matches!(kind, 1 | 3 | 5 | 11);
    if signed && bytes.last().is_some_and(|b| b & 0x80 != 0) {
        return None;
    }
    Some(bytes.iter().rev().fold(0, |n, b| (n << 8) | u64::from(*b)))
}

fn pair(r: &mut Reader<'_>, header: &mut GgufHeader, key: &str) -> Result<(), Stop> {
    let kind = r.u32()?;
    match kind {
        8 => {
            let value = r.string(MAX_STRING, "a string")?;
            match key {
                "general.architecture" => header.architecture = Some(shown(value)),
                "general.type" => header.kind = Some(shown(value)),
                _ => {}
            }
            Ok(())
        }
        9 => array(r, header, key),
        _ => {
            let Some(size) = scalar_size(kind) else {
                return bad(format!("the key `{key}` has a value of unknown type {kind}"));
            };
            let Some(value) = whole(kind, r.take(size)?) else { return Ok(()) };
            match key {
                "general.alignment" => {
                    if !value.is_power_of_two() || value > MAX_ALIGNMENT {
                        return bad(format!("an alignment of {value}"));
                    }
                    header.alignment = value;
                }
                "general.file_type" => header.file_type = Some(value),
                "split.no" => header.split_no = value,
                "split.count" => header.split_count = value,
                _ => keep(
                    header,
                    key,
                    Number { largest: value, sum: value, differs: false, each: Vec::new() },
                ),
            }
            Ok(())
        }
    }
}

fn keep(header: &mut GgufHeader, key: &str, number: Number) {
    let wanted = KEPT.iter().any(|k| key.strip_suffix(k).is_some_and(|a| a.ends_with('.')));
    if wanted && header.numbers.len() < MAX_KEPT {
        header.numbers.insert(key.to_owned(), number);
    }
}

fn array(r: &mut Reader<'_>, header: &mut GgufHeader, key: &str) -> Result<(), Stop> {
    let kind = r.u32()?;
    let each = if kind == 8 { Some(8) } else { scalar_size(kind) };
    let Some(each) = each else {
        return bad(format!("the key `{key}` is an array of unknown type {kind}"));
    };
    let count = r.count(u64::MAX, each, "array entries")?;
    if key == "tokenizer.ggml.tokens" {
        header.tokens = Some(count);
    }
    if kind == 8 {
        for _ in 0..count {
            r.string(MAX_STRING, "a string")?;
        }
        return Ok(());
    }
    let Some(length) = count.checked_mul(each) else {
        return bad("an array longer than any file");
    };
    let bytes = r.take(length)?;
    // One number a layer: heads differ from layer to layer in some models.
    if count <= 4_096 {
        let size = usize::try_from(each).unwrap_or(1);
        let numbers: Option<Vec<u64>> = bytes.chunks(size).map(|b| whole(kind, b)).collect();
        if let Some(largest) = numbers.as_ref().and_then(|n| n.iter().max().copied()) {
            let numbers = numbers.unwrap_or_default();
            let sum = numbers.iter().fold(0u64, |s, n| s.saturating_add(*n));
            let differs = numbers.iter().any(|n| *n != largest);
            keep(header, key, Number { largest, sum, differs, each: numbers });
        }
    }
    Ok(())
}

fn tensors(r: &mut Reader<'_>, header: &mut GgufHeader, count: u64) -> Result<(), Stop> {
    let mut seen = BTreeSet::new();
    let mut list = Vec::new();
    for _ in 0..count {
        let raw_name = r.string(MAX_TENSOR_NAME, "a tensor's name")?;
        let name = shown(raw_name);
        if !seen.insert(raw_name) {
            return bad(format!("the tensor `{name}` occurs twice"));
        }
        let dim_count = r.u32()?;
        if !(1..=4).contains(&dim_count) {
            return bad(format!("the tensor `{name}` has {dim_count} dimensions"));
        }
        let dims = (0..dim_count).map(|_| r.u64()).collect::<Result<Vec<_>, _>>()?;
        let kind = ggml::tensor_type(r.u32()?);
        let offset = r.u64()?;
        let values = dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let bytes = match (kind, values) {
            (_, None) => return bad(format!("the tensor `{name}` has more values than any file")),
            (None, _) => 0,
            (Some(kind), Some(values)) => {
                if dims.first().is_some_and(|d| d % kind.block != 0) {
                    return bad(format!(
                        "the rows of tensor `{name}` are not whole blocks of {}",
                        kind.name
                    ));
                }
                match (values / kind.block).checked_mul(kind.bytes) {
                    Some(bytes) => bytes,
                    None => {
                        return bad(format!("the tensor `{name}` is larger than any file"));
                    }
                }
            }
        };
        if offset % header.alignment != 0 {
            return bad(format!("the tensor `{name}` begins at {offset}, which is not aligned"));
        }
        list.push(Tensor { name, kind, dims, offset, bytes });
    }
    header.data_start = r.at.next_multiple_of(header.alignment);
    for tensor in &mut list {
        let end = tensor.offset.checked_add(header.data_start);
        match end.filter(|begin| begin.checked_add(tensor.bytes).is_some()) {
            Some(begin) => tensor.offset = begin,
            None => return bad(format!("the tensor `{}` begins beyond any file", tensor.name)),
        }
    }
    list.sort_by_key(|t| t.offset);
    // Unknown types: all bytes up to the next tensor are theirs.
    let mut next = r.file_bytes;
    for tensor in list.iter_mut().rev() {
        if tensor.kind.is_none() {
            tensor.bytes = next.saturating_sub(tensor.offset);
        }
        next = tensor.offset;
    }
    let mut end = 0;
    for tensor in &list {
        if tensor.bytes > 0 && tensor.offset < end {
            return bad(format!("the tensor `{}` overlaps the one before it", tensor.name));
        }
        end = end.max(tensor.offset.saturating_add(tensor.bytes));
    }
    if end > r.file_bytes {
        return Err(Stop::Bad(HeaderError::truncated(r.file_bytes, end)));
    }
    header.tensors = list;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    #![allow(clippy::cast_possible_truncation)] // small numbers of small tests
    use super::*;
    use proptest::prelude::*;

    /// Writes GGUF headers for tests.
    #[derive(Default, Clone)]
    pub(crate) struct Builder {
        pairs: Vec<u8>,
        pair_count: u64,
        infos: Vec<u8>,
        tensor_count: u64,
        data: u64,
    }

    impl Builder {
        fn text(out: &mut Vec<u8>, text: &str) {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        }
        pub(crate) fn string(mut self, key: &str, value: &str) -> Self {
            Self::text(&mut self.pairs, key);
            self.pairs.extend(8u32.to_le_bytes());
            Self::text(&mut self.pairs, value);
            self.pair_count += 1;
            self
        }
        pub(crate) fn u32(mut self, key: &str, value: u32) -> Self {
            Self::text(&mut self.pairs, key);
            self.pairs.extend(4u32.to_le_bytes());
            self.pairs.extend(value.to_le_bytes());
            self.pair_count += 1;
            self
        }
        pub(crate) fn u32s(mut self, key: &str, values: &[u32]) -> Self {
            Self::text(&mut self.pairs, key);
            self.pairs.extend(9u32.to_le_bytes());
            self.pairs.extend(4u32.to_le_bytes());
            self.pairs.extend((values.len() as u64).to_le_bytes());
            for v in values {
                self.pairs.extend(v.to_le_bytes());
            }
            self.pair_count += 1;
            self
        }
        pub(crate) fn strings(mut self, key: &str, values: &[&str]) -> Self {
            Self::text(&mut self.pairs, key);
            self.pairs.extend(9u32.to_le_bytes());
            self.pairs.extend(8u32.to_le_bytes());
            self.pairs.extend((values.len() as u64).to_le_bytes());
            for v in values {
                Self::text(&mut self.pairs, v);
            }
            self.pair_count += 1;
            self
        }
        pub(crate) fn tensor_at(mut self, name: &str, dims: &[u64], kind: u32, at: u64) -> Self {
            Self::text(&mut self.infos, name);
            self.infos.extend((dims.len() as u32).to_le_bytes());
            for d in dims {
                self.infos.extend(d.to_le_bytes());
            }
            self.infos.extend(kind.to_le_bytes());
            self.infos.extend(at.to_le_bytes());
            self.tensor_count += 1;
            if let Some(t) = ggml::tensor_type(kind) {
                let values = dims.iter().fold(1u64, |a, b| a.saturating_mul(*b));
                let end = at.saturating_add((values / t.block).saturating_mul(t.bytes));
                self.data = self.data.max(end.min(1 << 20));
            }
            self
        }
        pub(crate) fn tensor(self, name: &str, dims: &[u64], kind: u32) -> Self {
            let at = self.data.next_multiple_of(32);
            self.tensor_at(name, dims, kind, at)
        }
        pub(crate) fn head(&self) -> Vec<u8> {
            let mut out = b"GGUF".to_vec();
            out.extend(3u32.to_le_bytes());
            out.extend(self.tensor_count.to_le_bytes());
            out.extend(self.pair_count.to_le_bytes());
            out.extend(&self.pairs);
            out.extend(&self.infos);
            out
        }
        pub(crate) fn file(&self) -> Vec<u8> {
            let mut out = self.head();
            out.resize(out.len().next_multiple_of(32) + self.data as usize, 0);
            out
        }
    }

    pub(crate) fn llama() -> Builder {
        Builder::default()
            .string("general.architecture", "llama")
            .u32("general.file_type", 15)
            .u32("llama.block_count", 4)
            .u32("llama.context_length", 2048)
            .u32("llama.embedding_length", 256)
            .u32("llama.attention.head_count", 8)
            .u32("llama.attention.head_count_kv", 2)
            .strings("tokenizer.ggml.tokens", &["a", "b", "c"])
            .tensor("token_embd.weight", &[256, 3], 12)
            .tensor("blk.0.attn_q.weight", &[256, 256], 0)
    }

    fn done(result: Result<Progress<GgufHeader>, HeaderError>) -> GgufHeader {
        match result.unwrap() {
            Progress::Parsed(header) => *header,
            Progress::NeedMore { at_least } => panic!("wanted {at_least}"),
        }
    }

    #[test]
    fn reads_a_header_from_any_growing_prefix() {
        let file = llama().file();
        let length = file.len() as u64;
        let mut have = 1;
        let header = loop {
            match parse(&file[..have], length).unwrap() {
                Progress::Parsed(header) => break header,
                Progress::NeedMore { at_least } => {
                    assert!(at_least as usize > have && at_least <= length);
                    have = at_least as usize;
                }
            }
        };
        assert_eq!(header.architecture.as_deref(), Some("llama"));
        assert_eq!(header.number("block_count"), Some(4));
        assert_eq!(header.number("attention.head_count_kv"), Some(2));
        assert_eq!(header.tokens, Some(3));
        assert_eq!(header.quantisation().as_deref(), Some("Q4_K_M"));
        assert_eq!(header.weight_bytes(), 3 * 144 + 256 * 256 * 4);
    }

    #[test]
    fn heads_may_differ_from_layer_to_layer() {
        let file = Builder::default()
            .string("general.architecture", "x")
            .u32s("x.attention.head_count_kv", &[2, 0, 4])
            .file();
        let header = done(parse(&file, file.len() as u64));
        assert_eq!(header.number("attention.head_count_kv"), Some(4));
        assert_eq!(header.number_sum_if_differing("attention.head_count_kv"), Some(6));
    }

    #[test]
    fn a_truncated_file_says_how_much_is_missing() {
        let file = llama().file();
        let length = file.len() as u64;
        let error = parse(&file, length - 1000).unwrap_err();
        assert_eq!(error, HeaderError::truncated(length - 1000, length));
        // Cut inside the header.
        let error = parse(&file[..50], 50).unwrap_err();
        assert!(matches!(error, HeaderError::Truncated { .. }), "{error}");
        assert!(matches!(parse(&[], 0).unwrap_err(), HeaderError::Truncated { .. }));
    }

    #[test]
    fn refuses_hostile_headers_without_believing_their_lengths() {
        let head = |tensors: u64, pairs: u64| {
            let mut out = b"GGUF\x03\0\0\0".to_vec();
            out.extend(tensors.to_le_bytes());
            out.extend(pairs.to_le_bytes());
            out
        };
        let mut long_key = head(0, 1);
        long_key.extend(u64::MAX.to_le_bytes());
        let mut array = head(0, 1);
        array.extend(1u64.to_le_bytes());
        array.extend(b"k\x09\0\0\0\x0a\0\0\0");
        array.extend((1u64 << 61).to_le_bytes());
        let mut nested = head(0, 1);
        nested.extend(1u64.to_le_bytes());
        nested.extend(b"k\x09\0\0\0\x09\0\0\0");
        nested.extend(1u64.to_le_bytes());
        let whole = |b: Builder| {
            let mut f = b.file();
            f.resize(4096.max(f.len()), 0);
            f
        };
        let one = Builder::default;
        let cases = [
            ("tensors", head(1 << 60, 0)),
            ("truncated", head(30_000, 0)),
            ("key/value pairs", head(0, u64::MAX)),
            ("a key of", long_key),
            ("array entries", array),
            ("unknown type 9", nested),
            ("occurs twice", whole(one().u32("a", 1).u32("a", 2))),
            ("occurs twice", whole(one().tensor("t", &[32], 0).tensor("t", &[32], 0))),
            ("more values", whole(one().tensor_at("t", &[1 << 40, 1 << 40], 0, 0))),
            ("larger than", whole(one().tensor_at("t", &[1 << 62], 0, 0))),
            ("not aligned", whole(one().tensor_at("t", &[32], 0, 3))),
            ("beyond any", whole(one().tensor_at("t", &[32], 0, u64::MAX - 31))),
            ("overlaps", whole(one().tensor("t", &[32], 0).tensor_at("u", &[32], 0, 32))),
            ("whole blocks", whole(one().tensor_at("t", &[33], 2, 0))),
            ("dimensions", whole(one().tensor_at("t", &[], 0, 0))),
            ("an alignment of 3", whole(one().u32("general.alignment", 3))),
            ("an alignment of 0", whole(one().u32("general.alignment", 0))),
            ("begins with `<htm`", b"<html>".to_vec()),
            ("big-endian", b"GGUF\0\0\0\x03".to_vec()),
            ("version 1", b"GGUF\x01\0\0\0".to_vec()),
        ];
        for (expected, bytes) in cases {
            let error = parse(&bytes, 65_536).unwrap_err().to_string();
            assert!(error.contains(expected), "expected `{expected}`, got `{error}`");
        }
    }

    #[test]
    fn an_unknown_tensor_type_takes_what_lies_before_the_next_tensor() {
        let file =
            Builder::default().tensor_at("new", &[64], 99, 0).tensor_at("old", &[32], 0, 64).file();
        let header = done(parse(&file, file.len() as u64));
        assert_eq!(header.weight_bytes(), 64 + 128);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            at in 0usize..400, value in any::<[u8; 8]>(), cut in 0usize..1000, claimed in any::<u64>()
        ) {
            let mut file = llama().file();
            let end = (at + 8).min(file.len());
            file[at..end].copy_from_slice(&value[..end - at]);
            file.truncate(file.len().min(cut.max(24)));
            let length = file.len() as u64;
            let _ = parse(&file, claimed);
            if let Ok(Progress::NeedMore { at_least }) = parse(&file, length) {
                prop_assert!(at_least <= length);
            }
        }
    }
}

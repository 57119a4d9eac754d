//! The readers as functions of bytes alone, with what must hold of any bytes: for fuzzing, and for
//! the tests that mutate seeds without a fuzzer (`tests/model_readers.rs`).

use super::{Found, Inspection, Need, Progress, Setup, gguf, predict, safetensors};
use crate::base::Bytes;
use crate::wire::DirEntry;

/// One reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A GGUF file's header.
    Gguf,
    /// A safetensors file's header.
    Safetensors,
    /// A `model.safetensors.index.json`.
    Index,
    /// A `config.json`, with what follows from it.
    Config,
    /// A directory with one file of these bytes, named by the first of them.
    Directory,
}

/// All readers.
pub const ALL: [Reader; 5] =
    [Reader::Gguf, Reader::Safetensors, Reader::Index, Reader::Config, Reader::Directory];

/// What stands beside the one file of [`Reader::Directory`]: few layers, so that many can be tried.
const SMALL: &[u8] = br#"{"model_type":"llama","num_hidden_layers":2}"#;

/// Reads `bytes`; says what does not hold.
///
/// # Errors
/// A property that must hold of any bytes does not.
pub fn read(reader: Reader, bytes: &[u8], rules: super::Rules) -> Result<(), String> {
    let length = bytes.len() as u64;
    let wanted = |at_least: u64| {
        if at_least > length {
            return Err(format!("wants {at_least} of {length} bytes"));
        }
        Ok(())
    };
    match reader {
        Reader::Gguf => match gguf::parse(bytes, length) {
            Ok(Progress::NeedMore { at_least }) => wanted(at_least),
            Ok(Progress::Parsed(header)) if header.weight_bytes() > length => {
                Err("more weights than bytes".to_owned())
            }
            _ => Ok(()),
        },
        Reader::Safetensors => match safetensors::parse(bytes, length) {
            Ok(Progress::NeedMore { at_least }) => wanted(at_least),
            Ok(Progress::Parsed(header)) if header.weight_bytes > length => {
                Err("more weights than bytes".to_owned())
            }
            _ => Ok(()),
        },
        Reader::Index => {
            let _ = safetensors::parse_index(bytes);
            Ok(())
        }
        Reader::Config => {
            inspect("/m", &[("config.json", bytes)], rules)?;
            // The same as Mistral's own, which stands beside weights.
            let header = br#"{"layers.0.attention.wk.weight":{"dtype":"U8","shape":[1,1],"data_offsets":[0,1]}}"#;
            let mut weights = (header.len() as u64).to_le_bytes().to_vec();
            weights.extend(header);
            weights.push(0);
            let both = [("consolidated.safetensors", &weights[..]), ("params.json", bytes)];
            inspect("/m", &both, rules)
        }
        Reader::Directory => {
            let names = [
                "model.safetensors",
                "model.gguf",
                "model.safetensors.index.json",
                "config.json",
                "hf_quant_config.json",
                "model-00001-of-00002.safetensors",
            ];
            let Some((first, rest)) = bytes.split_first() else { return Ok(()) };
            let name = names.get(usize::from(*first) % names.len()).copied().unwrap_or("model");
            let both = [(name, rest), ("config.json", SMALL)];
            // By its own name it is read with what lies beside it.
            inspect(&format!("/m/{name}"), &both, rules)?;
            inspect("/m", &both, rules)
        }
    }
}

fn inspect(path: &str, files: &[(&str, &[u8])], rules: super::Rules) -> Result<(), String> {
    let mut inspection = Inspection::new(path).config_alone();
    for _ in 0..1_000 {
        let found = match inspection.next() {
            Need::Done(result) => {
                let Ok(facts) = *result else { return Ok(()) };
                let setup =
                    Setup { tensor: 3, pipeline: 2, gpu: Some(80 << 30), ..Setup::new(rules) };
                let answer = predict(&facts, &setup);
                let ordered = |b: &super::Bar| b.low <= b.value && b.value <= b.high;
                let bars = |r: &super::RankMemory| {
                    [r.weights, r.cache_per_token, r.cache_needed, r.state_per_request]
                };
                return if answer.ranks.iter().flat_map(bars).all(|b| ordered(&b)) {
                    Ok(())
                } else {
                    Err("an error bar is upside down".to_owned())
                };
            }
            Need::ListDir { path } if path == "/m" => {
                let entry = |(name, bytes): &(&str, &[u8])| DirEntry {
                    name: (*name).to_owned(),
                    size: Bytes(bytes.len() as u64),
                    is_dir: false,
                };
                Found::Entries(files.iter().map(entry).collect())
            }
            Need::ListDir { .. } => Found::Missing,
            Need::Read { path, offset, length } => {
                let name = path.strip_prefix("/m/").unwrap_or_default();
                match files.iter().find(|(n, _)| *n == name) {
                    None => Found::Missing,
                    Some((_, bytes)) => {
                        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                        let to = from.saturating_add(length as usize).min(bytes.len());
                        Found::Piece {
                            bytes: bytes.get(from..to).unwrap_or_default().to_vec(),
                            file_bytes: Bytes(bytes.len() as u64),
                        }
                    }
                }
            }
        };
        inspection.feed(found);
    }
    Err("it never ends".to_owned())
}

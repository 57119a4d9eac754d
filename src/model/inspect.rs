//! Finds out what lies at a path: a state machine that says which bytes it wants next.
//!
//! ```text
//! loop { match inspection.next() { Need::Done(r) => break r, need => inspection.feed(read(need)) } }
//! ```
//! Only headers are read, 64 KiB at first and growing, never more than [`MAX_TOTAL`] together.

mod content;
mod directory;
mod finish;
mod gguf_parts;
mod names;
mod safetensors_parts;

use std::collections::{BTreeMap, HashMap, VecDeque};

use self::names::has_ending;
use super::gguf::GgufHeader;
use super::hf_config::HfConfig;
use super::tensors::Groups;
use super::{ModelError, ModelFacts, ModelFormat};
use crate::base::{Bytes, text};
use crate::wire::DirEntry;

/// First piece of a header.
const FIRST_READ: u64 = 64 << 10;
/// Longest piece asked for at once (what an agent reads at once).
pub const MAX_READ: u64 = 1 << 20;
/// Most bytes read for one inspection.
pub const MAX_TOTAL: u64 = 64 << 20;
/// Most files of one model.
const MAX_PARTS: usize = 2_000;
/// What stands in the place of `config.json` beside weights in Mistral's own format.
const MISTRAL_CONFIG: &str = "params.json";

/// What an inspection needs next.
#[derive(Clone, Debug, PartialEq)]
pub enum Need {
    /// The entries of a directory.
    ListDir {
        /// Absolute path.
        path: String,
    },
    /// A piece of a file, shorter only at its end.
    Read {
        /// Absolute path.
        path: String,
        /// From here.
        offset: u64,
        /// So many bytes, at most [`MAX_READ`].
        length: u32,
    },
    /// Nothing more.
    Done(Box<Result<ModelFacts, ModelError>>),
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// To `ListDir`.
    Entries(Vec<DirEntry>),
    /// To `Read`.
    Piece {
        /// The bytes.
        bytes: Vec<u8>,
        /// Length of the whole file.
        file_bytes: Bytes,
    },
    /// There is no such file or directory.
    Missing,
    /// It cannot be listed or read (a file that was to be listed, a lack of rights).
    Failed {
        /// Why.
        why: String,
    },
}

/// An inspection under way.
#[derive(Debug)]
pub struct Inspection {
    path: String,
    state: State,
    total: u64,
    facts: ModelFacts,
    config: Option<HfConfig>,
    config_name: &'static str,
    quantisation: Option<serde_json::Map<String, serde_json::Value>>,
    /// A directory without weights will do.
    config_alone: bool,
    sizes: BTreeMap<String, Bytes>,
    queue: VecDeque<Job>,
    gguf_first: Option<GgufHeader>,
    by_dtype: BTreeMap<String, u64>,
    /// Tensors so far.
    count: u64,
    /// Groups of experts among those kept.
    groups: Groups,
    /// The file of each tensor, by its name's digest: its number in the facts.
    held_by: HashMap<u64, u16>,
    /// There are more of them than were kept.
    cut: bool,
}

#[derive(Debug)]
enum State {
    List { path: String, why: ListFor },
    Read { job: Job, have: Vec<u8>, want: u64, file_bytes: Option<u64> },
    Done(Box<Result<ModelFacts, ModelError>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListFor {
    /// What is it?
    Model,
    /// The other parts of a split GGUF file.
    Parts,
    /// What lies beside a safetensors file: the other parts, and what describes them.
    Beside,
    /// The snapshots of a Hugging Face cache.
    Snapshots,
}

#[derive(Clone, Debug)]
struct Job {
    path: String,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Gguf,
    Shard,
    Config,
    /// `params.json`, in Mistral's own format.
    Params,
    /// `hf_quant_config.json`, which `ModelOpt` writes beside it, or `AutoGPTQ`'s `quantize_config.json`.
    Quantisation,
    Index,
    /// `refs/main` of a Hugging Face cache.
    Ref,
    /// A path that could not be listed: GGUF, or nothing.
    Guess,
}

type Step = Result<State, ModelError>;

impl Inspection {
    /// Begins to look at `path` (absolute).
    pub fn new(path: &str) -> Self {
        let path = match path.trim_end_matches('/') {
            "" => "/".to_owned(),
            trimmed => trimmed.to_owned(),
        };
        let mut this = Self {
            facts: ModelFacts::unknown(ModelFormat::Gguf, path.clone()),
            state: State::Done(Box::new(Err(ModelError::NotFound { path: path.clone() }))),
            path,
            total: 0,
            config: None,
            config_name: "config.json",
            quantisation: None,
            config_alone: false,
            sizes: BTreeMap::new(),
            queue: VecDeque::new(),
            gguf_first: None,
            by_dtype: BTreeMap::new(),
            count: 0,
            groups: Groups::default(),
            held_by: HashMap::new(),
            cut: false,
        };
        let first = if has_ending(&this.path, ".gguf") {
            this.begin_gguf(&this.path.clone())
        } else if has_ending(&this.path, ".safetensors") {
            Ok(this.begin_safetensors())
        } else {
            Ok(State::List { path: this.path.clone(), why: ListFor::Model })
        };
        this.settle(first);
        this
    }

    /// A directory that holds a `config.json` and no weights will do: they are counted from the
    /// architecture.
    #[must_use]
    pub fn config_alone(mut self) -> Self {
        self.config_alone = true;
        self
    }

    /// What will be read after the present need: the beginnings of files, which may be fetched at
    /// the same time.
    pub fn ahead(&self) -> impl Iterator<Item = (&str, u32)> {
        let length = u32::try_from(self.first_read()).unwrap_or(1 << 20);
        self.queue.iter().map(move |job| (job.path.as_str(), length))
    }

    /// The first piece of a header: shards of a model in many files have short headers.
    fn first_read(&self) -> u64 {
        match self.sizes.len() {
            0..=8 => FIRST_READ,
            9..=32 => FIRST_READ / 4,
            _ => FIRST_READ / 16,
        }
    }

    /// What it needs now.
    pub fn next(&self) -> Need {
        match &self.state {
            State::List { path, .. } => Need::ListDir { path: path.clone() },
            State::Read { job, have, want, .. } => {
                let offset = have.len() as u64;
                let length = want.saturating_sub(offset).clamp(1, MAX_READ);
                Need::Read {
                    path: job.path.clone(),
                    offset,
                    length: u32::try_from(length).unwrap_or(1 << 20),
                }
            }
            State::Done(result) => Need::Done(result.clone()),
        }
    }

    /// Takes what was found for the present need.
    pub fn feed(&mut self, found: Found) {
        let done = State::Done(Box::new(Err(ModelError::NotFound { path: self.path.clone() })));
        let step = match std::mem::replace(&mut self.state, done) {
            State::List { path, why } => self.listed(&path, why, found),
            State::Read { job, have, want, file_bytes } => {
                self.read(job, have, want, file_bytes, found)
            }
            State::Done(result) => Ok(State::Done(result)),
        };
        self.settle(step);
    }

    fn settle(&mut self, step: Step) {
        self.state = step.unwrap_or_else(|error| State::Done(Box::new(Err(error))));
    }

    fn not_a_model(&self, why: impl Into<String>, hint: impl Into<String>) -> ModelError {
        ModelError::NotAModel { path: self.path.clone(), why: why.into(), hint: hint.into() }
    }
}

fn read(job: Job, want: u64) -> State {
    State::Read { job, have: Vec::new(), want, file_bytes: None }
}

fn unreadable(path: &str, why: &str) -> ModelError {
    ModelError::Unreadable { path: path.to_owned(), why: text::clean(why, 200) }
}

#[cfg(test)]
pub(crate) mod tests;

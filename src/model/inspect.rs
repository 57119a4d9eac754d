//! Finds out what lies at a path: a state machine that says which bytes it wants next.
//!
//! ```text
//! loop { match inspection.next() { Need::Done(r) => break r, need => inspection.feed(read(need)) } }
//! ```
//! Only headers are read, 64 KiB at first and growing, never more than [`MAX_TOTAL`] together.

use std::collections::{BTreeMap, VecDeque};

use super::facts::Certainty;
use super::gguf::{self, GgufHeader};
use super::hf_config::{self, HfConfig};
use super::safetensors::{self, SafetensorsHeader};
use super::tensors::Tensor;
use super::{HeaderError, ModelError, ModelFacts, ModelFormat, Progress, gguf_facts, shapes};
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
    /// `hf_quant_config.json`, which `ModelOpt` writes beside it.
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
            cut: false,
        };
        let first = if has_ending(&this.path, ".gguf") {
            this.begin_gguf(&this.path.clone())
        } else if has_ending(&this.path, ".safetensors") {
            this.facts.format = ModelFormat::Safetensors;
            this.queue.push_back(Job { path: this.path.clone(), what: What::Shard });
            this.next_job()
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

    // ── directories ────────────────────────────────────────────────────────────────────────────

    fn listed(&mut self, path: &str, why: ListFor, found: Found) -> Step {
        match (found, why) {
            (Found::Entries(entries), ListFor::Model) => self.directory(path, &entries),
            (Found::Entries(entries), ListFor::Snapshots) => self.snapshots(path, &entries),
            (Found::Entries(entries), ListFor::Parts) => self.gguf_parts(path, &entries),
            // A file without a telling name is read; agents differ in what they say of it here.
            (Found::Failed { .. } | Found::Missing, ListFor::Model) if path == self.path => {
                Ok(read(Job { path: path.to_owned(), what: What::Guess }, FIRST_READ))
            }
            (Found::Missing, _) => Err(ModelError::NotFound { path: path.to_owned() }),
            (Found::Failed { why }, _) => Err(unreadable(path, &why)),
            (Found::Piece { .. }, _) => Err(unreadable(path, "an answer that does not fit")),
        }
    }

    fn directory(&mut self, path: &str, entries: &[DirEntry]) -> Step {
        let files: BTreeMap<&str, Bytes> =
            entries.iter().filter(|e| !e.is_dir).map(|e| (e.name.as_str(), e.size)).collect();
        let ending =
            |end: &str| files.keys().copied().filter(|n| n.ends_with(end)).collect::<Vec<_>>();
        let shards = ending(".safetensors");
        let index = ending(".safetensors.index.json");
        self.facts.tokenizer =
            ["tokenizer.json", "tokenizer.model", "tiktoken.model", "vocab.json", "tekken.json"]
                .iter()
                .any(|n| files.contains_key(n));
        self.facts.generation_config = files.contains_key("generation_config.json");
        if !shards.is_empty() || !index.is_empty() {
            return self.safetensors_directory(path, &files, &shards, &index);
        }
        let mut ggufs = ending(".gguf");
        // Projectors of multimodal models lie beside the model itself.
        ggufs.retain(|n| !n.starts_with("mmproj"));
        if let Some(first) = one_model(&ggufs) {
            return self.begin_gguf(&join(path, first));
        }
        if !ggufs.is_empty() {
            return Err(self.not_a_model(
                format!("the directory holds {} GGUF files: {}", ggufs.len(), shown(&ggufs)),
                "give the path of one of the files",
            ));
        }
        if entries.iter().any(|e| e.is_dir && e.name == "snapshots") {
            return Ok(State::List { path: join(path, "snapshots"), why: ListFor::Snapshots });
        }
        let caches: Vec<&str> = entries
            .iter()
            .filter(|e| e.is_dir && e.name.starts_with("models--"))
            .map(|e| e.name.as_str())
            .collect();
        if !caches.is_empty() {
            return Err(self.not_a_model(
                format!("it is a cache of {} models: {}", caches.len(), shown(&caches)),
                "give the path of one model's directory in it",
            ));
        }
        if self.config_alone && files.contains_key("config.json") {
            self.facts.format = ModelFormat::Safetensors;
            path.clone_into(&mut self.facts.entry);
            self.queue_config(path, &files);
            return self.next_job();
        }
        if files.keys().any(|n| [".bin", ".pth", ".pt"].iter().any(|e| has_ending(n, e))) {
            return Err(self.not_a_model(
                "its weights are PyTorch pickles",
                "convert them to safetensors or GGUF: pickles can run any code and are not read",
            ));
        }
        Err(self.not_a_model(
            "the directory holds neither a .gguf nor a .safetensors file",
            "give the path of a .gguf file or of a directory with safetensors and config.json",
        ))
    }

    fn snapshots(&mut self, path: &str, entries: &[DirEntry]) -> Step {
        let hashes: Vec<&str> =
            entries.iter().filter(|e| e.is_dir).map(|e| e.name.as_str()).collect();
        match hashes.as_slice() {
            [] => Err(self.not_a_model(
                "the Hugging Face cache holds no snapshot of it",
                "finish the download first",
            )),
            [one] => Ok(State::List { path: join(path, one), why: ListFor::Model }),
            _ => {
                let refs = join(&join(parent(path), "refs"), "main");
                Ok(read(Job { path: refs, what: What::Ref }, 128))
            }
        }
    }

    fn safetensors_directory(
        &mut self,
        path: &str,
        files: &BTreeMap<&str, Bytes>,
        shards: &[&str],
        index: &[&str],
    ) -> Step {
        self.facts.format = ModelFormat::Safetensors;
        path.clone_into(&mut self.facts.entry);
        self.sizes = shards
            .iter()
            .map(|n| (join(path, n), files.get(n).copied().unwrap_or_default()))
            .collect();
        if files.contains_key("config.json") {
            self.queue_config(path, files);
        } else if files.contains_key(MISTRAL_CONFIG) {
            self.config_name = MISTRAL_CONFIG;
            self.queue.push_back(Job { path: join(path, MISTRAL_CONFIG), what: What::Params });
        } else {
            self.facts.notes.push("there is no config.json beside the weights".to_owned());
        }
        // Several indexes (variants such as fp16): the one the engines take.
        let index = index.iter().find(|n| **n == "model.safetensors.index.json").or(index.first());
        // Parts that count themselves need no index, which may be large.
        let counted = shards.first().is_some_and(|n| n.contains("-of-"))
            && shards.iter().all(|n| n.starts_with("model-"))
            && missing_of_numbered(shards).is_none_or(|m| m.is_empty())
            && numbered(shards) == Some(shards.len());
        if let Some(index) = index.filter(|_| !counted) {
            self.queue.push_back(Job { path: join(path, index), what: What::Index });
            return self.next_job();
        }
        // `consolidated.safetensors` holds the same weights once more.
        let named: Vec<&str> = shards.iter().copied().filter(|n| n.starts_with("model")).collect();
        let chosen = if named.is_empty() { shards } else { named.as_slice() };
        if chosen.len() < shards.len() {
            let left: Vec<&str> = shards.iter().copied().filter(|n| !chosen.contains(n)).collect();
            self.facts.notes.push(format!("not counted: {}", shown(&left)));
        }
        if let Some(missing) = missing_of_numbered(chosen) {
            return Err(ModelError::MissingParts { path: path.to_owned(), names: missing });
        }
        self.queue_shards(chosen.iter().map(|n| join(path, n)).collect())?;
        self.next_job()
    }

    fn queue_config(&mut self, path: &str, files: &BTreeMap<&str, Bytes>) {
        self.queue.push_back(Job { path: join(path, "config.json"), what: What::Config });
        if files.contains_key("hf_quant_config.json") {
            let path = join(path, "hf_quant_config.json");
            self.queue.push_back(Job { path, what: What::Quantisation });
        }
    }

    fn queue_shards(&mut self, paths: Vec<String>) -> Result<(), ModelError> {
        if paths.len() > MAX_PARTS {
            return Err(self.not_a_model(
                format!("{} files (at most {MAX_PARTS})", paths.len()),
                "give the path of one model's directory",
            ));
        }
        self.queue.extend(paths.into_iter().map(|path| Job { path, what: What::Shard }));
        Ok(())
    }

    // ── reading ────────────────────────────────────────────────────────────────────────────────

    fn next_job(&mut self) -> Step {
        let Some(job) = self.queue.pop_front() else { return self.finish() };
        let first = self.first_read();
        Ok(read(job, first))
    }

    fn read(
        &mut self,
        job: Job,
        mut have: Vec<u8>,
        want: u64,
        known_bytes: Option<u64>,
        found: Found,
    ) -> Step {
        let (bytes, file_bytes) = match found {
            Found::Piece { bytes, file_bytes } => (bytes, file_bytes.0),
            Found::Missing if job.what == What::Ref => {
                return Err(self.not_a_model(
                    "the Hugging Face cache holds several snapshots of it",
                    "give the path of one directory under `snapshots`",
                ));
            }
            // It was listed: a link that leads nowhere, as in a cache whose files were cleared away.
            Found::Missing if job.path != self.path => {
                let name = base_name(&job.path).to_owned();
                let path = parent(&job.path).to_owned();
                return Err(ModelError::MissingParts { path, names: vec![name] });
            }
            Found::Missing => return Err(ModelError::NotFound { path: job.path }),
            Found::Failed { why } => return Err(unreadable(&job.path, &why)),
            Found::Entries(_) => return Err(unreadable(&job.path, "an answer that does not fit")),
        };
        self.total = self.total.saturating_add(bytes.len() as u64);
        if known_bytes.is_some_and(|known| known != file_bytes) {
            return Err(unreadable(&job.path, "it changed while it was read; is it being copied?"));
        }
        let room = usize::try_from(want).unwrap_or(usize::MAX).saturating_sub(have.len());
        let empty = bytes.is_empty();
        have.extend(bytes.into_iter().take(room));
        let length = have.len() as u64;
        if length < want.min(file_bytes) {
            if empty {
                return Err(unreadable(&job.path, "it ended early; is it being copied?"));
            }
            return self.go_on(job, have, want, file_bytes);
        }
        let limit = match job.what {
            What::Config | What::Params | What::Quantisation => Some(hf_config::MAX_CONFIG),
            What::Index => Some(safetensors::MAX_INDEX),
            What::Ref => Some(128),
            What::Gguf | What::Shard | What::Guess => None,
        };
        if let Some(limit) = limit {
            if file_bytes > limit {
                let what = format!("it has {}", Bytes(file_bytes));
                let error = HeaderError::TooLarge { limit: Bytes(limit), what };
                return Err(ModelError::Header { path: job.path, error });
            }
            if length < file_bytes {
                return self.go_on(job, have, file_bytes, file_bytes);
            }
        }
        self.content(job, have, file_bytes)
    }

    fn go_on(&self, job: Job, have: Vec<u8>, want: u64, file_bytes: u64) -> Step {
        let missing = want.saturating_sub(have.len() as u64);
        if self.total.saturating_add(missing) > MAX_TOTAL {
            let error = HeaderError::TooLarge {
                limit: Bytes(MAX_TOTAL),
                what: "all headers of the model together".to_owned(),
            };
            return Err(ModelError::Header { path: job.path, error });
        }
        Ok(State::Read { job, have, want, file_bytes: Some(file_bytes) })
    }

    fn content(&mut self, job: Job, have: Vec<u8>, file_bytes: u64) -> Step {
        let wrap =
            |error: HeaderError, path: &str| ModelError::Header { path: path.to_owned(), error };
        if have.starts_with(b"version https://git-lfs") {
            return Err(ModelError::NotAModel {
                path: job.path,
                why: "it is a Git LFS pointer, not the file itself".to_owned(),
                hint: "run `git lfs pull` in that directory".to_owned(),
            });
        }
        let at_least = match job.what {
            What::Gguf => match gguf::parse(&have, file_bytes).map_err(|e| wrap(e, &job.path))? {
                Progress::Parsed(header) => return self.gguf(&job.path, *header),
                Progress::NeedMore { at_least } => at_least,
            },
            What::Guess if have.starts_with(b"GGUF") => {
                return self.content(Job { what: What::Gguf, ..job }, have, file_bytes);
            }
            What::Guess => {
                return Err(self.not_a_model(
                    "neither a GGUF file nor a directory",
                    "give the path of a .gguf file or of a directory with safetensors and config.json",
                ));
            }
            What::Shard => {
                match safetensors::parse(&have, file_bytes).map_err(|e| wrap(e, &job.path))? {
                    Progress::Parsed(header) => {
                        self.shard(&job.path, *header)?;
                        return self.next_job();
                    }
                    Progress::NeedMore { at_least } => at_least,
                }
            }
            What::Config => {
                let config = hf_config::parse(&have).map_err(|e| wrap(e, &job.path))?;
                self.config = Some(config);
                return self.next_job();
            }
            What::Params => {
                let config = hf_config::parse_params(&have).map_err(|e| wrap(e, &job.path))?;
                self.config = Some(config);
                return self.next_job();
            }
            What::Quantisation => {
                // A hint, not a part of the model: what cannot be read is left out.
                self.quantisation = serde_json::from_slice(&have).ok();
                return self.next_job();
            }
            What::Index => {
                let names = safetensors::parse_index(&have).map_err(|e| wrap(e, &job.path))?;
                let directory = parent(&job.path).to_owned();
                let missing: Vec<String> = names
                    .iter()
                    .filter(|n| !self.sizes.contains_key(&join(&directory, n)))
                    .cloned()
                    .collect();
                if !missing.is_empty() {
                    return Err(ModelError::MissingParts { path: directory, names: missing });
                }
                self.queue_shards(names.iter().map(|n| join(&directory, n)).collect())?;
                return self.next_job();
            }
            What::Ref => {
                let hash = String::from_utf8_lossy(&have).trim().to_owned();
                if hash.is_empty() || !hash.chars().all(|c| c.is_ascii_hexdigit()) {
                    let error = HeaderError::broken("it is not the hash of a snapshot");
                    return Err(wrap(error, &job.path));
                }
                let model = parent(parent(&job.path));
                let path = join(&join(model, "snapshots"), &hash);
                return Ok(State::List { path, why: ListFor::Model });
            }
        };
        let want = at_least.max(2 * have.len() as u64).min(file_bytes);
        self.go_on(job, have, want, file_bytes)
    }

    // ── GGUF ───────────────────────────────────────────────────────────────────────────────────

    fn begin_gguf(&mut self, path: &str) -> Step {
        self.facts.format = ModelFormat::Gguf;
        path.clone_into(&mut self.facts.entry);
        if let Some(split) = split_name(base_name(path)) {
            self.facts.entry = join(parent(path), &split.part(1));
            return Ok(State::List { path: parent(path).to_owned(), why: ListFor::Parts });
        }
        self.queue.push_back(Job { path: path.to_owned(), what: What::Gguf });
        self.next_job()
    }

    fn gguf_parts(&mut self, path: &str, entries: &[DirEntry]) -> Step {
        let Some(split) = split_name(base_name(&self.facts.entry)) else {
            return Err(unreadable(path, "its name does not fit"));
        };
        if usize::try_from(split.count).unwrap_or(usize::MAX) > MAX_PARTS {
            return Err(self.not_a_model(
                format!("split into {} files (at most {MAX_PARTS})", split.count),
                "see whether the file's name is right",
            ));
        }
        let there: Vec<&str> =
            entries.iter().filter(|e| !e.is_dir).map(|e| e.name.as_str()).collect();
        let names: Vec<String> = (1..=split.count).map(|n| split.part(n)).collect();
        let missing: Vec<String> =
            names.iter().filter(|n| !there.contains(&n.as_str())).cloned().collect();
        if missing.len() == names.len() {
            return Err(ModelError::NotFound { path: self.path.clone() });
        }
        if !missing.is_empty() {
            return Err(ModelError::MissingParts { path: path.to_owned(), names: missing });
        }
        self.queue.extend(names.iter().map(|n| Job { path: join(path, n), what: What::Gguf }));
        self.next_job()
    }

    fn gguf(&mut self, path: &str, header: GgufHeader) -> Step {
        let parts_read = self.facts.parts;
        let expected = u64::from(parts_read) + 1 + self.queue.len() as u64;
        if header.split_count > 1
            && (header.split_count != expected || header.split_no != u64::from(parts_read))
        {
            let error = HeaderError::broken(format!(
                "it says it is part {} of {}, its name says otherwise",
                header.split_no.saturating_add(1),
                header.split_count
            ));
            return Err(ModelError::Header { path: path.to_owned(), error });
        }
        if matches!(header.kind.as_deref(), Some("adapter" | "mmproj" | "imatrix")) {
            let kind = header.kind.unwrap_or_default();
            return Err(self.not_a_model(
                format!("the GGUF file holds a model's {kind}, not a model"),
                "give the path of the model's own file",
            ));
        }
        self.facts.parts += 1;
        self.facts.files.push(path.to_owned());
        self.facts.weight_bytes =
            self.facts.weight_bytes.saturating_add(Bytes(header.weight_bytes()));
        if header.tensors.iter().any(|t| t.kind.is_none()) {
            self.facts.notes.push("it has tensors of a type unknown to this version".to_owned());
        }
        let mut header = header;
        if self.gguf_first.is_none() {
            self.facts.quantisation = header.quantisation();
        }
        let tensors = std::mem::take(&mut header.tensors).into_iter().map(|t| Tensor {
            name: t.name,
            dtype: t.kind.map_or("unknown", |k| k.name).to_owned(),
            shape: t.dims,
            count: 1,
            bytes: t.bytes,
        });
        self.keep(path, tensors)?;
        if self.gguf_first.is_none() {
            self.gguf_first = Some(header);
        }
        self.next_job()
    }

    /// Keeps a file's tensors, as far as there is room: they are few, or it is no model.
    fn keep(
        &mut self,
        path: &str,
        tensors: impl ExactSizeIterator<Item = Tensor>,
    ) -> Result<(), ModelError> {
        self.count = self.count.saturating_add(tensors.len() as u64);
        if self.count > super::tensors::MAX_TENSORS {
            let most = super::tensors::MAX_TENSORS;
            let error = HeaderError::broken(format!(
                "with it the model has {} tensors (at most {most})",
                self.count
            ));
            return Err(ModelError::Header { path: path.to_owned(), error });
        }
        let room = super::tensors::MAX_GROUPS.saturating_sub(self.facts.tensors.len());
        self.cut |= tensors.len() > room;
        self.facts.tensors.extend(tensors.take(room));
        Ok(())
    }

    // ── the end ────────────────────────────────────────────────────────────────────────────────

    fn shard(&mut self, path: &str, header: SafetensorsHeader) -> Result<(), ModelError> {
        self.facts.parts += 1;
        self.facts.files.push(path.to_owned());
        self.facts.weight_bytes =
            self.facts.weight_bytes.saturating_add(Bytes(header.weight_bytes));
        self.cut |= header.cut;
        // Experts of one name are one there.
        self.count =
            self.count.saturating_add(u64::from(header.tensors) - header.list.len() as u64);
        self.keep(path, header.list.into_iter())?;
        for (dtype, bytes) in &header.by_dtype {
            if self.by_dtype.len() < 64 || self.by_dtype.contains_key(dtype) {
                *self.by_dtype.entry(dtype.clone()).or_default() += bytes;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Step {
        let mut facts = std::mem::replace(
            &mut self.facts,
            ModelFacts::unknown(ModelFormat::Gguf, self.path.clone()),
        );
        if self.cut {
            // A part would be taken for the whole.
            facts.tensors = Vec::new();
            facts.notes.push("it has more tensors than are told apart".to_owned());
        }
        if let Some(config) = &self.config {
            config.fill(&mut facts);
            if facts.files.len() < 2_000 {
                facts.files.push(join(&facts.entry, self.config_name));
            }
            self.draw(config, &mut facts);
        } else if facts.format == ModelFormat::Safetensors {
            facts.certainty = Certainty::Guess;
            facts.cache_certainty = Certainty::Guess;
        }
        if facts.format == ModelFormat::Safetensors {
            shapes::complete(&mut facts);
        }
        if let Some(header) = &self.gguf_first {
            gguf_facts::fill(&mut facts, header);
        }
        if facts.weight_bytes == Bytes::ZERO {
            let why = if facts.parts == 0 && self.config.is_some() {
                "its config.json does not tell what it holds"
            } else {
                "it holds no weights"
            };
            return Err(self.not_a_model(why, "see whether the file is whole"));
        }
        if facts.quantisation.is_none() {
            facts.quantisation =
                self.by_dtype.iter().max_by_key(|(_, b)| **b).map(|(name, _)| name.clone());
        }
        Ok(State::Done(Box::new(Ok(facts))))
    }

    /// What the architecture decides: caches, how tensors are divided, and the tensors themselves
    /// where there are no files with weights.
    fn draw(&self, config: &HfConfig, facts: &mut ModelFacts) {
        let (blueprint, quantisation) = config.blueprint(self.quantisation.as_ref());
        facts.cache_fp8 = quantisation.cache_fp8;
        if !quantisation.name.is_empty() {
            facts.quantisation = Some(quantisation.name.clone());
        }
        let Some(blueprint) = blueprint else {
            facts.certainty = Certainty::Guess;
            facts.cache_certainty = Certainty::Guess;
            return;
        };
        facts.caches = blueprint.caches;
        facts.layout = blueprint.layout;
        facts.tied = blueprint.tied;
        facts.layers = Some(blueprint.layout.layers);
        facts.cache_certainty = blueprint.family;
        if facts.parts == 0 {
            facts.weight_bytes = Bytes(super::tensors::total(&blueprint.tensors));
            facts.tensors = blueprint.tensors;
            facts.certainty = blueprint.certainty;
            facts.spread = Some(blueprint.spread);
            facts.notes.push("there are no weights here: counted from config.json".to_owned());
            facts.notes.extend(blueprint.notes);
        } else {
            // What was estimated of the tensors does not matter: they are here.
            facts.certainty = blueprint.family;
        }
    }
}

/// What the names of numbered parts say their number is.
fn numbered(names: &[&str]) -> Option<usize> {
    let (_, count) = names.first()?.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    count.parse().ok()
}

fn read(job: Job, want: u64) -> State {
    State::Read { job, have: Vec::new(), want, file_bytes: None }
}

/// Engines tell files apart by their endings, in lower case.
fn has_ending(name: &str, ending: &str) -> bool {
    name.strip_suffix(ending).is_some()
}

fn unreadable(path: &str, why: &str) -> ModelError {
    ModelError::Unreadable { path: path.to_owned(), why: text::clean(why, 200) }
}

fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((parent, _)) => parent,
        None => ".",
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn shown(names: &[&str]) -> String {
    let mut text = names.iter().take(4).map(|n| text::clean(n, 80)).collect::<Vec<_>>().join(", ");
    if names.len() > 4 {
        text.push_str(", …");
    }
    text
}

/// `STEM-00002-of-00005.gguf`, as llama.cpp's `gguf-split` names parts.
struct SplitName<'a> {
    stem: &'a str,
    count: u32,
}

impl SplitName<'_> {
    fn part(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)
    }
}

fn split_name(name: &str) -> Option<SplitName<'_>> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five = |s: &str| (s.len() == 5).then(|| s.parse::<u32>().ok()).flatten();
    let (number, count) = (five(number)?, five(count)?);
    (number >= 1 && number <= count).then_some(SplitName { stem, count })
}

/// The file to begin with, if these are one model: a single file, or parts of one split.
fn one_model<'a>(names: &[&'a str]) -> Option<&'a str> {
    let first = *names.first()?;
    if names.len() == 1 {
        return Some(first);
    }
    let split = split_name(first)?;
    let same =
        |n: &&str| split_name(n).is_some_and(|s| s.stem == split.stem && s.count == split.count);
    names.iter().all(same).then_some(first)
}

/// Without an index: numbers missing among `model-00001-of-00003.safetensors`.
fn missing_of_numbered(names: &[&str]) -> Option<Vec<String>> {
    let (rest, count) = names.first()?.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, _) = rest.rsplit_once('-')?;
    let number: u32 = count.parse().ok().filter(|n| *n <= 2_000)?;
    let missing: Vec<String> = (1..=number)
        .map(|n| format!("{stem}-{n:05}-of-{count}.safetensors"))
        .filter(|n| !names.contains(&n.as_str()))
        .collect();
    (!missing.is_empty()).then_some(missing)
}

#[cfg(test)]
pub(crate) mod tests;

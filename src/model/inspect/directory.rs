//! What lies in a directory: one model, several, a cache of them, or none.

use std::collections::BTreeMap;

use super::names::{
    base_name, has_ending, join, missing_of_numbered, numbered, one_model, parent, shown,
};
use super::{
    FIRST_READ, Found, Inspection, Job, ListFor, MAX_PARTS, MISTRAL_CONFIG, State, Step, What,
    read, unreadable,
};
use crate::base::Bytes;
use crate::model::{ModelError, ModelFormat, safetensors};
use crate::wire::DirEntry;

/// What `AutoGPTQ` writes beside a `config.json` that says nothing of it.
pub(super) const QUANTIZE_CONFIG: &str = "quantize_config.json";

/// What a tokenizer is read from, as `transformers` and engines have it.
const TOKENIZERS: [&str; 8] = [
    "tokenizer.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
];

impl Inspection {
    pub(super) fn listed(&mut self, path: &str, why: ListFor, found: Found) -> Step {
        match (found, why) {
            (Found::Entries(entries), ListFor::Model) => self.directory(path, &entries),
            (Found::Entries(entries), ListFor::Snapshots) => self.snapshots(path, &entries),
            (Found::Entries(entries), ListFor::Parts) => self.gguf_parts(path, &entries),
            (Found::Entries(entries), ListFor::Beside) => self.beside(path, &entries),
            // A file may be read where its directory may not.
            (_, ListFor::Beside) => self.alone(),
            // A file without a telling name is read; agents differ in what they say of it here.
            (Found::Failed { .. } | Found::Missing, ListFor::Model) if path == self.path => {
                Ok(read(Job { path: path.to_owned(), what: What::Guess }, FIRST_READ))
            }
            (Found::Missing, _) => Err(ModelError::NotFound { path: path.to_owned() }),
            (Found::Failed { why }, _) => Err(unreadable(path, &why)),
            (Found::Piece { .. }, _) => Err(unreadable(path, "an answer that does not fit")),
        }
    }

    pub(super) fn directory(&mut self, path: &str, entries: &[DirEntry]) -> Step {
        let files: BTreeMap<&str, Bytes> =
            entries.iter().filter(|e| !e.is_dir).map(|e| (e.name.as_str(), e.size)).collect();
        let ending =
            |end: &str| files.keys().copied().filter(|n| n.ends_with(end)).collect::<Vec<_>>();
        let shards = ending(".safetensors");
        let index = ending(".safetensors.index.json");
        self.what_else(&files);
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
        if base_name(path) == "snapshots" && entries.iter().any(|e| e.is_dir) {
            return self.snapshots(path, entries);
        }
        if let Some(error) = self.inside_a_cache(path) {
            return Err(error);
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
        let configured = ["config.json", MISTRAL_CONFIG].iter().any(|n| files.contains_key(n));
        if self.config_alone && configured {
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

    /// What lies beside the weights and is no part of them.
    pub(super) fn what_else(&mut self, files: &BTreeMap<&str, Bytes>) {
        self.facts.tokenizer = TOKENIZERS.iter().any(|n| files.contains_key(n))
            || files.keys().any(|n| n.ends_with(".tiktoken"));
        self.facts.generation_config = files.contains_key("generation_config.json");
    }

    /// A part of a Hugging Face cache that holds no model by itself.
    pub(super) fn inside_a_cache(&self, path: &str) -> Option<ModelError> {
        let (above, name) = (parent(path), base_name(path));
        let part = matches!(name, "refs" | "blobs") && base_name(above).starts_with("models--");
        part.then(|| {
            self.not_a_model(
                format!("it holds the `{name}` of a model in a Hugging Face cache"),
                format!("give the path of the model's directory: {above}"),
            )
        })
    }

    pub(super) fn snapshots(&mut self, path: &str, entries: &[DirEntry]) -> Step {
        let hashes: Vec<&str> =
            entries.iter().filter(|e| e.is_dir).map(|e| e.name.as_str()).collect();
        match hashes.as_slice() {
            // A link that can be followed counts as what it leads to.
            [] if !entries.is_empty() => {
                let names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
                Err(self.not_a_model(
                    format!("its snapshots are no directories: {}", shown(&names)),
                    "links among them lead nowhere or in a circle: remove these, and download the model anew",
                ))
            }
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

    pub(super) fn safetensors_directory(
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
        if !self.queue_config(path, files) {
            self.facts.notes.push("there is no config.json beside the weights".to_owned());
        }
        // Several indexes (variants such as fp16): the one the engines take.
        let index = index.iter().find(|n| **n == "model.safetensors.index.json").or(index.first());
        // The index tells of parts beside those that count themselves. One that is too large is not needed for these.
        let is_large = |n: &&&str| files.get(**n).is_some_and(|b| b.0 > safetensors::MAX_INDEX);
        let counted = index.as_ref().is_some_and(is_large)
            && shards.first().is_some_and(|n| n.contains("-of-"))
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

    /// What describes the model; whether anything does.
    pub(super) fn queue_config(&mut self, path: &str, files: &BTreeMap<&str, Bytes>) -> bool {
        if !files.contains_key("config.json") {
            if !files.contains_key(MISTRAL_CONFIG) {
                return false;
            }
            self.config_name = MISTRAL_CONFIG;
            self.queue.push_back(Job { path: join(path, MISTRAL_CONFIG), what: What::Params });
            return true;
        }
        self.queue.push_back(Job { path: join(path, "config.json"), what: What::Config });
        let beside = ["hf_quant_config.json", QUANTIZE_CONFIG];
        if let Some(name) = beside.iter().find(|name| files.contains_key(**name)) {
            let path = join(path, name);
            self.queue.push_back(Job { path, what: What::Quantisation });
        }
        true
    }

    pub(super) fn queue_shards(&mut self, paths: Vec<String>) -> Result<(), ModelError> {
        if paths.len() > MAX_PARTS {
            return Err(self.not_a_model(
                format!("{} files (at most {MAX_PARTS})", paths.len()),
                "give the path of one model's directory",
            ));
        }
        self.queue.extend(paths.into_iter().map(|path| Job { path, what: What::Shard }));
        Ok(())
    }
}

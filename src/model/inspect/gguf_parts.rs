//! GGUF: one file, or the parts of one that was split.

use super::names::{base_name, join, parent, split_name};
use super::{Inspection, Job, ListFor, MAX_PARTS, State, Step, What, unreadable};
use crate::base::Bytes;
use crate::model::gguf::GgufHeader;
use crate::model::tensors::{self, Tensor};
use crate::model::{HeaderError, ModelError, ModelFormat};
use crate::wire::DirEntry;

impl Inspection {
    pub(super) fn begin_gguf(&mut self, path: &str) -> Step {
        self.facts.format = ModelFormat::Gguf;
        path.clone_into(&mut self.facts.entry);
        if let Some(split) = split_name(base_name(path)) {
            self.facts.entry = join(parent(path), &split.part(1));
            return Ok(State::List { path: parent(path).to_owned(), why: ListFor::Parts });
        }
        self.queue.push_back(Job { path: path.to_owned(), what: What::Gguf });
        self.next_job()
    }

    pub(super) fn gguf_parts(&mut self, path: &str, entries: &[DirEntry]) -> Step {
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

    pub(super) fn gguf(&mut self, path: &str, header: GgufHeader) -> Step {
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
        self.facts.weight_bytes =
            self.facts.weight_bytes.saturating_add(Bytes(header.weight_bytes()));
        if header.tensors.iter().any(|t| t.kind.is_none()) {
            self.facts.notes.push("it has tensors of a type unknown to this version".to_owned());
        }
        let mut header = header;
        if self.gguf_first.is_none() {
            self.facts.quantisation = header.quantisation();
        }
        let digests: Vec<u64> = header.tensors.iter().map(|t| tensors::digest(&t.name)).collect();
        let tensors = std::mem::take(&mut header.tensors).into_iter().map(|t| Tensor {
            name: t.name,
            dtype: t.kind.map_or("unknown", |k| k.name).to_owned(),
            shape: t.dims,
            count: 1,
            bytes: t.bytes,
        });
        self.keep(path, &digests, tensors)?;
        if self.gguf_first.is_none() {
            self.gguf_first = Some(header);
        }
        self.next_job()
    }
}

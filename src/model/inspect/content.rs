//! The beginnings of files, piece by piece, until each tells what it holds.

use super::directory::QUANTIZE_CONFIG;
use super::names::{base_name, join, parent};
use super::{Found, Inspection, Job, ListFor, MAX_TOTAL, State, Step, What, read, unreadable};
use crate::base::Bytes;
use crate::model::gguf;
use crate::model::hf_config;
use crate::model::safetensors;
use crate::model::{HeaderError, ModelError, Progress};

impl Inspection {
    pub(super) fn next_job(&mut self) -> Step {
        let Some(job) = self.queue.pop_front() else { return self.finish() };
        let first = self.first_read();
        Ok(read(job, first))
    }

    pub(super) fn read(
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

    pub(super) fn go_on(&self, job: Job, have: Vec<u8>, want: u64, file_bytes: u64) -> Step {
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

    pub(super) fn content(&mut self, job: Job, have: Vec<u8>, file_bytes: u64) -> Step {
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
                if let Some(error) = self.inside_a_cache(parent(&job.path)) {
                    return Err(error);
                }
                return Err(self.not_a_model(
                    "neither a GGUF file nor a directory",
                    "give the path of a .gguf file or of a directory with safetensors and config.json",
                ));
            }
            What::Shard => {
                let left = self.tensors_left();
                let read = safetensors::parse_at_most(&have, file_bytes, left);
                match read.map_err(|e| wrap(e, &job.path))? {
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
                if !self.config.as_ref().is_some_and(hf_config::HfConfig::states_quantisation) {
                    self.quantisation = hf_config::beside(&have);
                    // It does not say whose it is.
                    if base_name(&job.path) == QUANTIZE_CONFIG
                        && let Some(stated) = &mut self.quantisation
                    {
                        stated.entry("quant_method").or_insert_with(|| "gptq".into());
                    }
                }
                return self.next_job();
            }
            What::Index => {
                let names = safetensors::parse_index(&have).map_err(|e| wrap(e, &job.path))?;
                let directory = parent(&job.path).to_owned();
                if let Some(others) = self.is_of_others(&names) {
                    return others;
                }
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
}

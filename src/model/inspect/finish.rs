//! What all headers together say: the facts of a model.

use super::names::{base_name, join};
use super::{Inspection, State, Step};
use crate::base::Bytes;
use crate::model::facts::Certainty;
use crate::model::hf_config::HfConfig;
use crate::model::safetensors::SafetensorsHeader;
use crate::model::tensors::{self, Tensor};
use crate::model::{HeaderError, ModelError, ModelFacts, ModelFormat, gguf_facts, shapes};

impl Inspection {
    /// Keeps a file's tensors, as far as there is room: they are few, or it is no model. Experts of one
    /// layer may lie in several files, and are one group all the same.
    pub(super) fn keep(
        &mut self,
        path: &str,
        digests: &[u64],
        tensors: impl ExactSizeIterator<Item = Tensor>,
    ) -> Result<(), ModelError> {
        self.count = self.count.saturating_add(digests.len() as u64);
        if self.count > tensors::MAX_TENSORS {
            let most = tensors::MAX_TENSORS;
            let error = HeaderError::broken(format!(
                "with it the model has {} tensors (at most {most})",
                self.count
            ));
            return Err(ModelError::Header { path: path.to_owned(), error });
        }
        let number = u16::try_from(self.facts.files.len()).unwrap_or(u16::MAX);
        self.facts.files.push(path.to_owned());
        for digest in digests {
            if let Some(other) = self.held_by.insert(*digest, number) {
                let other = self.facts.files.get(usize::from(other));
                return Err(ModelError::Repeated {
                    path: path.to_owned(),
                    other: base_name(other.map_or(path, String::as_str)).to_owned(),
                });
            }
        }
        for tensor in tensors {
            let Some(first) = self.groups.join(&mut self.facts.tensors, tensor) else { continue };
            if self.facts.tensors.len() >= tensors::MAX_GROUPS {
                self.cut = true;
                break;
            }
            self.facts.tensors.push(first);
        }
        Ok(())
    }

    /// Tensors that the files still to be read may have.
    pub(super) fn tensors_left(&self) -> usize {
        usize::try_from(tensors::MAX_TENSORS.saturating_sub(self.count)).unwrap_or(usize::MAX)
    }

    pub(super) fn shard(
        &mut self,
        path: &str,
        header: SafetensorsHeader,
    ) -> Result<(), ModelError> {
        self.facts.parts += 1;
        self.facts.weight_bytes =
            self.facts.weight_bytes.saturating_add(Bytes(header.weight_bytes));
        self.cut |= header.cut;
        self.keep(path, &header.digests, header.list.into_iter())?;
        for (dtype, bytes) in &header.by_dtype {
            if self.by_dtype.len() < 64 || self.by_dtype.contains_key(dtype) {
                let sum = self.by_dtype.entry(dtype.clone()).or_default();
                *sum = sum.saturating_add(*bytes);
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Step {
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
            gguf_facts::fill(&mut facts, header).map_err(|error| ModelError::Header {
                path: facts.files.first().unwrap_or(&facts.entry).clone(),
                error,
            })?;
        }
        if facts.weight_bytes == Bytes::ZERO {
            if let Some(config) = self.config.as_ref().filter(|_| facts.parts == 0) {
                let who = match &facts.architecture {
                    Some(name) if !config.is_known() => {
                        format!("architecture {name} is not known, and its")
                    }
                    _ => "its".to_owned(),
                };
                return Err(self.not_a_model(
                    format!(
                        "{who} {} has no layers or width that could be read: the weights are needed",
                        self.config_name
                    ),
                    "give the directory with its weights (.safetensors): they tell what it holds",
                ));
            }
            return Err(self.not_a_model("it holds no weights", "see whether the file is whole"));
        }
        if facts.weight_bytes == Bytes(u64::MAX) {
            return Err(self.not_a_model(
                "its tensors have more bytes together than can be counted",
                "compare its config.json and its files with the published ones",
            ));
        }
        if facts.quantisation.is_none() {
            facts.quantisation =
                self.by_dtype.iter().max_by_key(|(_, b)| **b).map(|(name, _)| name.clone());
        }
        Ok(State::Done(Box::new(Ok(facts))))
    }

    /// What the architecture decides: caches, how tensors are divided, and the tensors themselves
    /// where there are no files with weights.
    pub(super) fn draw(&self, config: &HfConfig, facts: &mut ModelFacts) {
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
        facts.cache_spread = blueprint.cache_spread;
        if facts.parts == 0 {
            facts.weight_bytes = Bytes(tensors::total(&blueprint.tensors));
            facts.tensors = blueprint.tensors;
            facts.certainty = blueprint.certainty;
            facts.spread = Some(blueprint.spread);
            facts.unloaded_bytes = Bytes(blueprint.unloaded);
            facts
                .notes
                .push(format!("there are no weights here: counted from {}", self.config_name));
            facts.notes.extend(blueprint.notes);
        } else {
            // What was estimated of the tensors does not matter: they are here.
            facts.certainty = blueprint.family;
            let expected = tensors::total(&blueprint.tensors);
            let at_least = 1_000u64.saturating_sub(blueprint.spread.0);
            let at_least = tensors::mul_div(expected, at_least, 2_000);
            if blueprint.certainty != Certainty::Guess && facts.weight_bytes.0 < at_least {
                facts.certainty = Certainty::Guess;
                facts.notes.push(format!(
                    "its files hold {}, and config.json describes a model of {}: a part is missing, or they are not of one model",
                    facts.weight_bytes,
                    Bytes(expected)
                ));
            }
        }
    }
}

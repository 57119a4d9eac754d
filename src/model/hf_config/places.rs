//! Values under several names, looked for from the innermost object outwards.

use serde_json::{Map, Value};

use super::super::arch::conf::{dtype_of, whole};
use crate::base::text;

/// Longest sequence that is believed: some hundred times that of any model.
pub(super) const MAX_CONTEXT: u64 = u32::MAX as u64;

/// Where configurations state the longest sequence.
pub(super) const CONTEXT_KEYS: [&str; 7] = [
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_target_positions",
    "seq_len",
];

/// How weights are stored, in the first object that says it. `compression_config` is the name that compressed-tensors
/// had for it first; engines read it where there is no `quantization_config` (vLLM `model_loader/weight_utils.py`,
/// `get_quant_config`).
pub(super) fn quantisation<'a>(places: &[&'a Map<String, Value>]) -> Option<&'a Value> {
    let says = |value: &&Value| match value {
        Value::Null | Value::Bool(false) => false,
        // A key that was cleared.
        Value::String(word) => !word.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    ["quantization_config", "compression_config"]
        .iter()
        .find_map(|key| places.iter().find_map(|place| place.get(*key).filter(says)))
}

/// The objects to look in, the innermost first.
pub(super) struct Places<'a>(pub(super) Vec<&'a Map<String, Value>>);

impl<'a> Places<'a> {
    pub(super) fn object(&self, key: &str) -> Option<&'a Map<String, Value>> {
        self.0.iter().find_map(|place| place.get(key)?.as_object())
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find_map(|place| place.get(key).filter(|v| !v.is_null()))
    }

    pub(super) fn number(&self, keys: &[&str]) -> Option<u64> {
        keys.iter().find_map(|key| whole(self.get(key)?))
    }

    pub(super) fn u32(&self, keys: &[&str]) -> Option<u32> {
        self.number(keys).and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= 1 << 28)
    }

    /// The largest of a list.
    pub(super) fn largest(&self, keys: &[&str]) -> Option<u32> {
        let list = keys.iter().find_map(|key| self.get(key)?.as_array())?;
        let most = list.iter().filter_map(whole).max()?;
        u32::try_from(most).ok().filter(|n| *n <= 1 << 28)
    }

    pub(super) fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(b) => Some(*b),
            Value::String(s) => s.to_ascii_lowercase().parse().ok(),
            _ => None,
        }
    }

    pub(super) fn string(&self, key: &str) -> Option<String> {
        self.get(key)?.as_str().map(|s| text::clean(s, 80))
    }

    /// The type of values, as [`Conf::dtype`](super::Conf::dtype) has it.
    pub(super) fn dtype(&self) -> Option<String> {
        self.0.iter().find_map(|place| dtype_of(place)).map(|s| text::clean(s, 80))
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        let nested = ["rope_parameters", "rope_scaling"];
        let inside = || nested.iter().find_map(|n| self.object(n)?.get(key));
        self.get(key).or_else(inside)?.as_f64()
    }

    /// The longest sequence, as vLLM derives it (`config/model.py`, `_get_and_verify_max_len`): the
    /// least of what is stated, times what scaled positions add to it. What the family assumes, `usual`, counts
    /// where nothing is stated, for a configuration leaves out what equals that.
    pub(super) fn context(&self, usual: Option<u64>) -> Option<u64> {
        let least = CONTEXT_KEYS.iter().filter_map(|key| whole(self.get(key)?)).min();
        // Of Command R this is the whole, and `max_position_embeddings` a part.
        let own = self.number(&["model_max_length"]).filter(|n| (1..=MAX_CONTEXT).contains(n));
        let other =
            || self.number(&["n_ctx", "max_seq_length", "max_context_length", "context_length"]);
        let stated = own.or(least).or_else(other).or(usual)?;
        // Gemma 3 states its length already scaled.
        if self.string("model_type").is_some_and(|kind| kind.contains("gemma3")) {
            return Some(stated);
        }
        let outer = self.object("rope_parameters").or_else(|| self.object("rope_scaling"));
        let Some(outer) = outer else { return Some(stated) };
        // Since transformers 5 there may be one for each kind of layer.
        let nested = outer.values().filter_map(Value::as_object);
        let mut length = stated;
        let mut factor = 1.0;
        for scaling in std::iter::once(outer).chain(nested) {
            let kind = ["rope_type", "type"].iter().find_map(|k| scaling.get(*k)?.as_str());
            let number = |key: &str| match scaling.get(key)? {
                Value::String(text) => text.trim().parse().ok(),
                value => value.as_f64(),
            };
            // Lengths of these are stated as they are after scaling.
            if matches!(kind, None | Some("su" | "longrope" | "llama3" | "default" | "mrope")) {
                continue;
            }
            factor = number("factor").filter(|f| (1.0..=4_096.0).contains(f)).unwrap_or(factor);
            if kind == Some("yarn") {
                let original = scaling.get("original_max_position_embeddings").and_then(whole);
                length = original.unwrap_or(length);
            }
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // both are bounded
        Some((length.min(1 << 40) as f64 * factor) as u64)
    }

    /// The longest sequence, as `SGLang` derives it (`hf_transformers_utils.py`,
    /// `get_context_length`): what is stated first, times a factor only where no original length is.
    pub(super) fn context_stated(&self) -> Option<u64> {
        let keys = [
            "max_sequence_length",
            "seq_length",
            "max_seq_len",
            "model_max_length",
            "max_position_embeddings",
        ];
        let stated = keys.iter().find_map(|key| whole(self.get(key)?))?;
        let scaling = self.object("rope_scaling").or_else(|| self.object("rope_parameters"));
        let factor = scaling
            .filter(|s| !s.contains_key("original_max_position_embeddings"))
            .filter(|s| s.get("rope_type").and_then(Value::as_str) != Some("llama3"))
            .and_then(|s| s.get("factor")?.as_f64())
            .filter(|f| (1.0..=4_096.0).contains(f))
            .unwrap_or(1.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // both are bounded
        Some((stated.min(1 << 40) as f64 * factor) as u64)
    }

    pub(super) fn layers_with_growing_cache(&self) -> Option<u32> {
        let types = self.get("layer_types")?.as_array()?;
        let full = types.iter().filter(|t| t.as_str() == Some("full_attention")).count();
        u32::try_from(full).ok()
    }

    pub(super) fn quantisation(&self) -> Option<String> {
        let config = match quantisation(&self.0)? {
            Value::Object(config) => config,
            other => return Some(text::clean(other.as_str()?, 40)),
        };
        let word = |key: &str| config.get(key).and_then(Value::as_str).map(|s| text::clean(s, 40));
        let method = word("quant_method").or_else(|| word("quant_algo"))?;
        let bits = config.get("bits").and_then(whole);
        Some(match bits {
            Some(bits) => format!("{method} {bits} bits"),
            None => method,
        })
    }
}

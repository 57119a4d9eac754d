//! Numbers of a `config.json`, with what its family assumes where it is silent.
//!
//! `config.json` leaves out what equals the family's default, above all inside the nested
//! `text_config` and `vision_config`. `defaults.txt` holds those defaults: one family a line, as
//! `transformers` has them (its `configuration_*.py`).

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::{Map, Value};

/// One family a line: its `model_type`, then `key=value`.
const DEFAULTS: &str = include_str!("defaults.txt");

/// Longest list that is read: more than there are layers.
pub const MAX_LIST: usize = 4_096;

type Row = BTreeMap<&'static str, &'static str>;

fn defaults() -> &'static BTreeMap<&'static str, Row> {
    static TABLE: OnceLock<BTreeMap<&'static str, Row>> = OnceLock::new();
    TABLE.get_or_init(|| {
        DEFAULTS
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let kind = words.next()?;
                Some((kind, words.filter_map(|w| w.split_once('=')).collect()))
            })
            .collect()
    })
}

/// One configuration object: the whole file's, or a nested one with the file's behind it.
#[derive(Clone, Debug)]
pub struct Conf<'a> {
    /// `model_type`, as far as it tells the family.
    pub kind: String,
    places: Vec<&'a Map<String, Value>>,
    row: Option<&'static Row>,
}

/// Where multimodal models keep their language model's settings.
pub const NESTED: [&str; 5] =
    ["text_config", "llm_config", "language_config", "language_model_config", "thinker_config"];

/// Families by another name: the same layers, and the same numbers stated.
///
/// Falcon was `RefinedWeb` and `RefinedWebModel` before `transformers` had it (vLLM `configs/falcon.py`, `RWConfig`);
/// these have defaults of their own, for 40B is always of what was to be the new architecture, and what a file of 7B
/// is silent about is not so.
const ALIASES: [(&str, &str); 13] = [
    ("RefinedWeb", "falcon"),
    ("RefinedWebModel", "falcon"),
    ("codegen", "gptj"),
    ("glm_ocr_text", "glm4v_text"),
    ("hy_v4_vl_text", "hy_v4"),
    ("minimax_m3", "minimax_m3_vl_text"),
    ("solar", "llama"),
    ("phi3_v", "phi3"),
    ("phi4mm", "phi3"),
    ("skywork", "llama"),
    ("stablelm_epoch", "stablelm"),
    ("iquestcoder", "llama"),
    ("grok-1", "grok1"),
];

impl<'a> Conf<'a> {
    /// The language model's settings in a `config.json`.
    pub fn text(top: &'a Map<String, Value>) -> Self {
        let mut places = vec![top];
        let mut deepest = top;
        let mut kind = word(top, "model_type");
        // thinker_config nests a text_config of its own.
        for _ in 0..2 {
            let found =
                NESTED.iter().find_map(|k| Some((*k, deepest.get(*k).and_then(Value::as_object)?)));
            let Some((key, inner)) = found else { break };
            let stated = word(inner, "model_type");
            kind = if stated.is_empty() { nested_kind(&kind, key) } else { stated };
            places.insert(0, inner);
            deepest = inner;
        }
        if places.len() == 1
            && let Some(row) = defaults().get(kind.as_str())
            && let Some(inner) = row.get("text_config")
        {
            (*inner).clone_into(&mut kind);
        }
        if matches!(kind.as_str(), "minicpmv" | "minicpmo") {
            kind = minicpm(&kind, top);
        }
        // Grok 2 bears the name of a model for captions.
        let first = top.get("architectures").and_then(Value::as_array).and_then(|l| l.first());
        if kind == "git" && first.and_then(Value::as_str) == Some("Grok1ForCausalLM") {
            "grok1".clone_into(&mut kind);
        }
        let mut row = None;
        if let Some((own, family)) = ALIASES.iter().find(|(own, _)| *own == kind) {
            row = defaults().get(*own);
            (*family).clone_into(&mut kind);
        }
        if !is_family(&kind) {
            kind = by_architecture(deepest).unwrap_or(kind);
        }
        Self { row: row.or_else(|| defaults().get(kind.as_str())), kind, places }
    }

    /// The settings of one part, such as `vision_config`; none if there is no such part.
    pub fn part(top: &'a Map<String, Value>, key: &str) -> Option<Self> {
        let inner = top.get(key)?.as_object()?;
        let stated = word(inner, "model_type");
        let usual = nested_kind(&word(top, "model_type"), key);
        // Some parts bear the name of the whole.
        let known = defaults().contains_key(stated.as_str()) && stated != word(top, "model_type");
        let kind = if known || usual.is_empty() { stated } else { usual };
        Some(Self { row: defaults().get(kind.as_str()), kind, places: vec![inner] })
    }

    /// Whether the family's defaults are known.
    pub fn is_known(&self) -> bool {
        self.row.is_some()
    }

    /// What the file itself says.
    pub fn given(&self, key: &str) -> Option<&'a Value> {
        self.places.iter().find_map(|place| place.get(key).filter(|v| !v.is_null()))
    }

    /// The first of these keys that the file states as a whole number, or as a list of the same one.
    pub fn stated(&self, keys: &[&str]) -> Option<u64> {
        keys.iter().find_map(|key| match self.given(key)? {
            Value::Array(list) => {
                let first = whole(list.first()?)?;
                list.iter().all(|v| whole(v) == Some(first)).then_some(first)
            }
            value => whole(value),
        })
    }

    /// The first of these keys, from the file or else the family's default; at most 2²².
    pub fn number(&self, keys: &[&str]) -> Option<u64> {
        let usual = || keys.iter().find_map(|k| self.row?.get(k)?.parse().ok());
        // A key that is there as null has no default: `"num_key_value_heads": null` is derived.
        let silenced = keys
            .iter()
            .any(|k| self.places.first().is_some_and(|p| p.get(*k) == Some(&Value::Null)));
        // What differs from layer to layer is no default either.
        let silenced = silenced || keys.iter().any(|k| self.list(k).is_some());
        self.stated(keys)
            .or_else(|| if silenced { None } else { usual() })
            .filter(|n| *n <= 1 << 22)
    }

    /// A yes or no, from the file or else the family's default.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.given(key) {
            Some(Value::Bool(b)) => Some(*b),
            Some(Value::String(s)) => s.to_ascii_lowercase().parse().ok(),
            Some(_) => None,
            None => self.row?.get(key)?.parse().ok(),
        }
    }

    /// Whether a flag is set.
    pub fn on(&self, key: &str) -> bool {
        self.flag(key) == Some(true)
    }

    /// A text.
    pub fn text_of(&self, key: &str) -> Option<&'a str> {
        self.given(key)?.as_str()
    }

    /// The type of its values, from the file alone. Where an object states both names `dtype` counts, as for
    /// `transformers` since 4.56 (`configuration_utils.py`, "If both are provided, keep `dtype`").
    pub fn dtype(&self) -> Option<&'a str> {
        self.places.iter().find_map(|place| dtype_of(place))
    }

    /// A list, from the file alone.
    pub fn list(&self, key: &str) -> Option<&'a [Value]> {
        let list = self.given(key)?.as_array()?;
        Some(list.get(..MAX_LIST).unwrap_or(list))
    }

    /// A list of whole numbers, from the file or else the family's default.
    pub fn numbers(&self, key: &str) -> Option<Vec<u64>> {
        if let Some(list) = self.list(key) {
            return list.iter().map(whole).collect();
        }
        let usual = self.row?.get(key)?.strip_prefix('[')?.strip_suffix(']')?;
        usual.split(',').filter(|w| !w.is_empty()).map(|w| w.parse().ok()).collect()
    }

    /// An object inside.
    pub fn object(&self, key: &str) -> Option<&'a Map<String, Value>> {
        self.given(key)?.as_object()
    }

    /// Whether the family is one of these.
    pub fn is(&self, kinds: &[&str]) -> bool {
        kinds.contains(&self.kind.as_str())
    }
}

fn is_family(kind: &str) -> bool {
    defaults().contains_key(kind) || super::KNOWN_ELSEWHERE.contains(&kind)
}

/// The family whose architecture a configuration with a `model_type` of its own states: engines go by
/// `architectures` alone (vLLM `models/registry.py`).
fn by_architecture(map: &Map<String, Value>) -> Option<String> {
    let name = map.get("architectures")?.as_array()?.first()?.as_str()?;
    let (family, _) = name.split_once("For").or_else(|| name.split_once("LMHead"))?;
    let bare = |name: &str| name.replace(['_', '-'], "").to_ascii_lowercase();
    let family = bare(family);
    if family == "rw" {
        return Some("falcon".to_owned());
    }
    let known = defaults().keys().copied().chain(super::KNOWN_ELSEWHERE);
    known.into_iter().find(|kind| bare(kind) == family).map(str::to_owned)
}

/// `MiniCPM-V` and `MiniCPM-o` are names for several language models, which their version tells (vLLM
/// `minicpmv.py`, `_SUPPORT_VERSION`).
fn minicpm(kind: &str, top: &Map<String, Value>) -> String {
    let version = top.get("version").map(|v| v.to_string().replace('"', ""));
    let of = match version.as_deref().unwrap_or_default() {
        "2" | "2.0" => "minicpm",
        "2.5" | "4" | "4.0" => "llama",
        "2.6" => "qwen2",
        "4.5" => "qwen3",
        _ => kind,
    };
    of.to_owned()
}

fn word(map: &Map<String, Value>, key: &str) -> String {
    map.get(key).and_then(Value::as_str).unwrap_or_default().chars().take(80).collect()
}

fn nested_kind(kind: &str, key: &str) -> String {
    usual_part(kind, key).unwrap_or_default().to_owned()
}

/// The family of the part that a family has under this key.
pub fn usual_part(kind: &str, key: &str) -> Option<&'static str> {
    defaults().get(kind)?.get(key).copied()
}

/// The type of values that one object states.
pub fn dtype_of(map: &Map<String, Value>) -> Option<&str> {
    ["dtype", "torch_dtype"].iter().find_map(|key| map.get(*key)?.as_str())
}

/// A whole number, also when written as `"32"` or `32.0`.
pub fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Number(n) => n.as_u64().or_else(|| {
            let float = n.as_f64()?;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked
            ((0.0..=1e15).contains(&float) && float.fract() == 0.0).then_some(float as u64)
        }),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::Conf;

    #[test]
    fn of_two_names_for_a_type_the_younger_counts() {
        for (json, dtype) in [
            (r#"{"torch_dtype":"float32","dtype":"bfloat16"}"#, Some("bfloat16")),
            (r#"{"torch_dtype":"float16"}"#, Some("float16")),
            (r#"{"torch_dtype":"float16","dtype":null}"#, Some("float16")),
            (r#"{"dtype":"float32","text_config":{"torch_dtype":"bfloat16"}}"#, Some("bfloat16")),
            (r#"{"dtype":"float32","text_config":{}}"#, Some("float32")),
            (r#"{"text_config":{}}"#, None),
        ] {
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(Conf::text(value.as_object().unwrap()).dtype(), dtype, "{json}");
            let read = crate::model::hf_config::parse(json.as_bytes()).unwrap();
            assert_eq!(read.dtype.as_deref(), dtype, "{json}");
        }
    }

    /// Engines take a model by its architecture, whatever its `model_type` says.
    #[test]
    fn an_architecture_tells_the_family_of_an_unknown_type() {
        let kind = |json: &str| {
            let value: serde_json::Value = serde_json::from_str(json).unwrap();
            Conf::text(value.as_object().unwrap()).kind
        };
        for (architecture, own, family) in [
            ("DeepseekV4ForCausalLM", "deepseek_ref", "deepseek_v4"),
            ("LlamaForCausalLM", "my_llama", "llama"),
            ("Qwen3MoeForCausalLM", "", "qwen3_moe"),
            ("GPT2LMHeadModel", "own", "gpt2"),
            ("MiniMaxM3ForCausalLM", "minimax_m3", "minimax_m3_vl_text"),
            ("LlamaForCausalLM", "mistral", "mistral"),
            ("RWForCausalLM", "RefinedWeb", "falcon"),
            ("RWForCausalLM", "own", "falcon"),
            ("OwnForCausalLM", "own", "own"),
            ("ForCausalLM", "own", "own"),
        ] {
            let json = format!(r#"{{"architectures":["{architecture}"],"model_type":"{own}"}}"#);
            assert_eq!(kind(&json), family, "{json}");
        }
    }
}

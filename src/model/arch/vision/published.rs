//! Towers that a `config.json` is silent about: `Gemma3ForConditionalGeneration` without a `vision_config` has one
//! all the same.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::{Build, Certainty, Conf};
use crate::model::arch::conf;
use crate::model::tensors::{self, mul_div};

/// Towers of families whose published models all have the same one, as their own `config.json` states them. The
/// defaults of `transformers` are other towers. What Qwen's towers give is as wide as the language model; the image
/// size of Llama 3.2 is that of the instructed models.
const PUBLISHED: [(&str, &str); 6] = [
    (
        "gemma3",
        r#"{"model_type":"siglip_vision_model","hidden_size":1152,"num_hidden_layers":27,"intermediate_size":4304,
        "num_attention_heads":16,"image_size":896,"patch_size":14,"vision_use_head":false}"#,
    ),
    (
        "llama4",
        r#"{"model_type":"llama4_vision_model","hidden_size":1408,"num_hidden_layers":34,"intermediate_size":5632,
        "num_attention_heads":16,"image_size":336,"patch_size":14,"pixel_shuffle_ratio":0.5,
        "projector_input_dim":4096,"projector_output_dim":4096,"vision_output_dim":4096}"#,
    ),
    (
        "mistral3",
        r#"{"model_type":"pixtral","hidden_size":1024,"num_hidden_layers":24,"intermediate_size":4096,
        "num_attention_heads":16,"image_size":1540,"patch_size":14}"#,
    ),
    (
        "mllama",
        r#"{"model_type":"mllama_vision_model","hidden_size":1280,"num_hidden_layers":32,"num_global_layers":8,
        "intermediate_size":5120,"attention_heads":16,"image_size":560,"patch_size":14,"max_num_tiles":4,
        "vision_output_dim":7680}"#,
    ),
    (
        "qwen2_5_vl",
        r#"{"model_type":"qwen2_5_vl_vision","hidden_size":1280,"depth":32,"intermediate_size":3420,"num_heads":16,
        "patch_size":14,"spatial_merge_size":2,"temporal_patch_size":2}"#,
    ),
    (
        "qwen2_vl",
        r#"{"model_type":"qwen2_vl_vision","embed_dim":1280,"depth":32,"mlp_ratio":4,"num_heads":16,"patch_size":14,
        "spatial_merge_size":2,"temporal_patch_size":2}"#,
    ),
];

/// The widest language model whose Qwen2.5-VL has the narrower blocks: 7B. Those of 32B and 72B are wider.
const NARROW_QWEN: u64 = 3_584;

fn wholes() -> &'static BTreeMap<&'static str, Map<String, Value>> {
    static TABLE: OnceLock<BTreeMap<&'static str, Map<String, Value>>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let whole = |kind: &str, tower: &str| {
            let tower: Value = serde_json::from_str(tower).ok()?;
            let parts = [("model_type", Value::from(kind)), ("vision_config", tower)];
            Some(parts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
        };
        let mut table: BTreeMap<_, _> = PUBLISHED
            .iter()
            .filter_map(|(kind, tower)| Some((*kind, whole(kind, tower)?)))
            .collect();
        if let Some((_, tower)) = PUBLISHED.iter().find(|(kind, _)| *kind == "qwen2_5_vl")
            && let Some(wide) = whole("qwen2_5_vl", &tower.replace("3420", "3456"))
        {
            table.insert("qwen2_5_vl, wide", wide);
        }
        table
    })
}

/// Whether a model of this configuration has a tower that the configuration does not tell of: the whole is of a family
/// with one, and its class is the one with all parts.
pub(super) fn is_silent(top: &Map<String, Value>) -> bool {
    let kind = top.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let first = top.get("architectures").and_then(Value::as_array).and_then(|l| l.first());
    let all =
        first.and_then(Value::as_str).is_some_and(|n| n.ends_with("ForConditionalGeneration"));
    all && top.get("vision_config").is_none_or(Value::is_null)
        && conf::usual_part(kind, "vision_config").is_some()
}

/// The tower that all published models of its family have, where the configuration is silent.
pub(super) fn tower(top: &Map<String, Value>) -> Option<Conf<'static>> {
    if !is_silent(top) {
        return None;
    }
    let kind = top.get("model_type").and_then(Value::as_str)?;
    let wide = kind == "qwen2_5_vl"
        && Conf::text(top).number(&["hidden_size"]).is_some_and(|width| width > NARROW_QWEN);
    let whole = wholes().get(if wide { "qwen2_5_vl, wide" } else { kind })?;
    Conf::part(whole, "vision_config")
}

/// How sure a tower is that no configuration states: `before` are all bytes without it. Files may lack it.
pub(super) fn doubt(build: &mut Build<'_>, before: u64) {
    let all = tensors::total(&build.tensors);
    let share = mul_div(all.saturating_sub(before), 1_000, all).saturating_add(1).min(1_000);
    let why = "its vision tower is not stated: the one that its family's published models have is counted";
    build.doubt_by(Certainty::Close, (share, 30), why);
}

/// A tower of which nothing is known at all: not counted.
pub(super) fn not_counted(build: &mut Build<'_>) {
    let why = "its vision tower is neither stated nor counted";
    build.doubt_by(Certainty::Close, (30, 300), why);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::{PUBLISHED, wholes};
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    fn whole(class: &str, kind: &str, text: &str) -> String {
        format!(
            r#"{{"architectures":["{class}ForConditionalGeneration"],"model_type":"{kind}",
            "torch_dtype":"bfloat16",{text}}}"#
        )
    }

    /// Numbers of bytes that indexes and the models' pages state.
    #[test]
    fn a_family_with_a_tower_has_it_whatever_is_stated() {
        assert_eq!(wholes().len(), PUBLISHED.len() + 1);
        let llama3 = r#""text_config":{"model_type":"mllama_text_model","hidden_size":4096,"num_hidden_layers":40,
            "num_attention_heads":32,"num_key_value_heads":8,"intermediate_size":14336,"vocab_size":128256,
            "cross_attention_layers":[3,8,13,18,23,28,33,38]}"#;
        let qwen = r#""hidden_size":3584,"num_hidden_layers":28,"num_attention_heads":28,"num_key_value_heads":4,
            "intermediate_size":18944,"vocab_size":152064,"tie_word_embeddings":false"#;
        let small = r#""text_config":{"model_type":"mistral","hidden_size":5120,"num_hidden_layers":40,
            "num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,"intermediate_size":32768,
            "vocab_size":131072}"#;
        let gemma = r#""text_config":{"model_type":"gemma3_text","hidden_size":5376,"num_hidden_layers":62,
            "num_attention_heads":32,"num_key_value_heads":16,"head_dim":128,"intermediate_size":21504,
            "vocab_size":262208,"sliding_window":1024}"#;
        let scout = r#""vision_config":null,"text_config":{"model_type":"llama4_text","hidden_size":5120,
            "num_hidden_layers":48,"num_attention_heads":40,"num_key_value_heads":8,"head_dim":128,
            "intermediate_size":8192,"intermediate_size_mlp":16384,"num_local_experts":16,"vocab_size":202048,
            "interleave_moe_layer_step":1}"#;
        for (class, kind, text, bytes) in [
            ("Mllama", "mllama", llama3, 21_340_441_670),
            ("Qwen2_5_VL", "qwen2_5_vl", qwen, 16_584_333_312),
            ("Qwen2VL", "qwen2_vl", qwen, 16_582_751_232),
            ("Mistral3", "mistral3", small, 48_022_722_560),
            ("Gemma3", "gemma3", gemma, 54_864_813_280),
            ("Llama4", "llama4", scout, 217_283_587_072),
        ] {
            let model = facts(&whole(class, kind, text));
            assert_eq!(model.weight_bytes.0, bytes, "{kind}");
            assert_eq!((model.certainty, model.vision), (Certainty::Close, true), "{kind}");
            // Without its tower it is within the bar.
            let alone = facts(&whole(class, kind, text).replace("ForConditionalGeneration", "X"));
            let bar = predict(&model, &Setup::new(rules("vllm"))).weights;
            assert!(bar.low <= alone.weight_bytes.0 && alone.weight_bytes.0 < bytes, "{kind}");
        }
    }

    #[test]
    fn a_tower_that_nobody_knows_is_no_exact_figure() {
        let text = r#""text_config":{"model_type":"qwen3_vl_text","hidden_size":4096,"num_hidden_layers":36,
            "num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,"intermediate_size":12288,
            "vocab_size":151936}"#;
        let model = facts(&whole("Qwen3VL", "qwen3_vl", text));
        assert_eq!((model.certainty, model.vision), (Certainty::Close, true));
        // 8.77 billion values, as Qwen3-VL-8B has.
        let bar = predict(&model, &Setup::new(rules("vllm"))).weights;
        assert!(bar.low < 17_534_247_392 && bar.high > 17_534_247_392, "{bar:?}");
        let gemma =
            |class: &str| facts(&whole(class, &class.to_ascii_lowercase(), r#""text_config":{}"#));
        assert_eq!(gemma("Gemma4").certainty, Certainty::Close);
        let all = gemma("Gemma3n");
        assert_eq!(all.certainty, Certainty::Close);
        assert!(all.tensors.iter().any(|t| t.name == "visual.towers.weight"));
        // A class for text alone has none.
        let alone = facts(&whole("Qwen3VL", "qwen3_vl", text).replace("ConditionalG", "CausalG"));
        assert_eq!(alone.certainty, Certainty::Exact);
    }
}

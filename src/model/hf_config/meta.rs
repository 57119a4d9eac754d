//! Meta's own format: a `params.json` that states how the width of a feed-forward layer comes about, not the width
//! (`llama3/model.py` and `llama4/moe.py` of `llama-models`).

use serde_json::{Map, Value};

use super::super::HeaderError;
use super::super::arch::conf::whole;
use crate::base::text;

/// Whether a `params.json` is Meta's.
pub(super) fn is(top: &Map<String, Value>) -> bool {
    ["multiple_of", "moe_args"].iter().any(|key| top.get(*key).is_some_and(|v| !v.is_null()))
}

/// Puts in what follows from its numbers, under the names of Hugging Face; those that Mistral has, too, are renamed
/// already.
pub(super) fn complete(top: &mut Map<String, Value>) -> Result<(), HeaderError> {
    if top.get("num_key_value_heads").is_none_or(Value::is_null)
        && let Some(heads) = top.get("num_attention_heads").cloned()
    {
        top.insert("num_key_value_heads".to_owned(), heads);
    }
    // The tokenizer's, of which Llama 1 and 2 have one.
    if top.get("vocab_size").and_then(Value::as_i64) == Some(-1) {
        top.remove("vocab_size");
    }
    if top.get("quantization_args").is_some_and(|v| !v.is_null()) {
        top.entry("quantization_config").or_insert_with(|| "quantization_args".into());
    }
    let Some(experts) = top.remove("moe_args").filter(|v| !v.is_null()) else {
        if top.get("intermediate_size").is_none_or(Value::is_null) {
            let width = width(top, 1.0)?;
            top.insert("intermediate_size".to_owned(), width.into());
        }
        let cross = top.get("vision_num_cross_attention_layers").and_then(whole).unwrap_or(0);
        // What its tower and the layers beside `n_layers` are like is not written there: a guess.
        let family = if cross > 0 { "llama_with_sight" } else { "llama" };
        top.entry("model_type").or_insert_with(|| family.into());
        let number = |key: &str| top.get(key).and_then(whole).unwrap_or(0);
        // Llama 3.2's small ones share the embedding, of which their files say nothing.
        let is_small =
            number("vocab_size") == 128_256 && (1..=3_072).contains(&number("hidden_size"));
        if cross == 0 && is_small {
            top.entry("tie_word_embeddings").or_insert(Value::Bool(true));
        }
        return Ok(());
    };
    let number = |key: &str| experts.get(key).and_then(whole);
    let Some(count) = number("num_experts").filter(|n| *n > 0) else {
        return Err(broken("`moe_args` states no `num_experts`"));
    };
    let capacity = experts.get("capacity_factor").map_or(Some(1.0), Value::as_f64);
    let capacity = capacity.filter(|f| (0.0..=64.0).contains(f));
    let capacity = capacity.ok_or_else(|| broken("`moe_args.capacity_factor` is no factor"))?;
    let scaled = experts.get("auto_scale_F") != Some(&Value::Bool(false));
    let (dense, expert) =
        (width(top, 1.0)?, width(top, if scaled { 1.0 + capacity } else { 1.0 })?);
    for (key, value) in [
        ("num_local_experts", count),
        ("interleave_moe_layer_step", number("interleave_moe_layer_step").unwrap_or(1)),
        ("num_experts_per_tok", number("top_k").unwrap_or(1)),
        ("intermediate_size_mlp", dense),
        ("intermediate_size", expert),
    ] {
        top.insert(key.to_owned(), value.into());
    }
    top.entry("model_type").or_insert_with(|| "llama4_text".into());
    Ok(())
}

/// Width of a feed-forward layer that is one of `parts`: two thirds of four times the hidden size, times a factor,
/// rounded up to a multiple.
fn width(top: &Map<String, Value>, parts: f64) -> Result<u64, HeaderError> {
    let number = |key: &str, most: u64| {
        let found = top.get(key).and_then(whole).filter(|n| (1..=most).contains(n));
        found.ok_or_else(|| {
            let shown = top.get(key).map_or_else(|| "not stated".to_owned(), Value::to_string);
            broken(&format!("`{key}` is {}, which is no count", text::clean(&shown, 40)))
        })
    };
    let factor = |key: &str, usual: f64| {
        let found = top.get(key).filter(|v| !v.is_null()).map_or(Some(usual), Value::as_f64);
        found
            .filter(|f| (0.0..=64.0).contains(f))
            .ok_or_else(|| broken(&format!("`{key}` is no factor from 0 to 64")))
    };
    // `dim` has Hugging Face's name by now.
    let hidden = number("hidden_size", 1 << 20)?;
    let multiple = number("multiple_of", 1 << 20)?;
    let (exponent, more) = (factor("ffn_exp", 4.0)?, factor("ffn_dim_multiplier", 1.0)?);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // all are bounded just above
    let floor = |value: f64| value as u64;
    let times = |n: u64, by: f64| floor(n as f64 * by);
    let inner = times(2 * times(hidden, exponent) / 3, more);
    let inner = times(inner, 1.0 / parts).max(1);
    Ok(inner.next_multiple_of(multiple).min(1 << 22))
}

fn broken(what: &str) -> HeaderError {
    HeaderError::broken(format!("not Meta's params.json: {what}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::super::parse_params;
    use crate::model::arch::{Blueprint, Certainty};
    use crate::model::tensors::total;

    fn drawn(json: &str) -> Blueprint {
        parse_params(json.as_bytes()).unwrap().blueprint(None).0.unwrap()
    }

    const SCOUT: &str = r#""dim":5120,"n_layers":48,"n_heads":40,"n_kv_heads":8,"vocab_size":202048,
        "multiple_of":2048,"ffn_dim_multiplier":1.2,"ffn_exp":4.0,"use_qk_norm":true,"moe_args":{"num_experts":16,
        "capacity_factor":1.0,"auto_scale_F":true,"interleave_moe_layer_step":1}"#;

    /// Llama 3.2 1B, Llama 2 7B and 70B, Llama 3 8B and the language model of Llama 4 Scout, as their indexes state them.
    #[test]
    fn widths_follow_from_a_multiple_and_a_factor() {
        let seven = r#"{"dim":4096,"multiple_of":256,"n_heads":32,"n_layers":32,"norm_eps":1e-05,"vocab_size":-1}"#;
        let seventy = r#"{"dim":8192,"multiple_of":4096,"ffn_dim_multiplier":1.3,"n_heads":64,"n_kv_heads":8,
            "n_layers":80,"norm_eps":1e-05,"vocab_size":32000}"#;
        let eight = r#"{"dim":4096,"n_layers":32,"n_heads":32,"n_kv_heads":8,"vocab_size":128256,
            "multiple_of":1024,"ffn_dim_multiplier":1.3,"norm_eps":1e-05,"rope_theta":500000.0}"#;
        let one = r#"{"dim":2048,"ffn_dim_multiplier":1.5,"multiple_of":256,"n_heads":32,"n_kv_heads":8,
            "n_layers":16,"norm_eps":1e-05,"rope_theta":500000.0,"use_scaled_rope":true,"vocab_size":128256}"#;
        for (json, bytes) in [
            (one, 2_471_628_800),
            (seven, 13_476_831_232),
            (seventy, 137_953_296_384),
            (eight, 16_060_522_496),
            (&format!("{{{SCOUT}}}"), 215_539_722_240),
        ] {
            let drawn = drawn(json);
            assert_eq!(
                (total(&drawn.tensors), drawn.certainty),
                (bytes, Certainty::Exact),
                "{json}"
            );
        }
        let sees = drawn(&format!(r#"{{{SCOUT},"vision_args":{{"dim":1408,"n_layers":34}}}}"#));
        assert_eq!((total(&sees.tensors), sees.certainty), (217_283_587_072, Certainty::Close));
    }

    #[test]
    fn what_is_not_known_is_a_guess_or_an_error() {
        let eight = |more: &str| {
            format!(
                r#"{{"dim":4096,"n_layers":32,"n_heads":32,"n_kv_heads":8,"vocab_size":128256{more}}}"#
            )
        };
        let packed =
            r#","multiple_of":1024,"ffn_dim_multiplier":1.3,"quantization_args":{"group_size":32}"#;
        assert_eq!(drawn(&eight(packed)).certainty, Certainty::Guess);
        let sees =
            r#","multiple_of":1024,"ffn_dim_multiplier":1.3,"vision_num_cross_attention_layers":8"#;
        assert_eq!(drawn(&eight(sees)).certainty, Certainty::Guess);
        // Neither Mistral's width nor what Meta's follows from.
        assert_eq!(drawn(&eight("")).certainty, Certainty::Guess);
        for (more, named) in [
            (r#","multiple_of":1024,"moe_args":{"top_k":1}"#, "num_experts"),
            (r#","moe_args":{"num_experts":16}"#, "multiple_of"),
            (r#","multiple_of":0"#, "multiple_of"),
            (r#","multiple_of":1024,"ffn_dim_multiplier":"x""#, "ffn_dim_multiplier"),
            (r#","multiple_of":1024,"ffn_exp":-1"#, "ffn_exp"),
            (r#","moe":{"num_experts":8,"num_experts_per_tok":2}"#, "hidden_dim"),
        ] {
            let error = parse_params(eight(more).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(named), "{more}: {error}");
        }
    }
}

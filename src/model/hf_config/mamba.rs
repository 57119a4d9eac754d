//! Models of Mamba alone, as others than `transformers` describe them: Mistral's `params.json` of Codestral Mamba, and
//! the `config.json` of `state-spaces`, which has no `model_type` (`mamba_ssm/models/config_mamba.py`).

use serde_json::{Map, Value};

use super::super::arch::conf::whole;

/// Names inside `ssm_cfg` (`mamba_ssm/modules/mamba2.py`), and those of `transformers`.
const INSIDE: [(&str, &str); 5] = [
    ("d_state", "state_size"),
    ("d_conv", "conv_kernel"),
    ("expand", "expand"),
    ("headdim", "head_dim"),
    ("ngroups", "n_groups"),
];

/// A `config.json` of `state-spaces` as `transformers` has it. Hybrids with attention or feed-forward layers stay
/// what they are: not known.
pub(super) fn from_state_spaces(mut top: Map<String, Value>) -> Map<String, Value> {
    let other = top.contains_key("model_type")
        || top.get("attn_layer_idx").and_then(Value::as_array).is_some_and(|l| !l.is_empty())
        || top.get("d_intermediate").and_then(whole).is_some_and(|n| n > 0);
    if other {
        return top;
    }
    let Some(inside) = top.get("ssm_cfg").and_then(Value::as_object).cloned() else { return top };
    let second = inside.get("layer").and_then(Value::as_str) == Some("Mamba2");
    for (own, usual) in INSIDE {
        if let Some(value) = inside.get(own) {
            top.insert(usual.to_owned(), value.clone());
        }
    }
    if let Some(width) = top.get("d_model").cloned() {
        top.insert("hidden_size".to_owned(), width);
    }
    if second {
        top.entry("n_groups").or_insert_with(|| 1.into());
        top.insert("model_type".to_owned(), "mamba2".into());
        heads(&mut top);
    } else {
        top.insert("model_type".to_owned(), "mamba".into());
    }
    ends(&mut top, 8, true);
    top
}

/// Codestral Mamba's `params.json`, whose groups only Mamba-2 has.
pub(super) fn from_params(top: &mut Map<String, Value>) {
    if top.contains_key("n_groups") {
        top.insert("model_type".to_owned(), "mamba2".into());
        heads(top);
    }
    ends(top, 1, false);
}

/// Heads of Mamba-2: as many as the inner width has.
fn heads(top: &mut Map<String, Value>) {
    let number = |key: &str, usual: u64| top.get(key).map_or(Some(usual), whole);
    let inner = top
        .get("hidden_size")
        .and_then(whole)
        .zip(number("expand", 2))
        .map(|(width, times)| width.saturating_mul(times));
    let heads = inner.zip(number("head_dim", 64)).and_then(|(inner, each)| inner.checked_div(each));
    if let Some(heads) = heads.filter(|n| *n > 0) {
        top.entry("num_heads").or_insert_with(|| heads.into());
    }
}

/// The padded vocabulary, and whether the head shares it.
fn ends(top: &mut Map<String, Value>, multiple: u64, tied: bool) {
    let multiple = top.get("pad_vocab_size_multiple").and_then(whole).unwrap_or(multiple);
    let padded = top.get("vocab_size").and_then(whole).filter(|n| *n <= 1 << 22);
    if let Some(padded) = padded.filter(|_| (1..=1 << 16).contains(&multiple)) {
        top.insert("vocab_size".to_owned(), padded.next_multiple_of(multiple).into());
    }
    let stated = top.remove("tie_embeddings").unwrap_or(Value::Bool(tied));
    top.entry("tie_word_embeddings").or_insert(stated);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::super::{parse, parse_params};
    use crate::model::arch::Certainty;
    use crate::model::tensors::total;

    /// `Mamba-Codestral-7B-v0.1` holds 7,285,403,648 values.
    #[test]
    fn groups_make_it_the_second_mamba() {
        let codestral = br#"{"dim":4096,"n_layers":64,"vocab_size":32768,"n_groups":8,"rms_norm":true,
            "residual_in_fp32":true,"fused_add_norm":true,"pad_vocab_size_multiple":1,"tie_embeddings":false,
            "model_type":"mamba"}"#;
        let drawn = parse_params(codestral).unwrap().blueprint(None).0.unwrap();
        assert_eq!(total(&drawn.tensors), 14_570_807_296);
        assert_eq!((drawn.certainty, drawn.tied), (Certainty::Exact, false));
    }

    /// `mamba-1.4b` and `mamba2-1.3b`: values as counted from `mamba_ssm/modules`.
    #[test]
    fn state_spaces_has_a_format_of_its_own() {
        let of = |layer: &str, more: &str| {
            let json = format!(
                r#"{{"d_model":2048,"n_layer":48,"vocab_size":50277,"ssm_cfg":{layer},"rms_norm":true,
                "residual_in_fp32":true,"fused_add_norm":true{more}}}"#
            );
            let read = parse(json.as_bytes()).unwrap();
            let drawn = read.blueprint(None).0.unwrap();
            (total(&drawn.tensors), drawn.certainty, drawn.tied, read.vocab_size)
        };
        let second = r#","pad_vocab_size_multiple":16,"tie_embeddings":true,"d_intermediate":0,"attn_layer_idx":[]"#;
        // The type of values is not stated.
        let found = of(r#"{"layer":"Mamba2"}"#, second);
        assert_eq!(found, (2 * 1_343_757_312, Certainty::Close, true, Some(50_288)));
        let found = of("{}", r#","pad_vocab_size_multiple":8"#);
        assert_eq!(found, (2 * 1_372_178_432, Certainty::Close, true, Some(50_280)));
        let hybrid = second.replace("[]", "[5,11]");
        assert_eq!(of(r#"{"layer":"Mamba2"}"#, &hybrid).1, Certainty::Guess);
    }
}

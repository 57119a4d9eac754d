//! Flags that add or take away something small, as `transformers` builds these families.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use super::Certainty;
use crate::model::estimate::tests::facts;

/// Bytes more than without the flag, in 16 bits.
fn more(kind: &str, numbers: &str, flag: &str) -> i64 {
    let of = |flag: &str| {
        let json = format!(
            r#"{{"model_type":"{kind}","num_hidden_layers":4,"torch_dtype":"bfloat16"{numbers}{flag}}}"#
        );
        i64::try_from(facts(&json).weight_bytes.0).unwrap()
    };
    of(flag) - of("")
}

#[test]
fn flags_add_what_their_family_makes_of_them() {
    let hybrid = r#","layers_block_type":["linear_attention","moe","full_attention","mlp"]"#;
    for (kind, numbers, flag, values) in [
        // A norm after the last layer, and the values of all nine.
        ("opt", "", r#","_remove_final_layer_norm":true"#, -2 * 768),
        ("opt", "", r#","layer_norm_elementwise_affine":false"#, -9 * 2 * 768),
        // The output has none.
        ("helium", r#","hidden_size":2560"#, r#","attention_bias":true"#, 4 * 3 * 2_560),
        ("falcon_h1", "", r#","projectors_bias":true"#, 4 * 4_096),
        ("nemotron_h", hybrid, r#","attention_bias":true"#, 0),
        ("nemotron_h", hybrid, r#","mamba_proj_bias":true"#, 0),
        ("nemotron_h", hybrid, r#","mlp_bias":true"#, 21_504 + 4_096 + 7_688 + 4_096),
        ("deepseek_v2", "", r#","mlp_bias":true"#, 4 * (2 * 2 * 1_407 + 4_096)),
    ] {
        assert_eq!(more(kind, numbers, flag), 2 * values, "{kind} {flag}");
    }
    // What is shared of a head is its weight.
    for (kind, vocab, hidden) in [("phi", 51_200, 2_048), ("gptj", 50_400, 4_096)] {
        let tied = more(kind, "", r#","tie_word_embeddings":true"#);
        assert_eq!(tied, -2 * vocab * hidden, "{kind}");
    }
}

#[test]
fn a_number_of_experts_may_be_that_of_none() {
    let doge = |moe: &str| {
        facts(&format!(
            r#"{{"model_type":"doge","num_hidden_layers":4,"torch_dtype":"bfloat16","num_experts":16384{moe}}}"#
        ))
    };
    assert_eq!(doge("").weight_bytes, doge(r#","is_moe":false"#).weight_bytes);
    assert!(doge("").tensors.iter().all(|t| !t.name.contains("experts")));
    assert!(doge(r#","is_moe":true"#).tensors.iter().any(|t| t.name.contains("experts")));
}

#[test]
fn without_a_vocabulary_nothing_is_exact() {
    let model = facts(r#"{"model_type":"llama","vocab_size":null,"torch_dtype":"bfloat16"}"#);
    assert_eq!(model.certainty, Certainty::Guess);
    let old = facts(r#"{"model_type":"stablelm_epoch","torch_dtype":"bfloat16"}"#);
    let new = facts(r#"{"model_type":"stablelm","torch_dtype":"bfloat16"}"#);
    assert_eq!((old.weight_bytes, old.certainty), (new.weight_bytes, new.certainty));
}

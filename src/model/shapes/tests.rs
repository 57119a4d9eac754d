//! Models whose configuration says too little, beside files whose tensors tell.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use super::*;
use crate::model::estimate::tests::rules;
use crate::model::inspect::tests::{files, inspect};
use crate::model::safetensors::tests::file;
use crate::model::{Setup, predict};

/// A file with tensors of these names and shapes, in BF16.
pub(crate) fn stored(list: &[(String, Vec<u64>)]) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut at = 0;
    for (name, shape) in list {
        let end = at + 2 * shape.iter().product::<u64>();
        entries.push(format!(
            r#""{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{at},{end}]}}"#
        ));
        at = end;
    }
    file(&format!("{{{}}}", entries.join(",")), usize::try_from(at).unwrap())
}

/// Three layers of 4 heads of 16 values, two of them for keys and values, in the shape of Llama.
pub(crate) fn llama(prefix: &str) -> Vec<(String, Vec<u64>)> {
    let mut list = vec![
        (format!("{prefix}embed_tokens.weight"), vec![640, 64]),
        (format!("{prefix}norm.weight"), vec![64]),
        ("lm_head.weight".to_owned(), vec![640, 64]),
    ];
    for layer in 0..3 {
        let at = format!("{prefix}layers.{layer}");
        for (name, shape) in [
            ("input_layernorm", vec![64]),
            ("self_attn.q_proj", vec![64, 64]),
            ("self_attn.k_proj", vec![32, 64]),
            ("self_attn.v_proj", vec![32, 64]),
            ("self_attn.o_proj", vec![64, 64]),
            ("mlp.gate_proj", vec![256, 64]),
            ("mlp.up_proj", vec![256, 64]),
            ("mlp.down_proj", vec![64, 256]),
        ] {
            list.push((format!("{at}.{name}.weight"), shape));
        }
    }
    list
}

fn bytes(list: &[(String, Vec<u64>)]) -> u64 {
    list.iter().map(|(_, shape)| 2 * shape.iter().product::<u64>()).sum()
}

/// What a rank of the first stage holds, but for the table of positions.
fn rank(facts: &ModelFacts, tensor: u64, pipeline: u64) -> crate::model::Bar {
    let facts = ModelFacts { rope_bytes: 0, ..facts.clone() };
    predict(&facts, &Setup { tensor, pipeline, ..Setup::new(rules("vllm")) }).ranks[0].weights
}

#[test]
fn a_vocabulary_that_is_not_stated_is_read_from_its_table() {
    let all = llama("model.");
    let config = br#"{"model_type":"never_heard_of","hidden_size":64,"num_hidden_layers":3,
        "num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":256}"#;
    let there =
        files(&[("/m/config.json", &config[..]), ("/m/model.safetensors", &stored(&all)[..])]);
    let facts = inspect(&there, "/m").unwrap();
    assert_eq!((facts.vocab_size, facts.layout.vocab), (Some(640), 640));
    assert_eq!(rank(&facts, 1, 1).value, bytes(&all));
    let replicated = 2 * (64 + 3 * 64);
    assert_eq!(rank(&facts, 2, 1).value, (bytes(&all) - replicated) / 2 + replicated);
}

#[test]
fn without_a_config_json_tensors_tell_layers_and_heads() {
    let all = llama("model.");
    let file = stored(&all);
    let there = files(&[("/m/model.safetensors", &file), ("/one.safetensors", &file)]);
    for path in ["/m", "/one.safetensors"] {
        let facts = inspect(&there, path).unwrap();
        assert_eq!(facts.layers, Some(3), "{path}");
        assert_eq!(facts.certainty, Certainty::Guess, "{path}");
        // How heads are divided is not known: the bar says so.
        let half = rank(&facts, 2, 1);
        assert!(half.value >= bytes(&all) / 2 && half.value < bytes(&all) * 55 / 100, "{half:?}");
        assert!(half.low < half.value * 9 / 10 && half.high > half.value * 11 / 10, "{half:?}");
        assert_eq!(rank(&facts, 1, 1).value, bytes(&all), "{path}");
        let halves: u64 = predict(&facts, &Setup { pipeline: 2, ..Setup::new(rules("vllm")) })
            .ranks
            .iter()
            .map(|r| r.weights.value)
            .sum();
        assert_eq!(halves, bytes(&all), "{path}");
    }
}

#[test]
fn names_that_tell_nothing_are_divided_plainly() {
    let all = vec![("a".to_owned(), vec![100, 10]), ("b".to_owned(), vec![100, 30])];
    let there = files(&[("/m/model.safetensors", &stored(&all))]);
    let facts = inspect(&there, "/m").unwrap();
    assert_eq!(rank(&facts, 1, 1).value, 8_000);
    for (tensor, pipeline) in [(4, 1), (1, 4)] {
        let bar = rank(&facts, tensor, pipeline);
        assert_eq!((bar.low, bar.value, bar.high), (1_500, 2_000, 2_500));
    }
}

#[test]
fn mistral_s_own_format_is_read() {
    let rename = |name: &str| {
        let name = name.replace("self_attn", "attention").replace("mlp", "feed_forward");
        [
            ("model.", ""),
            ("embed_tokens", "tok_embeddings"),
            ("lm_head", "output"),
            ("input_layernorm", "attention_norm"),
            ("q_proj", "wq"),
            ("k_proj", "wk"),
            ("v_proj", "wv"),
            ("o_proj", "wo"),
            ("gate_proj", "w1"),
            ("down_proj", "w2"),
            ("up_proj", "w3"),
        ]
        .iter()
        .fold(name, |name, (from, to)| name.replace(from, to))
    };
    let all: Vec<_> = llama("model.").into_iter().map(|(n, s)| (rename(&n), s)).collect();
    let params =
        br#"{"dim":64,"n_layers":3,"head_dim":16,"hidden_dim":256,"n_heads":4,"n_kv_heads":2,
        "norm_eps":1e-05,"vocab_size":640}"#;
    let there = files(&[
        ("/m/params.json", &params[..]),
        ("/m/consolidated.safetensors", &stored(&all)[..]),
    ]);
    let facts = inspect(&there, "/m").unwrap();
    assert_eq!((facts.layers, facts.kv_heads, facts.head_dim), (Some(3), Some(2), Some(16)));
    assert_eq!(facts.context, Some(128_000));
    assert_eq!(facts.certainty, Certainty::Exact);
    assert!(facts.files.contains(&"/m/params.json".to_owned()));
    let replicated = 2 * (64 + 3 * 64);
    assert_eq!(rank(&facts, 2, 1).value, (bytes(&all) - replicated) / 2 + replicated);
    // Keys and values of two heads of 16, in three layers, in 16 bits.
    assert_eq!(
        predict(&facts, &Setup::new(rules("vllm"))).ranks[0].cache_per_token.value,
        2 * 2 * 16 * 3 * 2
    );
}

#[test]
fn the_cache_of_an_unknown_architecture_is_what_its_keys_tell() {
    let known = br#"{"model_type":"never_heard_of","hidden_size":64,"num_hidden_layers":3,
        "num_attention_heads":4,"intermediate_size":256,"vocab_size":640}"#;
    let mut all = llama("model.");
    let of = |all: &[(String, Vec<u64>)], config: &[u8]| {
        let there = files(&[("/m/config.json", config), ("/m/model.safetensors", &stored(all))]);
        inspect(&there, "/m").unwrap()
    };
    let bar = |facts: &ModelFacts, tensor| {
        predict(facts, &Setup { tensor, ..Setup::new(rules("vllm")) }).ranks[0].cache_per_token
    };
    let facts = of(&all, known);
    // What is stored is exact, how it is divided is not.
    assert_eq!(facts.certainty, Certainty::Guess);
    let prediction = predict(&facts, &Setup { tensor: 2, ..Setup::new(rules("vllm")) });
    assert_eq!(prediction.weights, crate::model::Bar::exact(bytes(&all)));
    let rank = prediction.ranks[0].weights;
    assert!(rank.high >= rank.value * 114 / 100 && rank.low <= rank.value * 86 / 100);
    // Its two heads of keys are not in config.json: the tensors have them.
    assert_eq!(facts.cache_certainty, Certainty::Exact);
    assert_eq!(facts.kv_heads, Some(2));
    assert_eq!(bar(&facts, 1), crate::model::Bar::exact(2 * 2 * 16 * 3 * 2));
    assert_eq!(bar(&facts, 4), crate::model::Bar::exact(2 * 16 * 3 * 2));

    // Layers that keep something else: a guess, and wide.
    all.retain(|(name, _)| !name.contains("layers.1.self_attn.k_proj"));
    let facts = of(&all, known);
    assert_eq!(facts.cache_certainty, Certainty::Guess);
    let wide = bar(&facts, 1);
    assert!(wide.low * 2 < wide.value && wide.high * 10 > wide.value * 13, "{wide:?}");

    // Latent vectors, without a word of them in config.json.
    let mut latent: Vec<_> = llama("model.")
        .into_iter()
        .filter(|(n, _)| !n.contains("k_proj") && !n.contains("v_proj"))
        .collect();
    for layer in 0..3 {
        let at = format!("model.layers.{layer}.self_attn");
        latent.push((format!("{at}.kv_a_proj_with_mqa.weight"), vec![40, 64]));
        latent.push((format!("{at}.kv_a_layernorm.weight"), vec![32]));
    }
    let facts = of(&latent, known);
    assert_eq!(bar(&facts, 4), crate::model::Bar::exact(40 * 3 * 2));

    // Queries, keys and values in one projection.
    let mut fused = llama("model.");
    fused.retain(|(name, _)| !name.contains("k_proj") && !name.contains("v_proj"));
    for (name, shape) in fused.iter_mut().filter(|(name, _)| name.contains("q_proj")) {
        *name = name.replace("q_proj", "qkv_proj");
        shape[0] += 64;
    }
    let facts = of(&fused, known);
    assert_eq!((facts.kv_heads, facts.cache_certainty), (Some(2), Certainty::Exact));
    assert_eq!(bar(&facts, 1), crate::model::Bar::exact(2 * 2 * 16 * 3 * 2));

    // Heads wider than their share of the hidden size, which config.json does not say.
    let mut wide = llama("model.");
    for (name, shape) in &mut wide {
        if name.contains("q_proj") || name.contains("k_proj") || name.contains("v_proj") {
            shape[0] *= 2;
        } else if name.contains("o_proj") {
            shape[1] *= 2;
        }
    }
    let facts = of(&wide, known);
    assert_eq!((facts.head_dim, facts.kv_heads), (Some(32), Some(2)));
    assert_eq!(bar(&facts, 2), crate::model::Bar::exact(2 * 32 * 3 * 2));

    // Nothing to go by but config.json: a usual decoder's cache under a wide bar.
    let alone = of(&[("w".to_owned(), vec![64, 64])], known);
    let wide = bar(&alone, 1);
    assert!(wide.low < wide.value && wide.high > wide.value, "{wide:?}");
}

#[test]
fn what_only_speaks_is_not_loaded() {
    let thinker = llama("thinker.model.");
    let mut all = thinker.clone();
    all.extend(llama("talker.model.").into_iter().filter(|(n, _)| n.starts_with("talker")));
    all.push((
        "token2wav.code2wav_dit_model.transformer_blocks.0.attn.to_q.weight".into(),
        vec![64, 64],
    ));
    all.push(("code2wav.decoder.0.weight".into(), vec![64, 64]));
    let config = br#"{"model_type":"qwen2_5_omni","thinker_config":{"text_config":{"model_type":"qwen2_5_omni_text",
        "hidden_size":64,"num_hidden_layers":3,"num_attention_heads":4,"num_key_value_heads":2,
        "intermediate_size":256,"vocab_size":640}}}"#;
    let there =
        files(&[("/m/config.json", &config[..]), ("/m/model.safetensors", &stored(&all)[..])]);
    let facts = inspect(&there, "/m").unwrap();
    assert_eq!(facts.certainty, Certainty::Exact);
    assert_eq!(facts.weight_bytes.0, bytes(&all));
    assert_eq!(rank(&facts, 1, 1).value, bytes(&thinker));
}

/// As a name of a layer's kind that is newer than this program would have it.
#[test]
fn keys_and_values_in_the_files_of_layers_that_are_called_recurrent_are_counted() {
    let config = |kind: &str| {
        format!(
            r#"{{"architectures":["GraniteMoeHybridForCausalLM"],"model_type":"granitemoehybrid","hidden_size":64,
            "num_hidden_layers":3,"num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":256,
            "shared_intermediate_size":256,"vocab_size":640,"layer_types":["{kind}","{kind}","{kind}"],
            "mamba_n_heads":4,"mamba_d_head":32,"mamba_d_state":16,"tie_word_embeddings":false,"torch_dtype":"bfloat16"}}"#
        )
    };
    let of = |kind: &str| {
        let all = stored(&llama("model."));
        inspect(
            &files(&[("/m/config.json", config(kind).as_bytes()), ("/m/model.safetensors", &all)]),
            "/m",
        )
        .unwrap()
    };
    let (known, newer) = (of("full_attention"), of("some_attention"));
    assert!(matches!(known.caches[0].keeps, Keeps::Attention { kv_heads: 2, .. }), "{known:?}");
    assert_eq!(newer.caches, known.caches);
    assert_eq!(newer.cache_certainty, Certainty::Guess);
    assert!(
        newer.notes.iter().any(|n| n.contains("recurrent in config.json")),
        "{:?}",
        newer.notes
    );
    // Linear attention has keys and values, too, and a part that says what it is (MiniMax).
    let mut lightning = llama("model.");
    for layer in 0..3 {
        lightning
            .push((format!("model.layers.{layer}.self_attn.output_gate.weight"), vec![64, 64]));
    }
    let (all, config) = (stored(&lightning), config("mamba"));
    let there = files(&[("/m/config.json", config.as_bytes()), ("/m/model.safetensors", &all)]);
    let linear = inspect(&there, "/m").unwrap();
    assert!(matches!(linear.caches[0].keeps, Keeps::State { .. }), "{linear:?}");
}

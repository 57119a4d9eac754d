//! What llama.cpp keeps for the layers of architectures that differ from the usual.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use crate::model::cache::{CacheBits, Keeps};
use crate::model::estimate::tests::rules;
use crate::model::gguf::tests::Builder;
use crate::model::inspect::tests::{files, inspect};
use crate::model::{ModelFacts, Setup, predict};

/// A model of `layers` layers with 8 heads of 32 values, 2 of them for keys and values.
fn model(kind: &str, layers: u32) -> Builder {
    let key = |name: &str| format!("{kind}.{name}");
    Builder::default()
        .string("general.architecture", kind)
        .u32(&key("block_count"), layers)
        .u32(&key("context_length"), 131_072)
        .u32(&key("embedding_length"), 256)
        .u32(&key("attention.head_count"), 8)
        .u32(&key("attention.key_length"), 32)
        .u32(&key("attention.value_length"), 32)
        .tensor("token_embd.weight", &[256, 64], 1)
        .tensor("output.weight", &[256, 64], 1)
}

fn facts(builder: &Builder) -> ModelFacts {
    inspect(&files(&[("/m.gguf", &builder.file())]), "/m.gguf").unwrap()
}

/// The windows of all layers with attention; 0: none.
fn windows(facts: &ModelFacts) -> Vec<u64> {
    let attention = |k: &Keeps| matches!(k, Keeps::Attention { .. });
    let caches = facts.caches.iter().map(|c| c.keeps).filter(attention);
    caches.map(|k| k.window().unwrap_or(0)).collect()
}

/// Layers with a state.
fn states(facts: &ModelFacts) -> Vec<u32> {
    facts.caches.iter().filter(|c| c.keeps.per_request(1) > 0).map(|c| c.layer).collect()
}

/// Layers with attention.
fn attention(facts: &ModelFacts) -> Vec<u32> {
    let attention = |k: Keeps| k.per_token(1, CacheBits::HALF).is_some();
    facts.caches.iter().filter(|c| attention(c.keeps)).map(|c| c.layer).collect()
}

/// `key_length` is that of the cached vector there, and no head's.
#[test]
fn latent_attention_has_sizes_of_its_own() {
    let builder = model("deepseek2", 2)
        .u32("deepseek2.attention.kv_lora_rank", 512)
        .u32("deepseek2.rope.dimension_count", 64)
        .u32("deepseek2.attention.key_length_mla", 192)
        .u32("deepseek2.attention.value_length_mla", 128);
    let facts = facts(&builder);
    assert_eq!((facts.head_dim, facts.value_head_dim), (Some(192), Some(128)));
    let text = facts.summary().join("\n");
    assert!(text.contains("keys of 128 + 64, values of 128, 512 + 64 cached"), "{text}");
}

#[test]
fn windows_follow_the_pattern_of_the_architecture() {
    let of = |kind: &str, size: Option<u32>| {
        let builder = model(kind, 6).u32(&format!("{kind}.attention.head_count_kv"), 2);
        let builder = match size {
            Some(size) => builder.u32(&format!("{kind}.attention.sliding_window"), size),
            None => builder,
        };
        windows(&facts(&builder))
    };
    // Chunks of 8192 that the file does not state, every fourth layer without; 0: none.
    assert_eq!(of("llama4", None), [8_192, 8_192, 8_192, 0, 8_192, 8_192]);
    assert_eq!(of("llama4", Some(0)), [0; 6]);
    assert_eq!(of("gemma2", Some(4_096)), [4_096, 0, 4_096, 0, 4_096, 0]);
    assert_eq!(of("gemma3", Some(512)), [512, 512, 512, 512, 512, 0]);
    assert_eq!(of("smallthinker", Some(64)), [0, 64, 64, 64, 0, 64]);
    assert_eq!(of("phi3", Some(64)), [0; 6]);
    let gemma4 = model("gemma4", 3)
        .u32("gemma4.attention.head_count_kv", 2)
        .u32("gemma4.attention.sliding_window", 512)
        .u32("gemma4.attention.key_length_swa", 16)
        .u32("gemma4.attention.value_length_swa", 16);
    let listed = gemma4.clone().u32s("gemma4.attention.sliding_window_pattern", &[1, 0, 1]);
    assert_eq!(windows(&facts(&listed)), [512, 0, 512]);
    let key = |facts: &ModelFacts, layer: usize| match facts.caches[layer].keeps {
        Keeps::Attention { key, .. } => key,
        _ => 0,
    };
    assert_eq!((key(&facts(&listed), 0), key(&facts(&listed), 1)), (16, 32));
    let every = gemma4.u32("gemma4.attention.sliding_window_pattern", 3);
    assert_eq!(windows(&facts(&every)), [512, 512, 0]);
}

#[test]
fn layers_that_share_a_cache_keep_none() {
    let gemma3n = model("gemma3n", 30)
        .u32("gemma3n.attention.head_count_kv", 2)
        .u32("gemma3n.attention.sliding_window", 512);
    let found = facts(&gemma3n);
    assert_eq!((found.layers, found.caches.len()), (Some(30), 20));
    assert_eq!(windows(&found)[3..6], [512, 0, 512]);
    let stated = gemma3n.u32("gemma3n.attention.shared_kv_layers", 5);
    assert_eq!(facts(&stated).caches.len(), 25);
}

fn mamba(builder: Builder, kind: &str) -> Builder {
    builder
        .u32(&format!("{kind}.ssm.conv_kernel"), 4)
        .u32(&format!("{kind}.ssm.inner_size"), 512)
        .u32(&format!("{kind}.ssm.state_size"), 128)
        .u32(&format!("{kind}.ssm.group_count"), 2)
}

#[test]
fn hybrids_keep_what_each_layer_has() {
    // Three values of the convolution's channels, and the state, in 32 bits.
    let one = 4 * (3 * (512 + 2 * 2 * 128) + 512 * 128);
    let request = |facts: &ModelFacts| {
        predict(facts, &Setup::new(rules("llamacpp"))).ranks[0].state_per_request.value
    };
    // Both in every layer.
    let falcon =
        mamba(model("falcon-h1", 3), "falcon-h1").u32("falcon-h1.attention.head_count_kv", 2);
    let found = facts(&falcon);
    assert_eq!((attention(&found), states(&found)), (vec![0, 1, 2], vec![0, 1, 2]));
    assert_eq!(request(&found), 3 * one);
    // One thing a layer: state, feed-forward, attention, feed-forward.
    let nemotron = mamba(model("nemotron_h", 4), "nemotron_h")
        .u32s("nemotron_h.attention.head_count_kv", &[0, 0, 2, 0])
        .u32s("nemotron_h.feed_forward_length", &[0, 1024, 0, 1024]);
    let found = facts(&nemotron);
    assert_eq!((attention(&found), states(&found)), (vec![2], vec![0]));
    assert_eq!(request(&found), one);
    // States where there are no heads for keys and values.
    let jamba = mamba(model("jamba", 3), "jamba").u32s("jamba.attention.head_count_kv", &[0, 2, 0]);
    let found = facts(&jamba);
    assert_eq!((attention(&found), states(&found)), (vec![1], vec![0, 2]));
    // Every fourth layer has attention, whether or not the file says so.
    let qwen =
        mamba(model("qwen3next", 5), "qwen3next").u32("qwen3next.attention.head_count_kv", 2);
    let found = facts(&qwen);
    assert_eq!((attention(&found), states(&found)), (vec![3], vec![0, 1, 2, 4]));
    // No attention at all, and no heads.
    let plain = mamba(
        Builder::default()
            .string("general.architecture", "mamba2")
            .u32("mamba2.block_count", 2)
            .u32("mamba2.embedding_length", 256)
            .u32("mamba2.attention.head_count", 0)
            .tensor("token_embd.weight", &[256, 64], 1),
        "mamba2",
    );
    let found = facts(&plain);
    assert_eq!((attention(&found), states(&found)), (vec![], vec![0, 1]));
    let lfm = model("lfm2", 2)
        .u32s("lfm2.attention.head_count_kv", &[0, 2])
        .u32("lfm2.shortconv.l_cache", 3);
    let found = facts(&lfm);
    assert_eq!((attention(&found), states(&found)), (vec![1], vec![0]));
    assert_eq!(request(&found), 256 * 2 * 4);
}

#[test]
fn layers_for_speculative_decoding_are_not_loaded() {
    let layer = |builder: Builder, n: u32| {
        builder.tensor(&format!("blk.{n}.attn_q.weight"), &[256, 256], 1).tensor(
            &format!("blk.{n}.attn_k.weight"),
            &[256, 64],
            1,
        )
    };
    let mut glm = model("glm4moe", 3)
        .u32("glm4moe.attention.head_count_kv", 2)
        .u32("glm4moe.nextn_predict_layers", 1);
    for n in 0..3 {
        glm = layer(glm, n);
    }
    glm = glm.tensor("blk.2.nextn.eh_proj.weight", &[512, 256], 1);
    let found = facts(&glm);
    assert_eq!((found.layers, attention(&found)), (Some(2), vec![0, 1]));
    let answer = predict(&found, &Setup::new(rules("llamacpp")));
    let each = (256 * 256 + 256 * 64) * 2;
    // The embedding's rows are read on the host.
    let table = 256 * 64 * 2;
    assert_eq!(answer.ranks[0].weights.value, 2 * each + table);
    assert_eq!(answer.weights.value, 3 * each + 2 * table + 512 * 256 * 2);
}

/// What llama.cpp would not load is no figure either.
#[test]
fn numbers_that_cannot_be_are_named_by_their_key() {
    let bare = || Builder::default().string("general.architecture", "llama").tensor("x", &[32], 1);
    let layers = |n| bare().u32("llama.block_count", n);
    for (builder, words) in [
        (Builder::default().tensor("x", &[32], 1), "no `general.architecture`"),
        (bare(), "no number `llama.block_count`"),
        (layers(0), "`llama.block_count` is 0"),
        (layers(4_000_000_000), "`llama.block_count` is 4000000000"),
        (layers(513), "1 to 512 layers"),
        (layers(4).u32("llama.attention.head_count", 0), "`llama.attention.head_count` is 0"),
        (layers(4).u32("llama.attention.head_count", 1 << 20), "`llama.attention.head_count` is"),
        (layers(4).u32("llama.embedding_length", u32::MAX), "`llama.embedding_length` is"),
    ] {
        let error = inspect(&files(&[("/m.gguf", &builder.file())]), "/m.gguf").unwrap_err();
        assert!(error.to_string().starts_with("/m.gguf is broken: "), "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    // Without heads nothing is known of the cache.
    assert_eq!(facts(&layers(512)).cache_certainty, crate::model::facts::Certainty::Guess);
}

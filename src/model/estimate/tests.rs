//! Predictions against published totals and what engines logged. The rows are in `tests/vectors`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small numbers of tests
use serde_json::Value;

use super::*;
use crate::model::tensors;
use crate::model::{ModelFormat, hf_config};

const TOTALS: &str = include_str!("../../../tests/vectors/totals.jsonl");
const FAMILIES: &str = include_str!("../../../tests/vectors/families.jsonl");
const ALLOCATIONS: &str = include_str!("../../../tests/vectors/allocations.jsonl");
const H100: &str = include_str!("../../../tests/vectors/h100.jsonl");

/// As `engine::memory` has them; this floor does not know that one.
pub(crate) fn rules(engine: &str) -> Rules {
    let base = Rules {
        engine: "vllm",
        split: WeightSplit::Tensors,
        data_inside: false,
        remainder: Remainder::BeforeLast,
        pool: Pool::Groups,
        budget: Budget::Share,
        vocabulary: 64,
        block: 16,
        utilisation: 0.92,
        utilisation_low: 0.9,
        batch: 8_192,
        batch_small: 2_048,
        batch_largest: 16_384,
        requests: 256,
        requests_large: 1_024,
        context: Bar::mib(277, 50, 700),
        communication: Bar::mib(1_000, 300, 1_874),
        graphs: Bar::mib(700, 300, 2_300),
        loading: Bar::default(),
    };
    match engine {
        "sglang" => Rules {
            pool: Pool::Tokens,
            data_inside: true,
            remainder: Remainder::Last,
            block: 1,
            loading: Bar::mib(145, 60, 320),
            ..base
        },
        "llamacpp" => Rules {
            pool: Pool::Cells,
            split: WeightSplit::Layers,
            remainder: Remainder::WithOutput,
            block: 256,
            batch: 512,
            batch_small: 512,
            batch_largest: 512,
            requests: 4,
            requests_large: 4,
            ..base
        },
        _ => base,
    }
}

/// Facts from a configuration alone, as an inspection of such a directory finds them.
pub(crate) fn facts(config: &str) -> ModelFacts {
    let read = hf_config::parse(config.as_bytes()).unwrap();
    let mut facts = ModelFacts::unknown(ModelFormat::Safetensors, "/m".to_owned());
    read.fill(&mut facts);
    let (blueprint, quantisation) = read.blueprint(None);
    let blueprint = blueprint.unwrap_or_else(|| panic!("{config}"));
    facts.weight_bytes = crate::base::Bytes(tensors::total(&blueprint.tensors));
    facts.tensors = blueprint.tensors;
    facts.caches = blueprint.caches;
    facts.layout = blueprint.layout;
    facts.tied = blueprint.tied;
    facts.certainty = blueprint.certainty;
    facts.spread = Some(blueprint.spread);
    facts.cache_certainty = blueprint.family;
    facts.cache_spread = blueprint.cache_spread;
    facts.unloaded_bytes = crate::base::Bytes(blueprint.unloaded);
    facts.notes = blueprint.notes;
    facts.layers = Some(blueprint.layout.layers);
    facts.cache_fp8 = quantisation.cache_fp8;
    facts
}

fn rows(text: &str) -> Vec<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn totals_are_those_of_published_indexes_to_the_byte() {
    for row in rows(TOTALS) {
        let facts = facts(row[1].as_str().unwrap());
        assert_eq!(facts.weight_bytes.0, row[2].as_u64().unwrap(), "{}", row[0]);
        let cache = predict(&facts, &Setup::new(rules("vllm"))).ranks[0].cache_per_token;
        if row[3] != 0 {
            assert_eq!(cache, Bar::exact(row[3].as_u64().unwrap()), "{}", row[0]);
        }
    }
}

#[test]
fn totals_of_families_are_exact() {
    let rows = rows(FAMILIES);
    assert!(rows.len() > 60);
    for row in rows {
        let facts = facts(row[0].as_str().unwrap());
        assert_eq!(facts.weight_bytes.0, row[1].as_u64().unwrap(), "{}", row[0]);
        assert_eq!(facts.certainty, Certainty::Exact, "{}", row[0]);
        assert!(!facts.caches.is_empty(), "{}", row[0]);
    }
}

fn quantile(errors: &mut [f64], share: f64) -> f64 {
    errors.sort_by(f64::total_cmp);
    errors[((errors.len() - 1) as f64 * share) as usize]
}

#[test]
fn predictions_are_near_what_engines_logged() {
    let (mut weights, mut tokens) = (Vec::new(), Vec::new());
    for row in rows(ALLOCATIONS) {
        let text = |i: usize| row[i].as_str().unwrap();
        let number = |i: usize| row[i].as_f64().unwrap();
        let bytes = |i: usize| (number(i) * (1u64 << 30) as f64) as u64;
        let some = |n: u64| (n > 0).then_some(n);
        let facts = facts(text(1));
        let setup = Setup {
            tensor: number(3) as u64,
            pipeline: number(4) as u64,
            data: number(5) as u64,
            cache: CacheBits::named(text(6)),
            block: some(number(7) as u64),
            batch: some(number(8) as u64),
            context: some(number(9) as u64),
            cache_available: some(bytes(10)),
            ..Setup::new(rules(text(2)))
        };
        let answer = predict(&facts, &setup);
        let mut line = format!("{:<18}", text(0));
        if number(12) > 0.0 {
            let got = answer.ranks.iter().map(|r| r.weights.value).max().unwrap();
            let error = got as f64 / bytes(12) as f64 - 1.0;
            weights.push(error.abs());
            line += &format!(" weights {:+.2} %", 100.0 * error);
        }
        if number(10) > 0.0 && number(11) > 0.0 {
            let error = answer.tokens.unwrap().value as f64 / number(11) - 1.0;
            tokens.push(error.abs());
            line += &format!(" tokens {:+.2} %", 100.0 * error);
        }
        if number(13) > 0.0 {
            let got = answer.ranks.iter().map(|r| r.cache_needed.value).max().unwrap();
            let error = got as f64 / bytes(13) as f64 - 1.0;
            line += &format!(" needed {:+.2} %", 100.0 * error);
            assert!(error.abs() < 0.01, "{line}");
        }
        if number(14) > 0.0 && number(10) > 0.0 && number(9) > 0.0 {
            assert_eq!(answer.fits, Some(false), "{line}: the engine refused it");
        }
        println!("{line}");
    }
    for (name, errors, median, nine_of_ten) in
        [("weights", &mut weights, 0.01, 0.03), ("tokens", &mut tokens, 0.03, 0.08)]
    {
        let (half, most) = (quantile(errors, 0.5), quantile(errors, 0.9));
        println!(
            "{name}: {} rows, median {:.2} %, nine in ten within {:.2} %",
            errors.len(),
            100.0 * half,
            100.0 * most
        );
        assert!(half <= median && most <= nine_of_ten, "{name}: {half} {most}");
    }
}

/// Nothing of the engine's own is given: the share of the GPU, and what was asked for.
#[test]
fn a_whole_h100_is_foreseen_as_vllm_found_it() {
    let (mut weights, mut tokens) = (Vec::new(), Vec::new());
    for row in rows(H100) {
        let text = |i: usize| row[i].as_str().unwrap();
        let number = |i: usize| row[i].as_f64().unwrap();
        let some = |i: usize| (number(i) > 0.0).then(|| number(i) as u64);
        let setup = Setup {
            gpu: Some(81_090 << 20),
            utilisation: Some(number(2)),
            context: some(3),
            requests: some(4),
            batch: some(5),
            eager: number(6) > 0.0,
            cache: CacheBits::named(text(7)),
            ..Setup::new(rules("vllm"))
        };
        let answer = predict(&facts(text(1)), &setup);
        let gib = |i: usize| number(i) * (1u64 << 30) as f64;
        let foreseen = answer.ranks[0].weights.value as f64;
        weights.push((foreseen / gib(8) - 1.0).abs());
        if number(12) > 0.0 {
            assert_ne!(answer.fits, Some(true), "{}: it refused", text(0));
            continue;
        }
        assert_eq!(answer.fits, Some(true), "{}", text(0));
        let bar = answer.tokens.unwrap();
        let error = bar.value as f64 / number(10) - 1.0;
        println!("{:<18} tokens {:+.2} %", text(0), 100.0 * error);
        assert!((bar.low as f64..=bar.high as f64).contains(&number(10)), "{}", text(0));
        tokens.push(error.abs());
    }
    let (half, most) = (quantile(&mut tokens, 0.5), quantile(&mut tokens, 1.0));
    assert!(half <= 0.015 && most <= 0.03, "{half} {most}");
    assert!(quantile(&mut weights, 1.0) <= 0.005, "{weights:?}");
}

#[test]
fn uneven_layers_go_where_the_engine_puts_them() {
    let counts = |layers, stages_, rule| -> Vec<u64> {
        stages(layers, stages_, rule).iter().map(|(a, b)| b - a).collect()
    };
    assert_eq!(counts(61, 4, Remainder::BeforeLast), [15, 15, 16, 15]);
    assert_eq!(counts(62, 4, Remainder::BeforeLast), [15, 16, 16, 15]);
    assert_eq!(counts(63, 4, Remainder::BeforeLast), [16, 16, 16, 15]);
    assert_eq!(counts(5, 2, Remainder::BeforeLast), [3, 2]);
    assert_eq!(counts(61, 4, Remainder::Last), [15, 15, 15, 16]);
    // 33 pieces with the output: 17 and 16 of them, the last is the output itself.
    assert_eq!(counts(32, 2, Remainder::WithOutput), [17, 15]);
    assert_eq!(counts(0, 3, Remainder::Last), [0, 0, 0]);
}

const LLAMA: &str = r#"{"model_type":"llama","torch_dtype":"bfloat16","hidden_size":4096,"num_hidden_layers":4,
    "num_attention_heads":32,"num_key_value_heads":2,"intermediate_size":8192,"vocab_size":32001,
    "max_position_embeddings":4096,"tie_word_embeddings":false}"#;

#[test]
fn ranks_divide_weights_and_replicate_what_cannot_be_divided() {
    let facts = facts(LLAMA);
    let setup = |tensor, pipeline| Setup { tensor, pipeline, ..Setup::new(rules("vllm")) };
    let of = |tensor, pipeline| predict(&facts, &setup(tensor, pipeline));
    let rope = 4_096 * 128 * 2;
    let layer = (2 * 4096 * 4096 + 2 * 256 * 4096 + 3 * 8192 * 4096 + 2 * 4096) * 2;
    // The vocabulary is padded to 32064 rows.
    let table = 32_064 * 4096 * 2;
    assert_eq!(of(1, 1).ranks[0].weights.value, 2 * table + 4 * layer + 4096 * 2 + rope);
    // Four ranks share two key/value heads: each holds one whole, norms are on all.
    let quarter = (2 * 4096 * 4096 / 4 + 2 * 256 * 4096 / 2 + 3 * 8192 * 4096 / 4 + 2 * 4096) * 2;
    let four = of(4, 1);
    assert_eq!(four.ranks.len(), 4);
    assert_eq!(four.ranks[3].weights.value, 2 * table / 4 + 4 * quarter + 4096 * 2 + rope);
    assert_eq!(four.ranks[0].cache_per_token, of(2, 1).ranks[0].cache_per_token);
    // Stages: the embedding with the first, the last norm and the head with the last.
    let two = of(1, 2);
    assert_eq!(two.ranks[0].weights.value, table + 2 * layer + rope);
    assert_eq!(two.ranks[1].weights.value, table + 2 * layer + 4096 * 2 + rope);
}

#[test]
fn experts_are_divided_over_all_ranks_of_a_replica() {
    let moe = r#"{"model_type":"mixtral","torch_dtype":"bfloat16","hidden_size":1024,"num_hidden_layers":2,
        "num_attention_heads":8,"num_key_value_heads":8,"intermediate_size":2048,"vocab_size":1024,
        "num_local_experts":10,"max_position_embeddings":4096}"#;
    let facts = facts(moe);
    let of = |tensor, data, expert| {
        let setup = Setup { tensor, data, expert, ..Setup::new(rules("vllm")) };
        predict(&facts, &setup).ranks[0].weights.value
    };
    let expert = 3 * 1024 * 2048 * 2 * 2;
    // Ten experts over four ranks: three on the fullest of them.
    assert_eq!(of(1, 4, 1) + expert / 2, of(1, 4, 4));
    assert_eq!(of(1, 1, 1) - of(1, 1, 4), 7 * expert);
    assert!(of(4, 1, 1) < of(1, 4, 1), "attention is copied by data parallelism");
}

/// `SGLang`'s `--tp 8 --dp 8 --enable-dp-attention` is eight GPUs, not sixty-four.
#[test]
fn dp_attention_is_inside_tensor_parallelism() {
    let latent = r#"{"model_type":"deepseek_v3","torch_dtype":"bfloat16","hidden_size":1024,"num_hidden_layers":2,
        "num_attention_heads":16,"num_key_value_heads":16,"intermediate_size":2048,"vocab_size":1024,
        "n_routed_experts":16,"n_shared_experts":1,"moe_intermediate_size":512,"first_k_dense_replace":1,
        "num_nextn_predict_layers":0,"q_lora_rank":256,"kv_lora_rank":128,"qk_rope_head_dim":32,
        "qk_nope_head_dim":64,"v_head_dim":64,"max_position_embeddings":4096,"tie_word_embeddings":false}"#;
    let setup = |tensor, data, engine| Setup { tensor, data, ..Setup::new(rules(engine)) };
    let of = |facts: &ModelFacts, tensor, data, engine| {
        predict(facts, &setup(tensor, data, engine)).ranks
    };
    let facts_ = facts(latent);
    let share = |t: &tensors::Tensor, rank: u64| {
        let name = t.name.as_str();
        // Attention and the embedding are whole on each of the eight copies, norms and routers too.
        let all = tensors::is_mixer(name)
            || name.contains("embed_tokens")
            || name.contains("norm")
            || name.contains("gate.");
        if all { t.total() } else { t.total() / rank }
    };
    let expected: u64 = facts_.tensors.iter().map(|t| share(t, 8)).sum();
    let inside = of(&facts_, 8, 8, "sglang");
    assert_eq!(inside.len(), 8);
    assert_eq!(inside[0].weights.value, expected + (145 << 20));
    // Options keep dense layers, shared experts and the head whole, too.
    let rest: u64 = facts_
        .tensors
        .iter()
        .filter(|t| !t.name.contains(".experts.") && share(t, 8) < t.total())
        .map(|t| t.total() - share(t, 8))
        .sum();
    let high = crate::model::tensors::mul_div(expected, 1_020, 1_000) + (64 << 20) + rest;
    assert_eq!(inside[0].weights.high, high + (320 << 20));
    assert_eq!(setup(8, 8, "sglang").gpus(&facts_), 8);
    assert_eq!(setup(8, 8, "vllm").gpus(&facts_), 64);
    assert!(of(&facts_, 8, 8, "vllm")[0].weights.value < expected);

    // Grouped queries: the heads of a copy are divided over the ranks of that copy alone.
    let grouped = r#"{"model_type":"qwen3_moe","torch_dtype":"bfloat16","num_hidden_layers":2,"hidden_size":1024,
        "num_attention_heads":16,"num_key_value_heads":8,"head_dim":64,"intermediate_size":2048,"vocab_size":1024,
        "num_experts":16,"moe_intermediate_size":512,"max_position_embeddings":4096}"#;
    let facts_ = facts(grouped);
    let of = |tensor, data| of(&facts_, tensor, data, "sglang")[0].cache_per_token.value;
    assert_eq!(of(8, 4), of(2, 1));
    assert_eq!(of(8, 8), of(1, 1));
    // A copy each on GPUs of its own, where they do not divide the ranks, or without experts.
    assert_eq!(of(1, 8), of(1, 1));
    let dense = facts(LLAMA);
    assert_eq!(setup(2, 2, "sglang").gpus(&dense), 4);
}

#[test]
fn what_keeps_nothing_does_not_fit_for_that() {
    let mut facts = facts(LLAMA);
    let setup = |pipeline| Setup { gpu: Some(80 << 30), pipeline, ..Setup::new(rules("vllm")) };
    // The last stage has no attention: it holds as many tokens as the first.
    facts.caches.retain(|c| c.layer < 2);
    assert!(predict(&facts, &setup(2)).tokens.unwrap().value > 0);
    assert_eq!(predict(&facts, &setup(2)).fits, Some(true));
    facts.caches.clear();
    let unknown = predict(&facts, &setup(1));
    assert_eq!((unknown.tokens, unknown.requests, unknown.fits), (None, None, Some(false)));
    assert!(unknown.ranks.iter().all(|r| r.tokens.is_none()));
}

#[test]
fn a_head_that_may_be_tied_is_no_exact_figure() {
    let of = |kind: &str, more: &str| {
        let json = LLAMA
            .replace("\"llama\"", &format!("\"{kind}\""))
            .replace(",\"tie_word_embeddings\":false", more);
        facts(&json)
    };
    let head = 32_001 * 4_096 * 2;
    let untied = of("llama", ",\"tie_word_embeddings\":false");
    // Known to be tied, or not, without a word.
    let minicpm = of("minicpm", "");
    assert!(minicpm.tied && minicpm.certainty == Certainty::Exact);
    assert_eq!(minicpm.weight_bytes.0 + head, untied.weight_bytes.0);
    let orion = of("orion", "");
    assert!(!orion.tied && orion.certainty == Certainty::Exact);
    // Not known: with the head, and a bar that reaches to what it is without.
    let exaone = of("exaone", "");
    assert_eq!(exaone.certainty, Certainty::Close);
    let bar = predict(&exaone, &Setup::new(rules("vllm"))).weights;
    assert_eq!(bar.value, untied.weight_bytes.0);
    assert!(bar.low <= minicpm.weight_bytes.0 && bar.high < bar.value * 105 / 100, "{bar:?}");
    assert_eq!(of("exaone", ",\"tie_word_embeddings\":true").certainty, Certainty::Exact);
}

#[test]
fn what_is_not_counted_widens_the_bar() {
    let with = |more: &str| {
        let facts = facts(&LLAMA.replacen('{', &format!("{{{more},"), 1));
        (facts.certainty, predict(&facts, &Setup::new(rules("vllm"))).weights)
    };
    let (exact, plain) = with("\"x\":1");
    assert_eq!((exact, plain.low), (Certainty::Exact, plain.high));
    for (more, low, high) in [
        // A whole tower.
        (r#""audio_config":{"hidden_size":64}"#, 0.97, 1.3),
        (
            r#""vision_config":{"model_type":"nobody_knows","hidden_size":64},"audio_config":{}"#,
            0.95,
            1.3,
        ),
        // Bits are stated, details are not known; not even bits.
        (
            r#""quantization_config":{"quant_method":"hqq","quant_config":{"weight_quant_params":{"nbits":4,"group_size":64}}}"#,
            0.9,
            1.1,
        ),
        (r#""quantization_config":{"quant_method":"never_heard_of"}"#, 0.2, 1.05),
    ] {
        let (certainty, bar) = with(more);
        assert_ne!(certainty, Certainty::Exact, "{more}");
        let share = |n: u64| n as f64 / bar.value as f64;
        assert!((share(bar.low) - low).abs() < 0.01, "{more}: {bar:?}");
        assert!((share(bar.high) - high).abs() < 0.01, "{more}: {bar:?}");
    }
}

#[test]
fn nothing_fits_unless_it_surely_does() {
    let facts = facts(LLAMA);
    let setup = |gpu_gib: u64| Setup { gpu: Some(gpu_gib << 30), ..Setup::new(rules("vllm")) };
    assert_eq!(predict(&facts, &Setup::new(rules("vllm"))).fits, None);
    assert_eq!(predict(&facts, &setup(1)).fits, Some(false));
    assert_eq!(predict(&facts, &setup(80)).fits, Some(true));
    let exact = |bytes| {
        let setup = Setup { cache_available: Some(bytes), ..Setup::new(rules("vllm")) };
        predict(&facts, &setup)
    };
    let needed = 4_096 * 4 * 2 * 2 * 128 * 2;
    // One block stands for none, and is not counted on (vLLM since about 0.30).
    let block = needed / 4_096 * 16;
    assert_eq!(exact(needed + block).fits, Some(true));
    assert_eq!(exact(needed).fits, Some(false));
    assert_eq!(exact(needed).tokens.unwrap().value, 4_096);
    assert_eq!(exact(needed - 1).tokens.unwrap().value, 4_080, "whole blocks only");
}

#[test]
fn absurd_setups_do_not_overflow() {
    let facts = facts(LLAMA);
    let huge = Setup {
        tensor: u64::MAX,
        pipeline: u64::MAX,
        data: u64::MAX,
        expert: u64::MAX,
        context: Some(u64::MAX),
        block: Some(u64::MAX),
        gpu: Some(u64::MAX),
        cache_available: Some(u64::MAX),
        batch: Some(u64::MAX / 8),
        ..Setup::new(rules("vllm"))
    };
    for engine in ["vllm", "sglang", "llamacpp"] {
        let _ = predict(&facts, &Setup { rules: rules(engine), ..huge.clone() });
    }
}

/// vLLM `unify_kv_cache_spec_page_size`: layers with fewer heads get longer blocks, not emptier ones.
#[test]
fn layers_whose_tokens_take_less_have_more_of_them_in_a_page() {
    let gemma = r#"{"model_type":"gemma4_text","num_hidden_layers":6,"hidden_size":5376,
        "num_attention_heads":32,"num_key_value_heads":16,"head_dim":256,"sliding_window":1024,
        "num_global_key_value_heads":4,"attention_k_eq_v":true,"hidden_size_per_layer_input":0}"#;
    let setup = Setup { context: Some(32_768), ..Setup::new(rules("vllm")) };
    let rank = predict(&facts(gemma), &setup).ranks[0].clone();
    assert_eq!(rank.cache_per_token, Bar::exact(5 * 16_384 + 8_192));
    // Five groups with a window of 1024, in blocks of 16; one that sees all, in blocks of 32.
    let blocks = 5 * ((1_023u64 + 8_192).div_ceil(16) + 1) + 32_768 / 32;
    // With two steps under way, as later versions may have, there is more in the windows.
    let later = 5 * ((1_023u64 + 2 * 8_192).div_ceil(16) + 1) + 32_768 / 32;
    let [value, high] = [blocks, later + 1].map(|blocks| blocks * 16 * 16_384);
    assert_eq!(rank.cache_needed, Bar { value, low: value, high });
}

/// ERNIE 4.5's layer for speculative decoding is a dense one (vLLM `ernie_mtp.py`); it is stored, and
/// not loaded.
#[test]
fn ernie_s_layer_for_speculative_decoding_is_stored_and_not_loaded() {
    let ernie = |drafts: u64| {
        facts(&format!(
            r#"{{"model_type":"ernie4_5_moe","hidden_size":2560,"intermediate_size":12288,
            "num_hidden_layers":28,"num_attention_heads":20,"num_key_value_heads":4,"vocab_size":103424,
            "moe_num_experts":64,"moe_num_shared_experts":2,"moe_intermediate_size":1536,
            "moe_layer_start_index":1,"moe_layer_end_index":27,"num_nextn_predict_layers":{drafts}}}"#
        ))
    };
    let (plain, drafting) = (ernie(0), ernie(1));
    let (h, kv, inner) = (2_560u64, 512, 12_288);
    let layer = 2 * h * h + 2 * kv * h + 3 * h * inner + 2 * h * h + 4 * h;
    assert_eq!(drafting.weight_bytes.0 - plain.weight_bytes.0, 2 * layer);
    let loaded = |f: &ModelFacts| predict(f, &Setup::new(rules("vllm"))).ranks[0].weights.value;
    assert_eq!(loaded(&plain), loaded(&drafting));
}

/// What is not known of a model's other parts is never called exact.
#[test]
fn parts_that_are_not_counted_are_told() {
    let llama = r#""hidden_size":2048,"intermediate_size":8192,"num_hidden_layers":4,
        "num_attention_heads":32,"num_key_value_heads":8,"vocab_size":49160"#;
    let speech = facts(&format!(
        r#"{{"model_type":"granite_speech","text_config":{{"model_type":"granite",{llama}}},
        "encoder_config":{{"num_layers":10}},"projector_config":{{}}}}"#
    ));
    let phi = facts(&format!(r#"{{"model_type":"phi4mm",{llama},"img_processor":{{}}}}"#));
    for facts in [speech, phi] {
        assert_eq!(facts.certainty, Certainty::Close);
        assert_eq!(facts.cache_certainty, Certainty::Exact);
    }
    // Layers that are not dense have experts, also where a hash routes to them (DeepSeek V4).
    let experts = |kinds: &str| {
        let config = format!(
            r#"{{"model_type":"deepseek_v4",{llama},"n_routed_experts":64,"moe_intermediate_size":512,
            "mlp_layer_types":[{kinds}]}}"#
        );
        facts(&config).weight_bytes.0
    };
    let dense = r#""dense","dense","dense","dense""#;
    let hashed = r#""hash_moe","hash_moe","moe","moe""#;
    assert!(experts(hashed) > experts(dense) + (1 << 30));
}

const GEMMA: &str = r#"{"model_type":"gemma3_text","torch_dtype":"bfloat16","num_hidden_layers":62,"hidden_size":5376,
    "num_attention_heads":32,"num_key_value_heads":16,"head_dim":128,"sliding_window":1024,
    "intermediate_size":21504,"vocab_size":262208,"max_position_embeddings":131072}"#;

/// Two layers in eight have attention: 4096 bytes a token.
const HYBRID: &str = r#"{"model_type":"qwen3_next","torch_dtype":"bfloat16","num_hidden_layers":8,"hidden_size":2048,
    "num_attention_heads":16,"num_key_value_heads":2,"head_dim":256,"linear_num_key_heads":16,
    "linear_num_value_heads":32,"linear_key_head_dim":128,"linear_value_head_dim":128,
    "linear_conv_kernel_dim":4,"intermediate_size":5120,"moe_intermediate_size":512,
    "shared_expert_intermediate_size":512,"num_experts":16,"num_experts_per_tok":10,"vocab_size":151936,
    "max_position_embeddings":262144}"#;

/// llama.cpp's `size_swa`: the windows of all slots that gpudeck starts (`-np 4 --kv-unified`).
#[test]
fn llama_cpp_keeps_the_windows_and_states_of_all_slots() {
    let plain = Setup { context: Some(32_768), ..Setup::new(rules("llamacpp")) };
    let needed = |config: &str, setup: &Setup| predict(&facts(config), setup).ranks[0].cache_needed;
    let full = 10 * 8_192 * 32_768;
    let four = Bar::exact(full + 52 * 8_192 * 4_608);
    assert_eq!((needed(GEMMA, &plain), four.value), (four, 4_647_288_832));
    let one = Setup { requests: Some(1), ..plain.clone() };
    assert_eq!(needed(GEMMA, &one), Bar::exact(full + 52 * 8_192 * 1_536));
    // A cache for each slot: no more than it has in all.
    let apart = Setup { unified: false, ..plain.clone() };
    assert_eq!(needed(GEMMA, &apart), Bar::exact(full + 52 * 8_192 * 4 * 1_536));
    let short = Setup { context: Some(1_000), ..plain.clone() };
    assert_eq!(needed(GEMMA, &short), Bar::exact(62 * 8_192 * 1_024));
    let state = predict(&facts(HYBRID), &plain).ranks[0].state_per_request.value;
    assert!(state > 0);
    assert_eq!(needed(HYBRID, &plain).value - needed(HYBRID, &one).value, 3 * state);
}

#[test]
fn windows_on_every_layer_do_not_leave_llama_cpp_without_tokens() {
    // Mistral's window, which llama.cpp does not know of.
    let mistral =
        LLAMA.replace("\"llama\"", "\"mistral\"").replacen('{', "{\"sliding_window\":1024,", 1);
    let facts_ = facts(&mistral);
    assert_eq!(facts_.windows().values().sum::<u64>(), 4);
    let setup = Setup { gpu: Some(80 << 30), ..Setup::new(rules("llamacpp")) };
    let (with, without) = (predict(&facts_, &setup), predict(&facts(LLAMA), &setup));
    assert_eq!(with.ranks[0].cache_needed, without.ranks[0].cache_needed);
    assert_eq!((with.tokens, with.fits), (without.tokens, Some(true)));
    // A GPU whose layers all have windows holds as many tokens as the others.
    let stages = Setup { pipeline: 16, ..setup };
    let gemma = predict(&facts(GEMMA), &stages);
    assert!(
        gemma.ranks.iter().any(|r| r.cache_beyond_windows.value == 0 && r.cache_needed.value > 0)
    );
    assert!(gemma.tokens.unwrap().low > 131_072, "{:?}", gemma.tokens);
    assert_eq!(gemma.fits, Some(true));
}

/// What `SGLang` logs as K and V is what its cache holds; states have a pool of their own.
#[test]
fn sglang_keeps_states_beside_the_cache_that_it_tells_of() {
    let hybrid = facts(HYBRID);
    let plain = Setup { context: Some(65_536), ..Setup::new(rules("sglang")) };
    let given = |bytes| predict(&hybrid, &Setup { cache_available: Some(bytes), ..plain.clone() });
    assert_eq!(given(1 << 30).tokens.unwrap().value, 262_144);
    assert_eq!(given(1 << 30).fits, Some(true));
    assert_eq!(given(1 << 27).fits, Some(false));
    let of = |gpu: u64, context| {
        let setup = Setup { gpu: Some(gpu), context: Some(context), ..plain.clone() };
        predict(&hybrid, &setup)
    };
    // From the GPU on, nineteen parts are for both.
    let answer = of(80 << 30, 1_024);
    let rank = &answer.ranks[0];
    let all = rank.cache_available.unwrap().value;
    let tokens = all * 10 / 19;
    assert_eq!(answer.tokens.unwrap().value, tokens / 4_096);
    // Short requests are limited by the states.
    let states = tensors::mul_div(all - tokens, 100, rank.state_per_request.value);
    assert_eq!(answer.requests.unwrap().value, states);
    assert!(states < tokens / 4_096 * 100 / 1_024);
}

#[test]
fn a_pool_of_tokens_that_is_shorter_than_a_request_does_not_do() {
    let hybrid = facts(HYBRID);
    let of = |gpu: u64| {
        let setup = Setup { gpu: Some(gpu << 20), ..Setup::new(rules("sglang")) };
        predict(&hybrid, &setup)
    };
    // As soon as all that is left is enough for a request, its tokens' share of it is not.
    let room =
        |p: &Prediction| p.ranks[0].cache_available.unwrap().low >= p.ranks[0].cache_needed.high;
    let first = (4_000..40_000).step_by(64).map(of).find(room).unwrap();
    assert!(first.tokens.unwrap().low < 262_144, "{first:?}");
    assert_eq!(first.fits, Some(false));
    assert!(first.requests.unwrap().low < 100);
    assert_eq!(of(81_090).fits, Some(true));
}

/// vLLM makes a tower on every stage.
#[test]
fn towers_are_on_every_stage_or_may_be() {
    let plain = facts(LLAMA);
    let mut seeing = plain.clone();
    seeing.tensors.push(tensors::Tensor {
        name: "visual.blocks.0.attn.qkv.weight".to_owned(),
        dtype: "BF16".to_owned(),
        shape: vec![1_000, 1_000],
        count: 1,
        bytes: 2_000_000,
    });
    let more = |engine: &str| {
        let setup = Setup { pipeline: 2, ..Setup::new(rules(engine)) };
        let (with, without) = (predict(&seeing, &setup), predict(&plain, &setup));
        [0, 1].map(|n| {
            let (with, without) = (with.ranks[n].weights, without.ranks[n].weights);
            (with.value - without.value, with.high - without.high >= 2_000_000)
        })
    };
    assert_eq!(more("vllm"), [(2_000_000, true), (2_000_000, true)]);
    assert_eq!(more("sglang"), [(2_000_000, true), (0, true)]);
    assert_eq!(more("llamacpp"), [(2_000_000, true), (0, false)]);
}

#[test]
fn a_sum_that_is_beyond_counting_is_told() {
    let setup = |context| Setup { context: Some(context), ..Setup::new(rules("vllm")) };
    let mut wide = facts(LLAMA);
    assert!(!predict(&wide, &setup(4_096)).is_beyond_counting());
    for cache in &mut wide.caches {
        cache.keeps =
            Keeps::Attention { kv_heads: 1 << 14, key: 1 << 16, value: 1 << 16, window: None };
    }
    assert!(predict(&wide, &setup(1 << 40)).is_beyond_counting());
}

/// Experts in MXFP4 are cut before they are padded: 2880 / 8 = 360 are 384 on each rank.
#[test]
fn experts_in_mxfp4_are_padded_on_both_sides() {
    let config = r#"{"model_type":"gpt_oss","torch_dtype":"bfloat16","num_hidden_layers":36,"hidden_size":2880,
        "intermediate_size":2880,"num_attention_heads":64,"num_key_value_heads":8,"head_dim":64,
        "vocab_size":201088,"num_local_experts":128,"num_experts_per_tok":4,"tie_word_embeddings":false,
        "max_position_embeddings":131072,"quantization_config":{"quant_method":"mxfp4"}}"#;
    let facts = facts(config);
    let weights = |tensor, expert, gpu: Option<u64>| {
        let setup = Setup { tensor, expert, gpu, ..Setup::new(rules("vllm")) };
        predict(&facts, &setup).ranks[0].weights
    };
    // All but experts: embedding and head, attention with biases and sinks, routers, norms, positions.
    let rest = |tp: u64| {
        let attention = (4_096 + 2 * 512) / tp * 2_881 + 4_096 / tp * 2_880 + 2_880 + 64 / tp;
        let layer = attention + 128 * 2_881 + 2 * 2_880;
        2 * (2 * 201_088 / tp * 2_880 + 36 * layer + 2_880) + facts.rope_bytes
    };
    let experts = |inner: u64, hidden: u64, scaled: u64, count: u64| {
        let values = 36 * count * 3 * inner;
        values * hidden / 2 + values * scaled / 32 + 36 * count * (2 * inner + 2_880) * 4
    };
    let near = |bar: Bar, expected: u64| bar.value.abs_diff(expected) < expected / 500;
    for (tp, inner) in [(1, 2_880), (2, 1_472), (4, 768), (8, 384)] {
        let expected = rest(tp) + experts(inner, 3_072, 2_880, 128);
        assert!(
            near(weights(tp, 1, None), expected),
            "{tp}: {expected} {:?}",
            weights(tp, 1, None)
        );
        // Where it must be Marlin, or may be.
        let marlin = rest(tp) + experts(inner.next_multiple_of(128), 3_072, 3_072, 128);
        assert!(near(weights(tp, 1, Some(40 << 30)), marlin), "{tp}");
        assert!(weights(tp, 1, None).high >= marlin, "{tp}");
    }
    // Whole experts are not cut: 2880 is a multiple of 64.
    assert!(near(weights(8, 8, None), rest(8) + experts(2_880, 3_072, 2_880, 16)));
    assert!(near(weights(8, 1, Some(180 << 30)), rest(8) + experts(512, 3_072, 3_072, 128)));
}

/// Nemotron 3 Super: what is between the hidden state and its experts is on every rank.
#[test]
fn experts_that_see_a_shorter_vector_are_smaller() {
    let config = r#"{"model_type":"nemotron_h","torch_dtype":"bfloat16","num_hidden_layers":2,"hidden_size":4096,
        "hybrid_override_pattern":"*E","num_attention_heads":32,"num_key_value_heads":2,"head_dim":128,
        "n_routed_experts":512,"n_shared_experts":1,"num_experts_per_tok":22,"moe_intermediate_size":2688,
        "moe_shared_expert_intermediate_size":5376,"vocab_size":131072,"tie_word_embeddings":false,
        "moe_latent_size":1024,"max_position_embeddings":262144}"#;
    let facts = facts(config);
    let attention = 4_096 * (4_096 + 2 * 256) + 4_096 * 4_096 + 4_096;
    let experts = 512 * 2 * 1_024 * 2_688;
    let (shared, latent, router) = (2 * 4_096 * 5_376, 2 * 4_096 * 1_024, 512 * 4_096);
    let rest = 4_096 + 4_096 + 2 * 131_072 * 4_096;
    let biases = 512 * 4;
    let all = 2 * (attention + experts + shared + latent + router + rest) + biases;
    assert_eq!(facts.weight_bytes.0, all);
    let held = |tensor| {
        predict(&facts, &Setup { tensor, ..Setup::new(rules("vllm")) }).ranks[0].weights.value
    };
    let whole = 2 * (latent + router + 3 * 4_096) + biases;
    let kept = held(2) - facts.rope_bytes;
    assert!(kept.abs_diff(whole + (all - whole) / 2) < 1 << 20, "{kept}");
}

/// `DeepSeek` V4 Flash: about 160 GB, most of them experts.
#[test]
fn experts_that_state_four_bits_are_counted_so() {
    let config = r#"{"model_type":"deepseek_v4","torch_dtype":"bfloat16","num_hidden_layers":43,"hidden_size":4096,
        "num_attention_heads":64,"num_key_value_heads":1,"head_dim":512,"moe_intermediate_size":2048,
        "n_routed_experts":256,"n_shared_experts":1,"num_experts_per_tok":6,"vocab_size":129280,
        "expert_dtype":"fp4","tie_word_embeddings":false,"max_position_embeddings":1048576,
        "sliding_window":128,"qk_rope_head_dim":64,"index_n_heads":64,"index_head_dim":128,
        "quantization_config":{"quant_method":"fp8","weight_block_size":[128,128],"scale_fmt":"ue8m0"}}"#;
    let facts = facts(config);
    let experts = 43 * 256 * 3 * 2_048 * (4_096 / 2 + 4_096 / 32);
    assert!(facts.weight_bytes.0 > experts && facts.weight_bytes.0 < experts + (22 << 30));
    assert_eq!(facts.certainty, Certainty::Exact);
    // 584 bytes of 4 tokens with an index of 132, or of 128 tokens: 20 and 23 layers.
    let ranks = predict(&facts, &Setup { tensor: 4, ..Setup::new(rules("vllm")) }).ranks;
    // In pages of 256 tokens, which are multiples of 576 bytes: 37,440, 8,640 and 1,728.
    assert_eq!(ranks[0].cache_per_token.value, 20 * (584 / 4 + 132 / 4) + 23 * 6);
    let ratios =
        config.replace("\"expert_dtype\"", "\"compress_ratios\":[0,0,4,128],\"expert_dtype\"");
    let bits = CacheBits::named("fp8");
    let setup = Setup { cache: bits, ..Setup::new(rules("vllm")) };
    let listed = predict(&super::tests::facts(&ratios), &setup);
    assert_eq!(listed.ranks[0].cache_per_token.value, 179 + 6);
}

#[test]
fn a_tower_that_is_not_known_is_as_large_as_it_says() {
    let decoder = r#""torch_dtype":"bfloat16","num_hidden_layers":4,"hidden_size":1024,"num_attention_heads":16,
        "num_key_value_heads":8,"intermediate_size":2048,"vocab_size":32000,"max_position_embeddings":4096,
        "tie_word_embeddings":false"#;
    let tower = 32 * 12 * 1_280 * 1_280 * 2;
    for part in [
        r#""audio_config":{"hidden_size":1280,"num_hidden_layers":32,"intermediate_size":5120}"#,
        r#""visual":{"width":1280,"layers":32}"#,
        r#""audio_encoder_conf":{"encoder":{"output_size":1280,"num_blocks":32}}"#,
    ] {
        let facts = facts(&format!(r#"{{"model_type":"hears_and_sees",{decoder},{part}}}"#));
        let bar = predict(&facts, &Setup::new(rules("vllm"))).weights;
        assert!(bar.high >= bar.value + tower, "{part}: {bar:?}");
        assert!(bar.high < bar.value * 2 + 2 * tower, "{part}: {bar:?}");
    }
}

#[test]
fn experts_of_an_unknown_architecture_may_be_none() {
    let experts = |many: u64| {
        let facts = facts(&format!(
            r#"{{"model_type":"odd_one","torch_dtype":"bfloat16","num_hidden_layers":4,"hidden_size":1024,
            "num_attention_heads":16,"num_key_value_heads":8,"intermediate_size":2048,"vocab_size":32000,
            "num_experts":{many},"moe_intermediate_size":2048,"max_position_embeddings":4096}}"#
        ));
        let bar = predict(&facts, &Setup::new(rules("vllm"))).weights;
        (bar.low as f64 / bar.value as f64, bar)
    };
    assert!(experts(256).0 < 0.1, "{:?}", experts(256));
    assert!(experts(8).0 > 0.1, "{:?}", experts(8));
}

/// Qwen3 0.6B and 1.7B as published hold a head that is their embedding; their configurations are alike those of
/// models that do not.
#[test]
fn a_head_that_is_the_embedding_may_be_stored_all_the_same() {
    let qwen = |hidden: u64, inner: u64, heads: u64| {
        facts(&format!(
            r#"{{"architectures":["Qwen3ForCausalLM"],"model_type":"qwen3","torch_dtype":"bfloat16",
            "hidden_size":{hidden},"intermediate_size":{inner},"num_hidden_layers":28,"num_attention_heads":{heads},
            "num_key_value_heads":8,"head_dim":128,"vocab_size":151936,"max_position_embeddings":40960,
            "tie_word_embeddings":true}}"#
        ))
    };
    for (model, without, published) in [
        (qwen(1_024, 3_072, 16), 1_192_099_840, 1_503_264_768),
        (qwen(2_048, 6_144, 16), 3_441_149_952, 4_063_479_808),
    ] {
        assert_eq!(model.certainty, Certainty::Exact);
        let answer = predict(&model, &Setup::new(rules("vllm")));
        let bar = Bar { value: without, low: without, high: published };
        // What is loaded is the same.
        let loaded = answer.ranks[0].weights;
        assert!(loaded.high < without + without / 10, "{loaded:?}");
        assert!(answer.notes.iter().any(|n| n.contains("some files hold it")));
        assert_eq!(answer.weights, bar);
        // Read from files it is known.
        let read = ModelFacts { parts: 1, ..model };
        assert_eq!(predict(&read, &Setup::new(rules("vllm"))).weights, Bar::exact(without));
    }
    let falcon = facts(r#"{"model_type":"falcon","torch_dtype":"bfloat16"}"#);
    assert!(falcon.tied && falcon.unloaded_bytes.0 == 0, "its files are known to hold it");
}

/// Each tensor is looked at once, not once for each of a thousand stages (which took minutes).
#[test]
fn many_stages_take_no_longer_than_few() {
    let model = facts(
        r#"{"model_type":"llama","hidden_size":16384,"num_hidden_layers":2000,"num_attention_heads":128,
        "num_key_value_heads":8,"intermediate_size":53248,"vocab_size":128256,"torch_dtype":"bfloat16"}"#,
    );
    let layer = model.tensors.iter().filter(|t| t.name.starts_with("model.layers.7."));
    let layer: u64 = layer.map(tensors::Tensor::total).sum();
    for engine in ["vllm", "sglang", "llamacpp"] {
        let setup = Setup { pipeline: 1_000, ..Setup::new(rules(engine)) };
        let answer = predict(&model, &setup);
        assert_eq!(answer.ranks.len(), 1_000, "{engine}");
        let inner = answer.ranks.iter().filter(|r| r.stage > 0 && r.stage < 999);
        for rank in inner {
            let layers = rank.layers.1 - rank.layers.0;
            let besides = layer * layers + model.rope_bytes;
            assert!(rank.weights.value >= layer * layers, "{engine}");
            assert!(rank.weights.value - layer * layers <= besides, "{engine}");
        }
    }
}

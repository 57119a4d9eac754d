//! Corrections of predictions: what they do, and what no log can do through them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use super::*;
use crate::base::Bytes;
use crate::engine::memory as engines;
use crate::model::facts::ModelFacts;
use crate::model::observation::{Loaded, Where};
use crate::model::predict;
use crate::model::{ModelFormat, hf_config, tensors};
use crate::spec::ParallelShape;

const LLAMA: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","torch_dtype":"bfloat16",
    "hidden_size":4096,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,
    "intermediate_size":14336,"vocab_size":128256,"max_position_embeddings":131072}"#;

fn facts() -> ModelFacts {
    let read = hf_config::parse(LLAMA.as_bytes()).unwrap();
    let mut facts = ModelFacts::unknown(ModelFormat::Safetensors, "/m".to_owned());
    read.fill(&mut facts);
    let blueprint = read.blueprint(None).0.unwrap();
    facts.weight_bytes = Bytes(tensors::total(&blueprint.tensors));
    facts.tensors = blueprint.tensors;
    facts.caches = blueprint.caches;
    facts.layout = blueprint.layout;
    facts.layers = Some(blueprint.layout.layers);
    facts
}

fn vllm() -> Setup {
    Setup {
        gpu: engines::gpu_memory("h100-80").map(|b| b.0),
        utilisation: Some(0.9),
        context: Some(32_768),
        ..Setup::new(engines::VLLM)
    }
}

fn place() -> Where {
    Where {
        engine: "vllm".to_owned(),
        device: "NVIDIA H100 80GB HBM3".to_owned(),
        device_memory: engines::gpu_memory("h100-80"),
    }
}

fn gib(n: f64) -> Bytes {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Bytes((n * (1u64 << 30) as f64) as u64)
}

/// What vLLM said of Llama-3.1-8B on an H100.
fn logged() -> Loaded {
    Loaded {
        weights: Some(gib(14.99)),
        cache: Some(gib(49.9)),
        tokens: Some(408_768),
        graphs: Some(gib(0.52)),
        ..Loaded::default()
    }
}

fn observed(setup: &Setup, loaded: &Loaded) -> Observation {
    Observation::new(&facts(), setup, place(), loaded).unwrap()
}

fn corrected(setup: &Setup, seen: &[&Observation]) -> crate::model::Prediction {
    let correction = Correction::from(seen, setup);
    predict(&facts(), &Setup { correction, ..setup.clone() })
}

#[test]
fn the_next_prediction_is_what_was_measured_with_a_narrower_bar() {
    let before = predict(&facts(), &vllm());
    let seen = observed(&vllm(), &logged());
    let after = corrected(&vllm(), &[&seen]);
    let off = |bar: Bar, is: u64| bar.value.abs_diff(is) as f64 / is as f64;
    let (was, is) = (&before.ranks[0], &after.ranks[0]);
    assert!(off(is.weights, gib(14.99).0) < 0.001, "{is:?}");
    assert!(off(was.cache_available.unwrap(), gib(49.9).0) > 0.02, "it has something to learn");
    assert!(off(is.cache_available.unwrap(), gib(49.9).0) < 0.01, "{is:?}");
    assert!(off(after.tokens.unwrap(), 408_768) < 0.01, "{:?}", after.tokens);
    let width = |bar: Bar| bar.high - bar.low;
    assert!(width(after.tokens.unwrap()) < width(before.tokens.unwrap()) / 4);
    assert!(width(is.weights) < width(was.weights));
    assert!(after.notes.iter().any(|n| n.starts_with("corrected by 1 run on NVIDIA H100")));
    let text = seen.text();
    assert!(text.starts_with("vllm on 1×NVIDIA H100 80GB HBM3: weights 15"), "{text}");
    assert!(text.contains("KV cache 408768 tokens (foreseen 4087"), "{text}");
}

/// Two GPUs, stages, copies: none of them hides another, and each is told with the GPUs that it has.
#[test]
fn measurements_tell_their_shape() {
    let two = ParallelShape::of_tensor(2);
    let staged = ParallelShape { pipeline: two.tensor, ..two };
    let copied = ParallelShape { data: two.tensor, ..two };
    let of = |shape: ParallelShape| {
        let setup = Setup {
            tensor: shape.tensor.get().into(),
            pipeline: shape.pipeline.get().into(),
            data: shape.data.get().into(),
            ..vllm()
        };
        observed(&setup, &logged()).of_shape(shape)
    };
    let all = [of(two), of(staged), of(copied)];
    let subjects: std::collections::BTreeSet<_> = all.iter().map(Observation::subject).collect();
    assert_eq!(subjects.len(), 3);
    for (seen, begins) in all.iter().zip([
        "vllm on 2×NVIDIA H100 80GB HBM3: ",
        "vllm as tp2 pp2 on 4×NVIDIA H100 80GB HBM3: ",
        "vllm as tp2 dp2 on 4×NVIDIA H100 80GB HBM3: ",
    ]) {
        assert!(seen.text().starts_with(begins), "{}", seen.text());
        let text = serde_json::to_string(seen).unwrap();
        assert_eq!(serde_json::from_str::<Observation>(&text).unwrap(), *seen);
    }
    // `SGLang`'s copies have nothing in common: what is counted is one of them, what is told are all.
    let copies = observed(&Setup { tensor: 2, ..vllm() }, &logged()).of_shape(copied);
    assert!(copies.text().starts_with("vllm as tp2 dp2 on 4×"), "{}", copies.text());
    assert_ne!(copies.subject(), all[0].subject());
    // What an earlier version has written is read, and is of the same.
    let mut old = serde_json::to_value(&all[0]).unwrap();
    assert!(old.as_object_mut().unwrap().remove("shape").is_some());
    let old: Observation = serde_json::from_value(old).unwrap();
    assert_eq!((old.shape, old.subject()), (None, all[0].subject()));
    assert_eq!(old.text(), all[0].text());
}

#[test]
fn measuring_again_corrects_no_further() {
    // An observation is compared with the uncorrected prediction: corrections do not pile up.
    let first = observed(&vllm(), &logged());
    let correction = Correction::from(&[&first], &vllm());
    let again = observed(&Setup { correction, ..vllm() }, &logged());
    assert_eq!(first, again);
    let (once, twice) = (corrected(&vllm(), &[&first]), corrected(&vllm(), &[&first, &again]));
    assert_eq!(once.ranks, twice.ranks);
}

#[test]
fn the_median_counts_and_what_lies_apart_widens_the_bar() {
    let of = |weights: f64| observed(&vllm(), &Loaded { weights: Some(gib(weights)), ..logged() });
    let (a, b, c) = (of(15.0), of(15.1), of(15.9));
    let apart = corrected(&vllm(), &[&a, &b, &c]).ranks[0].weights;
    let alike = corrected(&vllm(), &[&b, &b, &b]).ranks[0].weights;
    assert_eq!(apart.value, alike.value);
    assert!(apart.low < alike.low);
}

#[test]
fn no_log_pushes_a_prediction_beyond_its_bar_and_a_tenth() {
    let plain = predict(&facts(), &vllm());
    let sizes = [0.0, 0.001, 1.0, 9.0, 14.0, 20.0, 29.0, 70.0, 16_000.0];
    for weights in sizes {
        for cache in sizes {
            for tokens in [0, 1, 400_000, 1 << 40] {
                let lie = Loaded {
                    weights: Some(gib(weights)),
                    cache: Some(gib(cache)),
                    tokens: Some(tokens),
                    activation: Some(gib(cache)),
                    graphs: Some(gib(weights)),
                    ..Loaded::default()
                };
                let seen = observed(&vllm(), &lie);
                let after = corrected(&vllm(), &[&seen]);
                for (was, is) in plain.ranks.iter().zip(&after.ranks) {
                    for (was, is) in [
                        (was.weights, is.weights),
                        (was.activation, is.activation),
                        (was.graphs, is.graphs),
                        (was.communication, is.communication),
                    ] {
                        assert!(is.low <= is.value && is.value <= is.high, "{is:?}");
                        assert!(is.low >= was.low - was.low / 10, "{was:?} {is:?}");
                        assert!(is.high <= was.high + was.high / 10 + 1, "{was:?} {is:?}");
                    }
                }
                let tokens = after.tokens.unwrap();
                assert!(tokens.low <= tokens.value && tokens.value <= tokens.high);
            }
        }
    }
}

#[test]
fn where_the_engine_said_no_the_same_question_is_answered_with_no() {
    let long = Setup { context: Some(131_072), ..vllm() };
    assert_eq!(predict(&facts(), &long).fits, Some(true));
    let refusal = Loaded { refused: true, ..Loaded::default() };
    let no = observed(&long, &refusal);
    assert_eq!(corrected(&long, &[&no]).fits, Some(false));
    assert_eq!(corrected(&vllm(), &[&no]).fits, Some(true), "a shorter context may fit");
    let more = Setup { utilisation: Some(0.95), ..long.clone() };
    assert_eq!(corrected(&more, &[&no]).fits, Some(true), "so may a larger share");
    let less = Setup { utilisation: Some(0.8), ..long.clone() };
    assert_eq!(corrected(&less, &[&no]).fits, Some(false));
    // It ran after all, with as much: the memory had been somebody else's.
    let yes = observed(&long, &logged());
    assert_eq!(corrected(&long, &[&no, &yes]).fits, Some(true));
    assert_eq!(corrected(&long, &[&yes, &no]).fits, Some(false), "the newest word counts");
}

#[test]
fn a_correction_makes_nothing_fit_that_the_engine_had_no_room_for() {
    // 16 GiB are wanted for one request, 8 GiB are left: whatever else a log says, it does not fit.
    let long = Setup { context: Some(131_072), cache_available: Some(gib(8.0).0), ..vllm() };
    for tokens in [1, 65_536, 131_072, 1 << 20] {
        let lie = Loaded { tokens: Some(tokens), ..logged() };
        let seen = observed(&vllm(), &lie);
        assert_eq!(corrected(&long, &[&seen]).fits, Some(false));
    }
}

#[test]
fn only_the_same_model_is_recognised() {
    let seen = observed(&vllm(), &logged());
    assert!(seen.is_of(&facts()));
    assert!(!seen.is_of(&ModelFacts { weight_bytes: Bytes(1), ..facts() }));
    assert!(!seen.is_of(&ModelFacts { architecture: None, ..facts() }));
}

#[test]
fn what_is_kept_can_be_read_again_by_other_versions() {
    let seen = observed(&vllm(), &logged());
    let text = serde_json::to_string(&seen).unwrap();
    assert_eq!(serde_json::from_str::<Observation>(&text).unwrap(), seen);
    let more = text.replacen('{', r#"{"later":[1],"#, 1);
    assert_eq!(serde_json::from_str::<Observation>(&more).unwrap(), seen);
}

#[test]
fn what_was_measured_of_another_division_corrects_weights_alone() {
    let copies = Setup { data: 4, expert: 4, ..vllm() };
    let seen = observed(&copies, &logged());
    assert_eq!((seen.data, seen.expert), (4, 4));
    let of = |setup: &Setup| Correction::from(&[&seen], setup);
    assert!(of(&copies).tokens.is_some() && of(&copies).besides.is_some());
    assert!(of(&vllm()).weights.is_some());
    assert_eq!((of(&vllm()).tokens, of(&vllm()).besides), (None, None));
    // What was kept before these were is of one copy.
    let text = serde_json::to_string(&observed(&vllm(), &logged())).unwrap();
    assert!(!text.contains("\"data\""), "{text}");
    let old: Observation = serde_json::from_str(&text).unwrap();
    assert_eq!((old.data, old.expert), (1, 1));
}

#[test]
fn fewer_requests_and_smaller_steps_are_another_question() {
    let long = Setup { context: Some(131_072), requests: Some(256), ..vllm() };
    let refusal = Loaded { refused: true, ..Loaded::default() };
    let no = observed(&long, &refusal);
    let refused = |setup: &Setup| Correction::from(&[&no], setup).is_refused(setup, 131_072);
    assert!(refused(&long));
    assert!(refused(&Setup { requests: Some(512), ..long.clone() }));
    for other in [
        Setup { requests: Some(16), ..long.clone() },
        Setup { requests: None, ..long.clone() },
        Setup { batch: Some(2_048), ..long.clone() },
        Setup { eager: true, ..long.clone() },
        Setup { data: 2, ..long.clone() },
    ] {
        assert!(!refused(&other), "{other:?}");
    }
    // What failed without graphs fails with them.
    let eager = Setup { eager: true, ..long.clone() };
    let no = observed(&eager, &refusal);
    assert!(Correction::from(&[&no], &long).is_refused(&long, 131_072));
}

/// `SGLang`'s own words of a hybrid: states have a pool of their own, which is no overhead.
#[test]
fn states_beside_the_cache_are_not_taken_for_something_else() {
    let hybrid = crate::model::estimate::tests::facts(
        r#"{"model_type":"qwen3_next","torch_dtype":"bfloat16","num_hidden_layers":8,"hidden_size":2048,
        "num_attention_heads":16,"num_key_value_heads":2,"head_dim":256,"linear_num_key_heads":16,
        "linear_num_value_heads":32,"linear_key_head_dim":128,"linear_value_head_dim":128,
        "linear_conv_kernel_dim":4,"intermediate_size":5120,"moe_intermediate_size":512,
        "shared_expert_intermediate_size":512,"num_experts":16,"num_experts_per_tok":10,
        "vocab_size":151936,"max_position_embeddings":262144}"#,
    );
    let setup =
        Setup { gpu: engines::gpu_memory("h100-80").map(|b| b.0), ..Setup::new(engines::SGLANG) };
    let foreseen = predict(&hybrid, &setup);
    let all = foreseen.ranks[0].cache_available.unwrap().value;
    let cache = all * 10 / 19;
    let loaded = Loaded {
        weights: Some(Bytes(foreseen.ranks[0].weights.value)),
        cache: Some(Bytes(cache)),
        states: Some(Bytes(all - cache)),
        tokens: Some(cache / 4_096),
        ..Loaded::default()
    };
    let place = || Where { engine: "sglang".to_owned(), ..place() };
    let seen = Observation::new(&hybrid, &setup, place(), &loaded).unwrap();
    for pair in [seen.tokens, seen.besides, seen.cache] {
        let pair = pair.unwrap();
        assert!(pair.measured.abs_diff(pair.foreseen) <= 2, "{pair:?}");
    }
    // A log without that line tells nothing of what else was taken.
    let silent = Observation::new(&hybrid, &setup, place(), &Loaded { states: None, ..loaded });
    assert_eq!(silent.unwrap().besides, None);
}

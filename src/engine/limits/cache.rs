//! Types of cached values, sizes of a block and of a step that an engine does not take.
//!
//! vLLM `config/cache.py` (`CacheDType` of 0.33), `v1/attention/backends` (kernels for CUDA want whole sixteens of
//! tokens) and `config/scheduler.py` (`verify_max_model_len`); `SGLang` `arg_groups/fields/model.py` (`server_args.py`
//! before 0.5.20; `--kv-cache-dtype`); llama.cpp `common/arg.cpp` (`kv_cache_types`).

use super::EngineError;
use crate::model::cache::{CacheBits, Keeps, LaidOut};
use crate::model::estimate::{Pool, Rules};
use crate::model::{ModelFacts, Setup};

/// Names of one type.
type Names = &'static [&'static str];

const HALF: Names = &["f16", "bf16", "fp16", "bfloat16", "float16", "half"];
const EIGHT: Names = &["fp8", "f8", "fp8_e4m3", "fp8_e5m2"];
const EIGHT_OF_VLLM: Names = &["fp8_inc", "fp8_ds_mla"];
const EIGHT_OF_SGLANG: Names = &["mxfp8"];
const WITH_SCALES: Names = &["int8_per_token_head", "fp8_per_token_head", "int4_per_token_head"];
const FOUR: Names = &["nvfp4", "fp4", "fp4_e2m1"];
const FOUR_OF_VLLM: Names = &["nvfp4_4over6", "nvfp4_ds_mla"];
const FOUR_OF_SGLANG: Names = &["fp4_mx_block16"];
const PACKED_OF_VLLM: Names = &[
    "turboquant_k8v4",
    "turboquant_4bit_nc",
    "turboquant_k3v4_nc",
    "turboquant_3bit_nc",
    "ultraquant_4bit",
];
const PACKED: Names = &["q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl"];
const FULL: Names = &["f32", "fp32", "float32"];

/// What an engine takes, and how to name it.
fn taken(pool: Pool) -> (&'static [Names], &'static str) {
    match pool {
        Pool::Groups => (
            &[HALF, EIGHT, EIGHT_OF_VLLM, WITH_SCALES, FOUR, FOUR_OF_VLLM, PACKED_OF_VLLM],
            "auto, bf16, f16, fp8, fp8_e4m3, fp8_e5m2",
        ),
        Pool::Tokens => (
            &[HALF, EIGHT, EIGHT_OF_SGLANG, FOUR, FOUR_OF_SGLANG],
            "auto, bf16, fp8_e4m3, fp8_e5m2, mxfp8, nvfp4, fp4_mx_block16",
        ),
        Pool::Cells => {
            (&[HALF, FULL, PACKED], "f16, bf16, f32, q8_0, q5_0, q5_1, q4_0, q4_1, iq4_nl")
        }
    }
}

/// Why an engine with these rules does not take a cache of the type `name`; none where it does, or follows the
/// model. Whether there is such a type at all is for [`CacheBits::named`].
pub fn type_refusal(rules: &Rules, name: &str) -> Option<EngineError> {
    let lower = name.to_ascii_lowercase();
    let (types, list) = taken(rules.pool);
    let good = lower == "auto" || types.iter().any(|names| names.contains(&lower.as_str()));
    // A type that nobody knows is not shown.
    let known = CacheBits::named(&lower).is_some();
    (!good && known).then(|| EngineError::Unsupported {
        engine: rules.engine,
        what: format!("a cache of type {lower} (it takes {list})"),
        hint: format!("use {list}"),
    })
}

/// A type that vLLM has no kernels for with such attention: layouts of latent vectors where there are none (and that of
/// 4 bits where attention is not sparse), packed slots and plain 4 bits where there are (`config/vllm.py`,
/// `validate_nvfp4_kv_cache_with_mla`; `supported_kv_cache_dtypes` of `v1/attention/backends/mla`).
pub(super) fn form(facts: &ModelFacts, setup: &Setup) -> Option<EngineError> {
    let bits = setup.cache.filter(|_| setup.rules.pool == Pool::Groups)?;
    if facts.caches.is_empty()
        || facts.caches.iter().any(|c| matches!(c.keeps, Keeps::Paged { .. }))
    {
        return None;
    }
    let latent = facts.layout.latent && facts.layout.expanded == 0;
    let sparse = facts.caches.iter().any(|c| matches!(c.keeps, Keeps::Latent { sparse: true, .. }));
    let what = match bits.laid_out {
        Some(_) if !latent => "a cache laid out for latent vectors, which this model has not",
        Some(LaidOut::Four) if !sparse => "latent vectors of 4 bits without sparse attention",
        None if latent && (bits.packed.is_some() || bits.is_plain_four()) => {
            "a cache of so few bits with latent vectors"
        }
        _ => return None,
    };
    Some(EngineError::Unsupported {
        engine: setup.rules.engine,
        what: what.to_owned(),
        hint: "use auto, or fp8".to_owned(),
    })
}

/// Tokens that a block of vLLM's on CUDA is a multiple of.
const SIXTEEN: u64 = 16;

/// A block that vLLM's kernels cannot read. `SGLang` takes pages of any size; llama.cpp has none.
pub(super) fn block(setup: &Setup) -> Option<EngineError> {
    let block = setup.block.filter(|_| setup.rules.pool == Pool::Groups)?;
    (block == 0 || !block.is_multiple_of(SIXTEEN)).then(|| EngineError::Unsupported {
        engine: setup.rules.engine,
        what: format!("a block of {block} tokens (a multiple of {SIXTEEN} is)"),
        hint: format!("use a multiple of {SIXTEEN}: 16, 32, 64 or 128"),
    })
}

/// Fewer tokens in a step than requests at a time.
pub(super) fn step(setup: &Setup) -> Option<EngineError> {
    let (batch, requests) = setup.batch.zip(setup.requests)?;
    (setup.rules.pool == Pool::Groups && batch < requests).then(|| EngineError::Indivisible {
        what: format!("steps of {batch} tokens are too short for {requests} requests at a time"),
        hint: format!("use steps of at least {requests} tokens, or fewer requests"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::super::refusal;
    use super::*;
    use crate::base::Hint;
    use crate::engine::memory::{LLAMA_CPP, SGLANG, VLLM};
    use crate::model::{ModelFacts, ModelFormat};

    #[test]
    fn every_engine_has_its_own_types_of_cache() {
        let refused = |rules, name| type_refusal(&rules, name);
        for (rules, good, bad) in [
            (
                VLLM,
                ["auto", "fp8", "turboquant_k8v4", "int4_per_token_head"],
                ["q8_0", "mxfp8", "int8"],
            ),
            (
                SGLANG,
                ["auto", "fp8_e5m2", "mxfp8", "fp4_mx_block16"],
                ["q4_0", "int8_per_token_head", "turboquant_3bit_nc"],
            ),
            (LLAMA_CPP, ["f16", "q8_0", "iq4_nl", "f32"], ["fp8", "nvfp4", "int8"]),
        ] {
            for name in good {
                assert_eq!(refused(rules, name), None, "{} {name}", rules.engine);
            }
            for name in bad {
                let error = refused(rules, name).unwrap();
                assert!(error.to_string().contains(&format!("a cache of type {name}")), "{error}");
                assert!(error.hint().unwrap().contains("bf16"), "{error}");
            }
        }
    }

    #[test]
    fn types_of_cache_that_do_not_go_with_the_attention() {
        let of = |json: &str, name: &str| {
            let facts = crate::model::estimate::tests::facts(json);
            let setup = Setup { cache: CacheBits::named(name), ..Setup::new(VLLM) };
            refusal(&facts, &setup).map(|error| error.to_string())
        };
        let llama =
            r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","dtype":"bfloat16"}"#;
        let dense = r#"{"architectures":["DeepseekV3ForCausalLM"],"model_type":"deepseek_v3","dtype":"bfloat16"}"#;
        let sparse = r#"{"architectures":["DeepseekV32ForCausalLM"],"model_type":"deepseek_v32","dtype":"bfloat16"}"#;
        let minicpm = r#"{"architectures":["MiniCPM3ForCausalLM"],"model_type":"minicpm3","dtype":"bfloat16"}"#;
        for (json, name, why) in [
            (llama, "fp8_ds_mla", "laid out for latent vectors"),
            (llama, "nvfp4_ds_mla", "laid out for latent vectors"),
            (minicpm, "fp8_ds_mla", "laid out for latent vectors"),
            (dense, "nvfp4_ds_mla", "without sparse attention"),
            (dense, "nvfp4", "so few bits"),
            (sparse, "turboquant_4bit_nc", "so few bits"),
        ] {
            let told = of(json, name).unwrap_or_default();
            assert!(told.contains(why), "{json} {name}: {told}");
        }
        for (json, name) in [
            (llama, "nvfp4"),
            (llama, "turboquant_k8v4"),
            (minicpm, "turboquant_k8v4"),
            (dense, "fp8"),
            (dense, "fp8_ds_mla"),
            (dense, "int8_per_token_head"),
            (sparse, "nvfp4_ds_mla"),
        ] {
            assert_eq!(of(json, name), None, "{json} {name}");
        }
    }

    #[test]
    fn blocks_and_steps_that_vllm_does_not_take() {
        let facts = ModelFacts::unknown(ModelFormat::Safetensors, "/m".to_owned());
        let why = |setup: &Setup| refusal(&facts, setup).map(|error| error.to_string());
        let of = |rules, block| Setup { block: Some(block), ..Setup::new(rules) };
        for block in [1, 8, 17, 100] {
            assert!(why(&of(VLLM, block)).unwrap().contains("a multiple of 16"), "{block}");
            assert_eq!(why(&of(SGLANG, block)), None);
            assert_eq!(why(&of(LLAMA_CPP, block)), None);
        }
        for block in [16, 32, 48, 64, 128, 256] {
            assert_eq!(why(&of(VLLM, block)), None);
        }
        let step = |batch| Setup { batch: Some(batch), requests: Some(256), ..Setup::new(VLLM) };
        assert!(why(&step(128)).unwrap().contains("128 tokens are too short for 256 requests"));
        assert_eq!(why(&step(256)), None);
    }
}

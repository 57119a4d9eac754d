//! Types of cached values, sizes of a block and of a step that an engine does not take.
//!
//! vLLM `config/cache.py` (`CacheDType`), `v1/attention/backends` (kernels for CUDA want whole sixteens of
//! tokens) and `config/scheduler.py` (`verify_max_model_len`); `SGLang` `server_args.py`
//! (`--kv-cache-dtype`); llama.cpp `common/arg.cpp` (`kv_cache_types`).

use super::EngineError;
use crate::model::Setup;
use crate::model::cache::CacheBits;
use crate::model::estimate::{Pool, Rules};

/// Names of one type.
type Names = &'static [&'static str];

const HALF: Names = &["f16", "bf16", "fp16", "bfloat16", "float16", "half"];
const EIGHT: Names = &["fp8", "f8", "fp8_e4m3", "fp8_e5m2"];
const EIGHT_OF_VLLM: Names = &["fp8_inc", "fp8_ds_mla"];
const WITH_SCALES: Names = &["int8_per_token_head", "fp8_per_token_head", "int4_per_token_head"];
const FOUR: Names = &["nvfp4", "fp4", "fp4_e2m1"];
const PACKED: Names = &["q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl"];
const FULL: Names = &["f32", "fp32", "float32"];

/// What an engine takes, and how to name it.
fn taken(pool: Pool) -> (&'static [Names], &'static str) {
    match pool {
        Pool::Groups => (
            &[HALF, EIGHT, EIGHT_OF_VLLM, WITH_SCALES, FOUR],
            "auto, bf16, f16, fp8, fp8_e4m3, fp8_e5m2",
        ),
        Pool::Tokens => (&[HALF, EIGHT, FOUR], "auto, bf16, fp8_e4m3, fp8_e5m2, fp4_e2m1"),
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
            (VLLM, ["auto", "fp8", "bfloat16", "int4_per_token_head"], ["q8_0", "iq4_nl", "int8"]),
            (
                SGLANG,
                ["auto", "fp8_e5m2", "bf16", "fp4_e2m1"],
                ["q4_0", "int8_per_token_head", "float32"],
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

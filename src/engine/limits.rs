//! What an engine refuses of a model so divided, however much memory there is: asked for before a
//! release is planned, and by `gpudeck model inspect`.

mod cache;
mod tiles;

pub use cache::type_refusal;

use super::EngineError;
use crate::model::estimate::Pool;
use crate::model::{ModelFacts, Setup, WeightSplit};

/// Why the engine of `setup` would not start with it; none where nothing speaks against it.
///
/// vLLM `config/model.py` (`verify_with_parallel_config`, `_get_and_verify_max_len`), `SGLang`
/// `layers/dp_attention.py` and `configs/model_config.py` alike. llama.cpp takes whole layers and warns
/// of a long context.
pub fn refusal(facts: &ModelFacts, setup: &Setup) -> Option<EngineError> {
    if is_by_layers(setup) {
        return None;
    }
    let tokens = setup.rules.pool == Pool::Tokens;
    if let Some(error) = impossible(facts) {
        return Some(error);
    }
    let limit = if tokens { facts.context_stated.or(facts.context) } else { facts.context };
    form(facts, setup.rules.engine)
        .or_else(|| cache::block(setup))
        .or_else(|| cache::form(facts, setup))
        .or_else(|| cache::step(setup))
        .or_else(|| too_long(setup.context, limit))
        .or_else(|| cuts(facts, setup))
}

/// Numbers of attention that no model has: engines end with them at once, and what is computed from them says nothing.
fn impossible(facts: &ModelFacts) -> Option<EngineError> {
    let heads = facts.attention_heads?;
    let what = match (heads, facts.kv_heads, facts.head_dim) {
        (0, Some(1..), _) => "it has heads for keys and values, and no attention heads".to_owned(),
        (1.., Some(0), _) if facts.latent_cache_width.is_none() => {
            format!("{heads} attention heads have no head for keys and values")
        }
        // GLM 5 Next states the size of the rotary part here, of which it has none.
        (1.., _, Some(0)) if facts.latent_cache_width.is_none() => {
            "its attention heads have size 0".to_owned()
        }
        (1.., Some(kv @ 1..), _)
            if !heads.is_multiple_of(kv) && facts.latent_cache_width.is_none() =>
        {
            format!("{heads} attention heads cannot share {kv} heads for keys and values")
        }
        _ => return None,
    };
    Some(EngineError::Indivisible {
        what,
        hint: "compare its config.json with the published one".to_owned(),
    })
}

fn is_by_layers(setup: &Setup) -> bool {
    setup.rules.split == WeightSplit::Layers || setup.rules.pool == Pool::Cells
}

/// What cannot be cut into so many pieces as `setup` asks: asked for every shape that a service may
/// have.
pub(super) fn cuts(facts: &ModelFacts, setup: &Setup) -> Option<EngineError> {
    if is_by_layers(setup) {
        return None;
    }
    let tokens = setup.rules.pool == Pool::Tokens;
    heads(facts, setup.attention(facts))
        .or_else(|| stages(facts, setup.pipeline))
        .or_else(|| if tokens { tiles::experts(facts, setup) } else { only_vllm(facts, setup) })
        .or_else(|| tiles::states(facts, setup))
        .or_else(|| tiles::refusal(facts, setup))
}

/// More stages than layers.
pub(super) fn stages(facts: &ModelFacts, pipeline: u64) -> Option<EngineError> {
    let layers = u64::from(facts.layers.filter(|n| *n > 0)?);
    (pipeline > layers).then(|| EngineError::Indivisible {
        what: format!("{layers} layers cannot be divided over {pipeline} stages"),
        hint: format!("use at most {layers} stages"),
    })
}

/// What vLLM refuses and `SGLang` does not: values that bitsandbytes has packed have no rows that could
/// be cut (`model_loader/bitsandbytes_loader.py`), heads of towers, stages of a model with a table of sequences of words
/// (Qwen 4; vLLM's issue 55515), and ranks that share out experts need some (`config/model.py`,
/// `verify_with_parallel_config`).
fn only_vllm(facts: &ModelFacts, setup: &Setup) -> Option<EngineError> {
    let packed = facts.quantisation.as_deref().is_some_and(|q| q.starts_with("bitsandbytes"));
    if packed && setup.tensor > 1 {
        return Some(EngineError::Unsupported {
            engine: setup.rules.engine,
            what: format!("tensor = {} with weights that bitsandbytes has quantised", setup.tensor),
            hint: "use pipeline parallelism (tensor = 1), or an FP8, AWQ or GPTQ version"
                .to_owned(),
        });
    }
    if let Some(error) = tiles::towers(facts, setup) {
        return Some(error);
    }
    let mut tensors = facts.tensors.iter();
    if setup.pipeline > 1 && tensors.any(|t| t.name.contains(".ple.ple_embedding.")) {
        return Some(EngineError::Unsupported {
            engine: setup.rules.engine,
            what: format!("{} stages of a model with tables of sequences of words", setup.pipeline),
            hint: "use tensor parallelism alone (pipeline = 1)".to_owned(),
        });
    }
    (setup.expert > 1 && !facts.has_experts()).then(|| EngineError::Indivisible {
        what: "the model has no experts that expert parallelism could divide".to_owned(),
        hint: "leave expert parallelism out: it is for mixtures of experts".to_owned(),
    })
}

/// Weights in a form that no engine of GPU hosts reads.
pub(super) fn form(facts: &ModelFacts, engine: &'static str) -> Option<EngineError> {
    facts.is_mlx().then(|| EngineError::Format {
        engine,
        what: "its weights are quantised for MLX, which runs on Apple silicon alone".to_owned(),
        hint: "use the model itself, an FP8, AWQ or GPTQ version of it, or a GGUF with llama.cpp"
            .to_owned(),
    })
}

fn too_long(asked: Option<u64>, limit: Option<u64>) -> Option<EngineError> {
    let (context, limit) = asked.zip(limit)?;
    (context > limit).then_some(EngineError::Context { context, limit })
}

/// A context that is longer than the model was made for.
pub(super) fn context(facts: &ModelFacts, asked: Option<u64>) -> Option<EngineError> {
    too_long(asked, facts.context)
}

/// Attention heads that cannot be divided over `tensor` ranks.
pub(super) fn heads(facts: &ModelFacts, tensor: u64) -> Option<EngineError> {
    let heads = facts.attention_heads?;
    let tensor = u32::try_from(tensor).unwrap_or(u32::MAX);
    if divides(facts, tensor) {
        return None;
    }
    let good: Vec<String> =
        (1..=64).filter(|n| divides(facts, *n)).take(8).map(|n| n.to_string()).collect();
    let cached = facts.kv_heads.filter(|kv| *kv != heads);
    Some(EngineError::Indivisible {
        what: format!(
            "{heads} attention heads{} cannot be divided over tensor = {tensor}",
            cached.map(|kv| format!(" ({kv} for keys and values)")).unwrap_or_default()
        ),
        hint: format!("use tensor = {}", good.join(", ")),
    })
}

/// Query heads must divide evenly; key/value heads too, or be replicated a whole number of times.
pub(super) fn divides(facts: &ModelFacts, tensor: u32) -> bool {
    let even = |heads: u32| {
        heads.is_multiple_of(tensor)
            || (heads > 0 && tensor > heads && tensor.is_multiple_of(heads))
    };
    facts.attention_heads.is_none_or(|h| h.is_multiple_of(tensor))
        && (facts.latent_cache_width.is_some() || facts.kv_heads.is_none_or(even))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Hint;
    use crate::engine::memory::{LLAMA_CPP, SGLANG, VLLM};
    use crate::model::ModelFormat;

    #[test]
    fn stages_are_refused_where_there_are_tables_of_sequences() {
        let refused = |rules, tables: &str, pipeline| {
            let facts = crate::model::estimate::tests::facts(&format!(
                r#"{{"model_type":"qwen4_exp_text","dtype":"bfloat16","ple_layer_ids":{tables}}}"#
            ));
            refusal(&facts, &Setup { pipeline, ..Setup::new(rules) }).map(|e| e.to_string())
        };
        let told = refused(VLLM, "[2]", 2).unwrap_or_default();
        assert!(told.contains("2 stages"), "{told}");
        assert_eq!(refused(VLLM, "[2]", 1), None);
        assert_eq!(refused(VLLM, "[]", 2), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let why = |heads, kv, size, latent| {
            let facts = ModelFacts {
                attention_heads: Some(heads),
                kv_heads: Some(kv),
                head_dim: Some(size),
                latent_cache_width: latent,
                ..ModelFacts::unknown(ModelFormat::Safetensors, "/m".to_owned())
            };
            refusal(&facts, &Setup::new(VLLM)).map(|e| e.to_string())
        };
        for (heads, kv, size, words) in [
            (0, 8, 128, "no attention heads"),
            (32, 0, 128, "no head for keys and values"),
            (32, 8, 0, "size 0"),
            (32, 5, 128, "cannot share 5"),
        ] {
            let said = why(heads, kv, size, None).unwrap();
            assert!(said.contains(words), "{said}");
        }
        assert_eq!((why(32, 8, 128, None), why(71, 1, 64, None)), (None, None));
        // States alone, and latent vectors.
        assert_eq!((why(0, 0, 0, None), why(128, 1, 192, Some(576))), (None, None));
    }

    #[test]
    fn what_vllm_alone_refuses() {
        let dense = ModelFacts {
            layers: Some(32),
            attention_heads: Some(32),
            kv_heads: Some(8),
            ..ModelFacts::unknown(ModelFormat::Safetensors, "/m".to_owned())
        };
        let packed = ModelFacts { quantisation: Some("bitsandbytes".to_owned()), ..dense.clone() };
        let mixed = ModelFacts { experts: Some(8), ..dense.clone() };
        let setup = |rules, tensor, pipeline, expert| Setup {
            tensor,
            pipeline,
            expert,
            ..Setup::new(rules)
        };
        let error = refusal(&packed, &setup(VLLM, 2, 1, 1)).unwrap();
        assert!(error.to_string().contains("bitsandbytes"), "{error}");
        assert!(error.hint().unwrap().contains("pipeline parallelism"), "{error}");
        assert_eq!(refusal(&packed, &setup(VLLM, 1, 2, 1)), None);
        assert_eq!(refusal(&packed, &setup(SGLANG, 2, 1, 1)), None);
        let error = refusal(&dense, &setup(VLLM, 8, 1, 8)).unwrap();
        assert!(error.to_string().contains("no experts"), "{error}");
        assert!(error.hint().unwrap().contains("leave expert parallelism out"), "{error}");
        assert_eq!(refusal(&mixed, &setup(VLLM, 8, 1, 8)), None);
        assert_eq!(refusal(&dense, &setup(VLLM, 8, 1, 1)), None);
    }

    #[test]
    fn what_engines_refuse_whatever_the_memory() {
        let facts = ModelFacts {
            layers: Some(80),
            attention_heads: Some(64),
            kv_heads: Some(8),
            experts: Some(8),
            context: Some(8_192),
            ..ModelFacts::unknown(ModelFormat::Safetensors, "/m".to_owned())
        };
        let plain = |rules| Setup::new(rules);
        let why = |setup: &Setup| refusal(&facts, setup).map(|e| e.to_string());
        for rules in [VLLM, SGLANG] {
            assert_eq!(why(&plain(rules)), None);
            for (setup, words) in [
                (Setup { tensor: 3, ..plain(rules) }, "64 attention heads (8 for keys and values)"),
                (Setup { tensor: 6, ..plain(rules) }, "over tensor = 6"),
                (Setup { pipeline: 81, ..plain(rules) }, "80 layers cannot be divided"),
                (Setup { context: Some(8_193), ..plain(rules) }, "longer than the model's 8192"),
            ] {
                assert!(why(&setup).is_some_and(|w| w.contains(words)), "{words}");
            }
            assert_eq!(why(&Setup { tensor: 16, context: Some(8_192), ..plain(rules) }), None);
        }
        // `SGLang` does not count what YaRN adds.
        let scaled = ModelFacts { context_stated: Some(2_048), ..facts.clone() };
        let long = |rules| Setup { context: Some(4_096), ..plain(rules) };
        assert!(refusal(&scaled, &long(SGLANG)).is_some());
        assert_eq!(refusal(&scaled, &long(VLLM)).map(|e| e.to_string()), None);
        // Only Apple's machines read these.
        let mlx = ModelFacts { quantisation: Some("mlx 4 bits".to_owned()), ..facts.clone() };
        for rules in [VLLM, SGLANG] {
            let error = refusal(&mlx, &plain(rules)).unwrap();
            assert!(error.to_string().contains("quantised for MLX"), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("GGUF")));
        }
        // Two copies of attention over six ranks: three each.
        let three = Setup { tensor: 6, data: 2, ..plain(SGLANG) };
        assert!(why(&three).unwrap().contains("tensor = 3"));
        assert_eq!(why(&Setup { pipeline: 3, context: Some(1 << 20), ..plain(LLAMA_CPP) }), None);
    }
}

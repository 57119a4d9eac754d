//! Matrices that an engine cannot cut into so many pieces: widths that do not divide, and pieces
//! that are no whole blocks or groups of their quantisation.
//!
//! vLLM `distributed/utils.py` (`divide`), `quantization/utils/fp8_utils.py`
//! (`validate_fp8_block_shape`), `quantization/fp8.py` (`Fp8MoEMethod.create_weights`),
//! `quantization/awq.py` and `gptq.py` (`create_weights`), `compressed_tensors_wNa16.py`; `SGLang`'s
//! copies of these say the same.

use std::collections::HashMap;

use super::EngineError;
use crate::model::estimate::Pool;
use crate::model::tensors::{Place, Tensor, module, place};
use crate::model::towers::Tower;
use crate::model::{ModelFacts, Setup};

/// Rows and columns of a block with one scale.
const BLOCK: u64 = 128;

/// Which side of a matrix is cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Rows,
    /// Rows, of one of several matrices that are loaded as one.
    Merged,
    Columns,
}

/// Ranks that cut a matrix, and how; none where it stays whole.
fn cut(facts: &ModelFacts, setup: &Setup, module: &str) -> Option<(Cut, u64)> {
    let word = module.rsplit('.').next().unwrap_or(module);
    let expert = module.contains(".experts.") && !module.contains("shared_expert");
    let attention = setup.attention(facts);
    let ranks = match (expert, setup.expert > 1) {
        (true, true) => 1,
        (true, false) => attention.saturating_mul(setup.data.max(1)),
        _ => setup.tensor,
    };
    let kv_heads = facts.layout.kv_heads.max(1);
    Some(match word {
        "gate_proj" | "up_proj" | "w1" | "w3" => (Cut::Merged, ranks),
        "down_proj" | "w2" => (Cut::Columns, ranks),
        "q_proj" => (Cut::Merged, attention),
        "k_proj" | "v_proj" if !facts.layout.latent => (Cut::Merged, attention.min(kv_heads)),
        "q_b_proj" | "kv_b_proj" => (Cut::Rows, attention),
        "o_proj" => (Cut::Columns, attention),
        _ => return None,
    })
}

fn sides(tensor: &Tensor) -> Option<(u64, u64)> {
    match tensor.shape.as_slice() {
        [rows, columns] => Some((*rows, *columns)),
        _ => None,
    }
}

/// Whether an engine takes pieces that are no whole blocks of a matrix that is loaded as one with others: vLLM of all
/// but experts in FP8's own format (`linear.py`, `_maybe_allow_fp8_block_shape_mismatch`), `SGLang` of the
/// projections of `MiMo` V2 (`mimo_v2.py`, `skip_block_quant_check`).
fn may_be_broken(
    facts: &ModelFacts,
    setup: &Setup,
    scaled: &HashMap<&str, &Tensor>,
    module: &str,
) -> bool {
    let own = scaled.get(module).is_some_and(|t| t.name.ends_with("_scale_inv"));
    match setup.rules.pool {
        Pool::Tokens => {
            let mimo = facts.architecture.as_deref().is_some_and(|a| a.starts_with("MiMoV2"));
            mimo && ["q_proj", "k_proj", "v_proj"].iter().any(|word| module.ends_with(word))
        }
        _ => own && !module.contains(".experts."),
    }
}

/// A matrix of the language model that cannot be cut as `setup` asks.
pub(super) fn refusal(facts: &ModelFacts, setup: &Setup) -> Option<EngineError> {
    let layers = facts.layout.layers;
    let in_layers = |t: &&Tensor| matches!(place(&t.name, layers), Place::Layer(_));
    let parts = |ends: &[&str]| -> HashMap<&str, &Tensor> {
        let those = facts.tensors.iter().filter(|t| ends.iter().any(|end| t.name.ends_with(end)));
        those.map(|t| (module(&t.name), t)).collect()
    };
    // DeepSeek's name for them, and that of compressed-tensors.
    let scaled = parts(&[".weight_scale_inv", ".weight_scale"]);
    let weights = parts(&[".weight", ".weight_packed"]);
    // Layers are alike: one of each shape is enough.
    let mut seen: Vec<(&str, &[u64])> = Vec::new();
    for tensor in facts.tensors.iter().filter(in_layers) {
        let module = module(&tensor.name);
        let Some((how, ranks)) = cut(facts, setup, module) else { continue };
        let Some((rows, columns)) = sides(tensor) else { continue };
        let part = tensor.name.rsplit('.').next().unwrap_or_default();
        let word = module.rsplit('.').next().unwrap_or(module);
        let key = (word, tensor.shape.as_slice());
        if part != "weight" && part != "scales" && part != "weight_scale" || seen.contains(&key) {
            continue;
        }
        if seen.len() < 256 {
            seen.push(key);
        }
        let why = match part {
            // AWQ and GPTQ: a row of scales for each group of the input.
            "scales" => (how == Cut::Columns && rows > 1 && !rows.is_multiple_of(ranks))
                .then(|| format!("{rows} groups of {word}")),
            // compressed-tensors' packed integers and MXFP8: likewise, by columns. Scales of blocks
            // have fewer rows than the weight; those of four-bit floats are padded.
            "weight_scale" => {
                let grouped = tensor.dtype != "F8_E4M3"
                    && columns > 1
                    && weights.get(module).is_none_or(|w| {
                        let four = tensor.dtype == "U8" && w.dtype == "U8";
                        w.shape.first() == Some(&rows) && !four
                    });
                (how == Cut::Columns && grouped && !columns.is_multiple_of(ranks))
                    .then(|| format!("{columns} groups of {word}"))
            }
            // bitsandbytes' values are in one row, which is cut anywhere.
            _ if columns == 1 => None,
            _ => {
                let side = if how == Cut::Columns { columns } else { rows };
                // Four-bit values lie two in a byte; groups are of sixteen at least.
                let by_blocks = scaled.get(module).and_then(|s| sides(s)).is_some_and(|(r, c)| {
                    r == rows.div_ceil(BLOCK) && c == columns.div_ceil(BLOCK)
                });
                let piece = side.checked_div(ranks).unwrap_or(0);
                if !side.is_multiple_of(ranks.max(1)) {
                    Some(format!(
                        "{side} {} of {word}",
                        if how == Cut::Columns { "columns" } else { "rows" }
                    ))
                } else if by_blocks
                    && !piece.is_multiple_of(BLOCK)
                    && (ranks > 1 || how == Cut::Merged && word != "up_proj")
                    && !(how == Cut::Merged && may_be_broken(facts, setup, &scaled, module))
                {
                    Some(format!("{word}, in blocks of {BLOCK} and {side} wide,"))
                } else {
                    None
                }
            }
        };
        if let Some(what) = why {
            let experts = module.contains(".experts.") && setup.expert <= 1;
            return Some(EngineError::Indivisible {
                what: format!("{what} cannot be divided over tensor = {ranks}"),
                hint: if experts {
                    "use expert parallelism, or fewer ranks".to_owned()
                } else {
                    "use fewer ranks, and more stages or replicas".to_owned()
                },
            });
        }
    }
    None
}

/// Experts that cannot be divided over the ranks of expert parallelism (`SGLang`
/// `layers/moe/fused_moe_triton/layer.py`; vLLM gives some ranks one more).
pub(super) fn experts(facts: &ModelFacts, setup: &Setup) -> Option<EngineError> {
    let experts = u64::from(facts.experts.filter(|n| *n > 0)?);
    (setup.expert > 1 && !experts.is_multiple_of(setup.expert)).then(|| EngineError::Indivisible {
        what: format!("{experts} experts cannot be divided over expert = {}", setup.expert),
        hint: format!("use a number of ranks that divides {experts}"),
    })
}

/// Heads of towers that vLLM divides without asking whether they do (`distributed/utils.py`, `divide`).
pub(super) fn towers(facts: &ModelFacts, setup: &Setup) -> Option<EngineError> {
    let (towers, ranks) = (facts.layout.towers, setup.tensor.max(1));
    let uneven = |tower| match tower {
        Tower::Heads(heads) if !heads.is_multiple_of(ranks) => Some(heads),
        _ => None,
    };
    let vision = uneven(towers.vision).filter(|_| !setup.whole_towers);
    let (heads, of, hint) = match (vision, uneven(towers.audio)) {
        (Some(heads), _) => (heads, "images", ", or give vLLM `--mm-encoder-tp-mode data`"),
        (None, Some(heads)) => (heads, "sound", ""),
        (None, None) => return None,
    };
    Some(EngineError::Indivisible {
        what: format!(
            "{heads} heads of its tower for {of} cannot be divided over tensor = {ranks}"
        ),
        hint: format!("use a number of ranks that divides {heads}{hint}"),
    })
}

/// Heads and groups of recurrent states (vLLM `mamba_mixer2.py`, `qwen3_next.py`): only a single group is made
/// once for each rank.
pub(super) fn states(facts: &ModelFacts, setup: &Setup) -> Option<EngineError> {
    let ranks = setup.attention(facts);
    let groups = facts.layout.groups.0;
    if groups > 1 && !groups.is_multiple_of(ranks.max(1)) {
        return Some(EngineError::Indivisible {
            what: format!(
                "{groups} groups of recurrent states cannot be divided over tensor = {ranks}"
            ),
            hint: format!("use a number of ranks that divides {groups}"),
        });
    }
    let log = facts.tensors.iter().find(|t| t.name.ends_with(".A_log"))?;
    let heads = log.shape.first().copied().filter(|n| *n > 1)?;
    (!heads.is_multiple_of(ranks.max(1))).then(|| EngineError::Indivisible {
        what: format!("{heads} heads of recurrent states cannot be divided over tensor = {ranks}"),
        hint: format!("use a number of ranks that divides {heads}"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::super::refusal;
    use crate::base::Hint;
    use crate::engine::memory::{SGLANG, VLLM};
    use crate::model::Setup;
    use crate::model::estimate::tests::facts;

    fn why(config: &str, setup: &Setup) -> Option<String> {
        refusal(&facts(config), setup).map(|e| e.to_string())
    }

    const QWEN3_MOE: &str = r#"{"architectures":["Qwen3MoeForCausalLM"],"model_type":"qwen3_moe",
        "hidden_size":4096,"intermediate_size":12288,"moe_intermediate_size":1536,"num_hidden_layers":2,
        "num_attention_heads":64,"num_key_value_heads":4,"head_dim":128,"num_experts":128,
        "num_experts_per_tok":8,"vocab_size":151936,"torch_dtype":"bfloat16","quantization_config":
        {"quant_method":"fp8","activation_scheme":"dynamic","weight_block_size":[128,128]}}"#;

    /// vLLM #17569, #25292: 1536 / 8 = 192 is no whole number of blocks.
    #[test]
    fn blocks_of_eight_bits_are_not_cut() {
        for rules in [VLLM, SGLANG] {
            let of =
                |tensor, expert| why(QWEN3_MOE, &Setup { tensor, expert, ..Setup::new(rules) });
            assert_eq!(of(4, 1), None);
            assert!(of(8, 1).unwrap().contains("gate_proj, in blocks of 128"));
            assert_eq!(of(8, 8), None);
        }
        // The same blocks as compressed-tensors stores them.
        let compressed = QWEN3_MOE.replace(
            r#"{"quant_method":"fp8","activation_scheme":"dynamic","weight_block_size":[128,128]}"#,
            r#"{"quant_method":"compressed-tensors","format":"float-quantized","config_groups":{"group_0":
            {"targets":["Linear"],"weights":{"num_bits":8,"type":"float","strategy":"block",
            "block_structure":[128,128]}}}}"#,
        );
        let of = |tensor| why(&compressed, &Setup { tensor, ..Setup::new(VLLM) });
        assert_eq!(of(4), None);
        assert!(of(8).unwrap().contains("gate_proj, in blocks of 128"));
        // MXFP8: 1536 / 32 = 48 groups.
        let mx = compressed
            .replace(r#""strategy":"block""#, r#""strategy":"group","group_size":32"#)
            .replace(r#""block_structure":[128,128]"#, r#""scale_dtype":"torch.uint8""#);
        let of = |tensor| why(&mx, &Setup { tensor, ..Setup::new(VLLM) });
        assert_eq!(of(16), None);
        assert!(of(32).unwrap().contains("48 groups of down_proj"));
        let plain = QWEN3_MOE.replace("quantization_config", "none");
        assert_eq!(why(&plain, &Setup { tensor: 8, ..Setup::new(VLLM) }), None);
    }

    /// `MiMo` V2 Flash is served on four GPUs with a key of one head, 192 wide, each: projections that are loaded as one
    /// need no whole blocks there.
    #[test]
    fn projections_that_are_loaded_as_one_may_break_blocks() {
        let config = QWEN3_MOE
            .replace("Qwen3MoeForCausalLM", "MiMoV2FlashForCausalLM")
            .replace(
                r#""model_type":"qwen3_moe""#,
                r#""model_type":"mimo_v2_flash","v_head_dim":128"#,
            )
            .replace(r#""head_dim":128"#, r#""head_dim":192"#);
        let of = |config: &str, rules| why(config, &Setup { tensor: 4, ..Setup::new(rules) });
        for rules in [VLLM, SGLANG] {
            assert_eq!(of(&config, rules), None);
        }
        // SGLang does so for this model alone; vLLM not where compressed-tensors made the blocks.
        let other = config.replace("MiMoV2Flash", "Other");
        assert_eq!(of(&other, VLLM), None);
        assert!(of(&other, SGLANG).unwrap().contains("k_proj, in blocks of 128"));
        let compressed = config.replace(
            r#"{"quant_method":"fp8","activation_scheme":"dynamic","weight_block_size":[128,128]}"#,
            r#"{"quant_method":"compressed-tensors","format":"float-quantized","config_groups":{"group_0":
            {"targets":["Linear"],"weights":{"num_bits":8,"type":"float","strategy":"block",
            "block_structure":[128,128]}}}}"#,
        );
        assert!(of(&compressed, VLLM).unwrap().contains("k_proj, in blocks of 128"));
    }

    /// Qwen2.5-72B in four bits as first published: 29568 / 128 = 231 groups.
    #[test]
    fn widths_and_groups_that_do_not_divide_are_refused() {
        let awq = r#"{"architectures":["Qwen2ForCausalLM"],"model_type":"qwen2","hidden_size":8192,
            "intermediate_size":29568,"num_hidden_layers":2,"num_attention_heads":64,
            "num_key_value_heads":8,"vocab_size":152064,"torch_dtype":"float16","quantization_config":
            {"quant_method":"awq","bits":4,"group_size":128}}"#;
        let of = |config: &str, tensor| why(config, &Setup { tensor, ..Setup::new(VLLM) });
        assert_eq!(of(awq, 1), None);
        assert!(of(awq, 2).unwrap().contains("231 groups of down_proj"));
        assert_eq!(of(&awq.replace("29568", "29696"), 8), None);
        let seven = r#"{"architectures":["Qwen2ForCausalLM"],"model_type":"qwen2","hidden_size":3584,
            "intermediate_size":18944,"num_hidden_layers":2,"num_attention_heads":28,
            "num_key_value_heads":4,"vocab_size":152064,"torch_dtype":"bfloat16"}"#;
        assert_eq!(of(seven, 4), None);
        assert!(
            of(&seven.replace("\"num_key_value_heads\":4", "\"num_key_value_heads\":7"), 7)
                .unwrap()
                .contains("18944 rows")
        );
    }

    #[test]
    fn experts_and_states_divide_evenly_or_not_at_all() {
        let of = |rules, expert| {
            let config = QWEN3_MOE.replace("\"num_experts\":128", "\"num_experts\":60");
            why(&config, &Setup { tensor: 8, expert, ..Setup::new(rules) })
        };
        assert!(of(SGLANG, 8).unwrap().contains("60 experts"));
        assert_eq!(of(VLLM, 8), None);
        let hybrid = r#"{"architectures":["FalconH1ForCausalLM"],"model_type":"falcon_h1","hidden_size":3072,
            "intermediate_size":12288,"num_hidden_layers":2,"num_attention_heads":16,"num_key_value_heads":2,
            "head_dim":128,"vocab_size":130048,"mamba_d_ssm":3072,"mamba_d_state":256,"mamba_n_heads":24,
            "mamba_d_head":128,"mamba_n_groups":1,"torch_dtype":"bfloat16"}"#;
        assert_eq!(why(hybrid, &Setup { tensor: 8, ..Setup::new(VLLM) }), None);
        assert!(
            why(hybrid, &Setup { tensor: 16, ..Setup::new(VLLM) }).unwrap().contains("24 heads")
        );
        // Several groups are divided; only a single one is made for each rank.
        let two = hybrid
            .replace("\"mamba_n_groups\":1", "\"mamba_n_groups\":2")
            .replace("\"mamba_n_heads\":24", "\"mamba_n_heads\":32");
        let codestral = r#"{"architectures":["Mamba2ForCausalLM"],"model_type":"mamba2","hidden_size":4096,
            "num_hidden_layers":2,"num_heads":128,"head_dim":64,"state_size":128,"n_groups":8,"conv_kernel":4,
            "expand":2,"vocab_size":32768,"torch_dtype":"bfloat16"}"#;
        let zamba = r#"{"model_type":"zamba2","hidden_size":3584,"num_hidden_layers":2,"num_attention_heads":32,
            "num_key_value_heads":32,"attention_head_dim":224,"intermediate_size":14336,"vocab_size":32000,
            "mamba_d_state":64,"mamba_ngroups":2,"n_mamba_heads":112,"mamba_headdim":64,"num_mem_blocks":2,
            "hybrid_layer_ids":[1],"layers_block_type":["mamba","hybrid"],"torch_dtype":"bfloat16"}"#;
        for (config, good, bad, words) in [
            (two.as_str(), 2, 4, "2 groups of recurrent"),
            (codestral, 8, 16, "8 groups of recurrent"),
            (zamba, 2, 4, "2 groups of recurrent"),
        ] {
            for rules in [VLLM, SGLANG] {
                let of = |tensor| why(config, &Setup { tensor, ..Setup::new(rules) });
                assert_eq!(of(good), None, "{words}");
                assert!(of(bad).unwrap().contains(words), "{words}");
            }
        }
    }

    #[test]
    fn heads_of_towers_divide_or_the_tower_is_whole() {
        let text = r#""hidden_size":4096,"intermediate_size":8192,"num_hidden_layers":2,"num_attention_heads":96,
            "num_key_value_heads":8,"vocab_size":151552"#;
        let glm = format!(
            r#"{{"model_type":"glm4v_moe","torch_dtype":"bfloat16","text_config":{{"model_type":"glm4v_moe_text",
            {text}}},"vision_config":{{"model_type":"glm4v_moe","num_heads":12}}}}"#
        );
        let plain = |tensor| Setup { tensor, ..Setup::new(VLLM) };
        assert_eq!(why(&glm, &plain(4)), None);
        let error = refusal(&facts(&glm), &plain(8)).unwrap();
        assert!(error.to_string().contains("12 heads of its tower for images"), "{error}");
        assert!(error.hint().unwrap().contains("--mm-encoder-tp-mode data"), "{error}");
        let whole = Setup { whole_towers: true, ..plain(8) };
        assert_eq!(why(&glm, &whole), None);
        assert_eq!(why(&glm, &Setup { tensor: 8, ..Setup::new(SGLANG) }), None);
        let voxtral = format!(
            r#"{{"model_type":"voxtral","torch_dtype":"bfloat16","text_config":{{"model_type":"llama",{text}}},
            "audio_config":{{"model_type":"voxtral_encoder","num_attention_heads":20}}}}"#
        );
        assert_eq!(why(&voxtral, &plain(4)), None);
        let error = refusal(&facts(&voxtral), &plain(8)).unwrap();
        assert!(error.to_string().contains("20 heads of its tower for sound"), "{error}");
        // InternViT leaves its attention whole instead.
        let intern = format!(
            r#"{{"model_type":"internvl_chat","torch_dtype":"bfloat16","llm_config":{{"model_type":"qwen2",{text}}},
            "vision_config":{{"model_type":"intern_vit_6b","hidden_size":3200,"intermediate_size":12800,
            "num_hidden_layers":2,"num_attention_heads":25,"image_size":448,"patch_size":14}}}}"#
        );
        assert_eq!(why(&intern, &plain(8)), None);
    }
}

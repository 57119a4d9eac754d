//! Feed-forward layers: gated and plain, dense and mixtures of experts.

use serde_json::Value;

use super::{Build, Certainty, conf, conf::Conf, conf::whole, deepseek_v4, qwen4, state};
use crate::model::quant::Method;

/// Whether the feed-forward layer has no gate: two matrices instead of three.
fn ungated(conf: &Conf<'_>) -> bool {
    conf.is(&[
        "phi",
        "falcon",
        "gpt_neox",
        "starcoder2",
        "gpt_bigcode",
        "gpt2",
        "gptj",
        "gpt_neo",
        "bloom",
        "opt",
        "mpt",
        "persimmon",
        "nemotron",
        "nemotron_h",
        "arcee",
        "apertus",
        "nanochat",
        "xglm",
        "biogpt",
        "jais2",
    ])
}

fn bias(conf: &Conf<'_>) -> bool {
    match conf.kind.as_str() {
        "phi" | "gpt_bigcode" | "gpt2" | "gptj" | "gpt_neo" | "bloom" | "persimmon"
        | "gpt_neox" => true,
        "phi3small" | "xglm" | "biogpt" => true,
        "starcoder2" => conf.flag("use_bias") != Some(false),
        "opt" => conf.flag("enable_bias") != Some(false),
        "falcon" | "internlm3" => conf.on("bias"),
        "chatglm" => conf.on("add_bias_linear"),
        "ernie4_5" | "ernie4_5_moe" | "ernie4_5_vl_moe_text" => conf.on("use_bias"),
        _ => conf.on("mlp_bias"),
    }
}

/// What the feed-forward layer of a mixture of experts is called.
fn experts_name(conf: &Conf<'_>) -> &'static str {
    match conf.kind.as_str() {
        "mixtral" | "phimoe" | "granitemoe" | "granitemoeshared" | "granitemoehybrid"
        | "granitemoe_swa" | "minimax" | "minimax_m1" | "minimax_m2" | "minimax_text_01"
        | "grok1" | "arctic" | "minimax_m3_vl_text" => "block_sparse_moe",
        "llama4_text" | "jamba" | "lfm2_moe" => "feed_forward",
        "nemotron_h" => "mixer",
        "dbrx" => "ffn",
        _ => "mlp",
    }
}

/// Experts of a layer, and the width of one.
pub(super) fn experts(conf: &Conf<'_>) -> Option<(u64, u64)> {
    // Doge states their number whether it has any (`configuration_doge.py`).
    if conf.is(&["doge"]) && !conf.on("is_moe") {
        return None;
    }
    let ffn = conf.object("ffn_config");
    let inside = |key: &str| ffn.and_then(|f| f.get(key)).and_then(whole);
    let number = conf
        .number(&["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"])
        .or_else(|| inside("moe_num_experts"))
        .or_else(|| conf.list("moe_num_experts")?.first().and_then(whole))
        .filter(|n| *n > 1 && *n <= 1 << 16)?;
    let width = match conf.kind.as_str() {
        "mixtral" | "phimoe" | "granitemoe" | "granitemoeshared" | "granitemoehybrid"
        | "granitemoe_swa" | "gpt_oss" | "llama4_text" | "minimax" | "minimax_m1"
        | "minimax_m2" | "minimax_m3_vl_text" | "minimax_text_01" | "jamba" | "olmoe"
        | "flex_olmo" | "arctic" => conf.number(&["intermediate_size"]),
        _ => None,
    };
    let listed = || conf.list("moe_intermediate_size")?.first().and_then(whole);
    let width = width
        .or_else(|| conf.number(&["moe_intermediate_size", "expert_ffn_hidden_size"]))
        .or_else(listed)
        .or_else(|| inside("ffn_hidden_size"))
        .or_else(|| conf.number(&["intermediate_size"]))?;
    Some((number, width.min(1 << 24)))
}

/// Whether this layer's feed-forward layer has experts.
fn is_sparse(conf: &Conf<'_>, layer: u64) -> bool {
    if let Some(types) = conf.list("mlp_layer_types") {
        let kind = usize::try_from(layer).ok().and_then(|i| types.get(i)).and_then(Value::as_str);
        // What is not dense has experts, whatever routes to them.
        return kind.is_some_and(|kind| kind != "dense");
    }
    if conf.numbers("mlp_only_layers").is_some_and(|dense| dense.contains(&layer)) {
        return false;
    }
    if let Some(sparse) = listed_in_words(conf) {
        return sparse.contains(&layer);
    }
    let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual);
    match conf.kind.as_str() {
        "arctic" => (layer + 1).is_multiple_of(get("moe_layer_frequency", 2).max(1)),
        "step3_text" => layer > 0,
        "jamba" => {
            let period = get("expert_layer_period", 2).max(1);
            layer % period == get("expert_layer_offset", 1) % period
        }
        "llama4_text" => match conf.numbers("moe_layers") {
            Some(list) => list.contains(&layer),
            None => (layer + 1).is_multiple_of(get("interleave_moe_layer_step", 1).max(1)),
        },
        "ernie4_5_moe" | "ernie4_5_vl_moe_text" => {
            let start = get("moe_layer_start_index", 1);
            let end = conf.stated(&["moe_layer_end_index"]).unwrap_or(u64::MAX);
            (layer + 1).is_multiple_of(get("moe_layer_interval", 1).max(1))
                && layer >= start
                && layer <= end
        }
        "lfm2_moe" | "afmoe" => layer >= get("num_dense_layers", 0),
        _ => {
            if let Some(list) = conf.numbers("moe_layer_freq") {
                return usize::try_from(layer).ok().and_then(|i| list.get(i)) == Some(&1);
            }
            let dense = get("first_k_dense_replace", 0);
            let every = get("moe_layer_freq", 1).max(1);
            let step = get("decoder_sparse_step", 1).max(1);
            layer >= dense && layer.is_multiple_of(every) && (layer + 1).is_multiple_of(step)
        }
    }
}

/// The layers with experts, where they are listed as `"3,4,5"` (Step).
fn listed_in_words(conf: &Conf<'_>) -> Option<Vec<u64>> {
    let words = conf.text_of("moe_layers_enum")?;
    Some(words.split(',').take(conf::MAX_LIST).filter_map(|w| w.trim().parse().ok()).collect())
}

/// Whether a layer of Arctic has a dense feed-forward layer beside its experts (`modeling_arctic.py`).
pub(super) fn has_residual(conf: &Conf<'_>, layer: u64) -> bool {
    let asked = conf.on("use_residual") || conf.on("parallel_attn_mlp_res");
    asked && experts(conf).is_some() && is_sparse(conf, layer)
}

impl Build<'_> {
    /// What follows attention in a layer.
    pub(super) fn feed_forward(&mut self, at: &str, layer: u64) {
        let conf = self.conf;
        let n = self.n;
        if conf.is(&["nemotron-nas"]) {
            if let Some(width) = state::nas_block(conf, layer).inner {
                self.mlp(at, "mlp", width);
            }
            return;
        }
        if conf.is(&["granitemoehybrid"]) {
            let width = conf.number(&["shared_intermediate_size"]).unwrap_or(0);
            self.linear(&format!("{at}.shared_mlp.input_linear"), 2 * width, n.hidden, false);
            self.linear(&format!("{at}.shared_mlp.output_linear"), n.hidden, width, false);
            if experts(conf).is_some() {
                self.experts(at);
            }
            return;
        }
        if conf.is(&super::gemma4::KINDS) {
            return self.gemma4_feed_forward(at, layer);
        }
        if experts(conf).is_some() && is_sparse(conf, layer) {
            self.experts(at);
            // Grok 2 has a dense layer beside its experts.
            if conf.is(&["grok1"]) && conf.on("residual_moe") {
                self.mlp(at, "mlp", n.inner);
            }
            if conf.is(&["arctic"]) && has_residual(conf, layer) {
                self.mlp(at, "residual_mlp", n.hidden);
            }
            return;
        }
        let width = match conf.kind.as_str() {
            "llama4_text" if experts(conf).is_some() => {
                conf.number(&["intermediate_size_mlp"]).unwrap_or(n.inner)
            }
            "falcon" => conf
                .number(&["ffn_hidden_size"])
                .filter(|_| conf.given("ffn_hidden_size").is_some())
                .unwrap_or(4 * n.hidden),
            "gpt2" | "gpt_bigcode" | "gptj" | "gpt_neo" | "bloom" => {
                conf.stated(&["n_inner", "intermediate_size"]).unwrap_or(4 * n.hidden)
            }
            "phi3small" => conf.number(&["ff_intermediate_size"]).unwrap_or(n.inner),
            "mpt" => conf.number(&["expansion_ratio"]).unwrap_or(4) * n.hidden,
            "chatglm" => conf.stated(&["ffn_hidden_size"]).unwrap_or(n.inner),
            // A width for each layer.
            "gemma3n_text" => conf
                .list("intermediate_size")
                .and_then(|list| list.get(usize::try_from(layer).ok()?))
                .and_then(whole)
                .map_or(n.inner, |width| width.min(1 << 24)),
            "qwen" | "molmo" => n.inner / 2,
            "minimax_m3_vl_text" => conf.number(&["dense_intermediate_size"]).unwrap_or(n.inner),
            "nanochat" => n.inner,
            "lfm2" | "lfm2_moe" if conf.flag("block_auto_adjust_ff_dim") == Some(true) => {
                let inner = conf.number(&["block_ff_dim", "intermediate_size"]).unwrap_or(n.inner);
                let multiple = conf.number(&["block_multiple_of"]).unwrap_or(256).max(1);
                // transformers Lfm2MLP: two thirds, rounded up.
                (2 * inner / 3).next_multiple_of(multiple)
            }
            _ => n.inner,
        };
        let name = if conf.is(&["jamba", "lfm2", "lfm2_moe", "llama4_text"]) {
            "feed_forward"
        } else {
            "mlp"
        };
        self.mlp(at, name, width);
    }

    /// A dense feed-forward layer.
    pub(super) fn mlp(&mut self, at: &str, name: &str, width: u64) {
        let conf = self.conf;
        let hidden = self.n.hidden;
        let bias = bias(conf);
        let at = format!("{at}.{name}");
        let mut width = width;
        if width == 0 {
            let why =
                "the width of its feed-forward layers is not stated: four times the hidden size";
            self.doubt(Certainty::Guess, why);
            width = hidden.saturating_mul(4);
        }
        if ungated(conf) {
            self.linear(&format!("{at}.up_proj"), width, hidden, bias);
        } else if conf.is(&["phi3", "phi3small", "glm", "glm4", "chatglm", "glm4v_text"]) {
            self.linear(&format!("{at}.gate_up_proj"), 2 * width, hidden, bias);
        } else {
            self.linear(&format!("{at}.gate_proj"), width, hidden, bias);
            self.linear(&format!("{at}.up_proj"), width, hidden, bias);
        }
        self.linear(&format!("{at}.down_proj"), hidden, width, bias);
        if conf.is(&["apertus"]) {
            for part in ["alpha_p", "alpha_n", "beta", "eps"] {
                self.plain(&format!("{at}.act_fn.{part}"), &[1], 1);
            }
        }
    }

    /// A mixture of experts: router, experts, shared experts.
    pub(super) fn experts(&mut self, at: &str) {
        let conf = self.conf;
        let hidden = self.n.hidden;
        let Some((number, width)) = experts(conf) else { return };
        let base = at;
        let at = format!("{at}.{}", experts_name(conf));
        self.router(&at, number);
        if conf.is(&["gpt_oss"]) {
            self.plain(&format!("{at}.router.bias"), &[number], 1);
            return self.gpt_oss_experts(&at, number, width);
        }
        self.correction(&at, number);
        if conf.is(&["ernie4_5_moe", "ernie4_5_vl_moe_text", "step3p5"]) {
            let why = "whether its routers are stored in 32 bits is not known";
            self.doubt_by(Certainty::Close, (1, 1), why);
        }
        // Experts of Nemotron 3 Super see a shorter vector (vLLM `nemotron_h.py`, `fc1_latent_proj`).
        let seen = conf.number(&["moe_latent_size"]).filter(|n| *n > 0).unwrap_or(hidden);
        if seen != hidden {
            self.linear(&format!("{at}.fc1_latent_proj"), seen, hidden, bias(conf));
            self.linear(&format!("{at}.fc2_latent_proj"), hidden, seen, bias(conf));
        }
        let seen = self.kimi_latent(&at, seen);
        let seen = self.muse_latent(&at, seen);
        if !ungated(conf) {
            self.expert(&format!("{at}.experts.*.gate_proj"), width, seen, number);
        }
        self.expert(&format!("{at}.experts.*.up_proj"), width, seen, number);
        self.expert(&format!("{at}.experts.*.down_proj"), seen, width, number);
        self.shared(&at, base, width);
        // ERNIE's models for images have as many experts for these, of another width.
        let second = conf.numbers("moe_intermediate_size").and_then(|l| l.get(1).copied());
        if let Some(width) = second.filter(|_| conf.is(&["ernie4_5_vl_moe_text"])) {
            self.plain(&format!("{at}.vision_moe.gate.weight"), &[number, hidden], 1);
            self.correction(&format!("{at}.vision_moe"), number);
            let at = format!("{at}.vision_moe.experts.*");
            self.linears(&format!("{at}.gate_proj"), width, hidden, false, number);
            self.linears(&format!("{at}.up_proj"), width, hidden, false, number);
            self.linears(&format!("{at}.down_proj"), hidden, width, false, number);
        }
    }

    /// Experts of Kimi K3 see a shorter vector, too; what makes it is not quantised with them (vLLM `kimi_k3/nvidia/model.py`,
    /// `KimiMoE`; `SGLang` `kimi_k3.py`, `latent_quant_config`).
    fn kimi_latent(&mut self, at: &str, usual: u64) -> u64 {
        let (conf, hidden) = (self.conf, self.n.hidden);
        let stated = conf.number(&["routed_expert_hidden_size"]).filter(|n| *n > 0);
        let Some(seen) = stated.filter(|_| conf.is(&["kimi_linear"])) else { return usual };
        let why = "whether its routers are stored in 32 bits is not known";
        self.doubt_by(Certainty::Close, (1, 1), why);
        self.plain(&format!("{at}.routed_expert_down_proj.weight"), &[seen, hidden], 1);
        self.plain(&format!("{at}.routed_expert_up_proj.weight"), &[hidden, seen], 1);
        if conf.on("latent_moe_use_norm") {
            self.plain(&format!("{at}.routed_expert_norm.weight"), &[seen], 1);
        }
        seen
    }

    /// One matrix of all experts. `DeepSeek` V4 states a type of theirs beside the quantisation of all else: four
    /// bits, two in a byte, with an exponent of 32 of them.
    pub(super) fn expert(&mut self, module: &str, rows: u64, columns: u64, count: u64) {
        if !deepseek_v4::has_experts_of_four_bits(self.conf) {
            return self.linears(module, rows, columns, false, count);
        }
        self.typed(&format!("{module}.weight"), &[rows, columns.div_ceil(2)], count, ("I8", 1));
        let scales = [rows, columns.div_ceil(32)];
        self.typed(&format!("{module}.scale"), &scales, count, ("F8_E8M0", 1));
    }

    /// What chooses the experts. `MiniMax` M1's, M2's and Text-01's own files have it in 32 bits (as vLLM's
    /// `minimax_m2.py` loads it; the index of Text-01 states as many bytes), and so has MLX unless the configuration
    /// states a type that it makes of everything. What `transformers` has written anew (`minimax`) is of one type.
    fn router(&mut self, at: &str, number: u64) {
        let conf = self.conf;
        let usual = self.dtype;
        let unquantised = conf.is(&["minimax_m1", "minimax_text_01"]);
        if unquantised || conf.is(&["minimax_m2", "minimax_m3_vl_text"]) {
            let mlx = self.quantisation.is_mlx();
            if !mlx || conf.dtype().is_none() {
                self.dtype = ("F32", 4);
            }
            let name = self.quantisation.name.as_str();
            let own = if unquantised {
                name.is_empty()
            } else {
                ["fp8", "mxfp8"].iter().any(|n| name.starts_with(n))
            };
            if !mlx && !own {
                let why = "whether its routers are stored in 32 bits is not known";
                self.doubt_by(Certainty::Close, (1, 1), why);
            }
        }
        self.table(&format!("{at}.gate"), number, self.n.hidden);
        self.dtype = usual;
    }

    /// Routers that balance without a loss have a bias of their own.
    fn correction(&mut self, at: &str, number: u64) {
        let conf = self.conf;
        let has = match conf.kind.as_str() {
            "deepseek_v3"
            | "kimi_k2"
            | "glm4_moe"
            | "glm4v_moe_text"
            | "glm_moe_dsa"
            | "deepseek_v32"
            | "glm4_moe_lite"
            | "dots1"
            | "solar_open"
            | "hy_v3"
            | "mimo_v2_flash"
            | "step3p7"
            | "step3p5"
            | "nemotron_h"
            | "ernie4_5_moe"
            | "kimi_linear"
            | "afmoe"
            | "axk1"
            | "exaone_moe"
            | "glm5_next_text"
            | "hy_v4"
            | "kolibri1"
            | "laguna"
            | "muse_spark_text"
            | "ernie4_5_vl_moe_text" => conf.text_of("topk_method").is_none_or(|m| m == "noaux_tc"),
            "deepseek_v4" => !deepseek_v4::has_table(conf, at),
            "minimax_m2" | "minimax_m3_vl_text" => conf.flag("use_routing_bias") != Some(false),
            "lfm2_moe" => conf.flag("use_expert_bias") != Some(false),
            "bailing_moe_v2" | "bailing_hybrid" => conf.on("moe_router_enable_expert_bias"),
            _ => conf.text_of("topk_method") == Some("noaux_tc"),
        };
        if has {
            self.typed(&format!("{at}.gate.e_score_correction_bias"), &[number], 1, ("F32", 4));
        }
    }

    fn gpt_oss_experts(&mut self, at: &str, number: u64, width: u64) {
        let hidden = self.n.hidden;
        let at = format!("{at}.experts");
        if self.quantisation.method == Method::Mxfp4 {
            let parts = [("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)];
            for (name, rows, columns) in parts {
                let groups = columns.div_ceil(32);
                let blocks = [number, rows, groups, 16];
                self.typed(&format!("{at}.{name}_blocks"), &blocks, 1, ("U8", 1));
                self.typed(&format!("{at}.{name}_scales"), &[number, rows, groups], 1, ("U8", 1));
            }
        } else if self.quantisation.is_mlx() {
            for (name, rows, columns) in [
                ("gate_proj", width, hidden),
                ("up_proj", width, hidden),
                ("down_proj", hidden, width),
            ] {
                self.linears(&format!("{at}.*.{name}"), rows, columns, true, number);
            }
            return;
        } else {
            self.plain(&format!("{at}.gate_up_proj"), &[number, hidden, 2 * width], 1);
            self.plain(&format!("{at}.down_proj"), &[number, width, hidden], 1);
        }
        self.plain(&format!("{at}.gate_up_proj_bias"), &[number, 2 * width], 1);
        self.plain(&format!("{at}.down_proj_bias"), &[number, hidden], 1);
    }

    fn shared(&mut self, at: &str, base: &str, width: u64) {
        let conf = self.conf;
        let hidden = self.n.hidden;
        let get = |key: &str| conf.number(&[key]).unwrap_or(0);
        let (name, width) = match conf.kind.as_str() {
            "llama4_text" => ("shared_expert", width),
            "qwen2_moe" | "qwen3_next" | "qwen3_5_moe_text" | qwen4::KIND => {
                ("shared_expert", get("shared_expert_intermediate_size"))
            }
            "granitemoeshared" | "granitemoe_swa" => {
                let width = get("shared_intermediate_size");
                self.linear(&format!("{base}.shared_mlp.input_linear"), 2 * width, hidden, false);
                self.linear(&format!("{base}.shared_mlp.output_linear"), hidden, width, false);
                return;
            }
            "flint" | "kolibri1" | "laguna" => {
                ("shared_experts", get("shared_expert_intermediate_size"))
            }
            "nemotron_h" => (
                "shared_experts",
                get("moe_shared_expert_intermediate_size") * get("n_shared_experts").max(1),
            ),
            "minimax_m2" | "minimax" | "minimax_text_01" | "minimax_m1" => {
                ("shared_mlp", get("shared_intermediate_size"))
            }
            "hunyuan_v1_moe" | "hunyuan" => {
                let shared = conf.number(&["num_shared_expert"]);
                let shared =
                    shared.or_else(|| conf.list("num_shared_expert")?.first().and_then(whole));
                ("shared_mlp", shared.unwrap_or(1) * self.n.inner)
            }
            "step3p7" | "step3p5" | "step3_text" => ("shared_experts", {
                conf.number(&["share_expert_dim", "share_expert_dims"]).unwrap_or(width)
            }),
            _ => {
                let count = conf
                    .number(&["n_shared_experts", "num_shared_experts", "moe_num_shared_experts"])
                    .unwrap_or(0);
                let each = conf.number(&["moe_shared_expert_intermediate_size"]).unwrap_or(width);
                let stated = conf.stated(&["shared_expert_intermediate_size"]);
                (
                    "shared_experts",
                    stated.filter(|_| count == 0).unwrap_or(count.min(1 << 10) * each),
                )
            }
        };
        if width == 0 {
            return;
        }
        let at_shared = format!("{at}.{name}");
        // `DeepseekV2MLP` and `NemotronHMLP` are the dense layer's own class.
        let bias = conf.is(&["deepseek_v2", "nemotron_h"]) && conf.on("mlp_bias");
        if !ungated(conf) {
            self.linear(&format!("{at_shared}.gate_proj"), width, hidden, bias);
        }
        self.linear(&format!("{at_shared}.up_proj"), width, hidden, bias);
        self.linear(&format!("{at_shared}.down_proj"), hidden, width, bias);
        if conf.is(&["qwen2_moe", "qwen3_next", "qwen3_5_moe_text", qwen4::KIND]) {
            self.table(&format!("{at}.shared_expert_gate"), 1, hidden);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::facts;

    /// LLaDA-8B has the names of its own code.
    #[test]
    fn widths_have_many_names() {
        let llada = |width: &str| {
            facts(&format!(
                r#"{{"architectures":["LLaDAModelLM"],"model_type":"llada","d_model":4096,"n_layers":32,"n_heads":32,
                "n_kv_heads":32,{width}"vocab_size":126464,"torch_dtype":"bfloat16"}}"#
            ))
        };
        assert_eq!(llada(r#""mlp_hidden_size":12288,"#).weight_bytes.0, 16_031_162_368);
        assert_eq!(llada(r#""mlp_hidden_size":12288,"#).intermediate_size, Some(12_288));
        for key in ["encoder_ffn_dim", "decoder_ffn_dim"] {
            let width = format!(r#""{key}":12288,"#);
            assert_eq!(llada(&width).weight_bytes.0, 16_031_162_368, "{key}");
        }
        // Not stated at all: what most have, with a wide bar, instead of nothing.
        let (none, four) = (llada(""), llada(r#""mlp_hidden_size":16384,"#));
        assert_eq!(none.weight_bytes, four.weight_bytes);
        assert_eq!((none.certainty, none.spread), (Certainty::Guess, Some((400, 400))));
    }
}

//! Layers that hold more than one of something: two attentions and feed-forward layers around experts
//! (`LongCat`), one transformer that many Mamba layers call (Zamba).

use serde_json::Value;

use super::{Build, Keeps, conf::Conf};

/// Whether a layer of Zamba calls a shared transformer, and which of them: its number among such. Where the first
/// Zamba does not list them, the third does and after it one of each six (`configuration_zamba.py`).
pub(super) fn zamba_call(conf: &Conf<'_>, layer: u64) -> Option<u64> {
    let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual);
    let called: Vec<u64> = match conf.numbers("hybrid_layer_ids") {
        Some(list) => list,
        None if conf.is(&["zamba"]) && conf.list("layers_block_type").is_none() => {
            let (period, offset) = (get("attn_layer_period", 6), get("attn_layer_offset", 4));
            let calls = |at: &u64| {
                *at == 2 || at.checked_sub(3).is_some_and(|n| n % period.max(1) == offset)
            };
            (0..=layer).filter(calls).collect()
        }
        None => (0u64..)
            .zip(conf.list("layers_block_type")?)
            .filter(|(_, kind)| {
                kind.as_str().or(kind.get("type").and_then(Value::as_str)) == Some("hybrid")
            })
            .map(|(at, _)| at)
            .collect(),
    };
    (0u64..).zip(called).find(|(_, at)| *at == layer).map(|(number, _)| number)
}

impl Build<'_> {
    /// `modeling_longcat_flash.py`.
    pub(super) fn longcat(&mut self, at: &str, layer: u64) {
        let (conf, n) = (self.conf, self.n);
        let inner = conf.number(&["ffn_hidden_size"]).unwrap_or(n.inner);
        for half in 0..2 {
            self.latent(&format!("{at}.self_attn.{half}"), layer, true);
            self.mlp(at, &format!("mlps.{half}"), inner);
            self.norm(&format!("{at}.input_layernorm.{half}"), n.hidden);
            self.norm(&format!("{at}.post_attention_layernorm.{half}"), n.hidden);
        }
        let number = conf.number(&["n_routed_experts"]).unwrap_or(0).min(1 << 16);
        let width = conf.number(&["expert_ffn_hidden_size"]).unwrap_or(0);
        // Experts that do nothing have a place in the router alone.
        let routed = number + conf.number(&["zero_expert_num"]).unwrap_or(0);
        self.plain(&format!("{at}.mlp.router.classifier.weight"), &[routed, n.hidden], 1);
        let bias = format!("{at}.mlp.router.e_score_correction_bias");
        self.typed(&bias, &[routed], 1, ("F32", 4));
        self.linears(&format!("{at}.mlp.experts.*.gate_proj"), width, n.hidden, false, number);
        self.linears(&format!("{at}.mlp.experts.*.up_proj"), width, n.hidden, false, number);
        self.linears(&format!("{at}.mlp.experts.*.down_proj"), n.hidden, width, false, number);
    }

    /// What a layer of Zamba has besides its Mamba (`modeling_zamba.py`, `modeling_zamba2.py`); only the second adapts
    /// the shared transformer to each layer that calls it.
    pub(super) fn zamba(&mut self, at: &str, layer: u64) {
        let (conf, n) = (self.conf, self.n);
        self.norm(&format!("{at}.input_layernorm"), n.hidden);
        let Some(number) = zamba_call(conf, layer) else { return };
        self.linear(&format!("{at}.linear"), n.hidden, n.hidden, false);
        let wide = 2 * n.hidden;
        let head = conf.stated(&["attention_head_dim"]);
        let head = head.or_else(|| wide.checked_div(n.heads)).unwrap_or(0).min(1 << 14);
        let (all, kv) = (n.heads * head, n.kv_heads * head);
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let kv_heads = small(n.kv_heads);
        let keeps =
            Keeps::Attention { kv_heads, key: small(head), value: small(head), window: None };
        self.keeps(layer, keeps);
        let rank = conf.number(&["adapter_rank"]).unwrap_or(128).min(1 << 14);
        let blocks = conf.number(&["num_mem_blocks"]).unwrap_or(1).clamp(1, 64);
        let bias = conf.on("add_bias_linear");
        let at = format!("{at}.shared_transformer");
        if number < blocks {
            self.linear(&format!("{at}.self_attn.q_proj"), all, wide, false);
            self.linear(&format!("{at}.self_attn.k_proj"), kv, wide, false);
            self.linear(&format!("{at}.self_attn.v_proj"), kv, wide, false);
            self.linear(&format!("{at}.self_attn.o_proj"), n.hidden, all, false);
            self.linear(&format!("{at}.feed_forward.gate_up_proj"), 2 * n.inner, n.hidden, bias);
            self.linear(&format!("{at}.feed_forward.down_proj"), n.hidden, n.inner, bias);
            self.norm(&format!("{at}.input_layernorm"), wide);
            self.norm(&format!("{at}.pre_ff_layernorm"), n.hidden);
        }
        if conf.is(&["zamba"]) {
            return;
        }
        if conf.on("use_shared_attention_adapter") {
            for part in ["q", "k", "v"] {
                let name = format!("{at}.self_attn.linear_{part}_adapter");
                self.linear(&format!("{name}.0"), rank, wide, false);
                self.linear(&format!("{name}.1"), all, rank, false);
            }
        }
        self.linear(&format!("{at}.feed_forward.gate_up_proj_adapter.0"), rank, n.hidden, false);
        self.linear(&format!("{at}.feed_forward.gate_up_proj_adapter.1"), 2 * n.inner, rank, false);
    }
}

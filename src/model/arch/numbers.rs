//! The numbers that most layers share, under the names that families have for them.

use serde_json::Value;

use super::MAX_LAYERS;
use super::conf::{Conf, whole};

/// Where configurations state the width of the hidden state.
pub(in crate::model) const HIDDEN: [&str; 7] =
    ["hidden_size", "n_embd", "n_embed", "d_model", "dim", "model_dim", "embed_dim"];

/// Where they state their layers.
pub(in crate::model) const LAYERS: [&str; 7] = [
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_transformer_layers",
    "decoder_layers",
    "decoder_num_hidden_layers",
];

/// Where they state the heads of attention.
pub(in crate::model) const HEADS: [&str; 8] = [
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "decoder_attention_heads",
    "attention_heads",
    "num_query_heads",
    "decoder_num_attention_heads",
];

/// Where they state the width of a dense feed-forward layer.
pub(in crate::model) const INNER: [&str; 7] = [
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "mlp_hidden_size",
    "decoder_ffn_dim",
    "encoder_ffn_dim",
    "d_ff",
];

/// The numbers that most layers share.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    pub(super) hidden: u64,
    pub(super) layers: u64,
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) head_dim: u64,
    pub(super) value_dim: u64,
    pub(super) vocab: u64,
    pub(super) inner: u64,
    /// Neither heads nor what a layer keeps is stated: they are counted as wide as the hidden state.
    pub(super) unstated: bool,
}

impl Numbers {
    /// What a configuration states; none if it does not even tell the size of a layer.
    pub(super) fn of(conf: &Conf<'_>) -> Option<Self> {
        let hidden = conf
            .stated(&["n_embed"])
            .filter(|_| conf.is(&["bloom"]))
            .or_else(|| conf.number(&["hidden_size", "n_embd", "d_model", "dim"]))
            .or_else(|| conf.number(&HIDDEN))?;
        let pattern = conf.text_of("hybrid_override_pattern");
        let listed = conf.list("layers_block_type").map(<[Value]>::len);
        // Of a model that encodes sound the other number is that of its encoder.
        let decoder = conf.number(&["decoder_layers"]).filter(|_| conf.is(&["whisper"]));
        let layers = decoder
            .or_else(|| conf.number(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"]))
            .or_else(|| pattern.map(|p| p.len() as u64))
            .or_else(|| listed.map(|n| n as u64))
            .or_else(|| conf.number(&LAYERS))?;
        let mut heads = conf
            .number(&["num_attention_heads", "n_head", "n_heads"])
            .or_else(|| conf.number(&HEADS))
            .or_else(|| largest(conf, &HEADS))
            .unwrap_or(0);
        let mut kv_heads = conf.number(&KV_HEADS);
        let mut head_dim = conf
            .number(&["head_dim", "attention_head_dim", "kv_channels", "d_kv"])
            .filter(|n| *n > 0);
        if conf.is(&["falcon"]) && !conf.on("new_decoder_architecture") {
            kv_heads = if conf.flag("multi_query") == Some(false) { Some(heads) } else { Some(1) };
        } else if conf.is(&["gpt_bigcode"]) && conf.flag("multi_query") != Some(false) {
            kv_heads = Some(1);
        } else if conf.is(&["chatglm"]) {
            kv_heads = conf
                .number(&["multi_query_group_num"])
                .filter(|_| conf.on("multi_query_attention"));
        } else if let Some(attention) = conf.object("attn_config") {
            kv_heads = attention.get("kv_n_heads").and_then(whole).or(kv_heads);
        }
        if conf.is(&["mamba", "mamba2", "falcon_mamba"]) {
            head_dim = None;
        }
        if hidden == 0 || layers == 0 || layers > MAX_LAYERS || hidden > 1 << 20 || heads > 1 << 14
        {
            return None;
        }
        // Small models of this family have neither latent vectors nor the numbers of such.
        let plain = conf.is(&["deepseek_v2"]) && conf.number(&["kv_lora_rank"]).is_none();
        if plain && conf.stated(&["head_dim"]).is_none() {
            head_dim = None;
        }
        let alone = super::state::is_alone(conf);
        if let (0, false, Some(kv @ 1..), Some(width)) = (heads, alone, kv_heads, head_dim) {
            heads = hidden.checked_div(width).unwrap_or(0).max(kv);
        }
        let unstated = heads == 0 && !alone;
        let head_dim = head_dim.or_else(|| hidden.checked_div(heads)).unwrap_or(0).min(1 << 14);
        let kv_heads = kv_heads.unwrap_or(heads).min(1 << 14);
        let value_dim = conf.number(&["v_head_dim"]).filter(|_| !plain).unwrap_or(head_dim);
        let all = Self {
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            value_dim: value_dim.min(1 << 14),
            vocab: conf.number(&["vocab_size", "padded_vocab_size"]).unwrap_or(0).min(1 << 28),
            inner: conf
                .number(&INNER)
                .or_else(|| conf.number(&["hidden_dim"]))
                .unwrap_or(0)
                .min(1 << 24),
            unstated,
        };
        Some(if unstated { all.as_wide_as_it_is() } else { all })
    }

    /// One head of the whole hidden state: as many values as a usual decoder's heads have together.
    const fn as_wide_as_it_is(self) -> Self {
        Self { heads: 1, kv_heads: 1, head_dim: self.hidden, value_dim: self.hidden, ..self }
    }
}

/// Where configurations state the heads for keys and values.
pub(super) const KV_HEADS: [&str; 5] =
    ["num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "num_attention_groups"];

/// The largest of a list with a number for each layer.
pub(super) fn largest(conf: &Conf<'_>, keys: &[&str]) -> Option<u64> {
    keys.iter().find_map(|key| conf.list(key)?.iter().filter_map(whole).max())
}

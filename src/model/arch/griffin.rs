//! `RecurrentGemma` (`modeling_recurrent_gemma.py`): two layers of three have a linear recurrence with gates, the
//! third a window.

use serde_json::Value;

use super::{Build, Keeps};

impl Build<'_> {
    /// One layer.
    pub(super) fn griffin(&mut self, at: &str, layer: u64) {
        let (conf, n) = (self.conf, self.n);
        let listed = conf.list("_block_types").or_else(|| conf.list("block_types"));
        let kind = |list: &[Value]| {
            let number = usize::try_from(layer).ok()?.checked_rem(list.len())?;
            Some(list.get(number).and_then(Value::as_str) == Some("attention"))
        };
        let attends = listed.and_then(kind).unwrap_or(layer % 3 == 2);
        self.norm(&format!("{at}.temporal_pre_norm"), n.hidden);
        self.norm(&format!("{at}.channel_pre_norm"), n.hidden);
        if attends {
            self.griffin_attention(&format!("{at}.self_attn"), layer);
        } else {
            self.griffin_recurrence(&format!("{at}.mixer"), layer);
        }
        // The width that is stated is that of both halves.
        let inner = n.inner / 2;
        self.linear(&format!("{at}.mlp.gate_proj"), inner, n.hidden, true);
        self.linear(&format!("{at}.mlp.up_proj"), inner, n.hidden, true);
        self.linear(&format!("{at}.mlp.down_proj"), n.hidden, inner, true);
    }

    fn griffin_attention(&mut self, at: &str, layer: u64) {
        let (conf, n) = (self.conf, self.n);
        let (bias, kv) = (conf.on("attention_bias"), n.kv_heads * n.head_dim);
        self.linear(&format!("{at}.q_proj"), n.heads * n.head_dim, n.hidden, bias);
        self.linear(&format!("{at}.k_proj"), kv, n.hidden, bias);
        self.linear(&format!("{at}.v_proj"), kv, n.hidden, bias);
        self.linear(&format!("{at}.o_proj"), n.hidden, n.heads * n.head_dim, true);
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let window = conf.number(&["attention_window_size"]).map(small).filter(|n| *n > 0);
        let (kv_heads, size) = (small(n.kv_heads), small(n.head_dim));
        self.keeps(layer, Keeps::Attention { kv_heads, key: size, value: size, window });
    }

    fn griffin_recurrence(&mut self, at: &str, layer: u64) {
        let (conf, n) = (self.conf, self.n);
        let width = conf.stated(&["lru_width"]).unwrap_or(n.hidden).min(1 << 20);
        let kernel = conf.number(&["conv1d_width"]).unwrap_or(4).min(1 << 10);
        self.linear(&format!("{at}.linear_y"), width, n.hidden, true);
        self.linear(&format!("{at}.linear_x"), width, n.hidden, true);
        self.linear(&format!("{at}.linear_out"), n.hidden, width, true);
        self.plain(&format!("{at}.conv_1d.weight"), &[width, 1, kernel], 1);
        self.plain(&format!("{at}.conv_1d.bias"), &[width], 1);
        self.plain(&format!("{at}.rg_lru.recurrent_param"), &[width], 1);
        let each = width.checked_div(n.heads).unwrap_or(0);
        for gate in ["input_gate", "recurrent_gate"] {
            self.plain(&format!("{at}.rg_lru.{gate}_weight"), &[n.heads, each, each], 1);
            self.plain(&format!("{at}.rg_lru.{gate}_bias"), &[n.heads, each], 1);
        }
        let conv = width * kernel.saturating_sub(1);
        self.keeps(layer, Keeps::State { conv, recurrent: width, recurrent_bytes: 4, whole: 0 });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    /// The 2B model's number of values as its page states it, and what its code keeps.
    #[test]
    fn two_layers_of_three_keep_a_state() {
        let facts = facts(
            r#"{"model_type":"recurrent_gemma","hidden_size":2560,"intermediate_size":15360,"num_hidden_layers":26,
            "num_attention_heads":10,"num_key_value_heads":1,"head_dim":256,"lru_width":2560,"conv1d_width":4,
            "attention_window_size":2048,"vocab_size":256000,"torch_dtype":"bfloat16",
            "_block_types":["recurrent","recurrent","attention"]}"#,
        );
        assert_eq!((facts.weight_bytes.0, facts.certainty), (2 * 2_682_862_080, Certainty::Exact));
        let rank = &predict(&facts, &Setup::new(rules("vllm"))).ranks[0];
        assert_eq!(rank.cache_per_token.value, 8 * 2 * 256 * 2);
        assert_eq!(rank.cache_beyond_windows.value, 0);
        assert_eq!(rank.state_per_request.value, 18 * (2_560 * 3 * 2 + 2_560 * 4));
    }
}

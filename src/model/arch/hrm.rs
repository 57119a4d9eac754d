//! HRM: two stacks of layers, each called many times, with keys and values of its own for every call
//! (`modeling_hrm_text.py`; vLLM `hrm_text.py`).

use super::{Build, Certainty, Keeps};

/// Calls of layers that are counted; a model has some hundred.
const MOST_CALLS: u64 = 4096;

impl Build<'_> {
    /// Both stacks; without norms of their own values.
    pub(super) fn hrm(&mut self) {
        let (conf, n) = (self.conf, self.n);
        let get = |key: &str, usual: u64| conf.number(&[key]).unwrap_or(usual).clamp(1, 64);
        let calls = get("H_cycles", 2) * (get("L_cycles", 3) + 1);
        // Where the layers of a stack are not stated, their number is that of all.
        let layers = conf.stated(&["num_layers_per_stack"]).unwrap_or(n.layers).min(n.layers);
        self.plain("model.z_L_init", &[n.hidden], 1);
        self.embedding();
        let all = n.heads.saturating_mul(n.head_dim);
        for stack in ["L_module", "H_module"] {
            for layer in 0..layers {
                let at = format!("model.{stack}.layers.{layer}");
                for name in ["q_proj", "k_proj", "v_proj", "gate_proj"] {
                    self.linear(&format!("{at}.self_attn.{name}"), all, n.hidden, false);
                }
                self.linear(&format!("{at}.self_attn.o_proj"), n.hidden, all, false);
                self.mlp(&at, "mlp", n.inner);
            }
        }
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let (kv_heads, size) = (small(n.heads), small(n.head_dim));
        let keeps = Keeps::Attention { kv_heads, key: size, value: size, window: None };
        let all_calls = layers.saturating_mul(calls);
        let kept = all_calls.min(MOST_CALLS);
        if kept < all_calls {
            self.doubt(Certainty::Guess, "its layers are called too often to be counted");
        }
        for call in 0..kept {
            self.keeps(call.saturating_mul(n.layers) / kept.max(1), keeps);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    /// Either way of stating the same: 2 stacks of 16 layers, called 8 times.
    #[test]
    fn calls_keep_keys_and_values_and_weights_are_shared() {
        for layers in
            [r#""num_hidden_layers":16"#, r#""num_hidden_layers":128,"num_layers_per_stack":16"#]
        {
            let facts = facts(&format!(
                r#"{{"architectures":["HrmTextForCausalLM"],"model_type":"hrm_text","dtype":"bfloat16",{layers}}}"#
            ));
            assert_eq!(facts.weight_bytes.0, 2_895_645_696, "{layers}");
            let rank = predict(&facts, &Setup::new(rules("vllm"))).ranks[0].clone();
            assert_eq!(rank.cache_per_token.value, 128 * 2 * 2 * 12 * 128, "{layers}");
        }
        let often =
            r#"{"model_type":"hrm_text","num_hidden_layers":2000,"H_cycles":64,"L_cycles":64}"#;
        let facts = facts(often);
        assert!(facts.caches.len() <= 4096);
        assert_eq!(facts.certainty, super::Certainty::Guess);
    }
}

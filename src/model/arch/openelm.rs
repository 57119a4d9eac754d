//! `OpenELM`, whose layers differ in their heads and widths (`configuration_openelm.py` and `modeling_openelm.py`
//! beside its weights).

use serde_json::Value;

use super::{Build, Certainty, Keeps, conf::whole};

impl Build<'_> {
    /// The whole of it.
    pub(super) fn openelm(&mut self, tied: bool) {
        let (conf, n) = (self.conf, self.n);
        self.table("model.token_embeddings", n.vocab, n.hidden);
        // Scalars count for all layers.
        let of = |key: &str, layer: u64, usual: u64| {
            let at = usize::try_from(layer).unwrap_or(usize::MAX);
            let listed = conf.list(key).and_then(|list| list.get(at)).and_then(whole);
            listed.or_else(|| conf.stated(&[key])).unwrap_or(usual).min(1 << 14)
        };
        for layer in 0..n.layers {
            let at = format!("model.layers.{layer}");
            let (query, shared) =
                (of("num_query_heads", layer, n.heads), of("num_kv_heads", layer, n.kv_heads));
            let rows = query.saturating_add(2 * shared).saturating_mul(n.head_dim);
            self.linear(&format!("{at}.attn.qkv_proj"), rows, n.hidden, false);
            let wide = query.saturating_mul(n.head_dim);
            self.linear(&format!("{at}.attn.out_proj"), n.hidden, wide, false);
            if conf.flag("normalize_qk_projections") != Some(false) {
                self.plain(&format!("{at}.attn.q_norm.weight"), &[n.head_dim], 1);
                self.plain(&format!("{at}.attn.k_norm.weight"), &[n.head_dim], 1);
            }
            for norm in ["ffn_norm", "attn_norm"] {
                self.plain(&format!("{at}.{norm}.weight"), &[n.hidden], 1);
            }
            let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            let (kv_heads, size) = (small(shared), small(n.head_dim));
            self.keeps(layer, Keeps::Attention { kv_heads, key: size, value: size, window: None });
            let Some(inner) = self.openelm_width(layer) else {
                let why = "the width of its feed-forward layers is not stated: four times the hidden size";
                self.doubt(Certainty::Guess, why);
                self.mlp(&at, "ffn", 0);
                continue;
            };
            let halves = if conf.flag("ffn_with_glu") == Some(false) { 1 } else { 2 };
            self.linear(&format!("{at}.ffn.proj_1"), halves * inner, n.hidden, false);
            self.linear(&format!("{at}.ffn.proj_2"), n.hidden, inner, false);
        }
        self.plain("model.norm.weight", &[n.hidden], 1);
        if !tied {
            self.linear("lm_head", n.vocab, n.hidden, false);
        }
    }

    /// `make_divisible`: so many times the hidden size, as a multiple of what they are to be divided by.
    fn openelm_width(&self, layer: u64) -> Option<u64> {
        let conf = self.conf;
        let at = usize::try_from(layer).unwrap_or(usize::MAX);
        let times = match conf.given("ffn_multipliers")? {
            Value::Array(list) => list.get(at)?.as_f64()?,
            one => one.as_f64()?,
        };
        let divisor = conf.number(&["ffn_dim_divisor"]).unwrap_or(256).max(1);
        let wanted = times * self.n.hidden as f64;
        if !(0.0..=16_777_216.0).contains(&wanted) {
            return None;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounded just above
        let near = ((wanted + divisor as f64 / 2.0) as u64 / divisor).saturating_mul(divisor);
        let near = near.max(divisor);
        Some(if (near as f64) < 0.9 * wanted { near + divisor } else { near })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::ModelFacts;
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    const SMALL: &str = r#"{"architectures":["OpenELMForCausalLM"],"model_type":"openelm","model_dim":1280,
        "num_transformer_layers":16,"head_dim":64,"num_gqa_groups":4,"ffn_dim_divisor":256,"ffn_with_glu":true,
        "ffn_multipliers":[0.5,0.73,0.97,1.2,1.43,1.67,1.9,2.13,2.37,2.6,2.83,3.07,3.3,3.53,3.77,4.0],
        "num_query_heads":[12,12,12,12,12,16,16,16,16,16,16,16,20,20,20,20],
        "num_kv_heads":[3,3,3,3,3,4,4,4,4,4,4,4,5,5,5,5],"normalize_qk_projections":true,
        "share_input_output_layers":true,"max_context_length":2048,"vocab_size":32000,"torch_dtype":"float32"}"#;

    /// `OpenELM-270M` has 271,527,168 values.
    #[test]
    fn layers_grow_as_the_published_ones_do() {
        let model = facts(SMALL);
        assert_eq!(model.weight_bytes.0, 4 * 271_527_168);
        assert_eq!((model.certainty, model.tied), (Certainty::Exact, true));
        assert_eq!((model.layers, model.context), (Some(16), Some(2_048)));
        assert_eq!((model.attention_heads, model.kv_heads), (Some(20), Some(5)));
        assert_eq!(cache_of(&model), CACHE);
    }

    /// Keys and values of all its layers, in 16 bits.
    const CACHE: (u64, u64) = {
        let heads = 5 * 3 + 7 * 4 + 4 * 5;
        (2 * heads * 64 * 2, 2 * heads * 64 * 2)
    };

    fn cache_of(model: &ModelFacts) -> (u64, u64) {
        let token = predict(model, &Setup::new(rules("vllm"))).ranks[0].cache_per_token;
        (token.low, token.high)
    }

    /// A width that is not known is guessed; what such a layer keeps is known all the same.
    #[test]
    fn what_is_left_out_is_guessed() {
        let model = facts(&SMALL.replace("ffn_multipliers", "else"));
        assert_eq!((model.certainty, model.cache_certainty), (Certainty::Guess, Certainty::Exact));
        assert_eq!((model.caches.len(), cache_of(&model)), (16, CACHE));
        let one = facts(&SMALL.replace("1.43", "1e300"));
        assert_eq!((one.certainty, one.weight_bytes.0 > 0), (Certainty::Guess, true));
        assert_eq!((one.caches.len(), cache_of(&one)), (16, CACHE));
    }
}

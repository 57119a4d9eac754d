//! Parts that Hunyuan V4 and GLM 5 Next have beside latent attention and experts: several streams of the hidden
//! state, gates and sinks of attention, an index over several tokens at a time (`modeling_hy_v4.py`,
//! `modeling_glm5_next.py`).

use super::{Build, Certainty};

impl Build<'_> {
    /// What mixes the streams before and after attention and experts of a layer. Hunyuan's do so each for itself, so
    /// that no matrix of streams by streams is needed.
    pub(super) fn recent_streams(&mut self, at: &str) {
        if self.conf.flag("mhc") == Some(false) {
            return;
        }
        let streams = self.stream_count();
        let (mixed, scales) = if self.conf.is(&["hy_v4"]) {
            (2 * streams, 2)
        } else {
            (streams * streams + 2 * streams, 3)
        };
        for part in ["attn_hc", "ffn_hc"] {
            let wide = ("F32", 4);
            self.typed(&format!("{at}.{part}.fn"), &[mixed, streams * self.n.hidden], 1, wide);
            self.typed(&format!("{at}.{part}.base"), &[mixed], 1, wide);
            self.typed(&format!("{at}.{part}.scale"), &[scales], 1, wide);
        }
        // Engines have it so (vLLM `glm5next/common/model.py`, `hy_v4/nvidia/hc.py`).
        let why = "whether what mixes its streams is stored in 32 bits is not known";
        self.doubt_by(Certainty::Close, (1, 0), why);
    }

    /// What makes one of Hunyuan's streams after the last layer; GLM adds them up.
    pub(super) fn recent_stream_end(&mut self) {
        let streams = self.stream_count();
        let wide = ("F32", 4);
        self.typed("model.hc_head.hc_fn", &[streams, streams * self.n.hidden], 1, wide);
        self.typed("model.hc_head.hc_base", &[streams], 1, wide);
        self.typed("model.hc_head.hc_scale", &[1], 1, wide);
    }

    fn stream_count(&self) -> u64 {
        self.conf.number(&["hc_mult"]).unwrap_or(4).min(64)
    }

    /// Beside latent attention: a gate of every value, and a sink of each head.
    pub(super) fn gate_and_sinks(&mut self, at: &str, values: u64) {
        self.linear(&format!("{at}.gate_proj"), values, self.n.hidden, false);
        self.plain(&format!("{at}.sinks"), &[self.n.heads], 1);
    }

    /// What makes one key of an index of several tokens' keys, and how many these are; 1: there is no such thing.
    pub(super) fn pooled_index(&mut self, at: &str, width: u64) -> u64 {
        let pooled = self.conf.number(&["index_kpool"]).unwrap_or(1).clamp(1, 1 << 16);
        if pooled > 1 {
            self.plain(&format!("{at}.index_kpool_compress_ape"), &[pooled, width], 1);
            self.plain(&format!("{at}.index_kpool_compress_gate"), &[width, self.n.hidden], 1);
        }
        pooled
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::cache::{CacheBits, Keeps};
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    /// As `transformers` builds these families, but for the biases of routers and what mixes streams, which are in 32
    /// bits: two bytes more for each value.
    #[test]
    fn weights_are_those_that_transformers_builds() {
        for (kind, built, more) in [
            ("laguna", 66_379_951_616, 2 * 39 * 256),
            ("kolibri1", 156_206_149_120, 2 * 50 * 384),
            (
                "hy_v4",
                116_556_403_162,
                2 * (33 * 256 + 34 * 2 * (8 * 11_264 + 8 + 2) + 4 * 11_264 + 4 + 1),
            ),
            // And the norm of the dense layer, which is stored and not used.
            ("axk1", 1_037_966_127_616, 2 * 60 * 192 + 2 * 7_168),
        ] {
            let shared = (0..34).map(|l| if l < 2 || l % 4 == 1 { "full" } else { "shared" });
            let shared: Vec<&str> = shared.collect();
            let facts = facts(&format!(
                r#"{{"model_type":"{kind}","dtype":"bfloat16","indexer_types":{shared:?}}}"#
            ));
            assert_eq!(facts.weight_bytes.0, built + more, "{kind}");
        }
    }

    /// Hunyuan V4 as `transformers` builds it: latent vectors in every layer, an index in those that share none.
    #[test]
    fn hunyuan_keeps_latent_vectors_and_an_index() {
        let facts = facts(
            r#"{"architectures":["HYV4ForCausalLM"],"model_type":"hy_v4","dtype":"bfloat16","num_hidden_layers":4,
            "indexer_types":["full","full","shared","shared"]}"#,
        );
        let of = |name: &str| {
            let cache = CacheBits::named(name);
            let setup = Setup { cache, ..Setup::new(rules("vllm")) };
            predict(&facts, &setup).ranks[0].cache_per_token.value
        };
        assert_eq!(of("bf16"), 4 * 2 * 576 + 2 * 132);
        assert_eq!(of("fp8"), 4 * 656 + 2 * 132);
    }

    /// GLM 5 Next: three layers of four keep a state, the others a vector without a rotary part, and a key of each
    /// sixteen tokens.
    #[test]
    fn glm_next_keeps_states_and_a_pooled_index() {
        let facts = facts(
            r#"{"architectures":["Glm5NextForConditionalGeneration"],"model_type":"glm5_next","dtype":"bfloat16",
            "text_config":{"model_type":"glm5_next_text","num_hidden_layers":8}}"#,
        );
        let states = facts.caches.iter().filter(|c| matches!(c.keeps, Keeps::State { .. }));
        assert_eq!(states.count(), 6);
        let token = predict(&facts, &Setup::new(rules("vllm"))).ranks[0].cache_per_token.value;
        assert_eq!(token, 2 * (2 * 512 + 132_u64.div_ceil(16)));
    }
}

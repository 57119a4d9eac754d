//! Attention of which a configuration says too little: bars of the cache that reach from what it may be at least to
//! what a usual decoder of its width keeps.

use super::{Build, Certainty, Keeps, numbers};

/// Families known to keep a state of constant size in place of keys and values, whose states are not known here.
const STATES: [&str; 12] = [
    "rwkv",
    "rwkv5",
    "rwkv6",
    "rwkv7",
    "retnet",
    "xlstm",
    "gla",
    "hgrn",
    "hgrn2",
    "delta_net",
    "gated_deltanet",
    "linear_attn",
];

impl Build<'_> {
    /// Heads are not stated: they are counted as wide as the hidden state.
    pub(super) fn heads_are_not_stated(&mut self) {
        let why = "its attention heads are not stated: they are counted as wide together as its hidden state";
        self.doubt(Certainty::Guess, why);
    }

    /// How far the caches may be off, where more is not known than that of a usual decoder.
    pub(super) fn doubt_cache(&mut self, family: Certainty) {
        if self.n.unstated {
            return self.half_of_all_heads();
        }
        if family != Certainty::Guess {
            return;
        }
        if STATES.contains(&self.conf.kind.as_str()) {
            self.cache_spread = Some((1_000, 400));
            let why = "its layers keep states in place of keys and values: its cache may be none";
            self.notes.push(why.to_owned());
        } else if self.conf.number(&numbers::KV_HEADS).is_none() {
            // One head for keys and values may serve all.
            let less = 1_000u64.saturating_sub(1_000 / self.n.heads.max(1));
            // It may be doubted for more than that already.
            let doubted = self.cache_spread.map_or(0, |(less, _)| less);
            self.cache_spread = Some((less.max(600).max(doubted), 400));
        }
    }

    /// Between nothing and keys and values of the whole hidden state: half of these, whatever heads they have.
    fn half_of_all_heads(&mut self) {
        let half = u32::try_from(self.n.hidden.div_ceil(2)).unwrap_or(u32::MAX);
        let mut some = false;
        for cache in &mut self.caches {
            if let Keeps::Attention { kv_heads: 1.., window, .. } = cache.keeps {
                cache.keeps = Keeps::Attention { kv_heads: half, key: 1, value: 1, window };
                some = true;
            }
        }
        if some {
            self.cache_spread = Some((1_000, 1_000));
            let why = "its cache is between nothing and keys and values as wide as its hidden state: half of that is counted";
            self.notes.push(why.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    /// 32 layers as wide as Llama 2's, under names that nobody knows: keys and values of 131,072 tokens are 64 GiB.
    const INVENTED: &str = r#"{"architectures":["InventedForCausalLM"],"model_type":"invented","hidden_size":4096,
        "num_hidden_layers":32,"intermediate_size":11008,"vocab_size":32000,"amount_of_heads":32,
        "max_position_embeddings":131072,"torch_dtype":"bfloat16"}"#;

    #[test]
    fn heads_that_are_not_stated_are_not_none() {
        let model = facts(INVENTED);
        assert_eq!(model.cache_certainty, Certainty::Guess);
        let full = 2 * 32 * 4_096 * 2;
        for engine in ["vllm", "sglang", "llamacpp"] {
            let setup = Setup { gpu: Some(80 << 30), ..Setup::new(rules(engine)) };
            let answer = predict(&model, &setup);
            let rank = &answer.ranks[0];
            let token = rank.cache_per_token;
            assert_eq!((token.low, token.value, token.high), (0, full / 2, full), "{engine}");
            assert!(rank.cache_needed.high >= 64 << 30, "{engine}: {:?}", rank.cache_needed);
            assert_eq!(answer.fits, Some(false), "{engine}");
            // There may be no limit at all.
            assert_eq!(answer.tokens.unwrap().high, u64::MAX, "{engine}");
            assert_eq!(answer.requests.unwrap().high, u64::MAX, "{engine}");
            assert!(answer.requests.unwrap().low < 100, "{engine}");
        }
        let short = Setup {
            gpu: Some(80 << 30),
            context: Some(4_096),
            tensor: 2,
            ..Setup::new(rules("vllm"))
        };
        let answer = predict(&model, &short);
        assert_eq!(answer.fits, Some(true), "{answer:?}");
        assert_eq!(answer.ranks[0].cache_per_token.high, full / 2);
        assert!(model.notes.iter().chain(&answer.notes).all(|n| !n.contains("do not tell")));
        // 6.74 billion values, as Llama 2 7B has.
        let weights = answer.weights;
        assert!(weights.low < 13_476_831_232 && weights.high > 13_476_831_232, "{weights:?}");
    }

    #[test]
    fn a_known_family_without_heads_is_no_encoder() {
        let model = facts(r#"{"model_type":"llama","num_attention_heads":null}"#);
        let token = predict(&model, &Setup::new(rules("vllm"))).ranks[0].cache_per_token;
        assert_eq!((token.low, token.high), (0, 2 * 32 * 4_096 * 2));
    }

    /// A token of RWKV is kept nowhere; states are as large as some tokens.
    #[test]
    fn what_keeps_states_may_keep_nothing_of_tokens() {
        for more in ["", r#","num_attention_heads":64"#] {
            let model = facts(&format!(
                r#"{{"architectures":["RwkvForCausalLM"],"model_type":"rwkv","hidden_size":4096,
                "attention_hidden_size":4096,"intermediate_size":16384,"num_hidden_layers":32,"vocab_size":50277,
                "context_length":1024,"torch_dtype":"bfloat16","tie_word_embeddings":false{more}}}"#
            ));
            let answer = predict(&model, &Setup::new(rules("vllm")));
            assert_eq!(answer.ranks[0].cache_per_token.low, 0, "{more}");
            // 7.39 billion values, as RWKV-4 7B has.
            let truth = 2 * 7_393_000_000;
            assert!(answer.weights.low < truth && truth < answer.weights.high, "{more}");
        }
    }

    #[test]
    fn one_head_for_keys_may_serve_all_where_none_is_stated() {
        let model = facts(&INVENTED.replace("amount_of_heads", "num_attention_heads"));
        let token = predict(&model, &Setup::new(rules("vllm"))).ranks[0].cache_per_token;
        let full = 2 * 32 * 4_096 * 2;
        assert!(token.low <= full / 32 && token.high > full, "{token:?}");
    }

    /// xglm-564M and `BioGPT` have other names for the same, and 564,463,616 and 346,763,264 values.
    #[test]
    fn some_heads_have_other_names() {
        let xglm = facts(
            r#"{"architectures":["XGLMForCausalLM"],"model_type":"xglm","d_model":1024,"attention_heads":16,
            "ffn_dim":4096,"num_layers":24,"vocab_size":256008,"max_position_embeddings":2048,
            "torch_dtype":"float16"}"#,
        );
        let bio = facts(
            r#"{"architectures":["BioGptForCausalLM"],"model_type":"biogpt","hidden_size":1024,
            "num_attention_heads":16,"intermediate_size":4096,"num_hidden_layers":24,"vocab_size":42384,
            "max_position_embeddings":1024,"torch_dtype":"float16"}"#,
        );
        for (model, values) in [(xglm, 564_463_616), (bio, 346_763_264)] {
            assert_eq!(model.weight_bytes.0, 2 * values);
            assert_eq!((model.certainty, model.tied), (Certainty::Exact, true));
            assert_eq!(model.attention_heads, Some(16));
            let token = predict(&model, &Setup::new(rules("vllm"))).ranks[0].cache_per_token;
            assert_eq!((token.low, token.high), (2 * 24 * 1_024 * 2, 2 * 24 * 1_024 * 2));
        }
        // codegen-350M: what GPT-J has, under GPT-J's names.
        let codegen = facts(
            r#"{"architectures":["CodeGenForCausalLM"],"model_type":"codegen","n_embd":1024,"n_head":16,"n_layer":20,
            "n_inner":null,"n_positions":2048,"vocab_size":51200,"torch_dtype":"float16",
            "tie_word_embeddings":false}"#,
        );
        assert_eq!(codegen.weight_bytes.0, 2 * 356_712_448);
    }
}

//! `DeBERTa`, whose attention takes positions by their distance (`modeling_deberta.py`, `modeling_deberta_v2.py`).

use super::{Build, conf::Conf};

/// The families.
pub(super) const KINDS: [&str; 2] = ["deberta", "deberta-v2"];

/// Whether attention compares with the positions of keys (`c2p`), and of queries (`p2c`).
fn compares(conf: &Conf<'_>) -> (bool, bool) {
    let listed = conf.list("pos_att_type").unwrap_or_default();
    let has = |word: &str| {
        conf.text_of("pos_att_type").is_some_and(|t| t.split('|').any(|w| w.trim() == word))
            || listed.iter().any(|w| w.as_str() == Some(word))
    };
    (has("c2p"), has("p2c"))
}

impl Build<'_> {
    /// The table of words, and positions where the input has them.
    pub(super) fn deberta_tables(&mut self) {
        let (conf, n) = (self.conf, self.n);
        let width = conf.number(&["embedding_size"]).unwrap_or(n.hidden);
        self.plain("model.embed_tokens.weight", &[n.vocab, width], 1);
        let places = conf.number(&["max_position_embeddings"]).unwrap_or(512);
        if conf.flag("position_biased_input") != Some(false) {
            self.plain("model.embed_positions.weight", &[places, width], 1);
        }
        let kinds = conf.number(&["type_vocab_size"]).unwrap_or(0);
        self.plain("model.embeddings.token_type_embeddings.weight", &[kinds, width], 1);
        if width != n.hidden {
            self.plain("model.embeddings.embed_proj.weight", &[n.hidden, width], 1);
        }
        self.with_bias("model.embeddings.norm");
        if !conf.on("relative_attention") {
            return;
        }
        let stated = |key: &str| conf.given(key).and_then(serde_json::Value::as_i64);
        let most = stated("max_relative_positions").filter(|n| *n > 0);
        let most = most.and_then(|n| u64::try_from(n).ok()).unwrap_or(places);
        let second = conf.is(&["deberta-v2"]);
        let buckets = conf.stated(&["position_buckets"]).filter(|n| *n > 0 && second);
        let rows = buckets.unwrap_or(most).min(1 << 22).saturating_mul(2);
        self.plain("model.rel_embeddings.weight", &[rows, n.hidden], 1);
        if second && conf.text_of("norm_rel_ebd").is_some_and(|t| t.contains("layer_norm")) {
            self.with_bias("model.rel_embeddings.norm");
        }
        let kernel = conf.number(&["conv_kernel_size"]).filter(|n| *n > 0 && second);
        if let Some(kernel) = kernel {
            self.plain("model.conv.conv.weight", &[n.hidden, n.hidden, kernel], 1);
            self.plain("model.conv.conv.bias", &[n.hidden], 1);
            self.with_bias("model.conv.norm");
        }
    }

    /// A layer.
    pub(super) fn deberta_layer(&mut self, at: &str) {
        let (conf, n) = (self.conf, self.n);
        let second = conf.is(&["deberta-v2"]);
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            // Keys of the first have no bias.
            let bias = second || name != "k_proj";
            self.linear(&format!("{at}.self_attn.{name}"), n.hidden, n.hidden, bias);
        }
        let (keys, queries) = compares(conf);
        let own = conf.on("relative_attention") && !(second && conf.on("share_att_key"));
        if own && keys {
            self.linear(&format!("{at}.self_attn.pos_key_proj"), n.hidden, n.hidden, second);
        }
        if own && queries {
            self.linear(&format!("{at}.self_attn.pos_query_proj"), n.hidden, n.hidden, true);
        }
        self.with_bias(&format!("{at}.attn_norm"));
        self.linear(&format!("{at}.mlp.up_proj"), n.inner, n.hidden, true);
        self.linear(&format!("{at}.mlp.down_proj"), n.hidden, n.inner, true);
        self.with_bias(&format!("{at}.mlp_norm"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    /// `DeBERTa` v3 base, `DeBERTa` base: numbers of values that `transformers` builds.
    #[test]
    fn values_are_those_of_published_debertas() {
        let third = r#"{"architectures":["DebertaV2Model"],"model_type":"deberta-v2","hidden_size":768,
            "num_hidden_layers":12,"num_attention_heads":12,"intermediate_size":3072,"vocab_size":128100,
            "max_position_embeddings":512,"relative_attention":true,"position_buckets":256,
            "norm_rel_ebd":"layer_norm","share_att_key":true,"pos_att_type":"p2c|c2p","max_relative_positions":-1,
            "position_biased_input":false,"type_vocab_size":0}"#;
        let first = r#"{"architectures":["DebertaModel"],"model_type":"deberta","hidden_size":768,
            "num_hidden_layers":12,"num_attention_heads":12,"intermediate_size":3072,"vocab_size":50265,
            "max_position_embeddings":512,"relative_attention":true,"pos_att_type":["c2p","p2c"],
            "max_relative_positions":-1,"position_biased_input":false,"type_vocab_size":0}"#;
        for (config, values) in [(third, 183_831_552), (first, 138_601_728)] {
            let model = facts(config);
            assert_eq!(model.weight_bytes.0, 4 * values, "{config}");
            let answer = predict(&model, &Setup::new(rules("vllm")));
            // Some are published in 16 bits, and do not say so.
            assert!(answer.weights.low <= 2 * values && answer.weights.high == 4 * values);
            assert_eq!(answer.ranks[0].cache_per_token.high, 0);
            assert_eq!((answer.tokens, answer.requests), (None, None));
        }
    }
}

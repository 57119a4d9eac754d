//! Encoders, which embed, rank and classify, and keep nothing of the tokens they have seen: BERT and what
//! follows it (`modeling_bert.py`, `modeling_xlm_roberta.py`, `modeling_modernbert.py`, `modeling_nomic_bert.py`,
//! …; GTE's `NewModel` is beside its weights).

use serde_json::{Map, Value};

use super::{Build, Certainty, Keeps, deberta, ending};

/// The families.
pub(super) const KINDS: [&str; 15] = [
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "mpnet",
    "modernbert",
    "nomic_bert",
    "new",
    "albert",
    "electra",
    "longformer",
    "big_bird",
    "deberta",
    "deberta-v2",
];

/// What a checkpoint ends in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The hidden states, by a pooled one or not.
    Nothing,
    /// What was masked: words again.
    Words,
    /// So many scores of the text.
    Scores(u64),
    /// So many of each token.
    Tags(u64),
}

impl End {
    fn of(top: &Map<String, Value>) -> Self {
        let first = top.get("architectures").and_then(Value::as_array).and_then(|l| l.first());
        let name = first.and_then(Value::as_str).unwrap_or_default();
        if name.ends_with("ForMaskedLM") || name.ends_with("ForPreTraining") {
            Self::Words
        } else if name.ends_with("ForSequenceClassification") {
            Self::Scores(ending::labels(top))
        } else if name.ends_with("ForTokenClassification") {
            Self::Tags(ending::labels(top))
        } else {
            Self::Nothing
        }
    }
}

impl Build<'_> {
    /// The whole of it.
    pub(super) fn encoder(&mut self, top: &Map<String, Value>) {
        let end = End::of(top);
        self.encoder_tables();
        for layer in 0..self.n.layers {
            // ALBERT's layers are the same one, or a few.
            if layer < self.encoder_groups() {
                self.encoder_layer(layer);
            }
            // No cache at all: not even of one head.
            self.keeps(layer, Keeps::Attention { kv_heads: 0, key: 0, value: 0, window: None });
        }
        if self.conf.is(&["modernbert"]) {
            self.plain("model.final_norm.weight", &[self.n.hidden], 1);
        }
        if self.conf.is(&["mpnet"]) {
            let buckets = self.conf.number(&["relative_attention_num_buckets"]).unwrap_or(32);
            self.plain("model.relative_attention_bias.weight", &[buckets, self.n.heads], 1);
        }
        self.encoder_end(end);
    }

    /// A norm with a bias.
    fn full_norm(&mut self, at: &str, width: u64) {
        self.plain(&format!("{at}.weight"), &[width], 1);
        self.plain(&format!("{at}.bias"), &[width], 1);
    }

    /// Layers with weights of their own.
    fn encoder_groups(&self) -> u64 {
        let groups = || self.conf.number(&["num_hidden_groups"]).unwrap_or(1);
        if self.conf.is(&["albert"]) { groups() } else { self.n.layers }
    }

    /// Values of a word, which are fewer than those of the hidden state with some.
    fn word_width(&self) -> u64 {
        let own = self.conf.is(&["albert", "electra"]);
        self.conf.number(&["embedding_size"]).filter(|_| own).unwrap_or(self.n.hidden)
    }

    fn encoder_tables(&mut self) {
        let (conf, n) = (self.conf, self.n);
        if conf.is(&deberta::KINDS) {
            return self.deberta_tables();
        }
        let width = self.word_width();
        self.plain("model.embed_tokens.weight", &[n.vocab, width], 1);
        let turned = conf.is(&["modernbert", "nomic_bert", "new"]);
        if !turned {
            let places = conf.number(&["max_position_embeddings"]).unwrap_or(512);
            self.plain("model.embed_positions.weight", &[places, width], 1);
        }
        if !conf.is(&["distilbert", "mpnet", "modernbert"]) {
            let kinds = conf.number(&["type_vocab_size"]).unwrap_or(1);
            self.plain("model.embeddings.token_type_embeddings.weight", &[kinds, width], 1);
        }
        if conf.is(&["modernbert"]) {
            self.plain("model.embeddings.norm.weight", &[n.hidden], 1);
        } else {
            self.full_norm("model.embeddings.norm", width);
        }
        if width != n.hidden {
            self.linear("model.embeddings_project", n.hidden, width, true);
        }
    }

    fn encoder_layer(&mut self, layer: u64) {
        let (conf, n) = (self.conf, self.n);
        let at = format!("model.layers.{layer}");
        if conf.is(&["modernbert"]) {
            let (bias, inner) = (conf.on("attention_bias"), conf.on("mlp_bias"));
            self.linear(&format!("{at}.attn.Wqkv"), 3 * n.hidden, n.hidden, bias);
            self.linear(&format!("{at}.attn.Wo"), n.hidden, n.hidden, bias);
            self.linear(&format!("{at}.mlp.Wi"), 2 * n.inner, n.hidden, inner);
            self.linear(&format!("{at}.mlp.Wo"), n.hidden, n.inner, inner);
            let norms: &[&str] =
                if layer == 0 { &["mlp_norm"] } else { &["attn_norm", "mlp_norm"] };
            for norm in norms {
                self.plain(&format!("{at}.{norm}.weight"), &[n.hidden], 1);
            }
            return;
        }
        if conf.is(&deberta::KINDS) {
            return self.deberta_layer(&at);
        }
        let (attention, gate, down) = match conf.kind.as_str() {
            "nomic_bert" => {
                (conf.on("qkv_proj_bias"), Some(conf.on("mlp_fc1_bias")), conf.on("mlp_fc2_bias"))
            }
            "new" => (true, Some(false), true),
            _ => (true, None, true),
        };
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            self.linear(&format!("{at}.self_attn.{name}"), n.hidden, n.hidden, attention);
        }
        // Tokens that see all have projections of their own.
        if conf.is(&["longformer"]) {
            for name in ["query_global", "key_global", "value_global"] {
                self.linear(&format!("{at}.self_attn.{name}"), n.hidden, n.hidden, true);
            }
        }
        if let Some(bias) = gate {
            self.linear(&format!("{at}.mlp.gate_proj"), n.inner, n.hidden, bias);
        }
        self.linear(&format!("{at}.mlp.up_proj"), n.inner, n.hidden, gate.unwrap_or(true));
        self.linear(&format!("{at}.mlp.down_proj"), n.hidden, n.inner, down);
        self.full_norm(&format!("{at}.attn_norm"), n.hidden);
        self.full_norm(&format!("{at}.mlp_norm"), n.hidden);
    }

    fn encoder_end(&mut self, end: End) {
        let (conf, n) = (self.conf, self.n);
        // A matrix before what is asked: of BERT and MPNet the pooled state, of others a part of the head.
        let pools = conf.is(&[
            "bert",
            "mpnet",
            "roberta",
            "xlm-roberta",
            "camembert",
            "albert",
            "longformer",
            "big_bird",
        ]);
        let dense = match end {
            End::Nothing => pools,
            End::Words => !conf.is(&["nomic_bert"]),
            End::Scores(_) => true,
            End::Tags(_) => conf.is(&["modernbert"]),
        };
        let width = if end == End::Words { self.word_width() } else { n.hidden };
        if dense {
            let bias = !conf.is(&["modernbert"]) || conf.on("classifier_bias");
            self.linear("model.pooler.dense", width, n.hidden, bias);
            match (conf.is(&["modernbert"]), end) {
                (true, _) => self.plain("model.pooler.norm.weight", &[n.hidden], 1),
                (false, End::Words) => self.full_norm("model.pooler.norm", width),
                _ => {}
            }
        }
        let younger = ["albert", "electra", "big_bird", "deberta", "deberta-v2"];
        if end != End::Nothing && conf.is(&younger) {
            let why = "what it ends in is counted as BERT's";
            self.doubt_by(Certainty::Close, (10, 10), why);
        }
        match end {
            End::Nothing => {}
            // The matrix is that of the embedding.
            End::Words => self.plain("model.decoder.bias", &[n.vocab], 1),
            End::Scores(labels) | End::Tags(labels) => {
                self.plain("score.weight", &[labels, n.hidden], 1);
                self.plain("score.bias", &[labels], 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    const LARGE: &str = r#""hidden_size":1024,"intermediate_size":4096,"num_hidden_layers":24,"num_attention_heads":16,
        "torch_dtype":"float32""#;

    /// Numbers of values that their pages state, or that `transformers` builds with their own defaults.
    #[test]
    fn values_are_those_of_published_encoders() {
        let m3 = format!(
            r#""model_type":"xlm-roberta",{LARGE},"max_position_embeddings":8194,"type_vocab_size":1,"vocab_size":250002"#
        );
        let bge = format!(
            r#""model_type":"bert",{LARGE},"max_position_embeddings":512,"type_vocab_size":2,"vocab_size":30522"#
        );
        let nomic = r#""model_type":"nomic_bert","n_embd":768,"n_head":12,"n_layer":12,"n_inner":3072,
            "vocab_size":30528,"type_vocab_size":2,"qkv_proj_bias":false,"mlp_fc1_bias":false,"mlp_fc2_bias":false,
            "n_positions":2048,"torch_dtype":"float32""#;
        let gte = r#""model_type":"new","hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,
            "num_attention_heads":12,"vocab_size":250048,"type_vocab_size":1,"max_position_embeddings":8192,
            "torch_dtype":"float32""#;
        let small = r#""model_type":"electra","embedding_size":128,"hidden_size":256,"intermediate_size":1024,
            "num_attention_heads":4,"num_hidden_layers":12,"vocab_size":30522,"max_position_embeddings":512"#;
        let shared = r#""model_type":"albert","embedding_size":128,"hidden_size":768,"intermediate_size":3072,
            "num_attention_heads":12,"num_hidden_layers":12,"num_hidden_groups":1,"vocab_size":30000"#;
        let long = r#""model_type":"longformer","hidden_size":768,"intermediate_size":3072,"num_attention_heads":12,
            "num_hidden_layers":12,"vocab_size":50265,"max_position_embeddings":4098,"type_vocab_size":1"#;
        for (architecture, rest, values) in [
            ("ElectraModel", small, 13_483_008),
            ("AlbertModel", shared, 11_683_584),
            ("LongformerModel", long, 148_659_456),
            ("XLMRobertaModel", m3.as_str(), 567_754_752),
            (
                "XLMRobertaForSequenceClassification",
                &format!(r#"{m3},"id2label":{{"0":"LABEL_0"}}"#),
                567_755_777,
            ),
            ("BertModel", &bge, 335_141_888),
            ("NomicBertModel", nomic, 136_731_648),
            ("NewModel", gte, 305_368_320),
            ("BertModel", r#""model_type":"bert","torch_dtype":"float32""#, 109_482_240),
            ("BertForSequenceClassification", r#""model_type":"bert""#, 109_483_778),
            ("BertForMaskedLM", r#""model_type":"bert""#, 109_514_298),
            ("XLMRobertaModel", r#""model_type":"xlm-roberta""#, 109_482_240),
            ("RobertaForMaskedLM", r#""model_type":"roberta""#, 124_696_665),
            ("DistilBertModel", r#""model_type":"distilbert""#, 66_362_880),
            ("DistilBertForSequenceClassification", r#""model_type":"distilbert""#, 66_955_010),
            ("MPNetModel", r#""model_type":"mpnet","torch_dtype":"float32""#, 109_484_928),
            (
                "ModernBertModel",
                r#""model_type":"modernbert","torch_dtype":"float32""#,
                149_014_272,
            ),
            (
                "ModernBertForSequenceClassification",
                r#""model_type":"modernbert","torch_dtype":"float32""#,
                149_606_402,
            ),
            (
                "ModernBertForMaskedLM",
                r#""model_type":"modernbert","torch_dtype":"float32""#,
                149_655_232,
            ),
        ] {
            let facts = facts(&format!(r#"{{"architectures":["{architecture}"],{rest}}}"#));
            assert_eq!(facts.weight_bytes.0, 4 * values, "{architecture} {rest}");
            assert_eq!(facts.certainty, Certainty::Exact, "{architecture} {rest}");
        }
    }

    #[test]
    fn nothing_is_kept_of_tokens_and_the_rest_decides() {
        let facts = facts(&format!(
            r#"{{"architectures":["BertModel"],"model_type":"bert",{LARGE},"vocab_size":30522}}"#
        ));
        for engine in ["vllm", "sglang"] {
            let setup = Setup { gpu: Some(24 << 30), ..Setup::new(rules(engine)) };
            let answer = predict(&facts, &setup);
            let rank = &answer.ranks[0];
            assert_eq!((rank.cache_per_token.value, rank.cache_needed.high), (0, 0), "{engine}");
            assert_eq!((answer.fits, answer.requests), (Some(true), None), "{engine}");
            assert!(!answer.notes.iter().any(|n| n.contains("do not tell")), "{:?}", answer.notes);
            // Weights in 32 bits are loaded in 16.
            let half = facts.weight_bytes.0 / 2 + Setup::new(rules(engine)).rules.loading.value;
            assert!(rank.weights.value.abs_diff(half) < 1 << 20, "{engine}: {:?}", rank.weights);
        }
        let small = Setup { gpu: Some(1 << 30), ..Setup::new(rules("vllm")) };
        assert_eq!(predict(&facts, &small).fits, Some(false));
    }
}

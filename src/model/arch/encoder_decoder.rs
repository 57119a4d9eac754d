//! Encoder-decoders of text: T5 (`modeling_t5.py`, `modeling_umt5.py`), and BART with what follows it
//! (`modeling_bart.py`, `modeling_m2m_100.py`, `modeling_marian.py`, `modeling_pegasus.py`, …).
//!
//! Each decoder layer keeps keys and values of the tokens that are written and of those that were read, as
//! Whisper's do.

use serde_json::{Map, Value};

use super::{Build, Certainty, Keeps, MAX_LAYERS, conf::Conf, ending::Ending};

const T5: [&str; 3] = ["t5", "mt5", "umt5"];
const BART: [&str; 6] = ["bart", "mbart", "m2m_100", "marian", "pegasus", "blenderbot"];

/// Whether a configuration is of such a model.
pub(super) fn is(conf: &Conf<'_>) -> bool {
    let says_so =
        || conf.on("is_encoder_decoder") || conf.stated(&["num_decoder_layers"]).is_some();
    conf.is(&T5) || conf.is(&BART) || !conf.is_known() && says_so()
}

/// Where a layer is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Encoder,
    Decoder,
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
        }
    }
}

/// What tells BART's followers apart.
struct Style {
    /// Positions that are learned or stored, of this many more than are stated; none: they are computed.
    places: Option<u64>,
    /// A norm after the embeddings, and one after the last layer.
    norms: (bool, bool),
}

impl Style {
    fn of(conf: &Conf<'_>) -> Self {
        let (places, norms) = match conf.kind.as_str() {
            "bart" => (Some(2), (true, false)),
            "mbart" => (Some(2), (true, true)),
            "m2m_100" => (None, (false, true)),
            "marian" => (Some(0), (false, false)),
            "pegasus" | "blenderbot" => (Some(0), (false, true)),
            _ => (Some(2), (true, true)),
        };
        Self { places, norms }
    }
}

impl Build<'_> {
    /// The whole of it.
    pub(super) fn encoder_decoder(&mut self, top: &Map<String, Value>, tied: bool, ending: Ending) {
        let conf = self.conf;
        let layers = |keys: &[&str]| conf.number(keys).unwrap_or(self.n.layers).min(MAX_LAYERS / 2);
        let encoder =
            layers(&["encoder_layers", "num_encoder_layers", "encoder_num_hidden_layers"]);
        let decoder =
            layers(&["decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers"]);
        let first = top.get("architectures").and_then(Value::as_array).and_then(|l| l.first());
        let name = first.and_then(Value::as_str).unwrap_or_default();
        let alone = name.ends_with("EncoderModel");
        if alone && (conf.is(&T5) || conf.is(&BART)) {
            return self.encoder_of_it(encoder);
        }
        if alone {
            // What others call so may write all the same.
            self.cache_spread = Some((1_000, 400));
            let why =
                "whether it is an encoder alone is not known: a decoder and its cache are counted";
            self.doubt_by(Certainty::Guess, (650, 0), why);
        }
        // Both have as many stages, and a stage layers of both.
        self.n.layers = encoder.max(decoder);
        if conf.is(&T5) {
            self.t5(Part::Encoder, encoder);
            self.t5(Part::Decoder, decoder);
        } else {
            self.bart(Part::Encoder, encoder);
            self.bart(Part::Decoder, decoder);
        }
        self.end_of_decoder(tied, ending);
        let why = "a token of its cache is counted as one written and one read";
        self.notes.push(why.to_owned());
    }

    fn end_of_decoder(&mut self, tied: bool, ending: Ending) {
        let n = self.n;
        match ending {
            Ending::Scores { labels, .. } => {
                self.linear("classification_head.dense", n.hidden, n.hidden, true);
                self.linear("classification_head.out_proj", labels, n.hidden, true);
            }
            Ending::Words if !tied => self.linear("lm_head", n.vocab, n.hidden, false),
            _ => {}
        }
    }

    /// Such an encoder alone keeps nothing.
    fn encoder_of_it(&mut self, layers: u64) {
        self.n.layers = layers;
        if self.conf.is(&T5) {
            self.t5(Part::Encoder, layers);
        } else {
            self.bart(Part::Encoder, layers);
        }
        for layer in 0..layers {
            self.keeps(layer, Keeps::Attention { kv_heads: 0, key: 0, value: 0, window: None });
        }
    }

    /// What a decoder's layer keeps: of the tokens written, and of those read.
    fn keeps_both(&mut self, layer: u64) {
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let (kv_heads, size) = (small(self.n.heads), small(self.n.head_dim));
        for _ in 0..2 {
            self.keeps(layer, Keeps::Attention { kv_heads, key: size, value: size, window: None });
        }
    }

    /// A part of T5: norms without a bias, positions as a bias of attention.
    fn t5(&mut self, part: Part, layers: u64) {
        let (conf, n) = (self.conf, self.n);
        let wide = n.heads.saturating_mul(n.head_dim);
        let gated = conf
            .text_of("feed_forward_proj")
            .map_or(!conf.is(&["t5"]), |proj| proj.starts_with("gated"));
        let buckets = conf.number(&["relative_attention_num_buckets"]).unwrap_or(32);
        if part == Part::Encoder {
            self.table("model.shared", n.vocab, n.hidden);
        }
        for layer in 0..layers {
            let at = format!("{}.layers.{layer}", part.name());
            let kinds: &[&str] = match part {
                Part::Encoder => &["self_attn"],
                Part::Decoder => &["self_attn", "encoder_attn"],
            };
            for kind in kinds {
                for name in ["q_proj", "k_proj", "v_proj"] {
                    self.linear(&format!("{at}.{kind}.{name}"), wide, n.hidden, false);
                }
                self.linear(&format!("{at}.{kind}.o_proj"), n.hidden, wide, false);
                self.plain(&format!("{at}.{kind}_layer_norm.weight"), &[n.hidden], 1);
            }
            if layer == 0 || conf.is(&["umt5"]) {
                let name = format!("{at}.self_attn.relative_attention_bias.weight");
                self.plain(&name, &[buckets, n.heads], 1);
            }
            if gated {
                self.linear(&format!("{at}.mlp.gate_proj"), n.inner, n.hidden, false);
            }
            self.linear(&format!("{at}.mlp.up_proj"), n.inner, n.hidden, false);
            self.linear(&format!("{at}.mlp.down_proj"), n.hidden, n.inner, false);
            self.plain(&format!("{at}.mlp.layer_norm.weight"), &[n.hidden], 1);
            if part == Part::Decoder {
                self.keeps_both(layer);
            }
        }
        self.plain(&format!("{}.final_layer_norm.weight", part.name()), &[n.hidden], 1);
    }

    /// A part of BART and what follows it: everything has a bias.
    fn bart(&mut self, part: Part, layers: u64) {
        let (conf, n) = (self.conf, self.n);
        let style = Style::of(conf);
        let inner = match part {
            Part::Encoder => conf.number(&["encoder_ffn_dim"]),
            Part::Decoder => conf.number(&["decoder_ffn_dim"]),
        };
        let inner = inner.or(Some(n.inner)).filter(|n| *n > 0).unwrap_or(4 * n.hidden);
        let name = part.name();
        let shared = conf.flag("share_encoder_decoder_embeddings") != Some(false);
        if part == Part::Encoder || !shared {
            let own = conf.number(&["decoder_vocab_size"]).filter(|_| part == Part::Decoder);
            self.table(&format!("model.{name}.embed_tokens"), own.unwrap_or(n.vocab), n.hidden);
        }
        if let Some(more) = style.places {
            let places = conf.number(&["max_position_embeddings", "n_positions"]).unwrap_or(0);
            let shape = [places.saturating_add(more), n.hidden];
            self.plain(&format!("model.{name}.embed_positions.weight"), &shape, 1);
        }
        if style.norms.0 {
            self.with_bias(&format!("model.{name}.layernorm_embedding"));
        }
        for layer in 0..layers {
            let at = format!("{name}.layers.{layer}");
            let kinds: &[&str] = match part {
                Part::Encoder => &["self_attn"],
                Part::Decoder => &["self_attn", "encoder_attn"],
            };
            for kind in kinds {
                for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                    self.linear(&format!("{at}.{kind}.{name}"), n.hidden, n.hidden, true);
                }
                self.with_bias(&format!("{at}.{kind}_layer_norm"));
            }
            self.linear(&format!("{at}.fc1"), inner, n.hidden, true);
            self.linear(&format!("{at}.fc2"), n.hidden, inner, true);
            self.with_bias(&format!("{at}.final_layer_norm"));
            if part == Part::Decoder {
                self.keeps_both(layer);
            }
        }
        if style.norms.1 {
            self.with_bias(&format!("model.{name}.layer_norm"));
        }
        match conf.kind.as_str() {
            "m2m_100" => {}
            "bart" | "mbart" => {
                let why = "a bias of its words may be stored as well";
                self.doubt_by(Certainty::Close, (0, 2), why);
            }
            _ if conf.is(&BART) => {
                let why = "whether its files hold positions that can be computed is not known: they are counted";
                self.doubt_by(Certainty::Close, (20, 10), why);
            }
            _ => {
                let why =
                    "its encoder and its decoder are counted as BART's; it may have more parts";
                // Of experts it is not known which layers have them.
                let experts =
                    conf.number(&["num_experts", "num_local_experts", "n_routed_experts"]);
                let more = 1_000 * experts.unwrap_or(1).clamp(1, 1 << 12);
                self.doubt_by(Certainty::Guess, (400, more), why);
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

    fn t5(kind: &str, widths: [u64; 4], layers: [u64; 2], vocab: u64, more: &str) -> String {
        let [model, size, inner, heads] = widths;
        let [encoder, decoder] = layers;
        format!(
            r#"{{"architectures":["T5ForConditionalGeneration"],"model_type":"{kind}","d_model":{model},"d_kv":{size},
            "d_ff":{inner},"num_heads":{heads},"num_layers":{encoder},"num_decoder_layers":{decoder},
            "relative_attention_num_buckets":32,"is_encoder_decoder":true,"n_positions":512,"vocab_size":{vocab}{more}}}"#
        )
    }

    /// Numbers of values that the models' pages state: T5 small and base, Flan-T5 base and XXL, mT5 small, `ByT5` small.
    #[test]
    fn values_are_those_of_published_t5s() {
        let relu = r#","feed_forward_proj":"relu""#;
        let gated = r#","feed_forward_proj":"gated-gelu","tie_word_embeddings":false"#;
        for (config, values, tied) in [
            (t5("t5", [512, 64, 2_048, 8], [6, 6], 32_128, ""), 60_506_624, true),
            (t5("t5", [768, 64, 3_072, 12], [12, 12], 32_128, relu), 222_903_552, true),
            (t5("t5", [768, 64, 2_048, 12], [12, 12], 32_128, gated), 247_577_856, false),
            (t5("t5", [4_096, 64, 10_240, 64], [24, 24], 32_128, gated), 11_135_332_352, false),
            (t5("mt5", [512, 64, 1_024, 6], [8, 8], 250_112, gated), 300_176_768, false),
            (t5("t5", [1_472, 64, 3_584, 6], [12, 4], 384, gated), 299_637_760, false),
        ] {
            let model = facts(&config);
            assert_eq!(model.weight_bytes.0, 4 * values, "{config}");
            assert_eq!((model.certainty, model.tied), (Certainty::Exact, tied), "{config}");
            assert_eq!(model.context, Some(512));
        }
    }

    /// A token written and one read, in each layer of the decoder.
    #[test]
    fn what_was_read_is_kept_as_well() {
        let gated = r#","feed_forward_proj":"gated-gelu","tie_word_embeddings":false"#;
        let model = facts(&t5("t5", [1_472, 64, 3_584, 6], [12, 4], 384, gated));
        assert_eq!((model.layers, model.head_dim, model.kv_heads), (Some(12), Some(64), Some(6)));
        let answer = predict(&model, &Setup::new(rules("vllm")));
        assert_eq!(answer.ranks[0].cache_per_token.high, 4 * 2 * 2 * 6 * 64 * 2);
        // All of it is loaded, also by two stages.
        let stages = predict(&model, &Setup { pipeline: 2, ..Setup::new(rules("vllm")) });
        let sum: u64 = stages.ranks.iter().map(|r| r.weights.value).sum();
        assert!(sum >= 2 * 299_637_760, "{sum}");
        let alone = facts(
            &t5("t5", [1_472, 64, 3_584, 6], [12, 4], 384, gated)
                .replace("T5ForConditionalGeneration", "T5EncoderModel"),
        );
        let setup = Setup { gpu: Some(24 << 30), ..Setup::new(rules("vllm")) };
        let answer = predict(&alone, &setup);
        assert_eq!((answer.tokens, answer.fits), (None, Some(true)));
        assert_eq!(alone.weight_bytes.0, 4 * (384 * 1_472 + 12 * 18_090_880 + 32 * 6 + 1_472));
    }

    /// BART large (and MNLI's), mBART 50, NLLB 600M, Opus-MT of German, Pegasus large.
    #[test]
    fn values_are_those_of_published_barts() {
        let of = |kind: &str, class: &str, sizes: [u64; 3], vocab: u64, places: u64| {
            let [layers, model, heads] = sizes;
            let inner = 4 * model;
            facts(&format!(
                r#"{{"architectures":["{class}"],"model_type":"{kind}","d_model":{model},"encoder_layers":{layers},
                "decoder_layers":{layers},"encoder_ffn_dim":{inner},"decoder_ffn_dim":{inner},
                "encoder_attention_heads":{heads},"decoder_attention_heads":{heads},"is_encoder_decoder":true,
                "max_position_embeddings":{places},"vocab_size":{vocab},"id2label":{{"0":"a","1":"b","2":"c"}},
                "num_hidden_layers":{layers},"torch_dtype":"float32"}}"#
            ))
        };
        let large = [12, 1_024, 16];
        for (model, values) in [
            (of("bart", "BartForConditionalGeneration", large, 50_265, 1_024), 406_291_456),
            (of("bart", "BartForSequenceClassification", large, 50_265, 1_024), 407_344_131),
            (of("mbart", "MBartForConditionalGeneration", large, 250_054, 1_024), 610_879_488),
            (of("m2m_100", "M2M100ForConditionalGeneration", large, 256_206, 1_024), 615_073_792),
            (of("marian", "MarianMTModel", [6, 512, 8], 58_101, 512), 74_410_496),
            (
                of("pegasus", "PegasusForConditionalGeneration", [16, 1_024, 16], 96_103, 1_024),
                570_797_056,
            ),
        ] {
            assert_eq!(model.weight_bytes.0, 4 * values, "{:?}", model.architecture);
            assert_ne!(model.certainty, Certainty::Guess);
            assert_eq!(model.cache_certainty, Certainty::Exact);
        }
    }

    /// An encoder-decoder that nobody knows is counted with both its parts.
    #[test]
    fn an_unknown_one_has_both_parts() {
        let known = t5("t5", [2_048, 64, 5_120, 32], [24, 24], 32_128, "");
        let truth = facts(&known).weight_bytes.0;
        let unknown = known
            .replace("\"t5\"", "\"never_heard_of\"")
            .replace("T5ForConditionalGeneration", "OwnForConditionalGeneration");
        for config in [unknown.replace("\"num_decoder_layers\":24,", ""), unknown] {
            let model = facts(&config);
            assert_eq!(model.certainty, Certainty::Guess);
            let answer = predict(&model, &Setup::new(rules("vllm")));
            let bar = answer.weights;
            assert!(bar.low < truth && truth < bar.high, "{truth} {bar:?}");
            let token = answer.ranks[0].cache_per_token;
            assert!(token.high >= 2 * 2 * 24 * 2_048 * 2, "{token:?}");
        }
        // What it calls an encoder may be one alone, or not.
        let alone =
            |config: &str| facts(&config.replace("ForConditionalGeneration", "EncoderModel"));
        let own = known
            .replace("\"t5\"", "\"never_heard_of\"")
            .replace("T5ForConditionalGeneration", "OwnForConditionalGeneration");
        let (encoder, model) = (alone(&known), alone(&own));
        assert_eq!(encoder.certainty, Certainty::Exact);
        assert_eq!((model.certainty, model.cache_certainty), (Certainty::Guess, Certainty::Guess));
        let answer = predict(&model, &Setup::new(rules("vllm")));
        let (bar, token) = (answer.weights, answer.ranks[0].cache_per_token);
        assert!(bar.low < encoder.weight_bytes.0 && truth < bar.high, "{bar:?}");
        assert!(token.low == 0 && token.high >= 2 * 2 * 24 * 2_048 * 2, "{token:?}");
        // Switch base with 8 experts in every other layer: 619 million values.
        let switch = t5("t5", [768, 64, 2_048, 12], [12, 12], 32_128, r#","num_experts":8"#)
            .replace("\"t5\"", "\"switch_transformers\"")
            .replace("T5For", "SwitchTransformersFor");
        let bar = predict(&facts(&switch), &Setup::new(rules("vllm"))).weights;
        assert!(bar.low < 4 * 619_000_000 && bar.high > 4 * 619_000_000, "{bar:?}");
        // Moonshine has other names for its layers.
        let sound = r#"{"model_type":"moonshine","hidden_size":416,"intermediate_size":1664,"is_encoder_decoder":true,
            "encoder_num_hidden_layers":8,"decoder_num_hidden_layers":8,"decoder_num_attention_heads":8,
            "vocab_size":32768,"torch_dtype":"float32"}"#;
        let bar = predict(&facts(sound), &Setup::new(rules("vllm"))).weights;
        assert!(bar.low < 4 * 61_500_000 && bar.high > 4 * 61_500_000, "{bar:?}");
    }
}

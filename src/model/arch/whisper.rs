//! Whisper (`modeling_whisper.py`): an encoder of sound, and a decoder that attends to what it heard.

use serde_json::{Map, Value};

use super::{Build, Keeps, vision};

impl Build<'_> {
    /// The whole of it. The head is the embedding.
    pub(super) fn whisper(&mut self, top: &Map<String, Value>) {
        let n = self.n;
        vision::hears(self, top);
        self.plain("model.embed_tokens.weight", &[n.vocab, n.hidden], 1);
        let places = self.conf.number(&["max_target_positions"]).unwrap_or(448);
        self.plain("model.embed_positions.weight", &[places, n.hidden], 1);
        for layer in 0..n.layers {
            let at = format!("model.layers.{layer}");
            for part in ["self_attn", "encoder_attn"] {
                for (name, bias) in
                    [("q_proj", true), ("k_proj", false), ("v_proj", true), ("out_proj", true)]
                {
                    self.linear(&format!("{at}.{part}.{name}"), n.hidden, n.hidden, bias);
                }
                self.with_bias(&format!("{at}.{part}_layer_norm"));
                // Of a token said, and of one heard: there are 1,500 of the latter, whatever is said.
                let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
                let (kv_heads, size) = (small(n.heads), small(n.head_dim));
                let keeps = Keeps::Attention { kv_heads, key: size, value: size, window: None };
                self.keeps(layer, keeps);
            }
            self.linear(&format!("{at}.fc1"), n.inner, n.hidden, true);
            self.linear(&format!("{at}.fc2"), n.hidden, n.inner, true);
            self.with_bias(&format!("{at}.final_layer_norm"));
        }
        self.with_bias("model.norm");
        let why = "a token of its cache is counted as one said and one heard";
        if !self.notes.iter().any(|n| n == why) {
            self.notes.push(why.to_owned());
        }
    }

    /// A norm with a bias.
    pub(super) fn with_bias(&mut self, at: &str) {
        self.plain(&format!("{at}.weight"), &[self.n.hidden], 1);
        self.plain(&format!("{at}.bias"), &[self.n.hidden], 1);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::arch::Certainty;
    use crate::model::estimate::tests::{facts, rules};
    use crate::model::estimate::{Setup, predict};

    /// Numbers of values that the models' pages state.
    #[test]
    fn values_are_those_of_published_models() {
        let whisper = |encoder: u64, decoder: u64, width: u64, heads: u64, mel: u64, vocab: u64| {
            let inner = 4 * width;
            facts(&format!(
                r#"{{"architectures":["WhisperForConditionalGeneration"],"model_type":"whisper","d_model":{width},
                "encoder_layers":{encoder},"decoder_layers":{decoder},"num_hidden_layers":{encoder},
                "encoder_attention_heads":{heads},"decoder_attention_heads":{heads},"encoder_ffn_dim":{inner},
                "decoder_ffn_dim":{inner},"num_mel_bins":{mel},"max_source_positions":1500,
                "max_target_positions":448,"vocab_size":{vocab},"torch_dtype":"float16"}}"#
            ))
        };
        for (model, values) in [
            (whisper(4, 4, 384, 6, 80, 51_865), 37_760_640),
            (whisper(12, 12, 768, 12, 80, 51_865), 241_734_912),
            (whisper(24, 24, 1_024, 16, 80, 51_865), 763_857_920),
            (whisper(32, 32, 1_280, 20, 128, 51_866), 1_543_490_560),
            (whisper(32, 4, 1_280, 20, 128, 51_866), 808_878_080),
        ] {
            assert_eq!(model.weight_bytes.0, 2 * values);
            assert_eq!((model.certainty, model.tied), (Certainty::Exact, true));
            assert_eq!(model.context, Some(448));
        }
        let turbo = whisper(32, 4, 1_280, 20, 128, 51_866);
        assert_eq!((turbo.layers, turbo.attention_heads), (Some(4), Some(20)));
        let answer = predict(&turbo, &Setup::new(rules("vllm")));
        assert_eq!(answer.ranks[0].cache_per_token.value, 2 * 4 * 2 * 1_280 * 2);
    }
}

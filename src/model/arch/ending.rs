//! What follows the last layer: a head of the vocabulary, scores, or nothing. `architectures` tells it by the
//! name of the class in `transformers` that the checkpoint was saved from.

use serde_json::{Map, Value};

use super::{Build, Certainty, conf::Conf, conf::whole};

/// What a model ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// A head of the vocabulary.
    Words,
    /// The last hidden state: what embeds.
    Nothing,
    /// So many scores of a sequence, or (with a bias) of each token.
    Scores { labels: u64, bias: bool },
    /// A score by two layers (`Qwen2ForRewardModel`).
    Reward,
}

impl Ending {
    /// What the model of a `config.json` ends in. Where it names no architecture it is a head.
    pub(super) fn of(top: &Map<String, Value>, conf: &Conf<'_>) -> Self {
        let first = top.get("architectures").and_then(Value::as_array).and_then(|l| l.first());
        let Some(name) = first.and_then(Value::as_str) else { return Self::Words };
        if name.ends_with("ForSequenceClassification") {
            return Self::Scores { labels: labels(top), bias: false };
        }
        if name.ends_with("ForTokenClassification") {
            return Self::Scores { labels: labels(top), bias: true };
        }
        if name.ends_with("RewardModel") {
            return Self::Reward;
        }
        // `MistralModel` of `mistral`. Of a family that only its own code knows (`ChatGLMModel`), or with parts
        // of its own (`Qwen2_5OmniModel`), such a name is that of the whole.
        let family: String = conf.kind.chars().filter(|c| *c != '_').collect();
        let alone = top.get("model_type").and_then(Value::as_str) == Some(conf.kind.as_str());
        let plain = name.strip_suffix("Model").map(str::to_ascii_lowercase);
        match plain {
            Some(plain) if alone && conf.is_known() && plain == family => Self::Nothing,
            _ => Self::Words,
        }
    }
}

/// Scores that a classifier gives: `num_labels`, or as many as have names; two where neither is stated
/// (`configuration_utils.py`).
pub(super) fn labels(top: &Map<String, Value>) -> u64 {
    let named = || Some(top.get("id2label")?.as_object()?.len() as u64);
    let stated = top.get("num_labels").and_then(whole);
    stated.or_else(named).filter(|n| (1..=1 << 20).contains(n)).unwrap_or(2)
}

impl Build<'_> {
    /// What gives scores in place of words; never quantised.
    pub(super) fn scores(&mut self, ending: Ending) {
        let hidden = self.n.hidden;
        match ending {
            Ending::Words | Ending::Nothing => {}
            Ending::Scores { labels, bias } => {
                self.plain("score.weight", &[labels, hidden], 1);
                if bias {
                    self.plain("score.bias", &[labels], 1);
                }
            }
            Ending::Reward => {
                self.plain("score.0.weight", &[hidden, hidden], 1);
                self.plain("score.0.bias", &[hidden], 1);
                self.plain("score.2.weight", &[1, hidden], 1);
                self.plain("score.2.bias", &[1], 1);
                let why = "how many layers its score has is not known: two are counted";
                self.doubt_by(Certainty::Close, (10, 10), why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use crate::model::estimate::tests::facts;

    const LLAMA: &str = r#""hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,
        "num_key_value_heads":8,"tie_word_embeddings":false,"torch_dtype":"bfloat16""#;

    fn bytes(architecture: &str, more: &str) -> u64 {
        let json = format!(r#"{{"architectures":["{architecture}"],{more},{LLAMA}}}"#);
        facts(&json).weight_bytes.0
    }

    /// e5-mistral-7b-instruct and Skywork-Reward-Llama-3.1-8B, as published.
    #[test]
    fn heads_that_are_not_there_are_not_counted() {
        let mistral = r#""model_type":"mistral","vocab_size":32000"#;
        assert_eq!(bytes("MistralModel", mistral), 14_221_320_192);
        let head = 32_000 * 4_096 * 2;
        assert_eq!(bytes("MistralForCausalLM", mistral), 14_221_320_192 + head);
        let reward = r#""model_type":"llama","vocab_size":128256,"id2label":{"0":"LABEL_0"}"#;
        assert_eq!(bytes("LlamaForSequenceClassification", reward), 15_009_857_536);
        let plain = bytes("LlamaModel", reward);
        assert_eq!(bytes("LlamaForSequenceClassification", reward), plain + 4_096 * 2);
        let three = r#""model_type":"llama","vocab_size":128256,"num_labels":3"#;
        assert_eq!(bytes("LlamaForTokenClassification", three), plain + 3 * (4_096 + 1) * 2);
        // Neither stated: two.
        let two = r#""model_type":"llama","vocab_size":128256"#;
        assert_eq!(bytes("LlamaForSequenceClassification", two), plain + 2 * 4_096 * 2);
        let layers = (4_096 * 4_096 + 4_096 + 4_096 + 1) * 2;
        assert_eq!(bytes("LlamaForRewardModel", two), plain + layers);
        let score = facts(&format!(
            r#"{{"architectures":["LlamaForSequenceClassification"],{reward},{LLAMA}}}"#
        ));
        assert!(!score.tied && score.tensors.iter().all(|t| t.name != "lm_head.weight"));
    }

    /// Names that end alike and are those of whole models.
    #[test]
    fn some_models_are_called_so_and_have_a_head() {
        let chat = |architecture: &str| {
            facts(&format!(
                r#"{{"architectures":["{architecture}"],"model_type":"chatglm","hidden_size":4096,
                "ffn_hidden_size":13696,"num_layers":28,"num_attention_heads":32,"multi_query_attention":true,
                "multi_query_group_num":2,"padded_vocab_size":65024,"torch_dtype":"float16"}}"#
            ))
        };
        assert!(chat("ChatGLMModel").tensors.iter().any(|t| t.name == "lm_head.weight"));
        let intern = format!(
            r#"{{"architectures":["InternVLChatModel"],"model_type":"internvl_chat",
            "llm_config":{{"model_type":"qwen2","vocab_size":151674,{LLAMA}}}}}"#
        );
        assert!(facts(&intern).tensors.iter().any(|t| t.name == "lm_head.weight"));
        let omni = format!(
            r#"{{"architectures":["Qwen2_5OmniModel"],"model_type":"qwen2_5_omni","thinker_config":
            {{"model_type":"qwen2_5_omni_thinker","text_config":{{"model_type":"qwen2_5_omni_text",
            "vocab_size":152064,{LLAMA}}}}}}}"#
        );
        assert!(facts(&omni).tensors.iter().any(|t| t.name == "lm_head.weight"));
    }
}

//! Ready means that the engine generated a token: the requests that prove it, and the judgement.

use serde_json::{Value, json};

use crate::base::text;

/// A request for one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// Path of the POST request.
    pub path: &'static str,
    /// Its JSON body.
    pub body: String,
}

/// What an answer proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenAnswer {
    /// A token was generated.
    Token,
    /// Not yet; ask again.
    NotYet {
        /// What was answered instead, for people.
        why: String,
    },
    /// The engine does not offer this request (no chat template, say): try the next one.
    NotOffered {
        /// What it said.
        why: String,
    },
}

/// Chat, and plain completion for models without a chat template.
pub(super) fn openai_requests(model: &str) -> Vec<TokenRequest> {
    openai_prompts(model, "Hi", 1)
}

/// The same with a prompt and a length of one's own; temperature 0, so that the answer is the same
/// each time.
pub(super) fn openai_prompts(model: &str, prompt: &str, max_tokens: u32) -> Vec<TokenRequest> {
    let chat = json!({
        "model": model,
        "messages": [{ "role": "user", "content": prompt }],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": false,
    });
    let completion = json!({
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": false,
    });
    vec![
        TokenRequest { path: "/v1/chat/completions", body: chat.to_string() },
        TokenRequest { path: "/v1/completions", body: completion.to_string() },
    ]
}

impl TokenRequest {
    /// Whether the answer holds a token.
    pub fn accept(&self, status: u16, body: &str) -> bool {
        self.judge(status, body) == TokenAnswer::Token
    }

    /// The text of an answer that [`Self::judge`] takes for a token; empty if it has none.
    pub fn text_of(body: &str) -> String {
        let Ok(answer) = serde_json::from_str::<Value>(body) else { return String::new() };
        let Some(choice) = answer.get("choices").and_then(|c| c.get(0)) else {
            return String::new();
        };
        let message = choice.get("message").unwrap_or(choice);
        let text = |key: &str| message.get(key).and_then(Value::as_str).filter(|t| !t.is_empty());
        text("content").or_else(|| text("text")).unwrap_or_default().to_owned()
    }

    /// An answer that ended while the model was still thinking: nothing was said yet.
    pub fn is_only_thought(body: &str) -> bool {
        let Ok(answer) = serde_json::from_str::<Value>(body) else { return false };
        let choice = answer.get("choices").and_then(|c| c.get(0));
        let message = choice.and_then(|choice| choice.get("message"));
        // vLLM's `reasoning_content` is `reasoning` in its later versions.
        let thought = ["reasoning_content", "reasoning"].iter().any(|key| {
            message.and_then(|m| m.get(key)).and_then(Value::as_str).is_some_and(|t| !t.is_empty())
        });
        thought && Self::text_of(body).is_empty()
    }

    /// What an answer (HTTP status and body) proves. A good status alone proves nothing.
    pub fn judge(&self, status: u16, body: &str) -> TokenAnswer {
        let said = || {
            let shown = text::clean(body, 160);
            if shown.is_empty() {
                format!("HTTP {status}")
            } else {
                format!("HTTP {status}: {shown}")
            }
        };
        match status {
            200 => {}
            400 | 404 | 405 | 422 | 501 => return TokenAnswer::NotOffered { why: said() },
            _ => return TokenAnswer::NotYet { why: said() },
        }
        let Ok(answer) = serde_json::from_str::<Value>(body) else {
            return TokenAnswer::NotYet { why: format!("not JSON: {}", said()) };
        };
        if answer.get("error").is_some_and(|e| !e.is_null()) {
            return TokenAnswer::NotYet { why: said() };
        }
        let choice = answer.get("choices").and_then(|c| c.get(0)).filter(|c| c.is_object());
        let Some(choice) = choice else {
            return TokenAnswer::NotYet { why: format!("no choice in the answer: {}", said()) };
        };
        let message = choice.get("message").unwrap_or(choice);
        let filled = |key: &str| {
            message.get(key).and_then(Value::as_str).is_some_and(|text| !text.is_empty())
        };
        // The token may be part of a multi-byte character or a special one: then the text is empty
        // and the reason why it ended tells.
        let ended = choice
            .get("finish_reason")
            .and_then(Value::as_str)
            .is_some_and(|r| matches!(r, "stop" | "length" | "tool_calls"));
        let counted =
            answer.get("usage").and_then(|u| u.get("completion_tokens")).and_then(Value::as_u64);
        let spoken = filled("content") || filled("reasoning_content") || filled("text");
        if counted != Some(0) && (spoken || ended) {
            TokenAnswer::Token
        } else {
            TokenAnswer::NotYet { why: format!("no token in the answer: {}", said()) }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn the_text_of_an_answer_is_found_in_both_forms() {
        let chat = r#"{"choices":[{"message":{"content":"Paris."}}]}"#;
        let plain = r#"{"choices":[{"text":"Paris."}]}"#;
        assert_eq!(TokenRequest::text_of(chat), "Paris.");
        assert_eq!(TokenRequest::text_of(plain), "Paris.");
        for none in ["", "{}", r#"{"choices":[]}"#, r#"{"choices":[{"text":7}]}"#] {
            assert_eq!(TokenRequest::text_of(none), "");
        }
        let thought = r#"{"choices":[{"message":{"content":null,"reasoning_content":"The capital"},"finish_reason":"length"}]}"#;
        assert!(TokenRequest::is_only_thought(thought));
        let later = thought.replace("reasoning_content", "reasoning");
        assert!(TokenRequest::is_only_thought(&later));
        for said in [chat, plain, &thought.replace("null", "\"Paris\""), "{}"] {
            assert!(!TokenRequest::is_only_thought(said), "{said}");
        }
        let asks = openai_prompts("chat", "Capital of \"France\"?", 8);
        assert!(
            asks[0].body.contains("\\\"France\\\"") && asks[1].body.contains("\"max_tokens\":8")
        );
    }

    #[test]
    fn only_a_token_is_a_token() {
        let request = &openai_requests("chat")[0];
        assert!(request.body.contains("\"max_tokens\":1"));
        for good in [
            r#"{"choices":[{"message":{"role":"assistant","content":"Hello"},"finish_reason":"length"}],"usage":{"completion_tokens":1}}"#,
            r#"{"choices":[{"message":{"content":""},"finish_reason":"length"}]}"#,
            r#"{"choices":[{"message":{"content":null,"reasoning_content":"H"}}]}"#,
            r#"{"choices":[{"text":"x","finish_reason":null}]}"#,
        ] {
            assert!(request.accept(200, good), "{good}");
        }
        for bad in [
            "",
            "ok",
            "{}",
            r#"{"choices":[]}"#,
            r#"{"choices":[null]}"#,
            r#"{"choices":[{"message":{"content":""},"finish_reason":"error"}]}"#,
            r#"{"choices":[{"message":{"content":""},"finish_reason":null}]}"#,
            r#"{"choices":[{"message":{"content":"x"}}],"usage":{"completion_tokens":0}}"#,
            r#"{"error":{"message":"engine is dead"},"choices":[{"text":"x"}]}"#,
        ] {
            assert!(!request.accept(200, bad), "{bad}");
        }
        let good = r#"{"choices":[{"text":"x"}]}"#;
        assert!(matches!(request.judge(503, good), TokenAnswer::NotYet { .. }));
        assert!(matches!(request.judge(500, good), TokenAnswer::NotYet { .. }));
        assert!(matches!(request.judge(404, "{}"), TokenAnswer::NotOffered { .. }));
        assert!(matches!(request.judge(400, "no template"), TokenAnswer::NotOffered { .. }));
    }
}

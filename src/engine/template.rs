//! The placeholders of a command of the user's.

use super::{EngineError, key};
use crate::base::text;

const PLACEHOLDERS: [&str; 13] = [
    "port",
    "address",
    "model",
    "tensor",
    "pipeline",
    "data",
    "context",
    "rank",
    "replica",
    "release",
    "service",
    "gpudeck",
    "api_key_file",
];

/// A context is used and not known.
pub(super) fn no_context() -> EngineError {
    EngineError::Template {
        what: "{context} is used and no context is known".to_owned(),
        hint: "set `context` in the service's spec".to_owned(),
    }
}

/// A file for the key is used and not known.
pub(super) fn no_key_file() -> EngineError {
    EngineError::Template {
        what: format!("{} is used and no file is known", key::PLACEHOLDER),
        hint: "set `api_key_file` in the service's spec: the path of a file on the hosts"
            .to_owned(),
    }
}

/// Fills in `{name}`. Braces around anything but a lower-case word (JSON, say) stay as they are.
pub(super) fn expand(
    word: &str,
    value: &dyn Fn(&str) -> Result<String, EngineError>,
) -> Result<String, EngineError> {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(open) = rest.find('{') {
        let (before, from) = rest.split_at(open);
        out.push_str(before);
        let name = from.find('}').and_then(|close| from.get(1..close)).filter(|name| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        });
        let Some(name) = name else {
            out.push('{');
            rest = from.get(1..).unwrap_or("");
            continue;
        };
        if !PLACEHOLDERS.contains(&name) {
            return Err(EngineError::Template {
                what: format!("`{{{}}}` is not known", text::clean(name, 40)),
                hint: match text::nearest(name, PLACEHOLDERS) {
                    Some(near) => format!("did you mean `{{{near}}}`?"),
                    None => format!("known are {}", PLACEHOLDERS.join(", ")),
                },
            });
        }
        if name == "gpudeck" && word != "{gpudeck}" {
            return Err(EngineError::Template {
                what: "`{gpudeck}` must be a word of its own".to_owned(),
                hint: "write for example run = [\"{gpudeck}\", \"sim-engine\"]".to_owned(),
            });
        }
        out.push_str(&value(name)?);
        rest = from.get(name.len() + 2..).unwrap_or("");
    }
    out.push_str(rest);
    Ok(out)
}

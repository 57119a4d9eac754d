//! How an engine is given the key without which it does not answer: from a file on its host, so that the key
//! stands in no command line, spec, journal or log.

use std::collections::BTreeMap;

use super::{EngineError, args};
use crate::spec::ServiceSpec;

/// In the command of a command engine: the path of the file.
pub(super) const PLACEHOLDER: &str = "{api_key_file}";

/// llama.cpp reads such a file by itself.
pub(super) const LLAMA_CPP_OPTION: &str = "--api-key-file";

/// vLLM knows no file; where it finds its key.
pub(super) const VLLM_VARIABLE: &str = "VLLM_API_KEY";

/// Variables with which engines are told a key, or a file with keys, or certificates.
const LOCKS: [(&str, Lock); 5] = [
    ("VLLM_API_KEY", Lock::Key),
    ("LLAMA_API_KEY", Lock::Key),
    ("LLAMA_ARG_API_KEY_FILE", Lock::KeyFile),
    ("LLAMA_ARG_SSL_KEY_FILE", Lock::Tls),
    ("LLAMA_ARG_SSL_CERT_FILE", Lock::Tls),
];

/// What an engine is locked with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lock {
    Key,
    KeyFile,
    Tls,
}

/// Refuses what makes an engine answer only to who has a key that gpudeck does not know of, or speaks TLS: whether
/// it generates tokens is asked in plain HTTP, and it would never be ready.
pub(super) fn refuse_locks(
    engine: &'static str,
    words: &[String],
    env: &BTreeMap<String, String>,
    spec: &ServiceSpec,
) -> Result<(), EngineError> {
    // The file of the spec may be named by hand in a command.
    let named = args::value(words, &[LLAMA_CPP_OPTION]);
    let is_ours = named.is_some() && (named == Some(PLACEHOLDER) || named == own_file(spec));
    let option = words.iter().find_map(|word| {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        match name {
            "--api-key" => Some((name, Lock::Key)),
            LLAMA_CPP_OPTION if !is_ours => Some((name, Lock::KeyFile)),
            _ if name.starts_with("--ssl-") => Some((name, Lock::Tls)),
            _ => None,
        }
    });
    let variable = LOCKS.into_iter().find(|(name, _)| env.contains_key(*name));
    let Some((name, lock)) = option.or(variable) else { return Ok(()) };
    let hint = match lock {
        Lock::Key => {
            "remove it: what is in a spec is in Git. Write the key into a file on the hosts and name that: \
             api_key_file = \"/etc/gpudeck/chat.key\""
        }
        Lock::KeyFile => {
            "name the file as `api_key_file` of the service: gpudeck needs the key, too"
        }
        Lock::Tls => {
            "remove it: gpudeck asks engines for tokens in plain HTTP. Have the gateway speak TLS, and engines \
             listen on an inner address (`engine_listen` of the host)"
        }
    };
    Err(EngineError::Unsupported { engine, what: format!("`{name}`"), hint: hint.to_owned() })
}

fn own_file(spec: &ServiceSpec) -> Option<&str> {
    spec.api_key_file.as_deref()
}

/// Refuses a key for an engine that would show it.
pub(super) fn refuse_sglang(spec: &ServiceSpec) -> Result<(), EngineError> {
    match own_file(spec) {
        None => Ok(()),
        Some(_) => Err(EngineError::Unsupported {
            engine: "command",
            what: "`api_key_file` for SGLang".to_owned(),
            hint: "remove it: SGLang takes its key on the command line alone, and writes it into its log. Ask \
                   clients for one at the gateway, and have engines listen on an inner address (`engine_listen` of \
                   the host)"
                .to_owned(),
        }),
    }
}

/// Refuses a key that the engine would never hear of: gpudeck would show it, and everybody would be answered.
pub(super) fn refuse_untold(
    words: &[String],
    env: &BTreeMap<String, String>,
    spec: &ServiceSpec,
) -> Result<(), EngineError> {
    let Some(file) = own_file(spec) else { return Ok(()) };
    let names_it = |word: &String| word.contains(PLACEHOLDER) || word.contains(file);
    if words.iter().any(names_it) || env.values().any(|value| value.contains(file)) {
        return Ok(());
    }
    Err(EngineError::Template {
        what: "its command does not say where the key is".to_owned(),
        hint: format!(
            "name the file in `run`, for example \"--api-key-file\", \"{PLACEHOLDER}\"; with metrics = \"vllm\" or \
             \"llamacpp\" gpudeck does it"
        ),
    })
}

/// A command that reads the first line of a file into a variable, and becomes the engine.
pub(super) fn through_variable(variable: &str, file: &str, engine: Vec<String>) -> Vec<String> {
    let script = format!(
        "{variable}=; read -r {variable} < \"$0\"; \
         [ -n \"${variable}\" ] || {{ echo \"no key in $0\" >&2; exit 1; }}; \
         export {variable}; exec \"$@\""
    );
    let shell = ["/bin/sh", "-c", &script, file].map(str::to_owned);
    shell.into_iter().chain(engine).collect()
}

//! The stand-in's configuration: as much of HAProxy's language as gpudeck writes
//! (`gateway::section`), from the `*.cfg` files of a directory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

/// Longest file that is read.
const MAX_FILE: usize = 1 << 20;

/// What the files say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    /// Servers by backend: name, address, weight.
    pub backends: BTreeMap<String, Vec<(String, SocketAddr, u16)>>,
    /// The frontends.
    pub frontends: Vec<Frontend>,
}

/// Where clients come in, and where they go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frontend {
    pub name: String,
    pub bind: Option<SocketAddr>,
    /// Before the default one, in order.
    pub rules: Vec<Rule>,
    pub default: String,
}

/// Requests with this header or cookie go to that backend while it has a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub cookie: bool,
    pub name: String,
    pub value: String,
    pub backend: String,
}

/// Reads the files in the order of their names, as HAProxy does. What is not understood is passed
/// over: the stand-in has no check.
pub(super) fn load(directory: &Path) -> std::io::Result<Config> {
    let mut files: Vec<_> = std::fs::read_dir(directory)?.flatten().map(|e| e.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "cfg"));
    files.sort();
    let mut config = Config::default();
    for file in files {
        let text = std::fs::read_to_string(file)?;
        if text.len() <= MAX_FILE {
            read(&text, &mut config);
        }
    }
    Ok(config)
}

enum Section {
    None,
    Frontend,
    Backend(String),
}

fn read(text: &str, config: &mut Config) {
    let mut section = Section::None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (words.as_slice(), &section) {
            (["frontend", name], _) => {
                let name = (*name).to_owned();
                config.frontends.push(Frontend { name, ..Frontend::default() });
                section = Section::Frontend;
            }
            (["backend", name], _) => {
                config.backends.entry((*name).to_owned()).or_default();
                section = Section::Backend((*name).to_owned());
            }
            (["server", name, address, "weight", weight], Section::Backend(backend)) => {
                if let (Ok(address), Ok(weight)) = (address.parse(), weight.parse()) {
                    let servers = config.backends.entry(backend.clone()).or_default();
                    servers.push(((*name).to_owned(), address, weight));
                }
            }
            (words, Section::Frontend) => {
                if let Some(frontend) = config.frontends.last_mut() {
                    frontend_line(words, frontend);
                }
            }
            _ => {}
        }
    }
}

fn frontend_line(words: &[&str], frontend: &mut Frontend) {
    match words {
        ["bind", address] => frontend.bind = address.parse().ok(),
        ["default_backend", backend] => (*backend).clone_into(&mut frontend.default),
        ["use_backend", backend, "if", "{", fetch, "-m", "str", value, "}", ..] => {
            let named = |kind: &str| fetch.strip_prefix(kind).and_then(|f| f.strip_suffix(')'));
            let (cookie, name) = match (named("req.hdr("), named("req.cook(")) {
                (Some(name), _) => (false, name),
                (None, Some(name)) => (true, name),
                (None, None) => return,
            };
            frontend.rules.push(Rule {
                cookie,
                name: name.to_owned(),
                value: (*value).to_owned(),
                backend: (*backend).to_owned(),
            });
        }
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::gateway::section::{Section, SectionServer};
    use crate::spec::CanaryRule;

    #[test]
    fn reads_what_gpudeck_writes() {
        let service = "chat".parse().unwrap();
        let rule = CanaryRule::Cookie { name: "canary".into(), value: "always".into() };
        let section = Section {
            deck: "prod",
            service: &service,
            backend: "chat",
            listen: Some("127.0.0.1:8080"),
            canary: Some(&rule),
            stream_timeout: Duration::from_secs(60),
            also: &[],
        };
        let server = SectionServer {
            replica: "r1-0-a1".parse().unwrap(),
            address: "127.0.0.1".parse().unwrap(),
            port: 21000,
            weight: 90,
        };
        let mut config = Config::default();
        read(&section.text(&[server], &[]), &mut config);
        let address = "127.0.0.1:21000".parse().unwrap();
        let expected = Config {
            backends: [
                ("chat".to_owned(), vec![("r1-0-a1".to_owned(), address, 90)]),
                ("chat-canary".to_owned(), Vec::new()),
            ]
            .into(),
            frontends: vec![Frontend {
                name: "chat".to_owned(),
                bind: "127.0.0.1:8080".parse().ok(),
                rules: vec![Rule {
                    cookie: true,
                    name: "canary".to_owned(),
                    value: "always".to_owned(),
                    backend: "chat-canary".to_owned(),
                }],
                default: "chat".to_owned(),
            }],
        };
        assert_eq!(config, expected);
    }
}

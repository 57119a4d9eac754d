//! `gpudeck init`: a deck, from what can be found out.

use std::path::{Path, PathBuf};

use super::args::{Args, Output};
use super::exit::{Failure, Success};
use super::table;
use crate::base::DeckId;
use crate::controller;

/// Makes a deck in `dir` (default: here).
pub fn run(args: &Args, dir: Option<&Path>, name: Option<&str>) -> Result<Success, Failure> {
    let dir = match dir {
        Some(dir) => dir.to_owned(),
        None => std::env::current_dir().map_err(|e| {
            Failure::other(format!("the present directory cannot be told: {e}"))
                .with_hint("change into a directory that is there")
        })?,
    };
    let failed = |e: std::io::Error| {
        Failure::other(format!("{}: {e}", dir.display()))
            .with_hint("make the deck in a directory that you may write: gpudeck init DIR")
    };
    if let Some(outer) = outer_deck(&dir) {
        return Err(Failure::other(format!(
            "{} is inside the deck {}",
            dir.display(),
            outer.display()
        ))
        .code(5)
        .with_hint("make the deck in another directory"));
    }
    std::fs::create_dir_all(dir.join("services")).map_err(failed)?;
    let file = dir.join("deck.toml");
    if file.exists() {
        return Err(Failure::other(format!("{} exists already", file.display()))
            .code(5)
            .with_hint("edit it, or make the deck in another directory"));
    }
    let made = std::fs::canonicalize(&dir).map_err(failed)?;
    let fallback = made.file_name().map(|n| n.to_string_lossy().into_owned());
    let name = name.map(str::to_owned).or(fallback).unwrap_or_else(|| "deck".to_owned());
    let hosts = hosts_of_ssh_config();
    std::fs::write(&file, deck_toml(&name, &hosts)).map_err(failed)?;
    let example = made.join("services/chat.toml.example");
    std::fs::write(&example, include_str!("../../config/chat.toml.example")).map_err(failed)?;
    controller::init_repository(&made).map_err(|e| Failure::of(&e))?;
    match args.output {
        Output::Json => table::json(&serde_json::json!({ "deck": made, "hosts": hosts }))?,
        Output::Text => {
            table::out(&format!("made a deck in {}", made.display()))?;
            match hosts.len() {
                0 => table::out("no hosts were found in ~/.ssh/config: add them to deck.toml")?,
                n => table::out(&format!(
                    "{n} hosts from ~/.ssh/config are in deck.toml, commented out"
                ))?,
            }
            table::out(
                "next: edit deck.toml, copy services/chat.toml.example to services/chat.toml, run `gpudeck`",
            )?;
        }
    }
    Ok(Success::Done)
}

/// A deck above this directory: its commands would be taken for the inner one's.
fn outer_deck(dir: &Path) -> Option<std::path::PathBuf> {
    let whole = std::path::absolute(dir).ok()?;
    let there = whole.ancestors().find(|d| d.is_dir())?;
    let there = std::fs::canonicalize(there).ok()?;
    let mut above = there.ancestors().filter(|d| d.join("deck.toml").is_file());
    above
        .find(|deck| *deck != std::fs::canonicalize(&whole).unwrap_or_default())
        .map(Path::to_owned)
}

fn deck_toml(name: &str, hosts: &[String]) -> String {
    let id = DeckId(uuid::Uuid::now_v7());
    let name = toml::Value::String(name.to_owned());
    let mut text = format!(
        "# The deck: hosts, gateways, settings. See docs/deck.md.\nid = \"{id}\"\nname = {name}\n\n\
         # One section a host. Address, port, user and keys come from ~/.ssh/config unless they are\n\
         # written here. `transport = \"local\"` is this very machine.\n"
    );
    if hosts.is_empty() {
        text.push_str("# [hosts.gpu1]\n# address = \"10.0.0.11\"\n");
    }
    for host in hosts {
        text.push_str(&format!("# [hosts.{}]\n", toml_key(host)));
    }
    text.push_str(
        "\n# A HAProxy with `stats socket PATH level admin`, started with `-f` of `config`, too.\n\
         # [gateways.main]\n# host = \"gpu1\"\n# socket = \"/run/haproxy/admin.sock\"\n\
         # config = \"/etc/haproxy/gpudeck.d\"\n# url = \"http://10.0.0.11:8080\"\n",
    );
    text
}

fn toml_key(name: &str) -> String {
    if name.contains('.') { format!("\"{name}\"") } else { name.to_owned() }
}

/// Names of `Host` lines without patterns.
fn hosts_of_ssh_config() -> Vec<String> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let text = std::fs::read_to_string(home.join(".ssh/config")).unwrap_or_default();
    let mut hosts: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let (key, names) = line.trim().split_once(|c: char| c.is_whitespace() || c == '=')?;
            key.eq_ignore_ascii_case("host").then_some(names)
        })
        .flat_map(str::split_whitespace)
        .filter(|name| name.parse::<crate::base::HostName>().is_ok())
        .map(str::to_owned)
        .collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

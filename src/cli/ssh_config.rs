//! `gpudeck ssh-config HOST`: how a host is reached, in the format of `ssh -G`. Needs no deck and
//! no controller; of a host of the deck here it has what deck.toml says, too.

use std::collections::BTreeMap;
use std::path::Path;

use super::args::{Args, Output};
use super::attach;
use super::exit::{Failure, Success};
use super::table;
use crate::ssh::config::{ConfigFiles, Given, Place};
use crate::ssh::{ConnectOptions, Endpoint, Target};

/// What deck.toml says of the host, if there is a deck here and it is one of its hosts.
fn of_deck(args: &Args, host: &str) -> Result<Option<Target>, Failure> {
    if attach::find(args)?.is_none() {
        return Ok(None);
    }
    let (_, deck) = attach::deck(args)?;
    let named = deck.hosts.iter().find(|(name, _)| name.as_str() == host);
    if named.is_some_and(|(_, spec)| spec.is_local()) {
        let what = format!(
            "{host} is this machine (`transport = \"local\"` in deck.toml): it is reached without SSH"
        );
        return Err(Failure::other(what).with_hint(format!(
            "`gpudeck ssh-config --plain {host}` shows what the SSH configuration alone says"
        )));
    }
    Ok(named.map(|(name, spec)| Target {
        name: name.to_string(),
        address: spec.address.clone(),
        port: spec.port,
        user: spec.user.clone(),
        identity_files: spec.identity_files.clone(),
        known_hosts: spec.known_hosts.clone(),
    }))
}

/// Keys and known hosts of deck.toml come first, or instead.
fn overlay(endpoint: &mut Endpoint, target: &Target) {
    let path = |file: &std::path::PathBuf| file.display().to_string();
    let printed = &mut endpoint.config.printed;
    if !target.identity_files.is_empty() {
        let keys = endpoint.config.identity_files.iter().map(path).collect();
        replace(printed, "identityfile", keys);
    }
    if target.known_hosts.is_some() {
        let known = endpoint.known_hosts_file.iter().map(path).collect();
        replace(printed, "userknownhostsfile", known);
    }
}

/// Other values of a key, where it stood.
fn replace(printed: &mut Vec<(String, String)>, key: &str, values: Vec<String>) {
    let at = printed.iter().position(|(k, _)| k == key).unwrap_or(printed.len());
    printed.retain(|(k, _)| k != key);
    let rest = printed.split_off(at.min(printed.len()));
    printed.extend(values.into_iter().map(|value| (key.to_owned(), value)));
    printed.extend(rest);
}

/// Prints what the SSH configuration says about `host`; what we do not follow is a warning on
/// standard error.
pub fn run(args: &Args, host: &str, plain: bool, file: Option<&Path>) -> Result<Success, Failure> {
    let Some(given) = Given::destination(host) else {
        return Err(Failure::other(format!("`{host}` is no host"))
            .with_hint("name it as `ssh` would be given it, or as deck.toml has it"));
    };
    let files = file.map_or(ConfigFiles::Usual, |file| ConfigFiles::Only(file.to_owned()));
    let place = Place::as_ssh();
    let options =
        ConnectOptions { config: files, place: place.clone(), ..ConnectOptions::from_env(None) };
    let of_deck = if plain || file.is_some() { None } else { of_deck(args, host)? };
    let endpoint = match &of_deck {
        Some(target) => Endpoint::resolve(target, &options),
        None => Endpoint::of(&given, &options),
    };
    let mut endpoint = endpoint.map_err(|error| Failure::of(&error))?;
    if let Some(target) = &of_deck {
        eprintln!("gpudeck: with what deck.toml says of {host}; --plain leaves it out");
        overlay(&mut endpoint, target);
    }
    for warning in endpoint.in_vain(&options).all() {
        eprintln!("warning: {warning}");
    }
    if let Some(fault) = &endpoint.config.fault {
        eprintln!("warning: {fault}; no connection can be made with it");
    }
    let config = endpoint.config;
    if place.home != Place::here().home {
        eprintln!(
            "warning: $HOME is another directory than that of the user database, which is shown \
             here; gpudeck's connections use $HOME"
        );
    }
    if args.output == Output::Json {
        let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (key, value) in &config.printed {
            all.entry(key).or_default().push(value);
        }
        table::json(&all)?;
    } else {
        for (key, value) in &config.printed {
            table::out(&format!("{key} {value}"))?;
        }
    }
    Ok(Success::Done)
}

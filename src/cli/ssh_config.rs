//! `gpudeck ssh-config HOST`: how a host is reached, in the format of `ssh -G`. Needs no deck and
//! no controller.

use std::collections::BTreeMap;
use std::path::Path;

use super::args::{Args, Output};
use super::exit::{Failure, Success};
use super::table;
use crate::base::Hint;
use crate::ssh::config::{ConfigFiles, Given, Place};
use crate::ssh::{ConnectOptions, Endpoint};

/// Prints what the SSH configuration says about `host`; what we do not follow is a warning on
/// standard error.
pub fn run(args: &Args, host: &str, file: Option<&Path>) -> Result<Success, Failure> {
    let Some(given) = Given::destination(host) else {
        return Err(Failure::other(format!("`{host}` is no host")));
    };
    let files = file.map_or(ConfigFiles::Usual, |file| ConfigFiles::Only(file.to_owned()));
    let place = Place::as_ssh();
    let options =
        ConnectOptions { config: files, place: place.clone(), ..ConnectOptions::from_env(None) };
    let endpoint = Endpoint::of(&given, &options)
        .map_err(|error| Failure { hint: error.hint(), ..Failure::other(error.to_string()) })?;
    for warning in endpoint.warnings(&options) {
        eprintln!("warning: {warning}");
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

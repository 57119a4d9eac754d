//! The readers of what hosts, and files that others may write, tell us, as functions of bytes alone,
//! with what must hold of any bytes: for fuzzing (`tests/fuzz`), and for the tests that mutate seeds
//! without a fuzzer (`tests/host_readers.rs`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::PublicKey;

use super::following::Picture;
use super::smi;
use crate::ssh::config::{self, ConfigFiles, Given, Place};
use crate::ssh::known_hosts::{KnownHosts, Verdict};
use crate::wire::packed::read_line;
use crate::wire::{FromAgent, HostSample, MAX_LINE_BYTES, ToAgent, encode_line};

/// One reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Lines from an agent, changes applied to the samples before them, and lines to an agent.
    Messages,
    /// An `ssh_config`.
    SshConfig,
    /// A `known_hosts`.
    KnownHosts,
    /// The text of `nvidia-smi` and of `/proc`.
    NvidiaSmi,
}

/// All readers.
pub const ALL: [Reader; 4] =
    [Reader::Messages, Reader::SshConfig, Reader::KnownHosts, Reader::NvidiaSmi];

/// A key for `known_hosts` to be asked about.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

/// Reads `bytes`; says what does not hold.
///
/// # Errors
/// A property that must hold of any bytes does not.
pub fn read(reader: Reader, bytes: &[u8]) -> Result<(), String> {
    match reader {
        Reader::Messages => messages(bytes),
        Reader::SshConfig => ssh_config(&String::from_utf8_lossy(bytes)),
        Reader::KnownHosts => known_hosts(&String::from_utf8_lossy(bytes)),
        Reader::NvidiaSmi => nvidia_smi(&String::from_utf8_lossy(bytes)),
    }
}

/// What was read is written and read again.
fn again<T: serde::Serialize + serde::de::DeserializeOwned>(message: &T) -> Result<(), String> {
    let line = match encode_line(message) {
        Ok(line) => line,
        Err(crate::wire::CodecError::TooLong) => return Ok(()),
        Err(error) => return Err(format!("cannot be written: {error}")),
    };
    let inner = line.strip_suffix(b"\n").unwrap_or(&line);
    if inner.contains(&b'\n') {
        return Err("a message of two lines".to_owned());
    }
    serde_json::from_slice::<T>(inner).map_err(|e| format!("not read again: {e}"))?;
    Ok(())
}

fn messages(bytes: &[u8]) -> Result<(), String> {
    let mut picture = Picture::default();
    for line in bytes.split(|b| *b == b'\n').filter(|line| line.len() <= MAX_LINE_BYTES) {
        if let Ok(message) = read_line(line) {
            again(&message)?;
            match message {
                FromAgent::Sample(sample) => picture.whole(Arc::from(sample)),
                FromAgent::Change { since_ms, change } => {
                    if let Some(sample) = picture.change(since_ms, change) {
                        again(&FromAgent::Sample(Box::new(HostSample::clone(&sample))))?;
                    }
                }
                FromAgent::Reply { .. } | FromAgent::Ranks(_) | FromAgent::Packed(_) => {}
            }
        } else if let Ok(message) = serde_json::from_slice::<ToAgent>(line) {
            again(&message)?;
        }
    }
    Ok(())
}

fn ssh_config(text: &str) -> Result<(), String> {
    // A fuzzer that writes `Include` must not read this machine's files (some never end).
    let plain: String = text.chars().filter(|c| !"\"'\\".contains(*c)).collect();
    if plain.to_ascii_lowercase().contains("include") && plain.contains(['/', '~']) {
        return Ok(());
    }
    let place = Place {
        home: PathBuf::from("/nowhere/home"),
        local_user: "u".to_owned(),
        uid: 1000,
        local_host: "here".to_owned(),
        env: Arc::new(|name| (name == "A").then(|| "b".to_owned())),
        run_match_exec: false,
    };
    for name in ["a", "web.example.org"] {
        let given = Given { name: name.to_owned(), ..Given::default() };
        let files = ConfigFiles::Text(text.into());
        let Ok(config) = config::resolve(&files, &given, &place) else { continue };
        if config::resolve(&files, &given, &place).as_ref() != Ok(&config) {
            return Err("another time, another result".to_owned());
        }
        if config.printed.iter().any(|(key, value)| key.contains('\n') || value.contains('\n')) {
            return Err("a value of two lines".to_owned());
        }
        let unclean = |w: &String| w.chars().any(char::is_control);
        if let Some(warning) = config.warnings.iter().find(|w| unclean(w)) {
            return Err(format!("a warning that is not clean: {warning:?}"));
        }
    }
    Ok(())
}

fn known_hosts(text: &str) -> Result<(), String> {
    let key = PublicKey::from_openssh(KEY).map_err(|e| e.to_string())?;
    let file = Path::new("known_hosts");
    let mut known = KnownHosts::default();
    known.add(file, text);
    for (host, port) in [("a", 22), ("web.example.org", 2222)] {
        let verdict = known.check(host, port, &key);
        let _ = (known.algorithms(host, port), known.has_authority(host, port));
        if let Verdict::Changed { line, .. } | Verdict::Revoked { line, .. } = verdict
            && (line == 0 || line > text.lines().count())
        {
            return Err(format!("line {line} is not there"));
        }
        // Whatever else the file says: a key that is revoked is not believed.
        let mut revoked = known.clone();
        revoked.add(file, &format!("@revoked * {KEY}\n"));
        if !matches!(revoked.check(host, port, &key), Verdict::Revoked { .. }) {
            return Err("a revoked key is believed".to_owned());
        }
        // And one that is known for the name is found, unless the file speaks against it.
        if matches!(verdict, Verdict::Unknown { .. }) {
            let mut right = known.clone();
            let name = crate::ssh::known_hosts::entry_name(host, port);
            right.add(file, &format!("{name} {KEY}\n"));
            if right.check(host, port, &key) != Verdict::Known {
                return Err("a known key is not found".to_owned());
            }
        }
    }
    Ok(())
}

fn nvidia_smi(text: &str) -> Result<(), String> {
    let clean = |what: &str| !what.chars().any(char::is_control);
    match smi::parse_gpus(text) {
        Ok(gpus) => {
            if gpus.len() > 64 || gpus.windows(2).any(|w| matches!(w, [a, b] if a.index > b.index))
            {
                return Err("too many GPUs, or out of order".to_owned());
            }
            for gpu in gpus {
                let words = [Some(&gpu.uuid), Some(&gpu.name), gpu.pci_bus_id.as_ref()];
                if !words.into_iter().flatten().all(|w| clean(w) && w.len() <= 400) {
                    return Err(format!("not clean: {gpu:?}"));
                }
            }
        }
        Err(why) if clean(&why) => {}
        Err(why) => return Err(format!("not clean: {why:?}")),
    }
    let apps = smi::parse_apps(text);
    if apps.len() > 1024 || !apps.iter().all(|(uuid, app)| clean(uuid) && clean(&app.name)) {
        return Err("too many processes, or not clean".to_owned());
    }
    if let Some((busy, all)) = smi::cpu_ticks(text)
        && busy > all
    {
        return Err("busier than ever".to_owned());
    }
    let _ = smi::memory(text);
    Ok(())
}

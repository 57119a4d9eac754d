//! The deck's files in the work tree, read as hostile bytes: bounded, plain files only.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use super::{RevisionError, service_file};
use crate::base::ServiceName;
use crate::spec::parse::MAX_SPEC_BYTES;

/// The deck's own settings.
pub const DECK_FILE: &str = "deck.toml";
/// Where the services' specs are.
pub const SERVICES_DIR: &str = "services";
/// Most services a deck may have.
const MAX_SERVICES: usize = 1_000;

/// What a deck's work tree holds, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeckFiles {
    /// `deck.toml`.
    pub deck: String,
    /// `services/NAME.toml`, by name.
    pub services: BTreeMap<ServiceName, String>,
    /// Files that should be services and cannot be read; the others are served all the same.
    pub troubles: Vec<RevisionError>,
}

/// Reads everything under `root`.
pub fn read_all(root: &Path) -> Result<DeckFiles, RevisionError> {
    let deck = read_text(root, DECK_FILE)?;
    let mut files = DeckFiles { deck, ..DeckFiles::default() };
    let dir = root.join(SERVICES_DIR);
    let unreadable = |why: String| RevisionError::Unreadable { file: SERVICES_DIR.to_owned(), why };
    match fs::symlink_metadata(&dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(files),
        Err(e) => return Err(unreadable(e.to_string())),
        Ok(meta) if !meta.is_dir() => return Err(unreadable("it is not a directory".to_owned())),
        Ok(_) => {}
    }
    let entries = fs::read_dir(&dir).map_err(|e| unreadable(e.to_string()))?;
    for entry in entries {
        let entry = entry.map_err(|e| unreadable(e.to_string()))?;
        let name = entry.file_name();
        // Editors leave `.chat.toml.swp` and `chat.toml~`; only NAME.toml is a service.
        let Some(stem) = name.to_str().and_then(|n| n.strip_suffix(".toml")) else { continue };
        if stem.starts_with('.') {
            continue;
        }
        if files.services.len() >= MAX_SERVICES {
            files.troubles.push(unreadable(format!("more than {MAX_SERVICES} services")));
            break;
        }
        let service: ServiceName = match stem.parse() {
            Ok(service) => service,
            Err(bad) => {
                let file = crate::base::text::clean(&format!("{SERVICES_DIR}/{stem}.toml"), 120);
                files.troubles.push(RevisionError::Unreadable { file, why: format!("{bad}") });
                continue;
            }
        };
        match read_text(root, &service_file(&service)) {
            Ok(text) => {
                files.services.insert(service, text);
            }
            Err(trouble) => files.troubles.push(trouble),
        }
    }
    Ok(files)
}

/// Reads one file of the deck. Symbolic links are refused: Git would record the link and not what
/// it points to, and it could point anywhere.
pub fn read_text(root: &Path, file: &str) -> Result<String, RevisionError> {
    let unreadable = |why: String| RevisionError::Unreadable { file: file.to_owned(), why };
    let path = root.join(file);
    let meta = fs::symlink_metadata(&path).map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            RevisionError::NoFile { file: file.to_owned() }
        }
        _ => unreadable(e.to_string()),
    })?;
    if meta.is_symlink() || services_is_link(root, file) {
        return Err(unreadable("it is a symbolic link".to_owned()));
    }
    // Opened without following and without waiting (a pipe would), then looked at once more: it
    // may have been replaced in between.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let handle = OpenOptions::new()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(&path)
        .map_err(|e| unreadable(e.to_string()))?;
    if !handle.metadata().is_ok_and(|m| m.is_file()) {
        return Err(unreadable("it is not a plain file".to_owned()));
    }
    let mut bytes = Vec::new();
    handle
        .take(MAX_SPEC_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| unreadable(e.to_string()))?;
    if bytes.len() > MAX_SPEC_BYTES {
        return Err(unreadable(format!("it is longer than {MAX_SPEC_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| unreadable("it is not UTF-8 text".to_owned()))
}

fn services_is_link(root: &Path, file: &str) -> bool {
    file.starts_with(SERVICES_DIR)
        && fs::symlink_metadata(root.join(SERVICES_DIR)).is_ok_and(|m| m.is_symlink())
}

//! The deck's files in the work tree, read as hostile bytes: bounded, plain files only. What is written there is on
//! disk before it has its name, and never goes through a link.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{RevisionError, service_file};
use crate::base::ServiceName;
use crate::spec::parse::MAX_SPEC_BYTES;

/// The deck's own settings.
pub const DECK_FILE: &str = "deck.toml";
/// Where the services' specs are.
pub const SERVICES_DIR: &str = "services";
/// Where edits are kept that an earlier spec took the place of; Git does not see it.
pub const ASIDE_DIR: &str = ".gpudeck";
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
                files.troubles.push(RevisionError::Misnamed { file, why: format!("{bad}") });
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

/// The mode of a file that is new, before the umask.
const NEW_MODE: u32 = 0o644;

/// Replaces a service's spec, if it is still as it was read (`known`; none: there was no file).
pub fn replace_spec(
    root: &Path,
    service: &ServiceName,
    text: &str,
    known: Option<&str>,
) -> Result<(), RevisionError> {
    let file = service_file(service);
    let present = match read_text(root, &file) {
        Ok(present) => Some(present),
        Err(RevisionError::NoFile { .. }) => None,
        Err(other) => return Err(other),
    };
    if present.as_deref() != known {
        return Err(RevisionError::Changed { file });
    }
    write_whole(&root.join(SERVICES_DIR), &format!("{service}.toml"), text)
        .map_err(|e| RevisionError::Unwritable { file, why: e.to_string() })
}

/// Keeps a text beside the deck's own files: `name` in `.gpudeck`.
pub fn keep_aside(root: &Path, name: &str, text: &str) -> Result<(), RevisionError> {
    write_whole(&root.join(ASIDE_DIR), name, text).map_err(|e| RevisionError::Unwritable {
        file: format!("{ASIDE_DIR}/{name}"),
        why: e.to_string(),
    })
}

/// Writes a file of the directory, which is made if it is not there and must be no link: whole and on disk, or not
/// at all. What has the name is replaced, not followed; it hands its mode on.
fn write_whole(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let place = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(dir)?;
    let aside = format!(".{name}.{}.new", std::process::id());
    let create = || {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
        rustix::fs::openat(&place, aside.as_str(), flags | OFlags::CLOEXEC, NEW_MODE.into())
    };
    let handle = match create() {
        // Left over from a writer that was cut off.
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(&place, aside.as_str(), AtFlags::empty())?;
            create()?
        }
        created => created?,
    };
    let write = || -> io::Result<()> {
        let mut file = fs::File::from(handle);
        let before = fs::symlink_metadata(dir.join(name)).ok().filter(fs::Metadata::is_file);
        if let Some(before) = before {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(before.mode() & 0o777))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        rustix::fs::renameat(&place, aside.as_str(), &place, name)?;
        place.sync_all()
    };
    write().inspect_err(|_| {
        let _ = rustix::fs::unlinkat(&place, aside.as_str(), AtFlags::empty());
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_spec_is_replaced_whole_where_it_is_as_it_was_read_and_never_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (root, chat) = (dir.path(), "chat".parse().unwrap());
        replace_spec(root, &chat, "a = 1\n", None).unwrap();
        let file = root.join("services/chat.toml");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        replace_spec(root, &chat, "a = 2\n", Some("a = 1\n")).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "a = 2\n");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o755);
        let moved = replace_spec(root, &chat, "a = 3\n", Some("a = 1\n")).unwrap_err();
        assert!(matches!(moved, RevisionError::Changed { .. }), "{moved}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "a = 2\n");
        let left: Vec<_> = fs::read_dir(root.join("services")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");

        let elsewhere = root.join("elsewhere");
        fs::write(&elsewhere, "somebody's\n").unwrap();
        fs::remove_file(&file).unwrap();
        symlink(&elsewhere, &file).unwrap();
        let refused = replace_spec(root, &chat, "a = 3\n", None).unwrap_err();
        assert!(matches!(refused, RevisionError::Unreadable { .. }), "{refused}");
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "somebody's\n");
    }

    #[test]
    fn what_is_kept_aside_goes_into_no_linked_directory() {
        let dir = tempfile::tempdir().unwrap();
        keep_aside(dir.path(), "chat.before-r3.toml", "one").unwrap();
        keep_aside(dir.path(), "chat.before-r3.toml", "two").unwrap();
        let kept = dir.path().join(".gpudeck/chat.before-r3.toml");
        assert_eq!(fs::read_to_string(kept).unwrap(), "two");
        let other = tempfile::tempdir().unwrap();
        symlink(dir.path().join(".gpudeck"), other.path().join(".gpudeck")).unwrap();
        let refused = keep_aside(other.path(), "x.toml", "three").unwrap_err();
        assert!(matches!(refused, RevisionError::Unwritable { .. }), "{refused}");
    }
}

//! The small states that a controller keeps on this host, the deck's own and one of each service: whoever takes
//! over goes on from them. Everything here is called under the host's lock.
//!
//! Beside each lies its age, as `age.NAME`. Requests wait for the lock side by side, also those of an agent whose
//! connection is gone and of the one that came after it: the order in which they were sent is not the order in which
//! they come, and an older state must not land on a newer one. The file need not outlive a power cut, since no
//! request that waits does.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{failed, io_refusal};
use super::state::{self, StateDir};
use crate::base::{DeckId, Epoch, ServiceName};
use crate::wire::Refusal;

/// Longest state that is kept.
const MAX_STATE: u64 = 1 << 20;

/// How services' files begin.
const OF_SERVICE: &str = "service.";

/// When a state was written: the larger one is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeptAge {
    /// The host's epoch then. Whoever claims the host anew counts from the beginning: its journal may be a new one.
    pub epoch: Epoch,
    /// Term and number of the newest journal record in it.
    pub written: (u64, u64),
}

/// The file of a deck's own state, or of one of its services.
fn name(service: Option<&ServiceName>) -> String {
    service.map_or_else(|| "state.json".to_owned(), |service| format!("{OF_SERVICE}{service}"))
}

/// Keeps a state, of a service or of the deck itself, unless a newer one is kept already.
///
/// # Errors
/// It is too long, or cannot be written; what was kept before is still there.
pub fn save(
    dir: &StateDir,
    deck: DeckId,
    service: Option<&ServiceName>,
    text: &str,
    age: KeptAge,
) -> Result<(), Refusal> {
    if text.len() as u64 > MAX_STATE {
        return Err(failed("the state is longer than 1 MiB"));
    }
    let (dir, name) = (dir.deck(deck), name(service));
    let (path, beside) = (dir.join(&name), dir.join(format!("age.{name}")));
    // One that cannot be read says nothing; the next write mends it.
    let kept = state::read_json::<KeptAge>(&beside).ok().flatten();
    if kept.is_some_and(|kept| kept > age) && path.exists() {
        return Ok(());
    }
    state::write_whole(&path, text.as_bytes()).map_err(|e| io_refusal(&e, "write", &path))?;
    // The state is what was asked for: without its age only an older one could follow it.
    if let Err(error) = replace(&beside, age) {
        tracing::warn!(path = %beside.display(), %error, "the age of a state was not written");
    }
    Ok(())
}

fn replace(path: &Path, age: KeptAge) -> io::Result<()> {
    let aside = path.with_file_name(format!(".age.{}", std::process::id()));
    fs::write(&aside, serde_json::to_vec(&age)?)?;
    fs::rename(&aside, path)
}

/// The services whose state is kept for a deck.
///
/// # Errors
/// The directory cannot be read.
pub fn services(dir: &StateDir, deck: DeckId) -> Result<Vec<String>, Refusal> {
    let path = dir.deck(deck);
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_refusal(&error, "read", &path)),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| Some(e.file_name().to_str()?.strip_prefix(OF_SERVICE)?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// What was kept last, of a service or of the deck itself.
///
/// # Errors
/// It cannot be read.
pub fn load(
    dir: &StateDir,
    deck: DeckId,
    service: Option<&ServiceName>,
) -> Result<Option<String>, Refusal> {
    let path: PathBuf = dir.deck(deck).join(name(service));
    let mut text = String::new();
    match File::open(&path).and_then(|f| f.take(MAX_STATE).read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_refusal(&error, "read", &path)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Each call opens everything anew, as an agent does that was started after another.
    #[test]
    fn an_older_state_never_lands_on_a_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let deck = DeckId(uuid::Uuid::from_u128(1));
        let chat: ServiceName = "chat".parse().unwrap();
        let open = || StateDir::open(dir.path()).unwrap();
        fs::create_dir_all(open().deck(deck)).unwrap();
        let age = |epoch, term, seq| KeptAge { epoch: Epoch(epoch), written: (term, seq) };
        for service in [None, Some(&chat)] {
            let after = |text: &str, age| {
                save(&open(), deck, service, text, age).unwrap();
                load(&open(), deck, service).unwrap().unwrap()
            };
            assert_eq!(after("a", age(2, 0, 5)), "a");
            assert_eq!(after("late", age(2, 0, 4)), "a");
            assert_eq!(after("b", age(2, 0, 5)), "b", "the same age is no older");
            assert_eq!(after("c", age(2, 1, 0)), "c");
            assert_eq!(after("of a journal that is gone", age(1, 9, 9)), "c");
            assert_eq!(after("of a new journal", age(3, 0, 0)), "of a new journal");
        }
        assert_eq!(services(&open(), deck).unwrap(), ["chat"]);
    }

    #[test]
    fn an_age_without_its_state_or_one_that_is_damaged_hinders_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let deck = DeckId(uuid::Uuid::from_u128(1));
        let state = StateDir::open(dir.path()).unwrap();
        let of_deck = state.deck(deck);
        fs::create_dir_all(&of_deck).unwrap();
        let age = KeptAge { epoch: Epoch(1), written: (0, 3) };
        save(&state, deck, None, "a", age).unwrap();
        fs::remove_file(of_deck.join("state.json")).unwrap();
        save(&state, deck, None, "b", KeptAge { written: (0, 2), ..age }).unwrap();
        assert_eq!(load(&state, deck, None).unwrap().as_deref(), Some("b"));
        fs::write(of_deck.join("age.state.json"), "{").unwrap();
        save(&state, deck, None, "c", KeptAge { written: (0, 1), ..age }).unwrap();
        assert_eq!(load(&state, deck, None).unwrap().as_deref(), Some("c"));
    }
}

//! What other users of this host hold of a deck.
//!
//! Each remote user has a state directory that nobody else reads, and a claim in it. So that operators who log in as
//! different users see each other all the same, each claim leaves a note that everybody may read:
//! `/var/tmp/gpudeck-claims-UID/MACHINE/DECK.json`. A note counts only if it belongs to the user in its name. Nothing
//! is locked across users (a lock that others can open, others can keep): a note is written before the others are
//! read once more, so that of two that come at once none or one is left.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::claim::end_of;
use super::state::{self, StateDir};
use super::users;
use crate::base::text::clean;
use crate::base::{DeckId, Epoch, Timestamp};
use crate::wire::{ClaimInfo, MAX_HOLDER, Refusal, is_same_holder};

/// Where notes are, and where the state of users other than root is.
const SHARED: &str = "/var/tmp";

/// Where root's state is.
const ROOTS: &str = "/var/lib/gpudeck";

/// Users whose notes are read.
const MAX_USERS: usize = 64;

/// Largest note.
const MAX_NOTE: u64 = 4096;

/// A claim as other users of the host may know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The epoch that was granted last.
    pub epoch: Epoch,
    /// To whom.
    pub holder: String,
    /// Since when, by this host's clock.
    pub since: Timestamp,
    /// Until when, by this host's clock.
    pub until: Timestamp,
    /// When its holder was there last, by this host's clock; none: it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed: Option<Timestamp>,
    /// How many engines of the deck ran as this user when it was written.
    pub running: usize,
}

/// Somebody else's note.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The user whose it is.
    pub user: String,
    /// What it says.
    pub note: Note,
}

impl Neighbour {
    /// Whether `holder` must not take the host from it unless forced to: its lease runs, or its engines do, which
    /// nobody but their user can stop.
    pub fn is_in_the_way(&self, holder: &str, now: Timestamp) -> bool {
        let is_leased = end_of(self.note.until, now) > now;
        !self.is_of(holder) && (is_leased || self.note.running > 0)
    }

    /// The same controller, which has logged in as another user.
    pub fn is_of(&self, holder: &str) -> bool {
        is_same_holder(&self.note.holder, holder)
    }

    fn named(&self) -> String {
        clean(&format!("{}, there as user {}", self.note.holder, self.user), MAX_HOLDER + 60)
    }

    /// It is this one's.
    pub fn refusal(&self, now: Timestamp) -> Refusal {
        let until = end_of(self.note.until, now);
        Refusal::Held { held: self.note.epoch, holder: self.named(), until }
    }

    /// For people and other controllers.
    pub fn info(&self, now: Timestamp) -> ClaimInfo {
        let Note { epoch, since, until, renewed, .. } = self.note;
        let until = end_of(until, now);
        ClaimInfo { epoch, holder: self.named(), since, until, renewed, now }
    }
}

/// The notes of one host about one deck.
#[derive(Clone, Debug)]
pub struct Notes {
    shared: PathBuf,
    user: u32,
    /// Below a user's directory.
    within: PathBuf,
}

impl Notes {
    /// None where the state directory is not where an agent that was installed has it: a simulated host's, or a test's.
    pub fn of(state: &StateDir, deck: DeckId) -> Option<Self> {
        Self::at(state.root(), Path::new(SHARED), rustix::process::geteuid().as_raw(), deck)
    }

    fn at(root: &Path, shared: &Path, user: u32, deck: DeckId) -> Option<Self> {
        let (base, machine) = (root.parent()?, root.file_name()?);
        let is_users = || {
            let name = base.file_name().and_then(|name| name.to_str())?;
            let number = name.strip_prefix("gpudeck-")?.parse::<u32>().ok();
            number.filter(|_| base.parent() == Some(shared))
        };
        if base != Path::new(ROOTS) && is_users().is_none() {
            return None;
        }
        let within = Path::new(machine).join(format!("{deck}.json"));
        Some(Self { shared: shared.to_owned(), user, within })
    }

    fn directory(&self, user: u32) -> PathBuf {
        self.shared.join(format!("gpudeck-claims-{user}"))
    }

    /// What the others say, in order of their users' numbers.
    pub fn others(&self) -> Vec<Neighbour> {
        let Ok(entries) = fs::read_dir(&self.shared) else { return Vec::new() };
        let number = |entry: fs::DirEntry| {
            entry.file_name().to_str()?.strip_prefix("gpudeck-claims-")?.parse::<u32>().ok()
        };
        let mut users: Vec<u32> = entries.flatten().filter_map(number).collect();
        users.retain(|user| *user != self.user);
        users.sort_unstable();
        users.dedup();
        let notes = users.into_iter().take(MAX_USERS).filter_map(|user| {
            let note = read(&self.directory(user).join(&self.within), user).ok()?;
            Some(Neighbour { user: users::name(user), note })
        });
        notes.collect()
    }

    /// Writes our own, for all to read; `lasting`: also through a power cut.
    ///
    /// # Errors
    /// It cannot be written, or the directory is somebody else's.
    pub fn write(&self, note: &Note, lasting: bool) -> io::Result<()> {
        let path = self.directory(self.user).join(&self.within);
        for directory in [self.directory(self.user).as_path()].into_iter().chain(path.parent()) {
            match DirBuilder::new().mode(0o755).create(directory) {
                // Whatever the user's umask takes away.
                Ok(()) => fs::set_permissions(directory, Permissions::from_mode(0o755))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            let found = fs::symlink_metadata(directory)?;
            if !found.is_dir() || found.uid() != self.user {
                return Err(io::Error::other("the directory belongs to somebody else"));
            }
        }
        let temp = path.with_extension(format!("{}", std::process::id()));
        let written = (|| {
            fs::write(&temp, serde_json::to_vec(note)?)?;
            fs::set_permissions(&temp, Permissions::from_mode(0o644))?;
            if lasting {
                fs::File::open(&temp)?.sync_all()?;
            }
            fs::rename(&temp, &path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temp);
            return written;
        }
        if lasting { state::sync_parent(&path) } else { Ok(()) }
    }
}

fn read(path: &Path, user: u32) -> io::Result<Note> {
    // A pipe or a link in its place is no note.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let flags = i32::try_from(flags).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.uid() != user {
        return Err(io::Error::other("it is not theirs"));
    }
    let mut content = Vec::new();
    file.take(MAX_NOTE).read_to_end(&mut content)?;
    let mut note: Note = serde_json::from_slice(&content)?;
    note.holder = clean(&note.holder, MAX_HOLDER);
    Ok(note)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn note(holder: &str, until: u64, running: usize) -> Note {
        let (epoch, since, until) = (Epoch(5), Timestamp(1), Timestamp(until));
        Note { epoch, holder: holder.to_owned(), since, until, renewed: None, running }
    }

    fn deck() -> DeckId {
        DeckId(uuid::Uuid::from_u128(1))
    }

    fn at(shared: &Path, user: u32) -> Notes {
        let root = shared.join(format!("gpudeck-{user}/m1"));
        Notes::at(&root, shared, user, deck()).unwrap()
    }

    #[test]
    fn only_an_installed_agents_state_has_notes() {
        let shared = Path::new("/var/tmp");
        let has = |root: &str| Notes::at(Path::new(root), shared, 7, deck()).is_some();
        assert!(has("/var/lib/gpudeck/m1") && has("/var/tmp/gpudeck-7/m1"));
        assert!(!has("/tmp/gpudeck-7/m1") && !has("/tmp/demo/h1") && !has("/var/tmp/gpudeck-x/m1"));
    }

    #[test]
    fn a_lease_or_an_engine_is_in_the_way_of_others_and_not_of_its_own_controller() {
        let of = |note| Neighbour { user: "alice".to_owned(), note };
        let in_the_way = |note, holder| of(note).is_in_the_way(holder, NOW);
        assert!(in_the_way(note("a", NOW.0 + 1, 0), "b"));
        assert!(in_the_way(note("a", NOW.0, 1), "b"));
        assert!(!in_the_way(note("a", NOW.0, 0), "b"));
        assert!(!in_the_way(note("a", NOW.0 + 1, 1), "a"));
        let refusal = of(note("a", 1, 0)).refusal(NOW);
        assert!(refusal.to_string().contains("held by a, there as user alice"), "{refusal}");
    }

    #[test]
    fn a_note_is_read_by_others_if_it_belongs_to_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let me = rustix::process::geteuid().as_raw();
        let (mine, theirs) = (at(dir.path(), me), at(dir.path(), me + 1));
        mine.write(&note("a", 1, 0), true).unwrap();
        mine.write(&note("a", 2, 3), false).unwrap();
        assert_eq!(mine.others(), []);
        let seen = theirs.others();
        assert_eq!(seen.iter().map(|n| &n.note).collect::<Vec<_>>(), [&note("a", 2, 3)]);
        // In another user's name, behind a link, or on another machine it is none.
        let forged = at(dir.path(), me + 2).directory(me + 2);
        fs::create_dir_all(forged.join("m1")).unwrap();
        let path = dir.path().join(format!("gpudeck-claims-{me}/m1/{}.json", deck()));
        fs::copy(&path, forged.join(format!("m1/{}.json", deck()))).unwrap();
        assert_eq!(theirs.others().len(), 1);
        let elsewhere = dir.path().join(format!("gpudeck-{}/m2", me + 1));
        let elsewhere = Notes::at(&elsewhere, dir.path(), me + 1, deck()).unwrap();
        assert_eq!(elsewhere.others(), []);
        fs::rename(&path, dir.path().join("note")).unwrap();
        symlink(dir.path().join("note"), &path).unwrap();
        assert_eq!(theirs.others(), []);
    }

    #[test]
    fn nobody_writes_where_somebody_else_has_made_the_place() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let squatted = dir.path().join("gpudeck-claims-0");
        fs::create_dir(&squatted).unwrap();
        chown(&squatted, Some(4000), None).unwrap();
        assert!(at(dir.path(), 0).write(&note("a", 1, 0), false).is_err());
    }
}

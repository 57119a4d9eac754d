//! The deck's Git repository: what was meant, by whom, why, and what came of it.
//!
//! libgit2 is linked in; no `git` program is needed. Every release is one commit on the current
//! branch with trailers (`Gpudeck-Release: r12`), also when no file changed, so that the history
//! of a service is a list of commits. Kept beside the branch:
//!
//! - `refs/gpudeck/releases/r12` — the commit of a release, safe from rebases;
//! - `refs/gpudeck/stable/SERVICE` — the commit that is served; of ours and the remote's the newer release;
//! - `refs/gpudeck/stopped/SERVICE` — the commit that was served when the service was stopped: neither it nor an
//!   older release is taken for what is served any more;
//! - `refs/notes/gpudeck` — how each release ended, as JSON.
//!
//! Git is the record for people; what a controller must not lose is in the journal first. Texts
//! are returned as they are: parsing is for `spec`. Calls block on the disk.

mod address;
pub mod blame;
pub mod commit;
pub mod diff;
pub mod files;
pub mod history;
mod netrc;
mod notes;
mod patience;
pub mod reach;
pub mod remote;
pub mod repo;
pub mod sign;
mod transport;

use std::path::PathBuf;

use crate::base::{Hint, ReleaseNumber, ServiceName, quote, text};

pub use blame::{BlamedLine, ReleaseTexts};
pub use commit::{DeckText, ReleaseCommit, SpecText};
pub use diff::diff_text;
pub use files::DeckFiles;
pub use history::HistoryEntry;
pub use remote::{Fetched, RemoteStatus};
pub use repo::DeckRepo;

/// Why the deck cannot be read or committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevisionError {
    /// No repository there.
    #[error("{} is not a deck: it is not the root of a Git repository", path.display())]
    NotARepository {
        /// Where one was looked for.
        path: PathBuf,
        /// The repository that it lies in, if it lies in one.
        inside: Option<PathBuf>,
    },
    /// The repository has no work tree.
    #[error("{} is a bare repository: a deck needs its files", path.display())]
    Bare {
        /// Where.
        path: PathBuf,
    },
    /// The repository belongs to somebody else.
    #[error("the repository {} belongs to another user", path.display())]
    Owner {
        /// Where.
        path: PathBuf,
    },
    /// No branch to commit to.
    #[error("the deck is on no branch (detached HEAD)")]
    Detached,
    /// A merge, rebase or the like is under way.
    #[error("a {what} is under way in the deck's repository")]
    Busy {
        /// Which.
        what: String,
    },
    /// Another Git program is writing.
    #[error("another program is writing to the deck's repository ({what})")]
    Locked {
        /// What Git said.
        what: String,
    },
    /// The index is of a kind that libgit2 does not read.
    #[error("the deck's Git index cannot be read: {what}")]
    Index {
        /// What it said.
        what: String,
    },
    /// A program of the user's Git changes the file between the work tree and a commit.
    #[error("{file} goes through the filter `{filter}`, which is not run here")]
    Filtered {
        /// As the person knows it.
        file: String,
        /// What `.gitattributes` says.
        filter: String,
    },
    /// The branch moved while it was committed to.
    #[error("somebody else committed to the deck at the same moment")]
    Moved,
    /// A file that must be there.
    #[error("{file} does not exist")]
    NoFile {
        /// As the person knows it.
        file: String,
    },
    /// A file that is not read.
    #[error("{file} is not read: {why}")]
    Unreadable {
        /// As the person knows it.
        file: String,
        /// Why.
        why: String,
    },
    /// A file in the place of services that none can be called after.
    #[error("{file} is not read: {why}")]
    Misnamed {
        /// As the person knows it.
        file: String,
        /// What a name may be.
        why: String,
    },
    /// A file that is not written.
    #[error("{file} is not written: {why}")]
    Unwritable {
        /// As the person knows it.
        file: String,
        /// Why.
        why: String,
    },
    /// The spec was edited since it was read.
    #[error("{file} was changed since it was read")]
    Changed {
        /// As the person knows it.
        file: String,
    },
    /// No such commit, or nothing of the service in it.
    #[error("there is no {what}")]
    NotFound {
        /// What: `revision abc`, `services/chat.toml in revision abc`.
        what: String,
    },
    /// The number is another release's.
    #[error("release {release} exists already, as something else")]
    Taken {
        /// Which.
        release: ReleaseNumber,
    },
    /// The user's Git asks for signed commits, and this one could not be signed.
    #[error("the commit cannot be signed: {why}")]
    Signing {
        /// Why.
        why: String,
    },
    /// No remote, or not the one that was named.
    #[error("the deck has no remote{}", name.as_ref().map(|n| format!(" `{n}`")).unwrap_or_default())]
    NoRemote {
        /// The one that was named.
        name: Option<String>,
    },
    /// The remote has commits that are lacking here.
    #[error("{remote} has {} this deck{}", not_in(*behind), own(*ahead))]
    Diverged {
        /// The remote's branch.
        remote: String,
        /// Commits of our own.
        ahead: usize,
        /// Commits that are lacking here.
        behind: usize,
    },
    /// Two decks gave out one number.
    #[error("{} at {remote}", others(releases))]
    Collides {
        /// The remote.
        remote: String,
        /// The releases that are other commits there.
        releases: Vec<ReleaseNumber>,
    },
    /// Somebody else was faster, more than once.
    #[error("somebody else sends to {remote} at the same moment")]
    Outrun {
        /// The remote.
        remote: String,
    },
    /// The remote needs something that only the user's `git` has.
    #[error("this remote needs the `git` program, which is not installed here: {why}")]
    NoGitProgram {
        /// What.
        why: String,
    },
    /// The remote took one thing and refused another.
    #[error("{remote} has taken {taken} and refused {refused}: {message}")]
    PartlySent {
        /// Its name.
        remote: String,
        /// What it has now.
        taken: String,
        /// What it has not.
        refused: String,
        /// What it said, cleaned.
        message: String,
    },
    /// The remote's machine, or what it said.
    #[error("the remote was not reached: {message}")]
    Unreached {
        /// Why, cleaned.
        message: String,
        /// What to do, as far as who reached for it knows.
        hint: Option<String>,
    },
    /// Git.
    #[error("Git: {message}")]
    Git {
        /// What it said, cleaned.
        message: String,
    },
}

fn not_in(behind: usize) -> String {
    match behind {
        1 => "1 commit that is not in".to_owned(),
        n => format!("{n} commits that are not in"),
    }
}

fn others(releases: &[ReleaseNumber]) -> String {
    match releases {
        [only] => format!("release {only} is another commit"),
        many => {
            let names: Vec<String> = many.iter().map(ToString::to_string).collect();
            format!("releases {} are other commits", names.join(", "))
        }
    }
}

fn own(ahead: usize) -> String {
    match ahead {
        0 => String::new(),
        n => format!(", which has {n} of its own"),
    }
}

impl From<git2::Error> for RevisionError {
    fn from(error: git2::Error) -> Self {
        let message = text::clean(error.message(), 600);
        match error.code() {
            git2::ErrorCode::Locked => Self::Locked { what: message },
            git2::ErrorCode::Modified => Self::Moved,
            _ if matches!(error.class(), git2::ErrorClass::Net | git2::ErrorClass::Http) => {
                Self::Unreached { message, hint: transport::take_hint() }
            }
            _ => Self::Git { message },
        }
    }
}

impl Hint for RevisionError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotARepository { inside: None, .. } => {
                "run `gpudeck init` there, or name the deck with `--deck DIRECTORY`".to_owned()
            }
            Self::NotARepository { path, inside: Some(inside) } => format!(
                "it lies inside the repository {}; give the deck its own with `gpudeck init {}`",
                inside.display(),
                path.display()
            ),
            Self::Bare { .. } => "clone it (`git clone`) and use the clone as the deck".to_owned(),
            Self::Owner { path } => format!(
                "if you trust it: git config --global --add safe.directory {}",
                crate::base::quote::shell_word(&path.display().to_string())
            ),
            Self::Detached => "switch to a branch, for example `git switch main`".to_owned(),
            Self::Busy { what } => format!("finish the {what}, or abort it, then try again"),
            Self::Locked { .. } => {
                "try again; if no Git program runs, remove the `.lock` file it names".to_owned()
            }
            Self::Index { .. } => {
                "a split or a sparse index is not read: `git update-index --no-split-index`, or \
                 `git sparse-checkout reapply --no-sparse-index`, in the deck"
                    .to_owned()
            }
            Self::Filtered { file, .. } => {
                format!("write `{file} !filter` at the end of the deck's .gitattributes")
            }
            Self::Moved | Self::Changed { .. } => "look at the plan again, then apply".to_owned(),
            Self::NoFile { file } if file == files::DECK_FILE => {
                "run `gpudeck init` to write one".to_owned()
            }
            Self::NoFile { file } => format!("write {file}"),
            Self::Unreadable { file, .. } => {
                format!("make {file} a plain text file that you may read")
            }
            Self::Misnamed { .. } => "rename it, or move it out of services/".to_owned(),
            Self::Unwritable { file, .. } => {
                format!("see to it that {file} can be written, and that there is space")
            }
            Self::NotFound { .. } => "see `gpudeck history` for what there is".to_owned(),
            Self::Taken { .. } => {
                "restart the controller: it then counts on from the newest release".to_owned()
            }
            Self::Signing { .. } => {
                "where the controller runs: unlock the key, or see that its agent runs (`ssh-add -l`, \
                 `gpg --list-secret-keys`); or mend user.signingkey and gpg.format of your Git \
                 configuration, or `git config commit.gpgsign false` in the deck"
                    .to_owned()
            }
            Self::NoRemote { name } => {
                let name = name.as_deref().unwrap_or("origin");
                format!("add it: `git remote add {} ADDRESS` in the deck", quote::shell_word(name))
            }
            Self::Diverged { ahead: 0, behind: 1, .. } => {
                "`gpudeck deck fetch` takes it".to_owned()
            }
            Self::Diverged { ahead: 0, .. } => "`gpudeck deck fetch` takes them".to_owned(),
            Self::Diverged { remote, .. } => format!(
                "`git fetch`, then `git rebase {remote}` or `git merge {remote}` in the deck"
            ),
            Self::Collides { releases, .. } => {
                let release = releases.first().copied().unwrap_or_default();
                format!(
                    "two decks gave out the same number, which holds nothing else up; to let the remote's be {release} \
                     here: `git update-ref refs/gpudeck/releases/{release} \
                     refs/gpudeck-remote/releases/{release}` in the deck (the commit of yours stays in the branch)"
                )
            }
            Self::Outrun { .. } => "run `gpudeck deck push` again".to_owned(),
            Self::PartlySent { remote, refused, .. } => format!(
                "see to it that {remote} takes {refused} (its hooks, what is protected there), then \
                 `gpudeck deck push`"
            ),
            Self::NoGitProgram { .. } => {
                "install git, or use a remote over ssh or https, or in a directory".to_owned()
            }
            Self::Unreached { hint: Some(hint), .. } => hint.clone(),
            Self::Unreached { hint: None, .. } => {
                "check the remote's address with `git remote -v` in the deck, then try again"
                    .to_owned()
            }
            Self::Git { .. } => "see what `git status` says in the deck".to_owned(),
        })
    }
}

/// `services/NAME.toml`, as people and Git know it.
pub fn service_file(service: &ServiceName) -> String {
    format!("services/{service}.toml")
}

//! Where a deck's controller keeps its socket, journal and log: on this machine, outside the deck.

use std::path::{Path, PathBuf};

use crate::base::DeckId;

/// The files of one deck's controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The directory of all of them, mode 0700.
    pub dir: PathBuf,
}

impl Paths {
    /// `$GPUDECK_HOME/<deck id>`, else `$XDG_STATE_HOME/gpudeck/…`, else `~/.local/state/gpudeck/…`.
    pub fn of(deck: DeckId) -> Self {
        Self { dir: home().join(deck.to_string()) }
    }

    /// Files in `dir` itself.
    pub fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// What `GPUDECK_HOME` has to be for [`Self::of`] to lead here; none: nothing does.
    pub fn home(&self, deck: DeckId) -> Option<PathBuf> {
        let named = self.dir.file_name()?.to_str()? == deck.to_string();
        self.dir.parent().filter(|_| named).map(Path::to_owned)
    }

    /// Makes the directory.
    pub fn create(&self) -> std::io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)
    }

    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("controller.sock")
    }

    /// The journal's directory.
    pub fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// What was measured of loads, drains and throughput.
    pub fn measured(&self) -> PathBuf {
        self.dir.join("measured.json")
    }

    /// The hash of the agent's binary, as long as its file does not change.
    pub fn agent_memo(&self) -> PathBuf {
        self.dir.join("agent-binary.json")
    }

    /// The number that tells this controller from others of the same user and machine.
    pub fn identity(&self) -> PathBuf {
        self.dir.join("controller-id")
    }

    /// When the controller was last seen alive.
    pub fn alive(&self) -> PathBuf {
        self.dir.join("alive")
    }

    /// What a background controller logs.
    pub fn log(&self) -> PathBuf {
        self.dir.join("controller.log")
    }
}

fn home() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(home) = from("GPUDECK_HOME") {
        return home;
    }
    if let Some(state) = from("XDG_STATE_HOME") {
        return state.join("gpudeck");
    }
    let user = from("HOME").unwrap_or_else(|| PathBuf::from("/root"));
    user.join(".local/state/gpudeck")
}

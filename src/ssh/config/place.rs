//! Where a configuration is read: who we are, and on which machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a variable of the environment is looked up.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Who reads a configuration, and where.
#[derive(Clone)]
pub struct Place {
    /// The person's home directory.
    pub home: PathBuf,
    /// The person's name on this machine.
    pub local_user: String,
    /// The person's number on this machine.
    pub uid: u32,
    /// This machine's name.
    pub local_host: String,
    /// The value of an environment variable.
    pub env: Environment,
    /// Run the commands of `Match exec`. Off unless asked for: a configuration that is only read
    /// should start nothing.
    pub run_match_exec: bool,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("home", &self.home).finish_non_exhaustive()
    }
}

impl Place {
    /// This process's. The home is `$HOME`'s; `gpudeck ssh-config` uses [`Place::as_ssh`].
    pub fn here() -> Self {
        let mut place = Self::as_ssh();
        if let Some(home) = std::env::var_os("HOME").filter(|h| !h.is_empty()) {
            place.home = home.into();
        }
        place
    }

    /// This process's, with the home of the user database, as `ssh` has it.
    pub fn as_ssh() -> Self {
        let uid = rustix::process::getuid().as_raw();
        let known = passwd_entry(|_, number| number == uid);
        let env_text = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let (local_user, home) = match known {
            Some((name, home)) => (name, PathBuf::from(home)),
            // Users of a directory service are not in the file.
            None => (
                env_text("USER").or_else(|| env_text("LOGNAME")).unwrap_or_else(|| "root".into()),
                env_text("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from),
            ),
        };
        Self {
            home,
            local_user,
            uid,
            local_host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            env: Arc::new(|name| std::env::var(name).ok()),
            run_match_exec: env_text("GPUDECK_SSH_MATCH_EXEC").as_deref() == Some("1"),
        }
    }
}

/// The home of another user.
pub(super) fn home_of(user: &str) -> Option<String> {
    passwd_entry(|name, _| name == user).map(|(_, home)| home)
}

fn passwd_entry(wanted: impl Fn(&str, u32) -> bool) -> Option<(String, String)> {
    let text = super::read::bounded(Path::new("/etc/passwd")).ok()??;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        let home = fields.nth(2)?;
        wanted(name, uid).then(|| (name.to_owned(), home.to_owned()))
    })
}

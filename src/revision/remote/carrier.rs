//! Who speaks to the remote: libgit2, or the user's `git`.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::super::RevisionError;
use super::super::address::Address;
use super::super::patience::{ended_within, program};
use super::super::repo::DeckRepo;
use crate::base::text;

/// Longest time for the user's `git`.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longest answer of the user's `git` that is read: a list of references, at most.
const MAX_SAID: u64 = 16 << 20;

impl DeckRepo {
    /// Runs the user's `git` in the deck.
    pub(super) fn git(
        &self,
        arguments: &[&str],
        why: &'static str,
    ) -> Result<String, RevisionError> {
        run_git(self.root(), arguments, why)
    }

    /// Who speaks to a remote that has this address.
    pub(super) fn carrier(&self, name: &str, url: &str) -> Carrier {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let git = |why| Carrier::Git { why };
        match Address::of(url) {
            Address::Plain => Carrier::Libgit2,
            Address::Other => git("its address is of another kind"),
            _ if self.reach.is_none() => git("it is on another machine"),
            Address::Ssh(..) => {
                let mut named = ["core.sshCommand".to_owned()]
                    .into_iter()
                    .chain(["uploadpack", "receivepack"].map(|key| format!("remote.{name}.{key}")));
                let config = self.repo.config();
                let is_named =
                    |key: String| config.as_ref().is_ok_and(|c| c.get_entry(&key).is_ok());
                if SSH_BY_ENVIRONMENT.iter().any(|name| is_set(name)) || named.any(is_named) {
                    return git("Git was told of another program for SSH");
                }
                // Configuration that libgit2 does not read.
                if GIT_BY_ENVIRONMENT.iter().any(|name| is_set(name)) && git_is_installed() {
                    return git("Git's configuration is in the environment");
                }
                Carrier::Libgit2
            }
            // Proxies, certificates, helpers for passwords, kinds of logins: where it is, it knows them all.
            Address::Http(_) if git_is_installed() => git("it is installed"),
            Address::Http(_) => Carrier::Libgit2,
        }
    }

    /// The remote for libgit2. It would take a path with a colon in it for a server's name.
    pub(super) fn opened(&self, name: &str) -> Result<git2::Remote<'_>, RevisionError> {
        let remote = self.repo.find_remote(name)?;
        let url = remote.url().unwrap_or_default();
        if !matches!(Address::of(url), Address::Plain) || !url.contains(':') || url.contains("://")
        {
            return Ok(remote);
        }
        let path = self.root.join(url).display().to_string().replace('%', "%25");
        Ok(self.repo.remote_anonymous(&format!("file://{path}"))?)
    }
}

/// Who speaks to a remote.
pub(super) enum Carrier {
    /// Linked in.
    Libgit2,
    /// The user's program, and what for.
    Git { why: &'static str },
}

impl Carrier {
    pub(super) fn git(self) -> Option<&'static str> {
        match self {
            Self::Libgit2 => None,
            Self::Git { why } => Some(why),
        }
    }
}

fn git_is_installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|place| place.join("git").is_file())
}

const SSH_BY_ENVIRONMENT: [&str; 2] = ["GIT_SSH_COMMAND", "GIT_SSH"];

const GIT_BY_ENVIRONMENT: [&str; 4] =
    ["GIT_CONFIG_COUNT", "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"];

fn run_git(dir: &Path, arguments: &[&str], why: &'static str) -> Result<String, RevisionError> {
    let mut child = program("git")
        .arg("-C")
        .arg(dir)
        .args(arguments)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => RevisionError::NoGitProgram { why: why.to_owned() },
            _ => RevisionError::Git { message: format!("git cannot be run: {e}") },
        })?;
    let (out, errors) = (child.stdout.take(), child.stderr.take());
    let gather = |stream: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            use std::io::Read as _;
            let mut text = Vec::new();
            if let Some(stream) = stream {
                let _ = stream.take(MAX_SAID).read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    let out = gather(out.map(|s| Box::new(s) as Box<_>));
    let errors = gather(errors.map(|s| Box::new(s) as Box<_>));
    let failed = |message: String| RevisionError::Git { message };
    let ended = ended_within(&mut child, PATIENCE).map_err(|e| failed(e.to_string()))?;
    let Some(status) = ended else {
        return Err(failed(format!("git did not answer in {} s", PATIENCE.as_secs())));
    };
    let said = errors.join().unwrap_or_default();
    if status.success() {
        return Ok(out.join().unwrap_or_default());
    }
    // A push says what was refused, and then that something was.
    let refused = said.lines().find(|l| l.trim_start().starts_with("! ["));
    let last = said.lines().rev().find(|l| !l.trim().is_empty());
    let last = refused.or(last).unwrap_or("no message").trim();
    Err(failed(format!("git {}: {}", arguments.first().unwrap_or(&""), text::clean(last, 300))))
}

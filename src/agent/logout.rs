//! What a login manager (systemd's logind) does when the SSH session of whoever logged in ends: ranks of the
//! `process` runtime are children of that session, and should outlive it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use super::login_user::LoginUser;
use crate::base::text::clean;
use crate::wire::Logout;

/// Longest configuration file that is read, bytes.
const MAX_FILE: usize = 1 << 20;

/// Most files that are read.
const MAX_FILES: usize = 256;

/// Users with smaller numbers are the system's own: their shared memory is left alone.
const FIRST_PERSON: u32 = 1000;

/// Where the configuration lies; the first that has a file of a name counts.
const PLACES: [&str; 4] =
    ["etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd"];

/// What ends with the session that this agent runs in; none: it is no session of logind's.
pub fn look() -> Option<Logout> {
    let sudo = LoginUser::of_sudo();
    let uid = sudo.as_ref().map_or_else(|| Uid::current().as_raw(), LoginUser::uid);
    let known = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let user = known.map_or_else(|| uid.to_string(), |user| user.name);
    let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    is_session(&cgroup).then(|| of(Path::new("/"), &user, uid))
}

/// `…/user-1000.slice/session-3.scope`.
fn is_session(cgroup: &str) -> bool {
    let mut parts = cgroup.lines().flat_map(|line| line.split('/'));
    parts.any(|part| part.starts_with("session-") && part.strip_suffix(".scope").is_some())
}

/// The settings that matter here, with logind's own defaults as distributions build it.
struct Settings {
    kill: bool,
    kill_only: Vec<String>,
    kill_never: Option<Vec<String>>,
    remove_ipc: bool,
}

fn of(root: &Path, user: &str, uid: u32) -> Logout {
    let mut settings =
        Settings { kill: false, kill_only: Vec::new(), kill_never: None, remove_ipc: true };
    for file in files(root) {
        let text = fs::read(&file).unwrap_or_default();
        let text = String::from_utf8_lossy(text.get(..MAX_FILE).unwrap_or(&text)).into_owned();
        text.lines().for_each(|line| settings.take(line));
    }
    let lingers = root.join("var/lib/systemd/linger").join(user).exists();
    Logout {
        kills: settings.kills(user),
        // As long as a user lingers, none of the sessions is the last.
        removes_ipc: settings.remove_ipc && uid >= FIRST_PERSON && !lingers,
        user: clean(user, 64),
        lingers,
    }
}

impl Settings {
    /// logind's `manager_shall_kill`. Lingering saves what the user's own manager runs, not a session's.
    fn kills(&self, user: &str) -> bool {
        let is = |name: &String| name == user;
        match &self.kill_never {
            None if user == "root" => false,
            Some(never) if never.iter().any(is) => false,
            _ if self.kill_only.is_empty() => self.kill,
            _ => self.kill_only.iter().any(is),
        }
    }

    fn take(&mut self, line: &str) {
        let Some((key, value)) = line.split_once('=') else { return };
        let value = value.trim();
        let yes =
            || ["1", "yes", "y", "true", "t", "on"].iter().any(|w| w.eq_ignore_ascii_case(value));
        let add = |list: &mut Vec<String>| {
            // An empty value begins anew.
            if value.is_empty() {
                list.clear();
            }
            list.extend(value.split_whitespace().map(ToOwned::to_owned));
        };
        match key.trim() {
            "KillUserProcesses" => self.kill = yes(),
            "RemoveIPC" => self.remove_ipc = yes(),
            "KillOnlyUsers" => add(&mut self.kill_only),
            "KillExcludeUsers" => add(self.kill_never.get_or_insert_default()),
            _ => {}
        }
    }
}

/// The files in the order in which they are read: a later one counts more.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = PLACES
        .iter()
        .map(|place| root.join(place).join("logind.conf"))
        .filter(|f| f.exists())
        .take(1)
        .collect();
    let mut extra: Vec<PathBuf> = Vec::new();
    for place in PLACES {
        let Ok(entries) = fs::read_dir(root.join(place).join("logind.conf.d")) else { continue };
        for path in entries.flatten().take(MAX_FILES).map(|entry| entry.path()) {
            let is_new = extra.iter().all(|known| known.file_name() != path.file_name());
            if is_new && path.extension().is_some_and(|end| end == "conf") {
                extra.push(path);
            }
        }
    }
    extra.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    found.extend(extra);
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_with_a_session_is_read_as_logind_reads_it() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let seen = |user: &str, uid| {
            let Logout { kills, removes_ipc, lingers, .. } = of(root.path(), user, uid);
            (kills, removes_ipc, lingers)
        };
        // Nothing is configured.
        assert_eq!(seen("ann", 1000), (false, true, false));
        assert_eq!(seen("root", 0), (false, false, false));
        assert_eq!(seen("postgres", 113), (false, false, false));
        write("usr/lib/systemd/logind.conf", "RemoveIPC=no\nKillUserProcesses=yes\n");
        write("etc/systemd/logind.conf", "[Login]\n#RemoveIPC=no\nKillUserProcesses = yes\n");
        assert_eq!(seen("ann", 1000), (true, true, false));
        assert_eq!(seen("root", 0), (false, false, false));
        write("var/lib/systemd/linger/ann", "");
        assert_eq!(seen("ann", 1000), (true, false, true));
        write("usr/lib/systemd/logind.conf.d/50-x.conf", "KillUserProcesses=no\n");
        assert_eq!(seen("ann", 1000), (false, false, true));
        // The same name in /etc stands for it.
        write(
            "etc/systemd/logind.conf.d/50-x.conf",
            "KillExcludeUsers=bob\nKillExcludeUsers=ann\n",
        );
        assert_eq!(seen("ann", 1000), (false, false, true));
        assert_eq!(seen("bob", 1001), (false, true, false));
        assert_eq!(seen("eve", 1002), (true, true, false));
        assert_eq!(
            seen("root", 0),
            (true, false, false),
            "only who is not named at all is excluded"
        );
        write("etc/systemd/logind.conf.d/60-y.conf", "KillOnlyUsers=eve\nRemoveIPC=off\n");
        assert_eq!(
            (seen("eve", 1002), seen("kim", 1003)),
            ((true, false, false), (false, false, false))
        );
    }

    #[test]
    fn only_a_session_of_logind_ends_something() {
        assert!(is_session("0::/user.slice/user-1000.slice/session-3.scope\n"));
        assert!(is_session("5:cpu:/\n1:name=systemd:/user.slice/user-0.slice/session-c1.scope\n"));
        assert!(!is_session("0::/system.slice/ssh.service\n") && !is_session(""));
    }
}

//! As whom engines run when the agent itself is root by `sudo`: as who is logged in. An engine needs no root, and
//! what it writes belongs to a person.

use std::ffi::{CString, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::unistd::{Gid, Uid, User, initgroups, setgid, setgroups, setuid};

use crate::base::BECOME_VARIABLE;

/// What a shell says for a program that it cannot start.
const NOT_STARTED: u8 = 127;

/// Who logged in and became root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginUser {
    uid: u32,
    /// Where the system knows the user by name.
    known: Option<(String, PathBuf)>,
}

impl LoginUser {
    /// Who called `sudo`; none where the agent is not root by the host's `become`, or root logged in.
    pub fn of_sudo() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || std::env::var_os(BECOME_VARIABLE).is_none() {
            return None;
        }
        let uid = std::env::var("SUDO_UID").ok()?.parse().ok().filter(|uid| *uid != 0)?;
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        Some(Self { uid, known: user.map(|user| (user.name, user.dir)) })
    }

    /// The user's number.
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// `program` as this user, by way of `own`, this program.
    pub fn command(&self, own: &Path, program: &Path) -> Command {
        let mut command = Command::new(own);
        command.args(["agent", "as-user"]).arg(self.uid.to_string()).arg("--").arg(program);
        command.current_dir(self.home());
        for name in [BECOME_VARIABLE, "SUDO_USER", "SUDO_UID", "SUDO_GID", "SUDO_COMMAND", "MAIL"] {
            command.env_remove(name);
        }
        command.env("HOME", self.home());
        if let Some((name, _)) = &self.known {
            command.env("USER", name).env("LOGNAME", name);
        }
        command
    }

    fn home(&self) -> &Path {
        let home = self.known.as_ref().map(|(_, home)| home.as_path());
        home.filter(|home| home.is_absolute() && home.is_dir()).unwrap_or(Path::new("/"))
    }
}

/// `gpudeck agent as-user UID -- PROGRAM …`: becomes the user for good, then the program.
pub fn main(uid: u32, program: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = program.split_first() else { return ExitCode::from(2) };
    if let Err(error) = become_user(uid) {
        eprintln!("gpudeck: the engine cannot run as user {uid}: {error}");
        return ExitCode::from(NOT_STARTED);
    }
    let error = Command::new(program).args(arguments).exec();
    eprintln!("gpudeck: {} cannot be started: {error}", Path::new(program).display());
    ExitCode::from(NOT_STARTED)
}

/// Groups first: who is no root any more cannot change them.
fn become_user(uid: u32) -> nix::Result<()> {
    let uid = Uid::from_raw(uid);
    match User::from_uid(uid)? {
        Some(user) => {
            let name = CString::new(user.name).map_err(|_| nix::Error::EINVAL)?;
            initgroups(&name, user.gid)?;
            setgid(user.gid)?;
        }
        None => {
            let group = Gid::from_raw(uid.as_raw());
            setgroups(&[group])?;
            setgid(group)?;
        }
    }
    setuid(uid)
}

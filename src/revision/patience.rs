//! Waiting for programs that are run: not for ever.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// What in the environment says which repository is meant (`git rev-parse --local-env-vars`, Git 2.43): a controller
/// that was started from a hook of another one has it. What says how it is configured (`GIT_CONFIG_…`) is meant.
const OF_A_REPOSITORY: [&str; 13] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];

/// A program that hears of no other repository than the one that it is run in.
pub(super) fn program(name: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(name);
    for variable in OF_A_REPOSITORY {
        command.env_remove(variable);
    }
    command
}

/// How a program ended; none if it had not after so long: then it is killed.
pub(super) fn ended_within(
    child: &mut Child,
    patience: Duration,
) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(Some(status)),
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(None);
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_hear_of_no_other_repository() {
        let command = program("git");
        let removed = |name: &str| command.get_envs().any(|(n, v)| n == name && v.is_none());
        assert!(removed("GIT_DIR") && removed("GIT_INDEX_FILE") && removed("GIT_WORK_TREE"));
        assert!(!removed("GIT_CONFIG_GLOBAL"));
    }
}

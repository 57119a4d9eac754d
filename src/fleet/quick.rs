//! Starts an agent that is there already with one question: one channel, one round trip after it is
//! open. The script, our hello and what we want to follow go out as one command line (a server
//! takes no input before the command runs); the script becomes the agent, whose answer and
//! first sample come back.
//!
//! A login shell that does not take such a line (csh) says nothing good, and the installation's
//! questions follow.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::timeout;

use super::AgentBinary;
use super::install::{AgentCommand, InstallError, STATE_DIR_VARIABLE, TIDY, check_names};
use super::lines::LineReader;
use super::session::{Begun, SessionError, no_answer};
use crate::base::quote;
use crate::ssh::{Connection, ExecChannel};
use crate::wire::MAX_LINE_BYTES;

const QUICK: &str = include_str!("quick.sh");
const PATIENCE: Duration = Duration::from_secs(20);
/// A script that has said all it has to say ends within this time.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// Lines that a login shell's start-up files may print before.
const MAX_CHATTER_LINES: usize = 200;

/// The agent that runs now and has been told `first` (`asked`: with a question in it); none: it is not there (or not to be
/// trusted), and has to be installed.
pub(super) async fn start(
    connection: &dyn Connection,
    binary: &AgentBinary,
    env: &BTreeMap<String, String>,
    (first, asked): (&str, bool),
) -> Result<Option<Begun>, SessionError> {
    // The installation says what is wrong with it.
    let Ok(program) = program(binary, env, first) else { return Ok(None) };
    let command = format!("exec sh -c {}", quote::shell_word(&program));
    let ExecChannel { stdin, stdout, control } = connection.exec(&command).await?;
    let mut reader = LineReader::new(stdout, MAX_LINE_BYTES);
    let answer = async {
        for _ in 0..MAX_CHATTER_LINES {
            // Whatever this is, it is no answer.
            let Ok(Some(line)) = reader.next().await else { return None };
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let Some((key, value)) = line.strip_prefix("gpudeck:").and_then(|l| l.split_once('='))
            else {
                continue;
            };
            let good = key == "runs" && !value.chars().any(char::is_control);
            return Some(good.then(|| value.to_owned()));
        }
        None
    };
    let state_dir = match timeout(PATIENCE, answer).await {
        Ok(Some(Some(state_dir))) => state_dir,
        Ok(Some(None)) => {
            // It is about to end by itself, and a server may allow one session only.
            let _ = timeout(END_PATIENCE, control.wait()).await;
            return Ok(None);
        }
        Err(_) if !connection.is_there().await => {
            return Err(no_answer("the host", "looking for the agent", PATIENCE));
        }
        Ok(None) | Err(_) => return Ok(None),
    };
    let command = AgentCommand {
        binary: format!("{state_dir}/bin/{}", binary.installed_name()),
        state_dir,
        env: env.clone(),
    };
    Ok(Some(Begun { command, stdin, reader, control, asked }))
}

fn program(
    binary: &AgentBinary,
    env: &BTreeMap<String, String>,
    first: &str,
) -> Result<String, InstallError> {
    check_names(env)?;
    let base = env.get(STATE_DIR_VARIABLE).map_or("", String::as_str);
    let mut program = String::new();
    let name = binary.installed_name();
    let values = [("base", base), ("want", &name), ("sum", &binary.sha256), ("first", first)];
    for (name, value) in values {
        let _ = writeln!(program, "{name}={}", quote::shell_word(value));
    }
    program.push_str(TIDY);
    let mut with = String::new();
    if !env.is_empty() {
        with.push_str("env");
        for (name, value) in env {
            with.push(' ');
            with.push_str(&quote::shell_word(&format!("{name}={value}")));
        }
    }
    program.push_str(&QUICK.replace("$with", &with));
    Ok(program)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::path::Path;

    use super::super::install::{Source, install};
    use super::*;
    use crate::ssh::LocalConnection;

    /// An agent that says how it was started and then what it is told.
    const ECHO: &str = "#!/bin/sh\necho \"$WORDS $1 $2 $3 $4\"\nprintf %s \"$5\"\n";

    async fn said(begun: Option<Begun>) -> Vec<String> {
        let mut begun = begun.unwrap();
        let mut said = Vec::new();
        for _ in 0..2 {
            let line = timeout(PATIENCE, begun.reader.next()).await.unwrap().unwrap().unwrap();
            said.push(String::from_utf8(line.to_vec()).unwrap());
        }
        said
    }

    #[tokio::test]
    async fn what_is_there_and_whole_runs_at_once_and_hears_the_first_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        std::fs::write(&path, ECHO).unwrap();
        let agent = AgentBinary::read(&path).unwrap();
        let state = dir.path().join("it's $state");
        let env = BTreeMap::from([
            (STATE_DIR_VARIABLE.to_owned(), state.display().to_string()),
            ("WORDS".to_owned(), "it's \"env\"  $HOME".to_owned()),
        ]);
        let connection = LocalConnection::new();
        let quick = async || start(&connection, &agent, &env, ("hello\n", false)).await.unwrap();
        assert!(quick().await.is_none(), "nothing is there yet");
        assert!(!state.exists(), "it changed something");
        if std::fs::read_to_string("/etc/machine-id").is_ok_and(|id| id.trim().len() == 32) {
            let installed =
                install(&connection, Source::Copy(&agent), &env, &|_| ()).await.unwrap();
            let begun = quick().await;
            assert_eq!(begun.as_ref().map(|b| &b.command), Some(&installed));
            let dir = &installed.state_dir;
            let words = format!("it's \"env\"  $HOME agent --state-dir {dir} --first");
            assert_eq!(said(begun).await, [words, "hello".to_owned()]);
            // Another file under the name is not believed, nor is one that may not be run.
            std::fs::write(&installed.binary, "#!/bin/sh\necho no\n").unwrap();
            assert!(quick().await.is_none(), "a damaged one runs");
            std::fs::remove_file(Path::new(&installed.binary)).unwrap();
            assert!(quick().await.is_none());
        }
    }
}

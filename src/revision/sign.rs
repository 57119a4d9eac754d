//! Signed commits, if the user's Git asks for them (`commit.gpgsign`), by the user's own program:
//! `ssh-keygen` (`gpg.format = ssh`) or `gpg`. gpudeck sees no key.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use git2::Repository;

use super::RevisionError;
use super::patience::{self, ended_within};
use crate::base::text;

/// Longest time for a signature: somebody may have to touch a key.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the user's Git wants commits signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signing {
    /// `gpg --detach-sign --armor`.
    OpenPgp {
        /// The program.
        program: String,
        /// The key; none: gpg's own default.
        key: Option<String>,
    },
    /// `ssh-keygen -Y sign -n git`.
    Ssh {
        /// The program.
        program: String,
        /// A file, or a public key whose private one is in the agent.
        key: String,
    },
}

fn failed(why: impl Into<String>) -> RevisionError {
    RevisionError::Signing { why: why.into() }
}

impl Signing {
    /// What the configuration asks for; none: commits are not signed.
    pub fn of(repo: &Repository) -> Result<Option<Self>, RevisionError> {
        let config = repo.config()?.snapshot()?;
        if !config.get_bool("commit.gpgsign").unwrap_or(false) {
            return Ok(None);
        }
        let word = |name: &str| config.get_str(name).ok().map(str::to_owned);
        let key = word("user.signingkey");
        match word("gpg.format").as_deref() {
            None | Some("openpgp") => Ok(Some(Self::OpenPgp {
                program: word("gpg.openpgp.program")
                    .or_else(|| word("gpg.program"))
                    .unwrap_or_else(|| "gpg".to_owned()),
                key,
            })),
            Some("ssh") => Ok(Some(Self::Ssh {
                program: word("gpg.ssh.program").unwrap_or_else(|| "ssh-keygen".to_owned()),
                key: key.ok_or_else(|| failed("user.signingkey names no SSH key"))?,
            })),
            Some(other) => Err(failed(format!(
                "gpg.format = {} is not supported: openpgp and ssh are",
                text::clean(other, 40)
            ))),
        }
    }

    /// The signature of a commit's content, as it stands in the commit.
    pub fn sign(&self, content: &str) -> Result<String, RevisionError> {
        match self {
            Self::OpenPgp { program, key } => {
                let mut command = patience::program(program);
                command.args(["--status-fd=2", "--detach-sign", "--armor"]);
                if let Some(key) = key {
                    command.arg("--local-user").arg(key);
                }
                run(command, content)
            }
            Self::Ssh { program, key } => {
                let literal = key.strip_prefix("key::").or_else(|| {
                    let known = ["ssh-", "ecdsa-", "sk-"];
                    known.iter().any(|k| key.starts_with(k)).then_some(key.as_str())
                });
                let mut command = patience::program(program);
                command.args(["-Y", "sign", "-n", "git"]);
                // A public key in the configuration: its private key is in the user's agent.
                let _file;
                match literal {
                    Some(public) => {
                        let mut file =
                            tempfile::NamedTempFile::new().map_err(|e| failed(e.to_string()))?;
                        writeln!(file, "{public}").map_err(|e| failed(e.to_string()))?;
                        command.arg("-U").arg("-f").arg(file.path());
                        _file = file;
                    }
                    None => {
                        command.arg("-f").arg(home_expanded(key));
                    }
                }
                run(command, content)
            }
        }
    }
}

fn home_expanded(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}

/// Runs a program that reads the content and writes a signature.
fn run(mut command: Command, content: &str) -> Result<String, RevisionError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("{program} cannot be run: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input says why below.
        let _ = stdin.write_all(content.as_bytes());
    }
    let ended = ended_within(&mut child, PATIENCE).map_err(|e| failed(e.to_string()))?;
    let Some(status) = ended else {
        return Err(failed(format!("{program} did not sign in {} s", PATIENCE.as_secs())));
    };
    let mut said = String::new();
    let mut signature = String::new();
    if let Some(out) = child.stdout.take() {
        let _ = out.take(64 << 10).read_to_string(&mut signature);
    }
    if let Some(errors) = child.stderr.take() {
        let _ = errors.take(16 << 10).read_to_string(&mut said);
    }
    if !status.success() || !signature.starts_with("-----BEGIN") {
        let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message");
        return Err(failed(format!("{program}: {}", text::clean(last, 200))));
    }
    Ok(signature)
}

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
        /// The key, or whose it is: `Name <mail>`.
        key: String,
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
        let key = word("user.signingkey").filter(|key| !key.is_empty());
        match word("gpg.format").as_deref() {
            None | Some("openpgp") => Ok(Some(Self::OpenPgp {
                program: word("gpg.openpgp.program")
                    .or_else(|| word("gpg.program"))
                    .unwrap_or_else(|| "gpg".to_owned()),
                // As Git: not gpg's own default, which may be another identity's.
                key: match key {
                    Some(key) => key,
                    None => committer(repo)?,
                },
            })),
            Some("ssh") => Ok(Some(Self::Ssh {
                program: word("gpg.ssh.program").unwrap_or_else(|| "ssh-keygen".to_owned()),
                key: match (key, word("gpg.ssh.defaultKeyCommand")) {
                    (Some(key), _) => key,
                    (None, Some(command)) => default_key(&command)?,
                    (None, None) => return Err(failed("user.signingkey names no SSH key")),
                },
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
                command.args(["--status-fd=2", "--detach-sign", "--armor", "--local-user"]);
                command.arg(key);
                run(command, content)
            }
            Self::Ssh { program, key } => {
                let literal =
                    is_literal(key).then(|| key.strip_prefix("key::").unwrap_or(key.as_str()));
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

/// Who commits, as a user of gpg's keys.
fn committer(repo: &Repository) -> Result<String, RevisionError> {
    let by = super::commit::signature(repo, None)?;
    let (name, mail) = (by.name_bytes(), by.email_bytes());
    Ok(format!("{} <{}>", String::from_utf8_lossy(name), String::from_utf8_lossy(mail)))
}

/// The first line that the user's command prints: a public key whose private one is in the agent.
fn default_key(command: &str) -> Result<String, RevisionError> {
    let mut shell = patience::program("sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let lost = |e: std::io::Error| failed(format!("gpg.ssh.defaultKeyCommand: {e}"));
    let mut child = shell.spawn().map_err(lost)?;
    let ended = ended_within(&mut child, PATIENCE).map_err(lost)?;
    let mut said = String::new();
    if let Some(out) = child.stdout.take() {
        let _ = out.take(64 << 10).read_to_string(&mut said);
    }
    let key = said.lines().next().unwrap_or_default().trim();
    if ended.is_some_and(|status| status.success()) && is_literal(key) {
        Ok(key.to_owned())
    } else {
        Err(failed("gpg.ssh.defaultKeyCommand printed no public key"))
    }
}

/// A public key itself, and not the file of one.
fn is_literal(key: &str) -> bool {
    ["key::", "ssh-", "ecdsa-", "sk-"].iter().any(|known| key.starts_with(known))
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn without_a_key_it_is_the_committers_or_what_the_command_prints() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repository::init(dir.path()).unwrap();
        let mut config = repo.config().unwrap();
        for (name, value) in [
            ("commit.gpgsign", "true"),
            ("user.name", "Grace"),
            ("user.email", "grace@example.org"),
            ("user.signingkey", ""),
            ("gpg.format", "openpgp"),
        ] {
            config.set_str(name, value).unwrap();
        }
        let key = match Signing::of(&repo).unwrap().unwrap() {
            Signing::OpenPgp { key, .. } | Signing::Ssh { key, .. } => key,
        };
        assert_eq!(key, "Grace <grace@example.org>");
        config.set_str("gpg.format", "ssh").unwrap();
        assert!(Signing::of(&repo).is_err());
        config.set_str("gpg.ssh.defaultKeyCommand", "echo 'key::ssh-ed25519 AAAA' me").unwrap();
        let signing = Signing::of(&repo).unwrap().unwrap();
        assert!(matches!(signing, Signing::Ssh { key, .. } if key == "key::ssh-ed25519 AAAA me"));
        config.set_str("gpg.ssh.defaultKeyCommand", "echo /no/key").unwrap();
        assert!(Signing::of(&repo).is_err());
    }
}

//! Puts the agent on a host: finds its state directory, copies the binary if it is not there,
//! checks the copy by its hash on the host.
//!
//! Everything runs as POSIX sh through `sh -s`, so that the user's login shell may be any.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, SeekFrom};
use tokio::time::timeout;

use super::AgentBinary;
use crate::base::{Bytes, Hint, quote, text};
use crate::ssh::{Connection, ExecChannel, ExitStatus, SshError, run};
use crate::wire::{DialAccess, DialTarget};

/// Environment variable that names the state directory's parent on a host.
pub const STATE_DIR_VARIABLE: &str = "GPUDECK_STATE_DIR";

/// Longest answer of a script that is read.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
const SCRIPT_PATIENCE: Duration = Duration::from_secs(30);
/// An upload that does not move for so long has failed.
const STALL_PATIENCE: Duration = Duration::from_secs(30);
/// Space that must be left beside the binary, for state and logs.
const SPACE_BESIDE: u64 = 16 << 20;

const PRELUDE: &str = r#"
say() { printf 'gpudeck:%s=%s\n' "$1" "$2"; }
give_up() { say error "$1"; say detail "$2"; exit 0; }
digest() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum <"$1"
    elif command -v shasum >/dev/null 2>&1; then shasum -a 256 <"$1"
    elif command -v openssl >/dev/null 2>&1; then openssl dgst -sha256 -r <"$1"
    else echo none; fi | cut -c1-64
}
stamp() { stat -c '%s %y %z %i' "$1" 2>/dev/null; }
"#;
/// Versions that nobody runs any more, and what uploads that broke off have left.
pub(super) const TIDY: &str = include_str!("tidy.sh");
const FIND: &str = include_str!("install.sh");
const FINISH: &str = r#"
got=$(digest "$tmp")
if [ "$got" != "$sum" ]; then rm -f "$tmp"; give_up digest "$got"; fi
why=$({ chmod 700 "$tmp" && mv -f "$tmp" "$bin"; } 2>&1) || { rm -f "$tmp"; give_up write "$why"; }
printf '%s' "$sum $(stamp "$bin")" >"${bin%/*}/.checked-${bin##*/}" 2>/dev/null
say done 1
"#;

/// Why the agent could not be put on a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// The connection.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The host has another processor or system than the binary is for.
    #[error("the agent is for {ours}, the host is {theirs}")]
    WrongArch {
        /// What the binary is for.
        ours: String,
        /// What the host is.
        theirs: String,
    },
    /// The state directory cannot be made or written.
    #[error("the agent's directory {dir} cannot be written: {why}")]
    StateDir {
        /// Which.
        dir: String,
        /// The host's words, cleaned.
        why: String,
    },
    /// Somebody else owns the state directory.
    #[error("the agent's directory {dir} belongs to somebody else")]
    Owner {
        /// Which.
        dir: String,
    },
    /// The disk is full.
    #[error("no space left for the agent in {dir} ({needed} needed{})", free.map(|f| format!(", {f} free")).unwrap_or_default())]
    NoSpace {
        /// Where.
        dir: String,
        /// Free there, where known.
        free: Option<Bytes>,
        /// Needed.
        needed: Bytes,
    },
    /// Programs in the state directory may not be run.
    #[error("programs in {dir} may not be run (mounted noexec)")]
    NoExec {
        /// Where.
        dir: String,
    },
    /// The host's C library is older than the one the binary was built with.
    #[error("the host's system is too old for this build of the agent: {why}")]
    OldSystem {
        /// The loader's words, cleaned.
        why: String,
    },
    /// The host cannot compute a SHA-256.
    #[error("the host has no sha256sum, shasum or openssl")]
    NoDigest,
    /// The copy is not what was sent.
    #[error("the copy of the agent on the host is damaged")]
    Damaged,
    /// The binary on this side.
    #[error("the agent's binary {path} cannot be read: {why}")]
    Binary {
        /// Which.
        path: String,
        /// The system's words.
        why: String,
    },
    /// The host answered something else than the script would.
    #[error("the host does not run our script as expected: {why}")]
    Script {
        /// What was seen, cleaned.
        why: String,
    },
    /// The host's `become` says that the agent is to run as root, and it cannot.
    #[error("the agent cannot become root with `sudo -n`: {why}")]
    NoRoot {
        /// The host's words, cleaned.
        why: String,
    },
    /// `agent_env` of the host has a name that is none.
    #[error("`{name}` in agent_env is not a variable's name")]
    BadVariable {
        /// Which.
        name: String,
    },
}

impl InstallError {
    /// Somebody at the host can mend it, so that it is worth another try with the same binary.
    pub const fn may_pass(&self) -> bool {
        !matches!(self, Self::WrongArch { .. } | Self::OldSystem { .. })
    }

    /// The host can still be looked at without an agent.
    pub fn leaves_looking(&self) -> bool {
        match self {
            Self::WrongArch { theirs, .. } => theirs.starts_with("Linux"),
            Self::StateDir { .. }
            | Self::Owner { .. }
            | Self::NoSpace { .. }
            | Self::NoExec { .. }
            | Self::OldSystem { .. }
            | Self::NoRoot { .. }
            | Self::NoDigest => true,
            Self::Ssh(_)
            | Self::Damaged
            | Self::Binary { .. }
            | Self::Script { .. }
            | Self::BadVariable { .. } => false,
        }
    }

    /// Trying again soon cannot help: a person has to change something first.
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::Ssh(error) => error.needs_a_person(),
            Self::Damaged | Self::Script { .. } => false,
            _ => true,
        }
    }
}

impl Hint for InstallError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Ssh(error) => return error.hint(),
            Self::WrongArch { theirs, .. } => {
                format!("build gpudeck for {theirs} and run that one against this host")
            }
            Self::StateDir { .. } | Self::Owner { .. } | Self::NoExec { .. } => format!(
                "set agent_env = {{ {STATE_DIR_VARIABLE} = \"/some/local/directory\" }} of the host in deck.toml"
            ),
            Self::NoSpace { dir, .. } => {
                format!(
                    "free space on the disk of {dir}, or set {STATE_DIR_VARIABLE} in agent_env of the host"
                )
            }
            Self::OldSystem { .. } => {
                "run the build that `tests/release` makes: it needs glibc 2.17 and newer".to_owned()
            }
            Self::NoDigest => "install coreutils on the host".to_owned(),
            Self::Damaged => "check the host's disk and memory".to_owned(),
            Self::Binary { .. } => "install gpudeck again on this machine".to_owned(),
            Self::Script { .. } => {
                "check that the user has a POSIX sh and that its start-up files print nothing odd"
                    .to_owned()
            }
            Self::NoRoot { .. } => "let the user do so without a password (`USER ALL=(root) NOPASSWD: ALL` in \
                                    /etc/sudoers.d of the host), or take `become` out of the host in deck.toml"
                .to_owned(),
            Self::BadVariable { .. } => "correct agent_env of the host in deck.toml".to_owned(),
        })
    }
}

/// How the agent is started on a host, once it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentCommand {
    /// The binary's path on the host.
    pub binary: String,
    /// The agent's state directory on the host.
    pub state_dir: String,
    /// Added to its environment.
    pub env: BTreeMap<String, String>,
}

impl AgentCommand {
    /// The shell line that runs the agent.
    pub fn agent_line(&self) -> String {
        self.line(vec!["agent".to_owned()])
    }

    /// The shell line that joins its input and output to a socket on the host.
    pub fn dial_line(&self, target: &DialTarget, access: DialAccess) -> String {
        let mut words = vec!["agent".to_owned(), "dial".to_owned()];
        if let DialAccess::Act { deck, epoch } = access {
            words.extend(["--deck".to_owned(), deck.to_string()]);
            words.extend(["--epoch".to_owned(), epoch.0.to_string()]);
        }
        words.push(match target {
            DialTarget::Unix(path) => format!("unix:{path}"),
            DialTarget::Tcp(port) => format!("tcp:{port}"),
        });
        self.line_by(&["sh", "-c", STILL_RUNS], words)
    }

    fn line(&self, arguments: Vec<String>) -> String {
        self.line_by(&[], arguments)
    }

    /// The line of the program with `arguments`, which other words may start.
    fn line_by(&self, starter: &[&str], arguments: Vec<String>) -> String {
        let mut words = vec!["exec".to_owned()];
        if !self.env.is_empty() {
            words.push("env".to_owned());
            words.extend(self.env.iter().map(|(name, value)| format!("{name}={value}")));
        }
        words.extend(starter.iter().map(|word| (*word).to_owned()));
        words.push(self.binary.clone());
        words.extend(arguments);
        words.extend(["--state-dir".to_owned(), self.state_dir.clone()]);
        quote::shell(&words)
    }
}

/// Starts a program; one whose file was removed under it is taken from a process that still runs it: the agent of this
/// connection does. In another mount namespace the same path is another file, which anybody may have put there.
const STILL_RUNS: &str = concat!(
    r#"b=$0; m=$(readlink /proc/self/ns/mnt); [ -e "$b" ] || for p in /proc/[0-9]*; do "#,
    r#"[ "$(readlink "$p/exe" 2>/dev/null)" = "$0 (deleted)" ] && [ -n "$m" ] && "#,
    r#"[ "$(readlink "$p/ns/mnt" 2>/dev/null)" = "$m" ] && b=$p/exe && break; done; exec "$b" "$@""#
);

/// What to put on a host.
pub enum Source<'a> {
    /// Copy this binary there.
    Copy(&'a AgentBinary),
    /// The host is this machine: run the binary where it is.
    InPlace(&'a Path),
}

/// Finds or installs the agent; `progress` is told percents while it is copied.
pub async fn install(
    connection: &dyn Connection,
    source: Source<'_>,
    env: &BTreeMap<String, String>,
    progress: &(dyn Fn(u8) + Send + Sync),
) -> Result<AgentCommand, InstallError> {
    check_names(env)?;
    let base = env.get(STATE_DIR_VARIABLE).map_or("", String::as_str);
    let want = match &source {
        Source::Copy(binary) => binary.installed_name(),
        Source::InPlace(_) => String::new(),
    };
    let sum = match &source {
        Source::Copy(binary) => binary.sha256.as_str(),
        Source::InPlace(_) => "",
    };
    let values = [("base", base), ("want", &want), ("sum", sum), ("mine", mine())];
    let found = script(connection, &values, FIND).await?;
    let state_dir = found.value("state_dir")?.to_owned();
    let binary = match source {
        Source::InPlace(path) => path.display().to_string(),
        Source::Copy(binary) => {
            copy_if_needed(connection, binary, &found, &state_dir, progress).await?
        }
    };
    Ok(AgentCommand { binary, state_dir, env: env.clone() })
}

/// Only what a shell takes for a variable's name.
pub(super) fn check_names(env: &BTreeMap<String, String>) -> Result<(), InstallError> {
    let good = |name: &&String| {
        !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty()
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match env.keys().find(|name| !good(name)) {
        None => Ok(()),
        Some(name) => Err(InstallError::BadVariable { name: text::clean(name, 60) }),
    }
}

/// Names the uploads of this process, so that one that broke off is known again and two operators
/// never write into one file.
fn mine() -> &'static str {
    static MINE: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    MINE.get_or_init(|| uuid::Uuid::new_v4().simple().to_string())
}

async fn copy_if_needed(
    connection: &dyn Connection,
    binary: &AgentBinary,
    found: &Answer,
    state_dir: &str,
    progress: &(dyn Fn(u8) + Send + Sync),
) -> Result<String, InstallError> {
    let theirs = match found.value("arch")? {
        "arm64" => "aarch64",
        other => other,
    };
    let system = found.value("system")?;
    if let Some(ours) = binary.arch
        && (ours != theirs || system != "Linux")
    {
        return Err(InstallError::WrongArch {
            ours: format!("Linux {ours}"),
            theirs: format!("{system} {theirs}"),
        });
    }
    let path = format!("{state_dir}/bin/{}", binary.installed_name());
    match found.get("have") {
        Some(have) if have == binary.sha256 => return Ok(path),
        Some("none") => return Err(InstallError::NoDigest),
        _ => {}
    }
    let needed = binary.bytes.saturating_add(SPACE_BESIDE);
    let no_space =
        |free| InstallError::NoSpace { dir: state_dir.to_owned(), free, needed: Bytes(needed) };
    let free = found.get("free_kib").and_then(|kib| kib.parse::<u64>().ok());
    if let Some(free) = free.map(|kib| kib.saturating_mul(1024))
        && free < needed
    {
        return Err(no_space(Some(Bytes(free))));
    }
    let temporary = format!("{state_dir}/bin/.upload-{}-{}", binary.installed_name(), mine());
    // A part that is longer than the whole is none of ours.
    let there = found.get("part_bytes").and_then(|n| n.parse().ok());
    let there = there.filter(|there| *there <= binary.bytes).unwrap_or(0);
    let uploaded = upload(connection, binary, &temporary, there, progress).await;
    let finished = match uploaded {
        Ok(()) => {
            let values =
                [("tmp", temporary.as_str()), ("bin", &path), ("sum", binary.sha256.as_str())];
            script(connection, &values, FINISH).await.map(|_| ())
        }
        Err(error) => Err(error),
    };
    match finished {
        Ok(()) => {}
        // What is there already is not sent again the next time.
        Err(error @ InstallError::Ssh(_)) => return Err(error),
        Err(error) => {
            let remove = format!("rm -f {}", quote::shell_word(&temporary));
            let _ = run(connection, &remove, b"", 1024, Duration::from_secs(5)).await;
            return Err(match error {
                InstallError::StateDir { why, .. } if is_full(&why) => no_space(None),
                other => other,
            });
        }
    }
    Ok(path)
}

async fn upload(
    connection: &dyn Connection,
    binary: &AgentBinary,
    temporary: &str,
    there: u64,
    progress: &(dyn Fn(u8) + Send + Sync),
) -> Result<(), InstallError> {
    let unreadable =
        |why: String| InstallError::Binary { path: binary.path.display().to_string(), why };
    let mut file =
        tokio::fs::File::open(&binary.path).await.map_err(|e| unreadable(e.to_string()))?;
    file.seek(SeekFrom::Start(there)).await.map_err(|e| unreadable(e.to_string()))?;
    let how = if there > 0 { ">>" } else { ">" };
    let command = format!("umask 077; cat {how} {}", quote::shell_word(temporary));
    // The login shell may be any; sh is asked for by name.
    let command = format!("exec sh -c {}", quote::shell_word(&command));
    let ExecChannel { mut stdin, control, stdout: _stdout } = connection.exec(&command).await?;
    let stalled = || SshError::Timeout {
        address: "the host".to_owned(),
        phase: "copying the agent".to_owned(),
        after: STALL_PATIENCE,
    };
    let mut buffer = vec![0; 64 << 10];
    let mut sent = there;
    progress(0);
    loop {
        let n = file.read(&mut buffer).await.map_err(|e| unreadable(e.to_string()))?;
        if n == 0 {
            break;
        }
        let piece = buffer.get(..n).unwrap_or_default();
        match timeout(STALL_PATIENCE, stdin.write_all(piece)).await {
            Err(_) => return Err(stalled().into()),
            // The command ended early; its exit code and its words say why.
            Ok(Err(_)) => break,
            Ok(Ok(())) => {}
        }
        sent = sent.saturating_add(n as u64);
        let percent = sent.saturating_mul(100) / binary.bytes.max(1);
        progress(u8::try_from(percent.min(100)).unwrap_or(100));
    }
    let _ = timeout(STALL_PATIENCE, stdin.shutdown()).await;
    match timeout(STALL_PATIENCE, control.wait()).await {
        Err(_) => Err(stalled().into()),
        Ok(ExitStatus::Code(0)) => Ok(()),
        Ok(ExitStatus::Lost) => Err(SshError::closed("while the agent was copied").into()),
        Ok(status) => {
            let words = text::clean(control.stderr_tail().trim(), 200);
            let why = if words.is_empty() { status.to_string() } else { words };
            Err(InstallError::StateDir { dir: temporary.to_owned(), why })
        }
    }
}

/// The loader's words for a program that was built with a newer C library than the host has.
pub(super) fn wants_newer_system(words: &str) -> bool {
    words.contains("version `GLIBC_") && words.contains("not found")
}

/// The host's words for a full disk, or for a user's quota that is used up.
fn is_full(words: &str) -> bool {
    words.contains("No space left")
        || words.contains("quota exceeded")
        // Of a shell that has no better word.
        || words.contains("quota full")
}

/// What a script answered: `gpudeck:key=value` lines; everything else (a chatty start-up file)
/// is passed over.
struct Answer(BTreeMap<String, String>);

impl Answer {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn value(&self, key: &str) -> Result<&str, InstallError> {
        let missing = || InstallError::Script { why: format!("it does not say `{key}`") };
        self.get(key).filter(|value| !value.is_empty()).ok_or_else(missing)
    }
}

fn parse_answer(output: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(output);
    let pairs = text.lines().filter_map(|line| line.strip_prefix("gpudeck:")?.split_once('='));
    // Paths are used again as they are, so a control character in one is refused, not dropped.
    let good = pairs.filter(|(_, value)| !value.chars().any(char::is_control));
    Answer(good.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

async fn script(
    connection: &dyn Connection,
    values: &[(&str, &str)],
    body: &str,
) -> Result<Answer, InstallError> {
    let mut program = String::new();
    for (name, value) in values {
        program.extend([name, "=", &quote::shell_word(value), "\n"]);
    }
    program.push_str(PRELUDE);
    program.push_str(TIDY);
    program.push_str(body);
    let output =
        run(connection, "exec sh -s", program.as_bytes(), MAX_ANSWER_BYTES, SCRIPT_PATIENCE)
            .await?;
    let answer = parse_answer(&output.stdout);
    let detail = text::clean(answer.get("detail").unwrap_or_default(), 200);
    let dir = || text::clean(answer.get("state_dir").unwrap_or("the state directory"), 200);
    match answer.get("error") {
        None => {}
        Some("owner") => return Err(InstallError::Owner { dir: detail }),
        Some("noexec") => return Err(InstallError::NoExec { dir: detail }),
        Some("digest") if detail == "none" => return Err(InstallError::NoDigest),
        Some("digest") => return Err(InstallError::Damaged),
        Some("write") if is_full(&detail) => {
            return Err(InstallError::NoSpace {
                dir: dir(),
                free: Some(Bytes::ZERO),
                needed: Bytes(SPACE_BESIDE),
            });
        }
        Some(_) => return Err(InstallError::StateDir { dir: dir(), why: detail }),
    }
    if answer.get("done").is_none() {
        let words = text::clean(output.stderr.trim(), 200);
        let why = if words.is_empty() { output.status.to_string() } else { words };
        return Err(InstallError::Script { why });
    }
    Ok(answer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Mutex;

    use super::*;
    use crate::base::{DeckId, Epoch};
    use crate::ssh::LocalConnection;

    fn env(dir: &Path) -> BTreeMap<String, String> {
        [(STATE_DIR_VARIABLE.to_owned(), dir.display().to_string())].into()
    }

    fn binary(dir: &Path, text: &[u8]) -> AgentBinary {
        let path = dir.join("agent");
        std::fs::write(&path, text).unwrap();
        AgentBinary::read(&path).unwrap()
    }

    #[tokio::test]
    async fn copies_once_checks_the_hash_and_mends_a_damaged_copy() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("it's state");
        let agent = binary(dir.path(), &vec![b'x'; 300_000]);
        let connection = LocalConnection::new();
        let told = Mutex::new(Vec::new());
        let progress = |percent| told.lock().unwrap().push(percent);
        let command =
            install(&connection, Source::Copy(&agent), &env(&state), &progress).await.unwrap();
        assert!(command.state_dir.starts_with(state.to_str().unwrap()));
        let copy = Path::new(&command.binary);
        assert_eq!(std::fs::read(copy).unwrap().len(), 300_000);
        assert_eq!(std::fs::metadata(copy).unwrap().permissions().mode() & 0o777, 0o700);
        let mode = std::fs::metadata(&command.state_dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert_eq!(told.lock().unwrap().last(), Some(&100));

        told.lock().unwrap().clear();
        install(&connection, Source::Copy(&agent), &env(&state), &progress).await.unwrap();
        assert!(told.lock().unwrap().is_empty(), "it was copied again");

        std::fs::write(copy, "damaged").unwrap();
        install(&connection, Source::Copy(&agent), &env(&state), &progress).await.unwrap();
        assert_eq!(std::fs::read(copy).unwrap().len(), 300_000);
        assert_eq!(left_in(copy.parent().unwrap()), [agent.installed_name()]);
    }

    /// What lies in a directory, notes about checked files left out.
    fn left_in(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap().flatten();
        let mut names: Vec<String> =
            entries.map(|e| e.file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with(".checked-"));
        names.sort();
        names
    }

    #[tokio::test]
    async fn goes_on_where_it_broke_off_and_checks_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..400_000_u32).map(|n| (n % 251) as u8).collect();
        let agent = binary(dir.path(), &content);
        let connection = LocalConnection::new();
        let env = env(&dir.path().join("state"));
        let first = install(&connection, Source::Copy(&agent), &env, &|_| ()).await.unwrap();
        let installed = Path::new(&first.binary);
        let bin = installed.parent().unwrap();
        let part = bin.join(format!(".upload-{}-{}", agent.installed_name(), mine()));
        let percents = || Mutex::new(Vec::new());

        // Half of it is there already: the other half is sent.
        std::fs::remove_file(installed).unwrap();
        std::fs::write(&part, &content[..300_000]).unwrap();
        let told = percents();
        let progress = |percent| told.lock().unwrap().push(percent);
        install(&connection, Source::Copy(&agent), &env, &progress).await.unwrap();
        assert_eq!(std::fs::read(installed).unwrap(), content);
        assert!(told.lock().unwrap().get(1).is_some_and(|p| *p > 75), "{told:?}");
        assert_eq!(left_in(bin), [agent.installed_name()]);

        // A part that is not the beginning of it does not pass, and is sent anew.
        std::fs::remove_file(installed).unwrap();
        std::fs::write(&part, vec![b'?'; 200_000]).unwrap();
        let error = install(&connection, Source::Copy(&agent), &env, &|_| ()).await.unwrap_err();
        assert_eq!(error, InstallError::Damaged);
        install(&connection, Source::Copy(&agent), &env, &|_| ()).await.unwrap();
        assert_eq!(std::fs::read(installed).unwrap(), content);
    }

    #[tokio::test]
    async fn old_versions_go_unless_they_run() {
        let dir = tempfile::tempdir().unwrap();
        old_versions_go(dir.path(), &dir.path().join("state")).await;
    }

    #[tokio::test]
    async fn old_versions_that_run_stay_also_behind_a_link() {
        let dir = tempfile::tempdir().unwrap();
        // As where /var/lib or /var/tmp is a link to another disk.
        std::fs::create_dir(dir.path().join("disk")).unwrap();
        std::os::unix::fs::symlink("disk", dir.path().join("link")).unwrap();
        old_versions_go(dir.path(), &dir.path().join("link/state")).await;
    }

    /// What runs of the old versions below `state` stays, and what is young; the others go.
    async fn old_versions_go(dir: &Path, state: &Path) {
        let agent = binary(dir, b"new");
        let connection = LocalConnection::new();
        let env = env(state);
        let command = install(&connection, Source::Copy(&agent), &env, &|_| ()).await.unwrap();
        let bin = Path::new(&command.binary).parent().unwrap().to_owned();
        let ago = |minutes| std::time::SystemTime::now() - Duration::from_mins(minutes);
        let put = |name: &str, minutes: u64| {
            let path = bin.join(name);
            std::fs::copy("/bin/sleep", &path).unwrap();
            let file = std::fs::File::options().append(true).open(&path).unwrap();
            file.set_modified(ago(minutes)).unwrap();
            path
        };
        put("gpudeck-0000000000000001", 70);
        let running = put("gpudeck-0000000000000002", 70);
        put("gpudeck-0000000000000003", 50);
        let mut child = std::process::Command::new(&running).arg("1000").spawn().unwrap();
        let installed = install(&connection, Source::Copy(&agent), &env, &|_| ()).await;
        child.kill().unwrap();
        child.wait().unwrap();
        installed.unwrap();
        let mut wanted = vec![
            agent.installed_name(),
            "gpudeck-0000000000000002".to_owned(),
            "gpudeck-0000000000000003".to_owned(),
        ];
        wanted.sort();
        assert_eq!(left_in(&bin), wanted);
    }

    #[tokio::test]
    async fn named_causes() {
        let dir = tempfile::tempdir().unwrap();
        let connection = LocalConnection::new();
        let file = dir.path().join("a file");
        std::fs::write(&file, "").unwrap();
        let mut agent = binary(dir.path(), b"x");
        let error =
            install(&connection, Source::Copy(&agent), &env(&file), &|_| ()).await.unwrap_err();
        assert!(matches!(error, InstallError::StateDir { .. }), "{error:?}");

        agent.arch = Some("riscv64");
        let error = install(&connection, Source::Copy(&agent), &env(dir.path()), &|_| ())
            .await
            .unwrap_err();
        assert!(matches!(error, InstallError::WrongArch { .. }), "{error:?}");

        agent.arch = None;
        agent.sha256 = "0".repeat(64);
        let error = install(&connection, Source::Copy(&agent), &env(dir.path()), &|_| ())
            .await
            .unwrap_err();
        assert_eq!(error, InstallError::Damaged);

        agent.bytes = 1 << 60;
        let error = install(&connection, Source::Copy(&agent), &env(dir.path()), &|_| ())
            .await
            .unwrap_err();
        assert!(matches!(error, InstallError::NoSpace { .. }), "{error:?}");

        let bad = [("A;B".to_owned(), String::new())].into();
        let error = install(&connection, Source::Copy(&agent), &bad, &|_| ()).await.unwrap_err();
        assert!(matches!(error, InstallError::BadVariable { .. }), "{error:?}");
    }

    #[test]
    fn command_lines_are_quoted() {
        let command = AgentCommand {
            binary: "/s/bin/gpudeck-1".to_owned(),
            state_dir: "/s d".to_owned(),
            env: [("A".to_owned(), "b c".to_owned())].into(),
        };
        assert_eq!(
            command.agent_line(),
            "exec env 'A=b c' /s/bin/gpudeck-1 agent --state-dir '/s d'"
        );
        let access = DialAccess::Act { deck: DeckId(uuid::Uuid::nil()), epoch: Epoch(7) };
        let line = command.dial_line(&DialTarget::Unix("/run/x y".to_owned()), access);
        let (start, end) = line.split_once(STILL_RUNS).unwrap();
        assert_eq!(start, "exec env 'A=b c' sh -c '");
        assert_eq!(
            end,
            "' /s/bin/gpudeck-1 agent dial --deck 00000000-0000-0000-0000-000000000000 \
             --epoch 7 'unix:/run/x y' --state-dir '/s d'"
        );
    }

    #[test]
    fn an_agent_whose_file_is_gone_still_dials() {
        // A program that stays when it is started so, and complains when it is started to dial.
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("gpudeck-1");
        let shell = |line: &str| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", line]).arg(&binary);
            command
        };
        // Not written here: a process that another test forks just then would keep it busy.
        assert!(shell("cp \"$(command -v sleep)\" \"$0\"").status().unwrap().success());
        let dial = || {
            let command = AgentCommand {
                binary: binary.to_str().unwrap().to_owned(),
                state_dir: "/s".to_owned(),
                env: BTreeMap::new(),
            };
            let line = command.dial_line(&DialTarget::Tcp(1), DialAccess::Read);
            let done = shell(&line).output().unwrap();
            String::from_utf8_lossy(&done.stderr).into_owned()
        };
        let there = dial();
        assert!(there.contains("--state-dir"), "{there}");
        let mut running = std::process::Command::new(&binary).arg("60").spawn().unwrap();
        std::fs::remove_file(&binary).unwrap();
        let gone = dial();
        running.kill().unwrap();
        running.wait().unwrap();
        assert!(gone.contains("--state-dir"), "{gone}");
        assert!(dial().contains("not found"), "nobody runs it any more");
        // The same path in a mount namespace of somebody's own is another program.
        assert!(shell("cp \"$(command -v sleep)\" \"$0\"").status().unwrap().success());
        let apart = "exec unshare -m sh -c 'mkdir $0.d && mount -t tmpfs none $0.d && cp $0 $0.d/p && \
                     touch $0.d/on && exec $0 60' \"$0\"";
        let mut foreign = shell(apart).spawn().unwrap();
        let exe = format!("/proc/{}/exe", foreign.id());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let runs = || std::fs::read_link(&exe).is_ok_and(|link| link == binary);
        while !runs() && foreign.try_wait().unwrap().is_none() {
            assert!(std::time::Instant::now() < deadline, "it does not start");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        // Without the right to make one there is nothing to be tried.
        if runs() {
            std::fs::remove_file(&binary).unwrap();
            assert!(dial().contains("not found"), "a stranger's program was run");
        }
        let _ = foreign.kill();
        foreign.wait().unwrap();
    }

    /// A quota that is used up: the file system has room, and the shell says "I/O error" as of a broken disk. Here a file
    /// that is always full stands for it.
    #[test]
    fn what_a_shell_calls_an_io_error_is_told_in_the_systems_words() {
        let dir = tempfile::tempdir().unwrap();
        let machine = {
            let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
            let id: String = id.trim().chars().take(32).collect();
            dir.path().join(if id.is_empty() { rustix_nodename() } else { id })
        };
        let values = format!("base={}\nwant=\nsum=\nmine=me\n", dir.path().display());
        let program = [&values, PRELUDE, TIDY, FIND].concat();
        // The shell that runs the script has this number.
        let begin =
            "mkdir -p \"$0/bin\" && ln -s /dev/full \"$0/bin/.probe.$$\" && exec sh -c \"$1\"";
        let done = std::process::Command::new("sh")
            .args(["-c", begin])
            .arg(&machine)
            .arg(&program)
            .output()
            .unwrap();
        let answer = parse_answer(&done.stdout);
        assert_eq!(answer.get("error"), Some("write"), "{done:?}");
        assert!(is_full(answer.get("detail").unwrap()), "{done:?}");
    }

    fn rustix_nodename() -> String {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }

    #[test]
    fn a_quota_is_a_lack_of_space() {
        assert!(is_full("cat: write error: No space left on device"));
        assert!(is_full("mkdir: cannot create directory 'x': Disk quota exceeded"));
        assert!(is_full("disk or quota full (sh: 1: printf: I/O error)"));
        assert!(!is_full("mkdir: cannot create directory 'x': Read-only file system"));
    }

    #[test]
    fn chatter_is_passed_over() {
        let answer = parse_answer(b"Welcome!\ngpudeck:a=b=c\n\xffgpudeck:x=y\ngpudeck:p=\x1b[0m\n");
        assert_eq!(answer.0, [("a".to_owned(), "b=c".to_owned())].into());
    }
}

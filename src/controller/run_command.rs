//! Running one command of the user's on this machine: in a process group of its own, with bounded
//! output and a deadline. It never outlives the controller's interest in it: what an earlier
//! controller left running is ended before the next run begins.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::base::text;
use crate::rollout::RunEnd;
use crate::rollout::run_step::{MAX_LINE, MAX_LINES};

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// After the command's end, so long is waited for what its children still write.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// In the environment of a command and of all that it begins: a number of its own.
const MARK: &str = "GPUDECK_RUN";

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Order {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Longest time.
    pub timeout: Duration,
    /// Where.
    pub dir: PathBuf,
    /// Added to the controller's own environment.
    pub env: BTreeMap<String, String>,
    /// The file in which the process is noted while it runs.
    pub note: PathBuf,
}

/// Runs it; none: it was cancelled, and nothing of it is left.
pub async fn run(order: Order, cancel: CancellationToken) -> Option<(RunEnd, Vec<String>)> {
    end_leftover(&order.note).await;
    if cancel.is_cancelled() {
        return None;
    }
    let (program, args) = order.command.split_first()?;
    // Whether a relative path means the new directory is not the same everywhere: say so.
    let path = if program.contains('/') { order.dir.join(program) } else { program.into() };
    let mark = uuid::Uuid::new_v4().to_string();
    let spawned = Command::new(&path)
        .args(args)
        .current_dir(&order.dir)
        .envs(&order.env)
        .env(MARK, &mark)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let why = format!("{}: {error}", path.display());
            return Some((RunEnd::NotStarted { why }, Vec::new()));
        }
    };
    let group = Group::of(&child);
    let noted =
        group.0.and_then(Leftover::of).map(|noted| Leftover { mark: mark.clone(), ..noted });
    if let Some(note) = &noted
        && let Ok(text) = serde_json::to_vec(note)
        && let Err(error) = std::fs::write(&order.note, text)
    {
        tracing::warn!(%error, "which process runs is not noted");
    }
    let mut tail = Tail::default();
    let ended = attend(&mut child, &group, &mut tail, order.timeout, &cancel).await;
    let _ = std::fs::remove_file(&order.note);
    ended.map(|end| (end, tail.lines()))
}

async fn attend(
    child: &mut Child,
    group: &Group,
    tail: &mut Tail,
    timeout: Duration,
    cancel: &CancellationToken,
) -> Option<RunEnd> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let (mut from_out, mut from_err) = (vec![0; 8192], vec![0; 8192]);
    let deadline = tokio::time::sleep(timeout);
    tokio::pin!(deadline);
    let (end, last_words) = loop {
        tokio::select! {
            status = child.wait() => break (Some(ended(status)), true),
            n = read(&mut out, &mut from_out) => tail.take(0, from_out.get(..n).unwrap_or_default()),
            n = read(&mut err, &mut from_err) => tail.take(1, from_err.get(..n).unwrap_or_default()),
            () = &mut deadline => break (Some(RunEnd::TimedOut), false),
            () = cancel.cancelled() => break (None, false),
        }
    };
    if !last_words {
        group.signal(Signal::TERM);
        if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
            group.signal(Signal::KILL);
            let _ = child.wait().await;
        }
    }
    let rest = async {
        while out.is_some() || err.is_some() {
            tokio::select! {
                n = read(&mut out, &mut from_out) => tail.take(0, from_out.get(..n).unwrap_or_default()),
                n = read(&mut err, &mut from_err) => tail.take(1, from_err.get(..n).unwrap_or_default()),
            }
        }
    };
    let _ = tokio::time::timeout(LAST_WORDS, rest).await;
    end
}

/// Reads what there is; waits for ever once the pipe is closed.
async fn read<R: AsyncRead + Unpin>(pipe: &mut Option<R>, buffer: &mut [u8]) -> usize {
    let Some(open) = pipe else { return std::future::pending().await };
    match open.read(buffer).await {
        Ok(n @ 1..) => n,
        _ => {
            *pipe = None;
            0
        }
    }
}

fn ended(status: std::io::Result<std::process::ExitStatus>) -> RunEnd {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => RunEnd::Exited { code },
            (None, signal) => RunEnd::Killed { signal: signal.unwrap_or_default() },
        },
        Err(error) => RunEnd::NotStarted { why: error.to_string() },
    }
}

/// The process group of a command. Dropping it kills what is left of it: nothing that a step began
/// runs on when nobody waits for it.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// The last lines of what a command writes, whatever it writes and however much.
#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    partial: [Vec<u8>; 2],
}

impl Tail {
    fn take(&mut self, pipe: usize, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.finish(pipe);
            } else if let Some(partial) = self.partial.get_mut(pipe)
                && partial.len() < MAX_LINE * 4
            {
                partial.push(*byte);
            }
        }
    }

    fn finish(&mut self, pipe: usize) {
        let Some(partial) = self.partial.get_mut(pipe) else { return };
        let line = text::clean(String::from_utf8_lossy(partial).trim_end(), MAX_LINE);
        partial.clear();
        if !line.is_empty() {
            self.lines.push_back(line);
        }
        while self.lines.len() > MAX_LINES {
            self.lines.pop_front();
        }
    }

    fn lines(mut self) -> Vec<String> {
        self.finish(0);
        self.finish(1);
        self.lines.into()
    }
}

/// A command that runs, so that a later controller finds it: a pid alone may be another's by then.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Leftover {
    pid: i32,
    /// Clock ticks after boot at which it started.
    started: u64,
    boot: String,
    /// In the environment of all that it began, as [`MARK`].
    #[serde(default)]
    mark: String,
}

impl Leftover {
    /// The same process, whatever is known of its mark.
    fn is(&self, other: &Self) -> bool {
        (self.pid, self.started, &self.boot) == (other.pid, other.started, &other.boot)
    }

    fn of(pid: Pid) -> Option<Self> {
        let pid = pid.as_raw_nonzero().get();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything; field 22 is the 20th after it.
        let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, started, boot: boot_id()?, mark: String::new() })
    }
}

fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// Ends what a command began whose first process has ended, as a script does whose output nobody reads any more.
async fn end_marked(left: &Leftover) {
    if left.mark.is_empty() || boot_id().as_ref() != Some(&left.boot) {
        return;
    }
    let entry = format!("{MARK}={}", left.mark).into_bytes();
    let until = tokio::time::Instant::now() + GRACE;
    let mut signal = Signal::TERM;
    loop {
        let entry = entry.clone();
        let found = tokio::task::spawn_blocking(move || marked(&entry)).await.unwrap_or_default();
        if found.is_empty() {
            return;
        }
        if signal == Signal::TERM {
            tracing::info!(processes = found.len(), "ends what a command has left running");
        }
        for pid in found {
            let _ = kill_process(pid, signal);
        }
        if signal == Signal::KILL {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        if tokio::time::Instant::now() >= until {
            signal = Signal::KILL;
        }
    }
}

/// The processes with this in their environment.
fn marked(entry: &[u8]) -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let is_marked = |pid: &Pid| {
        let environ = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()));
        environ.is_ok_and(|environ| environ.split(|b| *b == 0).any(|word| word == entry))
    };
    processes
        .filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .filter(is_marked)
        .collect()
}

/// Ends what an earlier controller began and did not end.
pub(super) async fn end_leftover(note: &Path) {
    let Ok(text) = std::fs::read(note) else { return };
    let _ = std::fs::remove_file(note);
    let Ok(left) = serde_json::from_slice::<Leftover>(&text) else { return };
    let Some(pid) = Pid::from_raw(left.pid).filter(|_| left.pid > 1) else { return };
    if !Leftover::of(pid).is_some_and(|there| there.is(&left)) {
        return end_marked(&left).await;
    }
    tracing::info!(pid = pid.as_raw_nonzero().get(), "ends a command that was left running");
    let group = Group(Some(pid));
    group.signal(Signal::TERM);
    let until = tokio::time::Instant::now() + GRACE;
    while test_kill_process_group(pid).is_ok() && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn order(dir: &Path, script: &str, timeout: Duration) -> Order {
        Order {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout,
            dir: dir.to_owned(),
            env: BTreeMap::from([("GPUDECK_SERVICE".to_owned(), "chat".to_owned())]),
            note: dir.join("note.json"),
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn exit_code_and_last_lines_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let script = "pwd; for i in $(seq 100); do echo \"line $i\"; done; \
                      printf '\\033[31m%s' \"$GPUDECK_SERVICE is bad\" >&2; exit 3";
        let (end, lines) =
            run(order(dir.path(), script, LONG), CancellationToken::new()).await.unwrap();
        assert_eq!(end, RunEnd::Exited { code: 3 });
        assert_eq!(lines.len(), MAX_LINES);
        assert!(lines.contains(&"line 100".to_owned()), "{lines:?}");
        assert!(lines.contains(&"chat is bad".to_owned()), "{lines:?}");
        assert!(!dir.path().join("note.json").exists());
    }

    #[tokio::test]
    async fn what_is_in_the_deck_is_found_and_what_is_not_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut missing = order(dir.path(), "", LONG);
        missing.command = vec!["./smoke.sh".to_owned()];
        let (end, _) = run(missing.clone(), CancellationToken::new()).await.unwrap();
        assert!(matches!(end, RunEnd::NotStarted { why } if why.contains("smoke.sh")));
        let script = dir.path().join("smoke.sh");
        std::fs::write(&script, "#!/bin/sh\nexit 0\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).unwrap();
        let (end, _) = run(missing, CancellationToken::new()).await.unwrap();
        assert_eq!(end, RunEnd::Exited { code: 0 });
    }

    #[tokio::test]
    async fn what_is_left_of_a_command_whose_shell_has_ended_is_ended_too() {
        let dir = tempfile::tempdir().unwrap();
        let mark = uuid::Uuid::new_v4().to_string();
        let mut left = Command::new("sh")
            .args(["-c", "setsid sleep 600 & echo $! > pid.new; mv pid.new pid"])
            .env(MARK, &mark)
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let id = Pid::from_raw(i32::try_from(left.id().unwrap()).unwrap()).unwrap();
        let note = Leftover { mark, ..Leftover::of(id).unwrap() };
        left.wait().await.unwrap();
        let pid = grandchild(dir.path()).unwrap();
        assert!(!is_gone(pid));
        std::fs::write(dir.path().join("note.json"), serde_json::to_vec(&note).unwrap()).unwrap();
        end_leftover(&dir.path().join("note.json")).await;
        until(|| is_gone(pid)).await;
    }

    /// The grandchild writes its pid; it must be gone, too.
    fn grandchild(dir: &Path) -> Option<Pid> {
        let pid = std::fs::read_to_string(dir.join("pid")).ok()?;
        Pid::from_raw(pid.trim().parse().ok()?)
    }

    fn is_gone(pid: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.map_or(true, |s| {
            s.rsplit_once(')').is_none_or(|(_, rest)| rest.trim().starts_with('Z'))
        })
    }

    const HANGS: &str = "sleep 600 & echo $! > pid.new; mv pid.new pid; echo waiting; wait";

    async fn until(what: impl Fn() -> bool) {
        let end = tokio::time::Instant::now() + Duration::from_secs(30);
        while !what() {
            assert!(tokio::time::Instant::now() < end, "it did not come to pass");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let order = order(dir.path(), HANGS, Duration::from_millis(700));
        let (end, lines) = run(order, CancellationToken::new()).await.unwrap();
        assert_eq!(end, RunEnd::TimedOut);
        assert_eq!(lines, ["waiting"]);
        let pid = grandchild(dir.path()).unwrap();
        until(|| is_gone(pid)).await;
    }

    #[tokio::test]
    async fn one_that_nobody_waits_for_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(run(order(dir.path(), HANGS, LONG), cancel.clone()));
        until(|| grandchild(dir.path()).is_some()).await;
        cancel.cancel();
        assert_eq!(task.await.unwrap(), None);
        let pid = grandchild(dir.path()).unwrap();
        until(|| is_gone(pid)).await;
    }

    #[tokio::test]
    async fn what_an_earlier_controller_left_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut left = Command::new("sh")
            .args(["-c", HANGS])
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        until(|| grandchild(dir.path()).is_some()).await;
        let pid = grandchild(dir.path()).unwrap();
        let id = i32::try_from(left.id().unwrap()).unwrap();
        let note = Leftover::of(Pid::from_raw(id).unwrap());
        std::fs::write(dir.path().join("note.json"), serde_json::to_vec(&note).unwrap()).unwrap();
        let reaper = tokio::spawn(async move { left.wait().await });
        let (end, _) =
            run(order(dir.path(), "exit 0", LONG), CancellationToken::new()).await.unwrap();
        assert_eq!(end, RunEnd::Exited { code: 0 });
        until(|| is_gone(pid)).await;
        reaper.await.unwrap().unwrap();
        // Another process that has the number by now is left alone.
        let other = Leftover { started: 1, ..Leftover::of(rustix::process::getpid()).unwrap() };
        std::fs::write(dir.path().join("note.json"), serde_json::to_vec(&other).unwrap()).unwrap();
        end_leftover(&dir.path().join("note.json")).await;
    }
}

//! Starting a rank: checks, its directory, its detached supervisor.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Child;

use super::error::{blocking, failed, io_refusal};
use super::gpu::monitor::GpuMonitor;
use super::group::{self, Group};
use super::process::ProcessId;
use super::rank::{RankFile, StatusFile, VERSION};
use super::reads::FileReads;
use super::state::{self, HostLock, StateDir};
use super::{fence, key_file, needs, process, rank};
use crate::wire::{GPU_NUMBERS, RankStart, Refusal};

/// Less than this on the disk of the state directory, and nothing is started.
const MIN_FREE_DISK: u64 = 16 << 20;

/// Longest wait for a file system to say that a file is there.
const FILE_WITHIN: Duration = Duration::from_secs(10);

/// Longest wait for a supervisor's word that its engine process exists.
const STARTED_WITHIN: Duration = Duration::from_secs(14);

/// Longest wait for the gate of a rank whose supervisor says nothing.
const GATE_WAIT: Duration = Duration::from_secs(5);

/// What is killed ends within that, or is stuck in the kernel.
const ENDED_WITHIN: Duration = Duration::from_secs(3);

/// Starts a rank; to be called under the host's lock. Starting what was started before (whatever
/// became of it) is success and starts nothing.
///
/// # Errors
/// A check failed and nothing was changed, or the engine process could not be made and everything
/// was taken back; [`Refusal::Busy`] when what was begun could not be taken back: it is never started
/// any more, and its directory stays until it is stopped and removed.
pub async fn start(
    state: &StateDir,
    program: &Path,
    gpus: &GpuMonitor,
    mut start: RankStart,
) -> Result<(), Refusal> {
    let dir = state.rank(&start.rank);
    if dir.exists() {
        return Ok(());
    }
    if fence::is_raised(state, &start.rank) {
        return Err(failed(format!("{} was stopped before it was started", start.rank)));
    }
    if start.argv.is_empty() {
        return Err(failed("there is no program to start"));
    }
    check_disk(state)?;
    let numbers = needs::check(&start.needs, &start.ports, gpus).await?;
    let numbers = numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let mut given = None;
    for value in start.env.values_mut().filter(|value| *value == GPU_NUMBERS) {
        value.clone_from(&numbers);
        given = Some(numbers.clone());
    }
    rank::prune(state, &start.rank);
    make_dir(state, &dir, &start, given)?;
    match supervise(program, &dir, &start).await {
        Ok(()) => Ok(()),
        Err(Unstarted::Never(refusal)) => {
            let _ = fs::remove_dir_all(&dir);
            Err(refusal)
        }
        // Whoever asks again finds it, and so does its stop.
        Err(Unstarted::Perhaps(refusal)) => Err(refusal),
    }
}

/// Why a start is no success.
#[derive(Debug)]
enum Unstarted {
    /// Nothing of it runs, and nothing ever will.
    Never(Refusal),
    /// Something of it may be stuck in the kernel still.
    Perhaps(Refusal),
}

/// Whether the files that a rank needs are there; to be called before the host's lock is taken, because
/// they may lie on a mount that does not answer.
///
/// # Errors
/// One is not there, cannot be looked at, or its file system does not answer.
pub async fn check_files(
    state: &StateDir,
    reads: &FileReads,
    start: &RankStart,
) -> Result<(), Refusal> {
    // What was started once is started, whatever has become of its files.
    if state.rank(&start.rank).exists() {
        return Ok(());
    }
    for file in &start.files {
        let path = PathBuf::from(file);
        let look =
            move || fs::metadata(&path).map(|_| ()).map_err(|e| io_refusal(&e, "read", &path));
        reads.run(file, FILE_WITHIN, look).await?;
    }
    if let Some(file) = &start.key_file {
        // Its engine is asked for a token with it.
        key_file::read(reads, file).await?;
    }
    Ok(())
}

fn check_disk(state: &StateDir) -> Result<(), Refusal> {
    let root = state.root();
    let disk = rustix::fs::statvfs(root).map_err(|e| io_refusal(&e.into(), "read", root))?;
    // A file system that does not count inodes says 0 of 0.
    let no_inodes = disk.f_files > 0 && disk.f_favail == 0;
    if disk.f_bavail.saturating_mul(disk.f_frsize) < MIN_FREE_DISK || no_inodes {
        return Err(Refusal::NoSpace { path: root.to_string_lossy().into_owned() });
    }
    Ok(())
}

/// Makes the rank's directory in one step: it is there with its `rank.json`, or not at all.
fn make_dir(
    state: &StateDir,
    dir: &Path,
    start: &RankStart,
    gpu_numbers: Option<String>,
) -> Result<(), Refusal> {
    let temp = state.ranks().join(format!(".new-{}", start.rank.unit_name()));
    let made = (|| -> io::Result<()> {
        // Left by an agent that was killed here; the host's lock keeps others out.
        if temp.exists() {
            fs::remove_dir_all(&temp)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&temp)?;
        let file = RankFile {
            version: VERSION,
            rank: start.rank.clone(),
            argv: start.argv.clone(),
            gpu_numbers,
            log_limit: start.log_limit,
            boot_id: process::boot_id().to_owned(),
            created_ms: process::since_boot_ms(),
        };
        state::write_json(&temp.join("rank.json"), &file)?;
        fs::rename(&temp, dir)?;
        state::sync_parent(dir)
    })();
    made.map_err(|e| {
        let _ = fs::remove_dir_all(&temp);
        io_refusal(&e, "make", dir)
    })
}

/// Starts the supervisor, hands it what to start, and waits for its word.
async fn supervise(program: &Path, dir: &Path, start: &RankStart) -> Result<(), Unstarted> {
    let fail = |e: &io::Error| Unstarted::Never(io_refusal(e, "start the supervisor", program));
    let errors = fs::File::create(dir.join("supervisor.log")).map_err(|e| fail(&e))?;
    let mut child = tokio::process::Command::new(process::startable(program))
        .arg0(program)
        .args(["agent", "supervise"])
        .arg(dir)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|e| fail(&e))?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        let _ = child.start_kill();
        return Err(Unstarted::Never(failed("the supervisor has no pipes")));
    };
    // The environment goes through the pipe only; an unfinished text starts nothing.
    let text = serde_json::to_vec(start).unwrap_or_default();
    let asked = async {
        stdin.write_all(&text).await?;
        stdin.shutdown().await?;
        drop(stdin);
        let mut word = String::new();
        BufReader::new(stdout.take(64 << 10)).read_line(&mut word).await?;
        Ok::<String, io::Error>(word)
    };
    let word = tokio::time::timeout(STARTED_WITHIN, asked).await;
    let word = match word {
        Ok(Ok(word)) => serde_json::from_str::<Result<(), Refusal>>(&word).ok(),
        Ok(Err(_)) | Err(_) => None,
    };
    // Not waited for here: it outlives this agent. While the agent lives, the runtime reaps it.
    match word {
        Some(Ok(())) => Ok(()),
        Some(Err(refusal)) => {
            let _ = child.start_kill();
            Err(Unstarted::Never(refusal))
        }
        None => without_word(dir, &mut child, GATE_WAIT).await,
    }
}

/// The supervisor ended or hangs and said nothing: either its engine was started and written down,
/// or it is kept from ever being started.
///
/// Between its fork and its exec an engine holds the gate, too. One whose program lies on a slow file
/// system can stay there long, would survive its supervisor alone, and run with nobody knowing of it.
async fn without_word(
    dir: &Path,
    supervisor: &mut Child,
    gate_wait: Duration,
) -> Result<(), Unstarted> {
    // It is not reaped yet: the number is its own.
    let id = supervisor.id().and_then(ProcessId::of);
    let mark = || {
        let mark = dir.join("stop");
        fs::write(&mark, b"").map_err(|e| io_refusal(&e, "write", &mark))
    };
    if let Ok(_between_start_and_stop) = gate(dir, gate_wait).await {
        if StatusFile::read(dir).is_some() {
            return Ok(());
        }
        let marked = mark();
        let _ = supervisor.start_kill();
        marked.map_err(Unstarted::Never)?;
        let said = fs::read_to_string(dir.join("supervisor.log")).unwrap_or_default();
        let why = format!("the supervisor did not start the engine: {said}");
        return Err(Unstarted::Never(failed(why)));
    }
    // It is past the look for the mark, or stuck before it. On a full disk its end must do.
    let _ = mark();
    let _ = supervisor.start_kill();
    let ended = match id {
        Some(id) => end_all(id).await,
        None => Ok(()),
    };
    // Only who has the gate now knows that nobody else is between the fork and the exec.
    match (ended, gate(dir, gate_wait).await) {
        (Ok(()), Ok(_between_start_and_stop)) => Err(Unstarted::Never(failed(
            "the engine's program did not begin in time (does the file system that it lies on answer?)",
        ))),
        _ => Err(Unstarted::Perhaps(Refusal::Busy {
            message:
                "the engine's program did not begin in time and cannot be ended yet (does the file \
                      system that it lies on answer?)"
                    .to_owned(),
        })),
    }
}

/// The lock between the supervisor's start and a stop.
async fn gate(dir: &Path, wait: Duration) -> Result<HostLock, Refusal> {
    let path = dir.join("gate");
    blocking(move || state::lock_file(&path, wait)).await
}

/// Kills everything in the session of a supervisor that was killed, and waits a moment until all of it is gone.
async fn end_all(supervisor: ProcessId) -> Result<(), Refusal> {
    // The engine leads a process group of its own from before its exec: only the session has them all.
    let group = Group { supervisor, engine: supervisor, own_session: true };
    let deadline = Instant::now() + ENDED_WITHIN;
    loop {
        let left = blocking(move || {
            // As long as it lives it may have another child.
            let may_fork = supervisor.is_alive();
            let left = group.members();
            group::signal(&left, Signal::KILL);
            Ok(may_fork || !left.is_empty())
        });
        match left.await? {
            false => return Ok(()),
            true if Instant::now() >= deadline => return Err(failed("not all of it has ended")),
            true => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// `{gpudeck}` alone is the agent's own binary.
pub fn program_of(argv0: &str, own: &Path) -> PathBuf {
    if argv0 == "{gpudeck}" { own.to_owned() } else { PathBuf::from(argv0) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    /// A supervisor that leads a session, and whose engine (`timeout` makes a group of its own) is not past
    /// its exec: it holds the gate as a child of `vfork` does. The engine's number is in `engine`.
    fn stuck_supervisor(dir: &Path) -> Child {
        let text = "exec 9>\"$0/gate\"; flock 9; timeout 1000 sleep 1000 & echo $! >\"$0/new\"; \
                    mv \"$0/new\" \"$0/engine\"; wait";
        tokio::process::Command::new("setsid")
            .args(["sh", "-c", text])
            .arg(dir)
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    async fn engine_of(dir: &Path) -> ProcessId {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let pid = fs::read_to_string(dir.join("engine")).unwrap_or_default();
            if let Some(id) = pid.trim().parse().ok().and_then(ProcessId::of) {
                return id;
            }
            assert!(Instant::now() < deadline, "the engine was not started");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn an_engine_that_is_not_past_its_exec_is_ended_with_its_supervisor() {
        let dir = tempfile::tempdir().unwrap();
        let mut supervisor = stuck_supervisor(dir.path());
        let engine = engine_of(dir.path()).await;
        let told = without_word(dir.path(), &mut supervisor, Duration::from_millis(100)).await;
        assert!(!engine.is_alive(), "an engine of which nobody knows");
        assert!(matches!(told, Err(Unstarted::Never(Refusal::Failed { .. }))), "{told:?}");
        let _ = supervisor.wait().await;
    }

    #[tokio::test]
    async fn what_cannot_be_ended_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        // Held by what no SIGKILL reaches.
        let held = state::lock_file(&dir.path().join("gate"), Duration::ZERO).unwrap();
        let mut supervisor = tokio::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let told = without_word(dir.path(), &mut supervisor, Duration::from_millis(20)).await;
        assert!(matches!(told, Err(Unstarted::Perhaps(Refusal::Busy { .. }))), "{told:?}");
        assert!(dir.path().join("stop").exists(), "whatever comes, it is not started any more");
        drop(held);
        let _ = supervisor.wait().await;
    }
}

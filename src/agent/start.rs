//! Starting a rank: checks, its directory, its detached supervisor.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::error::{failed, io_refusal};
use super::gpu::monitor::GpuMonitor;
use super::rank::{RankFile, StatusFile, VERSION};
use super::reads::FileReads;
use super::state::{self, StateDir};
use super::{fence, needs, process, rank};
use crate::wire::{GPU_NUMBERS, RankStart, Refusal};

/// Less than this on the disk of the state directory, and nothing is started.
const MIN_FREE_DISK: u64 = 16 << 20;

/// Longest wait for a file system to say that a file is there.
const FILE_WITHIN: Duration = Duration::from_secs(10);

/// Longest wait for a supervisor's word that its engine process exists.
const STARTED_WITHIN: Duration = Duration::from_secs(14);

/// Starts a rank; to be called under the host's lock. Starting what was started before (whatever
/// became of it) is success and starts nothing.
///
/// # Errors
/// A check failed and nothing was changed, or the engine process could not be made and everything
/// was taken back.
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
    for value in start.env.values_mut().filter(|value| *value == GPU_NUMBERS) {
        value.clone_from(&numbers);
    }
    rank::prune(state, &start.rank);
    make_dir(state, &dir, &start)?;
    match supervise(program, &dir, &start).await {
        Ok(()) => Ok(()),
        Err(refusal) => {
            let _ = fs::remove_dir_all(&dir);
            Err(refusal)
        }
    }
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
fn make_dir(state: &StateDir, dir: &Path, start: &RankStart) -> Result<(), Refusal> {
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
async fn supervise(program: &Path, dir: &Path, start: &RankStart) -> Result<(), Refusal> {
    let fail = |e: &io::Error| io_refusal(e, "start the supervisor", program);
    let errors = fs::File::create(dir.join("supervisor.log")).map_err(|e| fail(&e))?;
    let mut child = tokio::process::Command::new(program)
        .args(["agent", "supervise"])
        .arg(dir)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|e| fail(&e))?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(failed("the supervisor has no pipes"));
    };
    // The environment goes through the pipe only; an unfinished text starts nothing.
    let text = serde_json::to_vec(start).map_err(|e| failed(e.to_string()))?;
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
    let answer = match word {
        Some(answer) => answer,
        None => without_word(dir),
    };
    if answer.is_err() {
        let _ = child.start_kill();
    }
    // Not waited for here: it outlives this agent. While the agent lives, the runtime reaps it.
    drop(child);
    answer
}

/// The supervisor ended or hangs and said nothing: either its engine was started and written down,
/// or it is kept from ever being started.
fn without_word(dir: &Path) -> Result<(), Refusal> {
    let _between_start_and_stop = state::lock_file(&dir.join("gate"), Duration::from_secs(5))?;
    if StatusFile::read(dir).is_some() {
        return Ok(());
    }
    let mark = dir.join("stop");
    fs::write(&mark, b"").map_err(|e| io_refusal(&e, "write", &mark))?;
    let said = fs::read_to_string(dir.join("supervisor.log")).unwrap_or_default();
    Err(failed(format!("the supervisor did not start the engine: {said}")))
}

/// `{gpudeck}` alone is the agent's own binary.
pub fn program_of(argv0: &str, own: &Path) -> PathBuf {
    if argv0 == "{gpudeck}" { own.to_owned() } else { PathBuf::from(argv0) }
}

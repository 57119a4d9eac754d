//! `gpudeck agent supervise RANKDIR`: starts one engine process, keeps its log bounded, writes down
//! how it ended. It outlives the agent that started it; any later agent reads what it wrote.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{SignalKind, signal};

use super::error::{failed, io_refusal};
use super::group::{self, Group};
use super::login_user::LoginUser;
use super::process::{self, ProcessId};
use super::rank::{ExitRecord, RankFile, StatusFile, VERSION};
use super::start::program_of;
use super::{ageing, log, state};
use crate::base::Bytes;
use crate::wire::{RankStart, Refusal};

/// Time between looks at the log's size.
const LOG_LOOK: Duration = Duration::from_millis(500);

/// What is left of the rank when its engine process has ended gets SIGTERM, and so much later
/// SIGKILL: a dead engine must not leave workers on the GPUs.
const LEFTOVER_GRACE: Duration = Duration::from_secs(10);

/// Runs the supervisor.
pub fn main(dir: &Path) -> ExitCode {
    // A session of its own: nothing that happens to the SSH session reaches it.
    let own_session = rustix::process::setsid().is_ok();
    // Workers whose parent dies come to us, so that they can still be found.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&failed(format!("no event loop: {error}"))),
    };
    let start = match read_start() {
        Ok(start) => start,
        Err(refusal) => return refuse(&refusal),
    };
    runtime.block_on(run(dir, start, own_session))
}

fn refuse(refusal: &Refusal) -> ExitCode {
    say(&Err(refusal.clone()));
    ExitCode::FAILURE
}

/// The one line the agent waits for.
fn say(word: &Result<(), Refusal>) {
    if let Ok(mut line) = serde_json::to_vec(word) {
        line.push(b'\n');
        let mut out = io::stdout();
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

fn read_start() -> Result<RankStart, Refusal> {
    let mut text = Vec::new();
    let limit = crate::wire::MAX_LINE_BYTES as u64;
    io::stdin()
        .take(limit)
        .read_to_end(&mut text)
        .map_err(|e| failed(format!("the start cannot be read: {e}")))?;
    serde_json::from_slice(&text).map_err(|e| failed(format!("the start is not whole: {e}")))
}

async fn run(dir: &Path, start: RankStart, own_session: bool) -> ExitCode {
    let (Ok(mut child_signal), Ok(mut terminate)) =
        (signal(SignalKind::child()), signal(SignalKind::terminate()))
    else {
        return refuse(&failed("signals cannot be received"));
    };
    let limit = start.log_limit;
    let mut status = match launch(dir, &start, own_session) {
        Ok(status) => status,
        Err(refusal) => return refuse(&refusal),
    };
    say(&Ok(()));

    let mut look = tokio::time::interval(LOG_LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut keeper = LogKeeper::new(dir, limit);
    // Whether or not an agent comes by in all that time.
    let mut ages = tokio::time::interval(ageing::EVERY);
    let ended = loop {
        tokio::select! {
            _ = child_signal.recv() => {
                if let Some(ended) = reap(status.group.engine.pid) { break ended }
            }
            _ = terminate.recv() => status.group.terminate(),
            _ = look.tick() => keeper.look(),
            _ = ages.tick() => ageing::keep_young(dir),
        }
    };
    status.exit = Some(ExitRecord {
        code: ended.exit_status(),
        signal: ended.terminating_signal(),
        at: process::now(),
        last_lines: log::last_lines(dir),
    });
    write_status(dir, &status).await;
    clear_leftovers(&status.group).await;
    ExitCode::SUCCESS
}

/// Starts the engine and writes down its processes. Either both happen or nothing runs.
fn launch(dir: &Path, start: &RankStart, own_session: bool) -> Result<StatusFile, Refusal> {
    let gate = dir.join("gate");
    let _between_start_and_stop = state::lock_file(&gate, Duration::from_secs(5))?;
    if dir.join("stop").exists() {
        return Err(failed("the rank was stopped before it started"));
    }
    if !RankFile::read(dir).is_some_and(|r| r.may_still_start()) {
        return Err(failed("the rank was to be started too long ago"));
    }
    let supervisor = ProcessId::of(std::process::id())
        .ok_or_else(|| failed("/proc does not show the supervisor"))?;
    let log = log::create(dir).map_err(|e| io_refusal(&e, "make the log in", dir))?;
    let errors = log.try_clone().map_err(|e| io_refusal(&e, "make the log in", dir))?;
    let own = process::own_program().unwrap_or_default();
    let mut argv = start.argv.iter();
    let program = program_of(argv.next().map_or("", String::as_str), &own);
    // For the program that it is given to, `/proc/self/exe` would be that program's own.
    let given = match own.strip_prefix("/proc/self") {
        Ok(within) => Path::new("/proc").join(std::process::id().to_string()).join(within),
        Err(_) => own.clone(),
    };
    let argv = argv.map(|a| if a == "{gpudeck}" { given.clone().into() } else { a.into() });
    let mut command = match LoginUser::of_sudo() {
        Some(user) => user.command(&own, &program),
        None => {
            let mut command = Command::new(&program);
            command.current_dir(home());
            command
        }
    };
    command
        .args(argv.collect::<Vec<std::ffi::OsString>>())
        .envs(&start.env)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0);
    let child = command.spawn().map_err(|e| io_refusal(&e, "start", &program))?;
    // Reaped in `reap`, together with adopted descendants; `Child` itself reaps nothing on drop.
    let pid = child.id();
    // It is our child and not reaped yet: /proc shows it even if it has ended.
    let engine = ProcessId::of(pid).unwrap_or(ProcessId { pid, start_ticks: 0 });
    let status = StatusFile {
        version: VERSION,
        boot_id: process::boot_id().to_owned(),
        group: Group { supervisor, engine, own_session },
        since: process::now(),
        exit: None,
    };
    if let Err(error) = state::write_json(&dir.join("status.json"), &status) {
        status.group.kill();
        return Err(io_refusal(&error, "write", dir));
    }
    Ok(status)
}

fn home() -> std::path::PathBuf {
    let home = std::env::var_os("HOME").map(std::path::PathBuf::from);
    home.filter(|h| h.is_absolute() && h.is_dir()).unwrap_or_else(|| "/".into())
}

/// Reaps every child that has ended; how the engine ended, if it did.
fn reap(engine: u32) -> Option<WaitStatus> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if u32::try_from(pid.as_raw_pid()) == Ok(engine) {
            ended = Some(status);
        }
    }
    ended
}

/// Writes how it ended; with a full disk it tries for a while.
async fn write_status(dir: &Path, status: &StatusFile) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while state::write_json(&dir.join("status.json"), status).is_err() && dir.is_dir() {
        if Instant::now() >= deadline {
            eprintln!("how the engine ended could not be written down");
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn clear_leftovers(group: &Group) {
    let deadline = Instant::now() + LEFTOVER_GRACE;
    let mut asked = false;
    loop {
        let left = group.members();
        if left.is_empty() {
            return;
        }
        if Instant::now() >= deadline {
            group::signal(&left, Signal::KILL);
            // What cannot be killed (stuck in the kernel) keeps us here, slowly.
            tokio::time::sleep(Duration::from_secs(1)).await;
        } else if !asked {
            asked = true;
            group::signal(&left, Signal::TERM);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        reap(0);
    }
}

/// Keeps the log bounded; says once if that fails.
struct LogKeeper<'a> {
    dir: &'a Path,
    limit: Bytes,
    failed: bool,
}

impl<'a> LogKeeper<'a> {
    fn new(dir: &'a Path, limit: Bytes) -> Self {
        Self { dir, limit, failed: false }
    }

    fn look(&mut self) {
        if let Err(error) = log::trim(self.dir, self.limit)
            && !self.failed
        {
            self.failed = true;
            eprintln!("the log cannot be kept short: {error}");
        }
    }
}

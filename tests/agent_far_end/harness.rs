//! An agent as a controller sees it, and what tests need around it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use gpudeck::base::{Bytes, DeckId, Epoch, RankId, ReleaseId};
use gpudeck::wire::{
    FromAgent, HostFacts, HostSample, PROTOCOL_VERSION, RankReport, RankStart, RankStatus, Refusal,
    Reply, Request, ToAgent, Verb,
};

/// Nothing here takes longer than that.
pub const LONG: Duration = Duration::from_secs(30);

pub const DECK: DeckId = DeckId(uuid::Uuid::from_u128(0xdec));

/// A running `gpudeck agent`, killed with SIGKILL when dropped.
pub struct Agent {
    pub child: Child,
    stdin: ChildStdin,
    lines: Receiver<FromAgent>,
    next_id: u64,
    pub samples: Vec<HostSample>,
    pub ranks: Vec<Vec<RankReport>>,
}

impl Agent {
    pub fn start(state: &Path) -> Self {
        Self::start_with(state, &[("GPUDECK_NVML", "/nonexistent/libnvidia-ml.so.1".as_ref())])
    }

    pub fn start_with(state: &Path, env: &[(&str, &Path)]) -> Self {
        Self::start_program(Path::new(env!("CARGO_BIN_EXE_gpudeck")), state, env)
    }

    pub fn start_program(program: &Path, state: &Path, env: &[(&str, &Path)]) -> Self {
        let mut child = Command::new(program)
            .args(["agent", "--state-dir"])
            .arg(state)
            .env_remove("GPUDECK_SCENARIO")
            .env_remove("GPUDECK_NVML")
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let message: FromAgent = serde_json::from_str(&line).expect(&line);
                if send.send(message).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, lines, next_id: 1, samples: Vec::new(), ranks: Vec::new() }
    }

    /// Sends a request and does not wait for its answer.
    pub fn send(&mut self, request: Request) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let line = serde_json::to_string(&ToAgent { id, request }).unwrap();
        writeln!(self.stdin, "{line}").unwrap();
        id
    }

    /// Closes the agent's output with the next thing it says.
    pub fn stop_reading(&mut self) {
        self.lines = channel().1;
    }

    /// Sends a line as it is.
    pub fn send_line(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// The next answer to `id`; what else comes is kept.
    pub fn answer(&mut self, id: u64) -> Result<Reply, Refusal> {
        let deadline = Instant::now() + LONG;
        loop {
            let message = self.next(deadline).expect("no answer in time");
            if let FromAgent::Reply { id: answered, result } = message
                && answered == id
            {
                return result;
            }
        }
    }

    fn next(&mut self, deadline: Instant) -> Option<FromAgent> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(message) => {
                match &message {
                    FromAgent::Sample(sample) => self.samples.push((**sample).clone()),
                    FromAgent::Ranks(reports) => self.ranks.push(reports.clone()),
                    FromAgent::Reply { .. } | FromAgent::Change { .. } | FromAgent::Packed(_) => {}
                }
                Some(message)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the agent has ended"),
        }
    }

    pub fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        let id = self.send(request);
        self.answer(id)
    }

    /// Reads on until `what` finds something among the samples and reports told so far.
    pub fn wait<T>(&mut self, within: Duration, mut what: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + within;
        loop {
            if let Some(found) = what(self) {
                return found;
            }
            assert!(
                self.next(deadline).is_some(),
                "did not happen; last sample {:?}, last ranks {:?}",
                self.samples.last(),
                self.ranks.last()
            );
        }
    }

    pub fn hello(&mut self) -> HostFacts {
        match self.ask(Request::Hello { protocol: PROTOCOL_VERSION }) {
            Ok(Reply::Hello { protocol: PROTOCOL_VERSION, facts }) => *facts,
            other => panic!("{other:?}"),
        }
    }

    pub fn subscribe(&mut self, interval_ms: u64) {
        assert_eq!(self.ask(Request::Subscribe { interval_ms }), Ok(Reply::Done));
    }

    pub fn claim(
        &mut self,
        epoch: Option<Epoch>,
        holder: &str,
        force: bool,
    ) -> Result<Epoch, Refusal> {
        let holder = holder.to_owned();
        match self.ask(Request::Claim { deck: DECK, epoch, holder, lease_ms: 60_000, force })? {
            Reply::Claimed { epoch } => Ok(epoch),
            other => panic!("{other:?}"),
        }
    }

    pub fn act(&mut self, epoch: Epoch, verb: Verb) -> Result<Reply, Refusal> {
        self.ask(Request::Act { deck: DECK, epoch, verb })
    }

    pub fn start_rank(&mut self, epoch: Epoch, start: &RankStart) -> Result<Reply, Refusal> {
        self.act(epoch, Verb::StartRank(Box::new(start.clone())))
    }

    pub fn stop_rank(
        &mut self,
        epoch: Epoch,
        rank: &RankId,
        grace_ms: u64,
    ) -> Result<Reply, Refusal> {
        self.act(epoch, Verb::StopRank { rank: rank.clone(), grace_ms })
    }

    pub fn status(&mut self, rank: &RankId) -> Option<RankStatus> {
        match self.ask(Request::Ranks { deck: Some(DECK) }) {
            Ok(Reply::Ranks(reports)) => {
                reports.into_iter().find(|r| r.rank == *rank).map(|r| r.status)
            }
            other => panic!("{other:?}"),
        }
    }

    /// The engine's pid; the rank must run.
    pub fn pid(&mut self, rank: &RankId) -> u32 {
        match self.status(rank) {
            Some(RankStatus::Running { pid, .. }) => pid,
            other => panic!("{other:?}"),
        }
    }

    pub fn log(
        &mut self,
        rank: &RankId,
        offset: Option<u64>,
        length: u32,
    ) -> gpudeck::wire::LogChunk {
        match self.ask(Request::ReadLog { rank: rank.clone(), offset, length }) {
            Ok(Reply::Log(chunk)) => chunk,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A state directory; whatever still runs in it is killed at the end.
pub struct State {
    pub dir: tempfile::TempDir,
}

impl State {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn rank_dir(&self, rank: &RankId) -> PathBuf {
        self.path().join("ranks").join(rank.unit_name())
    }

    /// The pid of a rank's supervisor, as it wrote it down.
    pub fn supervisor(&self, rank: &RankId) -> u32 {
        let text = std::fs::read_to_string(self.rank_dir(rank).join("status.json")).unwrap();
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        u32::try_from(status["group"]["supervisor"]["pid"].as_u64().unwrap()).unwrap()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.path().join("ranks")).into_iter().flatten().flatten() {
            let Ok(text) = std::fs::read_to_string(entry.path().join("status.json")) else {
                continue;
            };
            let Ok(status) = serde_json::from_str::<serde_json::Value>(&text) else { continue };
            for who in ["engine", "supervisor"] {
                let id = &status["group"][who];
                let (pid, start) = (id["pid"].as_u64(), id["start_ticks"].as_u64());
                if let Some(pid) = pid
                    && start.is_some()
                    && start_ticks(pid) == start
                {
                    kill(u32::try_from(pid).unwrap(), rustix::process::Signal::KILL);
                }
            }
        }
    }
}

/// Field 22 of /proc/PID/stat.
pub fn start_ticks(pid: u64) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, tail)| !tail.trim_start().starts_with(['Z', 'X']))
}

pub fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, signal);
}

/// Waits until `what` is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn rank(number: u32) -> RankId {
    RankId {
        deck: DECK,
        service: "chat".parse().unwrap(),
        release_id: ReleaseId(uuid::Uuid::from_u128(7)),
        replica: "r1-0-a1".parse().unwrap(),
        rank: number,
    }
}

/// A shell script as an engine.
pub fn script(number: u32, text: &str) -> RankStart {
    RankStart {
        rank: rank(number),
        argv: ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
        env: BTreeMap::new(),
        needs: Vec::new(),
        ports: Vec::new(),
        files: Vec::new(),
        key_file: None,
        log_limit: Bytes::mib(1),
    }
}

/// The simulated NVML library, which cargo builds before these tests.
pub fn nvml_sim() -> PathBuf {
    let beside = std::env::current_exe().unwrap();
    let library = beside.parent().unwrap().join("libnvidia_ml.so");
    assert!(library.exists(), "{} is missing: cargo build -p nvml-sim", library.display());
    library
}

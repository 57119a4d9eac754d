//! Follows a real agent by whole samples and changes, as a controller does.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use gpudeck::wire::packed::read_line;
use gpudeck::wire::{FromAgent, Gpu, HostSample, Request, ToAgent};

use super::scenes::{Scene, nvml_sim};

const LONG: Duration = Duration::from_secs(60);

pub struct Follower {
    child: Child,
    lines: Receiver<String>,
    at: u64,
    pub sample: Option<Arc<HostSample>>,
    pub whole_bytes: usize,
    pub change_bytes: Vec<usize>,
    state_dir: Option<tempfile::TempDir>,
}

impl Follower {
    pub fn start(scene: &Scene, looked_at: bool) -> Self {
        Self::start_every(scene, 200, looked_at)
    }

    pub fn start_every(scene: &Scene, interval_ms: u64, looked_at: bool) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), scene, interval_ms, looked_at)
    }

    /// Ends this agent and starts another one on its state.
    pub fn again(mut self, scene: &Scene, interval_ms: u64) -> Self {
        let state_dir = self.state_dir.take().unwrap();
        drop(self);
        Self::start_in(state_dir, scene, interval_ms, false)
    }

    /// Where the agent keeps its state.
    pub fn state_dir(&self) -> &std::path::Path {
        self.state_dir.as_ref().unwrap().path()
    }

    fn start_in(
        state_dir: tempfile::TempDir,
        scene: &Scene,
        interval_ms: u64,
        looked_at: bool,
    ) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gpudeck"))
            .args(["agent", "--state-dir"])
            .arg(state_dir.path())
            .env("GPUDECK_NVML", nvml_sim())
            .env("GPUDECK_SCENARIO", scene.path())
            .env("GPUDECK_SYSFS", scene.sysfs())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut follower = Self {
            child,
            lines,
            at: 0,
            sample: None,
            whole_bytes: 0,
            change_bytes: Vec::new(),
            state_dir: Some(state_dir),
        };
        follower.follow(interval_ms, looked_at);
        follower
    }

    /// Follows anew: a whole sample now, changes after it.
    pub fn follow(&mut self, interval_ms: u64, looked_at: bool) {
        self.ask(Request::Follow { interval_ms, looked_at, packed: false });
    }

    /// The same, by somebody who can read packed lines.
    pub fn follow_packed(&mut self, interval_ms: u64) {
        self.ask(Request::Follow { interval_ms, looked_at: false, packed: true });
    }

    fn ask(&mut self, request: Request) {
        let line = serde_json::to_string(&ToAgent { id: 1, request }).unwrap();
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The processes that the agent has started and that still run (a zombie does not).
    pub fn children(&self) -> Vec<u32> {
        let of = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let mut words = stat.rsplit(") ").next().unwrap_or_default().split(' ');
            let state = words.next();
            let parent = words.next().and_then(|word| word.parse::<u32>().ok());
            state != Some("Z") && parent == Some(self.child.id())
        };
        let names = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(of).collect()
    }

    /// The one that asks the driver, once there is one.
    pub fn child(&self) -> u32 {
        let deadline = Instant::now() + LONG;
        loop {
            match self.children().as_slice() {
                [] => assert!(Instant::now() < deadline, "nobody asks the driver"),
                [child] => return *child,
                more => panic!("more than one process asks the driver: {more:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until this process is no running child of the agent any more.
    pub fn until_ended(&self, child: u32) {
        let deadline = Instant::now() + LONG;
        while self.children().contains(&child) {
            assert!(Instant::now() < deadline, "process {child} was not ended");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn take(&mut self, line: &str) {
        let sample: Arc<HostSample> = match read_line(line.as_bytes()).unwrap() {
            FromAgent::Sample(sample) => {
                self.whole_bytes = line.len() + 1;
                Arc::from(sample)
            }
            FromAgent::Change { since_ms, change } => {
                self.change_bytes.push(line.len() + 1);
                assert_eq!(since_ms, self.at, "a change of another sample");
                let mut sample = self.sample.take().unwrap();
                change.apply(&mut sample).unwrap();
                sample
            }
            _ => return,
        };
        self.at = sample.monotonic_ms;
        self.sample = Some(sample);
    }

    /// Reads on until a sample shows it.
    pub fn wait<T>(&mut self, what: &str, mut found: impl FnMut(&HostSample) -> Option<T>) -> T {
        let deadline = Instant::now() + LONG;
        loop {
            if let Some(found) = self.sample.as_deref().and_then(&mut found) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("did not come: {what}; the last was {:?}", self.sample);
            };
            self.take(&line);
        }
    }

    pub fn gpus(&mut self, count: usize) -> Vec<Gpu> {
        self.wait("the GPUs", |s| {
            let gpus = s.gpus.list();
            (gpus.len() == count).then(|| gpus.to_vec())
        })
    }

    /// Reads on until so many changes have come.
    pub fn wait_lines(&mut self, count: usize) {
        while self.change_bytes.len() < count {
            let line = self.lines.recv_timeout(LONG).expect("a sample");
            self.take(&line);
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

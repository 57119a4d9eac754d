//! What the agent asks for GPU values: one task that owns the source, reads when asked, and
//! answers in bounded time whatever the driver does.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::child::SampleLine;
use super::played::PlayedSource;
use super::{DriverVersions, GpuSource};
use crate::wire::{Gpus, LineReader};

/// A driver that has not answered for so long hangs.
pub const WATCHDOG: Duration = Duration::from_secs(3);

/// A driver without persistence mode initialises every GPU when it is first asked; only after so
/// long is a child killed that has not answered yet.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

/// A host without a driver is asked again after so long: one may have been loaded.
const NONE_AGAIN: Duration = Duration::from_mins(1);

const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Killed children that do not go away (stuck in the kernel): no more are started beside them.
const MAX_STUCK: usize = 2;

/// Where the values come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// NVML in a child process.
    Nvml {
        /// The library; none: where the driver installs it.
        library: Option<PathBuf>,
        /// The library is a simulated one and plays this.
        scenario: Option<PathBuf>,
    },
    /// A scenario.
    Scenario(PathBuf),
}

impl Choice {
    /// The scenario behind the values, if they do not come from a driver.
    pub fn scenario(&self) -> Option<&Path> {
        match self {
            Self::Nvml { scenario, .. } => scenario.as_deref(),
            Self::Scenario(path) => Some(path),
        }
    }
}

/// The GPUs of this host. Ends its child when dropped.
#[derive(Debug)]
pub struct GpuMonitor {
    ask: mpsc::Sender<oneshot::Sender<Gpus>>,
    versions: watch::Receiver<DriverVersions>,
    task: JoinHandle<()>,
}

impl GpuMonitor {
    /// Starts the task; `program` is the binary the child is started from.
    pub fn start(choice: &Choice, program: &Path) -> Self {
        let (ask, asked) = mpsc::channel(64);
        let (told, versions) = watch::channel(DriverVersions::default());
        let source = match choice {
            Choice::Scenario(path) => {
                Source::Played { source: PlayedSource::open(path), hung_since: None }
            }
            Choice::Nvml { library, scenario } => Source::Child(Box::new(ChildSource::new(
                program.to_owned(),
                library.clone(),
                scenario.clone(),
            ))),
        };
        let task = tokio::spawn(run(source, asked, told));
        Self { ask, versions, task }
    }

    /// A fresh reading: begun after this call. Answers after [`WATCHDOG`] at the latest (and a
    /// little), with [`Gpus::Hung`] if the driver does not.
    pub async fn read(&self) -> Gpus {
        let (tell, told) = oneshot::channel();
        if self.ask.send(tell).await.is_err() {
            return Gpus::None { why: "the agent is ending".to_owned() };
        }
        told.await.unwrap_or_else(|_| Gpus::None { why: "the agent is ending".to_owned() })
    }

    /// Versions of the driver, as far as it has answered.
    pub fn versions(&self) -> DriverVersions {
        self.versions.borrow().clone()
    }
}

impl Drop for GpuMonitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    mut source: Source,
    mut asked: mpsc::Receiver<oneshot::Sender<Gpus>>,
    versions: watch::Sender<DriverVersions>,
) {
    while let Some(first) = asked.recv().await {
        // Everybody who asked before this reading begins gets it.
        let mut waiting = vec![first];
        while let Ok(next) = asked.try_recv() {
            waiting.push(next);
        }
        waiting.retain(|w| !w.is_closed());
        if waiting.is_empty() {
            continue;
        }
        let (gpus, seen) = source.read().await;
        if let Some(seen) = seen {
            versions.send_if_modified(|known| {
                let changed = *known != seen;
                *known = seen;
                changed
            });
        }
        for waiter in waiting {
            let _ = waiter.send(gpus.clone());
        }
    }
}

#[derive(Debug)]
enum Source {
    Played { source: PlayedSource, hung_since: Option<Instant> },
    Child(Box<ChildSource>),
}

impl Source {
    async fn read(&mut self) -> (Gpus, Option<DriverVersions>) {
        match self {
            Self::Child(child) => child.read().await,
            Self::Played { source, hung_since } => {
                if source.hangs() {
                    let since = hung_since.get_or_insert_with(Instant::now);
                    return (hung(*since), None);
                }
                *hung_since = None;
                (source.read(), Some(source.versions()))
            }
        }
    }
}

fn hung(since: Instant) -> Gpus {
    Gpus::Hung { for_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX) }
}

/// NVML in a child process.
#[derive(Debug)]
struct ChildSource {
    program: PathBuf,
    library: Option<PathBuf>,
    scenario: Option<PathBuf>,
    running: Option<Running>,
    /// No GPUs, and since when that is known.
    none: Option<(Gpus, Instant)>,
    /// The driver has not answered since.
    hung_since: Option<Instant>,
    not_before: Instant,
    backoff: Duration,
    stuck: Vec<Child>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: LineReader<BufReader<ChildStdout>>,
    /// Asked and not answered since.
    pending: Option<Instant>,
    has_answered: bool,
}

enum Answer {
    Line(Box<SampleLine>),
    Ended,
    Late,
}

impl Running {
    fn start(
        program: &Path,
        library: Option<&Path>,
        scenario: Option<&Path>,
    ) -> std::io::Result<Self> {
        let mut command = Command::new(program);
        command.args(["agent", "sample"]);
        if let Some(library) = library {
            command.arg("--library").arg(library);
        }
        if let Some(scenario) = scenario {
            command.env("GPUDECK_SCENARIO", scenario);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let no_pipe = || std::io::Error::other("no pipe");
        let stdin = child.stdin.take().ok_or_else(no_pipe)?;
        let stdout = child.stdout.take().ok_or_else(no_pipe)?;
        let lines = LineReader::new(BufReader::new(stdout));
        Ok(Self { child, stdin, lines, pending: None, has_answered: false })
    }

    async fn ask(&mut self) -> Answer {
        if self.pending.is_none() {
            if self.stdin.write_all(b"\n").await.is_err() {
                return Answer::Ended;
            }
            self.pending = Some(Instant::now());
        }
        let asked = self.pending.unwrap_or_else(Instant::now);
        // Whoever asks again while the driver is overdue gets a short answer.
        let left = WATCHDOG.saturating_sub(asked.elapsed()).max(Duration::from_millis(50));
        match tokio::time::timeout(left, self.lines.next_message()).await {
            Err(_) => Answer::Late,
            Ok(Ok(Some(line))) => {
                self.pending = None;
                self.has_answered = true;
                Answer::Line(Box::new(line))
            }
            Ok(Ok(None) | Err(_)) => Answer::Ended,
        }
    }

    fn is_given_up(&self) -> bool {
        let limit = if self.has_answered { WATCHDOG } else { FIRST_ANSWER };
        self.pending.is_some_and(|since| since.elapsed() >= limit)
    }
}

impl ChildSource {
    fn new(program: PathBuf, library: Option<PathBuf>, scenario: Option<PathBuf>) -> Self {
        Self {
            program,
            library,
            scenario,
            running: None,
            none: None,
            hung_since: None,
            not_before: Instant::now(),
            backoff: BACKOFF.0,
            stuck: Vec::new(),
        }
    }

    async fn read(&mut self) -> (Gpus, Option<DriverVersions>) {
        if let Some((none, since)) = &self.none {
            if since.elapsed() < NONE_AGAIN {
                return (none.clone(), None);
            }
            self.none = None;
        }
        self.stuck.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let Some(mut running) = self.running.take().or_else(|| self.start()) else {
            return (self.hung(), None);
        };
        match running.ask().await {
            Answer::Line(line) => {
                self.hung_since = None;
                self.backoff = BACKOFF.0;
                if matches!(line.gpus, Gpus::None { .. }) {
                    // Nothing to keep a process for; dropping it ends it.
                    self.none = Some((line.gpus.clone(), Instant::now()));
                } else {
                    self.running = Some(running);
                }
                (line.gpus, Some(line.versions))
            }
            Answer::Late => {
                self.hung_since = self.hung_since.or(running.pending);
                if running.is_given_up() {
                    self.give_up(running);
                } else {
                    self.running = Some(running);
                }
                (self.hung(), None)
            }
            Answer::Ended => {
                self.give_up(running);
                (self.hung(), None)
            }
        }
    }

    fn start(&mut self) -> Option<Running> {
        if Instant::now() < self.not_before || self.stuck.len() >= MAX_STUCK {
            return None;
        }
        let started =
            Running::start(&self.program, self.library.as_deref(), self.scenario.as_deref());
        if started.is_err() {
            self.wait_longer();
        }
        started.ok()
    }

    fn give_up(&mut self, mut running: Running) {
        let _ = running.child.start_kill();
        self.stuck.push(running.child);
        self.wait_longer();
    }

    fn wait_longer(&mut self) {
        self.not_before = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
    }

    fn hung(&mut self) -> Gpus {
        hung(*self.hung_since.get_or_insert_with(Instant::now))
    }
}

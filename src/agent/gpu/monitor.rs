//! What the agent asks for GPU values: one task that owns the source, reads when asked, and
//! answers in bounded time whatever the driver does.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::child::{Before, ChildLine, SampleLine, ask_line, known_line};
use super::patience::{FIRST, FIRST_AGAIN, Patience};
use super::played::PlayedSource;
use super::roll::{self, Roll};
use super::xids::{self, XidTable};
use super::{DriverVersions, GpuSource, Want};
use crate::agent::process;
use crate::base::text::clean;
use crate::wire::{Gpu, GpuVendor, Gpus, LineReader};

/// An overdue child has at least so long to be heard.
const HEAR: Duration = Duration::from_millis(50);

/// A host without a driver is asked again after so long: one may have been loaded.
const NONE_AGAIN: Duration = Duration::from_mins(1);

/// While grave Xid errors are known, their file is looked for so often.
const LOOK_FOR_FILE: Duration = Duration::from_secs(2);

/// Xid errors that could not be kept are written again after so long.
const KEEP_AGAIN: Duration = Duration::from_mins(1);

/// A child that has closed its output ends within that.
const LAST_MOMENT: Duration = Duration::from_millis(500);

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
        /// Where the kernel and AMD's driver have their files; none: `/sys`.
        sysfs: Option<PathBuf>,
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

/// Who asks, and for what.
type Asked = (Want, oneshot::Sender<Gpus>);

/// The GPUs of this host. Ends its child when dropped.
#[derive(Debug)]
pub struct GpuMonitor {
    ask: mpsc::Sender<Asked>,
    versions: watch::Receiver<DriverVersions>,
    trouble: watch::Receiver<Option<String>>,
    happened: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl GpuMonitor {
    /// Starts the task; `program` is the binary the child is started from, `state_dir` where Xid errors
    /// are kept, and which GPUs were there.
    pub fn start(choice: &Choice, program: &Path, state_dir: &Path) -> Self {
        let (ask, asked) = mpsc::channel(64);
        let (told, versions) = watch::channel(DriverVersions::default());
        let source = match choice {
            Choice::Scenario(path) => {
                Source::Played { source: Box::new(PlayedSource::open(path)), hung_since: None }
            }
            Choice::Nvml { library, scenario, sysfs } => Source::Child(Box::new(ChildSource::new(
                Start {
                    program: program.to_owned(),
                    library: library.clone(),
                    scenario: scenario.clone(),
                    sysfs: sysfs.clone(),
                },
                state_dir,
            ))),
        };
        let (tell, happened) = watch::channel(0);
        let (tell_trouble, trouble) = watch::channel(None);
        let task = tokio::spawn(run(source, asked, told, tell_trouble, tell));
        Self { ask, versions, trouble, happened, task }
    }

    /// A fresh reading: begun after this call. Answers after [`FIRST`] at the latest (and a
    /// little), with [`Gpus::Hung`] if the driver does not.
    pub async fn read(&self, want: Want) -> Gpus {
        let (tell, told) = oneshot::channel();
        if self.ask.send((want, tell)).await.is_err() {
            return Gpus::None { why: "the agent is ending".to_owned() };
        }
        told.await.unwrap_or_else(|_| Gpus::None { why: "the agent is ending".to_owned() })
    }

    /// Asks for a fresh reading without waiting for it; none when too many wait already.
    pub fn ask(&self, want: Want) -> Option<oneshot::Receiver<Gpus>> {
        let (tell, told) = oneshot::channel();
        self.ask.try_send((want, tell)).ok().map(|()| told)
    }

    /// Changes whenever the driver says that something has happened to a GPU.
    pub fn happened(&self) -> watch::Receiver<u64> {
        self.happened.clone()
    }

    /// Why GPUs beside those of the last reading cannot be read, if there are any; of a reading that is
    /// [`Gpus::Hung`] what has happened, if it is not the driver that is silent.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
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
    mut asked: mpsc::Receiver<Asked>,
    versions: watch::Sender<DriverVersions>,
    trouble: watch::Sender<Option<String>>,
    happened: watch::Sender<u64>,
) {
    loop {
        let (mut want, first) = tokio::select! {
            asked = asked.recv() => match asked {
                Some(asked) => asked,
                None => return,
            },
            () = source.happened() => {
                happened.send_modify(|count| *count += 1);
                continue;
            }
        };
        // Everybody who asked before this reading begins gets it.
        let mut waiting = vec![first];
        while let Ok((also, next)) = asked.try_recv() {
            want = want.max(also);
            waiting.push(next);
        }
        waiting.retain(|w| !w.is_closed());
        if waiting.is_empty() {
            continue;
        }
        let (gpus, seen) = source.read(want).await;
        if let Some(seen) = seen {
            versions.send_if_modified(|known| {
                let changed = *known != seen;
                *known = seen;
                changed
            });
        }
        trouble.send_replace(source.trouble());
        for waiter in waiting {
            let _ = waiter.send(gpus.clone());
        }
        if source.take_noted() {
            happened.send_modify(|count| *count += 1);
        }
    }
}

/// Keeps grave Xid errors in a file: written when there is another one, and never else.
async fn keep(path: PathBuf, mut grave: watch::Receiver<XidTable>) {
    while grave.changed().await.is_ok() {
        loop {
            let (now, path) = (grave.borrow_and_update().clone(), path.clone());
            let write = move || now.keep(&path, process::boot_id(), process::since_boot_ms());
            let kept = matches!(tokio::task::spawn_blocking(write).await, Ok(Ok(())));
            if kept || grave.has_changed().is_err() {
                break;
            }
            tokio::time::sleep(KEEP_AGAIN).await;
        }
    }
}

#[derive(Debug)]
enum Source {
    Played { source: Box<PlayedSource>, hung_since: Option<Instant> },
    Child(Box<ChildSource>),
}

impl Source {
    async fn read(&mut self, want: Want) -> (Gpus, Option<DriverVersions>) {
        match self {
            Self::Child(child) => child.read(want).await,
            Self::Played { source, hung_since } => {
                if source.hangs() {
                    let since = hung_since.get_or_insert_with(Instant::now);
                    return (hung(*since), None);
                }
                *hung_since = None;
                (source.read(want), Some(source.versions()))
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        match self {
            Self::Child(child) => child.trouble.clone(),
            Self::Played { source, .. } => source.trouble(),
        }
    }

    /// Comes back when the driver says that something has happened. May be dropped at any time.
    async fn happened(&mut self) {
        match self {
            Self::Child(child) => child.happened().await,
            Self::Played { .. } => std::future::pending().await,
        }
    }

    /// Something happened while a reading was under way.
    fn take_noted(&mut self) -> bool {
        match self {
            Self::Child(child) => child.take_noted(),
            Self::Played { .. } => false,
        }
    }
}

fn hung(since: Instant) -> Gpus {
    Gpus::Hung { for_ms: u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX) }
}

/// How the child is started.
#[derive(Debug)]
struct Start {
    program: PathBuf,
    library: Option<PathBuf>,
    scenario: Option<PathBuf>,
    sysfs: Option<PathBuf>,
}

/// The drivers in a child process.
#[derive(Debug)]
struct ChildSource {
    start: Start,
    running: Option<Running>,
    /// No GPUs, and since when that is known.
    none: Option<(Gpus, Instant)>,
    /// The driver has not answered since.
    hung_since: Option<Instant>,
    /// Why other GPUs than those of the last reading cannot be read, or how the child ended.
    trouble: Option<String>,
    /// Something happened to a GPU that nobody was told of yet.
    noted: bool,
    /// All Xid errors that a child has told of, and those that were kept.
    xids: XidTable,
    /// The grave ones, for who keeps them.
    grave: watch::Sender<XidTable>,
    /// Their file; it was there at the last look, which was then.
    kept: PathBuf,
    was_kept: bool,
    /// The GPUs that any child has listed, and their file.
    roll: Roll,
    roll_file: PathBuf,
    looked_for: Instant,
    not_before: Instant,
    backoff: Duration,
    /// The driver did not begin in time when it was last begun with.
    begins_slowly: bool,
    /// What the last child knew of how long answers take.
    patience: Patience,
    /// A child ended by itself, or could not be started, and none has answered since.
    has_ended: bool,
    stuck: Vec<Child>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: LineReader<BufReader<ChildStdout>>,
    /// What it is to be told before it is asked.
    to_tell: Option<Vec<u8>>,
    /// Asked and not answered since.
    pending: Option<Instant>,
    /// Looks of its own accord that have begun and not ended, and when.
    looks: Vec<(GpuVendor, Instant)>,
    /// How long its first answer may take, and how long it took.
    first: Duration,
    began_after: Option<Duration>,
    /// How long the others may take.
    patience: Patience,
}

enum Answer {
    Line(Box<SampleLine>),
    Ended,
    Late,
}

impl Running {
    fn start(
        start: &Start,
        before: &Before,
        first: Duration,
        patience: Patience,
    ) -> std::io::Result<Self> {
        let mut command = Command::new(process::startable(&start.program));
        command.arg0(&start.program).args(["agent", "sample"]);
        if let Some(library) = &start.library {
            command.arg("--library").arg(library);
        }
        if let Some(sysfs) = &start.sysfs {
            command.arg("--sysfs").arg(sysfs);
        }
        if let Some(scenario) = &start.scenario {
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
        let to_tell = Some(known_line(before));
        let (pending, looks) = (None, Vec::new());
        let began_after = None;
        Ok(Self { child, stdin, lines, to_tell, pending, looks, first, began_after, patience })
    }

    /// Asks, and waits as long as may be; what else is said meanwhile goes to `heard`.
    async fn ask(&mut self, want: Want, heard: &mut Option<XidTable>) -> Answer {
        if let Some(known) = self.to_tell.take()
            && self.stdin.write_all(&known).await.is_err()
        {
            return Answer::Ended;
        }
        if self.pending.is_none() {
            if self.stdin.write_all(ask_line(want)).await.is_err() {
                return Answer::Ended;
            }
            self.pending = Some(Instant::now());
        }
        let asked = self.pending.unwrap_or_else(Instant::now);
        // Whoever asks again while the driver is overdue gets a short answer.
        let left = self.limit().saturating_sub(asked.elapsed()).max(HEAR);
        let deadline = tokio::time::Instant::now() + left;
        loop {
            let until = self.look_is_due().map_or(deadline, |due| deadline.min(due));
            match tokio::time::timeout_at(until, self.lines.next_message()).await {
                Err(_) => return Answer::Late,
                Ok(Ok(Some(ChildLine::Sample(line)))) => {
                    self.answered();
                    return Answer::Line(line);
                }
                Ok(Ok(Some(ChildLine::Changed { xids }))) => *heard = Some(xids),
                Ok(Ok(Some(ChildLine::Looking { vendor, begins }))) => self.looks(vendor, begins),
                Ok(Ok(None) | Err(_)) => return Answer::Ended,
            }
        }
    }

    fn answered(&mut self) {
        let took = self.pending.take().map(|asked| asked.elapsed());
        if self.began_after.is_some() {
            let now = Instant::now();
            if let Some(took) = took {
                self.patience.answered(took, now);
            }
        } else {
            self.began_after = took;
            // A look that began with the driver had to wait for it as long as the answer.
            self.looks.iter_mut().for_each(|(_, since)| *since = Instant::now());
        }
    }

    /// After so long without an answer the driver hangs.
    fn limit(&self) -> Duration {
        if self.began_after.is_some() { self.patience.limit() } else { FIRST }
    }

    /// A look begins, or has ended.
    fn looks(&mut self, vendor: GpuVendor, begins: bool) {
        self.looks.retain(|(of, _)| *of != vendor);
        if begins {
            self.looks.push((vendor, Instant::now()));
        }
    }

    /// When the oldest look that goes on has begun; none while the driver begins, which may take longer.
    fn looks_since(&self) -> Option<Instant> {
        self.began_after?;
        self.looks.iter().map(|(_, since)| *since).min()
    }

    /// It is given up.
    fn look_is_late(&self) -> bool {
        self.looks_since().is_some_and(|since| since.elapsed() >= self.limit())
    }

    /// When it will be. What was said while this process stood still is heard before.
    fn look_is_due(&self) -> Option<tokio::time::Instant> {
        let since = self.looks_since()?;
        Some((since + self.limit()).max(Instant::now() + HEAR).into())
    }

    /// How a child ended that says nothing more.
    async fn how_it_ended(&mut self) -> Option<ExitStatus> {
        tokio::time::timeout(LAST_MOMENT, self.child.wait()).await.ok()?.ok()
    }

    fn is_given_up(&self) -> bool {
        let limit = if self.began_after.is_some() { self.limit() } else { self.first };
        self.pending.is_some_and(|since| since.elapsed() >= limit) || self.look_is_late()
    }
}

impl ChildSource {
    fn new(start: Start, state_dir: &Path) -> Self {
        let (kept, roll_file) = (state_dir.join(xids::FILE), state_dir.join(roll::FILE));
        let xids = XidTable::load(&kept, process::boot_id(), process::since_boot_ms());
        let (grave, to_keep) = watch::channel(xids.grave());
        // It ends with this source, after the last one is written.
        tokio::spawn(keep(kept.clone(), to_keep));
        Self {
            kept,
            was_kept: !xids.is_empty(),
            looked_for: Instant::now(),
            roll: Roll::load(&roll_file, process::boot_id()),
            roll_file,
            xids,
            grave,
            start,
            running: None,
            none: None,
            hung_since: None,
            trouble: None,
            noted: false,
            not_before: Instant::now(),
            backoff: BACKOFF.0,
            begins_slowly: false,
            patience: Patience::default(),
            has_ended: false,
            stuck: Vec::new(),
        }
    }

    /// Waits for what the child says of its own accord.
    async fn happened(&mut self) {
        loop {
            let Some(running) = &mut self.running else { std::future::pending().await };
            let next = match running.look_is_due() {
                Some(due) => tokio::time::timeout_at(due, running.lines.next_message()).await,
                None => Ok(running.lines.next_message().await),
            };
            let Ok(next) = next else {
                // Everybody asks anew, and is told since when.
                self.late();
                return;
            };
            match next {
                Ok(Some(ChildLine::Looking { vendor, begins })) => running.looks(vendor, begins),
                Ok(Some(ChildLine::Changed { xids })) => {
                    self.learn(&xids);
                    return;
                }
                Ok(Some(ChildLine::Sample(_))) => {
                    // The late answer to a question that nobody waits for any more.
                    running.answered();
                }
                Ok(None) | Err(_) => {
                    // May be dropped here: the next reading finds its end again.
                    let how = running.how_it_ended().await;
                    if let Some(running) = self.running.take() {
                        self.ended(running, how);
                    }
                }
            }
        }
    }

    async fn read(&mut self, want: Want) -> (Gpus, Option<DriverVersions>) {
        if let Some((none, since)) = &self.none {
            if since.elapsed() < NONE_AGAIN {
                return (none.clone(), None);
            }
            self.none = None;
        }
        self.stuck.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        self.forget_if_removed();
        loop {
            let Some(mut running) = self.running.take().or_else(|| self.start()) else {
                return (self.hung(), None);
            };
            let mut heard = None;
            let answer = running.ask(want, &mut heard).await;
            if let Some(xids) = heard {
                self.noted = true;
                self.learn(&xids);
            }
            match answer {
                Answer::Line(line) => return self.answered(running, *line),
                Answer::Late => {
                    self.running = Some(running);
                    self.late();
                    return (self.hung(), None);
                }
                Answer::Ended => {
                    let how = running.how_it_ended().await;
                    if !self.ended(running, how) {
                        return (self.hung(), None);
                    }
                }
            }
        }
    }

    fn answered(&mut self, running: Running, line: SampleLine) -> (Gpus, Option<DriverVersions>) {
        self.begins_slowly = running.began_after.is_some_and(|after| after >= FIRST);
        self.has_ended = false;
        self.hung_since = None;
        self.backoff = BACKOFF.0;
        self.trouble = line.trouble;
        self.remember(line.gpus.list());
        if matches!(line.gpus, Gpus::None { .. }) {
            // Nothing to keep a process for; dropping it ends it.
            self.none = Some((line.gpus.clone(), Instant::now()));
        } else {
            self.running = Some(running);
        }
        (line.gpus, Some(line.versions))
    }

    /// Who is there is written down when it changes: mostly once, after the host was started.
    fn remember(&mut self, gpus: &[Gpu]) {
        if !self.roll.learn(gpus) {
            return;
        }
        let (roll, file) = (self.roll.clone(), self.roll_file.clone());
        // What cannot be written now (a full disk) is known to this agent, and written by the next.
        tokio::task::spawn_blocking(move || drop(roll.keep(&file, process::boot_id())));
    }

    fn start(&mut self) -> Option<Running> {
        if Instant::now() < self.not_before || self.stuck.len() >= MAX_STUCK {
            return None;
        }
        let first = if self.begins_slowly { FIRST_AGAIN } else { FIRST };
        let before = Before { xids: self.xids.clone(), gpus: self.roll.clone() };
        match Running::start(&self.start, &before, first, self.patience) {
            Ok(running) => Some(running),
            Err(error) => {
                let words = format!("the process that asks the driver cannot be started: {error}");
                self.trouble = Some(clean(&words, 200));
                self.has_ended = true;
                self.wait_longer();
                None
            }
        }
    }

    /// A child has ended by itself; whether the next one may be started at once: the first time it may.
    fn ended(&mut self, running: Running, how: Option<ExitStatus>) -> bool {
        let how = how.map_or_else(|| "its output is closed".to_owned(), |how| how.to_string());
        let words = format!("the process that asks the driver has ended ({how})");
        self.trouble = Some(clean(&words, 200));
        let again = !std::mem::replace(&mut self.has_ended, true);
        self.put_away(running);
        if !again {
            self.wait_longer();
        }
        again
    }

    /// What a child has heard from the driver outlives it.
    fn learn(&mut self, xids: &XidTable) {
        self.xids.learn(xids);
        let now = self.xids.grave();
        self.grave.send_if_modified(|grave| {
            let changed = *grave != now;
            *grave = now;
            changed
        });
    }

    /// A GPU that was reset is good again, of which the driver says nothing: whoever did it removes the file.
    fn forget_if_removed(&mut self) {
        if self.looked_for.elapsed() < LOOK_FOR_FILE || self.grave.borrow().is_empty() {
            return;
        }
        self.looked_for = Instant::now();
        match self.kept.try_exists() {
            Ok(true) => self.was_kept = true,
            Ok(false) if std::mem::take(&mut self.was_kept) => {
                self.xids = XidTable::default();
                self.grave.send_if_modified(|grave| {
                    *grave = XidTable::default();
                    false
                });
                // The child knows them, too.
                if let Some(mut running) = self.running.take() {
                    let _ = running.child.start_kill();
                    self.stuck.push(running.child);
                }
            }
            _ => {}
        }
    }

    fn take_noted(&mut self) -> bool {
        std::mem::take(&mut self.noted)
    }

    /// The driver does not answer the running child: that is a hung driver, and a child that is given up goes.
    fn late(&mut self) {
        let Some(running) = self.running.take() else { return };
        self.trouble = None;
        let since = running.pending.into_iter().chain(running.looks_since()).min();
        self.hung_since = self.hung_since.or(since);
        if running.is_given_up() {
            self.begins_slowly |= running.began_after.is_none();
            self.give_up(running);
        } else {
            self.running = Some(running);
        }
    }

    fn give_up(&mut self, running: Running) {
        self.put_away(running);
        self.wait_longer();
    }

    fn put_away(&mut self, mut running: Running) {
        // The next child asks the same driver; what this one has waited for in vain was slow at least.
        self.patience = running.patience;
        if let (Some(asked), Some(_)) = (running.pending, running.began_after) {
            self.patience.answered(asked.elapsed(), Instant::now());
        }
        let _ = running.child.start_kill();
        if !matches!(running.child.try_wait(), Ok(Some(_))) {
            self.stuck.push(running.child);
        }
    }

    fn wait_longer(&mut self) {
        self.not_before = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
    }

    fn hung(&mut self) -> Gpus {
        hung(*self.hung_since.get_or_insert_with(Instant::now))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    /// A monitor whose children run a script, with `$N` as the number of the child.
    fn monitor(dir: &Path, script: &str) -> GpuMonitor {
        let program = dir.join("child.sh");
        let count = "N=$(cat \"$0.n\" 2>/dev/null || echo 0); N=$((N + 1)); echo $N >\"$0.n\"";
        // Not written here: a process that another test forks just then would keep it busy.
        let written = std::process::Command::new("sh")
            .args(["-c", "printf %s \"$1\" >\"$0\" && chmod 700 \"$0\""])
            .arg(&program)
            .arg(format!("#!/bin/sh\n{count}\n{script}\n"))
            .status();
        assert!(written.unwrap().success());
        start(dir, &program)
    }

    fn start(dir: &Path, program: &Path) -> GpuMonitor {
        let choice = Choice::Nvml { library: None, scenario: None, sysfs: None };
        GpuMonitor::start(&choice, program, dir)
    }

    const ANSWER: &str = "read known; read asked; \
        echo '{\"sample\":{\"gpus\":{\"some\":[]},\"versions\":{\"driver\":null,\"cuda\":null}}}'; read more";

    #[tokio::test]
    async fn a_child_that_crashes_is_started_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("[ $N = 1 ] && kill -SEGV $$; {ANSWER}");
        let monitor = monitor(dir.path(), &script);
        assert_eq!(monitor.read(Want::Due).await, Gpus::Some(Vec::new()));
        assert_eq!(monitor.trouble(), None);
    }

    #[tokio::test]
    async fn a_child_that_crashes_again_and_again_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let monitor = monitor(dir.path(), "kill -SEGV $$");
        let gpus = monitor.read(Want::Due).await;
        assert!(matches!(gpus, Gpus::Hung { .. }), "{gpus:?}");
        let trouble = monitor.trouble().unwrap();
        assert!(trouble.contains("has ended (signal: 11"), "{trouble}");
        // The third one waits its turn.
        let count = std::fs::read_to_string(dir.path().join("child.sh.n")).unwrap();
        assert_eq!(count.trim(), "2");
    }

    /// On a host that nobody looks at a reading is due every five seconds only.
    #[tokio::test]
    async fn a_look_that_does_not_come_back_is_a_hung_driver_though_nobody_asks() {
        let dir = tempfile::tempdir().unwrap();
        let looking = |begins| {
            format!("echo '{{\"looking\":{{\"vendor\":\"nvidia\",\"begins\":{begins}}}}}'")
        };
        let answer = ANSWER.strip_suffix("; read more").unwrap();
        // A look that ends, and one that does not; the next child's driver is well again.
        let script = format!(
            "{answer}; [ $N = 1 ] && {{ {}; {}; sleep 1; {}; sleep 60; }}; read more",
            looking(true),
            looking(false),
            looking(true)
        );
        let monitor = monitor(dir.path(), &script);
        assert_eq!(monitor.read(Want::Due).await, Gpus::Some(Vec::new()));
        let mut happened = monitor.happened();
        let begun = Instant::now();
        let told = tokio::time::timeout(Duration::from_secs(8), happened.changed()).await;
        assert!(told.is_ok(), "nobody noticed");
        let after = begun.elapsed();
        // A second until it begins, and the watchdog's time.
        assert!(after >= Duration::from_millis(2_800), "{after:?}");
        let gpus = monitor.read(Want::Fresh).await;
        assert!(matches!(gpus, Gpus::Hung { for_ms: 1_800.. }), "{gpus:?}");
        assert_eq!(monitor.trouble(), None);
        let deadline = Instant::now() + Duration::from_secs(20);
        while monitor.read(Want::Due).await != Gpus::Some(Vec::new()) {
            assert!(Instant::now() < deadline, "it is never asked again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test]
    async fn a_child_that_cannot_be_started_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let monitor = start(dir.path(), &dir.path().join("nowhere"));
        let gpus = monitor.read(Want::Due).await;
        assert!(matches!(gpus, Gpus::Hung { .. }), "{gpus:?}");
        let trouble = monitor.trouble().unwrap();
        assert!(trouble.contains("cannot be started: No such file"), "{trouble}");
    }
}

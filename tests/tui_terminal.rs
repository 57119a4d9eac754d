//! The screen on a real terminal: tmux runs it, keys are sent, the screen is captured.
//!
//! What tmux runs is this very program, which then shows the screen on a controller in memory (see
//! `the_screen_itself`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use gpudeck::api::{
    ApiError, Bytes, Condition, DeckView, Delta, Door, ErrorKind, Forecast, Intent, IntentReply,
    LogChunk, PlanView, RankId, ReleaseNumber, ServiceName, ServiceView, Snapshot, TrafficView,
};
use gpudeck::tui::{TuiOptions, run};

/// Set for the process inside tmux: where it writes down what it was asked for.
const INSIDE: &str = "GPUDECK_TEST_TUI_INSIDE";
const DEADLINE: Duration = Duration::from_secs(20);

/// A controller with one service, in memory.
struct Memory {
    asked: PathBuf,
}

fn snapshot() -> Snapshot {
    let name: ServiceName = "chat".parse().unwrap();
    let service = ServiceView {
        name: name.clone(),
        condition: Condition::Serving,
        model: "tiny.gguf".to_owned(),
        engine: "llamacpp".to_owned(),
        wanted: 2,
        ready: 2,
        floor: 1,
        stable: Some(ReleaseNumber(1)),
        queued: None,
        queue_trouble: None,
        rollout: None,
        steps: Vec::new(),
        replicas: Vec::new(),
        history: Vec::new(),
        pending_change: true,
        taken_back: None,
        url: None,
        traffic: TrafficView::default(),
        trouble: None,
        progress: None,
        memory: Vec::new(),
    };
    Snapshot {
        sequence: 0,
        deck: DeckView {
            name: "lab".to_owned(),
            simulated: true,
            version: "test".to_owned(),
            controller_memory: Some(Bytes::mib(1)),
            ..DeckView::default()
        },
        hosts: BTreeMap::new(),
        services: BTreeMap::from([(name, service)]),
        questions: BTreeMap::new(),
        events: VecDeque::new(),
    }
}

fn refused() -> ApiError {
    ApiError { kind: ErrorKind::NotFound, message: "there is none here".to_owned(), hint: None }
}

#[async_trait]
impl Door for Memory {
    async fn stream(&self) -> Result<BoxStream<'static, Delta>, ApiError> {
        let first = Delta::Snapshot(Box::new(snapshot()));
        Ok(futures::stream::iter([first]).chain(futures::stream::pending()).boxed())
    }

    async fn send(&self, intent: Intent) -> Result<IntentReply, ApiError> {
        let mut file =
            std::fs::OpenOptions::new().create(true).append(true).open(&self.asked).unwrap();
        writeln!(file, "{}", serde_json::to_string(&intent).unwrap()).unwrap();
        assert!(!matches!(intent, Intent::Pause { .. } | Intent::Stop { .. }), "asked to panic");
        Ok(IntentReply::Accepted)
    }

    async fn plan(&self, service: &ServiceName) -> Result<PlanView, ApiError> {
        Ok(PlanView {
            service: service.clone(),
            nothing_to_do: false,
            behind: None,
            from: Some(ReleaseNumber(1)),
            to: ReleaseNumber(2),
            diff: "-context = 1\n+context = 2\n".to_owned(),
            replicas: Vec::new(),
            reasons: Vec::new(),
            borrows: Vec::new(),
            model: Vec::new(),
            forecast: Forecast::default(),
            steps: Vec::new(),
            total: gpudeck::api::PlanTime::default(),
            warnings: Vec::new(),
        })
    }

    async fn plan_undo(
        &self,
        service: &ServiceName,
        _: Option<ReleaseNumber>,
    ) -> Result<PlanView, ApiError> {
        self.plan(service).await
    }

    async fn diff(
        &self,
        _: &ServiceName,
        _: ReleaseNumber,
        _: ReleaseNumber,
    ) -> Result<String, ApiError> {
        Err(refused())
    }

    async fn log(&self, _: &RankId, _: Option<u64>, _: u32) -> Result<LogChunk, ApiError> {
        Err(refused())
    }
}

/// Not a test of its own: what the others start inside tmux.
#[test]
fn the_screen_itself() {
    let Some(asked) = std::env::var_os(INSIDE) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let door = Arc::new(Memory { asked: asked.into() });
    let result = runtime.block_on(run(door, TuiOptions::from_env(false), None));
    if let Err(error) = result {
        println!("left with: {error}");
        std::process::exit(3);
    }
    println!("left in good order");
}

/// A tmux server of our own with a shell in it.
struct Tmux {
    socket: String,
    folder: tempfile::TempDir,
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = self.command(&["kill-server"]);
    }
}

impl Tmux {
    /// None where tmux is missing and may be.
    fn start(name: &str, size: (u16, u16)) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            assert!(std::env::var("GPUDECK_LAB").as_deref() != Ok("1"), "tmux is not installed");
            println!("skipped: needs tmux");
            return None;
        }
        let socket = format!("gpudeck-{name}-{}", std::process::id());
        let tmux = Self { socket, folder: tempfile::tempdir().unwrap() };
        let (width, height) = (size.0.to_string(), size.1.to_string());
        let shell = "env RUST_BACKTRACE=0 PS1='prompt> ' LC_ALL=C.UTF-8 bash --norc --noprofile";
        let session = ["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, shell];
        let out = tmux.command(&session).unwrap();
        assert!(out.status.success(), "{out:?}");
        tmux.wait_for("prompt>");
        Some(tmux)
    }

    fn asked(&self) -> PathBuf {
        self.folder.path().join("asked")
    }

    fn command(&self, words: &[&str]) -> std::io::Result<Output> {
        Command::new("tmux").args(["-L", &self.socket]).args(words).output()
    }

    fn keys(&self, keys: &[&str]) {
        let words = [&["send-keys"][..], keys].concat();
        assert!(self.command(&words).unwrap().status.success());
    }

    /// Starts the screen from the shell.
    fn screen(&self) {
        let program = std::env::current_exe().unwrap();
        let line = format!(
            "{INSIDE}={} {} --exact the_screen_itself --nocapture",
            self.asked().display(),
            program.display()
        );
        self.keys(&[&line, "Enter"]);
        self.wait_for("SIMULATED");
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.command(&["capture-pane", "-p"]).unwrap().stdout).into_owned()
    }

    fn wait_for(&self, text: &str) -> String {
        self.wait_until(|screen| screen.contains(text), text)
    }

    fn wait_until(&self, done: impl Fn(&str) -> bool, what: &str) -> String {
        let began = Instant::now();
        loop {
            let screen = self.shown();
            if done(&screen) {
                return screen;
            }
            assert!(began.elapsed() < DEADLINE, "never saw {what}:\n{screen}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_asked(&self, text: &str) {
        let began = Instant::now();
        while !read(&self.asked()).contains(text) {
            assert!(began.elapsed() < DEADLINE, "was not asked for {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the terminal is as the shell left it: not the other screen, echo on.
    fn wait_restored(&self) {
        let began = Instant::now();
        loop {
            let words = ["display-message", "-p", "#{alternate_on} #{cursor_flag}"];
            let out = self.command(&words).unwrap();
            if String::from_utf8_lossy(&out.stdout).trim() == "0 1" {
                break;
            }
            assert!(began.elapsed() < DEADLINE, "the terminal is not given back");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.keys(&["echo typ''ed", "Enter"]);
        self.wait_until(|s| s.lines().any(|l| l.trim_end() == "typed"), "the shell's answer");
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_rollout_is_started_with_keys() {
    for size in [(80, 24), (200, 50)] {
        let Some(tmux) = Tmux::start(&format!("keys{}", size.0), size) else { return };
        tmux.screen();
        tmux.keys(&["2", "a"]);
        tmux.wait_for("context = 2");
        assert_eq!(read(&tmux.asked()), "", "nothing is asked for before it is confirmed");
        tmux.keys(&["chat", "Enter"]);
        tmux.wait_asked("\"apply\"");
        tmux.wait_for("apply chat: accepted");
        tmux.keys(&["q"]);
        tmux.wait_for("left in good order");
        tmux.wait_restored();
    }
}

#[test]
fn ctrl_z_really_suspends_and_fg_comes_back() {
    let Some(tmux) = Tmux::start("suspend", (80, 24)) else { return };
    tmux.screen();
    tmux.keys(&["C-z"]);
    tmux.wait_for("Stopped");
    tmux.wait_restored();
    tmux.keys(&["fg", "Enter"]);
    tmux.wait_for("SIMULATED");
    tmux.keys(&["2"]);
    tmux.wait_for("2/2 ≥1");
    tmux.keys(&["q"]);
    tmux.wait_for("left in good order");
    tmux.wait_restored();
}

#[test]
fn a_panic_gives_the_terminal_back_and_says_so() {
    let Some(tmux) = Tmux::start("panic", (80, 24)) else { return };
    tmux.screen();
    // The controller in memory panics when it is asked to stop a service.
    tmux.keys(&["2", "S"]);
    tmux.wait_for("Type chat to confirm");
    tmux.keys(&["chat", "Enter"]);
    tmux.wait_for("asked to panic");
    tmux.wait_for("left with");
    tmux.wait_restored();
}

#[test]
fn a_terminal_of_another_size_is_drawn_again() {
    let Some(tmux) = Tmux::start("resize", (80, 24)) else { return };
    tmux.screen();
    tmux.command(&["resize-window", "-x", "180", "-y", "45"]).unwrap();
    // Several panels at once.
    tmux.wait_until(|s| s.contains("2 Services") && s.contains("4 Events ─"), "the dashboard");
    tmux.command(&["resize-window", "-x", "30", "-y", "8"]).unwrap();
    tmux.wait_until(|s| !s.contains("4 Events ─") && s.contains("1 Fleet"), "one panel");
    tmux.keys(&["q"]);
    tmux.wait_for("prompt>");
}

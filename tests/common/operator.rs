//! An operator with a deck of the lab's hosts: commands, looks at the controller's snapshot, and clients whose
//! requests go through the gateway meanwhile.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use gpudeck::api::{Client, ServiceView};
use gpudeck::demo::{Load, LoadCounts, LoadShape};
use serde_json::Value;

use super::lab::Lab;
use super::{Finished, Gpudeck, wait_for, wait_until};

/// Longest time that any command here may take; rollouts end earlier by their own deadlines.
const LONGEST: Duration = Duration::from_mins(4);

/// The operator. Dropping it ends the deck's controller; engines end with the lab, which goes after it.
pub struct Operator {
    gpudeck: Gpudeck,
    runtime: tokio::runtime::Runtime,
    /// The hosts.
    pub lab: Lab,
    mounted: Option<PathBuf>,
}

impl Operator {
    /// A new operator whose deck names the lab's hosts.
    pub fn new(lab: Lab) -> Self {
        Self::with(lab, |_, _| ())
    }

    /// The same after something was prepared: in the deck, or in the home.
    pub fn with(lab: Lab, prepare: impl FnOnce(&Gpudeck, &Lab)) -> Self {
        // Sending a debug build to each host takes longer than most of what is tested here.
        lab.lab(&["agent", env!("CARGO_BIN_EXE_gpudeck")]);
        Self::of_new_hosts(lab, prepare)
    }

    /// The same for hosts on which no agent was yet: it is sent there.
    pub fn of_new_hosts(lab: Lab, prepare: impl FnOnce(&Gpudeck, &Lab)) -> Self {
        let gpudeck = Gpudeck::new();
        lab.deck(&gpudeck.deck());
        prepare(&gpudeck, &lab);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Self { gpudeck, runtime, lab, mounted: None }
    }

    /// Writes `services/chat.toml`.
    pub fn write_spec(&self, text: &str) {
        std::fs::write(self.gpudeck.deck().join("services/chat.toml"), text).unwrap();
    }

    /// Runs `gpudeck …` to its end.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.gpudeck.run(arguments, LONGEST)
    }

    /// Runs `gpudeck …` and expects an exit code.
    #[track_caller]
    pub fn expect(&self, arguments: &[&str], code: i32) -> Finished {
        let done = self.run(arguments);
        if done.code() != Some(code) {
            panic!("gpudeck {arguments:?}: expected exit code {code}: {done:#?}\n{}", self.story());
        }
        done
    }

    /// Runs `gpudeck … --output json` and gives what it printed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let done = self.expect(&[arguments, &["--output", "json"]].concat(), 0);
        serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e} in {done:#?}"))
    }

    /// Starts `gpudeck …` and calls `look` with the service again and again until it has ended with `code`.
    #[track_caller]
    pub fn expect_while(&self, arguments: &[&str], code: i32, mut look: impl FnMut(&ServiceView)) {
        let mut child = self.start(arguments);
        let status = wait_for("the end of the command", LONGEST, || {
            if let Some(service) = self.look() {
                look(&service);
            }
            child.0.try_wait().unwrap()
        });
        assert!(status.code() == Some(code), "gpudeck {arguments:?}: {status}\n{}", self.story());
    }

    /// Starts `gpudeck …` in the background.
    pub fn start(&self, arguments: &[&str]) -> super::Background {
        self.gpudeck.spawn(arguments)
    }

    /// The deck's folder.
    pub fn deck(&self) -> PathBuf {
        self.gpudeck.deck()
    }

    /// Where the controller keeps its files; there is one as soon as a command ran.
    pub fn state(&self) -> PathBuf {
        let decks = std::fs::read_dir(self.states()).unwrap();
        decks.flatten().next().expect("a controller ran").path()
    }

    /// The folder of the folders that controllers keep their files in.
    pub fn states(&self) -> PathBuf {
        self.gpudeck.home().join(".local/state/gpudeck")
    }

    /// What the running controller shows; none while no controller runs.
    pub fn snapshot(&self) -> Option<gpudeck::api::Snapshot> {
        let socket = self.socket()?;
        self.runtime.block_on(async {
            let looking = async { Client::connect(&socket).await?.snapshot().await };
            tokio::time::timeout(Duration::from_secs(10), looking).await.ok()?.ok()
        })
    }

    /// The service `chat` as the running controller sees it; none while no controller runs.
    pub fn look(&self) -> Option<ServiceView> {
        self.snapshot()?
            .services
            .into_iter()
            .find(|(name, _)| name.as_str() == "chat")
            .map(|(_, view)| view)
    }

    /// Waits until the service looks as described, and gives how it looks.
    #[track_caller]
    pub fn wait_until_chat(&self, what: &str, holds: impl Fn(&ServiceView) -> bool) -> ServiceView {
        let limit = Duration::from_mins(1);
        let started = std::time::Instant::now();
        loop {
            let seen = self.look();
            if let Some(view) = seen.as_ref().filter(|view| holds(view)) {
                return view.clone();
            }
            if started.elapsed() > limit {
                panic!("waited {limit:?} in vain for {what}: {seen:#?}\n{}", self.story());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn socket(&self) -> Option<PathBuf> {
        let decks = std::fs::read_dir(self.gpudeck.home().join(".local/state/gpudeck")).ok()?;
        decks.flatten().map(|deck| deck.path().join("controller.sock")).find(|p| p.exists())
    }

    /// The process of the controller.
    #[track_caller]
    pub fn controller_pid(&self) -> i64 {
        let status = self.json(&["controller", "status"]);
        status["version"]["pid"].as_i64().expect("a controller runs")
    }

    /// The process of the controller as the machine knows it, also while it does not answer.
    pub fn last_controller(&self) -> i64 {
        *self.controllers().last().expect("a controller's process")
    }

    /// The processes of controllers of this operator.
    fn controllers(&self) -> Vec<i64> {
        let deck = format!(" --deck {} ", self.deck().display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i64>().ok()) else {
                continue;
            };
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            if words.contains(" controller run ") && words.contains(&deck) {
                found.push(pid);
            }
        }
        found
    }

    /// Fills the file system that the controller writes to (a small one of its own, made at the first call), or
    /// frees it again.
    pub fn fill_state(&self, full: bool) {
        let filler = self.state().join("filler");
        if full {
            let mut file = std::fs::File::create(&filler).unwrap();
            let block = vec![0_u8; 1 << 20];
            while std::io::Write::write_all(&mut file, &block).is_ok() {}
            // The last bytes, too.
            while std::io::Write::write_all(&mut file, &[0; 16]).is_ok() {}
        } else {
            std::fs::remove_file(filler).unwrap();
        }
    }

    /// Puts the controllers' files onto a small file system of their own; before the first command.
    pub fn state_on_small_disk(&mut self) {
        std::fs::create_dir_all(self.states()).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64m", "gpudeck-test"]).arg(self.states());
        super::run(&mut mount, Duration::from_secs(10)).expect_success();
        self.mounted = Some(self.states());
    }

    /// Kills the controller with SIGKILL and waits until it is dead.
    #[track_caller]
    pub fn kill_controller(&self) {
        Self::kill_controller_with(self.controller_pid());
    }

    /// The same when its process is known already.
    #[track_caller]
    pub fn kill_controller_with(pid: i64) {
        let target = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(target, rustix::process::Signal::KILL).unwrap();
        wait_until("the controller's death", Duration::from_secs(10), || {
            // Its parent is gone; where nobody reaps orphans it stays a zombie.
            std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .map_or(true, |stat| stat.contains(") Z "))
        });
    }

    /// Interrupts a command as Ctrl-C does, and gives its exit code.
    #[track_caller]
    pub fn interrupt(child: &mut Child) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let limit = Duration::from_secs(20);
        wait_for("the interrupted command", limit, || child.try_wait().unwrap()).code()
    }

    /// Begins to send chat requests through the gateway, every other one streamed.
    pub fn load(&self, per_second: f64) -> Traffic<'_> {
        self.load_shaped(LoadShape::of_rate(per_second))
    }

    /// The same with requests of another shape.
    pub fn load_shaped(&self, shape: LoadShape) -> Traffic<'_> {
        let _runtime = self.runtime.enter();
        let load = Load::shaped(&self.lab.gateway(1), shape, "chat").unwrap();
        Traffic { load, operator: self }
    }

    /// Checks outcomes of all releases, oldest first: `completed`, `rolled_back`.
    #[track_caller]
    pub fn expect_history(&self, expected: &[(&str, &str)]) {
        let history = self.json(&["history", "chat"]);
        let mut releases: Vec<(String, String)> = history
            .as_array()
            .unwrap()
            .iter()
            .map(|release| {
                let number = &release["number"];
                let number = number.as_str().map_or_else(|| format!("r{number}"), str::to_owned);
                let outcome = match &release["outcome"] {
                    Value::String(word) => word.clone(),
                    Value::Object(fields) => fields.keys().next().unwrap().clone(),
                    other => other.to_string(),
                };
                (number, outcome)
            })
            .collect();
        releases.reverse();
        let releases: Vec<(&str, &str)> =
            releases.iter().map(|(n, o)| (n.as_str(), o.as_str())).collect();
        assert_eq!(releases, expected, "{history:#}");
    }

    /// What happened, for the message of a failed test.
    pub fn story(&self) -> String {
        let events = self.run(&["events"]).stdout;
        let ask = r#"python3 -c 'import socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/haproxy/admin.sock")
s.sendall(b"show stat chat 4 -1\n")
print(s.makefile().read())'"#;
        let stat = self.lab.ssh("h1", ask).stdout;
        let background = std::fs::read_to_string(self.gpudeck.deck().join("../background.log"));
        format!(
            "gateway:\n{stat}\nevents:\n{events}\nthe last command in the background:\n{}",
            background.unwrap_or_default()
        )
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let mut stop: Command = self.gpudeck.command(["controller", "stop"]);
        let done = super::run(&mut stop, Duration::from_secs(30));
        // One that a test froze, or that hangs, does not outlive it either.
        for pid in if done.code() == Some(0) { Vec::new() } else { self.controllers() } {
            let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
            let _ = pid.map(|p| rustix::process::kill_process(p, rustix::process::Signal::KILL));
        }
        if let Some(place) = &self.mounted {
            // Lazily: whatever happened, nothing stays mounted.
            let mut umount = Command::new("umount");
            super::run(umount.arg("-l").arg(place), Duration::from_secs(10));
        }
        if !std::thread::panicking() {
            done.expect_success();
        }
    }
}

/// Requests that are being sent through the gateway.
pub struct Traffic<'a> {
    load: Load,
    operator: &'a Operator,
}

impl Traffic<'_> {
    /// What became of the requests so far.
    pub fn counts(&self) -> LoadCounts {
        self.load.counts()
    }

    /// Waits until every request sent so far has ended, and `least` altogether; none may have failed.
    #[track_caller]
    pub fn expect_none_failed(&self, when: &str, least: u64) {
        let counts = self.counts();
        let sent = counts.ok + counts.failed + counts.in_flight;
        wait_until("the requests in flight", Duration::from_mins(1), || {
            let counts = self.counts();
            counts.ok + counts.failed >= sent.max(least)
        });
        let counts = self.counts();
        println!("{when}: {counts:?}");
        if counts.failed > 0 || counts.skipped > 0 {
            panic!("{when}: {counts:?}\n{}", self.operator.story());
        }
    }
}

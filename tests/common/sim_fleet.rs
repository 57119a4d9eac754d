//! The simulated fleet with a deck, and a controller that is a process of its own: what is asked of it goes
//! through the real binary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gpudeck::demo::World;
use gpudeck::fleet::AgentBinary;
use serde_json::Value;

use super::{Finished, run, wait_until};

/// Longest a command may take, or something that is waited for.
pub const LONG: Duration = Duration::from_mins(3);

/// Puts the agent on the hosts, as an earlier connection would have: to send a debug build to each of them through
/// debug builds of both ends takes most of a test's time. `lab_agent`, `lab_company` and the demo have it sent.
pub fn place_agents(world: &World) {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let machine = machine.trim();
    // Else the agent's directory has another name: then it is sent.
    if machine.len() != 32 {
        return;
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_gpudeck"));
    let memo = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agent-binary.json");
    let binary = AgentBinary::read_once(binary, &memo).unwrap();
    let name = binary.installed_name();
    let copy = world.root().join(&name);
    std::fs::copy(&binary.path, &copy).unwrap();
    let hosts = world.deck().hosts.values();
    let folders: Vec<PathBuf> = hosts
        .map(|host| Path::new(&host.agent_env["GPUDECK_STATE_DIR"]).join(machine).join("bin"))
        .collect();
    for folder in &folders {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::hard_link(&copy, folder.join(&name)).unwrap();
    }
    // One file under many names: only now is its stat what the hosts will see.
    let stamp = run(Command::new("stat").args(["-c", "%s %y %z %i"]).arg(&copy), LONG);
    let checked = format!("{} {}", binary.sha256, stamp.expect_success().stdout.trim());
    for folder in &folders {
        std::fs::write(folder.join(format!(".checked-{name}")), &checked).unwrap();
    }
}

/// A simulated fleet with a deck; its controller ends with it.
pub struct SimFleet {
    world: Option<World>,
    home: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Default for SimFleet {
    fn default() -> Self {
        Self::new()
    }
}

impl SimFleet {
    /// All hosts are up, and nothing is served.
    pub fn new() -> Self {
        // Short: sockets live below it, and their paths may not exceed 108 bytes.
        let home = tempfile::Builder::new().prefix("gds").tempdir_in("/tmp").unwrap();
        std::fs::create_dir(home.path().join("w")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let world = runtime.block_on(World::start(Some(home.path().join("w")))).unwrap();
        place_agents(&world);
        gpudeck::controller::init_repository(&world.deck_dir()).unwrap();
        Self { world: Some(world), home, _runtime: runtime }
    }

    /// Its hosts, its gateway and its deck.
    pub fn world(&self) -> &World {
        self.world.as_ref().unwrap()
    }

    /// A folder that goes with it, and HOME of its programs.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Runs `gpudeck …` on its deck.
    pub fn gpudeck(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpudeck"));
        command
            .arg("--deck")
            .arg(self.world().deck_dir())
            .args(arguments)
            .env("GPUDECK_HOME", self.home.path().join("s"))
            .env("HOME", self.home.path())
            .env("USER", "tester")
            .env_remove("SSH_AUTH_SOCK");
        run(&mut command, LONG)
    }

    /// The same; panics with what has happened unless it ends with `code`.
    #[track_caller]
    pub fn expect(&self, arguments: &[&str], code: i32) -> Finished {
        let done = self.gpudeck(arguments);
        let story = || self.gpudeck(&["events"]).stdout;
        assert!(done.code() == Some(code), "{arguments:?}: {done:#?}\n{}", story());
        done
    }

    /// The same with `--output json`; what it says.
    #[track_caller]
    pub fn json(&self, arguments: &[&str], code: i32) -> Value {
        let done = self.expect(&[arguments, &["--output", "json"]].concat(), code);
        serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {}", done.stdout))
    }

    /// A service as `status` has it.
    pub fn status(&self, service: &str) -> Value {
        self.json(&["status", service], 0)
    }

    /// Waits until the service is so; how it is then.
    #[track_caller]
    pub fn wait(&self, service: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        super::wait_for(what, LONG, || Some(self.status(service)).filter(&holds))
    }

    /// SIGKILL for its controller.
    pub fn kill_controller(&self) {
        let status = self.json(&["controller", "status"], 0);
        let pid = i32::try_from(status["version"]["pid"].as_i64().unwrap()).unwrap();
        let target = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(target, rustix::process::Signal::KILL).unwrap();
        wait_until("the controller's death", Duration::from_secs(30), || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !Path::new(&format!("/proc/{pid}")).exists() || state.contains(") Z ")
        });
    }
}

impl Drop for SimFleet {
    fn drop(&mut self) {
        let _ = self.gpudeck(&["controller", "stop"]);
        // Engines end with it.
        self.world = None;
    }
}

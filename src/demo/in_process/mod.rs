//! A large simulated fleet without SSH: every host is an agent that is a task in this process and
//! speaks the real messages. For the controller and the screen at a thousand hosts; no process is
//! started and no port is opened.

mod agent;
mod host;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::base::{DeckId, HostName};
use crate::fleet::InProcessHosts;
use crate::spec::{DeckSpec, HostSpec};
use crate::ssh::{Connection, InProcessConnection};

use agent::SimAgent;
use host::SimHostState;

/// How large a simulated fleet is.
#[derive(Clone, Copy, Debug)]
pub struct BigFleetShape {
    /// Hosts.
    pub hosts: u16,
    /// GPUs of each.
    pub gpus: u16,
    /// Time from the start of an engine to its first token.
    pub load_time: Duration,
    /// All GPUs work, so that their numbers change with every sample.
    pub busy: bool,
}

/// The hosts of a simulated fleet. Their tasks run on the runtime it was made with.
pub struct BigFleet {
    hosts: BTreeMap<HostName, Arc<SimHostState>>,
    runtime: tokio::runtime::Handle,
}

impl std::fmt::Debug for BigFleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BigFleet({} hosts)", self.hosts.len())
    }
}

impl BigFleet {
    /// A fleet with nothing on it, whose agents are tasks of `runtime`.
    ///
    /// # Errors
    /// A name of a host is not a name; does not happen.
    pub fn new(
        shape: BigFleetShape,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, crate::base::id::BadName> {
        let hosts = (1..=shape.hosts)
            .map(|number| {
                let name: HostName = format!("sim-{number:04}").parse()?;
                let state = SimHostState::new(&name, number, shape);
                Ok((name, Arc::new(state)))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { hosts, runtime })
    }

    /// A deck that names these hosts.
    pub fn deck(&self) -> DeckSpec {
        let racks = |number: usize| [("rack".to_owned(), format!("r{}", number / 16))].into();
        let hosts = self
            .hosts
            .keys()
            .enumerate()
            .map(|(number, name)| {
                let spec = HostSpec { labels: racks(number), ..HostSpec::default() };
                (name.clone(), spec)
            })
            .collect();
        DeckSpec {
            id: DeckId(Uuid::new_v4()),
            name: format!("{} simulated hosts", self.hosts.len()),
            simulated: true,
            hosts,
            gateways: BTreeMap::new(),
            endpoints: None,
            git: None,
        }
    }

    /// Writes the deck's directory with one service, `chat`, of so many replicas.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write_deck(&self, dir: &Path, deck: &DeckSpec, replicas: u32) -> std::io::Result<()> {
        std::fs::create_dir_all(dir.join("services"))?;
        let text = toml::to_string(deck).map_err(std::io::Error::other)?;
        let head = "# SIMULATED: the hosts are tasks of one process.\n\n";
        std::fs::write(dir.join("deck.toml"), format!("{head}{text}"))?;
        std::fs::write(dir.join("services/chat.toml"), Self::service(replicas, 1))
    }

    /// The spec of `chat` in its `revision` (TOML).
    pub fn service(replicas: u32, revision: u32) -> String {
        format!(
            r#"# SIMULATED: there is no engine and no model.
model    = "simulated/llama-3.1-8b"
replicas = {replicas}
parallel = {{ tensor = 2 }}
memory   = "40GiB"

[engine.command]
run = ["sim-engine", "--port", "{{port}}", "--revision", "{revision}"]

[rollout]
max_unavailable   = "10%"
max_surge         = "10%"
healthy_deadline  = "2m"
progress_deadline = "5m"
min_healthy_time  = "1s"
stop_grace        = "5s"
"#
        )
    }
}

impl InProcessHosts for BigFleet {
    fn connect(&self, host: &HostName) -> Option<Arc<dyn Connection>> {
        let state = Arc::clone(self.hosts.get(host)?);
        let agent = Arc::new(SimAgent { state });
        Some(Arc::new(InProcessConnection::new(agent, self.runtime.clone())))
    }
}

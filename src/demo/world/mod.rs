//! The whole simulated place: a directory with four hosts of eight GPUs, their SSH servers, a
//! gateway, and a deck that names them. What happens there is for the doors to tell.

mod processes;
mod specs;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use serde_json::json;
use uuid::Uuid;

use super::engine::ALLOCATIONS_ENV;
use super::ssh_server::{HostSetup, SimHost, new_key, write_key};
use super::{Load, SimGateway};
use crate::base::{Bytes, DeckId, HostName, ServiceName};
use crate::spec::{DeckSpec, GatewaySpec, HostSpec};

/// Hosts of the fleet.
const HOSTS: u16 = 4;
/// GPUs of a host.
const GPUS: u16 = 8;
/// Engine ports of a host; gpudeck uses as many.
const PORTS_PER_HOST: u16 = 1000;
/// Where the ports of a fleet may begin; all below the range that Linux gives out by itself.
const FIRST_PORTS: [u16; 6] = [21_000, 25_000, 17_000, 13_000, 9_000, 5_000];
/// Longest path of a Unix socket, less the terminating zero.
const MAX_SOCKET_PATH: usize = 107;

/// The simulated place. Dropped, everything in it ends: servers, agents, supervisors, engines.
/// A directory of its own making is removed too.
#[derive(Debug)]
pub struct World {
    root: PathBuf,
    hosts: Vec<SimHost>,
    gateway: Option<SimGateway>,
    deck: DeckSpec,
    _ports: TcpListener,
    temporary: Option<tempfile::TempDir>,
}

impl World {
    /// Builds it in `root`, which must be new or empty, or in a temporary directory.
    pub async fn start(root: Option<PathBuf>) -> io::Result<Self> {
        let temporary = match &root {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("gpudeck-demo-").tempdir()?),
        };
        let root = match (&temporary, root) {
            (Some(temporary), _) => temporary.path().to_owned(),
            (None, root) => empty_directory(root.unwrap_or_default())?,
        };
        // What others are given must not depend on how this one was named.
        let root = root.canonicalize()?;
        let (first_port, ports) = claim_ports()?;

        let ssh = root.join("ssh");
        std::fs::create_dir_all(&ssh)?;
        let key = new_key()?;
        write_key(&key, &ssh.join("id_ed25519"))?;

        let mut hosts = Vec::new();
        let mut known_hosts = String::new();
        let mut host_specs = BTreeMap::new();
        for number in 1..=HOSTS {
            let name = host_name(number);
            let directory = root.join("hosts").join(&name);
            let env = prepare_host(&directory, number)?;
            let home = directory.join("home");
            let setup = HostSetup { name: name.clone(), home, env: env.clone() };
            let host = SimHost::start(setup, key.public_key().clone()).await?;
            known_hosts.push_str(&host.known_hosts_line()?);
            let spec = HostSpec {
                address: Some(host.addr.ip().to_string()),
                port: Some(host.addr.port()),
                user: Some("demo".to_owned()),
                identity_files: vec![text(&ssh.join("id_ed25519"))?],
                known_hosts: Some(text(&ssh.join("known_hosts"))?),
                first_engine_port: Some(first_port + PORTS_PER_HOST * (number - 1)),
                agent_env: env,
                labels: [("zone".to_owned(), if number <= 2 { "a" } else { "b" }.to_owned())]
                    .into(),
                ..HostSpec::default()
            };
            host_specs.insert(parse::<HostName>(&name)?, spec);
            hosts.push(host);
        }
        std::fs::write(ssh.join("known_hosts"), known_hosts)?;

        let socket = root.join("gateway.sock");
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            let words = format!("{} is too long a path for a socket", socket.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, words));
        }
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let gateway = SimGateway::start(socket.clone(), &[("chat", any), ("code", any)]).await?;
        let mut gateway_spec = GatewaySpec::new(parse(&host_name(1))?, text(&socket)?);
        for name in ["chat", "code"] {
            if let Some(url) = gateway.url(name) {
                gateway_spec.urls.insert(parse(name)?, url);
            }
        }
        let deck = DeckSpec {
            id: DeckId(Uuid::new_v4()),
            name: "demo".to_owned(),
            simulated: true,
            hosts: host_specs,
            gateways: [(parse::<ServiceName>("edge")?, gateway_spec)].into(),
            git: None,
            endpoints: None,
        };
        let world = Self { root, hosts, gateway: Some(gateway), deck, _ports: ports, temporary };
        world.write_deck()?;
        Ok(world)
    }

    fn write_deck(&self) -> io::Result<()> {
        let services = self.deck_dir().join("services");
        std::fs::create_dir_all(&services)?;
        let deck = toml::to_string(&self.deck).map_err(io::Error::other)?;
        let head = "# SIMULATED: the hosts are SSH servers in the demo's own process.\n\n";
        std::fs::write(self.deck_dir().join("deck.toml"), format!("{head}{deck}"))?;
        std::fs::write(services.join("chat.toml"), self.spec_first())?;
        std::fs::write(services.join("code.toml"), specs::code())
    }

    /// The directory of everything.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The deck's directory: `deck.toml` and `services/`. Not under Git yet.
    pub fn deck_dir(&self) -> PathBuf {
        self.root.join("deck")
    }

    /// The deck as written to `deck.toml`.
    pub fn deck(&self) -> &DeckSpec {
        &self.deck
    }

    /// The file of a service's spec in the deck.
    pub fn spec_path(&self, service: &str) -> PathBuf {
        self.deck_dir().join("services").join(format!("{service}.toml"))
    }

    /// The hosts.
    pub fn hosts(&self) -> &[SimHost] {
        &self.hosts
    }

    /// Where clients reach a service (`chat`, `code`): `http://127.0.0.1:PORT`.
    pub fn gateway_url(&self, service: &str) -> Option<String> {
        self.gateway.as_ref().and_then(|gateway| gateway.url(service))
    }

    /// Starts a load on a service.
    pub fn load(&self, service: &str, rate_per_s: f64) -> io::Result<Load> {
        let url = self.gateway_url(service).ok_or(io::ErrorKind::NotFound)?;
        Load::start(&url, rate_per_s, service)
    }

    /// `chat` as it serves at the beginning (TOML).
    pub fn spec_first(&self) -> String {
        specs::chat("The revision the demo begins with.", &[])
    }

    /// `chat` in a revision that is better: tokens come faster (TOML).
    pub fn spec_good(&self) -> String {
        let args = ["--token-time", "10ms", "--first-token", "60ms"];
        specs::chat("A good revision: tokens come faster.", &args)
    }

    /// `chat` in a revision that loads, says it is healthy, and fails every other request (TOML).
    pub fn spec_bad(&self) -> String {
        let args = ["--error-rate", "0.5"];
        specs::chat("A bad revision: every other request fails.", &args)
    }

    /// Ends every process that was started on the simulated hosts (agents, supervisors, engines),
    /// found by their environment and by their allocations; returns how many. Blocks until they
    /// are gone, a few seconds at most.
    pub fn kill_engines(&self) -> usize {
        let allocations: Vec<PathBuf> = (1..=HOSTS)
            .map(|n| self.root.join("hosts").join(host_name(n)).join("allocations"))
            .collect();
        processes::end_all(&self.root, &allocations)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The servers first, so that nothing new is started meanwhile.
        self.hosts.clear();
        self.kill_engines();
        self.gateway = None;
        if let Some(temporary) = self.temporary.take() {
            // Best effort; what is left lies in the system's temporary directory.
            let _ = temporary.close();
        }
    }
}

fn host_name(number: u16) -> String {
    format!("gpu-{number}")
}

fn empty_directory(root: PathBuf) -> io::Result<PathBuf> {
    std::fs::create_dir_all(&root)?;
    if std::fs::read_dir(&root)?.next().is_some() {
        let words = format!("{} is not empty; name a new directory", root.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, words));
    }
    Ok(root)
}

/// Ports for the engines of all hosts, which share one address. The last one is held as long as
/// the world is, so that a second demo takes others.
fn claim_ports() -> io::Result<(u16, TcpListener)> {
    for first in FIRST_PORTS {
        if let Ok(held) =
            TcpListener::bind((Ipv4Addr::LOCALHOST, first + HOSTS * PORTS_PER_HOST - 1))
        {
            return Ok((first, held));
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "too many demos are running"))
}

/// Writes the directories and the scenario of a host; the environment of its processes.
fn prepare_host(directory: &Path, number: u16) -> io::Result<BTreeMap<String, String>> {
    let (state, allocations) = (directory.join("state"), directory.join("allocations"));
    for path in [directory.join("home"), state.clone(), allocations.clone()] {
        std::fs::create_dir_all(path)?;
    }
    let path = directory.join("scenario.json");
    let scenario = scenario(number, &text(&allocations)?);
    std::fs::write(&path, serde_json::to_string_pretty(&scenario)?)?;
    Ok([
        ("GPUDECK_STATE_DIR".to_owned(), text(&state)?),
        ("GPUDECK_SCENARIO".to_owned(), text(&path)?),
        (ALLOCATIONS_ENV.to_owned(), text(&allocations)?),
    ]
    .into())
}

/// What the simulated NVML of a host plays: eight H100 on one NVLink island.
fn scenario(host: u16, allocations: &str) -> serde_json::Value {
    let gpus: Vec<serde_json::Value> = (0..GPUS)
        .map(|gpu| {
            json!({
                "index": gpu,
                "uuid": format!("GPU-51500000-{host:04}-4000-8000-{gpu:012}"),
                "name": "SIMULATED H100 80GB",
                "pci_bus_id": format!("00000000:{:02X}:00.0", 0x1b + 0x10 * gpu),
                // What an H100 says in NVML: 81,559 MiB, of which the driver keeps some.
                "memory_total": Bytes::mib(81_559).0,
                "memory_reserved": Bytes::mib(551).0,
                "temperature_c": 31 + (gpu * 3 + host) % 7,
                "power_mw": 68_000 + 700 * u32::from((gpu + host) % 5),
                "power_limit_mw": 700_000,
                "sm_clock_mhz": 1980,
                "memory_clock_mhz": 2619,
                "numa_node": gpu / (GPUS / 2),
                "nvlink_island": 0,
                "health": "ok",
            })
        })
        .collect();
    json!({
        "driver_version": "550.54.15-SIMULATED",
        "cuda_version": "12.4",
        "free_delay_ms": 400,
        "allocations": allocations,
        "gpus": gpus,
    })
}

fn text(path: &Path) -> io::Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the demo's path is not UTF-8"))
}

fn parse<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    name: &str,
) -> io::Result<T> {
    name.parse().map_err(io::Error::other)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::spec::{parse_deck, parse_service};

    #[tokio::test]
    async fn writes_a_deck_that_can_be_read_and_leaves_nothing() {
        let world = World::start(None).await.unwrap();
        let text = std::fs::read_to_string(world.deck_dir().join("deck.toml")).unwrap();
        let deck = parse_deck(&text, "deck.toml").unwrap();
        assert_eq!(&deck, world.deck());
        assert!(deck.simulated);
        assert_eq!(deck.hosts.len(), 4);
        let ports: std::collections::BTreeSet<_> =
            deck.hosts.values().map(|h| h.first_engine_port.unwrap()).collect();
        assert_eq!(ports.len(), 4, "all hosts share one address");
        for (name, text) in [
            ("chat", std::fs::read_to_string(world.spec_path("chat")).unwrap()),
            ("code", std::fs::read_to_string(world.spec_path("code")).unwrap()),
            ("good", world.spec_good()),
            ("bad", world.spec_bad()),
        ] {
            parse_service(&text, name).unwrap();
        }
        assert_ne!(world.spec_good(), world.spec_bad());
        let root = world.root().to_owned();
        drop(world);
        assert!(!root.exists());
    }

    #[tokio::test]
    async fn two_worlds_do_not_meet() {
        let (one, two) = (World::start(None).await.unwrap(), World::start(None).await.unwrap());
        let first = |world: &World| world.deck().hosts.values().next().unwrap().first_engine_port;
        assert_ne!(first(&one), first(&two));
        assert_ne!(one.deck().id, two.deck().id);
    }

    #[tokio::test]
    async fn refuses_a_directory_that_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("thesis.tex"), "x").unwrap();
        let error = World::start(Some(directory.path().to_owned())).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(directory.path().join("thesis.tex").exists());
    }

    #[tokio::test]
    async fn ends_what_runs_on_its_hosts_and_nothing_else() {
        let world = World::start(None).await.unwrap();
        let state = &world.deck().hosts.values().next().unwrap().agent_env["GPUDECK_STATE_DIR"];
        let sleeper = |env: &str| {
            Command::new("sleep")
                .arg("303")
                .env("GPUDECK_STATE_DIR", env)
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        };
        let (mut ours, mut other) = (sleeper(state), sleeper(&format!("{state}-of-another")));
        let reaped = std::thread::spawn(move || ours.wait().unwrap());
        assert_eq!(world.kill_engines(), 1);
        assert!(!reaped.join().unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "a stranger was killed");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}

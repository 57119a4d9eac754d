//! What an agent finds out about its host when somebody asks how it is (`gpudeck doctor`).

use serde::{Deserialize, Serialize};

use super::telemetry::ContainerEngine;

/// How a host is, beyond what its samples say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checkup {
    /// The container engine, if one answers.
    pub container_engine: Option<ContainerEngine>,
    /// Why the engine's socket could not be used, where there is one.
    pub container_engine_trouble: Option<String>,
    /// Which of the addresses asked about can be connected to.
    pub reached: Vec<Reached>,
    /// How many of them there was no time to try: the last ones.
    #[serde(default)]
    pub untried: u32,
    /// Bytes a second written to the state directory's disk (synchronised).
    pub disk_write_bytes_per_s: Option<u64>,
    /// Why the disk could not be measured.
    pub disk_trouble: Option<String>,
    /// The programs asked about, in their order.
    #[serde(default)]
    pub programs: Vec<ProgramFound>,
    /// TCP ports on which something listens, whoever it is, in their order (the lowest 8,192).
    #[serde(default)]
    pub listening: Vec<u16>,
    /// What a login manager ends with the agent's session; none: it runs in no such session.
    #[serde(default)]
    pub logout: Option<Logout>,
    /// What the system's SSH configuration asks for in vain and `gpudeck` is not expected to have: told when somebody
    /// asks. The controller adds it.
    #[serde(default)]
    pub ssh_notes: Vec<String>,
}

/// What happens when whoever logged in is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logout {
    /// Who logged in.
    pub user: String,
    /// The processes of the session are killed, ranks of the `process` runtime with them.
    pub kills: bool,
    /// The user's shared memory is removed with the last session.
    pub removes_ipc: bool,
    /// The user has a manager also while nobody is logged in.
    pub lingers: bool,
}

/// A program to look for on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramSought {
    /// A name to look for on the path, or a file.
    pub program: String,
    /// The path that counts for it; none: the agent's.
    pub path: Option<String>,
    /// Its `--version` tells a version and does nothing else.
    pub tells_version: bool,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramFound {
    /// As it was asked for.
    pub program: String,
    /// The file that would be run; none: there is none.
    pub file: Option<String>,
    /// What it says of its version, cleaned.
    pub version: Option<String>,
}

/// One address that was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// `HOST:PORT`.
    pub address: String,
    /// How long the connection took, microseconds; none: it did not come about.
    pub took_us: Option<u64>,
    /// It was refused: nothing listens there, or a firewall rejects it.
    pub refused: bool,
    /// The other host's agent listened there for a moment, because nothing else did.
    #[serde(default)]
    pub listened: bool,
    /// Why not, cleaned.
    pub why: Option<String>,
}

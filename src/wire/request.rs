//! What a controller asks of an agent, and what comes back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::change::SampleChange;
use super::compare::{RankSeen, RankWanted};
use super::packed::Packed;
use super::telemetry::{HostFacts, HostSample};
use crate::base::{Bytes, DeckId, DeviceId, Epoch, RankId, ServiceName, Timestamp};

/// A line to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToAgent {
    /// Chosen by the asker; the reply carries it.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// A line from the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromAgent {
    /// The answer to the request of that id.
    Reply {
        /// The request's id.
        id: u64,
        /// What came of it.
        result: Result<Reply, Refusal>,
    },
    /// A sample, as subscribed to.
    Sample(Box<HostSample>),
    /// What has changed since the sample before; to those who [`Request::Follow`].
    Change {
        /// `monotonic_ms` of the sample it is a change of.
        since_ms: u64,
        /// See [`super::change`].
        change: SampleChange,
    },
    /// All ranks of process supervisors on this host; sent after a subscription and on change.
    Ranks(Vec<RankReport>),
    /// One of the others; to those who can read it, see [`super::packed`].
    Packed(Packed),
}

/// What can be asked of an agent. Everything that changes the host is a [`Verb`] inside
/// [`Request::Act`]; the rest only reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The first request: versions are compared, facts are returned.
    Hello {
        /// [`super::PROTOCOL_VERSION`] of the asker.
        protocol: u32,
    },
    /// Send samples and rank reports from now on.
    Subscribe {
        /// Time between samples, in milliseconds; at least 100.
        interval_ms: u64,
    },
    /// As `Subscribe`, and after a first whole sample only changes are sent. Asked again, it begins
    /// again with a whole sample.
    Follow {
        /// Time between samples, in milliseconds; at least 100. A GPU whose health changes is told
        /// at once.
        interval_ms: u64,
        /// A person looks at this host's details: also measure what costs much.
        looked_at: bool,
        /// A whole sample may come as [`FromAgent::Packed`].
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        packed: bool,
    },
    /// The host's clocks, now.
    Clock,
    /// How the host is for this deck: engine, disk, ports. See [`super::Checkup`].
    CheckUp {
        /// TCP addresses `HOST:PORT` to try to connect to from the host (at most 1024).
        reach: Vec<String>,
        /// Write and read a file of so many bytes in the state directory to measure its disk
        /// (at most 256 MiB); none: do not.
        disk_bytes: Option<u64>,
        /// Programs of engines to look for (at most 16).
        #[serde(default)]
        programs: Vec<super::ProgramSought>,
    },
    /// Listen on a TCP port, so that another host can see whether it reaches it. Begun when it is answered; the port is
    /// none of a rank's, and is let go at once for one that is to be started there.
    Listen {
        /// The port; free now.
        port: u16,
        /// For how long at most, in milliseconds (at most 10,000); 0: no more.
        for_ms: u64,
    },
    /// Become (or stay) the one controller that may act for this deck on this host.
    Claim {
        /// The deck.
        deck: DeckId,
        /// The epoch to renew, or none to ask for a new one.
        epoch: Option<Epoch>,
        /// Who asks: `user@machine pid 123`.
        holder: String,
        /// For how long, in milliseconds; renewed well before.
        lease_ms: u64,
        /// Take the claim from a holder whose lease has not expired.
        force: bool,
    },
    /// Change something, under the host's lock, if `epoch` is still the host's.
    Act {
        /// The deck acted for.
        deck: DeckId,
        /// The epoch that was granted.
        epoch: Epoch,
        /// What to do.
        verb: Verb,
    },
    /// The process ranks of a deck (or of all decks) on this host.
    Ranks {
        /// Only of this deck.
        deck: Option<DeckId>,
    },
    /// Would these needs be met right now? `Done`, or [`Refusal::MemoryBusy`].
    CheckNeeds {
        /// Devices and the memory that must be free on them.
        needs: Vec<DeviceNeed>,
        /// Ports that must be free.
        ports: Vec<u16>,
    },
    /// An HTTP request from the host to an engine on it; the reply's body is cut at 256 KiB.
    Http {
        /// TCP port on the loopback interface, or on `address`.
        port: u16,
        /// Address instead of 127.0.0.1.
        address: Option<String>,
        /// `GET` or `POST`.
        method: String,
        /// Path with query.
        path: String,
        /// JSON body for `POST`.
        body: Option<String>,
        /// Time allowed, in milliseconds.
        timeout_ms: u64,
        /// A file of the host whose first line is the key that the engine asks for. It is read there,
        /// and never leaves the host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_file: Option<String>,
    },
    /// One read-only command (`show …`) to a HAProxy run-time socket.
    GatewayShow {
        /// Path of the socket.
        socket: String,
        /// The command, one line.
        command: String,
    },
    /// What a directory holds (at most 10,000 entries).
    ListDir {
        /// Absolute path.
        path: String,
    },
    /// A piece of a file, at most 1 MiB.
    ReadFile {
        /// Absolute path.
        path: String,
        /// From here.
        offset: u64,
        /// So many bytes, at most 1 MiB.
        length: u32,
    },
    /// A piece of a process rank's log.
    ReadLog {
        /// The rank.
        rank: RankId,
        /// From this offset of everything ever logged; none: the last `length` bytes.
        offset: Option<u64>,
        /// At most so many bytes, at most 256 KiB.
        length: u32,
    },
    /// The rollout state that was last saved on this host for a deck.
    LoadState {
        /// The deck.
        deck: DeckId,
    },
    /// Who may act on this host for a deck, as the host knows.
    ShowClaim {
        /// The deck.
        deck: DeckId,
    },
    /// The command lines with which the process ranks of a deck were started: `Commands`.
    RankCommands {
        /// The deck.
        deck: DeckId,
    },
    /// How the process of a rank differs from how it was to be started: `Compared`.
    CompareRank(Box<RankWanted>),
    /// The services of a deck whose state is saved on this host: `Texts`.
    ListServiceStates {
        /// The deck.
        deck: DeckId,
    },
    /// The state of a service that was last saved on this host: `State`.
    LoadServiceState {
        /// The deck.
        deck: DeckId,
        /// The service.
        service: ServiceName,
    },
}

/// Who may act on a host for a deck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimInfo {
    /// The epoch that was granted last.
    pub epoch: Epoch,
    /// To whom.
    pub holder: String,
    /// When it was granted, by the host's clock.
    pub since: Timestamp,
    /// When the lease ends (or ended), by the host's clock.
    pub until: Timestamp,
    /// When its holder was there last, by the host's clock; none: an earlier version granted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed: Option<Timestamp>,
    /// The host's clock now.
    pub now: Timestamp,
}

/// A change on a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Start a rank under a supervisor of its own. Starting what was started already is `Done`.
    StartRank(Box<RankStart>),
    /// SIGTERM, and SIGKILL after the grace; answers when the whole process group is gone.
    /// Stopping what is gone (or never was) is `Done`.
    StopRank {
        /// The rank.
        rank: RankId,
        /// Time from SIGTERM to SIGKILL, in milliseconds.
        grace_ms: u64,
    },
    /// Forget a rank that has ended: its state directory and its log.
    RemoveRank {
        /// The rank.
        rank: RankId,
    },
    /// Commands to a HAProxy run-time socket, in order; answers with their outputs.
    Gateway {
        /// Path of the socket.
        socket: String,
        /// The commands, one line each.
        commands: Vec<String>,
    },
    /// Put our part of a HAProxy's configuration in place; answers with one word of what was done.
    GatewayConfig(Box<GatewayConfig>),
    /// Keep this text (the compact state of a rollout, JSON, at most 1 MiB) for the deck.
    SaveState {
        /// What to keep.
        state: String,
        /// See `SaveServiceState`.
        #[serde(default)]
        age: (u64, u64),
    },
    /// Keep this text (the compact state of one service, at most 1 MiB) for the deck.
    SaveServiceState {
        /// Of which service.
        service: ServiceName,
        /// What to keep.
        state: String,
        /// Term and number of the newest journal record in it: one that comes after a newer one is dropped.
        #[serde(default)]
        age: (u64, u64),
    },
}

/// A file of a HAProxy's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayConfig {
    /// The directory of such files; HAProxy is started with `-f DIRECTORY`.
    pub directory: String,
    /// The file's name there, `chat.cfg`.
    pub name: String,
    /// What is to be in it.
    pub text: String,
    /// The command that checks it; `-f FILE` is added for each file of the directory. Empty: none.
    pub check: Vec<String>,
    /// The command that reloads HAProxy; empty: somebody else does it.
    pub reload: Vec<String>,
    /// Reload it although nothing changed: HAProxy does not know what is in the file.
    pub reload_now: bool,
}

/// The answer to a [`GatewayConfig`] that HAProxy has to read and nothing is there to make it.
pub const RELOAD_NEEDED: &str = "reload needed";

/// So begins the answer to a [`GatewayConfig`] that was written, and HAProxy was not reloaded; how comes after it.
pub const RELOAD_FAILED: &str = "reload failed: ";

/// See [`RankStart::env`].
pub const GPU_NUMBERS: &str = "{gpu_numbers}";

/// Everything an agent needs to start a rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankStart {
    /// Which rank.
    pub rank: RankId,
    /// Program and arguments. An element that is just `{gpudeck}` becomes the agent's own binary.
    pub argv: Vec<String>,
    /// Environment added to the agent's own. A value that is just [`GPU_NUMBERS`] becomes the
    /// numbers, `0,3`, that the driver gives the GPUs of `needs` at this moment.
    pub env: BTreeMap<String, String>,
    /// What must be free before it may start.
    pub needs: Vec<DeviceNeed>,
    /// Ports it will listen on; one in use is a refusal.
    pub ports: Vec<u16>,
    /// Files that must exist.
    pub files: Vec<String>,
    /// The file that holds the key to its API: it must hold one. A container sees it, and nothing else beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// Log kept, in bytes; older lines go first.
    pub log_limit: Bytes,
}

/// Memory that must be free on a device before a rank starts there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNeed {
    /// The device.
    pub device: DeviceId,
    /// Memory the rank will take there.
    pub memory: Bytes,
    /// A GPU with errors is refused: what is new is not begun on one. (What ran there may begin again: it may still serve.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub healthy: bool,
}

/// A good answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To `Hello`.
    Hello {
        /// [`super::PROTOCOL_VERSION`] of the agent.
        protocol: u32,
        /// What the host is.
        facts: Box<HostFacts>,
    },
    /// It is done (or was done before).
    Done,
    /// To `Claim`: the epoch that is now the host's.
    Claimed {
        /// Carry it in every `Act`.
        epoch: Epoch,
    },
    /// To `Ranks`.
    Ranks(Vec<RankReport>),
    /// To `Http`.
    Http(HttpReply),
    /// To `GatewayShow` (one text) and `Verb::Gateway` (one a command).
    Texts(Vec<String>),
    /// To `ListDir`.
    Entries(Vec<DirEntry>),
    /// To `ReadFile`: base64; shorter than asked at the end of the file.
    FilePiece {
        /// The bytes, base64.
        data: String,
        /// Length of the whole file.
        file_bytes: Bytes,
    },
    /// To `ReadLog`.
    Log(LogChunk),
    /// To `LoadState` and `LoadServiceState`.
    State(Option<String>),
    /// To `RankCommands`.
    Commands(Vec<(RankId, Vec<String>)>),
    /// To `CompareRank`; none: it does not run here, or its process may not be looked at.
    Compared(Option<RankSeen>),
    /// To `ShowClaim`; none: nobody ever claimed the host for the deck.
    Claim(Option<ClaimInfo>),
    /// To `Clock`.
    Clock {
        /// The wall clock.
        at: Timestamp,
        /// The monotonic clock, milliseconds since boot.
        monotonic_ms: u64,
    },
    /// To `CheckUp`.
    CheckUp(Box<super::Checkup>),
}

/// An engine's HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpReply {
    /// HTTP status.
    pub status: u16,
    /// Body, at most 256 KiB, invalid UTF-8 replaced.
    pub body: String,
    /// From the request to the end of the body, in milliseconds.
    pub took_ms: u64,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// File name (entries whose name is not UTF-8 are left out).
    pub name: String,
    /// Size, links followed.
    pub size: Bytes,
    /// It is a directory, links followed.
    pub is_dir: bool,
}

/// A piece of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChunk {
    /// Offset of the first byte of `text` in everything ever logged. Larger than what was asked
    /// for when older lines are gone.
    pub offset: u64,
    /// Offset to ask for next.
    pub next_offset: u64,
    /// The text, invalid UTF-8 replaced, control characters still in it.
    pub text: String,
}

/// A process rank as its supervisor sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankReport {
    /// Which rank.
    pub rank: RankId,
    /// How it is.
    pub status: RankStatus,
}

/// How a rank is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankStatus {
    /// The engine process lives.
    Running {
        /// Its pid on the host.
        pid: u32,
        /// Since when, by the host's clock.
        since: Timestamp,
    },
    /// The engine process has ended.
    Exited {
        /// Exit code, if it ended by itself.
        code: Option<i32>,
        /// Signal, if it was killed.
        signal: Option<i32>,
        /// When, by the host's clock.
        at: Timestamp,
        /// The last lines it logged (at most 2 KiB), for the message.
        last_lines: String,
    },
    /// It is gone and nobody saw how: the host was restarted, or its supervisor was killed.
    Lost,
}

/// Why an agent did not do something. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Another controller holds this host for the deck.
    #[error("the host is held by {holder} (epoch {}, lease until {until})", held.0)]
    Held {
        /// The host's epoch.
        held: Epoch,
        /// Who holds it.
        holder: String,
        /// When that lease ends, or ended, by the host's clock.
        until: Timestamp,
    },
    /// A device has too little free memory now.
    #[error("{device} has {free} free, {needed} needed{}", if holders.is_empty() { String::new() } else { format!(" (held by {})", holders.join(", ")) })]
    MemoryBusy {
        /// Which device.
        device: DeviceId,
        /// Free now.
        free: Bytes,
        /// Needed.
        needed: Bytes,
        /// Who holds memory there: `pid 123 llama-server 3.0 GiB`.
        holders: Vec<String>,
    },
    /// The device is not on this host (any more).
    #[error("there is no device {device} on the host")]
    NoDevice {
        /// Which device.
        device: DeviceId,
    },
    /// A port is taken.
    #[error("port {port} is in use{}", holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    PortInUse {
        /// Which port.
        port: u16,
        /// By whom, where known.
        holder: Option<String>,
    },
    /// Nobody listens on a port, but a connection from this host has it as its near end, or had it a
    /// minute ago: it is free soon.
    #[error("port {port} is still taken by a connection that was made from the host")]
    PortLingers {
        /// Which port.
        port: u16,
    },
    /// Who was asked over HTTP answered nothing: in time, or at all. (That nobody could be asked is `Failed`.)
    #[error("{message}")]
    NoAnswer {
        /// What came instead.
        message: String,
    },
    /// A file or directory is not there.
    #[error("{path} does not exist on the host")]
    NoFile {
        /// Which.
        path: String,
    },
    /// The key to an engine cannot be had from its file.
    #[error("the key in {path} cannot be used: {why}")]
    NoKey {
        /// Which file.
        path: String,
        /// Why not, without a word of what is in it.
        why: String,
    },
    /// The disk is full.
    #[error("no space left on the host's disk ({path})")]
    NoSpace {
        /// Where it was written.
        path: String,
    },
    /// The two sides speak different versions.
    #[error("the agent speaks protocol {agent}, not {asked}")]
    Protocol {
        /// The agent's.
        agent: u32,
        /// What was asked for.
        asked: u32,
    },
    /// Something else is being done on the host for longer than was waited: asking again later can help.
    #[error("{message}")]
    Busy {
        /// What is.
        message: String,
    },
    /// Anything else, in words.
    #[error("{message}")]
    Failed {
        /// What went wrong, cleaned of control characters.
        message: String,
    },
}

/// What `gpudeck agent dial` connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialTarget {
    /// A Unix socket on the host.
    Unix(String),
    /// A TCP port on the host's loopback interface.
    Tcp(u16),
}

/// What a dialled stream may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialAccess {
    /// Only to look; takes no lock.
    Read,
    /// To change something: the host's lock is held while the stream lives, the epoch is checked.
    Act {
        /// The deck acted for.
        deck: DeckId,
        /// The epoch that was granted.
        epoch: Epoch,
    },
}

//! The messages between a controller and the agent on a host: JSON, one message a line.
//!
//! The agent writes [`FromAgent`] lines to its standard output and reads [`ToAgent`] lines from
//! its standard input. Whole streams (a container engine's socket) do not pass here: they have a
//! channel of their own, `gpudeck agent dial`.

pub mod change;
pub mod checkup;
pub mod codec;
pub mod compare;
pub mod devices;
pub mod holder;
pub mod lasting;
pub mod packed;
pub mod request;
pub mod telemetry;
pub mod throttle;
pub mod told;
pub mod xid;

pub use checkup::{Checkup, Logout, ProgramFound, ProgramSought, Reached};
pub use codec::{CodecError, LineReader, MAX_LINE_BYTES, PROTOCOL_VERSION, encode_line};
pub use compare::{ArgumentsSeen, GPU_VARIABLES, GpusSeen, RankSeen, RankWanted, VariableSeen};
pub use devices::Part;
pub use holder::{MAX_HOLDER, holder_name, is_same_holder};
pub use lasting::Lasting;
pub use request::{
    ClaimInfo, DeviceNeed, DialAccess, DialTarget, DirEntry, FromAgent, GPU_NUMBERS, GatewayConfig,
    HttpReply, LogChunk, RELOAD_FAILED, RELOAD_NEEDED, RankReport, RankStart, RankStatus, Refusal,
    Reply, Request, ToAgent, Verb,
};
pub use telemetry::{
    ContainerEngine, Disk, DiskClass, FABRIC_READY, Gpu, GpuHealth, GpuPath, GpuProcess, GpuVendor,
    Gpus, HostFacts, HostSample, MemoryUse, MigInstance, Nic, NvLinks, PathKind, PcieLink,
    ProcessKind, Xid,
};
pub use told::{Manner, Told};

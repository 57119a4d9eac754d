//! What an agent measures. A value that the driver or the kernel does not give is absent, never 0.

use serde::{Deserialize, Serialize};

use crate::base::{Bytes, DeviceId};

/// What a host is; it does not change while it is up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Its own name for itself.
    pub hostname: String,
    /// Operating system, for people: `Debian GNU/Linux 12`.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// Version of the agent.
    pub agent_version: String,
    /// The user the agent runs as.
    pub user: String,
    /// Where the agent keeps its state on this host.
    pub state_dir: String,
    /// Changes with every boot.
    pub boot_id: String,
    /// Logical processors.
    pub cpus: u32,
    /// Main memory.
    pub memory: Bytes,
    /// NVIDIA driver version, if there is one.
    pub driver_version: Option<String>,
    /// CUDA version of the driver, `12.4`.
    pub cuda_version: Option<String>,
    /// GPU values come from a scenario, not from a driver.
    pub simulated: bool,
}

/// One sample of a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostSample {
    /// The host's monotonic clock, milliseconds since boot.
    pub monotonic_ms: u64,
    /// The GPUs, or why they cannot be read.
    pub gpus: Gpus,
    /// Processor use over the last interval, percent of all processors.
    pub cpu_percent: Option<f32>,
    /// Load average over one minute.
    pub load_1m: Option<f64>,
    /// Main memory.
    pub memory: Option<MemoryUse>,
    /// The disk that holds the agent's state directory.
    pub disk: Option<MemoryUse>,
    /// Received over all physical interfaces, bytes a second.
    pub net_rx_bytes_per_s: Option<u64>,
    /// Sent over all physical interfaces, bytes a second.
    pub net_tx_bytes_per_s: Option<u64>,
    /// Since boot.
    pub uptime_s: Option<u64>,
}

/// Used and total, of memory or a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// In use.
    pub used: Bytes,
    /// All there is.
    pub total: Bytes,
}

impl MemoryUse {
    /// What is left.
    pub fn free(&self) -> Bytes {
        self.total.saturating_sub(self.used)
    }
}

/// The GPUs of a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gpus {
    /// No GPU, or no driver: a host without GPUs.
    None {
        /// Why, for the details: `libnvidia-ml.so.1 not found`.
        why: String,
    },
    /// The driver answers.
    Some(Vec<Gpu>),
    /// The driver does not answer.
    Hung {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
}

impl Gpus {
    /// The GPUs that can be read; empty if none.
    pub fn list(&self) -> &[Gpu] {
        match self {
            Self::Some(gpus) => gpus,
            Self::None { .. } | Self::Hung { .. } => &[],
        }
    }
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Index in the driver's order.
    pub index: u32,
    /// The driver's UUID, `GPU-…`.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Whether it can be used.
    pub health: GpuHealth,
    /// PCI bus id.
    pub pci_bus_id: Option<String>,
    /// Frame buffer.
    pub memory: Option<MemoryUse>,
    /// Share of the last interval in which a kernel ran, percent.
    pub utilisation_percent: Option<u32>,
    /// Share of the last interval in which memory was read or written, percent.
    pub memory_utilisation_percent: Option<u32>,
    /// Core temperature.
    pub temperature_c: Option<u32>,
    /// Temperature at which clocks are lowered.
    pub slowdown_temperature_c: Option<u32>,
    /// Power drawn, milliwatts.
    pub power_mw: Option<u32>,
    /// Power limit, milliwatts.
    pub power_limit_mw: Option<u32>,
    /// Fan, percent.
    pub fan_percent: Option<u32>,
    /// Clock of the streaming multiprocessors.
    pub sm_clock_mhz: Option<u32>,
    /// Clock of the memory.
    pub memory_clock_mhz: Option<u32>,
    /// Performance state, `P0` to `P15`.
    pub pstate: Option<String>,
    /// Why clocks are lowered, if they are.
    pub throttle_reasons: Vec<String>,
    /// Uncorrected memory errors since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    /// NVLink peers: UUIDs of GPUs on the same island, if links are up.
    pub nvlink_peers: Vec<String>,
    /// NUMA node.
    pub numa_node: Option<u32>,
    /// Who uses it.
    pub processes: Vec<GpuProcess>,
}

impl Gpu {
    /// Its id as a device.
    pub fn device(&self) -> DeviceId {
        DeviceId::Gpu(self.uuid.clone())
    }
}

/// Whether a GPU can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuHealth {
    /// It answers.
    Ok,
    /// It answers, and something is wrong: uncorrected errors, a critical Xid.
    Degraded {
        /// What.
        why: String,
    },
    /// It has fallen off the bus.
    Lost,
}

/// A process on a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Pid on the host.
    pub pid: u32,
    /// Command name, cleaned.
    pub name: String,
    /// User name, where known.
    pub user: Option<String>,
    /// GPU memory.
    pub memory: Option<Bytes>,
}

//! What an agent measures. A value that the driver or the kernel does not give is absent, never 0.

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::Lasting;
use crate::base::Bytes;

/// What a host is; it does not change while it is up. A text that is not known is empty, and left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Its own name for itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Operating system, for people: `Debian GNU/Linux 12`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub os: String,
    /// Kernel release.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel: String,
    /// `x86_64`, `aarch64`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub arch: String,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_version: String,
    /// The user the agent runs as.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Where the agent keeps its state on this host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub state_dir: String,
    /// Changes with every boot.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// Logical processors; 0: the kernel does not say, and it is left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cpus: u32,
    /// Main memory; 0: the kernel does not say, and it is left out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub memory: Bytes,
    /// NVIDIA driver version, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// CUDA version of the driver, `12.4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda_version: Option<String>,
    /// GPU values come from a scenario, not from a driver.
    pub simulated: bool,
    /// NUMA nodes with processors; none if the kernel does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_nodes: Option<u32>,
    /// The container engine that answers on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_engine: Option<ContainerEngine>,
    /// Whole disks (at most 64).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Network interfaces with hardware behind them (at most 64).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
}

impl HostFacts {
    /// Logical processors, where the kernel says how many.
    pub fn known_cpus(&self) -> Option<u32> {
        Some(self.cpus).filter(|cpus| *cpus > 0)
    }

    /// Main memory, where the kernel says how much.
    pub fn known_memory(&self) -> Option<Bytes> {
        Some(self.memory).filter(|memory| *memory != Bytes::ZERO)
    }
}

/// The container engine of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerEngine {
    /// `docker`, `podman`.
    pub name: String,
    /// Its version; none when it is there and does not let us ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// A disk of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The kernel's name: `nvme0n1`.
    pub name: String,
    /// How fast that kind is.
    pub class: DiskClass,
    /// Its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// What its maker calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The agent's state directory is on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holds_state: bool,
}

/// How fast a kind of disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskClass {
    /// Spinning.
    Hdd,
    /// Flash behind SATA or SAS.
    Ssd,
    /// Flash on PCI Express.
    Nvme,
    /// A virtual machine's: what is behind it is not known.
    Virtual,
}

impl DiskClass {
    /// For people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Hdd => "hdd",
            Self::Ssd => "ssd",
            Self::Nvme => "nvme",
            Self::Virtual => "virtual",
        }
    }
}

/// A network interface of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The kernel's name: `eth0`, `ib0`.
    pub name: String,
    /// The link is up.
    pub up: bool,
    /// Speed of the link, megabits a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_mbit_per_s: Option<u32>,
    /// The RDMA device behind it (InfiniBand or `RoCE`), `mlx5_0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdma: Option<String>,
    /// NUMA node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
}

/// One sample of a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostSample {
    /// The host's monotonic clock, milliseconds since boot.
    pub monotonic_ms: u64,
    /// The GPUs, or why they cannot be read.
    pub gpus: Gpus,
    /// Why GPUs of another maker than those that are shown cannot be read; with [`Gpus::Hung`] what has happened, if it
    /// is not the driver that is silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_trouble: Option<SmolStr>,
    /// How old the GPU values were when this sample was taken, milliseconds; none: of the moment.
    /// Grows while the driver is slow to answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus_age_ms: Option<u64>,
    /// Processor use over the last interval, percent of all processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f32>,
    /// Load average over one minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_1m: Option<f64>,
    /// Main memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryUse>,
    /// The disk that holds the agent's state directory, without what root alone may fill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<MemoryUse>,
    /// Received over all physical interfaces, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rx_bytes_per_s: Option<u64>,
    /// Sent over all physical interfaces, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_tx_bytes_per_s: Option<u64>,
    /// Since boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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

impl Default for Gpus {
    fn default() -> Self {
        Self::None { why: String::new() }
    }
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

/// A GPU has joined the fabric of its `NVSwitches`.
pub const FABRIC_READY: &str = "completed";

/// One GPU. What its driver does not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpu {
    /// Index in the driver's order.
    pub index: u32,
    /// The driver's UUID, `GPU-…`.
    pub uuid: SmolStr,
    /// Product name.
    pub name: SmolStr,
    /// Who made it.
    #[serde(skip_serializing_if = "is_default")]
    pub vendor: GpuVendor,
    /// Whether it can be used.
    pub health: GpuHealth,
    /// PCI bus id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_bus_id: Option<SmolStr>,
    /// Frame buffer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryUse>,
    /// Memory window that the processors see (BAR1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar1: Option<MemoryUse>,
    /// Share of the last interval in which a kernel ran, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utilisation_percent: Option<u32>,
    /// Share of the last interval in which memory was read or written, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_utilisation_percent: Option<u32>,
    /// Use of the video encoder, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_percent: Option<u32>,
    /// Use of the video decoder, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_percent: Option<u32>,
    /// Core temperature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_c: Option<u32>,
    /// Temperature at which clocks are lowered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowdown_temperature_c: Option<u32>,
    /// Temperature at which it switches itself off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_temperature_c: Option<u32>,
    /// Degrees that are left until clocks are lowered, negative where they are (`T.Limit` of `nvidia-smi`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thermal_margin_c: Option<i32>,
    /// Power drawn, milliwatts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_mw: Option<u32>,
    /// Power limit, milliwatts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_limit_mw: Option<u32>,
    /// Fan, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fan_percent: Option<u32>,
    /// Clock of the streaming multiprocessors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_clock_mhz: Option<u32>,
    /// The highest that clock can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sm_clock_mhz: Option<u32>,
    /// Clock of the memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u32>,
    /// The highest that clock can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory_clock_mhz: Option<u32>,
    /// Performance state, `P0` to `P15`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pstate: Option<SmolStr>,
    /// Why clocks are lowered: nothing, if they are not; none: the driver does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle_reasons: Option<Vec<SmolStr>>,
    /// Its PCI Express link.
    #[serde(skip_serializing_if = "is_default")]
    pub pcie: PcieLink,
    /// Its NVLink links, together.
    #[serde(skip_serializing_if = "is_default")]
    pub nvlink: NvLinks,
    /// How far it is with joining the fabric of its `NVSwitches`: `not_started`, `in_progress`, [`FABRIC_READY`], or
    /// `failed` and why; none where there is none to join.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fabric: Option<SmolStr>,
    /// Error correction is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_enabled: Option<bool>,
    /// Uncorrected memory errors since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_uncorrected: Option<u64>,
    /// Corrected memory errors since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_corrected: Option<u64>,
    /// Uncorrected memory errors since it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_uncorrected_aggregate: Option<u64>,
    /// Corrected memory errors since it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_corrected_aggregate: Option<u64>,
    /// Memory pages taken out of use (GPUs before Ampere).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired_pages: Option<u32>,
    /// Pages wait for a reboot to be taken out of use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retired_pages_pending: Option<bool>,
    /// Memory rows replaced by spare ones (Ampere and later).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remapped_rows: Option<u32>,
    /// Rows wait for a reset of the GPU to be replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_remap_pending: Option<bool>,
    /// A row could not be replaced: no spare ones are left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_remap_failed: Option<bool>,
    /// The last Xid error the driver reported since the agent was started; before it told one, the
    /// gravest since the host was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xid: Option<Xid>,
    /// The gravest of its Xid errors since the host was started, if one degrades it: a harmless one
    /// after it (the programs that are ended, memory that is taken out of use) does not make it well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grave_xid: Option<Xid>,
    /// How it is divided, as AMD's driver says it: compute and memory mode, `CPX/NPS4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<SmolStr>,
    /// `default`, `exclusive_process`, `prohibited`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_mode: Option<SmolStr>,
    /// The driver keeps it initialised while nobody uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistence: Option<bool>,
    /// It is divided into MIG instances (of AMD: into compute partitions).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig: Option<bool>,
    /// Its MIG instances: devices of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mig_instances: Vec<MigInstance>,
    /// NVLink peers: UUIDs of GPUs on the same island, if links are up. Of AMD: those of the same
    /// XGMI hive.
    #[serde(skip_serializing_if = "Lasting::is_empty")]
    pub nvlink_peers: Lasting<SmolStr>,
    /// The way to the other GPUs of the host over PCI Express.
    #[serde(skip_serializing_if = "Lasting::is_empty")]
    pub paths: Lasting<GpuPath>,
    /// NUMA node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// Who uses it; none where that is not known (no right to ask, an old driver, an older agent on a
    /// GPU that nobody uses), which does not mean that it is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<Vec<GpuProcess>>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Who made a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuVendor {
    /// NVIDIA.
    #[default]
    Nvidia,
    /// AMD.
    Amd,
}

/// A PCI Express link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PcieLink {
    /// Generation it runs at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The highest that GPU and slot can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_generation: Option<u32>,
    /// Lanes in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// The most that GPU and slot have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_width: Option<u32>,
    /// Bytes a second to the GPU; only measured while it is looked at (a call costs 20 ms).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_bytes_per_s: Option<u64>,
    /// Bytes a second from the GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_bytes_per_s: Option<u64>,
    /// Bytes a second where the driver does not say which way (AMD's, in steps of 1 GB/s); only told while it is
    /// looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
}

/// All NVLink links of a GPU together; of AMD those of XGMI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NvLinks {
    /// Links there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub links: Option<u32>,
    /// Links that are up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<u32>,
    /// Bytes a second to the GPU; only measured while it is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_bytes_per_s: Option<u64>,
    /// Bytes a second from the GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_bytes_per_s: Option<u64>,
}

impl Gpu {
    /// How far the fabric is that it needs and that is not ready: until it is, programs on a board with `NVSwitches` cannot
    /// start. A GPU without links, and one that is divided, does not need it.
    pub fn fabric_not_ready(&self) -> Option<&str> {
        let needs_it = self.nvlink.links.is_some_and(|links| links > 0) && self.mig != Some(true);
        self.fabric.as_deref().filter(|state| needs_it && *state != FABRIC_READY)
    }

    /// The processes that are known to use it.
    pub fn listed(&self) -> &[GpuProcess] {
        self.processes.as_deref().unwrap_or_default()
    }

    /// The Xid error that its health hangs on, if there is one. Older agents tell only the last.
    pub fn judged_xid(&self) -> Option<Xid> {
        self.grave_xid.or(self.xid).filter(|x| super::xid::meaning(x.code).degrades())
    }
}

/// An Xid error: what the driver writes to the kernel's log when a GPU or a program on it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xid {
    /// Its number; [`super::xid`] says what it means.
    pub code: u64,
    /// When, by the host's monotonic clock, milliseconds.
    pub monotonic_ms: u64,
    /// How many Xid errors of any kind this GPU has had since then.
    pub count: u32,
}

/// A MIG instance: a part of a GPU that is a device of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MigInstance {
    /// `MIG-…`.
    pub uuid: SmolStr,
    /// `NVIDIA H100 80GB HBM3 MIG 3g.40gb`.
    pub name: SmolStr,
    /// Its share of the frame buffer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryUse>,
}

/// The way from one GPU to another over PCI Express.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuPath {
    /// UUID of the other GPU.
    pub to: SmolStr,
    /// What lies between them.
    pub over: PathKind,
}

/// What lies between two GPUs (`nvidia-smi topo -m` has the same words in capitals).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// They are on one board.
    Internal,
    /// One PCI Express switch.
    Pix,
    /// Several switches.
    Pxb,
    /// The host bridge of a processor.
    Phb,
    /// Two host bridges of one NUMA node.
    Node,
    /// The link between processors.
    Sys,
}

impl PathKind {
    /// What is between them is switches below one port of the processor: they reach each other without it.
    pub const fn is_below_one_port(self) -> bool {
        matches!(self, Self::Internal | Self::Pix | Self::Pxb)
    }

    /// As `nvidia-smi topo -m` writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Internal => "PSB",
            Self::Pix => "PIX",
            Self::Pxb => "PXB",
            Self::Phb => "PHB",
            Self::Node => "NODE",
            Self::Sys => "SYS",
        }
    }
}

/// Whether a GPU can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuHealth {
    /// It answers.
    #[default]
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuProcess {
    /// Pid on the host.
    pub pid: u32,
    /// Command name, cleaned.
    pub name: SmolStr,
    /// Command line, cleaned, at most 200 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<SmolStr>,
    /// User name, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<SmolStr>,
    /// Name of its container, or the beginning of its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<SmolStr>,
    /// Its systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<SmolStr>,
    /// What it does there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<ProcessKind>,
    /// GPU memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Its share of the streaming multiprocessors, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_percent: Option<u32>,
    /// Its share of the video encoder, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_percent: Option<u32>,
    /// Its share of the video decoder, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_percent: Option<u32>,
    /// Processor use, percent of one processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f32>,
    /// Host memory (resident).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_memory: Option<Bytes>,
    /// For how long it has been running, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_s: Option<u64>,
}

/// What a process does on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessKind {
    /// It computes.
    Compute,
    /// It draws.
    Graphics,
    /// Both.
    Both,
}

impl ProcessKind {
    /// One or two letters, as `nvidia-smi` has them.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Compute => "C",
            Self::Graphics => "G",
            Self::Both => "C+G",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_of_a_host_is_absent_and_never_nothing() {
        let facts = HostFacts { user: "ops".to_owned(), ..HostFacts::default() };
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(text, r#"{"user":"ops","simulated":false}"#);
        assert_eq!(serde_json::from_str::<HostFacts>(&text).unwrap(), facts);
    }
}

//! A scenario: GPUs as a JSON file describes them, with memory that belongs to live processes.
//!
//! This file is compiled twice: here, for the played source, and by path into `tests/nvml-sim`,
//! the NVML library that answers from the same scenario. So it uses `std` and `serde` only. The
//! format is described in `tests/nvml-sim/README.md`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

/// Largest scenario or allocation file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Most allocation files that are looked at.
const MAX_ALLOCATIONS: usize = 4096;

/// What the file says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The host's own name for itself, instead of the machine's.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Driver version.
    #[serde(default = "default_driver")]
    pub driver_version: String,
    /// CUDA version, `12.4`.
    #[serde(default = "default_cuda")]
    pub cuda_version: String,
    /// Every reading of a GPU blocks for ever, as a driver does that hangs.
    #[serde(default)]
    pub hang: bool,
    /// The library's own start blocks for ever.
    #[serde(default)]
    pub hang_init: bool,
    /// The library's start fails with this `nvmlReturn_t`: 18 is a driver that does not match it.
    #[serde(default)]
    pub init_error: Option<u32>,
    /// The simulated library writes a line for each call into this file; relative to the
    /// scenario's file.
    #[serde(default)]
    pub calls: Option<PathBuf>,
    /// The simulated library notes in this file which Xid errors it has told, and tells them to no later
    /// process, as a driver does; relative to the scenario's file.
    #[serde(default)]
    pub xids_told: Option<PathBuf>,
    /// Milliseconds from a process's death (as first seen) until its memory is free.
    #[serde(default)]
    pub free_delay_ms: u64,
    /// Directory of allocation files; relative to the scenario's file.
    #[serde(default)]
    pub allocations: Option<PathBuf>,
    /// The GPUs.
    #[serde(default)]
    pub gpus: Vec<GpuScript>,
}

/// One GPU of a scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuScript {
    /// Index in the driver's order; the position in the list by default.
    #[serde(default)]
    pub index: Option<u32>,
    /// `GPU-…`.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// `00000000:3B:00.0`.
    #[serde(default)]
    pub pci_bus_id: Option<String>,
    /// Frame buffer, bytes.
    pub memory_total: u64,
    /// Used by the driver itself, bytes.
    #[serde(default)]
    pub memory_reserved: u64,
    /// Utilisation with nothing allocated, percent.
    #[serde(default)]
    pub utilisation_percent: u32,
    /// Core temperature with nothing allocated.
    #[serde(default = "default_temperature")]
    pub temperature_c: u32,
    /// Temperature at which clocks are lowered.
    #[serde(default = "default_slowdown")]
    pub slowdown_temperature_c: u32,
    /// Power drawn with nothing allocated, milliwatts.
    #[serde(default = "default_power")]
    pub power_mw: u32,
    /// Power limit, milliwatts.
    #[serde(default = "default_power_limit")]
    pub power_limit_mw: u32,
    /// Fan, percent; none: passively cooled.
    #[serde(default)]
    pub fan_percent: Option<u32>,
    /// Clock of the streaming multiprocessors.
    #[serde(default = "default_sm_clock")]
    pub sm_clock_mhz: u32,
    /// Clock of the memory.
    #[serde(default = "default_memory_clock")]
    pub memory_clock_mhz: u32,
    /// Performance state, 0 to 15.
    #[serde(default)]
    pub pstate: u32,
    /// Temperature at which it switches itself off.
    #[serde(default)]
    pub shutdown_temperature_c: Option<u32>,
    /// The highest clock of the streaming multiprocessors.
    #[serde(default)]
    pub max_sm_clock_mhz: Option<u32>,
    /// The highest clock of the memory.
    #[serde(default)]
    pub max_memory_clock_mhz: Option<u32>,
    /// Use of the video encoder, percent.
    #[serde(default)]
    pub encoder_percent: Option<u32>,
    /// Use of the video decoder, percent.
    #[serde(default)]
    pub decoder_percent: Option<u32>,
    /// BAR1 window, bytes.
    #[serde(default)]
    pub bar1_total: Option<u64>,
    /// Used of it, bytes.
    #[serde(default)]
    pub bar1_used: u64,
    /// PCI Express link: generation and lanes, now and at most.
    #[serde(default)]
    pub pcie: Option<PcieScript>,
    /// NVLink traffic to and from the GPU, KiB a second (counted from boot).
    #[serde(default)]
    pub nvlink_kib_per_s: Option<[u64; 2]>,
    /// Degrees until clocks are lowered.
    #[serde(default)]
    pub thermal_margin_c: Option<i32>,
    /// The fabric of its `NVSwitches`: state (`nvmlGpuFabricState_t`) and status (`nvmlReturn_t`).
    #[serde(default)]
    pub fabric: Option<(u8, u32)>,
    /// Error correction is on.
    #[serde(default)]
    pub ecc_enabled: Option<bool>,
    /// Corrected errors since the driver was loaded.
    #[serde(default)]
    pub ecc_corrected: u64,
    /// Uncorrected errors since it was made.
    #[serde(default)]
    pub ecc_uncorrected_aggregate: u64,
    /// Corrected errors since it was made.
    #[serde(default)]
    pub ecc_corrected_aggregate: u64,
    /// Pages taken out of use.
    #[serde(default)]
    pub retired_pages: Option<u32>,
    /// Pages wait to be taken out of use.
    #[serde(default)]
    pub retired_pages_pending: Option<bool>,
    /// Rows replaced.
    #[serde(default)]
    pub remapped_rows: Option<u32>,
    /// Rows wait to be replaced.
    #[serde(default)]
    pub row_remap_pending: Option<bool>,
    /// A row could not be replaced.
    #[serde(default)]
    pub row_remap_failed: Option<bool>,
    /// Xid errors so far; one that is added is an event.
    #[serde(default)]
    pub xids: Vec<u64>,
    /// 0 default, 2 prohibited, 3 exclusive process (`nvmlComputeMode_t`).
    #[serde(default)]
    pub compute_mode: Option<u32>,
    /// The driver keeps it initialised.
    #[serde(default)]
    pub persistence: Option<bool>,
    /// It is divided into MIG instances.
    #[serde(default)]
    pub mig: Option<bool>,
    /// Its MIG instances.
    #[serde(default)]
    pub mig_instances: Vec<MigScript>,
    /// GPUs with the same number are behind one PCI Express switch.
    #[serde(default)]
    pub pcie_switch: Option<u32>,
    /// Why clocks are lowered: names of [`THROTTLE_REASONS`].
    #[serde(default)]
    pub throttle_reasons: Vec<String>,
    /// Uncorrected memory errors.
    #[serde(default)]
    pub ecc_uncorrected: u64,
    /// NUMA node.
    #[serde(default)]
    pub numa_node: Option<u32>,
    /// GPUs with the same number are linked by `NVLink`.
    #[serde(default)]
    pub nvlink_island: Option<u32>,
    /// Whether it can be used.
    #[serde(default)]
    pub health: Health,
    /// Names of fields the driver does not support on this GPU.
    #[serde(default)]
    pub absent: Vec<String>,
    /// Names of fields that the driver fails to read, each with its error (`nvmlReturn_t`); of a driver only.
    #[serde(default)]
    pub errors: BTreeMap<String, u32>,
}

/// The PCI Express link of a GPU.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcieScript {
    /// Generation now.
    pub generation: u32,
    /// Generation at most.
    pub max_generation: u32,
    /// Lanes now.
    pub width: u32,
    /// Lanes at most.
    pub max_width: u32,
    /// To the GPU, KiB a second.
    #[serde(default)]
    pub rx_kib_per_s: u32,
    /// From the GPU, KiB a second.
    #[serde(default)]
    pub tx_kib_per_s: u32,
}

/// A MIG instance.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigScript {
    /// `MIG-…`.
    pub uuid: String,
    /// Product and profile.
    pub name: String,
    /// Its place in the driver's list; the position in this one by default.
    #[serde(default)]
    pub place: Option<usize>,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes.
    #[serde(default)]
    pub memory_used: u64,
}

/// Whether a GPU of a scenario can be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It answers.
    #[default]
    Ok,
    /// It has fallen off the bus.
    Lost,
    /// It has uncorrected memory errors (at least one).
    Ecc,
}

fn default_driver() -> String {
    "550.90.07".to_owned()
}
fn default_cuda() -> String {
    "12.4".to_owned()
}
fn default_temperature() -> u32 {
    32
}
fn default_slowdown() -> u32 {
    87
}
fn default_power() -> u32 {
    70_000
}
fn default_power_limit() -> u32 {
    700_000
}
fn default_sm_clock() -> u32 {
    1_980
}
fn default_memory_clock() -> u32 {
    2_619
}

/// Why clocks are lowered, with the bits of `nvmlClocksThrottleReasons` (nvml.h).
pub const THROTTLE_REASONS: [(&str, u64); 6] = [
    ("sw_power_cap", 0x4),
    ("hw_slowdown", 0x8),
    ("sync_boost", 0x10),
    ("sw_thermal_slowdown", 0x20),
    ("hw_thermal_slowdown", 0x40),
    ("hw_power_brake", 0x80),
];

/// Links of a GPU that has any: as many as peers are up.
pub const NVLINKS: u32 = 18;

impl GpuScript {
    /// The driver answers for this field.
    pub fn has(&self, field: &str) -> bool {
        !self.absent.iter().any(|a| a == field)
    }

    /// Uncorrected memory errors, as the health wants them.
    pub fn ecc(&self) -> u64 {
        if self.health == Health::Ecc { self.ecc_uncorrected.max(1) } else { self.ecc_uncorrected }
    }

    /// What lies between this GPU and another: a number of `nvmlGpuTopologyLevel_t`.
    pub fn level(&self, other: &Self) -> u32 {
        const SINGLE: u32 = 10;
        const NODE: u32 = 40;
        const SYSTEM: u32 = 50;
        if self.pcie_switch.is_some() && self.pcie_switch == other.pcie_switch {
            SINGLE
        } else if self.numa_node == other.numa_node {
            NODE
        } else {
            SYSTEM
        }
    }

    /// The GPUs this one is linked with.
    pub fn peers<'a>(&'a self, all: &'a [Self]) -> impl Iterator<Item = &'a Self> {
        all.iter().filter(|other| {
            self.has("nvlink")
                && self.nvlink_island.is_some()
                && other.nvlink_island == self.nvlink_island
                && other.uuid != self.uuid
        })
    }
}

/// Memory of a process on a GPU: one element of an allocation file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Allocation {
    /// Whose.
    pub pid: u32,
    /// On which GPU, by UUID or by number.
    #[serde(alias = "gpu_uuid", alias = "uuid")]
    pub gpu: String,
    /// How much.
    pub bytes: u64,
    /// What it calls itself; only for people who read the file.
    #[serde(default)]
    pub name: String,
    /// Field 22 of /proc/PID/stat: with it a reused pid is not mistaken for the owner.
    #[serde(default)]
    pub start_time: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AllocationFile {
    One(Allocation),
    Several(Vec<Allocation>),
}

/// What a GPU of a scenario shows at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Bytes in use, what the driver reserves included.
    pub memory_used: u64,
    /// Percent.
    pub utilisation_percent: u32,
    /// Percent.
    pub memory_utilisation_percent: u32,
    /// Degrees Celsius.
    pub temperature_c: u32,
    /// Milliwatts.
    pub power_mw: u32,
    /// Living processes and their bytes, those on its MIG instances included.
    pub processes: Vec<(u32, u64)>,
    /// Bytes in use of each MIG instance, in the order of the script.
    pub instances: Vec<u64>,
}

/// Plays a scenario: reads its file again when it changed, and its allocations every time.
#[derive(Debug)]
pub struct Player {
    path: PathBuf,
    stamp: (Option<SystemTime>, u64),
    scenario: Scenario,
}

fn stamp(path: &Path) -> (Option<SystemTime>, u64) {
    fs::metadata(path).map_or((None, 0), |m| (m.modified().ok(), m.len()))
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut content)?;
    Ok(content)
}

fn load(path: &Path) -> io::Result<Scenario> {
    let mut scenario: Scenario = serde_json::from_slice(&read_bounded(path)?)?;
    if let (Some(dir), Some(parent)) = (&scenario.allocations, path.parent()) {
        scenario.allocations = Some(parent.join(dir));
    }
    if let (Some(file), Some(parent)) = (&scenario.calls, path.parent()) {
        scenario.calls = Some(parent.join(file));
    }
    if let (Some(file), Some(parent)) = (&scenario.xids_told, path.parent()) {
        scenario.xids_told = Some(parent.join(file));
    }
    for (position, gpu) in scenario.gpus.iter_mut().enumerate() {
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        gpu.index.get_or_insert(position);
        gpu.pci_bus_id.get_or_insert(format!("00000000:{:02X}:00.0", 0x10 + position));
    }
    Ok(scenario)
}

impl Player {
    /// Loads a scenario.
    ///
    /// # Errors
    /// The file cannot be read or is no scenario.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), stamp: stamp(path), scenario: load(path)? })
    }

    /// The scenario as it is now. A file that became unreadable leaves it as it was.
    pub fn scenario(&mut self) -> &Scenario {
        let now = stamp(&self.path);
        if now != self.stamp
            && let Ok(scenario) = load(&self.path)
        {
            self.scenario = scenario;
            self.stamp = now;
        }
        &self.scenario
    }

    /// The scenario as it was loaded last.
    pub fn loaded(&self) -> &Scenario {
        &self.scenario
    }

    /// What every GPU shows now, by UUID.
    pub fn read(&mut self) -> BTreeMap<String, Reading> {
        let scenario = self.scenario();
        let delay = Duration::from_millis(scenario.free_delay_ms);
        let held = scenario.allocations.as_ref().map(|d| held(d, delay)).unwrap_or_default();
        let seconds = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        let read = |(at, gpu): (u32, &GpuScript)| {
            let number = gpu.index.unwrap_or(at);
            (gpu.uuid.clone(), reading(gpu, number, &held, seconds))
        };
        (0..).zip(&scenario.gpus).map(read).collect()
    }
}

/// An allocation that still takes memory.
struct Held {
    allocation: Allocation,
    alive: bool,
}

fn reading(gpu: &GpuScript, number: u32, held: &[Held], seconds: f64) -> Reading {
    let mut reading = Reading {
        memory_used: gpu.memory_reserved,
        utilisation_percent: gpu.utilisation_percent.min(100),
        temperature_c: gpu.temperature_c,
        power_mw: gpu.power_mw,
        instances: gpu.mig_instances.iter().map(|part| part.memory_used).collect(),
        ..Reading::default()
    };
    for Held { allocation, alive } in held {
        let on = gpu.mig_instances.iter().position(|part| part.uuid == allocation.gpu);
        let is_its = allocation.gpu == gpu.uuid || allocation.gpu.parse() == Ok(number);
        if on.is_none() && !is_its {
            continue;
        }
        if let Some(used) = on.and_then(|at| reading.instances.get_mut(at)) {
            *used = used.saturating_add(allocation.bytes);
        }
        reading.memory_used = reading.memory_used.saturating_add(allocation.bytes);
        if *alive {
            reading.processes.push((allocation.pid, allocation.bytes));
        }
    }
    reading.memory_used = reading.memory_used.min(gpu.memory_total);
    if !reading.processes.is_empty() {
        // Busy GPUs wave between 35 and 85 above their base, each at its own moment.
        let phase = seconds / 6.0 + f64::from(gpu.index.unwrap_or(0)) * 1.3;
        let busy = 60.0 + 25.0 * phase.sin();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 35 to 85
        let busy = busy as u32;
        reading.utilisation_percent = (reading.utilisation_percent + busy).min(100);
        let share = reading.utilisation_percent;
        reading.temperature_c = gpu.temperature_c + share * 2 / 5;
        let headroom = gpu.power_limit_mw.saturating_sub(gpu.power_mw);
        reading.power_mw = gpu.power_mw + headroom / 100 * share;
    }
    reading.memory_utilisation_percent = reading.utilisation_percent / 2;
    reading.processes.sort_unstable();
    reading
}

/// All allocations that take memory now. A dead owner is noted beside its file (`NAME.dead`,
/// whose modification time is when its death was first seen), so that all readers agree when its
/// memory is free; then both files are removed.
fn held(dir: &Path, free_delay: Duration) -> Vec<Held> {
    let mut all = Vec::new();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json"));
    for path in files.take(MAX_ALLOCATIONS) {
        let Ok(content) = read_bounded(&path) else { continue };
        let allocations = match serde_json::from_slice(&content) {
            Ok(AllocationFile::One(one)) => vec![one],
            Ok(AllocationFile::Several(several)) => several,
            // Just being written.
            Err(_) => continue,
        };
        let alive = allocations.iter().all(|a| is_alive(a.pid, a.start_time));
        if !alive && is_freed(&path, free_delay) {
            continue;
        }
        if alive {
            // A stamp of an earlier process with this pid.
            let _ = fs::remove_file(path.with_extension("dead"));
        }
        all.extend(allocations.into_iter().map(|allocation| Held { allocation, alive }));
    }
    all
}

/// The owner of this allocation is dead: notes that, or forgets it when the delay has passed.
fn is_freed(path: &Path, free_delay: Duration) -> bool {
    let stamp = path.with_extension("dead");
    let noted = fs::OpenOptions::new().write(true).create_new(true).open(&stamp);
    let since = match noted {
        Ok(_) => Duration::ZERO,
        Err(_) => fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .ok()
            .and_then(|died| SystemTime::now().duration_since(died).ok())
            .unwrap_or_default(),
    };
    if since < free_delay {
        return false;
    }
    let _ = fs::remove_file(path);
    let _ = fs::remove_file(&stamp);
    true
}

/// Lives and is the same process; one that only waits to be reaped has lost its memory already.
fn is_alive(pid: u32, start_time: Option<u64>) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let Some((_, tail)) = stat.rsplit_once(')') else { return false };
    let mut fields = tail.split_ascii_whitespace();
    let dead = fields.next().is_none_or(|state| matches!(state, "Z" | "X" | "x"));
    let started = fields.nth(18).and_then(|s| s.parse::<u64>().ok());
    !dead && start_time.is_none_or(|expected| started == Some(expected))
}

//! GPUs as NVML shows them. Only ever used inside the child process: any call may hang.
//!
//! What is read when is [`Want`]'s doc; `tests/nvml_scenarios.rs` counts the calls.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::enum_wrappers::device::{
    Clock, EccCounter, MemoryError, PcieUtilCounter, PerformanceState, TemperatureSensor,
};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::{ProcessInfo, ProcessUtilizationSample};
use nvml_wrapper::sys_exports::field_id;
use nvml_wrapper::{Device, Nvml};

use super::nvml_events::{self, Xids};
use super::nvml_fields::{fabric, fields, over_all_links, thermal_margin};
use super::nvml_identity::{driver_of, identify, is_divided, parts};
use super::processes::{Listed, ProcessTable};
use super::roll::{self, Named, Roll};
use super::xids::XidTable;
use super::{DriverVersions, GpuSource, Want, health_of, wear};
use crate::base::Bytes;
use crate::base::text::clean;
use crate::wire::{Gpu, GpuHealth, GpuProcess, GpuVendor, Gpus, MemoryUse, ProcessKind, throttle};

/// Why there is no GPU of NVIDIA: nothing of it is installed,
pub const NO_LIBRARY: &str = "libnvidia-ml.so.1 not found: no NVIDIA driver is installed";

/// or its driver is there for none.
pub const NO_GPU: &str = "the driver shows no GPU";

/// Who the GPUs are is read again after so long.
const IDENTITY: Duration = Duration::from_mins(1);

/// What takes turns is read again after so long,
const TURN: Duration = Duration::from_millis(4_900);

/// and after so long while a person looks at it.
const TURN_LOOKED_AT: Duration = Duration::from_millis(1_900);

/// NVML, loaded at run time.
#[derive(Debug)]
pub struct NvmlSource {
    library: Option<PathBuf>,
    sysfs: PathBuf,
    /// Where the kernel module says what it holds; none: the library only plays GPUs.
    proc: Option<PathBuf>,
    nvml: Option<Arc<Nvml>>,
    versions: DriverVersions,
    cards: Vec<Card>,
    identified: Option<Instant>,
    turned: Option<Instant>,
    processes: ProcessTable,
    xids: Xids,
    watched: Option<fn(XidTable)>,
    /// Counters that no event tells of are looked at, too.
    looks: Option<fn(bool)>,
}

/// A GPU: what was read of it last, and what differences are taken against.
#[derive(Debug)]
struct Card {
    gpu: Gpu,
    /// The driver does not list it any more.
    gone: bool,
    /// Bytes over all `NVLinks` to and from the GPU, when.
    nvlink_before: Option<(Instant, u64, u64)>,
    /// Newest sample of processes' utilisation that was seen, microseconds.
    utilisation_seen: u64,
    /// Why something that every GPU tells could not be read.
    unread: Option<String>,
}

impl NvmlSource {
    /// From the library at `library`, or from where the driver installs it; what the kernel knows of the
    /// GPUs' slots is read below `sysfs`, `/sys` on a host, and in `proc` beside it.
    pub fn new(library: Option<PathBuf>, sysfs: PathBuf) -> Self {
        // A library that plays GPUs knows nothing of those that may be in this machine.
        let of_host = library.is_none() || sysfs != Path::new("/sys");
        Self {
            proc: of_host.then(|| sysfs.with_file_name("proc")),
            library,
            sysfs,
            nvml: None,
            versions: DriverVersions::default(),
            cards: Vec::new(),
            identified: None,
            turned: None,
            processes: ProcessTable::default(),
            xids: Xids::default(),
            watched: None,
            looks: None,
        }
    }

    /// Also waits for events, on a thread that lives as long as the process; each is told.
    #[must_use]
    pub fn watching(mut self, changed: fn(XidTable)) -> Self {
        self.watched = Some(changed);
        self
    }

    /// Also looks at what no event tells of once a second, beside the events: from the first reading on. `looking` is
    /// told when a look begins (true) and when it has ended.
    pub fn look(&mut self, looking: fn(bool)) {
        self.looks = Some(looking);
    }

    /// Takes over Xid errors that were told to an earlier process.
    pub fn learn(&self, known: &XidTable) {
        self.xids.learn(known);
    }

    /// Takes over which GPUs an earlier process has listed: who is missing among them is lost.
    pub fn remember(&mut self, roll: &Roll) {
        for named in roll.of(GpuVendor::Nvidia) {
            if self.cards.iter().all(|card| card.gpu.uuid != named.uuid) {
                self.cards.push(Card::gone(named));
            }
        }
    }

    fn load(&self) -> Result<Nvml, NvmlError> {
        match &self.library {
            Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
            None => Nvml::init(),
        }
    }

    fn nvml(&mut self) -> Result<Arc<Nvml>, NvmlError> {
        if let Some(nvml) = &self.nvml {
            return Ok(Arc::clone(nvml));
        }
        let nvml = Arc::new(self.load()?);
        self.versions = versions(&nvml);
        if let Some(changed) = self.watched {
            nvml_events::watch(Arc::clone(&nvml), self.xids.clone(), changed);
            if let Some(looking) = self.looks {
                let worn = move || changed(XidTable::default());
                wear::watch_nvidia(Arc::clone(&nvml), worn, looking);
            }
        }
        self.nvml = Some(Arc::clone(&nvml));
        Ok(nvml)
    }

    /// Reads who the GPUs are. One that the driver does not list any more stays, as lost.
    fn identify(&mut self, nvml: &Nvml, count: u32) {
        let known: Vec<Gpu> = self.cards.iter().map(|card| card.gpu.clone()).collect();
        let mut before = std::mem::take(&mut self.cards);
        for gpu in identify(nvml, count, &known, &self.sysfs) {
            let old = before.iter().position(|card| card.gpu.uuid == gpu.uuid);
            let old = old.map(|at| before.swap_remove(at));
            self.cards.push(Card {
                nvlink_before: old.as_ref().and_then(|card| card.nvlink_before),
                utilisation_seen: old.as_ref().map_or(0, |card| card.utilisation_seen),
                gone: false,
                unread: None,
                gpu: match old {
                    Some(card) => with_turns_of(gpu, card.gpu),
                    None => gpu,
                },
            });
        }
        // A nameless stand-in is no GPU that was there, and one that a virtual machine was given is not missing.
        before.retain(|card| {
            let bus = card.gpu.pci_bus_id.as_deref();
            let is_named = !card.is_nameless() && !card.gpu.uuid.starts_with("PCI-");
            is_named && driver_of(&self.sysfs, bus).as_deref() != Some("vfio-pci")
        });
        self.cards.extend(before.into_iter().map(|card| Card { gone: true, ..card }));
        self.ask_kernel();
        self.number_the_gone();
        self.identified = Some(Instant::now());
    }

    /// What the kernel module holds and the library does not list is lost as well, or was never started.
    fn ask_kernel(&mut self) {
        let mut missing = self.missing();
        for card in self.cards.iter_mut().filter(|card| card.is_nameless()) {
            let place = match card.gpu.pci_bus_id.as_deref() {
                Some(bus) => missing.iter().position(|named| named.is_at(bus)),
                // Both count in the order of the slots.
                None => (!missing.is_empty()).then_some(0),
            };
            if let Some(place) = place {
                card.gpu = Gpu { index: card.gpu.index, ..missing.remove(place).lost() };
            }
        }
        self.cards.extend(missing.iter().map(Card::gone));
    }

    /// The GPUs that the kernel module has and that are none of those known here.
    fn missing(&self) -> Vec<Named> {
        let mut held = self.proc.as_deref().map(roll::of_kernel).unwrap_or_default();
        held.retain(|named| {
            let is = |card: &Card| {
                let bus = card.gpu.pci_bus_id.as_deref();
                card.gpu.uuid == named.uuid || bus.is_some_and(|bus| named.is_at(bus))
            };
            !self.cards.iter().any(|card| !card.is_nameless() && is(card))
        });
        held
    }

    /// The driver counts anew when a GPU is gone: a number is one GPU's, and those it lists come first.
    fn number_the_gone(&mut self) {
        let (mut gone, listed): (Vec<_>, Vec<_>) = self.cards.drain(..).partition(|card| card.gone);
        self.cards = listed;
        gone.sort_by_key(|card| card.gpu.index);
        for mut card in gone {
            let taken = |index| self.cards.iter().any(|card| card.gpu.index == index);
            if card.gpu.index == u32::MAX || taken(card.gpu.index) {
                let next = self.cards.iter().map(|card| card.gpu.index.saturating_add(1)).max();
                card.gpu.index = next.unwrap_or(0);
            }
            self.cards.push(card);
        }
    }
}

impl GpuSource for NvmlSource {
    fn read(&mut self, want: Want) -> Gpus {
        let nvml = match self.nvml() {
            Ok(nvml) => nvml,
            Err(error) => return Gpus::None { why: why_not(&error) },
        };
        let count = match nvml.device_count() {
            Ok(0) if self.cards.is_empty() && self.missing().is_empty() => {
                return Gpus::None { why: NO_GPU.to_owned() };
            }
            Ok(count) => count,
            Err(error) => return Gpus::None { why: why_not(&error) },
        };
        let due = |read: Option<Instant>, after| read.is_none_or(|read| read.elapsed() >= after);
        let listed = self.cards.iter().filter(|card| !card.gone).count();
        if due(self.identified, IDENTITY) || listed != usize::try_from(count).unwrap_or(0) {
            self.identify(&nvml, count);
        }
        let turn = match want {
            Want::Due => due(self.turned, TURN),
            Want::LookedAt => due(self.turned, TURN_LOOKED_AT),
            Want::Fresh => true,
        };
        // A decision that hangs on it must not be about instances that are gone.
        if want == Want::Fresh && self.cards.iter().any(|card| card.is_divided_otherwise(&nvml)) {
            self.identify(&nvml, count);
        }
        if turn {
            self.processes.next_round();
            self.turned = Some(Instant::now());
        }
        let mut gpus = Vec::with_capacity(self.cards.len());
        for card in &mut self.cards {
            let seen = self.xids.of(&card.gpu.uuid);
            (card.gpu.xid, card.gpu.grave_xid) = (seen.last, seen.grave);
            let device = if card.gone {
                Err(NvmlError::GpuLost)
            } else {
                nvml.device_by_index(card.gpu.index)
            };
            let health = match device {
                Ok(device) => {
                    let table = if turn { Some(&mut self.processes) } else { None };
                    card.read(&device, want, table)
                }
                Err(error) => Err(error),
            };
            gpus.push(match health {
                Ok(()) => Gpu { health: card.health(), ..card.gpu.clone() },
                Err(NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::NotFound) => {
                    lost(&card.gpu)
                }
                Err(error) => {
                    let why = clean(&error.to_string(), 120);
                    Gpu { health: GpuHealth::Degraded { why }, ..lost(&card.gpu) }
                }
            });
        }
        gpus.sort_by_key(|gpu| gpu.index);
        Gpus::Some(gpus)
    }

    fn versions(&self) -> DriverVersions {
        self.versions.clone()
    }
}

/// Why NVML cannot be used, with what to do where that is known.
fn why_not(error: &NvmlError) -> String {
    let words = clean(&error.to_string(), 250);
    match error {
        NvmlError::LibRmVersionMismatch => format!(
            "{words}: the driver's library and the loaded kernel module differ; reboot the host or reload the module"
        ),
        NvmlError::LibloadingError(_) if words.contains("No such file") => NO_LIBRARY.to_owned(),
        NvmlError::DriverNotLoaded => format!("{words}: modprobe nvidia"),
        NvmlError::NoPermission => format!("{words}: add the user to the group of /dev/nvidia*"),
        _ => words,
    }
}

fn versions(nvml: &Nvml) -> DriverVersions {
    let cuda = nvml.sys_cuda_driver_version().ok();
    DriverVersions {
        driver: nvml.sys_driver_version().ok().map(|v| clean(&v, 40)),
        cuda: cuda.map(|v| format!("{}.{}", v / 1000, v % 1000 / 10)),
    }
}

/// What a lost GPU still tells: who it was.
fn lost(gpu: &Gpu) -> Gpu {
    Gpu {
        index: gpu.index,
        uuid: gpu.uuid.clone(),
        name: gpu.name.clone(),
        pci_bus_id: gpu.pci_bus_id.clone(),
        xid: gpu.xid,
        grave_xid: gpu.grave_xid,
        health: GpuHealth::Lost,
        ..Gpu::default()
    }
}

/// A newly read identity with what takes turns of the reading before.
fn with_turns_of(mut identity: Gpu, before: Gpu) -> Gpu {
    for part in &mut identity.mig_instances {
        part.memory =
            before.mig_instances.iter().find(|p| p.uuid == part.uuid).and_then(|p| p.memory);
    }
    Gpu {
        uuid: identity.uuid,
        name: identity.name,
        index: identity.index,
        pci_bus_id: identity.pci_bus_id,
        power_limit_mw: identity.power_limit_mw,
        slowdown_temperature_c: identity.slowdown_temperature_c,
        shutdown_temperature_c: identity.shutdown_temperature_c,
        max_sm_clock_mhz: identity.max_sm_clock_mhz,
        max_memory_clock_mhz: identity.max_memory_clock_mhz,
        pcie: crate::wire::PcieLink {
            max_generation: identity.pcie.max_generation,
            max_width: identity.pcie.max_width,
            ..before.pcie
        },
        nvlink: crate::wire::NvLinks {
            links: identity.nvlink.links,
            active: identity.nvlink.active,
            ..before.nvlink
        },
        ecc_enabled: identity.ecc_enabled,
        compute_mode: identity.compute_mode,
        persistence: identity.persistence,
        mig: identity.mig,
        mig_instances: identity.mig_instances,
        nvlink_peers: identity.nvlink_peers,
        paths: identity.paths,
        numa_node: identity.numa_node,
        ..before
    }
}

impl Card {
    /// One that the driver does not list.
    fn gone(named: &Named) -> Self {
        Self {
            gpu: named.lost(),
            gone: true,
            nvlink_before: None,
            utilisation_seen: 0,
            unread: None,
        }
    }

    /// A stand-in for a GPU that does not say who it is.
    fn is_nameless(&self) -> bool {
        self.gpu.uuid.starts_with("index-")
    }

    /// As the counters say, if all that tells of it could be read.
    fn health(&self) -> GpuHealth {
        match (health_of(&self.gpu), &self.unread) {
            (GpuHealth::Ok, Some(why)) => GpuHealth::Degraded { why: why.clone() },
            (health, _) => health,
        }
    }

    /// The GPU is divided in another way than when it was identified.
    fn is_divided_otherwise(&self, nvml: &Nvml) -> bool {
        let Ok(device) = nvml.device_by_index(self.gpu.index) else { return false };
        let mode = is_divided(&device);
        let known = self.gpu.mig_instances.iter().map(|part| &part.uuid);
        // A GPU that does not answer is as it was.
        !self.gone
            && mode.is_some()
            && (mode != self.gpu.mig
                || mode == Some(true) && !known.eq(parts(&device).iter().map(|(uuid, _)| uuid)))
    }

    /// Reads the GPU; with a table of processes also what takes turns.
    fn read(
        &mut self,
        device: &Device<'_>,
        want: Want,
        table: Option<&mut ProcessTable>,
    ) -> Result<(), NvmlError> {
        let gpu = &mut self.gpu;
        // Every GPU that answers knows its memory; one that has fallen off the bus says so here.
        (gpu.memory, self.unread) = match device.memory_info() {
            Ok(memory) => {
                let used = Bytes(memory.total.saturating_sub(memory.free));
                (Some(MemoryUse { used, total: Bytes(memory.total) }), None)
            }
            Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => return Err(error),
            // It has none of its own, or its driver is too old to be asked.
            Err(
                NvmlError::NotSupported
                | NvmlError::FunctionNotFound
                | NvmlError::FailedToLoadSymbol(_),
            ) => (None, None),
            // Of a divided GPU only root is told.
            Err(NvmlError::NoPermission) if gpu.mig == Some(true) => (None, None),
            Err(error) => (None, Some(clean(&format!("its memory cannot be read: {error}"), 120))),
        };
        let rates = device.utilization_rates().ok();
        gpu.utilisation_percent = rates.as_ref().map(|r| r.gpu);
        gpu.memory_utilisation_percent = rates.as_ref().map(|r| r.memory);
        gpu.temperature_c = device.temperature(TemperatureSensor::Gpu).ok();
        gpu.power_mw = device.power_usage().ok();
        gpu.sm_clock_mhz = device.clock_info(Clock::SM).ok();
        gpu.throttle_reasons =
            device.current_throttle_reasons().ok().map(|reasons| throttle::names(reasons.bits()));
        if want == Want::LookedAt {
            self.traffic(device);
        } else if want == Want::Due {
            let gpu = &mut self.gpu;
            (gpu.pcie.rx_bytes_per_s, gpu.pcie.tx_bytes_per_s) = (None, None);
            (gpu.nvlink.rx_bytes_per_s, gpu.nvlink.tx_bytes_per_s) = (None, None);
            self.nvlink_before = None;
        }
        if let Some(table) = table {
            self.take_turn(device, table);
        }
        Ok(())
    }

    /// What costs much: each PCI Express counter is watched for 20 ms by the driver.
    fn traffic(&mut self, device: &Device<'_>) {
        let gpu = &mut self.gpu;
        let pcie = |way| device.pcie_throughput(way).ok().map(|kib| u64::from(kib) * 1024);
        gpu.pcie.rx_bytes_per_s = pcie(PcieUtilCounter::Receive);
        gpu.pcie.tx_bytes_per_s = pcie(PcieUtilCounter::Send);
        if gpu.nvlink.active.unwrap_or(0) == 0 {
            (gpu.nvlink.rx_bytes_per_s, gpu.nvlink.tx_bytes_per_s) = (None, None);
            self.nvlink_before = None;
            return;
        }
        let ids = [
            field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX,
            field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX,
        ];
        let now = Instant::now();
        let counters = match over_all_links(device, &ids).as_slice() {
            [Some(rx), Some(tx)] => Some((now, *rx, *tx)),
            _ => None,
        };
        let before = std::mem::replace(&mut self.nvlink_before, counters);
        let rates = counters.zip(before).and_then(|((now, rx, tx), (then, rx_was, tx_was))| {
            let millis = u64::try_from(now.duration_since(then).as_millis()).ok()?.max(1);
            // The counters are in KiB.
            let rate = |new: u64, old: u64| {
                new.checked_sub(old).map(|kib| kib.saturating_mul(1024 * 1000) / millis)
            };
            Some((rate(rx, rx_was)?, rate(tx, tx_was)?))
        });
        gpu.nvlink.rx_bytes_per_s = rates.map(|r| r.0);
        gpu.nvlink.tx_bytes_per_s = rates.map(|r| r.1);
    }

    fn take_turn(&mut self, device: &Device<'_>, table: &mut ProcessTable) {
        let gpu = &mut self.gpu;
        gpu.fan_percent = device.fan_speed(0).ok();
        gpu.thermal_margin_c = thermal_margin(device);
        gpu.fabric = fabric(device);
        gpu.memory_clock_mhz = device.clock_info(Clock::Memory).ok();
        gpu.pstate = device.performance_state().ok().and_then(pstate).map(Into::into);
        gpu.encoder_percent = device.encoder_utilization().ok().map(|u| u.utilization);
        gpu.decoder_percent = device.decoder_utilization().ok().map(|u| u.utilization);
        gpu.bar1 = device
            .bar1_memory_info()
            .ok()
            .map(|b| MemoryUse { used: Bytes(b.used), total: Bytes(b.total) });
        gpu.pcie.generation = device.current_pcie_link_gen().ok();
        gpu.pcie.width = device.current_pcie_link_width().ok();
        let ecc = |error, counter| device.total_ecc_errors(error, counter).ok();
        gpu.ecc_uncorrected = ecc(MemoryError::Uncorrected, EccCounter::Volatile);
        // Without that one it counts none, and what it counted before is of another time.
        let counts = gpu.ecc_uncorrected.is_some();
        let other = |error, counter| counts.then(|| ecc(error, counter)).flatten();
        gpu.ecc_corrected = other(MemoryError::Corrected, EccCounter::Volatile);
        gpu.ecc_uncorrected_aggregate = other(MemoryError::Uncorrected, EccCounter::Aggregate);
        gpu.ecc_corrected_aggregate = other(MemoryError::Corrected, EccCounter::Aggregate);
        worn_out(device, gpu);
        let parts = if gpu.mig == Some(true) { parts(device) } else { Vec::new() };
        for part in &mut gpu.mig_instances {
            let there = parts.iter().find(|(uuid, _)| *uuid == part.uuid);
            let memory = there.and_then(|(_, device)| device.memory_info().ok());
            part.memory = memory.map(|m| MemoryUse {
                used: Bytes(m.total.saturating_sub(m.free)),
                total: Bytes(m.total),
            });
        }
        gpu.processes = processes(device, table, &mut self.utilisation_seen);
    }
}

/// Memory that was taken out of use. GPUs answer for pages or for rows, by generation.
fn worn_out(device: &Device<'_>, gpu: &mut Gpu) {
    let ids = [
        field_id::NVML_FI_DEV_RETIRED_SBE,
        field_id::NVML_FI_DEV_RETIRED_DBE,
        field_id::NVML_FI_DEV_RETIRED_PENDING,
        field_id::NVML_FI_DEV_REMAPPED_COR,
        field_id::NVML_FI_DEV_REMAPPED_UNC,
        field_id::NVML_FI_DEV_REMAPPED_PENDING,
        field_id::NVML_FI_DEV_REMAPPED_FAILURE,
    ];
    let values = fields(device, &ids);
    let value = |at: usize| values.get(at).copied().flatten();
    let sum = |a: usize, b: usize| {
        let sum = value(a)?.saturating_add(value(b)?);
        Some(u32::try_from(sum).unwrap_or(u32::MAX))
    };
    let flag = |at: usize| value(at).map(|v| v != 0);
    gpu.retired_pages = sum(0, 1);
    gpu.retired_pages_pending = flag(2);
    gpu.remapped_rows = sum(3, 4);
    gpu.row_remap_pending = flag(5);
    gpu.row_remap_failed = flag(6);
}

/// Who uses a GPU; none where the driver does not say: a divided GPU's processes are told to root alone.
fn processes(
    device: &Device<'_>,
    table: &mut ProcessTable,
    seen: &mut u64,
) -> Option<Vec<GpuProcess>> {
    // Drivers before R510 have the second version of these calls alone.
    let is_old = |error: &NvmlError| {
        matches!(error, NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound)
    };
    let compute = match device.running_compute_processes() {
        Err(error) if is_old(&error) => device.running_compute_processes_v2(),
        answer => answer,
    };
    let graphics = match device.running_graphics_processes() {
        Err(error) if is_old(&error) => device.running_graphics_processes_v2(),
        answer => answer,
    };
    let compute = compute.ok()?;
    let graphics = match graphics {
        // Nothing can draw on it.
        Err(NvmlError::NotSupported) => Vec::new(),
        answer => answer.ok()?,
    };
    let mut by_pid: BTreeMap<u32, Listed> = BTreeMap::new();
    let of = |list: Vec<ProcessInfo>, kind| list.into_iter().map(move |p| (p, kind));
    for (ProcessInfo { pid, used_gpu_memory, .. }, kind) in
        of(compute, ProcessKind::Compute).chain(of(graphics, ProcessKind::Graphics))
    {
        let bytes = match used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        // A process that computes and draws is listed in both with the same memory.
        let entry = by_pid.entry(pid).or_default();
        entry.bytes = entry.bytes.max(bytes);
        entry.kind = match entry.kind {
            Some(other) if other != kind => Some(ProcessKind::Both),
            _ => Some(kind),
        };
    }
    if !by_pid.is_empty() {
        let samples = device.process_utilization_stats(*seen).unwrap_or_default();
        share_out(&samples, seen, &mut by_pid);
    }
    Some(by_pid.into_iter().map(|(pid, listed)| table.describe(pid, listed)).collect())
}

/// Gives processes their newest shares. A driver also hands out samples that are older than it was asked for, in any
/// order, and such that were never written: a share above 100 is none.
fn share_out(
    samples: &[ProcessUtilizationSample],
    seen: &mut u64,
    by_pid: &mut BTreeMap<u32, Listed>,
) {
    let since = *seen;
    let mut newest: BTreeMap<u32, u64> = BTreeMap::new();
    let share = |percent: u32| (percent <= 100).then_some(percent);
    for sample in samples.iter().filter(|sample| sample.timestamp > since) {
        let shares = [sample.sm_util, sample.mem_util, sample.enc_util, sample.dec_util];
        if shares.iter().any(|percent| share(*percent).is_none()) {
            continue;
        }
        let Some(listed) = by_pid.get_mut(&sample.pid) else { continue };
        let last = newest.entry(sample.pid).or_default();
        if sample.timestamp >= *last {
            *last = sample.timestamp;
            listed.sm_percent = share(sample.sm_util);
            listed.encoder_percent = share(sample.enc_util);
            listed.decoder_percent = share(sample.dec_util);
        }
        *seen = (*seen).max(sample.timestamp);
    }
}

fn pstate(state: PerformanceState) -> Option<String> {
    let number = match state {
        PerformanceState::Unknown => return None,
        known => known.as_c(),
    };
    Some(format!("P{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::gpu::scenario::THROTTLE_REASONS;

    fn sample(pid: u32, timestamp: u64, sm_util: u32) -> ProcessUtilizationSample {
        ProcessUtilizationSample { pid, timestamp, sm_util, mem_util: 0, enc_util: 1, dec_util: 2 }
    }

    #[test]
    fn a_share_that_a_driver_makes_up_is_none() {
        let listed = |pid: u32| (pid, Listed::default());
        let mut by_pid = BTreeMap::from([1, 2, 3].map(listed));
        let mut seen = 100;
        let samples = [
            sample(1, 300, 40),
            sample(1, 200, 90),
            // Not written, older than asked for, and of nobody who is listed.
            sample(2, 250, 4_294_967_295),
            sample(3, 100, 70),
            sample(9, 900, 10),
        ];
        share_out(&samples, &mut seen, &mut by_pid);
        let shares: Vec<_> = by_pid.values().map(|l| (l.sm_percent, l.decoder_percent)).collect();
        assert_eq!(shares, [(Some(40), Some(2)), (None, None), (None, None)]);
        assert_eq!(seen, 300);
    }

    #[test]
    fn the_simulated_library_throttles_as_the_driver_does() {
        assert_eq!(THROTTLE_REASONS, throttle::REASONS);
    }
}

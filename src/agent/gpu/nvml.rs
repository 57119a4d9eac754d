//! GPUs as NVML shows them. Only ever used inside the child process: any call may hang.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nvml_wrapper::enum_wrappers::device::{
    Clock, EccCounter, MemoryError, PerformanceState, TemperatureSensor, TemperatureThreshold,
};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};

use super::played::describe;
use super::scenario::THROTTLE_REASONS;
use super::{DriverVersions, GpuSource, health_of};
use crate::base::Bytes;
use crate::base::text::clean;
use crate::wire::{Gpu, GpuHealth, Gpus, MemoryUse};

/// What hardly ever changes is read again after so long.
const REREAD: Duration = Duration::from_mins(1);

/// `NVML_NVLINK_MAX_LINKS`.
const MAX_LINKS: u32 = 18;

/// NVML, loaded at run time.
#[derive(Debug)]
pub struct NvmlSource {
    library: Option<PathBuf>,
    nvml: Option<Nvml>,
    versions: DriverVersions,
    identities: BTreeMap<u32, Identity>,
    identities_read: Option<Instant>,
}

/// What hardly ever changes of a GPU; kept for when it falls off the bus.
#[derive(Clone, Debug, Default)]
struct Identity {
    uuid: String,
    name: String,
    pci_bus_id: Option<String>,
    power_limit_mw: Option<u32>,
    slowdown_temperature_c: Option<u32>,
    numa_node: Option<u32>,
    nvlink_peers: Vec<String>,
}

/// The far ends of a GPU's NV-Links.
#[derive(Debug, Default)]
struct Links {
    /// Bus ids of GPUs at the other end.
    to: Vec<String>,
    /// Links that are up.
    active: usize,
}

impl NvmlSource {
    /// From the library at `library`, or from where the driver installs it.
    pub fn new(library: Option<PathBuf>) -> Self {
        Self {
            library,
            nvml: None,
            versions: DriverVersions::default(),
            identities: BTreeMap::new(),
            identities_read: None,
        }
    }

    fn load(&self) -> Result<Nvml, NvmlError> {
        match &self.library {
            Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
            None => Nvml::init(),
        }
    }
}

impl GpuSource for NvmlSource {
    fn read(&mut self) -> Gpus {
        if self.nvml.is_none() {
            match self.load() {
                Ok(nvml) => {
                    self.versions = versions(&nvml);
                    self.nvml = Some(nvml);
                }
                Err(error) => return Gpus::None { why: clean(&error.to_string(), 300) },
            }
        }
        let Some(nvml) = &self.nvml else { return Gpus::None { why: String::new() } };
        let count = match nvml.device_count() {
            Ok(0) => return Gpus::None { why: "the driver shows no GPU".to_owned() },
            Ok(count) => count,
            Err(error) => return Gpus::None { why: clean(&error.to_string(), 300) },
        };
        let stale = self.identities_read.is_none_or(|read| read.elapsed() >= REREAD);
        if stale || self.identities.len() != count as usize {
            identify(nvml, count, &mut self.identities);
            self.identities_read = Some(Instant::now());
        }
        let gpus = (0..count).map(|index| {
            let known = self.identities.get(&index).cloned().unwrap_or_default();
            gpu(index, nvml.device_by_index(index), known)
        });
        Gpus::Some(gpus.collect())
    }

    fn versions(&self) -> DriverVersions {
        self.versions.clone()
    }
}

fn versions(nvml: &Nvml) -> DriverVersions {
    let cuda = nvml.sys_cuda_driver_version().ok();
    DriverVersions {
        driver: nvml.sys_driver_version().ok().map(|v| clean(&v, 40)),
        cuda: cuda.map(|v| format!("{}.{}", v / 1000, v % 1000 / 10)),
    }
}

/// Reads what hardly ever changes. What a lost GPU does not say any more is kept.
fn identify(nvml: &Nvml, count: u32, known: &mut BTreeMap<u32, Identity>) {
    known.retain(|index, _| *index < count);
    let mut links: BTreeMap<u32, Links> = BTreeMap::new();
    for index in 0..count {
        let identity = known.entry(index).or_default();
        if identity.uuid.is_empty() {
            identity.uuid = format!("index-{index}");
            "GPU".clone_into(&mut identity.name);
        }
        let Ok(device) = nvml.device_by_index(index) else { continue };
        if let Ok(uuid) = device.uuid() {
            identity.uuid = clean(&uuid, 80);
        }
        if let Ok(name) = device.name() {
            identity.name = clean(&name, 96);
        }
        if let Ok(pci) = device.pci_info() {
            identity.pci_bus_id = Some(clean(&pci.bus_id, 32));
        }
        identity.power_limit_mw =
            device.enforced_power_limit().or_else(|_| device.power_management_limit()).ok();
        identity.slowdown_temperature_c =
            device.temperature_threshold(TemperatureThreshold::Slowdown).ok();
        identity.numa_node = device.numa_node_id().ok();
        links.insert(index, links_of(&device));
    }
    link_up(known, &links);
}

fn links_of(device: &Device<'_>) -> Links {
    let mut links = Links::default();
    for number in 0..MAX_LINKS {
        let link = device.link_wrapper_for(number);
        match link.is_active() {
            Ok(true) => {
                links.active += 1;
                links.to.extend(link.remote_pci_info().ok().map(|pci| pci.bus_id));
            }
            Ok(false) => {}
            // No NVLink at all, or no link of that number.
            Err(_) => break,
        }
    }
    links
}

/// Who is linked with whom. Links that end in no GPU end in a switch, and all GPUs on switches
/// reach each other.
fn link_up(known: &mut BTreeMap<u32, Identity>, links: &BTreeMap<u32, Links>) {
    let by_bus: BTreeMap<String, u32> = known
        .iter()
        .filter_map(|(index, k)| Some((k.pci_bus_id.as_ref()?.to_ascii_lowercase(), *index)))
        .collect();
    let far_end = |bus: &String| by_bus.get(&bus.to_ascii_lowercase()).copied();
    let on_switch: Vec<u32> = links
        .iter()
        .filter(|(_, l)| l.active > l.to.iter().filter(|bus| far_end(bus).is_some()).count())
        .map(|(index, _)| *index)
        .collect();
    let uuids: BTreeMap<u32, String> =
        known.iter().map(|(index, k)| (*index, k.uuid.clone())).collect();
    for (index, identity) in known {
        let Some(own) = links.get(index) else { continue };
        let mut peers: Vec<u32> = own.to.iter().filter_map(far_end).collect();
        if on_switch.contains(index) {
            peers.extend(&on_switch);
        }
        peers.sort_unstable();
        peers.dedup();
        peers.retain(|peer| peer != index);
        identity.nvlink_peers = peers.iter().filter_map(|p| uuids.get(p).cloned()).collect();
    }
}

fn gpu(index: u32, device: Result<Device<'_>, NvmlError>, known: Identity) -> Gpu {
    let mut gpu = Gpu {
        index,
        uuid: known.uuid,
        name: known.name,
        health: GpuHealth::Ok,
        pci_bus_id: known.pci_bus_id,
        ..Gpu::default()
    };
    let device = match device {
        Ok(device) => device,
        Err(error) => {
            gpu.health = health_of_error(&error);
            return gpu;
        }
    };
    // Every GPU that answers knows its memory; one that has fallen off the bus says so here.
    match device.memory_info() {
        Ok(memory) => {
            let used = Bytes(memory.total.saturating_sub(memory.free));
            gpu.memory = Some(MemoryUse { used, total: Bytes(memory.total) });
        }
        Err(NvmlError::GpuLost | NvmlError::ResetRequired) => {
            gpu.health = GpuHealth::Lost;
            return gpu;
        }
        Err(_) => {}
    }
    if let Ok(utilisation) = device.utilization_rates() {
        gpu.utilisation_percent = Some(utilisation.gpu);
        gpu.memory_utilisation_percent = Some(utilisation.memory);
    }
    gpu.temperature_c = device.temperature(TemperatureSensor::Gpu).ok();
    gpu.slowdown_temperature_c = known.slowdown_temperature_c;
    gpu.power_mw = device.power_usage().ok();
    gpu.power_limit_mw = known.power_limit_mw;
    gpu.fan_percent = device.fan_speed(0).ok();
    gpu.sm_clock_mhz = device.clock_info(Clock::SM).ok();
    gpu.memory_clock_mhz = device.clock_info(Clock::Memory).ok();
    gpu.pstate = device.performance_state().ok().and_then(pstate);
    let reasons = device.current_throttle_reasons().map_or(0, |r| r.bits());
    gpu.throttle_reasons = THROTTLE_REASONS
        .iter()
        .filter(|(_, bit)| reasons & bit != 0)
        .map(|(name, _)| (*name).to_owned())
        .collect();
    gpu.ecc_uncorrected =
        device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).ok();
    gpu.health = health_of(gpu.ecc_uncorrected);
    gpu.nvlink_peers = known.nvlink_peers;
    gpu.numa_node = known.numa_node;
    gpu.processes = processes(&device);
    gpu
}

fn health_of_error(error: &NvmlError) -> GpuHealth {
    match error {
        NvmlError::GpuLost | NvmlError::ResetRequired | NvmlError::NotFound => GpuHealth::Lost,
        other => GpuHealth::Degraded { why: clean(&other.to_string(), 120) },
    }
}

fn processes(device: &Device<'_>) -> Vec<crate::wire::GpuProcess> {
    let mut by_pid: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    let compute = device.running_compute_processes().unwrap_or_default();
    let graphics = device.running_graphics_processes().unwrap_or_default();
    for ProcessInfo { pid, used_gpu_memory, .. } in compute.into_iter().chain(graphics) {
        let bytes = match used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        // A process that computes and draws is listed in both with the same memory.
        let entry = by_pid.entry(pid).or_default();
        *entry = (*entry).max(bytes);
    }
    by_pid.into_iter().map(|(pid, bytes)| describe(pid, bytes)).collect()
}

fn pstate(state: PerformanceState) -> Option<String> {
    let number = match state {
        PerformanceState::Unknown => return None,
        known => known.as_c(),
    };
    Some(format!("P{number}"))
}

//! What hardly ever changes of NVIDIA GPUs: who they are, what they can, how they are linked.

use std::collections::BTreeMap;
use std::path::Path;

use nvml_wrapper::enum_wrappers::device::{
    Clock, ComputeMode, TemperatureThreshold, TopologyLevel,
};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use smol_str::SmolStr;

use crate::agent::hardware;
use crate::base::text::clean;
use crate::wire::{Gpu, GpuPath, MigInstance, NvLinks, PathKind};

/// `NVML_NVLINK_MAX_LINKS`.
const MAX_LINKS: u32 = 18;

/// Most MIG instances of a GPU that are looked at (the hardware has seven).
const MAX_MIG: u32 = 16;

/// The far ends of a GPU's `NVLinks`.
#[derive(Debug, Default)]
struct Links {
    /// Bus ids of GPUs at the other end.
    to: Vec<String>,
    there: u32,
    active: u32,
}

/// Reads who the GPUs are, in the driver's order. What a GPU does not say (any more) is taken
/// from `known`, by index: a lost GPU is still the one it was, unless that one answers elsewhere.
/// NUMA nodes are in `sysfs` (`/sys` on a host).
pub fn identify(nvml: &Nvml, count: u32, known: &[Gpu], sysfs: &Path) -> Vec<Gpu> {
    let mut links: BTreeMap<usize, Links> = BTreeMap::new();
    let mut gpus = Vec::new();
    for index in 0..count {
        let gpu = match nvml.device_by_index(index) {
            Ok(device) => {
                links.insert(gpus.len(), links_of(&device));
                identity(index, &device, sysfs)
            }
            Err(_) => Gpu { index, ..Gpu::default() },
        };
        gpus.push(gpu);
    }
    for at in 0..gpus.len() {
        let Some(silent) = gpus.get(at).filter(|gpu| gpu.uuid.is_empty()) else { continue };
        let index = silent.index;
        let answers = |uuid: &SmolStr| gpus.iter().any(|gpu| gpu.uuid == *uuid);
        let before = known.iter().find(|k| k.index == index && !answers(&k.uuid));
        let gpu = before.cloned().unwrap_or_else(|| Gpu {
            index,
            uuid: format!("index-{index}").into(),
            name: "GPU".into(),
            pci_bus_id: silent.pci_bus_id.clone(),
            ..Gpu::default()
        });
        if let Some(place) = gpus.get_mut(at) {
            *place = gpu;
        }
    }
    link_up(&mut gpus, &links);
    find_paths(nvml, &mut gpus);
    gpus
}

fn identity(index: u32, device: &Device<'_>, sysfs: &Path) -> Gpu {
    let bus = device.pci_info().ok().map(|pci| clean(&pci.bus_id, 32));
    let mig = is_divided(device);
    Gpu {
        index,
        uuid: device.uuid().map(|uuid| clean(&uuid, 80)).unwrap_or_default().into(),
        name: device.name().map_or_else(|_| "GPU".to_owned(), |name| clean(&name, 96)).into(),
        pci_bus_id: bus.as_deref().map(Into::into),
        power_limit_mw: device
            .enforced_power_limit()
            .or_else(|_| device.power_management_limit())
            .ok(),
        slowdown_temperature_c: device.temperature_threshold(TemperatureThreshold::Slowdown).ok(),
        shutdown_temperature_c: device.temperature_threshold(TemperatureThreshold::Shutdown).ok(),
        max_sm_clock_mhz: device.max_clock_info(Clock::SM).ok(),
        max_memory_clock_mhz: device.max_clock_info(Clock::Memory).ok(),
        pcie: crate::wire::PcieLink {
            max_generation: device.max_pcie_link_gen().ok(),
            max_width: device.max_pcie_link_width().ok(),
            ..crate::wire::PcieLink::default()
        },
        ecc_enabled: device.is_ecc_enabled().ok().map(|state| state.currently_enabled),
        compute_mode: device
            .compute_mode()
            .ok()
            .map(|mode| compute_mode(&mode).to_owned())
            .map(Into::into),
        persistence: device.is_in_persistent_mode().ok(),
        mig,
        mig_instances: if mig == Some(true) { mig_instances(device) } else { Vec::new() },
        numa_node: numa_node(sysfs, bus.as_deref()).or_else(|| device.numa_node_id().ok()),
        ..Gpu::default()
    }
}

/// The NUMA node of the slot. NVML tells one only where the GPU's own memory is a node.
fn numa_node(sysfs: &Path, bus: Option<&str>) -> Option<u32> {
    let device = sysfs.join("bus/pci/devices").join(kernels_name(bus?)?);
    // On a machine with one node it is -1: none.
    hardware::number(&device.join("numa_node"))
}

/// The kernel's driver that has the GPU in its hands.
pub fn driver_of(sysfs: &Path, bus: Option<&str>) -> Option<String> {
    let device = sysfs.join("bus/pci/devices").join(kernels_name(bus?)?);
    let driver = std::fs::read_link(device.join("driver")).ok()?;
    Some(driver.file_name()?.to_str()?.to_owned())
}

/// `00000000:3B:00.0`, as the kernel writes it: `0000:3b:00.0`.
fn kernels_name(bus: &str) -> Option<String> {
    let mut parts = bus.split([':', '.']).map(|part| u32::from_str_radix(part, 16).ok());
    let mut next = || parts.next().flatten();
    let (domain, bus, device, function) = (next()?, next()?, next()?, next()?);
    Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}

const fn compute_mode(mode: &ComputeMode) -> &'static str {
    match mode {
        ComputeMode::Default => "default",
        ComputeMode::ExclusiveThread => "exclusive_thread",
        ComputeMode::Prohibited => "prohibited",
        ComputeMode::ExclusiveProcess => "exclusive_process",
    }
}

/// Whether the GPU is divided now.
pub fn is_divided(device: &Device<'_>) -> Option<bool> {
    device.mig_mode().ok().map(|mode| mode.current == 1)
}

/// The MIG instances that are there now, by UUID. An instance that was removed leaves its place empty
/// for the next one of its kind, so a place is nothing to know an instance by.
pub fn parts<'nvml>(device: &Device<'nvml>) -> Vec<(SmolStr, Device<'nvml>)> {
    let most = device.mig_device_count().unwrap_or(0).min(MAX_MIG);
    let instances = (0..most).filter_map(|at| device.mig_device_by_index(at).ok());
    let known = |part: Device<'nvml>| {
        let uuid = part.uuid().map(|u| clean(&u, 80)).unwrap_or_default();
        (uuid.into(), part)
    };
    instances.map(known).collect()
}

/// The MIG instances of a GPU; their memory is read with the rest that takes turns.
fn mig_instances(device: &Device<'_>) -> Vec<MigInstance> {
    let describe = |(uuid, part): (SmolStr, Device<'_>)| MigInstance {
        uuid,
        name: part.name().map(|n| clean(&n, 96)).unwrap_or_default().into(),
        memory: None,
    };
    parts(device).into_iter().map(describe).collect()
}

fn links_of(device: &Device<'_>) -> Links {
    let mut links = Links::default();
    for number in 0..MAX_LINKS {
        let link = device.link_wrapper_for(number);
        match link.is_active() {
            Ok(true) => {
                links.there += 1;
                links.active += 1;
                links.to.extend(link.remote_pci_info().ok().map(|pci| pci.bus_id));
            }
            Ok(false) => links.there += 1,
            // No NVLink at all, or no link of that number.
            Err(_) => break,
        }
    }
    links
}

/// Who is linked with whom. Links that end in no GPU end in a switch, and all GPUs on switches
/// reach each other.
fn link_up(gpus: &mut [Gpu], links: &BTreeMap<usize, Links>) {
    let by_bus: BTreeMap<String, usize> = gpus
        .iter()
        .enumerate()
        .filter_map(|(at, gpu)| Some((gpu.pci_bus_id.as_ref()?.to_ascii_lowercase(), at)))
        .collect();
    let far_end = |bus: &String| by_bus.get(&bus.to_ascii_lowercase()).copied();
    let to_gpus = |l: &Links| l.to.iter().filter(|bus| far_end(bus).is_some()).count();
    let on_switch: Vec<usize> = links
        .iter()
        .filter(|(_, l)| usize::try_from(l.active).is_ok_and(|active| active > to_gpus(l)))
        .map(|(at, _)| *at)
        .collect();
    let uuids: Vec<SmolStr> = gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
    for (at, gpu) in gpus.iter_mut().enumerate() {
        let Some(own) = links.get(&at) else { continue };
        if own.there > 0 {
            gpu.nvlink =
                NvLinks { links: Some(own.there), active: Some(own.active), ..NvLinks::default() };
        }
        let mut peers: Vec<usize> = own.to.iter().filter_map(far_end).collect();
        if on_switch.contains(&at) {
            peers.extend(&on_switch);
        }
        peers.sort_unstable();
        peers.dedup();
        peers.retain(|peer| *peer != at);
        gpu.nvlink_peers = peers.iter().filter_map(|p| uuids.get(*p).cloned()).collect();
    }
}

/// What lies between the GPUs; asked once for each pair.
fn find_paths(nvml: &Nvml, gpus: &mut [Gpu]) {
    let mut found: Vec<(usize, GpuPath)> = Vec::new();
    let places: Vec<(u32, SmolStr)> = gpus.iter().map(|g| (g.index, g.uuid.clone())).collect();
    'all: for (from, (index, uuid)) in places.iter().enumerate() {
        for (to, (other_index, other_uuid)) in places.iter().enumerate().skip(from + 1) {
            let (Ok(one), Ok(other)) =
                (nvml.device_by_index(*index), nvml.device_by_index(*other_index))
            else {
                continue;
            };
            match one.topology_common_ancestor(other) {
                Ok(level) => {
                    let over = path_kind(&level);
                    found.push((from, GpuPath { to: other_uuid.clone(), over }));
                    found.push((to, GpuPath { to: uuid.clone(), over }));
                }
                Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => break 'all,
                Err(_) => {}
            }
        }
    }
    for (at, gpu) in gpus.iter_mut().enumerate() {
        let own = found.iter().filter(|(from, _)| *from == at);
        gpu.paths = own.map(|(_, path)| path.clone()).collect();
    }
}

const fn path_kind(level: &TopologyLevel) -> PathKind {
    match level {
        TopologyLevel::Internal => PathKind::Internal,
        TopologyLevel::Single => PathKind::Pix,
        TopologyLevel::Multiple => PathKind::Pxb,
        TopologyLevel::HostBridge => PathKind::Phb,
        TopologyLevel::Node => PathKind::Node,
        TopologyLevel::System => PathKind::Sys,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_on_which_node_a_slot_is() {
        let dir = tempfile::tempdir().unwrap();
        for (bus, node) in
            [("0000:3b:00.0", "1\n"), ("0000:18:00.0", "-1\n"), ("10000:01:00.0", "3\n")]
        {
            let device = dir.path().join("bus/pci/devices").join(bus);
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("numa_node"), node).unwrap();
        }
        let node = |bus| numa_node(dir.path(), Some(bus));
        assert_eq!(node("00000000:3B:00.0"), Some(1));
        assert_eq!(node("00010000:01:00.0"), Some(3));
        assert_eq!((node("00000000:18:00.0"), node("00000000:19:00.0")), (None, None));
        assert_eq!((node("../../x"), node(""), numa_node(dir.path(), None)), (None, None, None));
    }
}

//! Devices: which there are, what they are called, and where they are.

use std::ffi::{CStr, c_char, c_uint};

use super::scenario::Health;

use super::{
    Device, GPU_IS_LOST, INVALID_ARGUMENT, NOT_FOUND, PART, Return, SUCCESS, hang_if_told, part,
    put, put_some, put_text, record, with_gpu, with_player,
};

/// `nvmlPciInfo_t`.
#[repr(C)]
pub struct PciInfo {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    pci_device_id: c_uint,
    pci_subsystem_id: c_uint,
    bus_id: [c_char; 32],
}

pub(super) fn pci_info(bus_id: &str) -> PciInfo {
    fn fill<const N: usize>(text: &str) -> [c_char; N] {
        let mut out = [0; N];
        for (to, from) in out.iter_mut().take(N - 1).zip(text.bytes()) {
            *to = from as c_char;
        }
        out
    }
    let mut parts = bus_id.split([':', '.']).map(|p| c_uint::from_str_radix(p, 16).unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    PciInfo {
        bus_id_legacy: fill(bus_id.get(4..).unwrap_or(bus_id)),
        domain: next(),
        bus: next(),
        device: next(),
        pci_device_id: 0x2330_10DE,
        pci_subsystem_id: 0x16C1_10DE,
        bus_id: fill(bus_id),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(to: *mut c_uint) -> Return {
    hang_if_told();
    with_player(|player| {
        record(player, "count");
        let count = c_uint::try_from(player.scenario().gpus.len()).unwrap_or(0);
        // SAFETY: NVML's contract.
        unsafe { put(to, count) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut Device) -> Return {
    with_player(|player| {
        record(player, "handle");
        let position =
            player.scenario().gpus.iter().position(|gpu| gpu.index.unwrap_or(0) == index);
        match position {
            // SAFETY: NVML's contract.
            Some(position) => unsafe { put(to, position + 1) },
            None => INVALID_ARGUMENT,
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, to: *mut Device) -> Return {
    if uuid.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null; NVML's contract says it ends with a NUL.
    let uuid = unsafe { CStr::from_ptr(uuid) }.to_string_lossy().into_owned();
    with_player(|player| {
        match player.scenario().gpus.iter().position(|gpu| gpu.uuid == uuid) {
            // SAFETY: NVML's contract.
            Some(position) => unsafe { put(to, position + 1) },
            None => NOT_FOUND,
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(device: Device, to: *mut c_uint) -> Return {
    // SAFETY: NVML's contract.
    with_gpu(device, "index", |gpu, _, _| unsafe { put(to, gpu.index.unwrap_or(0)) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: Device,
    to: *mut c_char,
    length: c_uint,
) -> Return {
    // SAFETY: NVML's contract.
    with_gpu(device, "name", |gpu, _, _| unsafe {
        put_text(part(gpu, device).map_or(&gpu.name, |p| &p.name), to, length)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: Device,
    to: *mut c_char,
    length: c_uint,
) -> Return {
    // SAFETY: NVML's contract.
    with_gpu(device, "uuid", |gpu, _, _| unsafe {
        put_text(part(gpu, device).map_or(&gpu.uuid, |p| &p.uuid), to, length)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(device: Device, to: *mut PciInfo) -> Return {
    with_gpu(device, "pci_bus_id", |gpu, _, _| {
        // SAFETY: NVML's contract.
        unsafe { put(to, pci_info(gpu.pci_bus_id.as_deref().unwrap_or_default())) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNumaNodeId(device: Device, to: *mut c_uint) -> Return {
    // As on hosts whose GPUs are no NUMA nodes of their own; the slot's node is in sysfs.
    // SAFETY: NVML's contract.
    with_gpu(device, "numa", |_, _, _| unsafe { put_some(to, None) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: Device,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> Return {
    with_gpu(device, "mig_mode", |gpu, _, _| {
        let mode = gpu.mig.map(c_uint::from);
        // SAFETY: NVML's contract.
        match unsafe { put_some(current, mode) } {
            // SAFETY: NVML's contract.
            SUCCESS => unsafe { put_some(pending, mode) },
            other => other,
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: Device, to: *mut c_uint) -> Return {
    // As the hardware: seven places, whatever is in them.
    // SAFETY: NVML's contract.
    with_gpu(device, "mig", |_, _, _| unsafe { put(to, 7) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: Device,
    index: c_uint,
    to: *mut Device,
) -> Return {
    with_gpu(device, "mig", |gpu, _, _| {
        let mut parts = gpu.mig_instances.iter().enumerate();
        let found = parts.find(|(at, part)| part.place.unwrap_or(*at) == index as usize);
        match found.map(|(at, _)| device + (at + 1) * PART) {
            // SAFETY: NVML's contract.
            Some(handle) => unsafe { put(to, handle) },
            None => NOT_FOUND,
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTopologyCommonAncestor(
    one: Device,
    other: Device,
    to: *mut c_uint,
) -> Return {
    with_gpu(one, "topology", |gpu, all, _| {
        match other.checked_sub(1).and_then(|index| all.get(index)) {
            Some(other) if other.health == Health::Lost => GPU_IS_LOST,
            // SAFETY: NVML's contract.
            Some(other) => unsafe { put(to, gpu.level(other)) },
            None => INVALID_ARGUMENT,
        }
    })
}

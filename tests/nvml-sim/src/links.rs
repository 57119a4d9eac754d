//! NVLink and PCI Express.

use std::ffi::c_uint;

use super::devices::{PciInfo, pci_info};
use super::scenario::PcieScript;
use super::{Device, INVALID_ARGUMENT, NOT_SUPPORTED, Return, put, put_some, with_gpu};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkState(
    device: Device,
    link: c_uint,
    to: *mut c_uint,
) -> Return {
    with_gpu(device, "nvlink", |gpu, all, _| {
        let peers = gpu.peers(all).count();
        if gpu.nvlink_island.is_none() {
            return NOT_SUPPORTED;
        }
        // SAFETY: NVML's contract.
        unsafe { put(to, c_uint::from((link as usize) < peers)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
    device: Device,
    link: c_uint,
    to: *mut PciInfo,
) -> Return {
    with_gpu(device, "nvlink", |gpu, all, _| match gpu.peers(all).nth(link as usize) {
        Some(peer) => {
            // SAFETY: NVML's contract.
            unsafe { put(to, pci_info(peer.pci_bus_id.as_deref().unwrap_or_default())) }
        }
        None => INVALID_ARGUMENT,
    })
}

/// One number of a GPU's PCI Express link.
unsafe fn put_link(
    device: Device,
    field: &str,
    to: *mut c_uint,
    value: impl FnOnce(PcieScript) -> u32,
) -> Return {
    // SAFETY: NVML's contract.
    with_gpu(device, field, |gpu, _, _| unsafe { put_some(to, gpu.pcie.map(value)) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCurrPcieLinkGeneration(
    device: Device,
    to: *mut c_uint,
) -> Return {
    // SAFETY: NVML's contract.
    unsafe { put_link(device, "pcie", to, |link| link.generation) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCurrPcieLinkWidth(device: Device, to: *mut c_uint) -> Return {
    // SAFETY: NVML's contract.
    unsafe { put_link(device, "pcie", to, |link| link.width) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxPcieLinkGeneration(
    device: Device,
    to: *mut c_uint,
) -> Return {
    // SAFETY: NVML's contract.
    unsafe { put_link(device, "max_pcie", to, |link| link.max_generation) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxPcieLinkWidth(device: Device, to: *mut c_uint) -> Return {
    // SAFETY: NVML's contract.
    unsafe { put_link(device, "max_pcie", to, |link| link.max_width) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPcieThroughput(
    device: Device,
    counter: c_uint,
    to: *mut c_uint,
) -> Return {
    const SENT: c_uint = 0;
    // SAFETY: NVML's contract.
    unsafe {
        put_link(device, "pcie_throughput", to, |link| {
            if counter == SENT { link.tx_kib_per_s } else { link.rx_kib_per_s }
        })
    }
}

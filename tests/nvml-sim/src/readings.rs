//! What a device reads: memory, load, heat, power, clocks, errors and modes.

use std::ffi::{c_int, c_uint, c_ulonglong};

use super::scenario::{GpuScript, THROTTLE_REASONS};

use super::{
    ARGUMENT_VERSION_MISMATCH, Device, INVALID_ARGUMENT, NOT_SUPPORTED, PART, Return, SUCCESS,
    part, put, put_some, with_gpu,
};

/// `nvmlMemory_t`.
#[repr(C)]
pub struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
pub struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlUtilization_t`.
#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(device: Device, to: *mut Memory) -> Return {
    with_gpu(device, "memory", |gpu, _, now| {
        let (total, used) = (gpu.memory_total, now.memory_used);
        // SAFETY: NVML's contract.
        unsafe { put(to, Memory { total, used, free: total - used.min(total) }) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Device, to: *mut MemoryV2) -> Return {
    if to.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null; the caller fills in the version before the call.
    let version = unsafe { (*to).version };
    let expected = size_of::<MemoryV2>() | (2 << 24);
    if version as usize != expected {
        return ARGUMENT_VERSION_MISMATCH;
    }
    with_gpu(device, "memory", |gpu, _, now| {
        if let Some(part) = part(gpu, device) {
            let at = (device / PART).saturating_sub(1);
            let used = now.instances.get(at).copied().unwrap_or_default();
            let total = part.memory_total;
            let free = total - used.min(total);
            // SAFETY: NVML's contract.
            return unsafe { put(to, MemoryV2 { version, total, reserved: 0, free, used }) };
        }
        let total = gpu.memory_total;
        let free = total - now.memory_used.min(total);
        let reserved = gpu.memory_reserved.min(now.memory_used);
        // As the driver counts since v2: `used` without what it reserves itself.
        let used = now.memory_used - reserved;
        // SAFETY: NVML's contract.
        unsafe { put(to, MemoryV2 { version, total, reserved, free, used }) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: Device,
    to: *mut Utilization,
) -> Return {
    with_gpu(device, "utilisation", |_, _, now| {
        let rates =
            Utilization { gpu: now.utilisation_percent, memory: now.memory_utilisation_percent };
        // SAFETY: NVML's contract.
        unsafe { put(to, rates) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: Device,
    sensor: c_uint,
    to: *mut c_uint,
) -> Return {
    if sensor != 0 {
        return INVALID_ARGUMENT;
    }
    // SAFETY: NVML's contract.
    with_gpu(device, "temperature", |_, _, now| unsafe { put(to, now.temperature_c) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperatureThreshold(
    device: Device,
    threshold: c_uint,
    to: *mut c_uint,
) -> Return {
    const SHUTDOWN: c_uint = 0;
    const SLOWDOWN: c_uint = 1;
    if threshold == SHUTDOWN {
        // SAFETY: NVML's contract.
        let shutdown = |gpu: &GpuScript| unsafe { put_some(to, gpu.shutdown_temperature_c) };
        return with_gpu(device, "shutdown_temperature", |gpu, _, _| shutdown(gpu));
    }
    if threshold != SLOWDOWN {
        return NOT_SUPPORTED;
    }
    with_gpu(device, "slowdown_temperature", |gpu, _, _| {
        // SAFETY: NVML's contract.
        unsafe { put(to, gpu.slowdown_temperature_c) }
    })
}

/// `nvmlMarginTemperature_v1_t`.
#[repr(C)]
pub struct MarginTemperature {
    version: c_uint,
    margin: c_int,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMarginTemperature(
    device: Device,
    to: *mut MarginTemperature,
) -> Return {
    if to.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null; the caller fills in the version before the call.
    let version = unsafe { (*to).version };
    if version as usize != size_of::<MarginTemperature>() | (1 << 24) {
        return ARGUMENT_VERSION_MISMATCH;
    }
    with_gpu(device, "thermal_margin", |gpu, _, _| {
        let margin = gpu.thermal_margin_c.map(|margin| MarginTemperature { version, margin });
        // SAFETY: NVML's contract.
        unsafe { put_some(to, margin) }
    })
}

/// `nvmlGpuFabricInfo_t`.
#[repr(C)]
pub struct FabricInfo {
    cluster: [u8; 16],
    status: Return,
    clique: c_uint,
    state: u8,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGpuFabricInfo(device: Device, to: *mut FabricInfo) -> Return {
    with_gpu(device, "fabric", |gpu, _, _| {
        let info = gpu.fabric.map(|(state, status)| FabricInfo {
            cluster: [7; 16],
            status,
            clique: 1,
            state,
        });
        // SAFETY: NVML's contract.
        unsafe { put_some(to, info) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: Device, to: *mut c_uint) -> Return {
    // SAFETY: NVML's contract.
    with_gpu(device, "power", |_, _, now| unsafe { put(to, now.power_mw) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEnforcedPowerLimit(
    device: Device,
    to: *mut c_uint,
) -> Return {
    // SAFETY: NVML's contract.
    with_gpu(device, "power_limit", |gpu, _, _| unsafe { put(to, gpu.power_limit_mw) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerManagementLimit(
    device: Device,
    to: *mut c_uint,
) -> Return {
    // SAFETY: NVML's contract.
    unsafe { nvmlDeviceGetEnforcedPowerLimit(device, to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFanSpeed_v2(
    device: Device,
    fan: c_uint,
    to: *mut c_uint,
) -> Return {
    with_gpu(device, "fan", |gpu, _, _| match gpu.fan_percent {
        // SAFETY: NVML's contract.
        Some(percent) if fan == 0 => unsafe { put(to, percent) },
        Some(_) => INVALID_ARGUMENT,
        None => NOT_SUPPORTED,
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(
    device: Device,
    clock: c_uint,
    to: *mut c_uint,
) -> Return {
    with_gpu(device, "clocks", |gpu, _, _| match clock {
        // SAFETY: NVML's contract.
        0 | 1 => unsafe { put(to, gpu.sm_clock_mhz) },
        // SAFETY: NVML's contract.
        2 => unsafe { put(to, gpu.memory_clock_mhz) },
        _ => NOT_SUPPORTED,
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPerformanceState(device: Device, to: *mut c_uint) -> Return {
    // SAFETY: NVML's contract.
    with_gpu(device, "pstate", |gpu, _, _| unsafe { put(to, gpu.pstate) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: Device,
    to: *mut c_ulonglong,
) -> Return {
    with_gpu(device, "throttle", |gpu, _, _| {
        let named = |name: &str| gpu.throttle_reasons.iter().any(|r| r == name);
        let bits = THROTTLE_REASONS.iter().filter(|(name, _)| named(name)).map(|(_, bit)| bit);
        // SAFETY: NVML's contract.
        unsafe { put(to, bits.sum()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: Device,
    error: c_uint,
    counter: c_uint,
    to: *mut c_ulonglong,
) -> Return {
    const UNCORRECTED: c_uint = 1;
    const AGGREGATE: c_uint = 1;
    with_gpu(device, "ecc", |gpu, _, _| {
        let count = match (error == UNCORRECTED, counter == AGGREGATE) {
            (true, false) => gpu.ecc(),
            (false, false) => gpu.ecc_corrected,
            (true, true) => gpu.ecc_uncorrected_aggregate,
            (false, true) => gpu.ecc_corrected_aggregate,
        };
        // SAFETY: NVML's contract.
        unsafe { put(to, count) }
    })
}

/// `nvmlBAR1Memory_t`.
#[repr(C)]
pub struct Bar1 {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetBAR1MemoryInfo(device: Device, to: *mut Bar1) -> Return {
    with_gpu(device, "bar1", |gpu, _, _| {
        let used = gpu.bar1_used;
        let bar1 = gpu.bar1_total.map(|total| Bar1 { total, used, free: total - used.min(total) });
        // SAFETY: NVML's contract.
        unsafe { put_some(to, bar1) }
    })
}

/// A value of a GPU and the time over which it was measured, microseconds.
unsafe fn put_engine(value: Option<u32>, to: *mut c_uint, period: *mut c_uint) -> Return {
    // SAFETY: NVML's contract.
    match unsafe { put_some(to, value) } {
        // SAFETY: NVML's contract.
        SUCCESS => unsafe { put(period, 167_000) },
        other => other,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEncoderUtilization(
    device: Device,
    to: *mut c_uint,
    period: *mut c_uint,
) -> Return {
    with_gpu(device, "encoder", |gpu, _, _| {
        // SAFETY: NVML's contract.
        unsafe { put_engine(gpu.encoder_percent, to, period) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetDecoderUtilization(
    device: Device,
    to: *mut c_uint,
    period: *mut c_uint,
) -> Return {
    with_gpu(device, "decoder", |gpu, _, _| {
        // SAFETY: NVML's contract.
        unsafe { put_engine(gpu.decoder_percent, to, period) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxClockInfo(
    device: Device,
    clock: c_uint,
    to: *mut c_uint,
) -> Return {
    with_gpu(device, "max_clocks", |gpu, _, _| {
        let clock = match clock {
            0 | 1 => gpu.max_sm_clock_mhz,
            2 => gpu.max_memory_clock_mhz,
            _ => None,
        };
        // SAFETY: NVML's contract.
        unsafe { put_some(to, clock) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEccMode(
    device: Device,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> Return {
    with_gpu(device, "ecc_mode", |gpu, _, _| {
        let mode = gpu.ecc_enabled.map(c_uint::from);
        // SAFETY: NVML's contract.
        match unsafe { put_some(current, mode) } {
            // SAFETY: NVML's contract.
            SUCCESS => unsafe { put_some(pending, mode) },
            other => other,
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeMode(device: Device, to: *mut c_uint) -> Return {
    // SAFETY: NVML's contract.
    with_gpu(device, "compute_mode", |gpu, _, _| unsafe { put_some(to, gpu.compute_mode) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPersistenceMode(device: Device, to: *mut c_uint) -> Return {
    with_gpu(device, "persistence", |gpu, _, _| {
        // SAFETY: NVML's contract.
        unsafe { put_some(to, gpu.persistence.map(c_uint::from)) }
    })
}

//! Processes on a device.

use std::ffi::{c_uint, c_ulonglong};
use std::time::SystemTime;

use super::{
    Device, FUNCTION_NOT_FOUND, INSUFFICIENT_SIZE, INVALID_ARGUMENT, PART, Return, SUCCESS, put,
    with_gpu, with_player,
};

/// `nvmlProcessInfo_v2_t`, which version 3 of the calls takes.
#[repr(C)]
pub struct ProcessInfo {
    pid: c_uint,
    used_gpu_memory: c_ulonglong,
    gpu_instance_id: c_uint,
    compute_instance_id: c_uint,
}

unsafe fn compute_processes(device: Device, count: *mut c_uint, infos: *mut ProcessInfo) -> Return {
    if count.is_null() {
        return INVALID_ARGUMENT;
    }
    with_gpu(device, "processes", |_, _, now| {
        let there = c_uint::try_from(now.processes.len()).unwrap_or(0);
        // SAFETY: not null; the caller says there how many infos it has room for.
        let room = unsafe { count.read() };
        // SAFETY: as before.
        unsafe { count.write(there) };
        if there == 0 {
            return SUCCESS;
        }
        if room < there || infos.is_null() {
            return INSUFFICIENT_SIZE;
        }
        for (at, (pid, bytes)) in now.processes.iter().enumerate() {
            let info = ProcessInfo {
                pid: *pid,
                used_gpu_memory: *bytes,
                gpu_instance_id: c_uint::MAX,
                compute_instance_id: c_uint::MAX,
            };
            // SAFETY: `at` is less than `room`.
            unsafe { infos.add(at).write(info) };
        }
        SUCCESS
    })
}

unsafe fn graphics_processes(device: Device, count: *mut c_uint) -> Return {
    // SAFETY: NVML's contract.
    with_gpu(device, "processes", |_, _, _| unsafe { put(count, 0) })
}

/// The third version of the calls is not there, as in drivers before R510.
fn is_old(device: Device) -> bool {
    let mut old = false;
    with_player(|player| {
        let gpus = &player.scenario().gpus;
        let gpu = (device % PART).checked_sub(1).and_then(|index| gpus.get(index));
        old = gpu.is_some_and(|gpu| !gpu.has("processes_v3"));
        SUCCESS
    });
    old
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Device,
    count: *mut c_uint,
    infos: *mut ProcessInfo,
) -> Return {
    if is_old(device) {
        return FUNCTION_NOT_FOUND;
    }
    // SAFETY: NVML's contract.
    unsafe { compute_processes(device, count, infos) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v2(
    device: Device,
    count: *mut c_uint,
    infos: *mut ProcessInfo,
) -> Return {
    // SAFETY: NVML's contract; both versions have the same structure.
    unsafe { compute_processes(device, count, infos) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: Device,
    count: *mut c_uint,
    _infos: *mut ProcessInfo,
) -> Return {
    if is_old(device) {
        return FUNCTION_NOT_FOUND;
    }
    // SAFETY: NVML's contract.
    unsafe { graphics_processes(device, count) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v2(
    device: Device,
    count: *mut c_uint,
    _infos: *mut ProcessInfo,
) -> Return {
    // SAFETY: NVML's contract.
    unsafe { graphics_processes(device, count) }
}

/// `nvmlProcessUtilizationSample_t`.
#[repr(C)]
pub struct ProcessUtilization {
    pid: c_uint,
    time_stamp: c_ulonglong,
    sm_util: c_uint,
    mem_util: c_uint,
    enc_util: c_uint,
    dec_util: c_uint,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    device: Device,
    samples: *mut ProcessUtilization,
    count: *mut c_uint,
    _last_seen: c_ulonglong,
) -> Return {
    if count.is_null() {
        return INVALID_ARGUMENT;
    }
    with_gpu(device, "process_utilisation", |gpu, _, now| {
        let there = c_uint::try_from(now.processes.len()).unwrap_or(0);
        // SAFETY: not null; the caller says there how many samples it has room for.
        let room = unsafe { count.read() };
        // SAFETY: as before.
        unsafe { count.write(there) };
        if samples.is_null() || room < there {
            return INSUFFICIENT_SIZE;
        }
        // Newer than all that were told before, as the driver's are.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let microseconds = c_ulonglong::try_from(since.as_micros()).unwrap_or(c_ulonglong::MAX);
        for (at, (pid, _)) in now.processes.iter().enumerate() {
            let sample = ProcessUtilization {
                pid: *pid,
                time_stamp: microseconds,
                sm_util: now.utilisation_percent,
                mem_util: now.memory_utilisation_percent,
                enc_util: gpu.encoder_percent.unwrap_or(0),
                dec_util: gpu.decoder_percent.unwrap_or(0),
            };
            // SAFETY: `at` is less than `room`.
            unsafe { samples.add(at).write(sample) };
        }
        SUCCESS
    })
}

//! A simulated NVML: the C functions that gpudeck calls, answered from a JSON scenario.
//!
//! Built as `libnvidia_ml.so`; `GPUDECK_NVML` points the agent at it and `GPUDECK_SCENARIO` names the
//! scenario (format: README.md beside this crate). Everything between the agent and the driver
//! runs as it does on a GPU host: loading, symbols, structures, return codes, a call that hangs.
#![allow(non_snake_case, clippy::missing_safety_doc)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

#[allow(dead_code)] // shared with the agent, which uses all of it
#[path = "../../../src/agent/gpu/scenario.rs"]
mod scenario;

use scenario::{GpuScript, Health, Player, Reading, THROTTLE_REASONS};

// nvmlReturn_t
type Return = c_uint;
const SUCCESS: Return = 0;
const UNINITIALIZED: Return = 1;
const INVALID_ARGUMENT: Return = 2;
const NOT_SUPPORTED: Return = 3;
const NOT_FOUND: Return = 6;
const INSUFFICIENT_SIZE: Return = 7;
const DRIVER_NOT_LOADED: Return = 9;
const TIMEOUT: Return = 10;
const FUNCTION_NOT_FOUND: Return = 13;
const GPU_IS_LOST: Return = 15;
const LIB_RM_VERSION_MISMATCH: Return = 18;
const ARGUMENT_VERSION_MISMATCH: Return = 25;

/// A device handle, as a pointer that is never followed: the index in the scenario, plus one; of a
/// MIG instance also its index there, plus one, times [`PART`].
type Device = usize;

const PART: usize = 1 << 16;

static PLAYER: Mutex<Option<Player>> = Mutex::new(None);

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

/// `nvmlProcessInfo_v2_t`, which version 3 of the calls takes.
#[repr(C)]
pub struct ProcessInfo {
    pid: c_uint,
    used_gpu_memory: c_ulonglong,
    gpu_instance_id: c_uint,
    compute_instance_id: c_uint,
}

fn with_player(work: impl FnOnce(&mut Player) -> Return) -> Return {
    let mut player = match PLAYER.lock() {
        Ok(player) => player,
        Err(poisoned) => poisoned.into_inner(),
    };
    match player.as_mut() {
        Some(player) => work(player),
        None => UNINITIALIZED,
    }
}

/// Blocks for ever where the scenario says that the driver hangs.
fn hang_if_told() {
    let mut hangs = false;
    with_player(|player| {
        hangs = player.scenario().hang;
        SUCCESS
    });
    if hangs {
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
}

/// Notes a call for those who count them.
fn record(player: &mut Player, name: &str) {
    let Some(path) = player.scenario().calls.clone() else { return };
    note(&path, name);
}

/// Adds a line to a file.
fn note(path: &Path, name: &str) {
    use std::io::Write;
    if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path) {
        let _ = writeln!(file, "{name}");
    }
}

/// The MIG instance that a handle is, if it is one.
fn part(gpu: &GpuScript, device: Device) -> Option<&scenario::MigScript> {
    gpu.mig_instances.get((device / PART).checked_sub(1)?)
}

/// A GPU of the scenario with all the others, and what it shows now; `field` as in `absent`.
fn with_gpu(
    device: Device,
    field: &str,
    work: impl FnOnce(&GpuScript, &[GpuScript], &Reading) -> Return,
) -> Return {
    hang_if_told();
    with_player(|player| {
        record(player, field);
        let readings = player.read();
        let gpus = &player.scenario().gpus;
        let Some(gpu) = (device % PART).checked_sub(1).and_then(|index| gpus.get(index)) else {
            return INVALID_ARGUMENT;
        };
        let identity = matches!(field, "uuid" | "name" | "index" | "pci_bus_id")
            && gpu.has("identity_of_lost");
        if gpu.health == Health::Lost && !identity {
            return GPU_IS_LOST;
        }
        if !gpu.has(field) {
            return NOT_SUPPORTED;
        }
        let default = Reading::default();
        work(gpu, gpus, readings.get(&gpu.uuid).unwrap_or(&default))
    })
}

/// Writes `value` to where the caller points.
///
/// # Safety
/// `to` is null or points to a writable `T`, as NVML's contract says of all out-parameters.
unsafe fn put<T>(to: *mut T, value: T) -> Return {
    if to.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: not null, and writable by this function's contract.
    unsafe { to.write(value) };
    SUCCESS
}

/// Writes a value that the scenario may not give.
///
/// # Safety
/// As [`put`].
unsafe fn put_some<T>(to: *mut T, value: Option<T>) -> Return {
    match value {
        // SAFETY: by this function's contract.
        Some(value) => unsafe { put(to, value) },
        None => NOT_SUPPORTED,
    }
}

/// Writes `text` and a NUL to a buffer of `length` bytes.
///
/// # Safety
/// `to` is null or points to `length` writable bytes.
unsafe fn put_text(text: &str, to: *mut c_char, length: c_uint) -> Return {
    let bytes = text.as_bytes();
    if to.is_null() {
        return INVALID_ARGUMENT;
    }
    if bytes.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    for (at, byte) in bytes.iter().chain([&0]).enumerate() {
        // SAFETY: `at` is at most `bytes.len()`, which is less than `length`.
        unsafe { to.add(at).write(*byte as c_char) };
    }
    SUCCESS
}

fn pci_info(bus_id: &str) -> PciInfo {
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

fn init() -> Return {
    let Some(path) = std::env::var_os("GPUDECK_SCENARIO") else { return DRIVER_NOT_LOADED };
    let Ok(mut player) = Player::open(Path::new(&path)) else { return DRIVER_NOT_LOADED };
    while player.loaded().hang_init {
        std::thread::sleep(Duration::from_millis(100));
        if let Ok(now) = Player::open(Path::new(&path)) {
            player = now;
        }
    }
    if let Some(code) = player.loaded().init_error {
        return code;
    }
    let mut slot = match PLAYER.lock() {
        Ok(slot) => slot,
        Err(poisoned) => poisoned.into_inner(),
    };
    *slot = Some(player);
    SUCCESS
}

// The safety contract of all functions below is NVML's: pointers are null or valid for what the
// function writes there, for the length that is passed beside them.

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Return {
    init()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Return {
    init()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Return {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: Return) -> *const c_char {
    let text: &CStr = match result {
        SUCCESS => c"Success",
        UNINITIALIZED => c"Uninitialized",
        INVALID_ARGUMENT => c"Invalid Argument",
        NOT_SUPPORTED => c"Not Supported",
        NOT_FOUND => c"Not Found",
        INSUFFICIENT_SIZE => c"Insufficient Size",
        DRIVER_NOT_LOADED => c"Driver Not Loaded",
        TIMEOUT => c"Timeout",
        LIB_RM_VERSION_MISMATCH => c"Driver/library version mismatch",
        GPU_IS_LOST => c"GPU is lost",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) -> Return {
    // SAFETY: NVML's contract.
    with_player(|player| unsafe { put_text(&player.scenario().driver_version, to, length) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(to: *mut c_int) -> Return {
    with_player(|player| {
        let text = &player.scenario().cuda_version;
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        let number = |t: &str| t.parse::<c_int>().unwrap_or(0);
        // SAFETY: NVML's contract.
        unsafe { put(to, number(major) * 1000 + number(minor) * 10) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(to: *mut c_int) -> Return {
    // SAFETY: NVML's contract.
    unsafe { nvmlSystemGetCudaDriverVersion_v2(to) }
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

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNumaNodeId(device: Device, to: *mut c_uint) -> Return {
    // As on hosts whose GPUs are no NUMA nodes of their own; the slot's node is in sysfs.
    // SAFETY: NVML's contract.
    with_gpu(device, "numa", |_, _, _| unsafe { put_some(to, None) })
}

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

/// One number of a GPU's PCI Express link.
unsafe fn put_link(
    device: Device,
    field: &str,
    to: *mut c_uint,
    value: impl FnOnce(scenario::PcieScript) -> u32,
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
        for (at, (pid, _)) in now.processes.iter().enumerate() {
            let sample = ProcessUtilization {
                pid: *pid,
                time_stamp: 1,
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

/// `nvmlFieldValue_t`.
#[repr(C)]
pub struct FieldValue {
    field_id: c_uint,
    scope_id: c_uint,
    timestamp: i64,
    latency_us: i64,
    value_type: c_uint,
    result: Return,
    value: u64,
}

/// A field by its number in nvml.h (`NVML_FI_DEV_…`).
fn field(gpu: &GpuScript, id: c_uint) -> Option<u64> {
    let traffic = |way: usize| -> Option<u64> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
        let rates = gpu.nvlink_kib_per_s.filter(|_| gpu.has("nvlink"))?;
        let kib = u128::from(*rates.get(way)?) * now.as_millis() / 1000;
        u64::try_from(kib).ok()
    };
    match id {
        // Retired for two single-bit errors, and for one double-bit error.
        29 => gpu.retired_pages.map(u64::from),
        30 => gpu.retired_pages.map(|_| 0),
        31 => gpu.retired_pages_pending.map(u64::from),
        138 => traffic(1),
        139 => traffic(0),
        142 => gpu.remapped_rows.map(u64::from),
        143 => gpu.remapped_rows.map(|_| 0),
        144 => gpu.row_remap_pending.map(u64::from),
        145 => gpu.row_remap_failed.map(u64::from),
        _ => None,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: Device,
    count: c_int,
    values: *mut FieldValue,
) -> Return {
    const UNSIGNED_LONG_LONG: c_uint = 3;
    if values.is_null() {
        return INVALID_ARGUMENT;
    }
    with_gpu(device, "fields", |gpu, _, _| {
        for at in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: `values` points to `count` of them.
            let value = unsafe { &mut *values.add(at) };
            value.value_type = UNSIGNED_LONG_LONG;
            match field(gpu, value.field_id) {
                Some(number) => (value.result, value.value) = (SUCCESS, number),
                None => value.result = NOT_SUPPORTED,
            }
        }
        SUCCESS
    })
}

const XID: c_ulonglong = 0x8;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: Device,
    to: *mut c_ulonglong,
) -> Return {
    // SAFETY: NVML's contract.
    with_gpu(device, "event_types", |_, _, _| unsafe { put(to, XID) })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    device: Device,
    _types: c_ulonglong,
    _set: usize,
) -> Return {
    with_gpu(device, "register", |_, _, _| SUCCESS)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(to: *mut usize) -> Return {
    // SAFETY: NVML's contract.
    unsafe { put(to, 1) }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(_set: usize) -> Return {
    SUCCESS
}

/// `nvmlEventData_t`.
#[repr(C)]
pub struct EventData {
    device: Device,
    event_type: c_ulonglong,
    event_data: c_ulonglong,
    gpu_instance_id: c_uint,
    compute_instance_id: c_uint,
}

/// How many Xid errors of each GPU were told.
static TOLD: Mutex<Vec<(String, usize)>> = Mutex::new(Vec::new());

/// The next Xid error that was not told yet.
fn next_xid(player: &mut Player) -> Option<EventData> {
    let mut told = match TOLD.lock() {
        Ok(told) => told,
        Err(poisoned) => poisoned.into_inner(),
    };
    let noted = player.scenario().xids_told.clone();
    let lines = noted.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
    let before = |uuid: &str| lines.iter().flat_map(|l| l.lines()).filter(|l| *l == uuid).count();
    for (index, gpu) in player.scenario().gpus.iter().enumerate() {
        let at = told.iter().position(|(uuid, _)| *uuid == gpu.uuid).unwrap_or_else(|| {
            told.push((gpu.uuid.clone(), before(&gpu.uuid)));
            told.len() - 1
        });
        let entry = told.get_mut(at)?;
        if let Some(code) = gpu.xids.get(entry.1) {
            entry.1 += 1;
            if let Some(path) = noted {
                note(&path, &gpu.uuid);
            }
            return Some(EventData {
                device: index + 1,
                event_type: XID,
                event_data: *code,
                gpu_instance_id: c_uint::MAX,
                compute_instance_id: c_uint::MAX,
            });
        }
    }
    None
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    _set: usize,
    to: *mut EventData,
    timeout_ms: c_uint,
) -> Return {
    let deadline = std::time::Instant::now() + Duration::from_millis(u64::from(timeout_ms));
    loop {
        let mut event = None;
        with_player(|player| {
            event = next_xid(player);
            SUCCESS
        });
        if let Some(event) = event {
            // SAFETY: NVML's contract.
            return unsafe { put(to, event) };
        }
        if std::time::Instant::now() >= deadline {
            return TIMEOUT;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

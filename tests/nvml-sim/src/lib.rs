//! A simulated NVML: the C functions that gpudeck calls, answered from a JSON scenario.
//!
//! Built as `libnvidia_ml.so`; `GPUDECK_NVML` points the agent at it and `GPUDECK_SCENARIO` names the
//! scenario (format: README.md beside this crate). Everything between the agent and the driver
//! runs as it does on a GPU host: loading, symbols, structures, return codes, a call that hangs.
#![allow(non_snake_case, clippy::missing_safety_doc)]

mod devices;
mod events;
mod links;
mod processes;
mod readings;

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use scenario::{GpuScript, Health, Player, Reading};

#[allow(dead_code)] // shared with the agent, which uses all of it
#[path = "../../../src/agent/gpu/scenario.rs"]
mod scenario;

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
        if let Some(code) = gpu.errors.get(field) {
            return *code;
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

// The safety contract of all functions, here and in the modules, is NVML's: pointers are null or valid for what the
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

//! Fields, and events that are waited for.

use std::ffi::{c_int, c_uint, c_ulonglong};
use std::sync::Mutex;
use std::time::Duration;

use super::scenario::{GpuScript, Player};

use super::{
    Device, INVALID_ARGUMENT, NOT_SUPPORTED, Return, SUCCESS, TIMEOUT, note, put, with_gpu,
    with_player,
};

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

/// A field by its number in nvml.h (`NVML_FI_DEV_…`). Of NVLink's counters the scope is one of the `links` that are up,
/// which share the traffic evenly, or all of them.
fn field(gpu: &GpuScript, links: usize, id: c_uint, scope: c_uint) -> Option<u64> {
    let traffic = |way: usize| -> Option<u64> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
        let rates = gpu.nvlink_kib_per_s.filter(|_| gpu.has("nvlink"))?;
        let kib = u128::from(*rates.get(way)?) * now.as_millis() / 1000;
        let sum = u64::try_from(kib).ok()?;
        if scope == c_uint::MAX {
            return Some(sum);
        }
        let links = u64::try_from(links).ok().filter(|links| u64::from(scope) < *links)?;
        sum.checked_div(links)
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
    with_gpu(device, "fields", |gpu, all, _| {
        let links = gpu.peers(all).count();
        for at in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: `values` points to `count` of them.
            let value = unsafe { &mut *values.add(at) };
            value.value_type = UNSIGNED_LONG_LONG;
            match field(gpu, links, value.field_id, value.scope_id) {
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

//! Values that NVML gives by their number, several in one call; and those for which the wrapper has no call.

use std::ffi::{c_int, c_uint};

use nvml_wrapper::Device;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::FieldValueSample;
use nvml_wrapper::structs::device::FieldId;
use smol_str::{SmolStr, format_smolstr};

use crate::wire::FABRIC_READY;

/// The scope of a value that is the sum over all links.
const ALL_LINKS: c_uint = c_uint::MAX;

/// Several values; none where the GPU has no such value.
pub fn fields(device: &Device<'_>, ids: &[u32]) -> Vec<Option<u64>> {
    let ids: Vec<FieldId> = ids.iter().map(|id| FieldId(*id)).collect();
    let samples = device.field_values_for(&ids).unwrap_or_default();
    samples.into_iter().map(number).collect()
}

/// The same for counters of `NVLink`, over all links of the GPU. (The wrapper asks with scope 0, which for these is
/// the first link alone.)
#[allow(unsafe_code)]
pub fn over_all_links(device: &Device<'_>, ids: &[u32]) -> Vec<Option<u64>> {
    let Ok(ask) = device.nvml().lib().nvmlDeviceGetFieldValues.as_ref() else {
        return Vec::new();
    };
    let mut values = Vec::with_capacity(ids.len());
    for id in ids {
        // SAFETY: a structure of numbers and a union of them, for which zero is a value.
        let mut value = unsafe { zeroed(ask) };
        value.fieldId = *id;
        value.scopeId = ALL_LINKS;
        values.push(value);
    }
    let Ok(count) = c_int::try_from(values.len()) else { return Vec::new() };
    // SAFETY: the handle is the library's own and as old as `device`, which keeps the library loaded; `values` are
    // `count` of what it writes to.
    let code = unsafe { ask(device.handle(), count, values.as_mut_ptr()) };
    if code != 0 {
        return Vec::new();
    }
    values.into_iter().map(|value| number(FieldValueSample::try_from(value))).collect()
}

/// Degrees (Celsius) that are left until clocks are lowered, negative where they are: `T.Limit` of `nvidia-smi`. None
/// where the driver (before 555) or the GPU has no such value.
#[allow(unsafe_code)]
pub fn thermal_margin(device: &Device<'_>) -> Option<i32> {
    let ask = device.nvml().lib().nvmlDeviceGetMarginTemperature.as_ref().ok()?;
    // SAFETY: a structure of two numbers.
    let mut margin = unsafe { zeroed_one(ask) };
    margin.version = version_of(&margin, 1)?;
    // SAFETY: the handle is the library's own and as old as `device`, which keeps the library loaded; `margin` is what
    // it writes to, of the size that its version tells.
    let code = unsafe { ask(device.handle(), &raw mut margin) };
    (code == 0).then_some(margin.marginTemperature)
}

/// How far the GPU is with joining the fabric of its `NVSwitches`: `not_started`, `in_progress`, `completed`, or `failed`
/// and the error (`nvmlReturn_t`). None where there is none to join.
#[allow(unsafe_code)]
pub fn fabric(device: &Device<'_>) -> Option<SmolStr> {
    let ask = device.nvml().lib().nvmlDeviceGetGpuFabricInfo.as_ref().ok()?;
    // SAFETY: a structure of numbers.
    let mut info = unsafe { zeroed_one(ask) };
    // SAFETY: as above.
    let code = unsafe { ask(device.handle(), &raw mut info) };
    if code != 0 {
        return None;
    }
    fabric_words(u32::from(info.state), info.status)
}

/// `nvmlGpuFabricState_t`, and the status that counts once it is completed.
pub(super) fn fabric_words(state: u32, status: u32) -> Option<SmolStr> {
    match (state, status) {
        (1, _) => Some(SmolStr::new_static("not_started")),
        (2, _) => Some(SmolStr::new_static("in_progress")),
        (3, 0) => Some(SmolStr::new_static(FABRIC_READY)),
        (3, error) => Some(format_smolstr!("failed ({error})")),
        // Not supported, or a state of a later driver.
        _ => None,
    }
}

/// What `NVML_STRUCT_VERSION` makes of a structure and its version.
fn version_of<V>(_of: &V, version: u32) -> Option<c_uint> {
    Some(c_uint::try_from(size_of::<V>()).ok()? | version << 24)
}

/// Like [`zeroed`], for a function that takes one.
///
/// # Safety
/// Zero must be a value of `V`.
#[allow(unsafe_code)]
unsafe fn zeroed_one<D, V: Copy, R>(_taken_by: &unsafe extern "C" fn(D, *mut V) -> R) -> V {
    // SAFETY: by this function's contract.
    unsafe { std::mem::zeroed() }
}

/// A zeroed element of the array that a function of the library takes: its type has no name here.
///
/// # Safety
/// Zero must be a value of `V`.
#[allow(unsafe_code)]
unsafe fn zeroed<D, V: Copy, R>(_taken_by: &unsafe extern "C" fn(D, c_int, *mut V) -> R) -> V {
    // SAFETY: by this function's contract.
    unsafe { std::mem::zeroed() }
}

fn number(sample: Result<FieldValueSample, NvmlError>) -> Option<u64> {
    match sample.ok()?.value.ok()? {
        SampleValue::U32(v) => Some(u64::from(v)),
        SampleValue::U64(v) => Some(v),
        SampleValue::I64(v) => u64::try_from(v).ok(),
        SampleValue::F64(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fabric_that_has_failed_is_not_ready() {
        let words = |state, status| fabric_words(state, status);
        assert_eq!(words(0, 0), None);
        assert_eq!(words(1, 999).as_deref(), Some("not_started"));
        assert_eq!(words(2, 0).as_deref(), Some("in_progress"));
        assert_eq!(words(3, 0).as_deref(), Some(FABRIC_READY));
        assert_eq!(words(3, 999).as_deref(), Some("failed (999)"));
        assert_eq!(words(9, 0), None);
    }
}

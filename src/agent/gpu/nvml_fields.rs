//! Values that NVML gives by their number, several in one call.

use std::ffi::{c_int, c_uint};

use nvml_wrapper::Device;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::FieldValueSample;
use nvml_wrapper::structs::device::FieldId;

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

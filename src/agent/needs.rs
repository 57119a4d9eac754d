//! The gate before a start: is the memory really free now, are the ports?
//!
//! Free is what the driver (or the kernel) says at this moment, not what was told to stop.

use std::collections::BTreeMap;

use super::error::{blocking, failed};
use super::gpu::Want;
use super::gpu::monitor::GpuMonitor;
use super::{host, ports};
use crate::base::{Bytes, DeviceId};
use crate::wire::{DeviceNeed, Gpu, GpuHealth, Gpus, Refusal};

/// Checks everything that must be free, and says what numbers the driver gives the GPUs of `needs`
/// at this moment, in their order.
///
/// # Errors
/// The first thing that is not.
pub async fn check(
    needs: &[DeviceNeed],
    ports: &[u16],
    monitor: &GpuMonitor,
) -> Result<Vec<u32>, Refusal> {
    let wanted = ports.to_vec();
    blocking(move || wanted.into_iter().try_for_each(ports::check_free)).await?;
    let mut sums: BTreeMap<&DeviceId, (Bytes, bool)> = BTreeMap::new();
    for need in needs {
        let (sum, healthy) = sums.entry(&need.device).or_default();
        *sum = sum.saturating_add(need.memory);
        *healthy |= need.healthy;
    }
    let gpus = if sums.keys().any(|d| matches!(d, DeviceId::Gpu(_))) {
        Some(monitor.read(Want::Fresh).await)
    } else {
        None
    };
    let trouble = monitor.trouble();
    for (device, (needed, healthy)) in sums {
        match (device, &gpus) {
            (DeviceId::Cpu, _) => check_host_memory(needed)?,
            (DeviceId::Gpu(uuid), Some(gpus)) => {
                check_gpu(gpus, trouble.as_deref(), uuid, needed, healthy)?;
            }
            (DeviceId::Gpu(_), None) => {
                return Err(Refusal::NoDevice { device: device.clone() });
            }
        }
    }
    let Some(Gpus::Some(gpus)) = gpus else { return Ok(Vec::new()) };
    let number = |uuid: &str| gpus.iter().find(|gpu| gpu.uuid == uuid).map(|gpu| gpu.index);
    let numbers = needs.iter().filter_map(|need| match &need.device {
        DeviceId::Gpu(uuid) => number(uuid),
        DeviceId::Cpu => None,
    });
    Ok(numbers.collect())
}

fn check_host_memory(needed: Bytes) -> Result<(), Refusal> {
    let free = host::available_memory()
        .ok_or_else(|| failed("the kernel does not say how much memory is available"))?;
    if free >= needed {
        return Ok(());
    }
    Err(Refusal::MemoryBusy { device: DeviceId::Cpu, free, needed, holders: Vec::new() })
}

fn check_gpu(
    gpus: &Gpus,
    trouble: Option<&str>,
    uuid: &str,
    needed: Bytes,
    healthy: bool,
) -> Result<(), Refusal> {
    let device = DeviceId::Gpu(uuid.to_owned());
    let gpu = match gpus {
        // A driver that is slow at this moment is no reason to take a release back.
        Gpus::Hung { for_ms } => {
            let message = match trouble {
                Some(why) => format!("the GPUs cannot be read: {why}"),
                None => format!("the GPU driver has not answered for {for_ms} ms"),
            };
            return Err(Refusal::Busy { message });
        }
        Gpus::None { .. } => None,
        Gpus::Some(list) => list.iter().find_map(|g| Some((g, g.part(&device)?))),
    };
    let Some((gpu, part)) = gpu else { return Err(Refusal::NoDevice { device }) };
    if gpu.health == GpuHealth::Lost {
        return Err(failed(format!("GPU {} has fallen off the bus", gpu.index)));
    }
    if let (GpuHealth::Degraded { why }, true) = (&gpu.health, healthy) {
        return Err(failed(format!("GPU {} has errors: {why}", gpu.index)));
    }
    let Some(memory) = part.memory else {
        return Err(failed(format!(
            "the driver does not say how much memory of GPU {} is free",
            gpu.index
        )));
    };
    if memory.free() >= needed {
        return Ok(());
    }
    Err(Refusal::MemoryBusy { device, free: memory.free(), needed, holders: holders(gpu) })
}

fn holders(gpu: &Gpu) -> Vec<String> {
    let say = |p: &crate::wire::GpuProcess| match p.memory {
        Some(memory) => format!("pid {} {} {memory}", p.pid, p.name),
        None => format!("pid {} {}", p.pid, p.name),
    };
    gpu.listed().iter().take(8).map(say).collect()
}

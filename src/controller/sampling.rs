//! From engines' and GPUs' running totals to what an analysis adds up: increments by release.

use std::collections::BTreeMap;

use crate::base::{DeviceId, HostName, ReleaseNumber, ReplicaId};
use crate::engine::{EngineMetrics, Histogram};
use crate::rollout::EngineSamples;
use crate::wire::{Gpu, GpuHealth};

/// Reasons for lower clocks that are trouble; reaching the power limit under load is not.
const TROUBLE: [&str; 4] =
    ["hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake"];

/// What was last read of the replicas of one service, while an analysis is under way.
#[derive(Default)]
pub struct Sampler {
    engines: BTreeMap<ReplicaId, EngineMetrics>,
    gpus: BTreeMap<(HostName, DeviceId), Baseline>,
}

/// A GPU as it was when the analysis began.
struct Baseline {
    health: GpuHealth,
    ecc_uncorrected: u64,
    grave_xid: Option<u64>,
}

/// A GPU under a replica.
pub struct GpuUnder<'a> {
    /// The replica's release.
    pub release: ReleaseNumber,
    /// The GPU's host.
    pub host: &'a HostName,
    /// Which one.
    pub device: &'a DeviceId,
    /// As it is now.
    pub gpu: Look<'a>,
}

/// What a look for a GPU found.
#[derive(Clone, Copy)]
pub enum Look<'a> {
    /// As it is now.
    Seen(&'a Gpu),
    /// The host's driver lists its GPUs, and this one is not among them.
    Gone,
    /// Nobody can say: the host is away, or its driver does not answer.
    Hidden,
}

impl Sampler {
    /// Takes new readings; returns what was added since the last ones. The first reading of a
    /// replica or GPU is where counting begins.
    pub fn observe(
        &mut self,
        readings: BTreeMap<ReplicaId, EngineMetrics>,
        gpus: &[GpuUnder<'_>],
    ) -> BTreeMap<ReleaseNumber, EngineSamples> {
        let mut out: BTreeMap<ReleaseNumber, EngineSamples> = BTreeMap::new();
        for (replica, now) in readings {
            let samples = out.entry(replica.release).or_default();
            samples.sample_gauges(now.kv_usage, now.waiting);
            if let Some(was) = self.engines.get(&replica) {
                samples.add(&increments(&now, was));
            }
            self.engines.insert(replica, now);
        }
        for under in gpus {
            let samples = out.entry(under.release).or_default();
            self.gpu(under, samples);
        }
        out.retain(|_, samples| !samples.is_empty());
        out
    }

    fn gpu(&mut self, under: &GpuUnder<'_>, samples: &mut EngineSamples) {
        let signals = &mut samples.gpu;
        let host = under.host;
        let key = (host.clone(), under.device.clone());
        let gpu = match under.gpu {
            Look::Seen(gpu) => gpu,
            Look::Hidden => {
                signals.unseen += 1;
                return;
            }
            Look::Gone => {
                signals.unseen += 1;
                // One that was never listed was not lost in this time.
                if signals.error.is_none() && self.gpus.contains_key(&key) {
                    let why = format!("{} on {host} is not listed by its driver any more", key.1);
                    signals.error = Some(crate::base::text::clean(&why, 300));
                }
                return;
            }
        };
        signals.samples += 1;
        match &gpu.throttle_reasons {
            None => signals.untold += 1,
            Some(reasons) if reasons.iter().any(|r| TROUBLE.contains(&r.as_str())) => {
                signals.throttled += 1;
            }
            Some(_) => {}
        }
        let errors = gpu.ecc_uncorrected.unwrap_or(0);
        let xid = gpu.judged_xid().map(|xid| xid.code);
        let baseline = self.gpus.entry(key).or_insert_with(|| Baseline {
            health: gpu.health.clone(),
            ecc_uncorrected: errors,
            grave_xid: xid,
        });
        let name = format!("{} on {host}", gpu.uuid);
        let new_errors = errors.saturating_sub(baseline.ecc_uncorrected);
        let was_well = baseline.health == GpuHealth::Ok;
        let error = match &gpu.health {
            // Also one that was in trouble before: it can do nothing now.
            GpuHealth::Lost if baseline.health != GpuHealth::Lost => {
                Some(format!("{name} has fallen off the bus"))
            }
            _ if new_errors > 0 => {
                Some(format!("{new_errors} new uncorrected memory errors of {name} > 0"))
            }
            GpuHealth::Degraded { why } if was_well || xid != baseline.grave_xid => {
                Some(format!("{name}: {why}"))
            }
            _ => None,
        };
        if signals.error.is_none() {
            signals.error = error.map(|e| crate::base::text::clean(&e, 300));
        }
    }
}

fn increments(now: &EngineMetrics, was: &EngineMetrics) -> EngineSamples {
    let counter = |now: Option<f64>, was: Option<f64>| -> u64 {
        let (now, was) = (now.unwrap_or(0.0), was.unwrap_or(0.0));
        // Counters of requests: whole numbers that were only written as decimals.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped
        let grown = if now >= was { now - was } else { now }.clamp(0.0, 1e15) as u64;
        grown
    };
    let histogram = |now: &Option<Histogram>, was: &Option<Histogram>| match (now, was) {
        (Some(now), Some(was)) => now.since(was),
        (Some(now), None) => now.clone(),
        (None, _) => Histogram::default(),
    };
    let finished = counter(now.requests_ended, was.requests_ended);
    EngineSamples {
        finished,
        // One that failed may be counted before it has ended.
        failed: counter(now.requests_error, was.requests_error).min(finished),
        preemptions: counter(now.preemptions, was.preemptions),
        first_token: histogram(&now.first_token, &was.first_token),
        inter_token: histogram(&now.inter_token, &was.inter_token),
        end_to_end: histogram(&now.end_to_end, &was.end_to_end),
        ..EngineSamples::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;
    use crate::engine::metrics::{SGLANG, VLLM, parse};
    use crate::wire::throttle;

    fn reading(count: u32, failed: u32, waiting: u32) -> BTreeMap<ReplicaId, EngineMetrics> {
        let text = format!(
            "vllm:request_success_total{{finished_reason=\"stop\"}} {count}\n\
             vllm:request_success_total{{finished_reason=\"error\"}} {failed}\n\
             vllm:num_requests_waiting {waiting}\n\
             vllm:time_to_first_token_seconds_bucket{{le=\"0.1\"}} {count}\n\
             vllm:time_to_first_token_seconds_bucket{{le=\"+Inf\"}} {count}\n\
             vllm:time_to_first_token_seconds_sum {}\n",
            f64::from(count) * 0.05
        );
        [("r2-0-a1".parse().unwrap(), parse(&text, &VLLM))].into()
    }

    #[test]
    fn counts_from_the_first_reading_on_and_across_a_restart() {
        let mut sampler = Sampler::default();
        let release = ReleaseNumber(2);
        let first = sampler.observe(reading(100, 5, 3), &[]).remove(&release).unwrap();
        assert_eq!((first.finished, first.first_token.count(), first.waiting.count()), (0, 0, 1));
        let second = sampler.observe(reading(110, 6, 3), &[]).remove(&release).unwrap();
        assert_eq!((second.finished, second.failed, second.first_token.count()), (11, 1, 10));
        let restarted = sampler.observe(reading(4, 0, 0), &[]).remove(&release).unwrap();
        assert_eq!((restarted.finished, restarted.first_token.count()), (4, 4));
    }

    /// Between two readings one more failed than ended: what is left of their difference becomes smaller, and no engine
    /// was started anew.
    #[test]
    fn a_failure_that_is_counted_early_is_no_restart() {
        let mut sampler = Sampler::default();
        let release = ReleaseNumber(2);
        let mut at = |ended: u32, failed: u32| {
            let text = format!(
                "sglang:num_requests_total {ended}\nsglang:num_aborted_requests_total {failed}\n\
                 sglang:num_queue_reqs 0\n"
            );
            let reading = [("r2-0-a1".parse().unwrap(), parse(&text, &SGLANG))].into();
            let samples = sampler.observe(reading, &[]).remove(&release).unwrap();
            (samples.finished, samples.failed)
        };
        assert_eq!(at(10_000, 10), (0, 0));
        assert_eq!(at(10_001, 13), (1, 1));
        assert_eq!(at(10_004, 13), (3, 0));
        assert_eq!(at(5, 1), (5, 1), "that was one");
    }

    #[test]
    fn trouble_has_the_names_that_drivers_are_read_with() {
        for reason in TROUBLE {
            assert!(throttle::REASONS.iter().any(|(name, _)| *name == reason), "{reason}");
        }
    }

    #[test]
    fn only_new_trouble_of_a_gpu_counts() {
        let host: HostName = "gpu1".parse().unwrap();
        let gpu = |ecc: u64, health: &str, reasons: &str| -> Gpu {
            let text = format!(
                "{{\"index\":0,\"uuid\":\"GPU-1\",\"name\":\"x\",\"health\":{health},\
                 \"ecc_uncorrected\":{ecc},\"throttle_reasons\":[{reasons}],\
                 \"nvlink_peers\":[],\"processes\":[]}}"
            );
            serde_json::from_str(&text).unwrap()
        };
        let mut sampler = Sampler::default();
        let release = ReleaseNumber(2);
        let device = DeviceId::Gpu("GPU-1".into());
        let mut look = |gpu: &Gpu| {
            let under = [GpuUnder { release, host: &host, device: &device, gpu: Look::Seen(gpu) }];
            sampler.observe(BTreeMap::new(), &under).remove(&release).unwrap().gpu
        };
        assert_eq!(look(&gpu(7, "\"ok\"", "\"sw_power_cap\"")).error, None);
        let hot = look(&gpu(7, "\"ok\"", "\"hw_thermal_slowdown\""));
        assert_eq!((hot.samples, hot.untold, hot.throttled, hot.error), (1, 0, 1, None));
        let worse = look(&gpu(9, "\"ok\"", "")).error.unwrap();
        assert_eq!(worse, "2 new uncorrected memory errors of GPU-1 on gpu1 > 0");
        // A driver that does not tell is not one whose GPUs run free.
        let unknown = Gpu { throttle_reasons: None, ..gpu(7, "\"ok\"", "") };
        let mute = look(&unknown);
        assert_eq!((mute.samples, mute.untold, mute.throttled), (1, 1, 0));
        let xid = look(&gpu(7, "{\"degraded\":{\"why\":\"Xid 79\"}}", "")).error.unwrap();
        assert_eq!(xid, "GPU-1 on gpu1: Xid 79");
        assert!(look(&gpu(7, "\"lost\"", "")).error.unwrap().contains("off the bus"));
    }

    #[test]
    fn one_that_was_in_trouble_can_still_get_worse_and_one_that_is_not_seen_is_counted() {
        let host: HostName = "gpu1".parse().unwrap();
        let gpu = |health: &str, xid: u64| -> Gpu {
            let text = format!(
                "{{\"index\":0,\"uuid\":\"GPU-1\",\"name\":\"x\",\"health\":{health},\
                 \"grave_xid\":{{\"code\":{xid},\"monotonic_ms\":1,\"count\":1}},\
                 \"throttle_reasons\":[],\"nvlink_peers\":[],\"processes\":[]}}"
            );
            serde_json::from_str(&text).unwrap()
        };
        let mut sampler = Sampler::default();
        let release = ReleaseNumber(2);
        let device = DeviceId::Gpu("GPU-1".into());
        let mut look = |gpu: Option<&Gpu>| {
            let gpu = gpu.map_or(Look::Hidden, Look::Seen);
            let under = [GpuUnder { release, host: &host, device: &device, gpu }];
            sampler.observe(BTreeMap::new(), &under).remove(&release).unwrap().gpu
        };
        let degraded = |xid| gpu(&format!("{{\"degraded\":{{\"why\":\"Xid {xid}\"}}}}"), xid);
        assert_eq!(look(Some(&degraded(63))).error, None);
        assert_eq!(look(Some(&degraded(48))).error.unwrap(), "GPU-1 on gpu1: Xid 48");
        let lost = look(Some(&gpu("\"lost\"", 48)));
        assert!(lost.error.unwrap().contains("off the bus"));
        let unseen = look(None);
        assert_eq!((unseen.samples, unseen.unseen, unseen.error), (0, 1, None));
    }
    #[test]
    fn one_that_its_driver_lists_no_more_is_an_error_and_one_that_nobody_can_look_at_is_not() {
        let host: HostName = "gpu1".parse().unwrap();
        let device = DeviceId::Gpu("GPU-1".into());
        let release = ReleaseNumber(2);
        let gpu: Gpu = serde_json::from_str(
            "{\"index\":0,\"uuid\":\"GPU-1\",\"name\":\"x\",\"health\":\"ok\",\"nvlink_peers\":[],\"processes\":[]}",
        )
        .unwrap();
        let mut sampler = Sampler::default();
        let mut look = |gpu: Look<'_>| {
            let under = [GpuUnder { release, host: &host, device: &device, gpu }];
            sampler.observe(BTreeMap::new(), &under).remove(&release).unwrap().gpu.error
        };
        assert_eq!(look(Look::Gone), None, "it was not there when the analysis began");
        assert_eq!(look(Look::Seen(&gpu)), None);
        assert_eq!(look(Look::Hidden), None);
        assert!(look(Look::Gone).unwrap().contains("not listed"));
    }
}

//! Following a host's samples: how closely, and from changes back to whole samples.

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::base::Bytes;
use crate::wire::{Gpu, Gpus, HostSample, Request, change};

/// How closely a host is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attention {
    /// Nobody looks and nothing of ours runs there: every five seconds.
    #[default]
    Seldom,
    /// Nobody looks, but it runs something of ours: every two seconds, so that its silence is soon seen.
    Runs,
    /// It is on somebody's screen, or what runs there is being judged: every second.
    OnScreen,
    /// Somebody looks at its details: every second, with what costs much.
    LookedAt,
}

impl Attention {
    /// What the agent is asked for.
    pub(super) const fn request(self) -> Request {
        match self {
            Self::Seldom => Request::Follow { interval_ms: 5_000, looked_at: false },
            Self::Runs => Request::Follow { interval_ms: 2_000, looked_at: false },
            Self::OnScreen => Request::Follow { interval_ms: 1_000, looked_at: false },
            Self::LookedAt => Request::Follow { interval_ms: 1_000, looked_at: true },
        }
    }
}

/// Where the attention that a host gets is set and seen; it outlives connections.
pub(super) type AttentionCell = watch::Sender<Attention>;

/// The last sample, also as JSON, for changes to be applied to.
#[derive(Default)]
pub(super) struct Picture(Option<(Value, HostSample)>);

impl Picture {
    /// A whole sample has come.
    pub(super) fn whole(&mut self, sample: &HostSample) {
        self.0 = as_read(sample);
    }

    /// A change has come: the sample it makes; none when it does not fit, and a whole sample must
    /// be asked for.
    pub(super) fn change(&mut self, since_ms: u64, change: Value) -> Option<HostSample> {
        let (mut value, last) = self.0.take()?;
        if last.monotonic_ms != since_ms {
            return None;
        }
        let gpus = changed_gpus(last.gpus, &change);
        change::apply(&mut value, change).ok()?;
        let sample = match gpus {
            Some(gpus) => HostSample { gpus, ..without_gpus(&mut value)? },
            None => HostSample::deserialize(&value).ok()?,
        };
        self.0 = Some((value, sample.clone()));
        Some(sample)
    }
}

/// A sample as it was on the wire: values that are absent are absent.
fn as_read(sample: &HostSample) -> Option<(Value, HostSample)> {
    let value: Value = serde_json::from_slice(&serde_json::to_vec(sample).ok()?).ok()?;
    let sample = HostSample::deserialize(&value).ok()?;
    Some((value, sample))
}

/// Reads all of a sample but its GPUs.
fn without_gpus(value: &mut Value) -> Option<HostSample> {
    let kept = std::mem::replace(value.get_mut("gpus")?, json!({ "some": [] }));
    let sample = HostSample::deserialize(&*value).ok()?;
    *value.get_mut("gpus")? = kept;
    Some(sample)
}

/// The GPUs after a change of nothing but what changes with nearly every sample: eight GPUs are by far the
/// larger part of a sample, and most of what is said of them stays. None: they have to be read anew.
fn changed_gpus(gpus: Gpus, change: &Value) -> Option<Gpus> {
    let Gpus::Some(mut list) = gpus else { return None };
    if let Some(change) = change.get("gpus") {
        let change = change.as_object().filter(|all| all.len() == 1)?;
        for (index, change) in change.get("some")?.as_object()? {
            let gpu = list.get_mut(index.parse::<usize>().ok()?)?;
            for (member, value) in change.as_object()? {
                put(gpu, member, value)?;
            }
        }
    }
    Some(Gpus::Some(list))
}

fn put(gpu: &mut Gpu, member: &str, value: &Value) -> Option<()> {
    if member == "memory" {
        let memory = gpu.memory.as_mut()?;
        let used = value.as_object().filter(|all| all.len() == 1)?.get("used")?;
        memory.used = Bytes(used.as_u64()?);
        return Some(());
    }
    let place = match member {
        "utilisation_percent" => &mut gpu.utilisation_percent,
        "memory_utilisation_percent" => &mut gpu.memory_utilisation_percent,
        "temperature_c" => &mut gpu.temperature_c,
        "power_mw" => &mut gpu.power_mw,
        "fan_percent" => &mut gpu.fan_percent,
        "sm_clock_mhz" => &mut gpu.sm_clock_mhz,
        "memory_clock_mhz" => &mut gpu.memory_clock_mhz,
        _ => return None,
    };
    *place = Some(u32::try_from(value.as_u64()?).ok()?);
    Some(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::wire::MemoryUse;

    fn sample(at: u64, busy: Option<u32>) -> HostSample {
        let gpu = Gpu { utilisation_percent: busy, uuid: "GPU-1".to_owned(), ..Gpu::default() };
        HostSample {
            monotonic_ms: at,
            gpus: Gpus::Some(vec![gpu]),
            cpu_percent: Some(12.3),
            ..HostSample::default()
        }
    }

    fn between(a: &HostSample, b: &HostSample) -> Value {
        let value = |s: &HostSample| -> Value {
            serde_json::from_slice(&serde_json::to_vec(s).unwrap()).unwrap()
        };
        change::between(&value(a), &value(b)).unwrap()
    }

    #[test]
    fn changes_make_whole_samples_and_a_gap_is_noticed() {
        let (first, second) = (sample(1, Some(5)), sample(2, None));
        let third = HostSample { gpus: Gpus::Hung { for_ms: 9 }, ..sample(3, None) };
        let mut picture = Picture::default();
        assert_eq!(picture.change(1, between(&first, &second)), None, "nothing to change yet");
        picture.whole(&first);
        assert_eq!(picture.change(1, between(&first, &second)), Some(second.clone()));
        assert_eq!(picture.change(2, between(&second, &third)), Some(third.clone()));
        assert_eq!(picture.change(2, between(&second, &third)), None, "one was missed");
        assert_eq!(picture.change(3, between(&third, &first)), None, "until a whole one comes");
        picture.whole(&first);
        let hostile = serde_json::json!({ "gpus": { "some": { "7": { "index": 1 } } } });
        assert_eq!(picture.change(1, hostile), None);
    }

    /// What is taken over without reading all GPUs anew is what reading them would have given.
    #[test]
    fn what_changes_often_is_what_it_would_be_if_read() {
        let used = |bytes| Some(MemoryUse { used: Bytes(bytes), total: Bytes(100) });
        let gpu = |n: u32, clock: Option<u32>| Gpu {
            index: n,
            utilisation_percent: Some(n),
            temperature_c: Some(40 + n),
            power_mw: Some(300_000 + n),
            memory: used(u64::from(n)),
            sm_clock_mhz: clock,
            ..Gpu::default()
        };
        let at = |ms, gpus: Vec<Gpu>| HostSample { gpus: Gpus::Some(gpus), ..sample(ms, None) };
        let named = Gpu { name: "other".to_owned(), ..gpu(5, Some(9)) };
        let samples = [
            at(1, vec![gpu(1, None), gpu(2, Some(7))]),
            at(2, vec![gpu(3, Some(1)), gpu(2, Some(8))]),
            at(3, vec![gpu(3, Some(1)), gpu(2, Some(8))]),
            at(4, vec![named.clone(), gpu(2, None)]),
            at(5, vec![named.clone()]),
            at(6, vec![Gpu { memory: None, ..named.clone() }]),
            at(7, vec![named]),
        ];
        let mut picture = Picture::default();
        picture.whole(&samples[0]);
        for pair in samples.windows(2) {
            let change = between(&pair[0], &pair[1]);
            assert_eq!(picture.change(pair[0].monotonic_ms, change), Some(pair[1].clone()));
        }
        let too_large = json!({ "gpus": { "some": { "0": { "power_mw": 1_u64 << 40 } } } });
        assert_eq!(picture.change(7, too_large), None);
    }
}

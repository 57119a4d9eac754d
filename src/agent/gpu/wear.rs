//! What nobody tells of: memory that wears out, and GPUs that go without an event. A thread of the child process
//! looks at the few counters that health hangs on once a second, and says so when one is another than before: the
//! whole reading that follows is the usual one. These calls cost some microseconds (docs/performance.md); where they
//! cost more they are made less often.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::sys_exports::field_id;

use super::amd::AmdSource;
use super::nvml_fields::fields;

/// Between two looks.
pub(super) const EVERY: Duration = Duration::from_secs(1);

/// Looks take no more than this part of the time.
const SHARE: u32 = 1_000;

/// The longest pause, however long a look takes.
const LONGEST: Duration = Duration::from_mins(1);

/// What is looked at.
enum What {
    Nvidia(Arc<Nvml>),
    Amd(AmdSource),
}

/// The counters of all GPUs; a value that cannot be read is none.
type Seen = Vec<Vec<Option<u64>>>;

impl What {
    fn look(&self) -> Seen {
        match self {
            Self::Nvidia(nvml) => nvidia(nvml),
            Self::Amd(source) => source.wear(),
        }
    }
}

/// Looks at NVIDIA's GPUs for as long as the process lives. `looking` is told when a look begins (true) and ends, so
/// that somebody else can see one that does not come back.
pub fn watch_nvidia(nvml: Arc<Nvml>, changed: impl Fn() + Send + 'static, looking: fn(bool)) {
    watch(What::Nvidia(nvml), changed, looking);
}

/// The same for AMD's, from the files below `sysfs`; not where there are none.
pub fn watch_amd(sysfs: PathBuf, changed: impl Fn() + Send + 'static, looking: fn(bool)) {
    let source = AmdSource::new(sysfs);
    if !source.wear().is_empty() {
        watch(What::Amd(source), changed, looking);
    }
}

fn watch(what: What, changed: impl Fn() + Send + 'static, looking: fn(bool)) {
    let work = move || {
        let mut before = None;
        loop {
            looking(true);
            let begin = Instant::now();
            let seen = what.look();
            let took = begin.elapsed();
            looking(false);
            if before.replace(seen.clone()).is_some_and(|before| before != seen) {
                changed();
            }
            std::thread::sleep(pause(took));
        }
    };
    // Without the thread (no memory for its stack) it is seen with a later sample.
    let _ = std::thread::Builder::new().name("wear".to_owned()).spawn(work);
}

/// How long to wait after a look that took so long.
fn pause(took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(EVERY, LONGEST)
}

fn nvidia(nvml: &Nvml) -> Seen {
    let ids = [
        field_id::NVML_FI_DEV_RETIRED_PENDING,
        field_id::NVML_FI_DEV_REMAPPED_PENDING,
        field_id::NVML_FI_DEV_REMAPPED_FAILURE,
    ];
    let count = nvml.device_count().unwrap_or(0);
    let of = |index| {
        let device = match nvml.device_by_index(index) {
            Ok(device) => device,
            Err(error) => return vec![gone(&error)],
        };
        match device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile) {
            Ok(errors) => {
                let mut all = fields(&device, &ids);
                all.push(Some(errors));
                all
            }
            // One without error correction has neither rows nor pages to lose.
            Err(error) => vec![gone(&error)],
        }
    };
    (0..count).map(of).collect()
}

/// A GPU that has fallen off the bus says so in answer to any question.
fn gone(error: &NvmlError) -> Option<u64> {
    matches!(error, NvmlError::GpuLost | NvmlError::ResetRequired).then_some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_takes_long_is_taken_seldom() {
        assert_eq!(pause(Duration::from_micros(300)), EVERY);
        assert_eq!(pause(Duration::from_millis(20)), Duration::from_secs(20));
        assert_eq!(pause(Duration::from_secs(3)), LONGEST);
    }
}

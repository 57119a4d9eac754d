//! Sends samples to whoever follows: whole ones, or a whole one and what changes after it.

use std::mem::{Discriminant, discriminant};
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::containers::{self, Names};
use super::gpu::Want;
use super::gpu::monitor::GpuMonitor;
use super::host::HostMeter;
use super::serve::Owned;
use super::users;
use crate::wire::{GpuHealth, Gpus, Manner, Request, Told};

/// Longest a sample waits for its GPU values before it goes with the last ones.
const GPU_WAIT: Duration = Duration::from_millis(500);

/// GPU values older than that carry their age.
const FRESH: Duration = Duration::from_secs(1);

/// How somebody follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Follow {
    /// Time between samples.
    interval: Duration,
    /// What costs much is measured as well.
    looked_at: bool,
    manner: Manner,
}

impl Follow {
    /// What a request asks for, if it is one to follow.
    pub fn of(request: &Request) -> Option<Self> {
        let (interval_ms, looked_at, manner) = match request {
            Request::Subscribe { interval_ms } => (interval_ms, false, Manner::default()),
            Request::Follow { interval_ms, looked_at, packed } => {
                (interval_ms, *looked_at, Manner { changes: true, packed: *packed })
            }
            _ => return None,
        };
        let interval = Duration::from_millis((*interval_ms).clamp(100, 3_600_000));
        Some(Self { interval, looked_at, manner })
    }
}

/// The names of containers by their id.
type LookedUp = Vec<(String, containers::Found)>;

/// Sends samples until nobody follows. `stirred` says that one is due at once.
pub async fn tell(
    monitor: &GpuMonitor,
    state_dir: &Path,
    lines: &mpsc::Sender<Vec<u8>>,
    mut subscribed: watch::Receiver<Option<Follow>>,
    stirred: &Notify,
) {
    let mut meter = HostMeter::new();
    let mut happened = monitor.happened();
    // The first sample waits for the driver's first word (bounded by its watchdog), so that a
    // host is never shown without the GPUs it has.
    let mut reading = Reading::new(monitor.read(Want::Due).await);
    let mut names = Names::default();
    let mut looking_up: Option<Owned<LookedUp>> = None;
    loop {
        let Some(follow) = *subscribed.borrow_and_update() else { return };
        let mut told = Told::default();
        let mut ticks = tokio::time::interval(follow.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let usual = if follow.looked_at { Want::LookedAt } else { Want::Due };
            let want = tokio::select! {
                _ = ticks.tick() => Some(usual),
                () = stirred.notified() => Some(usual),
                // The task that tells lives as long as the monitor.
                Ok(()) = happened.changed() => Some(Want::Fresh),
                // A driver that hangs is told when that is known, not with the next sample.
                told_otherwise = reading.late() => if told_otherwise { None } else { continue },
                changed = subscribed.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
            };
            if let Some(want) = want {
                reading.renew(monitor, want, follow.interval.min(GPU_WAIT)).await;
            }
            let mut gpus = reading.gpus.clone();
            users::put_in(&mut gpus);
            let unknown = names.put_in(&mut gpus);
            if looking_up.is_none() && !unknown.is_empty() {
                looking_up = Some(Owned(tokio::spawn(containers::look_up(unknown))));
            }
            if looking_up.as_ref().is_some_and(|task| task.0.is_finished())
                && let Some(mut task) = looking_up.take()
                && let Ok(found) = (&mut task.0).await
            {
                names.learn(found);
            }
            let mut sample = meter.sample(state_dir, gpus, reading.age_ms());
            sample.gpu_trouble = monitor.trouble().map(Into::into);
            if let Some(line) = told.line(sample, follow.manner) {
                // A reader that is too slow misses samples; it is never told old ones.
                match lines.try_send(line) {
                    Ok(()) => told.sent(),
                    Err(_) => told.missed(),
                }
            }
        }
    }
}

/// The last GPU values, and a reading that is under way.
struct Reading {
    gpus: Gpus,
    at: Instant,
    under_way: Option<oneshot::Receiver<Gpus>>,
}

impl Reading {
    fn new(gpus: Gpus) -> Self {
        Self { gpus, at: Instant::now(), under_way: None }
    }

    /// Waits a while for new values; those that take longer are taken the next time.
    async fn renew(&mut self, monitor: &GpuMonitor, want: Want, patience: Duration) {
        let mut answer = match self.under_way.take() {
            Some(answer) => answer,
            None => match monitor.ask(want) {
                Some(answer) => answer,
                None => return,
            },
        };
        match tokio::time::timeout(patience, &mut answer).await {
            Ok(Ok(gpus)) => *self = Self::new(gpus),
            Ok(Err(_)) => {}
            Err(_) => self.under_way = Some(answer),
        }
    }

    /// Takes an answer that the last sample did not wait for; whether it says anything else about the
    /// health of driver and GPUs than the one before. Never comes back while none is under way; may be
    /// dropped at any time.
    async fn late(&mut self) -> bool {
        let Some(answer) = &mut self.under_way else { return std::future::pending().await };
        match answer.await {
            Ok(gpus) => {
                let otherwise = health(&gpus) != health(&self.gpus);
                *self = Self::new(gpus);
                otherwise
            }
            Err(_) => {
                self.under_way = None;
                false
            }
        }
    }

    fn age_ms(&self) -> Option<u64> {
        let age = self.at.elapsed();
        (age > FRESH).then(|| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Whether the driver answers, and which of its GPUs are well.
fn health(gpus: &Gpus) -> (Discriminant<Gpus>, Vec<&GpuHealth>) {
    (discriminant(gpus), gpus.list().iter().map(|gpu| &gpu.health).collect())
}

//! What engines log of their memory once they have loaded: read back from the ranks' logs, kept in the
//! deck (the note on the release's commit), shown beside the prediction, and used for the next one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::actions::{self, Means};
use super::core::{Core, Input};
use crate::api::{MemoryView, Severity};
use crate::base::{
    Bytes, DeviceId, HostName, RankId, ReleaseNumber, ReplicaId, ReplicaKey, ServiceName,
};
use crate::engine::{self, Engine, loaded::MAX_LOG};
use crate::model::estimate::Budget;
use crate::model::observation::Where;
use crate::model::{Correction, Loaded, ModelFacts, Observation, Setup};
use crate::placement::HostCapacity;
use crate::rollout::{EventKind, Phase, Release, ServiceState};
use crate::spec::{DeviceKind, ParallelShape, ServiceSpec};
use crate::weights::{self, LinkFiles};

/// Piece of a log that is asked for at once.
const PIECE: u32 = 256 << 10;
/// Longest that reading the logs of a replica may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Replicas whose logs are read at a time.
const AT_ONCE: usize = 4;
/// Most measurements kept in memory of one service, the newest.
const MOST: usize = 64;
/// Most questions that are remembered as asked.
const MOST_ASKED: usize = 10_000;

/// What is not asked twice: a service's release in one shape on one kind of device, and whether it ran.
type Asked = (ServiceName, ReleaseNumber, ParallelShape, String, bool);

/// Reads logs in tasks of its own, which end with it.
#[derive(Debug)]
pub struct MemoryReader {
    tasks: JoinSet<()>,
    turns: Arc<Semaphore>,
    asked: BTreeSet<Asked>,
}

impl Default for MemoryReader {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            asked: BTreeSet::new(),
        }
    }
}

/// What is to be read and compared.
struct Question {
    service: ServiceName,
    release: ReleaseNumber,
    spec: ServiceSpec,
    shape: ParallelShape,
    ranks: Vec<(RankId, HostName)>,
    place: Where,
}

impl Core {
    /// Begins to read what a replica's engine logged, where an event says that it has loaded, or that
    /// it gave up before.
    pub(super) fn look_at_memory(&mut self, before: &ServiceState, kind: &EventKind) {
        let (replica, ran) = match kind {
            EventKind::ReplicaReady { replica } => (*replica, true),
            EventKind::RankEnded { rank, how } if how != "stopped" => (rank.replica, false),
            _ => return,
        };
        let loading = before.replica_of(replica).is_some_and(|r| r.phase == Phase::Loading);
        if !loading || self.repo.is_none() || self.not_fenced().is_err() {
            return;
        }
        let Some(question) = self.question(before, replica) else { return };
        let device = question.place.device.clone();
        let asked = (before.service.clone(), replica.release, question.shape, device, ran);
        if self.memory.asked.len() >= MOST_ASKED {
            self.memory.asked.clear();
        }
        if !self.memory.asked.insert(asked) {
            return;
        }
        while self.memory.tasks.try_join_next().is_some() {}
        let (means, turns) = (Arc::clone(&self.means), Arc::clone(&self.memory.turns));
        self.memory.tasks.spawn(async move {
            let Ok(_turn) = turns.acquire().await else { return };
            let looked = tokio::time::timeout(DEADLINE, look(&means, &question, ran)).await;
            let Ok(Some(seen)) = looked else { return };
            let (service, release) = (question.service, question.release);
            let keep = Input::Ask(Box::new(move |core: &mut Core| {
                core.keep_memory(&service, release, seen);
            }));
            let _ = means.inputs.send(keep).await;
        });
    }

    fn question(&self, state: &ServiceState, replica: ReplicaId) -> Option<Question> {
        let release = state.releases.get(&replica.release)?;
        let plan = release.replica(replica.replica)?;
        let ids = release.rank_ids(replica.replica, replica.attempt);
        let ranks = ids.into_iter().zip(plan.ranks.iter().map(|r| r.host.clone())).collect();
        let first = plan.ranks.first()?;
        let mut place = Where {
            engine: engine::of(&release.spec.engine).name().to_owned(),
            device: "cpu".to_owned(),
            device_memory: None,
        };
        if release.spec.device == DeviceKind::Gpu {
            let device = first.devices.first()?;
            (place.device, place.device_memory) = self.gpu_named(&first.host, device)?;
        }
        Some(Question {
            service: state.service.clone(),
            release: replica.release,
            spec: release.spec.clone(),
            shape: plan.shape(),
            ranks,
            place,
        })
    }

    fn gpu_named(&self, host: &HostName, device: &DeviceId) -> Option<(String, Option<Bytes>)> {
        self.hub.with(|s| {
            let gpus = s.hosts.get(host)?.sample.as_ref()?.gpus.list();
            let gpu = gpus.iter().find_map(|g| g.part(device))?;
            Some((gpu.name.to_owned(), gpu.memory.map(|m| m.total)))
        })
    }

    /// Writes down what was measured, and shows it.
    fn keep_memory(&mut self, service: &ServiceName, release: ReleaseNumber, seen: Observation) {
        let revision = self
            .state
            .services
            .get(service)
            .and_then(|s| s.releases.get(&release))
            .map(|r| r.revision.clone());
        let written = match (&self.repo, revision) {
            (Some(repo), Some(revision)) => repo.add_memory(&revision, &seen),
            _ => return,
        };
        if let Err(error) = written {
            tracing::warn!(%error, "what an engine logged of its memory is not kept in the deck");
        }
        self.say(Severity::Info, Some(service), &format!("{release}: {}", seen.text()));
        let kept = self.files.memory.entry(service.clone()).or_default();
        kept.push(MemoryView { release, seen });
        let over = kept.len().saturating_sub(MOST);
        kept.drain(..over);
        self.publish_service(service);
    }

    /// What corrects a prediction for this model, engine and device. A service's own measurements
    /// and those of others that serve the same model count alike.
    pub(super) fn correction(&self, facts: &ModelFacts, device: &str, setup: &Setup) -> Correction {
        let of = self.files.memory.values().flatten().map(|m| &m.seen).filter(|seen| {
            seen.is_of(facts)
                && seen.place.engine == setup.rules.engine
                && seen.place.device == device
        });
        Correction::from(&of.collect::<Vec<_>>(), setup)
    }

    /// What a rank takes on each device, as placing asks for it: foreseen for each kind of GPU that the hosts have, and
    /// corrected by what was measured there.
    pub(super) fn memory_of(
        &self,
        engine: &dyn Engine,
        spec: &ServiceSpec,
        facts: &ModelFacts,
        shape: ParallelShape,
        hosts: &[HostCapacity],
    ) -> Bytes {
        let Some(setup) = engine.setup(spec, facts, shape) else {
            return engine.memory(spec, facts, shape).total;
        };
        if spec.device == DeviceKind::Cpu {
            let correction = self.correction(facts, "cpu", &setup);
            return engine::corrected_memory(engine, spec, facts, shape, None, correction).total;
        }
        let kinds: BTreeSet<(Bytes, &str)> =
            hosts.iter().flat_map(|h| &h.gpus).map(|g| (g.total, g.name.as_str())).collect();
        let needs: Vec<(Bytes, Bytes)> = kinds
            .into_iter()
            .map(|(total, name)| {
                let gpu = Some((name, total));
                let correction = self.correction(facts, name, &setup);
                let needs =
                    engine::corrected_memory(engine, spec, facts, shape, gpu, correction).total;
                (needs, total)
            })
            .collect();
        for_all_kinds(&needs, engine.memory_share(spec))
            .unwrap_or_else(|| engine.memory(spec, facts, shape).total)
    }

    /// Where what is foreseen for a replica of the release may be more than its engine takes of the GPU: that it may not
    /// start there.
    pub(super) fn fit_warnings(&self, facts: &ModelFacts, release: &Release) -> Vec<String> {
        let spec = &release.spec;
        let engine = engine::of(&spec.engine);
        if spec.memory.is_some() || spec.device == DeviceKind::Cpu {
            return Vec::new();
        }
        let starts = |replica: &u32| {
            let key = ReplicaKey { release: release.number, replica: *replica };
            !release.keeps.contains_key(&key)
        };
        let places: BTreeSet<(String, Bytes, ParallelShape)> = (0..)
            .zip(&release.replicas)
            .filter(|(replica, _)| starts(replica))
            .filter_map(|(_, replica)| {
                let first = replica.ranks.first()?;
                let (name, total) = self.gpu_named(&first.host, first.devices.first()?)?;
                Some((name, total?, replica.shape()))
            })
            .collect();
        let warning = |(name, total, shape): &(String, Bytes, ParallelShape)| {
            let shape = *shape;
            let setup = engine.setup(spec, facts, shape)?;
            let correction = self.correction(facts, name, &setup);
            let gpu = Some((name.as_str(), *total));
            let memory = engine::corrected_memory(&*engine, spec, facts, shape, gpu, correction);
            let has = setup.on_gpu(name, total.0).budget().map_or(*total, |b| Bytes(b.low));
            engine::unsure(&memory, has, name)
        };
        places.iter().filter_map(warning).collect()
    }

    /// Leaves out the shapes that the engine refused on some kind of GPU, if others are left; otherwise names the
    /// kinds on which it refused. What a person wrote about the memory counts for more.
    pub(super) fn without_refused(
        &self,
        engine: &dyn Engine,
        spec: &ServiceSpec,
        facts: Option<&ModelFacts>,
        shapes: &mut Vec<ParallelShape>,
        hosts: &[HostCapacity],
    ) -> BTreeSet<String> {
        let Some(facts) = facts.filter(|_| spec.memory.is_none()) else { return BTreeSet::new() };
        let kinds: BTreeSet<&str> =
            hosts.iter().flat_map(|h| &h.gpus).map(|g| g.name.as_str()).collect();
        let refused = |shape: &ParallelShape| -> BTreeSet<String> {
            let Some(setup) = engine.setup(spec, facts, *shape) else { return BTreeSet::new() };
            let Some(context) = setup.context else { return BTreeSet::new() };
            let refuses =
                |device: &&str| self.correction(facts, device, &setup).is_refused(&setup, context);
            kinds.iter().copied().filter(refuses).map(str::to_owned).collect()
        };
        let found: Vec<(ParallelShape, BTreeSet<String>)> =
            shapes.iter().map(|shape| (*shape, refused(shape))).collect();
        let good = || found.iter().filter(|(_, on)| on.is_empty()).map(|(shape, _)| *shape);
        if good().next().is_some() {
            *shapes = good().collect();
            return BTreeSet::new();
        }
        let Some((shape, on)) = found.into_iter().min_by_key(|(_, on)| on.len()) else {
            return BTreeSet::new();
        };
        *shapes = vec![shape];
        on
    }

    /// For a plan: what was measured of this model, the newest of each engine, kind of device and shape.
    pub(super) fn memory_lines(&self, facts: &ModelFacts) -> Vec<String> {
        let mut shown = BTreeSet::new();
        let all: Vec<_> = self.files.memory.iter().collect();
        let of = all.iter().flat_map(|(service, list)| {
            list.iter().rev().map(move |m| (service, m.release, &m.seen))
        });
        of.filter(|(_, _, seen)| seen.is_of(facts))
            .filter(|(_, _, seen)| shown.insert(seen.subject()))
            .take(4)
            .map(|(service, release, seen)| {
                format!("measured by {service} {release}: {}", seen.text())
            })
            .collect()
    }
}

/// One figure with which an engine is let on the kinds of GPUs that it fits on and on no other, from what it needs on each
/// and the memory of each, smallest first. One without a share takes just what it needs: the most of all.
fn for_all_kinds(needs: &[(Bytes, Bytes)], share: Option<f64>) -> Option<Bytes> {
    let most = needs.iter().map(|(need, _)| *need).max()?;
    let Some(share) = share.filter(|s| *s > 0.0) else { return Some(most) };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share of a u64
    let holds = |need: Bytes, total: Bytes| need.0 <= (total.0 as f64 * share) as u64;
    // Steps are larger on larger GPUs, so is what they need there: the smallest on which it fits decides.
    let Some((least, _)) = needs.iter().find(|(need, total)| holds(*need, *total)) else {
        return Some(most);
    };
    let right = needs.iter().all(|(need, total)| !holds(*least, *total) || holds(*need, *total));
    Some(if right { *least } else { most })
}

/// Reads the logs of all ranks and the model's headers, and compares.
async fn look(means: &Means, question: &Question, ran: bool) -> Option<Observation> {
    let engine = engine::of(&question.spec.engine);
    let mut loaded = Loaded::default();
    for (rank, host) in &question.ranks {
        let log = read_log(means, &question.spec, rank, host).await?;
        loaded = loaded.with(engine.read_loaded(&question.spec, &log));
    }
    // Words of a refusal that it got over are none; and an engine that ended for another reason tells
    // nothing for sure.
    loaded.refused &= !ran;
    if loaded.is_empty() || !ran && !loaded.refused {
        return None;
    }
    let (_, host) = question.ranks.first()?;
    let source = LinkFiles::new(actions::link(means, host).ok()?);
    let facts = weights::inspect(&source, &question.spec.model).await.ok()?;
    let setup = engine.setup(&question.spec, &facts, question.shape)?;
    let setup = Setup {
        gpu: question.place.device_memory.map(|b| b.0),
        gpu_name: Some(question.place.device.clone()),
        // A static share that nobody asked for follows from the GPU.
        utilisation: match setup.rules.budget {
            Budget::Static => setup.utilisation,
            _ => engine.memory_share(&question.spec).or(setup.utilisation),
        },
        ..setup
    };
    let seen = Observation::new(&facts, &setup, question.place.clone(), &loaded)?;
    Some(seen.of_shape(question.shape))
}

/// The beginning of a rank's log: an engine says what it took before it serves.
async fn read_log(
    means: &Means,
    spec: &ServiceSpec,
    rank: &RankId,
    host: &HostName,
) -> Option<String> {
    let runtime = actions::reading_runtime(means, &spec.runtime, host).await.ok()?;
    let mut log = String::new();
    let mut offset = 0;
    while log.len() < MAX_LOG {
        let piece = runtime.read_log(rank, Some(offset), PIECE).await.ok()?;
        log.push_str(&piece.text);
        if piece.text.is_empty() || piece.next_offset <= offset {
            break;
        }
        offset = piece.next_offset;
    }
    Some(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_figure_lets_an_engine_on_the_kinds_that_it_fits_on() {
        let of = |list: &[(u64, u64)], share| {
            let needs: Vec<(Bytes, Bytes)> =
                list.iter().map(|(need, total)| (Bytes::gib(*need), Bytes::gib(*total))).collect();
            for_all_kinds(&needs, share)
        };
        let share = Some(0.9);
        // It needs more on the large one, and fits on both.
        assert_eq!(of(&[(18, 22), (21, 80)], share), Some(Bytes::gib(18)));
        // Not on the smallest.
        assert_eq!(of(&[(18, 16), (20, 24), (22, 80)], share), Some(Bytes::gib(20)));
        // On none; nothing that the smaller one would pass with where the larger one does not.
        assert_eq!(of(&[(30, 22), (90, 80)], share), Some(Bytes::gib(90)));
        assert_eq!(of(&[(18, 22), (79, 80)], share), Some(Bytes::gib(79)));
        // Without a share it takes just what it needs.
        assert_eq!(of(&[(18, 22), (21, 80)], None), Some(Bytes::gib(21)));
        assert_eq!(of(&[], share), None);
    }
}

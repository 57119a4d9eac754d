//! What an analysis asks by itself: golden prompts of the canary's replicas, queries of a Prometheus.
//!
//! The gate is the order: while a service's analysis is measured, one task measures its checks;
//! what it finds comes back as events. A restarted controller goes on with what is not yet measured.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use tokio::task::JoinHandle;

use super::actions::{self, Means};
use super::core::{Core, Input, now};
use super::engine_at::EngineAt;
use super::sampling::{GpuUnder, Look, Sampler};
use super::world::is_up;
use crate::base::{DeviceId, HostName, ReleaseNumber, ReplicaId, ServiceName, Timestamp, text};
use crate::engine::{self, EngineMetrics, TokenAnswer, TokenRequest};
use crate::rollout::checks::ERROR_RETRY;
use crate::rollout::{CheckResult, CheckRun, EventKind, Phase, ServiceState};
use crate::spec::{AnalysisSpec, CheckPlan, EngineSpec, GoldenPrompt, PrometheusCheck};
use crate::wire::{Gpu, Gpus, Reply};

/// Time for the answer to a golden prompt.
const ANSWER_MS: u64 = 120_000;

/// The measuring tasks, and what was last read of the engines. Dropping it ends them.
#[derive(Default)]
pub struct Probes {
    running: BTreeMap<ServiceName, Probe>,
    samplers: BTreeMap<ServiceName, Sampler>,
}

struct Probe {
    release: ReleaseNumber,
    step: usize,
    task: JoinHandle<()>,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A replica of the canary.
#[derive(Clone)]
struct Target {
    replica: ReplicaId,
    host: HostName,
    at: EngineAt,
}

impl Core {
    /// Begins what is to be measured, and ends what is not any more.
    pub(super) fn tend_probes(&mut self) {
        let means = Arc::clone(&self.means);
        let services = &self.state.services;
        // What another controller goes on with is its own to measure: nothing that is asked here would be heard.
        let ours: BTreeSet<ServiceName> =
            services.keys().filter(|name| !self.is_elsewhere(name)).cloned().collect();
        let analysing = |name: &ServiceName| {
            services.get(name).filter(|_| ours.contains(name)).and_then(ServiceState::analysing)
        };
        self.probes.samplers.retain(|name, _| analysing(name).is_some());
        self.probes.running.retain(|name, probe| {
            analysing(name).is_some_and(|(r, _, spec)| {
                let same = r.to == probe.release && r.step == probe.step;
                same && !(probe.task.is_finished() && lacks_results(&spec, &r.analysis.checks))
            })
        });
        // What is found could not be kept, and would be asked for again and again.
        if self.journal_is_tried().is_err() {
            return;
        }
        for service in &ours {
            let Some(state) = services.get(service) else { continue };
            let Some((rollout, _, spec)) = state.analysing() else { continue };
            if spec.checks().is_empty() || self.probes.running.contains_key(service) {
                continue;
            }
            let Some(release) = state.releases.get(&rollout.to) else { continue };
            let work = Work {
                means: Arc::clone(&means),
                service: service.clone(),
                release: rollout.to,
                stable: rollout.from,
                step: rollout.step,
                since: rollout.step_since,
                engine: release.spec.engine.clone(),
                targets: targets(state, rollout.to),
                seen: rollout.analysis.checks.clone(),
                spec,
            };
            let probe =
                Probe { release: rollout.to, step: rollout.step, task: tokio::spawn(work.run()) };
            self.probes.running.insert(service.clone(), probe);
        }
    }

    /// New readings of the engines of a service.
    pub(super) fn scraped(
        &mut self,
        service: &ServiceName,
        readings: BTreeMap<ReplicaId, EngineMetrics>,
    ) {
        let Some(state) = self.state.services.get(service) else { return };
        if state.analysing().is_none() {
            return;
        }
        let gpus = self.gpus_under(state);
        let under: Vec<GpuUnder<'_>> = gpus.iter().map(Under::look).collect();
        let sampler = self.probes.samplers.entry(service.clone()).or_default();
        let samples = sampler.observe(readings, &under);
        if !samples.is_empty() {
            self.happened(service, EventKind::Sampled { samples });
        }
    }

    /// The GPUs under the ready replicas of a service, as they are now.
    fn gpus_under(&self, state: &ServiceState) -> Vec<Under> {
        let mut out = Vec::new();
        let ready = state.replicas.iter().filter(|(_, r)| r.phase == Phase::Ready);
        for (key, _) in ready {
            let Some(release) = state.releases.get(&key.release) else { continue };
            let Some(plan) = release.replica(key.replica) else { continue };
            for rank in &plan.ranks {
                self.hub.with(|snapshot| {
                    // The last words of a host that is away say nothing of now.
                    let host = snapshot.hosts.get(&rank.host).filter(|host| is_up(host));
                    let sample = host.and_then(|h| h.sample.as_ref());
                    let is_listed = sample.is_some_and(|s| matches!(s.gpus, Gpus::Some(_)));
                    let seen = sample.map_or(&[][..], |sample| sample.gpus.list());
                    for device in rank.devices.iter().filter(|d| **d != DeviceId::Cpu) {
                        out.push(Under {
                            release: key.release,
                            host: rank.host.clone(),
                            device: device.clone(),
                            gpu: seen.iter().find(|gpu| gpu.has(device)).cloned(),
                            is_listed,
                        });
                    }
                });
            }
        }
        out
    }
}

/// A GPU under a replica, with what its host says.
struct Under {
    release: ReleaseNumber,
    host: HostName,
    device: DeviceId,
    gpu: Option<Gpu>,
    /// The driver lists its GPUs.
    is_listed: bool,
}

impl Under {
    fn look(&self) -> GpuUnder<'_> {
        let gpu = match &self.gpu {
            Some(gpu) => Look::Seen(gpu),
            None if self.is_listed => Look::Gone,
            None => Look::Hidden,
        };
        GpuUnder { release: self.release, host: &self.host, device: &self.device, gpu }
    }
}

/// Something is still to be measured: also what a task has measured and the journal did not take.
fn lacks_results(spec: &AnalysisSpec, seen: &BTreeMap<String, CheckRun>) -> bool {
    let result = |(name, plan): (String, CheckPlan)| seen.get(&name)?.result(plan);
    spec.checks().into_iter().any(|check| result(check).is_none())
}

fn targets(state: &ServiceState, release: ReleaseNumber) -> Vec<Target> {
    let of = |key: &crate::base::ReplicaKey| {
        let release = state.releases.get(&release)?;
        let first = release.replica(key.replica)?.ranks.first()?;
        Some(Target {
            replica: state.replica_id(release.number, key.replica)?,
            host: first.host.clone(),
            at: EngineAt::of(&release.spec, first),
        })
    };
    state
        .replicas
        .iter()
        .filter(|(key, r)| key.release == release && r.phase == Phase::Ready)
        .filter_map(|(key, _)| of(key))
        .collect()
}

/// What a replica answered.
enum Said {
    Text(String),
    /// The answer was cut off before the model said anything.
    OnlyThought,
}

/// Everything one task needs.
struct Work {
    means: Arc<Means>,
    service: ServiceName,
    release: ReleaseNumber,
    stable: Option<ReleaseNumber>,
    step: usize,
    /// When the step began.
    since: Timestamp,
    engine: EngineSpec,
    targets: Vec<Target>,
    seen: BTreeMap<String, CheckRun>,
    spec: AnalysisSpec,
}

impl Work {
    async fn run(self) {
        let plans: BTreeMap<String, CheckPlan> = self.spec.checks().into_iter().collect();
        // Prompts one after the other: they are not to be a load of their own.
        let golden = async {
            for (i, prompt) in self.spec.golden.iter().enumerate() {
                let name = format!("golden {}", i + 1);
                let Some(plan) = plans.get(&name) else { continue };
                self.again_and_again(&name, *plan, || self.ask_all(prompt)).await;
            }
        };
        let mut all: Vec<BoxFuture<'_, ()>> = vec![golden.boxed()];
        for (i, check) in self.spec.prometheus.iter().enumerate() {
            let name = format!("prometheus {}", i + 1);
            let Some(plan) = plans.get(&name).copied() else { continue };
            let work = &self;
            let queries = async move {
                let measured = work.seen.get(&name).map_or(0, |run| run.measured);
                tokio::time::sleep(plan.rest(measured, now().since(work.since))).await;
                work.again_and_again(&name, plan, || work.query(check)).await;
            };
            all.push(queries.boxed());
        }
        futures::future::join_all(all).await;
    }

    /// Measures until there is a result; an error is tried again after [`ERROR_RETRY`].
    async fn again_and_again<F, Fut>(&self, name: &str, plan: CheckPlan, measure: F)
    where
        F: Fn() -> Fut,
        Fut: Future<Output = (CheckResult, String)>,
    {
        let mut run = self.seen.get(name).cloned().unwrap_or_default();
        while run.result(plan).is_none() {
            let (result, why) = measure().await;
            run.add(result, &why);
            let kind = EventKind::Checked {
                release: self.release,
                step: self.step,
                check: name.to_owned(),
                result,
                why,
            };
            let input = Input::Happened { service: self.service.clone(), kind };
            if self.means.inputs.send(input).await.is_err() {
                return;
            }
            // A task that ends before its last result is written down looks like one that the journal refused.
            if run.result(plan).is_some() {
                let _ = self.means.ask(|_| ()).await;
            } else {
                let pause = match result {
                    CheckResult::Error => ERROR_RETRY,
                    _ => plan.interval,
                };
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// The prompt to every replica of the canary; the first bad answer decides.
    async fn ask_all(&self, prompt: &GoldenPrompt) -> (CheckResult, String) {
        let shown = text::clean(&prompt.prompt, 60);
        let mut last = String::new();
        for target in &self.targets {
            match self.ask(prompt, target).await {
                Ok(Said::OnlyThought) => {
                    let why = format!(
                        "{} was still thinking about “{shown}” after {} tokens: raise max_tokens of the prompt",
                        target.replica, prompt.max_tokens
                    );
                    return (CheckResult::Inconclusive, why);
                }
                Ok(Said::Text(answer)) => {
                    let said = text::clean(answer.trim(), 80);
                    if let Err(expected) = prompt.judge(&answer) {
                        let why = format!(
                            "{} answered “{said}” to “{shown}”, expected {expected}",
                            target.replica
                        );
                        return (CheckResult::Failed, why);
                    }
                    last = said;
                }
                Err(why) => {
                    let why = format!("{} did not answer “{shown}”: {why}", target.replica);
                    return (CheckResult::Error, why);
                }
            }
        }
        match self.targets.len() {
            0 => (CheckResult::Error, "no replica of the canary is ready".to_owned()),
            n => (CheckResult::Successful, format!("“{shown}” → “{last}” ({n} replicas)")),
        }
    }

    async fn ask(&self, prompt: &GoldenPrompt, target: &Target) -> Result<Said, String> {
        let engine = engine::of(&self.engine);
        let link = actions::link(&self.means, &target.host).map_err(|e| e.to_string())?;
        let mut why = "the engine offers no request for it".to_owned();
        for ask in engine.prompt_requests(&self.service, &prompt.prompt, prompt.max_tokens) {
            let request = target.at.post(ask.path, &ask.body, ANSWER_MS);
            let reply = match link.request(request).await {
                Ok(Reply::Http(reply)) => reply,
                Ok(_) => return Err("not an HTTP answer".to_owned()),
                Err(error) => return Err(error.to_string()),
            };
            match ask.judge(reply.status, &reply.body) {
                TokenAnswer::Token if TokenRequest::is_only_thought(&reply.body) => {
                    return Ok(Said::OnlyThought);
                }
                TokenAnswer::Token => return Ok(Said::Text(TokenRequest::text_of(&reply.body))),
                TokenAnswer::NotYet { why } => return Err(why),
                TokenAnswer::NotOffered { why: said } => why = said,
            }
        }
        Err(why)
    }

    async fn query(&self, check: &PrometheusCheck) -> (CheckResult, String) {
        let stable = self.stable.map(|r| r.to_string()).unwrap_or_default();
        let query = check
            .query
            .replace("$service", self.service.as_str())
            .replace("$canary", &self.release.to_string())
            .replace("$stable", &stable);
        let result = match super::prometheus::query(check, &query).await {
            Ok(result) => result,
            Err(why) => return (CheckResult::Error, why),
        };
        judge_query(check, result)
    }
}

/// Argo's rule: with both conditions, what holds neither is inconclusive.
fn judge_query(check: &PrometheusCheck, result: f64) -> (CheckResult, String) {
    if result.is_nan() {
        return (CheckResult::Inconclusive, "the query gave NaN: nothing was measured".to_owned());
    }
    let failed = check.failure.as_ref().filter(|c| c.holds(result));
    let success = check.success.as_ref().filter(|c| c.holds(result));
    match (failed, success, &check.success, &check.failure) {
        (Some(c), ..) => (CheckResult::Failed, format!("{result} ({c})")),
        (None, Some(c), ..) => (CheckResult::Successful, format!("{result} ({c})")),
        (None, None, Some(c), None) => (CheckResult::Failed, format!("{result}, not {c}")),
        (None, None, None, Some(c)) => (CheckResult::Successful, format!("{result}, not {c}")),
        (None, None, ..) => {
            (CheckResult::Inconclusive, format!("{result} is neither success nor failure"))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    /// A full disk ate the answer to a golden prompt: the prompt is asked again.
    #[test]
    fn what_the_journal_did_not_take_is_measured_again() {
        let text = "[[golden]]\nprompt = \"2+2\"\ncontains = \"4\"\n";
        let spec: AnalysisSpec = toml::from_str(text).unwrap();
        let (name, _) = spec.checks().into_iter().next().unwrap();
        let mut seen = BTreeMap::new();
        assert!(lacks_results(&spec, &seen));
        let mut run = CheckRun::default();
        run.add(CheckResult::Successful, "4");
        seen.insert(name, run);
        assert!(!lacks_results(&spec, &seen));
    }

    #[test]
    fn conditions_decide_as_argos_do() {
        let check = |conditions: &str| -> PrometheusCheck {
            toml::from_str(&format!("url = \"http://p\"\nquery = \"q\"\n{conditions}")).unwrap()
        };
        let both = check("success = \"result < 1\"\nfailure = \"result > 2\"");
        assert_eq!(judge_query(&both, 0.5), (CheckResult::Successful, "0.5 (result < 1)".into()));
        assert_eq!(judge_query(&both, 3.0), (CheckResult::Failed, "3 (result > 2)".into()));
        assert_eq!(judge_query(&both, 1.5).0, CheckResult::Inconclusive);
        let success = check("success = \"result < 1\"");
        assert_eq!(judge_query(&success, 1.5), (CheckResult::Failed, "1.5, not result < 1".into()));
        assert_eq!(judge_query(&success, f64::NAN).0, CheckResult::Inconclusive);
        let failure = check("failure = \"result > 2\"");
        assert_eq!(judge_query(&failure, 1.5).0, CheckResult::Successful);
    }
}

//! The deck as one world, questions about it, and moving one replica by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::core::{Core, Input};
use super::maintenance::conflict;
use super::planning::{self, Draft, PortGiver};
use super::{search_threads, world};
use crate::api::{ApiError, ErrorKind, IntentReply, ReplicaTo, Severity, WhatIf, WhatIfView};
use crate::base::{Hint, HostName, ReplicaKey, ServiceName};
use crate::placement::global::WorldFile;
use crate::placement::translate::{Present, Wanted, world_file};
use crate::placement::unread::stay_where_unread;
use crate::placement::what_if::WhatIfError;
use crate::placement::{Demand, HostCapacity, World, sorted, what_if};
use crate::rollout::{EventKind, ReplicaPlan, RequestedMove, ServiceState};
use crate::spec::DeviceKind;

/// How long a question may be thought about, beside the loop, and how often something may be tried.
const THINKING: Duration = Duration::from_millis(500);
const THINKING_STEPS: u64 = 100_000;
/// Up to so many GPUs one thread finds in that time what there is to be found.
const ALONE: usize = 512;

/// What was found of each service's spec and model.
pub type Drafts = Vec<(ServiceName, Result<Draft, ApiError>)>;

impl From<WhatIfError> for ApiError {
    fn from(error: WhatIfError) -> Self {
        Self { kind: ErrorKind::Invalid, hint: error.hint(), message: error.message }
    }
}

/// Answers a question about the deck's world, within bounds.
pub fn answer(world: WorldFile, question: &WhatIf) -> Result<WhatIfView, ApiError> {
    let began = Instant::now();
    let mut used = || began.elapsed().as_secs_f64() / THINKING.as_secs_f64();
    // A small world has the same answer each time; of a large one more is found with all of the machine.
    let gpus: usize = world.hosts.iter().map(|host| host.gpus.len()).sum();
    let (steps, helpers) = match search_threads::helpers().filter(|_| gpus > ALONE) {
        Some(helpers) => (u64::MAX, Some(helpers)),
        None => (THINKING_STEPS, None),
    };
    Ok(what_if::answer(world, question, &mut used, steps, helpers)?)
}

impl Core {
    /// Reads the specs of all services and looks at their models, off the loop.
    pub(super) fn what_if_drafts(
        &self,
        question: &WhatIf,
    ) -> Result<BoxFuture<'static, Drafts>, ApiError> {
        let named = question.to.iter().map(|to| &to.service);
        for service in question.services.iter().chain(named) {
            if !self.known_services().contains(service) {
                return Err(planning::not_found(service, self.known_services()));
            }
            // Who asks about it means its spec as it is written.
            if let Some(Err(message)) = self.files.services.get(service) {
                let (message, hint) = message.split_once(" → ").unwrap_or((message, ""));
                let hint = (!hint.is_empty()).then(|| hint.to_owned());
                let message = message.to_owned();
                return Err(ApiError { kind: ErrorKind::Invalid, message, hint });
            }
        }
        for host in question.without.iter().chain(question.to.iter().map(|to| &to.host)) {
            self.known_host(host)?;
        }
        // It is in no world of GPUs.
        if let Some(to) = &question.to
            && self.served(&to.service).is_some_and(|spec| spec.device == DeviceKind::Cpu)
        {
            return Err(on_host_memory(&to.service));
        }
        let hosts: Vec<HostName> = self.hub.with(|s| {
            s.hosts.values().filter(|h| world::is_up(h)).map(|h| h.name.clone()).collect()
        });
        let mut services = self.known_services();
        services.sort();
        services.dedup();
        let work: Vec<_> = services
            .into_iter()
            .map(|service| {
                let spec = match (self.files.services.get(&service), self.served(&service)) {
                    (Some(Ok(spec)), _) => Ok(spec.clone()),
                    (Some(Err(why)), _) => Err(why.clone()),
                    (None, Some(spec)) => Ok(spec),
                    (None, None) => Err("there is no spec of it".to_owned()),
                };
                let (means, hosts) = (Arc::clone(&self.means), hosts.clone());
                async move {
                    let draft = match spec {
                        Ok(spec) => {
                            let of = service.clone();
                            planning::draft(&means, of, spec, String::new(), None, hosts).await
                        }
                        Err(message) => {
                            let hint = Some(format!("`gpudeck plan {service}` says more"));
                            Err(ApiError { kind: ErrorKind::Invalid, message, hint })
                        }
                    };
                    (service, draft)
                }
            })
            .collect();
        Ok(Box::pin(futures::future::join_all(work)))
    }

    fn served(&self, service: &ServiceName) -> Option<crate::spec::ServiceSpec> {
        let state = self.state.services.get(service)?;
        Some(state.releases.get(&state.stable?)?.spec.clone())
    }

    /// Everything that hosts have and services want, with all shapes that they may have, as one world; who is not in it,
    /// with the reason, and whose reason is a mistake.
    pub(super) fn live_world(
        &mut self,
        drafts: Drafts,
    ) -> (WorldFile, BTreeMap<ServiceName, String>, BTreeSet<ServiceName>) {
        let hosts = self.hub.with(|s| world::hosts_beside(s.hosts.values(), &self.state, None));
        let unread = self.hub.with(|s| world::unread(s.hosts.values()));
        let mut present = World { hosts };
        let mut left_out = BTreeMap::new();
        let mut mistaken = BTreeSet::new();
        let mut demands: Vec<Demand> = Vec::new();
        for (service, draft) in drafts {
            let demand = draft.and_then(|draft| {
                let mut demand =
                    planning::demand(self, &draft, draft.spec.replicas.get(), &present.hosts)?;
                demand.reuse = world::serving(&self.state, &service);
                Ok(demand)
            });
            match demand {
                Ok(demand) if demand.device == DeviceKind::Gpu => demands.push(demand),
                Ok(_) => {
                    let why = "it runs on host memory, of which any host has its own";
                    left_out.insert(service, why.to_owned());
                }
                Err(error) => {
                    mistaken.insert(service.clone());
                    left_out.insert(service, error.message);
                }
            }
        }
        for demand in &mut demands {
            stay_where_unread(&mut present.hosts, &unread, demand);
        }
        let hosts = sorted(&present);
        let wanted: Vec<Wanted<'_>> = demands
            .iter()
            .map(|demand| Wanted { demand, shapes: &demand.shapes, present: Present::MayStay })
            .collect();
        (world_file(&hosts, &wanted), left_out, mistaken)
    }

    /// Takes a wish to move one replica: its model is looked at off the loop, then it begins.
    pub(super) fn move_replica(
        &self,
        to: ReplicaTo,
        by: String,
        reason: Option<String>,
        reply: oneshot::Sender<Result<IntentReply, ApiError>>,
    ) {
        let spec = self.may_move(&to).map(|(state, key)| {
            state.releases.get(&key.release).map(|release| release.spec.clone())
        });
        let spec = match spec {
            Ok(Some(spec)) => spec,
            Ok(None) => {
                let _ = reply.send(Err(not_running(&to)));
                return;
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let (means, inputs) = (Arc::clone(&self.means), self.means.inputs.clone());
        tokio::spawn(async move {
            let (service, hosts) = (to.service.clone(), vec![to.host.clone()]);
            match planning::draft(&means, service, spec, String::new(), None, hosts).await {
                Err(error) => {
                    let _ = reply.send(Err(error));
                }
                Ok(draft) => {
                    let begin = Box::new(move |core: &mut Core| {
                        let begun = core.begin_move(&to, &draft, by, reason);
                        core.answer(reply, begun);
                    });
                    let _ = inputs.send(Input::Ask(begin)).await;
                }
            }
        });
    }

    /// The replica, if it may be moved now.
    fn may_move(&self, to: &ReplicaTo) -> Result<(&ServiceState, ReplicaKey), ApiError> {
        self.known_host(&to.host)?;
        let Some(state) = self.state.services.get(&to.service) else {
            return Err(planning::not_found(&to.service, self.known_services()));
        };
        self.may_begin(&to.service)?;
        let Some(release) = state.stable else { return Err(not_running(to)) };
        let key = ReplicaKey { release, replica: to.replica };
        if state.replicas.get(&key).is_none_or(|r| r.retiring) || state.vacated.contains(&key) {
            return Err(not_running(to));
        }
        if state.moves.iter().any(|m| m.from == to.replica) {
            let message = format!("{} {key} is being moved already", to.service);
            return Err(conflict(message, "wait until it has moved"));
        }
        Ok((state, key))
    }

    /// The GPUs that are named are ones, and its replicas have any.
    fn gpus_are_there(&self, to: &ReplicaTo, draft: &Draft) -> Result<(), ApiError> {
        if draft.spec.device == DeviceKind::Cpu && !to.gpus.is_empty() {
            return Err(on_host_memory(&to.service));
        }
        let known: Vec<u32> = self.hub.with(|s| {
            let sample = s.hosts.get(&to.host).and_then(|h| h.sample.as_ref());
            sample.map_or(&[][..], |s| s.gpus.list()).iter().map(|g| g.index).collect()
        });
        let Some(missing) = to.gpus.iter().find(|index| !known.contains(index)) else {
            return Ok(());
        };
        let known: Vec<String> = known.iter().map(u32::to_string).collect();
        Err(ApiError {
            kind: ErrorKind::Invalid,
            message: format!("{} has no GPU {missing}", to.host),
            hint: Some(if known.is_empty() {
                "`gpudeck hosts` shows which hosts have GPUs".to_owned()
            } else {
                format!("it has {}", known.join(", "))
            }),
        })
    }

    fn begin_move(
        &mut self,
        to: &ReplicaTo,
        draft: &Draft,
        by: String,
        reason: Option<String>,
    ) -> Result<IntentReply, ApiError> {
        let (state, key) = self.may_move(to)?;
        let release = state.releases.get(&key.release).ok_or_else(|| not_running(to))?;
        self.gpus_are_there(to, draft)?;
        let mut hosts = self.hub.with(|s| world::hosts_beside(s.hosts.values(), &self.state, None));
        hosts.retain(|h| h.name == to.host);
        for host in &mut hosts {
            only(host, &to.gpus);
        }
        let mut demand = planning::demand(self, draft, 1, &hosts)?;
        demand.staying = world::reusable(&self.state, &to.service);
        demand.staying.retain(|r| r.replica != key);
        if demand.device == DeviceKind::Gpu {
            demand.shapes.retain(|s| s.devices() == to.gpus.len());
            let own = release.replica(key.replica).map(ReplicaPlan::shape);
            if demand.shapes.iter().any(|s| Some(s.shape) == own) {
                demand.shapes.retain(|s| Some(s.shape) == own);
            }
            if demand.shapes.is_empty() {
                return Err(ApiError {
                    kind: ErrorKind::Unplaceable,
                    message: format!(
                        "{} {key} cannot be moved: it cannot be divided over {} GPUs",
                        to.service,
                        to.gpus.len()
                    ),
                    hint: Some("name as many GPUs as it has now".to_owned()),
                });
            }
        }
        let placed = planning::place_on(self, hosts, &demand).map_err(|e| ApiError {
            message: format!("{} {key} cannot be moved to {}: {}", to.service, to.host, e.message),
            ..e
        })?;
        let place = placed.replicas.first().ok_or_else(|| not_running(to))?;
        let index = release.replicas.len() + state.moves.iter().filter(|m| m.to.is_none()).count();
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let mut ports = PortGiver::new(self);
        let plan = planning::replica_plan(self, draft, release.number, index, place, &mut ports)?;
        let why = reason.unwrap_or_else(|| format!("moved to {} by hand", to.host));
        let moves = vec![RequestedMove { replica: to.replica, plan }];
        let words = format!("{by} moves {key} to {}: {why}", to.host);
        let kind = EventKind::MovesRequested { release: key.release, moves, by, why };
        let accepted = self.on_service(&to.service, kind)?;
        self.say(Severity::Info, Some(&to.service), &words);
        Ok(accepted)
    }
}

/// Nobody can say on which GPUs such a replica is to be.
fn on_host_memory(service: &ServiceName) -> ApiError {
    ApiError {
        kind: ErrorKind::Invalid,
        message: format!("{service} runs on host memory: its replicas have no GPUs to be moved to"),
        hint: Some("`gpudeck drain HOST` moves what runs there to other hosts".to_owned()),
    }
}

/// Of a host's GPUs just these can be used.
fn only(host: &mut HostCapacity, gpus: &[u32]) {
    for gpu in host.gpus.iter_mut().filter(|g| !gpus.contains(&g.index)) {
        gpu.reserved_by.get_or_insert_with(|| "nobody: not named for the move".to_owned());
    }
}

fn not_running(to: &ReplicaTo) -> ApiError {
    ApiError {
        kind: ErrorKind::NotFound,
        message: format!("no replica {} of {} is served", to.replica, to.service),
        hint: Some(format!("`gpudeck status {}` lists its replicas", to.service)),
    }
}

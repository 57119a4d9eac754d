//! How many tokens engines generate: read from their own metrics every few seconds, for plans.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use super::actions::{self, Means};
use super::core::{Core, now};
use super::plan_steps;
use crate::base::{HostName, ReplicaId, ServiceName};
use crate::engine::metrics;
use crate::rollout::Phase;
use crate::spec::EngineSpec;
use crate::wire::{Reply, Request};

/// Time between readings.
const INTERVAL: Duration = Duration::from_secs(5);

/// Engines asked at the same time.
const AT_ONCE: usize = 16;

/// Where an engine tells its metrics.
struct Target {
    service: ServiceName,
    replica: ReplicaId,
    host: HostName,
    port: u16,
    engine: EngineSpec,
}

/// Reads until the controller ends.
pub async fn watch(means: Arc<Means>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(targets) = means.ask(Core::throughput_targets).await else { return };
        let readings: Vec<(ServiceName, ReplicaId, f64)> = futures::stream::iter(targets)
            .map(|target| read(Arc::clone(&means), target))
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        if means.ask(move |core| core.note_tokens(&readings)).await.is_none() {
            return;
        }
    }
}

async fn read(means: Arc<Means>, target: Target) -> Option<(ServiceName, ReplicaId, f64)> {
    let names = metrics::Names::of(&target.engine)?;
    let link = actions::link(&means, &target.host).ok()?;
    let request = Request::Http {
        port: target.port,
        address: None,
        method: "GET".to_owned(),
        path: metrics::PATH.to_owned(),
        body: None,
        timeout_ms: 3_000,
    };
    let Ok(Reply::Http(reply)) = link.request(request).await else { return None };
    let total = metrics::parse(&reply.body, names).generated?;
    Some((target.service, target.replica, total))
}

impl Core {
    fn throughput_targets(&mut self) -> Vec<Target> {
        let services = &self.state.services;
        self.measured.keep_tokens_of(|service, id| {
            let replica = services.get(service).and_then(|s| s.replicas.get(&id.key()));
            replica.is_some_and(|r| r.attempt == id.attempt)
        });
        let ready = services.iter().flat_map(|(service, state)| {
            state.replicas.iter().filter(|(_, r)| r.phase == Phase::Ready).filter_map(
                move |(key, _)| {
                    let release = state.releases.get(&key.release)?;
                    metrics::Names::of(&release.spec.engine)?;
                    let first = release.replica(key.replica)?.ranks.first()?;
                    Some(Target {
                        service: service.clone(),
                        replica: state.replica_id(key.release, key.replica)?,
                        host: first.host.clone(),
                        port: first.port,
                        engine: release.spec.engine.clone(),
                    })
                },
            )
        });
        ready.collect()
    }

    fn note_tokens(&mut self, readings: &[(ServiceName, ReplicaId, f64)]) {
        for (service, replica, total) in readings {
            let release =
                self.state.services.get(service).and_then(|s| s.releases.get(&replica.release));
            let Some(release) = release else { continue };
            let key = plan_steps::key_of(&self.hub, release, replica.replica);
            self.measured.tokens(service, *replica, key, *total, now());
        }
    }
}

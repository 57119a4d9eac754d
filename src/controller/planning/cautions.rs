//! What a plan says beside its steps, though nothing forbids it: what people would not expect of what they wrote.

use crate::base::time;
use crate::controller::core::Core;
use crate::controller::gateways::Gateways;
use crate::placement::{GpuCapacity, HostCapacity};
use crate::rollout::{Release, ReplicaPlan, ServiceState, uncounted_analyses};
use crate::spec::{RolloutSpec, ServiceSpec};

/// How clients find the engines, and who counts their requests, where no gateway does either.
pub(super) fn of_the_traffic(core: &Core, state: &ServiceState, spec: &ServiceSpec) -> Vec<String> {
    let service = &state.service;
    if Gateways::to_be(&core.deck, service, Some(state), spec).is_some() {
        return Vec::new();
    }
    let mut told = Vec::new();
    if core.deck.endpoints.is_none() && core.deck.gateways.is_empty() {
        told.push(format!(
            "nothing tells clients where {service} is: its engines get other ports with each release, and deck.toml has \
             neither a gateway nor [endpoints] → add [gateways.NAME], or [endpoints] with dir or listen"
        ));
    }
    let uncounted = uncounted_analyses(spec);
    if !uncounted.is_empty() {
        told.push(format!(
            "nobody counts the requests that analysis {} asks for: there is no gateway, and the engine does not tell \
             how many it ended; it will wait for a person → add a gateway, or write min_requests = 0",
            uncounted.join(", ")
        ));
    }
    if spec.rollout.canary_header.is_some() || spec.rollout.canary_cookie.is_some() {
        told.push(
            "there is no gateway that sends requests to the canary by a header or cookie: none are sent to it by that"
                .to_owned(),
        );
    }
    told
}

/// Clocks that can turn back a rollout of which nothing is wrong.
pub(super) fn of_the_clocks(rollout: &RolloutSpec) -> Option<String> {
    let slowest = rollout.healthy_deadline.saturating_add(rollout.min_healthy_time);
    let limit = rollout.progress_limit().filter(|limit| *limit <= slowest)?;
    Some(format!(
        "a replica that loads as long as it may ({}) and is then watched for min_healthy_time ({}) is rolled back by \
         progress_deadline ({}) → write progress_deadline longer than {}",
        time::short(rollout.healthy_deadline),
        time::short(rollout.min_healthy_time),
        time::short(limit),
        time::short(slowest),
    ))
}

/// Engines are started anew, though what is new does not concern them; `why`, where it is not what else the spec says.
pub(super) fn of_a_restart(
    served: &Release,
    spec: &ServiceSpec,
    why: Option<String>,
) -> Option<String> {
    let engines_are_as_before = {
        let ServiceSpec { replicas, gateway, gateways, url, backend, .. } = served.spec.clone();
        let (placement, rollout) = (served.spec.placement.clone(), served.spec.rollout.clone());
        let analysis = served.spec.analysis.clone();
        let as_before = ServiceSpec {
            replicas,
            gateway,
            gateways,
            url,
            backend,
            placement,
            rollout,
            analysis,
            ..spec.clone()
        };
        as_before == served.spec
    };
    (engines_are_as_before && served.spec != *spec).then(|| {
        format!(
            "nothing that engines are started with differs from {}, and yet all of them are started anew: {}",
            served.number,
            why.unwrap_or_else(|| "with another gateway, backend or placement they are".to_owned())
        )
    })
}

/// A cordoned host with room for a replica more, beside what a plan lacks.
pub(super) fn cordoned_room(core: &Core, release: &Release) -> Option<String> {
    let gpus = |replica: &ReplicaPlan| replica.ranks.iter().map(|rank| rank.devices.len()).sum();
    let needed: usize = release.replicas.iter().map(gpus).max()?;
    room_behind_a_cordon(&core.capacities(None), needed)
}

fn room_behind_a_cordon(hosts: &[HostCapacity], needed: usize) -> Option<String> {
    let free = |host: &HostCapacity| {
        let unused = |gpu: &&GpuCapacity| gpu.reserved_by.is_none() && gpu.cordoned.is_none();
        host.gpus.iter().filter(unused).count()
    };
    let closed = |host: &&HostCapacity| host.up && host.cordoned && !host.draining;
    let host = hosts.iter().filter(closed).find(|host| free(host) >= needed.max(1))?;
    let (name, free) = (&host.name, free(host));
    Some(format!("; {name} is cordoned with {free} free GPUs: `gpudeck uncordon {name}`"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clocks_that_run_out_together_are_told() {
        let minutes = |n| Duration::from_mins(n);
        let rollout = |healthy, min_healthy, progress| RolloutSpec {
            healthy_deadline: minutes(healthy),
            min_healthy_time: minutes(min_healthy),
            progress_deadline: minutes(progress),
            ..RolloutSpec::default()
        };
        assert_eq!(of_the_clocks(&rollout(20, 5, 30)), None);
        assert_eq!(of_the_clocks(&rollout(20, 15, 0)), None, "no such clock");
        let told = of_the_clocks(&rollout(20, 15, 30)).unwrap();
        assert!(told.contains("longer than 35m"), "{told}");
    }
}

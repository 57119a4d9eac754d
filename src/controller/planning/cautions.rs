//! What a plan says beside its steps, though nothing forbids it: what people would not expect of what they wrote.

use crate::base::{Bytes, ServiceName, text, time};
use crate::controller::core::Core;
use crate::controller::gateways::Gateways;
use crate::placement::{GpuCapacity, HostCapacity};
use crate::rollout::{Release, ServiceState, uncounted_analyses};
use crate::spec::{DeviceKind, PlacementSpec, RolloutSpec, ServiceSpec};

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

/// Names in `after` that no service has: the order that they were to give is not kept.
pub(super) fn of_the_order(core: &Core, service: &ServiceName, spec: &ServiceSpec) -> Vec<String> {
    let there = |name: &ServiceName| {
        name != service
            && (core.files.services.contains_key(name) || core.state.services.contains_key(name))
    };
    let unknown = spec.rollout.after.iter().filter(|name| !there(name));
    unknown
        .map(|name| {
            let others = core.files.services.keys().filter(|other| *other != service);
            let why = if name == service {
                "it is itself".to_owned()
            } else {
                match text::nearest(name.as_str(), others.map(ServiceName::as_str)) {
                    Some(near) => format!("there is no such service; did you mean `{near}`?"),
                    None => "there is no such service".to_owned(),
                }
            };
            format!("after = [\"{name}\"] orders nothing: {why}")
        })
        .collect()
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

/// A cordoned host with room for a replica more, beside what a plan lacks. Only what is sure: of a requirement it is
/// not known here which GPUs meet it.
pub(super) fn cordoned_room(core: &Core, release: &Release) -> Option<String> {
    let spec = &release.spec;
    if spec.device == DeviceKind::Cpu || spec.placement.require.is_some() {
        return None;
    }
    let ranks = release.replicas.iter().flat_map(|replica| &replica.ranks);
    let largest = ranks.max_by_key(|rank| rank.devices.len())?;
    let needed = (largest.devices.len(), largest.memory_per_device);
    room_behind_a_cordon(&core.capacities(None), &spec.placement, needed)
}

/// `needed`: so many GPUs with so much free on each.
fn room_behind_a_cordon(
    hosts: &[HostCapacity],
    placement: &PlacementSpec,
    (gpus, memory): (usize, Bytes),
) -> Option<String> {
    let free = |host: &HostCapacity| {
        let unused = |gpu: &&GpuCapacity| {
            gpu.reserved_by.is_none() && gpu.refuses_new().is_none() && gpu.free >= memory
        };
        host.usable_by(gpus).filter(unused).count()
    };
    let may = |host: &&HostCapacity| {
        let labels = &placement.labels;
        (placement.hosts.is_empty() || placement.hosts.contains(&host.name))
            && labels.iter().all(|(key, value)| host.labels.get(key) == Some(value))
    };
    let closed =
        |host: &&HostCapacity| host.up && host.cordoned && !host.draining && !host.upgrading;
    let mut closed = hosts.iter().filter(closed).filter(may);
    let host = closed.find(|host| free(host) >= gpus.max(1))?;
    let (name, free) = (&host.name, free(host));
    Some(format!("; {name} is cordoned with {free} free GPUs: `gpudeck uncordon {name}`"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
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

    #[test]
    fn only_a_host_that_an_uncordon_makes_useful_is_named() {
        let gpus: Vec<crate::wire::Gpu> = (0..2)
            .map(|i| {
                serde_json::from_value(serde_json::json!({
                    "index": i, "uuid": format!("GPU-{i}"), "name": "H", "health": "ok",
                    "memory": {"used": 0, "total": 80u64 << 30}
                }))
                .unwrap()
            })
            .collect();
        let sample =
            crate::wire::HostSample { gpus: crate::wire::Gpus::Some(gpus), ..Default::default() };
        let (name, labels) = ("h3".parse().unwrap(), [("zone".to_owned(), "a".to_owned())]);
        let none = std::collections::BTreeMap::new();
        let host = HostCapacity {
            cordoned: true,
            ..HostCapacity::observed(name, labels.into(), true, None, Some(&sample), &none)
        };
        let anywhere = PlacementSpec::default();
        let told = |host: &HostCapacity, placement: &PlacementSpec, gib| {
            room_behind_a_cordon(std::slice::from_ref(host), placement, (2, Bytes::gib(gib)))
        };
        let words = "; h3 is cordoned with 2 free GPUs: `gpudeck uncordon h3`";
        assert_eq!(told(&host, &anywhere, 70).as_deref(), Some(words));
        assert_eq!(told(&host, &anywhere, 90), None, "too small");
        let upgrading = HostCapacity { upgrading: true, ..host.clone() };
        assert_eq!(told(&upgrading, &anywhere, 70), None, "the upgrade opens it");
        let mut sick = host.clone();
        sick.gpus[0].healthy = Err("lost".to_owned());
        assert_eq!(told(&sick, &anywhere, 70), None);
        let elsewhere =
            PlacementSpec { hosts: vec!["h1".parse().unwrap()], ..PlacementSpec::default() };
        assert_eq!(told(&host, &elsewhere, 70), None);
        let zone = |zone: &str| PlacementSpec {
            labels: [("zone".to_owned(), zone.to_owned())].into(),
            ..PlacementSpec::default()
        };
        assert!(told(&host, &zone("a"), 70).is_some() && told(&host, &zone("b"), 70).is_none());
    }
}

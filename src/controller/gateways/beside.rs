//! Releases of one service that are reached in different ways at the same time: what each of their gateways has, and
//! what one file of a gateway holds for all of them.

use super::Gateways;
use crate::base::ServiceName;
use crate::gateway::section::OtherBackend;

impl Gateways {
    /// Those of them that are not among `others` with the same backend. None: nothing is left.
    pub(super) fn beside(&self, others: &[Self]) -> Option<Self> {
        let mut rest = self.clone();
        for other in others {
            if other.backend == self.backend {
                rest.places.retain(|name, _| !other.places.contains_key(name));
            } else {
                // Its file there is the other's.
                let shared = rest.places.iter_mut().filter(|(n, _)| other.places.contains_key(*n));
                shared.for_each(|(_, gateway)| gateway.config = None);
            }
            rest.unknown.retain(|name| !other.unknown.contains(name));
        }
        (!rest.places.is_empty() || !rest.unknown.is_empty()).then_some(rest)
    }

    /// The gateway and backend that this release of a service and another one would fill with different servers: the
    /// canary's of one has the name of the other's own.
    pub fn tangled_with(&self, other: &Self) -> Option<(&ServiceName, String)> {
        if self.backend == other.backend { None } else { self.shared_with(other) }
    }

    /// What to know of the frontends that people wrote themselves for a backend that is `served` through and that this
    /// release leaves, where the section is ours.
    pub fn to_be_led(&self, served: &Self) -> Option<String> {
        let (new, old) = (&self.backend, &served.backend);
        let left = self.places.iter().filter(|(name, gateway)| {
            let ours = gateway.config.is_some() && !gateway.listen.contains_key(&self.service);
            ours && served.places.contains_key(*name)
        });
        let names: Vec<&str> = left.map(|(name, _)| name.as_str()).collect();
        (new != old && !names.is_empty()).then(|| {
            format!(
                "the backend {old} becomes {new}: while replicas of both releases live there are both at {}, and what \
                 names {old} after that keeps HAProxy from reading the file → lead your own frontend to {new} in \
                 mid-rollout",
                names.join(", ")
            )
        })
    }
}

/// Those that leave, apart where a file goes without them that one which serves writes.
pub(super) fn left_by_files(leaving: Vec<Gateways>, serving: &[Gateways]) -> Vec<Gateways> {
    let has_file = |name: &ServiceName| {
        let mut there = serving.iter().filter_map(|g| g.places.get(name));
        there.any(|gateway| gateway.config.is_some())
    };
    let parts = leaving.into_iter().flat_map(|gateways| {
        let (mut with, mut without) = (gateways.clone(), gateways);
        with.until_read = true;
        with.places.retain(|name, _| has_file(name));
        without.places.retain(|name, _| !has_file(name));
        with.unknown.clear();
        [with, without]
    });
    parts.filter(|g| !g.places.is_empty() || !g.unknown.is_empty()).collect()
}

/// What writes a gateway's file writes the backends of the others there into it, too: a reload takes none away through
/// which clients still come.
pub(super) fn hold_together(serving: &mut [Gateways]) {
    let mut rest = serving;
    while let Some((writer, others)) = std::mem::take(&mut rest).split_first_mut() {
        let written = writer.places.iter().filter(|(_, gateway)| gateway.config.is_some());
        let names: Vec<ServiceName> = written.map(|(name, _)| name.clone()).collect();
        for name in names {
            let there = others.iter().filter(|other| other.places.contains_key(&name));
            let also: Vec<OtherBackend> = there
                .map(|other| OtherBackend {
                    backend: other.backend.clone(),
                    canary: other.canary.is_some(),
                    stream_timeout: other.stream_timeout,
                })
                .collect();
            if !also.is_empty() {
                writer.also.insert(name, also);
            }
        }
        rest = others;
    }
}

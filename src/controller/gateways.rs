//! The gateways of one service: all of them get the same table, and what they count is counted
//! together. Here is which they are, what they should have and what they have; [`telling`] brings it to them.

mod beside;
mod routes;
mod telling;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::actions::{Means, link};
use super::traffic::Totals;
use crate::api::{ApiError, ErrorKind, GatewayView};
use crate::base::{Hint, HostName, ServiceName, TrafficMode, TrafficServer, time};
use crate::gateway::section::{
    OtherBackend, Section, SectionServer, canary_backend, canary_servers,
};
use crate::gateway::{BackendSeen, Gateway, GatewayError, HaproxyGateway, haproxy};
use crate::rollout::{Release, ServiceState};
use crate::spec::{CanaryRule, DeckSpec, GatewaySpec, ServiceSpec};

pub use routes::Routes;
pub use telling::{NotApplied, Written};

/// How long a plan waits for a gateway's word.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shortest time an answer may be silent, in a section that we write.
const STREAM_TIMEOUT: Duration = Duration::from_secs(600);

/// The key of the spec that the rule stands in.
const fn rule_key(rule: &CanaryRule) -> &'static str {
    match rule {
        CanaryRule::Header { .. } => "canary_header",
        CanaryRule::Cookie { .. } => "canary_cookie",
    }
}

/// Whether `HAProxy` says that it has no such backend.
fn lacks_backend(error: &GatewayError) -> bool {
    matches!(error, GatewayError::Gateway { message, .. } if haproxy::lacks_backend(message))
}

/// What a backend of this gateway is like, if it can be asked in time.
async fn backend_at(
    means: &Means,
    gateway: &GatewaySpec,
    backend: &str,
) -> Result<BackendSeen, GatewayError> {
    let link = link(means, &gateway.host)?;
    let host = link.host().clone();
    let epoch = means.claims.cell(&gateway.host).await;
    let (backend, socket) = (backend.to_owned(), gateway.socket.clone());
    let haproxy = HaproxyGateway::new(link, socket, backend, means.deck, epoch);
    tokio::time::timeout(PATIENCE, haproxy.backend()).await.unwrap_or_else(|_| {
        Err(GatewayError::Gateway {
            host,
            message: format!("no answer within {}", time::short(PATIENCE)),
            hint: None,
        })
    })
}

/// The gateways of one service, and what is to be told to them.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateways {
    deck: String,
    service: ServiceName,
    places: BTreeMap<ServiceName, GatewaySpec>,
    unknown: Vec<ServiceName>,
    backend: String,
    canary: Option<CanaryRule>,
    /// The backend of a canary that an earlier release chose by a rule, and this one does not: to be empty.
    left_canary: bool,
    stream_timeout: Duration,
    /// Backends of other releases that live, in the file that this one writes for a gateway.
    also: BTreeMap<ServiceName, Vec<OtherBackend>>,
    /// No release that lives has it: a backend that is not there any more holds nothing.
    leaving: bool,
    /// Of one that leaves: at its places the next file has no such backend, and until HAProxy has read that, clients may be
    /// led there.
    until_read: bool,
}

impl Gateways {
    /// Those the spec names, else the deck's only one. None: the service has no gateway.
    pub fn of(deck: &DeckSpec, service: &ServiceName, spec: &ServiceSpec) -> Option<Self> {
        Self::through(deck, service, spec, None)
    }

    /// Those of a release: what was the deck's only one when it was planned stays its own when others come.
    pub fn of_release(deck: &DeckSpec, release: &Release) -> Option<Self> {
        Self::through(deck, &release.service, &release.spec, release.gateway.as_ref())
    }

    /// Those of a spec that is to be rolled out.
    pub fn to_be(
        deck: &DeckSpec,
        service: &ServiceName,
        state: Option<&ServiceState>,
        spec: &ServiceSpec,
    ) -> Option<Self> {
        let kept = state.and_then(|state| Self::only_one(deck, state, spec));
        Self::through(deck, service, spec, kept.as_ref())
    }

    /// What a spec that names none goes through: the deck's only one, or the one that the service is served through: an
    /// undo to a spec that is older than the second gateway takes nobody's clients away.
    pub fn only_one(
        deck: &DeckSpec,
        state: &ServiceState,
        spec: &ServiceSpec,
    ) -> Option<ServiceName> {
        if spec.gateway.is_some() || !spec.gateways.is_empty() {
            return None;
        }
        let mut names = deck.gateways.keys();
        match (names.next(), names.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => {
                let served = state.stable.and_then(|stable| state.releases.get(&stable))?;
                let mut named = served.spec.gateways.iter().chain(&served.spec.gateway);
                let only_named = named.next().filter(|first| named.all(|other| other == *first));
                let kept = served.gateway.as_ref().or(only_named);
                kept.filter(|name| deck.gateways.contains_key(*name)).cloned()
            }
        }
    }

    fn through(
        deck: &DeckSpec,
        service: &ServiceName,
        spec: &ServiceSpec,
        kept: Option<&ServiceName>,
    ) -> Option<Self> {
        let named: BTreeSet<&ServiceName> = spec.gateways.iter().chain(&spec.gateway).collect();
        let mut gateways = BTreeMap::new();
        let mut unknown = Vec::new();
        for name in &named {
            match deck.gateways.get(*name) {
                Some(gateway) => {
                    gateways.insert((*name).clone(), gateway.clone());
                }
                None => unknown.push((*name).clone()),
            }
        }
        if named.is_empty() {
            if deck.gateways.len() == 1 {
                gateways.clone_from(&deck.gateways);
            } else {
                let (name, gateway) = deck.gateways.get_key_value(kept?)?;
                gateways.insert(name.clone(), gateway.clone());
            }
        }
        Some(Self {
            deck: deck.name.clone(),
            service: service.clone(),
            places: gateways,
            unknown,
            backend: spec.backend.clone().unwrap_or_else(|| service.to_string()),
            canary: spec.rollout.canary_rule().ok().flatten(),
            left_canary: false,
            stream_timeout: STREAM_TIMEOUT.max(spec.rollout.drain_deadline),
            also: BTreeMap::new(),
            leaving: false,
            until_read: false,
        })
    }

    /// Its backend, and the one of its canary.
    fn own_backends(&self) -> Vec<String> {
        let canary = self.canary.is_some().then(|| canary_backend(&self.backend));
        std::iter::once(self.backend.clone()).chain(canary).collect()
    }

    /// The gateway and backend that this service and another one both would fill: each would drain the other's servers.
    pub fn shared_with(&self, other: &Self) -> Option<(&ServiceName, String)> {
        let gateway = self.places.keys().find(|gateway| other.places.contains_key(*gateway))?;
        let theirs = other.own_backends();
        let backend = self.own_backends().into_iter().find(|backend| theirs.contains(backend))?;
        Some((gateway, backend))
    }

    /// What to know of a service that names no gateway though the deck has several.
    pub fn none_named(deck: &DeckSpec, state: &ServiceState, spec: &ServiceSpec) -> Option<String> {
        let service = &state.service;
        let names: Vec<&str> = deck.gateways.keys().map(ServiceName::as_str).collect();
        let first = names.first().filter(|_| names.len() > 1)?;
        if Self::of(deck, service, spec).is_some() {
            return None;
        }
        let several = format!(
            "deck.toml has {} ({}), and services/{service}.toml names none",
            names.len(),
            names.join(", ")
        );
        Some(match Self::only_one(deck, state, spec) {
            Some(kept) => format!(
                "it stays at the gateway {kept}, through which it is served: {several} → write gateway = \"{kept}\""
            ),
            None => format!(
                "no gateway switches its traffic: {several} → write gateway = \"{first}\", or several as gateways = \
                 [\"{}\"]",
                names.join("\", \"")
            ),
        })
    }

    /// What to know of gateways whose HAProxy forgets the service when it reloads or restarts.
    pub fn forgetful(&self) -> Option<String> {
        let told = self.forgetting(|_| true)?;
        Some(format!("{told} → let gpudeck write the section: config = \"/etc/haproxy/gpudeck.d\""))
    }

    /// # Errors
    /// One of them forgets the service when its HAProxy reloads or restarts, and nobody has accepted that: the requests
    /// of that time would fail.
    pub fn last(&self) -> Result<(), ApiError> {
        let Some(told) = self.forgetting(|gateway| !gateway.runtime_only) else { return Ok(()) };
        Err(ApiError {
            kind: ErrorKind::Invalid,
            message: told,
            hint: Some(
                "let gpudeck write the section: config = \"/etc/haproxy/gpudeck.d\" there, a directory that HAProxy \
                 is started with (`-f` besides its own file); or accept it: runtime_only = true"
                    .to_owned(),
            ),
        })
    }

    fn forgetting(&self, counts: impl Fn(&GatewaySpec) -> bool) -> Option<String> {
        let forgets = |(_, gateway): &(&ServiceName, &GatewaySpec)| {
            gateway.config.is_none() && counts(gateway)
        };
        let names: Vec<&str> =
            self.places.iter().filter(forgets).map(|(name, _)| name.as_str()).collect();
        let (noun, verb) = if names.len() == 1 { ("gateway", "has") } else { ("gateways", "have") };
        (!names.is_empty()).then(|| {
            format!(
                "the {noun} {} {verb} no `config` in deck.toml: when HAProxy reloads or restarts, the backend {} is \
                 empty until gpudeck tells it again (2 s, or as long as no controller runs)",
                names.join(", "),
                self.backend
            )
        })
    }

    /// The hosts they run on.
    pub fn hosts(&self) -> BTreeSet<HostName> {
        self.places.values().map(|g| g.host.clone()).collect()
    }

    /// Where clients reach the service, for showing: the first gateway's address.
    pub fn url(&self) -> Option<String> {
        self.places.values().find_map(|g| g.url_of(&self.service)).map(str::to_owned)
    }

    /// Before anything is begun: whether each gateway has the backend that is to be filled. What could not be asked now,
    /// backends in which the weights of a canary do not count (`weighed`), and others' servers beside ours, are told.
    ///
    /// # Errors
    /// One of them has no such backend, and nobody but a person writes it there.
    pub async fn look(&self, means: &Means, weighed: bool) -> Result<Vec<String>, ApiError> {
        let of_rule = self.canary.is_some().then(|| canary_backend(&self.backend));
        let backends = std::iter::once((self.backend.clone(), weighed));
        let backends: Vec<_> = backends.chain(of_rule.map(|backend| (backend, false))).collect();
        let looks = self.places.iter().flat_map(|(name, gateway)| {
            backends.iter().map(move |(backend, weighed)| {
                let (name, gateway) = (name.clone(), gateway.clone());
                let (backend, weighed) = (backend.clone(), *weighed);
                async move {
                    let seen = backend_at(means, &gateway, &backend).await;
                    self.judged(&name, &gateway, &backend, seen, weighed)
                }
            })
        });
        let all = futures::future::join_all(looks).await;
        let all: Vec<Vec<String>> = all.into_iter().collect::<Result<_, ApiError>>()?;
        let mut told: Vec<String> = all.into_iter().flatten().collect();
        told.dedup();
        Ok(told)
    }

    fn judged(
        &self,
        name: &ServiceName,
        gateway: &GatewaySpec,
        backend: &str,
        seen: Result<BackendSeen, GatewayError>,
        weighed: bool,
    ) -> Result<Vec<String>, ApiError> {
        match seen {
            Ok(BackendSeen { balance, foreign }) => {
                let mut told = Vec::new();
                if let Some(balance) = balance
                    && weighed
                    && !haproxy::follows_weights(&balance)
                {
                    told.push(format!(
                        "backend {backend} of the gateway {name} balances by `{balance}`, which does \
                         not follow weights: the canary's share of the requests will not be its \
                         weight; write `balance roundrobin` in that section of haproxy.cfg"
                    ));
                }
                if !foreign.is_empty() {
                    told.push(format!(
                        "backend {backend} of the gateway {name} has servers that are not gpudeck's \
                         ({}): a part of the requests stays with them, weights share out the rest, \
                         and no analysis sees theirs; take them out when {} carries the load",
                        foreign.join(", "),
                        self.service
                    ));
                }
                Ok(told)
            }
            // With `config` it is written there when it is filled.
            Err(error) if lacks_backend(&error) && gateway.config.is_some() => Ok(Vec::new()),
            Err(error) if lacks_backend(&error) => Err(ApiError {
                kind: ErrorKind::Conflict,
                message: format!(
                    "the gateway {name} (HAProxy on {}) has no backend {backend}: no request \
                     would reach {}",
                    gateway.host, self.service
                ),
                hint: match &self.canary {
                    Some(rule) if *backend != *self.backend => Some(format!(
                        "add `backend {backend}` to haproxy.cfg, lead the requests there that the spec's {} \
                         asks for, and reload HAProxy; or give the gateway a `config`, and it is written",
                        rule_key(rule)
                    )),
                    _ => error.hint(),
                },
            }),
            Err(error) => Ok(vec![format!(
                "whether the gateway {name} has its backend for {} is not known: {error}",
                self.service
            )]),
        }
    }

    /// The backends and their servers: the service's, and the one of its canary.
    fn backends(&self, servers: &[TrafficServer]) -> Vec<(String, Vec<TrafficServer>)> {
        let mut out = vec![(self.backend.clone(), servers.to_vec())];
        if self.canary.is_some() {
            out.push((canary_backend(&self.backend), canary_servers(servers)));
        }
        out
    }

    /// The text of our part of this gateway's configuration.
    pub async fn section(
        &self,
        name: &ServiceName,
        gateway: &GatewaySpec,
        servers: &[TrafficServer],
    ) -> Result<String, GatewayError> {
        let section = Section {
            deck: &self.deck,
            service: &self.service,
            backend: &self.backend,
            listen: gateway.listen.get(&self.service).map(String::as_str),
            canary: self.canary.as_ref(),
            stream_timeout: self.stream_timeout,
            also: self.also.get(name).map_or(&[], Vec::as_slice),
        };
        let main = resolved(&gateway.host, servers).await?;
        let canary = resolved(&gateway.host, &canary_servers(servers)).await?;
        Ok(section.text(&main, &canary))
    }

    /// Our part of each gateway's configuration, for people.
    pub async fn sections(&self, servers: &[TrafficServer]) -> String {
        let mut out = String::new();
        for (name, gateway) in &self.places {
            let place = match &gateway.config {
                Some(directory) => format!("{directory}/{}.cfg on {}", self.service, gateway.host),
                None => format!(
                    "the configuration of HAProxy on {} (by hand: the gateway has no `config`)",
                    gateway.host
                ),
            };
            let text = match self.section(name, gateway, servers).await {
                Ok(text) => text,
                Err(error) => format!("# {error}\n"),
            };
            out.push_str(&format!("# gateway {name}: {place}\n{text}"));
        }
        for unknown in &self.unknown {
            out.push_str(&format!("# deck.toml has no gateway {unknown}\n"));
        }
        out
    }

    /// What each backend of each gateway has counted; none unless all of them can be read, because
    /// a part that is missing would look like requests that never were.
    pub async fn counters(&self, means: &Means) -> Option<Totals> {
        let mut out = Totals::new();
        for (name, gateway) in &self.places {
            let link = link(means, &gateway.host).ok()?;
            let epoch = means.claims.cell(&gateway.host).await;
            for (backend, _) in self.backends(&[]) {
                let (link, socket) = (link.clone(), gateway.socket.clone());
                let place = format!("{name} {backend}");
                let haproxy = HaproxyGateway::new(link, socket, backend, means.deck, epoch.clone());
                match haproxy.counters().await {
                    Ok(counters) => drop(out.insert(place, counters)),
                    Err(error) if self.leaving && lacks_backend(&error) => {}
                    Err(_) => return None,
                }
            }
        }
        Some(out)
    }
}

/// The gateways of a deck, for doors.
pub fn views(deck: &DeckSpec) -> Vec<GatewayView> {
    let view = |(name, gateway): (&ServiceName, &GatewaySpec)| GatewayView {
        name: name.clone(),
        host: gateway.host.clone(),
        config: gateway.config.clone(),
    };
    deck.gateways.iter().map(view).collect()
}

async fn resolved(
    host: &HostName,
    servers: &[TrafficServer],
) -> Result<Vec<SectionServer>, GatewayError> {
    let mut out = Vec::new();
    for server in servers.iter().filter(|s| s.mode == TrafficMode::Ready) {
        let address = haproxy::resolve(host, server).await?;
        let (replica, port, weight) = (server.replica, server.port, server.weight);
        out.push(SectionServer { replica, address, port, weight });
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests;

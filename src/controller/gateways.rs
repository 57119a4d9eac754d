//! The gateways of one service: all of them get the same table, and what they count is counted
//! together.

mod beside;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::actions::{Means, link, right_to_act};
use super::core::{Core, Input};
use super::traffic::Totals;
use crate::api::{ApiError, ErrorKind, GatewayView, Severity};
use crate::base::{
    Hint, HostName, ReleaseNumber, ServiceName, TrafficMode, TrafficServer, text, time,
};
use crate::fleet::LinkError;
use crate::gateway::section::{
    OtherBackend, Section, SectionServer, canary_backend, canary_servers,
};
use crate::gateway::{BackendSeen, Gateway, GatewayError, HaproxyGateway, haproxy};
use crate::rollout::{Release, ServiceState};
use crate::spec::{CanaryRule, DeckSpec, GatewaySpec, ServiceSpec};
use crate::wire::{GatewayConfig, RELOAD_FAILED, RELOAD_NEEDED, Reply, Request, Verb};

/// The file of a gateway is looked at again after so long, in case somebody changed it.
const REWRITE: Duration = Duration::from_secs(30);

/// HAProxy is asked to reload at most so often.
const RELOAD: Duration = Duration::from_secs(20);

/// The table is told at run time when the file is written, or after so long.
const FILE_FIRST: Duration = Duration::from_secs(2);

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

/// Where a service's table goes. While releases with different gateways live, all of those have the table, so
/// that nobody's clients are left without; those that only earlier releases had are emptied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// They have the table; the newest release's first.
    pub serving: Vec<Gateways>,
    /// What they have of the service is drained and removed.
    pub leaving: Vec<Gateways>,
}

impl Routes {
    /// Those of a service as it is now.
    pub fn of(deck: &DeckSpec, state: &ServiceState) -> Self {
        let rollout = state.active_rollout();
        let lives = |number: &ReleaseNumber| {
            state.stable == Some(*number)
                || rollout.is_some_and(|r| r.to == *number || r.from == Some(*number))
                || state.replicas.keys().any(|key| key.release == *number)
        };
        let of = |live: bool| {
            let releases = state.releases.iter().rev().filter(move |(n, _)| lives(n) == live);
            let newest = state.releases.keys().rev().find(|n| lives(n));
            releases.filter_map(move |(number, release)| {
                let mut gateways = Gateways::of_release(deck, release)?;
                // What was taken out of the deck is gone for good for whoever is to leave it.
                if newest.is_some_and(|newest| newest != number) {
                    gateways.unknown.clear();
                }
                (!gateways.places.is_empty() || !gateways.unknown.is_empty()).then_some(gateways)
            })
        };
        let mut routes = Self::default();
        for gateways in of(true) {
            routes.serving.extend(gateways.beside(&routes.serving));
        }
        // Nothing that is served: the last release's table is the empty one.
        if routes.serving.is_empty() {
            routes.serving.extend(of(false).next());
        }
        for gateways in of(false) {
            let rest = gateways.beside(&routes.serving);
            routes.leaving.extend(rest.and_then(|rest| rest.beside(&routes.leaving)));
        }
        let by_rule = of(true).chain(of(false)).filter(|g| g.canary.is_some());
        let by_rule: BTreeSet<String> = by_rule.map(|g| g.backend).collect();
        for gateways in routes.serving.iter_mut().chain(&mut routes.leaving) {
            gateways.left_canary = gateways.canary.is_none() && by_rule.contains(&gateways.backend);
        }
        routes.leaving = beside::left_by_files(routes.leaving, &routes.serving);
        for gateways in &mut routes.leaving {
            gateways.leaving = true;
        }
        beside::hold_together(&mut routes.serving);
        routes
    }

    /// What `others` fill by now is theirs: it is not emptied any more.
    pub fn leave_to(&mut self, others: &[Gateways]) {
        for left in &mut self.leaving {
            let backends = left.own_backends();
            let is_theirs = |name: &ServiceName| {
                let mut there = others.iter().filter(|other| other.places.contains_key(name));
                there.any(|other| other.own_backends().iter().any(|b| backends.contains(b)))
            };
            left.places.retain(|name, _| !is_theirs(name));
        }
        self.leaving.retain(|left| !left.places.is_empty() || !left.unknown.is_empty());
    }

    /// Whether a gateway is in front of the service.
    pub fn is_empty(&self) -> bool {
        self.serving.is_empty()
    }

    /// What all of them count; none unless all can be read.
    pub async fn counters(&self, means: &Means) -> Option<Totals> {
        let mut all = Totals::new();
        for gateways in &self.serving {
            all.extend(gateways.counters(means).await?);
        }
        Some(all)
    }
}

/// Gateways that are not as they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotApplied {
    /// Which of them, and why, for people.
    pub why: String,
    /// Each of them says that it has no such backend: nothing is sent through it.
    pub lacks_backend: bool,
}

impl std::fmt::Display for NotApplied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl NotApplied {
    /// All of them as one; none: all is as it should be.
    pub fn together(all: Vec<Self>) -> Option<Self> {
        let lacks_backend = all.iter().all(|one| one.lacks_backend);
        let why: Vec<String> = all.into_iter().map(|one| one.why).collect();
        (!why.is_empty()).then(|| Self { why: why.join("; "), lacks_backend })
    }
}

/// What was written to each gateway's file last, and when it was reloaded; how the tables differed that were found.
#[derive(Default)]
pub struct Written {
    files: BTreeMap<ServiceName, Kept>,
    found: Vec<String>,
}

impl Written {
    /// How the gateways' tables differed at the last look from what they were told then, in words.
    pub fn take_found(&mut self) -> Vec<String> {
        std::mem::take(&mut self.found)
    }
}

struct Kept {
    text: String,
    at: Instant,
    reloaded: Option<Instant>,
    /// HAProxy has not read it yet: why, as it was told.
    unread: Option<String>,
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

    /// What a spec that names none goes through: the deck's only one, or the one that was it and that the service is
    /// still served through.
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
                served.gateway.clone().filter(|name| deck.gateways.contains_key(name))
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
                "it stays at the gateway {kept}, which was the only one: {several} → write gateway = \"{kept}\""
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
        let forgets = |(_, gateway): &(&ServiceName, &GatewaySpec)| gateway.config.is_none();
        let names: Vec<&str> =
            self.places.iter().filter(forgets).map(|(name, _)| name.as_str()).collect();
        let (noun, verb) = if names.len() == 1 { ("gateway", "has") } else { ("gateways", "have") };
        (!names.is_empty()).then(|| {
            format!(
                "the {noun} {} {verb} no `config` in deck.toml: when HAProxy reloads or restarts, the backend {} is \
                 empty until gpudeck tells it again (2 s, or as long as no controller runs) → let gpudeck write the \
                 section: config = \"/etc/haproxy/gpudeck.d\"",
                names.join(", "),
                self.backend
            )
        })
    }

    /// Takes everything of the service out; whether nothing is left there. What goes with its section serves on until it
    /// is gone: a process of `HAProxy` that is about to be replaced still leads clients there.
    pub async fn leave(
        &self,
        means: &Means,
        servers: &[TrafficServer],
        written: &mut Written,
    ) -> Result<bool, NotApplied> {
        let servers = if self.until_read { servers } else { &[] };
        self.apply(means, servers, written).await?;
        let counters = self.counters(means).await;
        Ok(counters.is_some_and(|all| all.values().all(BTreeMap::is_empty)))
    }

    /// The hosts they run on.
    pub fn hosts(&self) -> BTreeSet<HostName> {
        self.places.values().map(|g| g.host.clone()).collect()
    }

    /// Where clients reach the service, for showing: the first gateway's address.
    pub fn url(&self) -> Option<String> {
        self.places.values().find_map(|g| g.url_of(&self.service)).map(str::to_owned)
    }

    /// Makes every gateway's table exactly this. `Err`: which of them is not as it should be, and
    /// why; the others are.
    pub async fn apply(
        &self,
        means: &Means,
        servers: &[TrafficServer],
        written: &mut Written,
    ) -> Result<(), NotApplied> {
        let mut kept: BTreeMap<ServiceName, Option<Kept>> =
            self.places.keys().map(|name| (name.clone(), written.files.remove(name))).collect();
        let one = |(name, gateway): (&ServiceName, &GatewaySpec)| {
            let kept = kept.remove(name).flatten();
            let (name, gateway) = (name.clone(), gateway.clone());
            async move {
                let mut found = Vec::new();
                let (kept, result) =
                    self.apply_to(means, &name, &gateway, servers, kept, &mut found).await;
                (name, kept, found, result)
            }
        };
        let all: Vec<_> = self.places.iter().map(one).collect();
        let mut wrong = Vec::new();
        for unknown in &self.unknown {
            let why = format!(
                "deck.toml has no gateway `{unknown}`: add [gateways.{unknown}] or change the spec"
            );
            wrong.push(NotApplied { why, lacks_backend: false });
        }
        let several = self.places.len() > 1;
        written.found.clear();
        for (name, kept, found, result) in futures::future::join_all(all).await {
            written.found.extend(found.into_iter().map(|what| format!("at {name} {what}")));
            if let Err(NotApplied { why, lacks_backend }) = result {
                let why = if several { format!("{name}: {why}") } else { why };
                wrong.push(NotApplied { why, lacks_backend });
            }
            if let Some(kept) = kept {
                written.files.insert(name, kept);
            }
        }
        NotApplied::together(wrong).map_or(Ok(()), Err)
    }

    async fn apply_to(
        &self,
        means: &Means,
        name: &ServiceName,
        gateway: &GatewaySpec,
        servers: &[TrafficServer],
        mut kept: Option<Kept>,
        found: &mut Vec<String>,
    ) -> (Option<Kept>, Result<(), NotApplied>) {
        // The file first: if a reload comes in between, it holds nothing that is not ready.
        // A check that hangs does not keep what is not ready any more in the traffic, though.
        let (filed, mut applied) = {
            let mut filing =
                std::pin::pin!(self.write(means, name, gateway, servers, &mut kept, false));
            match tokio::time::timeout(FILE_FIRST, &mut filing).await {
                Ok(filed) => (filed, self.tell(means, gateway, servers, found).await),
                Err(_) => {
                    let applied = self.tell(means, gateway, servers, found).await;
                    (filing.await, applied)
                }
            }
        };
        if let Err(error) = &applied
            && filed.is_ok()
            && !gateway.reload.is_empty()
            && lacks_backend(error)
        {
            let again = self.write(means, name, gateway, servers, &mut kept, true).await;
            if again.is_ok() {
                applied = self.tell(means, gateway, servers, found).await;
            }
        }
        // What is told at run time counts now; a file that could not be written is still an error.
        let lacks = applied.as_ref().is_err_and(lacks_backend);
        let result = applied.and(filed).map_err(|error| {
            let hint = match &gateway.config {
                Some(directory) if lacks => Some(format!(
                    "its section is written: start HAProxy with `-f {directory}` besides its own \
                     configuration, and reload it"
                )),
                _ => error.hint(),
            };
            let why = match hint {
                Some(hint) => format!("{error} ({hint})"),
                None => error.to_string(),
            };
            NotApplied { why, lacks_backend: lacks }
        });
        (kept, result)
    }

    async fn tell(
        &self,
        means: &Means,
        gateway: &GatewaySpec,
        servers: &[TrafficServer],
        found: &mut Vec<String>,
    ) -> Result<(), GatewayError> {
        let link = link(means, &gateway.host)?;
        let epoch = right_to_act(means, &self.service, link.as_ref()).await?;
        let mut told = Ok(());
        for (backend, servers) in self.backends(servers) {
            let (link, socket) = (link.clone(), gateway.socket.clone());
            let haproxy = HaproxyGateway::new(link, socket, backend, means.deck, epoch.clone());
            // What goes wrong with one does not keep the others as they were.
            let (differed, put) = haproxy.put(&servers).await;
            found.extend(differed);
            match put {
                Err(error) if self.leaving && lacks_backend(&error) => {}
                put => told = told.and(put),
            }
        }
        if self.left_canary {
            let (socket, backend) = (gateway.socket.clone(), canary_backend(&self.backend));
            let haproxy = HaproxyGateway::new(link, socket, backend, means.deck, epoch);
            match haproxy.apply(&[]).await {
                // Where its section was ours it is gone with the rule.
                Err(error) if lacks_backend(&error) => {}
                emptied => told = told.and(emptied),
            }
        }
        told
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

    async fn write(
        &self,
        means: &Means,
        name: &ServiceName,
        gateway: &GatewaySpec,
        servers: &[TrafficServer],
        kept: &mut Option<Kept>,
        reload_now: bool,
    ) -> Result<(), GatewayError> {
        let Some(directory) = &gateway.config else { return Ok(()) };
        let text = self.section(name, gateway, servers).await?;
        let recently = |at: Option<Instant>, time| at.is_some_and(|at| at.elapsed() < time);
        let fresh = kept.as_ref().filter(|k| k.text == text).map(|k| k.at);
        let reloaded = kept.as_ref().and_then(|k| k.reloaded);
        let done = if reload_now { recently(reloaded, RELOAD) } else { recently(fresh, REWRITE) };
        if done {
            return Ok(());
        }
        let link = link(means, &gateway.host)?;
        let epoch = right_to_act(means, &self.service, link.as_ref()).await?.get();
        let config = GatewayConfig {
            directory: directory.clone(),
            name: format!("{}.cfg", self.service),
            text: text.clone(),
            check: gateway.check.clone(),
            reload: gateway.reload.clone(),
            reload_now,
        };
        let verb = Verb::GatewayConfig(Box::new(config));
        let refused = |error: LinkError| match error {
            LinkError::Refused { host, refusal } => GatewayError::Gateway {
                host,
                message: text::clean(&refusal.to_string(), 400),
                hint: Some(format!(
                    "the directory {directory} must be there and writable, HAProxy be started with \
                     `-f {directory}`, and `check` be right for it"
                )),
            },
            other => GatewayError::Link(other),
        };
        let act = Request::Act { deck: means.deck, epoch, verb };
        let said = match link.request(act).await.map_err(refused)? {
            Reply::Texts(texts) => texts.into_iter().next().unwrap_or_default(),
            _ => String::new(),
        };
        let now = Instant::now();
        if said != "unchanged" {
            tracing::info!(service = %self.service, host = %gateway.host, "configuration: {said}");
        }
        let reloaded = if said == "reloaded" { Some(now) } else { reloaded };
        let unread = not_read(gateway, &self.service, &said);
        if unread != kept.as_ref().and_then(|k| k.unread.clone()) {
            let (service, host, unread) =
                (self.service.clone(), gateway.host.clone(), unread.clone());
            let tell = move |core: &mut Core| core.gateway_file(service, host, unread);
            let _ = means.inputs.send(Input::Ask(Box::new(tell))).await;
        }
        *kept = Some(Kept { text, at: now, reloaded, unread });
        Ok(())
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

/// Why HAProxy has not read what was written, and what to do; from the agent's answer.
fn not_read(gateway: &GatewaySpec, service: &ServiceName, said: &str) -> Option<String> {
    let host = &gateway.host;
    if let Some(how) = said.strip_prefix(RELOAD_FAILED) {
        let how = text::clean(how, 300);
        return Some(format!(
            "HAProxy on {host} was not reloaded, and goes on with its configuration before: {how}; tried again twice a minute"
        ));
    }
    (said == RELOAD_NEEDED).then(|| {
        format!(
            "{service}.cfg has changed: reload HAProxy on {host} by hand, or name the command in deck.toml: reload = [\"systemctl\", \"reload\", \"haproxy\"]"
        )
    })
}

impl Core {
    /// What was heard of the configuration file of a service at one of its gateways.
    fn gateway_file(&mut self, service: ServiceName, host: HostName, unread: Option<String>) {
        if let Some(words) = &unread {
            self.say(Severity::Warning, Some(&service), words);
        }
        let kept = self.gateway_files.entry(service.clone()).or_default();
        match unread {
            Some(words) => kept.insert(host, words),
            None => kept.remove(&host),
        };
        self.publish_service(&service);
    }
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

//! What comes from the hosts: link states, samples, reports of ranks, the deck's files.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::actions::{self, Means, reading_runtime};
use super::core::{Core, DeckFiles, Input, Listed, now};
use super::engine_at::EngineAt;
use super::gateways::{Gateways, Routes};
use super::traffic::ENGINES;
use crate::api::hub::Change;
use crate::api::{
    ApiError, ClockView, DeckConditionKind, ErrorKind, EventLine, HostLinkState, HostView,
    Question, QuestionKind, Severity,
};
use crate::base::last_words;
use crate::base::text::clean;
use crate::base::{
    DownCause, HostName, RankId, ReleaseNumber, ReplicaId, ReplicaKey, ServiceName, Timestamp,
    TrafficServer,
};
use crate::engine::{self, EngineMetrics, metrics};
use crate::fleet::{FleetEvent, LinkState};
use crate::gateway::ServerCounters;
use crate::rollout::{Action, EventKind, Phase, ServiceState, step};
use crate::spec::{EngineSpec, RuntimeSpec};
use crate::wire::{RankReport, RankStatus, Reply, Request};

/// Most unreadable files that are named.
const MOST_NAMED: usize = 2;

/// What is said of files that cannot be read: each, or some and how many there are.
fn mistakes_in(unreadable: &[String]) -> Vec<String> {
    let mut said: Vec<String> = unreadable.iter().take(MOST_NAMED).cloned().collect();
    match unreadable.len().saturating_sub(MOST_NAMED) {
        0 => {}
        more => said.push(format!("and {more} more files in services/")),
    }
    said
}

impl Core {
    pub(super) fn fleet_event(&mut self, event: FleetEvent) {
        match event {
            FleetEvent::Link { host, state, way } => self.link_changed(host, state, way),
            FleetEvent::Facts { host, facts } => {
                self.change_host(&host, |view| view.facts = Some(*facts));
            }
            FleetEvent::Sample { host, sample } => {
                let sampled = now();
                let before = self.hub.sampled(host.clone(), sampled, Arc::clone(&sample));
                let last = before.as_ref().and_then(|sample| sample.as_deref());
                for (severity, text) in super::health::lines(last, &sample) {
                    let host = Some(host.clone());
                    self.tell(EventLine { at: now(), severity, service: None, host, text });
                }
                if before.is_none() {
                    self.change_host(&host, |view| {
                        view.sample = Some(sample);
                        view.sampled = Some(sampled);
                    });
                }
            }
            FleetEvent::Clock { host, offset_ms, round_trip_us } => {
                let before = self.hub.with(|s| s.hosts.get(&host).and_then(|view| view.clock));
                let told = super::health::clock_line(before.map(|c| c.offset_ms), offset_ms);
                if let Some((severity, text)) = told {
                    let host = Some(host.clone());
                    self.tell(EventLine { at: now(), severity, service: None, host, text });
                }
                self.change_host(&host, |view| {
                    view.clock = Some(ClockView { offset_ms, round_trip_us });
                });
            }
            FleetEvent::Ranks { host, ranks } => {
                // A pushed report may be older than a start that is under way, so it only adds
                // knowledge; absence is concluded from answers to our own question.
                for report in ranks {
                    self.rank_report(&host, &report);
                }
            }
            FleetEvent::Question { id, host, kind, text } => {
                let kind = match kind {
                    crate::fleet::QuestionKind::HostKey => QuestionKind::HostKey,
                    crate::fleet::QuestionKind::Secret => QuestionKind::Secret,
                };
                self.tell(EventLine {
                    at: now(),
                    severity: Severity::Warning,
                    service: None,
                    host: Some(host.clone()),
                    text: crate::base::text::clean(&text, 300),
                });
                if kind == QuestionKind::Secret {
                    self.login_lost(&host, &format!("it waits for an answer: {text}"));
                }
                self.hub.publish(Change::Question(Question {
                    id,
                    host: Some(host),
                    kind,
                    text,
                    asked: now(),
                }));
            }
            FleetEvent::Waits { host, question } => {
                self.login_lost(&host, &format!("it waits for an answer: {question}"));
            }
            FleetEvent::QuestionGone { id } => self.hub.publish(Change::QuestionGone(id)),
            FleetEvent::Warning { host, text } => self.tell(EventLine {
                at: now(),
                severity: Severity::Warning,
                service: None,
                host: Some(host),
                text: crate::base::text::clean(&text, 300),
            }),
        }
    }

    fn link_changed(&mut self, host: HostName, state: LinkState, way: Vec<String>) {
        let before = self.hub.with(|s| s.hosts.get(&host).map(|h| h.link.clone()));
        let line = |severity, text: String| EventLine {
            at: now(),
            severity,
            service: None,
            host: Some(host.clone()),
            text: crate::base::text::clean(&text, 300),
        };
        let has_failed = matches!(state, LinkState::Down { .. });
        let link = match state {
            LinkState::Connecting { phase } => match before {
                // What is known of a host that is down stays known while it is tried again.
                Some(HostLinkState::Down { kind, cause, hint, since, tried, .. }) => {
                    let trying = Some(phase);
                    HostLinkState::Down { kind, cause, hint, since, tried, retry_at: None, trying }
                }
                _ => HostLinkState::Connecting { phase },
            },
            LinkState::Asking { question } => HostLinkState::Asking { question },
            LinkState::Up => {
                if before != Some(HostLinkState::Up) {
                    self.tell(line(Severity::Info, "is reached".to_owned()));
                }
                self.look_at_ranks(&host);
                HostLinkState::Up
            }
            LinkState::Limited { why, hint } => {
                if !matches!(before, Some(HostLinkState::Limited { .. })) {
                    let hint = hint.as_deref().map(|h| format!(" ({h})")).unwrap_or_default();
                    let text = format!("can only be looked at, without the agent: {why}{hint}");
                    self.tell(line(Severity::Warning, text));
                }
                HostLinkState::Limited { why, hint }
            }
            LinkState::Down { kind, cause, hint, retry_in } => {
                let since = match &before {
                    Some(HostLinkState::Down { since, .. }) => *since,
                    _ => now(),
                };
                let known =
                    matches!(&before, Some(HostLinkState::Down { cause: c, .. }) if *c == cause);
                if !known {
                    let hint = hint.as_deref().map(|h| format!(" ({h})")).unwrap_or_default();
                    self.tell(line(Severity::Warning, format!("is not reached: {cause}{hint}")));
                }
                let retry_at = retry_in.map(|d| now().plus(d));
                let (tried, trying) = (now(), None);
                HostLinkState::Down { kind, cause, hint, since, tried, retry_at, trying }
            }
        };
        self.change_host(&host, |view| {
            view.way = way;
            view.link = link.clone();
        });
        match link {
            HostLinkState::Up | HostLinkState::Limited { .. } => self.login_back(&host),
            HostLinkState::Down { kind: DownCause::LoginLost, cause, .. } if has_failed => {
                self.login_lost(&host, &cause);
            }
            _ => {}
        }
    }

    pub(super) fn change_host(&self, host: &HostName, change: impl FnOnce(&mut HostView)) {
        let Some(spec) = self.deck.hosts.get(host) else { return };
        let mut view = self.hub.with(|s| s.hosts.get(host).cloned()).unwrap_or_else(|| HostView {
            name: host.clone(),
            link: HostLinkState::Connecting { phase: "connecting".to_owned() },
            way: Vec::new(),
            facts: None,
            sample: None,
            sampled: None,
            clock: None,
            ranks: self.hub.with(|s| super::service_view::ranks_on(s.services.values(), host)),
            labels: spec.labels.clone(),
            maintenance: crate::api::Maintenance::default(),
            claim: None,
            claim_known: false,
        });
        change(&mut view);
        view.maintenance = self.maintenance_of(host);
        self.hub.publish(Change::Host(Box::new(view)));
    }

    /// Asks a host for its ranks and concludes what is gone.
    pub(super) fn look_at_ranks(&self, host: &HostName) {
        let means = Arc::clone(&self.means);
        let host = host.clone();
        let deck = self.deck.id;
        tokio::spawn(async move {
            let Ok(link) = actions::link(&means, &host) else { return };
            // Whose the host is comes first: what runs there may be another's.
            if means.claims.survey_first(link.as_ref()).await {
                means.ask(Core::show_company).await;
            }
            // What runs is judged by what is known, which may be less than the host does.
            if means.claims.holds(&host) && means.keeps_newer(link.as_ref()).await.is_err() {
                return;
            }
            let asked = now();
            if let Ok(Reply::Ranks(reports)) =
                link.request(Request::Ranks { deck: Some(deck) }).await
            {
                let of = Listed::Processes;
                let _ = means.inputs.send(Input::Ranks { host, of, asked, reports }).await;
            }
        });
    }

    /// A complete list from a runtime.
    pub(super) fn rank_reports(
        &mut self,
        host: &HostName,
        of: &Listed,
        asked: Timestamp,
        reports: &[RankReport],
    ) {
        for report in reports {
            self.rank_report(host, report);
        }
        self.hear_of_strays(host, reports);
        let gone: Vec<RankId> = self
            .state
            .services
            .iter()
            .flat_map(|(name, state)| {
                state.replicas.iter().filter_map(move |(key, replica)| {
                    let release = state.releases.get(&key.release)?;
                    let lives = matches!(
                        replica.phase,
                        Phase::Loading | Phase::Ready | Phase::Draining { .. }
                    );
                    let would_be_there = of.covers(name, &release.spec.runtime);
                    (would_be_there && lives && replica.since < asked)
                        .then_some((state, release, key))
                })
            })
            .flat_map(|(state, release, key)| {
                let ids = state.rank_ids(*key);
                let plans =
                    release.replica(key.replica).map(|p| p.ranks.as_slice()).unwrap_or_default();
                ids.into_iter().zip(plans)
            })
            .filter(|(id, plan)| plan.host == *host && !reports.iter().any(|r| r.rank == *id))
            .map(|(id, _)| id)
            .collect();
        for rank in gone {
            let how = format!("it is not on {host} any more");
            let service = rank.service.clone();
            self.note(&service, EventKind::RankEnded { rank, how });
        }
    }

    fn rank_report(&mut self, _host: &HostName, report: &RankReport) {
        if report.rank.deck != self.deck.id {
            return;
        }
        if self.is_old_news(report) {
            return;
        }
        let rank = report.rank.clone();
        let service = rank.service.clone();
        let kind = match &report.status {
            RankStatus::Running { .. } => EventKind::RankRunning { rank },
            RankStatus::Exited { code, signal, last_lines, .. } => {
                let how = match (code, signal) {
                    (_, Some(signal)) => format!("killed by signal {signal}"),
                    (Some(code), None) => format!("exit code {code}"),
                    (None, None) => "it ended".to_owned(),
                };
                let last = clean(last_words::why(last_lines), 240);
                let how = if last.is_empty() { how } else { format!("{how}: {last}") };
                EventKind::RankEnded { rank, how }
            }
            RankStatus::Lost => {
                EventKind::RankEnded { rank, how: "it is gone, and nobody saw how".to_owned() }
            }
        };
        self.note(&service, kind);
    }

    /// Agents tell all ranks of their host whenever one of them changes: what is known already, or is of an
    /// earlier start, need not be decided about.
    fn is_old_news(&self, report: &RankReport) -> bool {
        let rank = &report.rank;
        let Some(state) = self.state.services.get(&rank.service) else { return true };
        let Some(replica) = state.replica_of(rank.replica) else { return true };
        match report.status {
            RankStatus::Running { .. } => self.is_known_to_run(rank),
            RankStatus::Exited { .. } | RankStatus::Lost => replica.ended.contains(&rank.rank),
        }
    }

    /// Whoever starts a rank and its host's agent both tell that it runs: the second one says nothing new.
    pub(super) fn is_known_to_run(&self, rank: &RankId) -> bool {
        let state = self.state.services.get(&rank.service);
        let replica = state.and_then(|s| s.replica_of(rank.replica));
        replica.is_some_and(|r| r.running.contains(&rank.rank))
    }

    /// Takes over what was read of the deck's directory.
    pub(super) fn take_files(&mut self, files: DeckFiles) {
        let mut trouble = None;
        match &files.deck {
            Some(Ok(deck)) if *deck != self.deck && deck.id == self.deck.id => {
                self.deck = deck.clone();
                self.means.fleet.set_hosts(&self.deck.hosts);
                self.means.claims.keep_hosts(|host| deck.hosts.contains_key(host));
                self.say(Severity::Info, None, "deck.toml was read again");
                self.tell_traffic_again();
                let gone: Vec<HostName> = self.hub.with(|s| {
                    s.hosts.keys().filter(|h| !self.deck.hosts.contains_key(*h)).cloned().collect()
                });
                for host in gone {
                    self.hub.publish(Change::HostGone(host));
                }
                for name in self.deck.hosts.keys() {
                    self.change_host(name, |_| {});
                }
            }
            Some(Err(mistake)) => trouble = Some(mistake.clone()),
            _ => {}
        }
        let view = self.hub.with(|s| s.deck.clone());
        let name = self.deck.name.clone();
        let gateways = super::gateways::views(&self.deck);
        self.hub.publish(Change::Deck(crate::api::DeckView { name, gateways, ..view }));
        let mistakes: Vec<String> =
            trouble.into_iter().chain(mistakes_in(&files.unreadable)).collect();
        let mistake = (!mistakes.is_empty()).then(|| (mistakes.join("; "), None));
        self.set_condition(DeckConditionKind::DeckMistake, mistake);
        self.files = files;
        self.show_unnoted();
        self.note_what_came();
        let known = self.known_services();
        let gone: Vec<ServiceName> =
            self.hub.with(|s| s.services.keys().filter(|n| !known.contains(n)).cloned().collect());
        for service in gone {
            self.hub.publish(Change::ServiceGone(service));
        }
        for service in known {
            self.publish_service(&service);
        }
    }
}

/// Reads a service's counters at its gateway again and again.
pub struct Watched {
    /// Which service.
    pub service: ServiceName,
    /// Its gateways.
    pub routes: Routes,
    /// Where its engines' own metrics are, if no gateway sees its requests or an analysis is under
    /// way.
    pub metrics: Vec<EngineMetricsAt>,
    /// Whose analysis is under way.
    pub analysing: Option<ReleaseNumber>,
    /// Hosts with containers of it.
    pub docker: Vec<(HostName, RuntimeSpec)>,
}

/// Where one replica's engine tells its metrics.
pub struct EngineMetricsAt {
    replica: ReplicaId,
    host: HostName,
    at: EngineAt,
    engine: EngineSpec,
}

/// What is asked again and again, each in its own time: an engine on a host that has just died is waited for, and
/// the gateways' counters must not wait with it.
#[derive(Clone, Copy)]
enum Source {
    Gateways,
    Engines,
    Containers,
}

/// Asks gateways, engines and container engines once a second for what concerns us.
pub async fn watch(means: Arc<Means>) {
    futures::join!(
        again_and_again(&means, Source::Gateways),
        again_and_again(&means, Source::Engines),
        again_and_again(&means, Source::Containers),
    );
}

async fn again_and_again(means: &Means, source: Source) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let look = move |core: &mut Core| {
            if matches!(source, Source::Gateways) {
                core.pay_attention();
            }
            core.watched(source)
        };
        let Some(watched) = means.ask(look).await else { return };
        let rounds = watched.into_iter().map(|w| async move {
            match source {
                Source::Gateways => look_at_gateways(means, w).await,
                Source::Engines => look_at_engines(means, w).await,
                Source::Containers => look_at_containers(means, w).await,
            }
        });
        futures::future::join_all(rounds).await;
    }
}

/// Longest time for one look at a gateway or a container engine.
const LOOK: Duration = Duration::from_secs(5);

async fn look_at_gateways(means: &Means, watched: Watched) {
    if watched.routes.is_empty() {
        return;
    }
    let reading = watched.routes.counters(means);
    let read = tokio::time::timeout(LOOK, reading).await.ok().flatten();
    let _ = means.inputs.send(Input::Counters { service: watched.service, counters: read }).await;
}

async fn look_at_engines(means: &Means, watched: Watched) {
    if watched.metrics.is_empty() && watched.analysing.is_none() {
        return;
    }
    let service = watched.service;
    let readings = watched.metrics.iter().map(|at| async {
        match read_engine(means, at).await {
            Said::Metrics(read) => Some((at.replica, *read)),
            Said::None | Said::Nothing => None,
        }
    });
    let readings: BTreeMap<ReplicaId, EngineMetrics> =
        futures::future::join_all(readings).await.into_iter().flatten().collect();
    let counted = |(id, seen): (&ReplicaId, &EngineMetrics)| Some((*id, engine_counters(seen)?));
    let counters: BTreeMap<ReplicaId, ServerCounters> =
        readings.iter().filter_map(counted).collect();
    if watched.routes.is_empty() {
        let canary_is_mute =
            watched.analysing.is_some_and(|c| !readings.keys().any(|id| id.release == c));
        let counters =
            (!counters.is_empty()).then(|| BTreeMap::from([(ENGINES.to_owned(), counters)]));
        for counters in counters.map(Some).into_iter().chain(canary_is_mute.then_some(None)) {
            let _ = means.inputs.send(Input::Counters { service: service.clone(), counters }).await;
        }
    }
    if watched.analysing.is_some() {
        // Without readings, too: the GPUs are looked at then.
        let _ = means.inputs.send(Input::Scraped { service, readings }).await;
    }
}

async fn look_at_containers(means: &Means, watched: Watched) {
    for (host, spec) in watched.docker {
        let asked = now();
        let reading = async {
            let runtime = reading_runtime(means, &spec, &host).await.ok()?;
            runtime.list().await.ok()
        };
        if let Ok(Some(reports)) = tokio::time::timeout(LOOK, reading).await {
            let RuntimeSpec::Docker(docker) = spec else { continue };
            let of = Listed::Containers { service: watched.service.clone(), socket: docker.socket };
            let _ = means.inputs.send(Input::Ranks { host, of, asked, reports }).await;
        }
    }
}

/// What came of asking an engine for its metrics.
pub(super) enum Said {
    /// Those that it has.
    Metrics(Box<EngineMetrics>),
    /// It has none that are understood: they are not switched on, or it is another engine than the spec says.
    None,
    /// It did not answer.
    Nothing,
}

/// What an engine says of itself.
pub(super) async fn read_engine(means: &Means, at: &EngineMetricsAt) -> Said {
    let Some(names) = metrics::Names::of(&at.engine) else { return Said::None };
    let Ok(link) = actions::link(means, &at.host) else { return Said::Nothing };
    let request = at.at.get(metrics::PATH, 3_000);
    let Ok(Reply::Http(reply)) = link.request(request).await else { return Said::Nothing };
    said(reply.status, &reply.body, names)
}

fn said(status: u16, body: &str, names: &metrics::Names) -> Said {
    match status {
        200 => {
            let read = metrics::parse(body, names);
            if read.tells_load() { Said::Metrics(Box::new(read)) } else { Said::None }
        }
        // llama.cpp says 501.
        404 | 501 => Said::None,
        _ => Said::Nothing,
    }
}

/// What an engine says of its own requests: the second source, where there is no gateway. Requests
/// that never reached the engine are not in it.
fn engine_counters(metrics: &EngineMetrics) -> Option<ServerCounters> {
    // Counters of requests: whole numbers that were only written as decimals.
    let whole = |value: Option<f64>| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        value.map(|v| v.clamp(0.0, 1e15) as u64)
    };
    let errors = whole(metrics.requests_error).unwrap_or(0);
    let requests = whole(metrics.requests_ended)?;
    let mean_response_ms =
        metrics.end_to_end.as_ref().and_then(engine::Histogram::mean).map_or(0.0, |s| s * 1_000.0);
    let in_flight = whole(metrics.running).unwrap_or(0);
    Some(ServerCounters { in_flight, requests, errors, mean_response_ms })
}

impl Core {
    fn watched(&self, source: Source) -> Vec<Watched> {
        self.state
            .services
            .iter()
            .filter(|(_, state)| !state.replicas.is_empty())
            .filter_map(|(service, state)| {
                state.releases.values().next_back()?;
                let routes = Routes::of(&self.deck, state);
                let mut docker: Vec<(HostName, RuntimeSpec)> = Vec::new();
                let containers = matches!(source, Source::Containers);
                for key in state.replicas.keys().filter(|_| containers) {
                    let Some(release) = state.releases.get(&key.release) else { continue };
                    if let RuntimeSpec::Docker(_) = release.spec.runtime {
                        for rank in release.replica(key.replica).iter().flat_map(|p| &p.ranks) {
                            let entry = (rank.host.clone(), release.spec.runtime.clone());
                            if !docker.contains(&entry) {
                                docker.push(entry);
                            }
                        }
                    }
                }
                let analysing = state.analysing().map(|(rollout, ..)| rollout.to);
                let engines = matches!(source, Source::Engines);
                let mut metrics = if engines && (routes.is_empty() || analysing.is_some()) {
                    engine_metrics(state)
                } else {
                    Vec::new()
                };
                // Whoever waits for those has nothing of the others meanwhile.
                metrics.retain(|at| !self.is_silent(&at.host));
                docker.retain(|(host, _)| !self.is_silent(host));
                Some(Watched { service: service.clone(), routes, metrics, analysing, docker })
            })
            .collect()
    }
}

impl Core {
    /// Every table to the gateways as the deck has them now.
    fn tell_traffic_again(&mut self) {
        let tables: Vec<(ServiceName, Vec<Action>)> = self
            .state
            .services
            .iter()
            .map(|(name, state)| {
                let mut actions = step::outstanding(state);
                actions.retain(|a| matches!(a, Action::ApplyTraffic { .. }));
                (name.clone(), actions)
            })
            .collect();
        for (service, actions) in tables {
            self.begin(&service, actions);
        }
    }

    /// Our part of the configuration of a service's gateways, as it would be written now.
    pub(super) fn gateway_section(
        &self,
        service: &ServiceName,
    ) -> Result<(Gateways, Vec<TrafficServer>), ApiError> {
        let state = self.state.services.get(service).filter(|s| !s.releases.is_empty());
        let written = self.files.services.get(service).and_then(|s| s.as_ref().ok());
        let gateways = match (state, written) {
            (Some(state), _) => Routes::of(&self.deck, state).serving.into_iter().next(),
            (None, Some(spec)) => Gateways::of(&self.deck, service, spec),
            (None, None) => {
                return Err(super::planning::not_found(service, self.known_services()));
            }
        };
        let gateways = gateways.ok_or_else(|| ApiError {
            kind: ErrorKind::Conflict,
            message: format!("{service} has no gateway"),
            hint: Some("add one to deck.toml and name it in the spec: gateway = \"…\"".to_owned()),
        })?;
        Ok((gateways, state.map(|s| s.traffic.to_vec()).unwrap_or_default()))
    }

    /// Where the engine of a replica tells its metrics.
    pub(super) fn engine_at(
        &self,
        service: &ServiceName,
        replica: ReplicaId,
    ) -> Option<EngineMetricsAt> {
        let state = self.state.services.get(service)?;
        engine_at(state, state.key_of(replica)?)
    }
}

impl EngineMetricsAt {
    /// Whether the engine tells any that are understood.
    pub fn has_metrics(&self) -> bool {
        metrics::Names::of(&self.engine).is_some()
    }
}

fn engine_at(state: &ServiceState, key: ReplicaKey) -> Option<EngineMetricsAt> {
    let release = state.releases.get(&key.release)?;
    let first = release.replica(key.replica)?.ranks.first()?;
    Some(EngineMetricsAt {
        replica: state.replica_id(key.release, key.replica)?,
        host: first.host.clone(),
        at: EngineAt::of(&release.spec, first),
        engine: release.spec.engine.clone(),
    })
}

/// The replicas that are ready, with the place of their engines' metrics.
fn engine_metrics(state: &ServiceState) -> Vec<EngineMetricsAt> {
    state
        .replicas
        .iter()
        .filter(|(_, replica)| replica.phase == Phase::Ready)
        .filter_map(|(key, _)| engine_at(state, *key))
        .filter(EngineMetricsAt::has_metrics)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::metrics::SGLANG;

    /// A page without them is not one of an engine that has nothing to do.
    #[test]
    fn only_who_tells_its_requests_has_metrics() {
        let of = |status, body| said(status, body, &SGLANG);
        let busy = of(200, "sglang:num_running_reqs 3\n");
        assert!(matches!(busy, Said::Metrics(read) if read.running == Some(3.0)));
        assert!(matches!(of(200, "python_info 1\n"), Said::None));
        assert!(matches!(of(404, "not found"), Said::None));
        assert!(matches!(of(500, "sglang:num_running_reqs 3\n"), Said::Nothing));
    }

    #[test]
    fn files_that_are_not_read_are_named_or_counted() {
        let all = |n: usize| mistakes_in(&vec!["services/x.toml is not read".to_owned(); n]);
        assert_eq!(all(0), Vec::<String>::new());
        assert_eq!(all(2).len(), 2);
        assert_eq!(all(5).last().map(String::as_str), Some("and 3 more files in services/"));
    }
}

//! From a spec to a release: read it, inspect the model on the hosts, place it, write the command
//! lines, foresee the journey. Nothing is touched here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::actions::{self, Means};
use super::core::{Core, DeckFiles, now};
use super::gateways::Gateways;
use super::{borrowing, plan_steps, service_view, world};
use crate::api::view::{PlannedRank, PlannedReplica};
use crate::api::{ApiError, ErrorKind, Forecast, MemoryView, PlanTime, PlanView, ReleaseView};
use crate::base::{
    Bytes, DeviceId, Hint, HostName, ReleaseId, ReleaseNumber, Revision, ServiceName, text,
};
use crate::engine::{self, RankContext};
use crate::model::ModelFacts;
use crate::placement::{self, Demand, ShapeNeed};
use crate::revision::{DeckRepo, HistoryEntry, ReleaseCommit, RevisionError, diff_text};
use crate::rollout::{
    Borrowing, LentTo, RankPlan, Release, ReplicaPlan, RolloutKind, ServiceState, forecast,
};
use crate::spec::{
    DeviceKind, Requirement, RuntimeSpec, ServiceSpec, Strategy, parse_deck, parse_service,
};
use crate::weights::{self, LinkFiles};

/// A spec that was read, with what was found of its model.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The service.
    pub service: ServiceName,
    /// Its spec.
    pub spec: ServiceSpec,
    /// The spec's text, as it will be committed.
    pub text: String,
    /// The revision it comes from; none: the work tree.
    pub revision: Option<Revision>,
    /// What the model is.
    pub facts: Option<ModelFacts>,
    /// Hosts on which the model's files were seen.
    pub looked_at: Vec<HostName>,
    /// Hosts on which the model's files are not, with the reason.
    pub lacking: BTreeMap<HostName, String>,
    /// What the person should know.
    pub warnings: Vec<String>,
    /// The service that it may borrow from, as it is served.
    pub lender: Option<Box<Draft>>,
}

/// A draft that was placed, and its journey.
pub(super) struct Laid {
    release: Release,
    replicas: Vec<PlannedReplica>,
    reasons: Vec<String>,
    pub(super) forecast: Forecast,
    known: plan_steps::Known,
}

/// So many of a service's latest releases are kept at hand; older ones are read from Git when somebody asks.
pub const SHOWN_RELEASES: usize = 50;

/// A plan and the release that it is of.
pub struct Planned {
    /// The release; its revision, author and reason are set when it is begun.
    pub release: Release,
    /// For people.
    pub view: PlanView,
}

/// Reads the deck's directory; mistakes stand where the spec would.
pub fn read_files(repo: &DeckRepo) -> DeckFiles {
    let mut files = DeckFiles::default();
    match repo.read() {
        Ok(texts) => {
            let deck = parse_deck(&texts.deck, "deck.toml").map_err(|e| with_hint(&e));
            files.deck = Some(deck);
            for (name, content) in texts.services {
                let spec = parse_service(&content, &format!("services/{name}.toml"));
                files.services.insert(name, spec.map_err(|e| with_hint(&e)));
            }
        }
        Err(error) => files.deck = Some(Err(with_hint(&error))),
    }
    for service in files.services.keys() {
        let Ok(entries) = repo.history(service, SHOWN_RELEASES) else { continue };
        let memory = entries.iter().rev().flat_map(|e| {
            e.memory.iter().map(|seen| MemoryView { release: e.release, seen: seen.clone() })
        });
        let memory: Vec<MemoryView> = memory.collect();
        if !memory.is_empty() {
            files.memory.insert(service.clone(), memory);
        }
        files.history.insert(service.clone(), entries.into_iter().map(release_view).collect());
    }
    files
}

/// A release of Git as doors see it.
pub fn release_view(entry: HistoryEntry) -> ReleaseView {
    ReleaseView {
        number: entry.release,
        revision: entry.revision,
        created: entry.time,
        author: entry.author,
        reason: entry.reason,
        outcome: entry.outcome,
        progress: None,
    }
}

/// What tells whether the deck's files may have changed: sizes, times, and the present commit.
pub type Stamp = Vec<(std::path::PathBuf, u64, Option<std::time::SystemTime>, Option<Revision>)>;

/// The stamp of the deck as it is now.
pub fn stamp(repo: &DeckRepo) -> Stamp {
    let services = std::fs::read_dir(repo.root().join("services")).into_iter().flatten().flatten();
    let files = services.map(|e| e.path()).chain([repo.root().join("deck.toml")]);
    let head = repo.head().ok().flatten();
    let mut stamp: Stamp = files
        .map(|path| {
            let about = std::fs::metadata(&path).ok();
            let changed = about.as_ref().and_then(|m| m.modified().ok());
            (path, about.map_or(0, |m| m.len()), changed, head.clone())
        })
        .collect();
    stamp.sort();
    stamp
}

fn with_hint<E: std::fmt::Display + Hint>(error: &E) -> String {
    match error.hint() {
        Some(hint) => format!("{error} → {hint}"),
        None => error.to_string(),
    }
}

/// There is no such service; the nearest one is named.
pub fn not_found(service: &ServiceName, known: Vec<ServiceName>) -> ApiError {
    let hint = match text::nearest(service.as_str(), known.iter().map(ServiceName::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => format!("write services/{service}.toml first"),
        None => {
            let names: Vec<&str> = known.iter().map(ServiceName::as_str).collect();
            format!("there are: {}", names.join(", "))
        }
    };
    ApiError {
        kind: ErrorKind::NotFound,
        message: format!("there is no service {service}"),
        hint: Some(hint),
    }
}

fn invalid<E: std::fmt::Display + Hint>(error: &E) -> ApiError {
    ApiError { kind: ErrorKind::Invalid, message: error.to_string(), hint: error.hint() }
}

/// The spec in the work tree, or that of an earlier release.
pub fn read_spec(
    core: &Core,
    service: &ServiceName,
    of: Option<ReleaseNumber>,
) -> Result<(ServiceSpec, String, Option<Revision>), ApiError> {
    let Some(repo) = &core.repo else {
        return Err(not_found(service, core.known_services()));
    };
    let (content, revision, name) = match of {
        None => {
            let content = repo.read_service(service).map_err(|e| match e {
                RevisionError::NoFile { .. } => not_found(service, core.known_services()),
                e => invalid(&e),
            })?;
            (content, None, format!("services/{service}.toml"))
        }
        Some(number) => {
            let revision =
                repo.release(number).map_err(|e| invalid(&e))?.ok_or_else(|| ApiError {
                    kind: ErrorKind::NotFound,
                    message: format!("Git has no release {number}"),
                    hint: Some(format!("`gpudeck history {service}` lists them")),
                })?;
            let content = repo.spec_at(&revision, service).map_err(|e| invalid(&e))?;
            (content, Some(revision), format!("services/{service}.toml at {number}"))
        }
    };
    let spec = parse_service(&content, &name).map_err(|e| invalid(&e))?;
    Ok((spec, content, revision))
}

/// Inspects the model on every host it could run on.
pub async fn draft(
    means: &Arc<Means>,
    service: ServiceName,
    spec: ServiceSpec,
    text: String,
    revision: Option<Revision>,
    hosts: Vec<HostName>,
) -> Result<Draft, ApiError> {
    let mut draft = Draft {
        service,
        spec,
        text,
        revision,
        facts: None,
        looked_at: Vec::new(),
        lacking: BTreeMap::new(),
        warnings: Vec::new(),
        lender: None,
    };
    let engine = engine::of(&draft.spec.engine);
    if !draft.spec.model.starts_with('/') && !engine.needs_model_files() {
        return Ok(draft);
    }
    let path = draft.spec.model.clone();
    let looks = hosts.into_iter().map(|host| {
        let path = path.clone();
        let means = Arc::clone(means);
        async move {
            let Ok(link) = actions::link(&means, &host) else { return (host, None) };
            let source = LinkFiles::new(link);
            let limit = Duration::from_secs(20);
            let found = tokio::time::timeout(limit, weights::inspect(&source, &path)).await;
            (host, found.ok())
        }
    });
    let mut first_error = None;
    for (host, found) in futures::future::join_all(looks).await {
        match found {
            Some(Ok(facts)) => {
                let differs =
                    draft.facts.as_ref().is_some_and(|f| f.weight_bytes != facts.weight_bytes);
                if differs {
                    draft
                        .warnings
                        .push(format!("the model on {host} is not the same as on the other hosts"));
                }
                draft.facts.get_or_insert(facts);
                draft.looked_at.push(host);
            }
            Some(Err(error)) => {
                draft.lacking.insert(host.clone(), error.to_string());
                first_error.get_or_insert((host, error));
            }
            None => {
                draft.lacking.insert(host, "the model could not be inspected in time".to_owned());
            }
        }
    }
    match (&draft.facts, first_error) {
        (None, Some((host, error))) if engine.needs_model_files() => Err(ApiError {
            kind: ErrorKind::Invalid,
            message: format!("the model of {} cannot be served: on {host}: {error}", draft.service),
            hint: error.hint(),
        }),
        // An engine of the user's may read what we cannot: it is told, not refused.
        (None, Some((host, error))) => {
            draft.lacking.clear();
            draft.warnings.push(format!("the model could not be read on {host}: {error}"));
            Ok(draft)
        }
        _ => Ok(draft),
    }
}

/// Places a draft and foresees its journey.
pub fn plan(core: &Core, draft: &Draft, kind: RolloutKind) -> Result<Planned, ApiError> {
    let service = &draft.service;
    let spec = &draft.spec;
    let empty = ServiceState::new(service.clone());
    let state = core.state.services.get(service).unwrap_or(&empty);
    let served = state.stable.and_then(|n| state.releases.get(&n));
    let engine = engine::of(&spec.engine);
    engine.check(spec, draft.facts.as_ref()).map_err(|e| invalid(&e))?;
    names_are_of_the_deck(core, service, spec)?;

    let mut warnings = draft.warnings.clone();
    let nothing_to_do = is_served(state, spec);
    let placed = if beside(state, spec, kind) && !nothing_to_do {
        place_beside(core, draft)
    } else {
        place(core, draft)
    };
    // What is served needs no place: it has one, or a part of it is lent.
    let placed = match placed {
        Err(_) if nothing_to_do => {
            Ok(placement::Placement { replicas: Vec::new(), reasons: Vec::new() })
        }
        placed => placed,
    };
    let plain = placed.and_then(|placed| lay_out(core, draft, kind, placed, None));
    let borrows =
        if nothing_to_do { None } else { borrowing::better(core, draft, state, kind, &plain)? };
    let Laid { release, replicas, reasons, forecast, known } = match borrows {
        Some(laid) => laid,
        None => plain.map_err(|error| or_uncordon(state, error))?,
    };
    let (steps, total) = if nothing_to_do {
        (Vec::new(), PlanTime::default())
    } else {
        let steps = plan_steps::steps(core, state, &release, &forecast, &known);
        warnings.extend(known.warnings);
        steps
    };
    if forecast.outage {
        let remedy = forecast.remedy.as_deref().map(|r| format!(" → {r}")).unwrap_or_default();
        warnings.insert(0, format!("OUTAGE: no replica is ready in between{remedy}"));
    }
    warnings.extend(Gateways::none_named(&core.deck, service, spec));
    if !nothing_to_do {
        warnings.extend(core.edit_warnings(draft, release.number));
    }
    warnings.extend(core.deck_warnings(service, !nothing_to_do));
    let untold = crate::rollout::untold_limits(spec);
    if !untold.is_empty() {
        warnings.push(format!(
            "the engine's metrics do not tell {}: the analysis cannot pass by itself and waits for a person",
            untold.join(", ")
        ));
    }
    warnings.extend(forecast.blind_analyses());
    for (host, why) in &draft.lacking {
        warnings.push(format!("{host} was left out: {why}"));
    }
    // The text as it was written, comments included; as serialised only if Git has lost it.
    let committed = |r: &Release| core.repo.as_ref()?.spec_at(&r.revision, service).ok();
    let before = served
        .map(|r| committed(r).unwrap_or_else(|| toml::to_string(&r.spec).unwrap_or_default()));
    let before = before.unwrap_or_default();
    let view = PlanView {
        service: service.clone(),
        nothing_to_do,
        from: state.stable,
        to: release.number,
        diff: diff_text(&before, &draft.text, &format!("services/{service}.toml"))
            .unwrap_or_default(),
        replicas,
        reasons,
        borrows: borrowing::view(core, &release),
        model: draft
            .facts
            .as_ref()
            .map(|facts| {
                let mut lines = facts.summary();
                lines.extend(core.memory_lines(facts));
                lines
            })
            .unwrap_or_default(),
        forecast,
        steps,
        total,
        warnings,
    };
    Ok(Planned { release, view })
}

/// The very spec is what is served.
fn is_served(state: &ServiceState, spec: &ServiceSpec) -> bool {
    let served = state.stable.and_then(|n| state.releases.get(&n));
    // While another release is rolled out it is about to be replaced.
    served.is_some_and(|r| r.spec == *spec) && !state.stopping && state.active_rollout().is_none()
}

/// What a host in maintenance would have room for is a way, too.
fn or_uncordon(state: &ServiceState, error: ApiError) -> ApiError {
    let Some(loan) = state.loans.iter().find(|l| matches!(l.to, LentTo::Maintenance { .. })) else {
        return error;
    };
    let way = format!("{} is {}: {}", loan.replica, loan.to, loan.to.way_back());
    ApiError {
        hint: Some(error.hint.map_or_else(|| way.clone(), |h| format!("{h}; {way}"))),
        ..error
    }
}

/// A placement made a release, and its journey foreseen.
pub(super) fn lay_out(
    core: &Core,
    draft: &Draft,
    kind: RolloutKind,
    placed: placement::Placement,
    borrowing: Option<Borrowing>,
) -> Result<Laid, ApiError> {
    let (service, spec) = (&draft.service, &draft.spec);
    let empty = ServiceState::new(service.clone());
    let state = core.state.services.get(service).unwrap_or(&empty);
    let next = || {
        let in_git = core.repo.as_ref().and_then(|repo| repo.next_release().ok());
        service_view::next_release(&core.state, in_git)
    };
    let number = core.beginnings.number_of(service).unwrap_or_else(next);
    let mut ports = PortGiver::new(core);
    for lent in borrowing.iter().flat_map(|b| &b.replicas) {
        ports.occupy(lent.back.as_ref());
    }
    let mut replicas = Vec::new();
    let mut planned_replicas = Vec::new();
    for (index, replica) in placed.replicas.iter().enumerate() {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let plan = replica_plan(core, draft, number, index, replica, &mut ports)?;
        let argv = plan.ranks.first().map(|r| r.argv.as_slice()).unwrap_or_default();
        planned_replicas.push(planned_replica(core, index, replica, argv));
        replicas.push(plan);
    }
    let release = Release {
        id: ReleaseId(uuid::Uuid::now_v7()),
        number,
        deck: core.deck.id,
        service: service.clone(),
        revision: draft.revision.clone().unwrap_or(Revision(String::new())),
        spec: spec.clone(),
        replicas,
        borrowing: borrowing.map(Box::new),
        created: now(),
        author: String::new(),
        reason: None,
    };
    let known = plan_steps::known(core, state, &release);
    let forecast =
        if is_served(state, spec) {
            Forecast::default()
        } else {
            forecast::forecast_with(state, &release, kind, &known.timings).map_err(|e| {
                ApiError { kind: ErrorKind::Unplaceable, message: e.to_string(), hint: e.hint() }
            })?
        };
    let reasons = placed.reasons;
    Ok(Laid { release, replicas: planned_replicas, reasons, forecast, known })
}

/// Where and how a placed replica runs.
pub(super) fn replica_plan(
    core: &Core,
    draft: &Draft,
    release: ReleaseNumber,
    index: u32,
    replica: &placement::PlacedReplica,
    ports: &mut PortGiver<'_>,
) -> Result<ReplicaPlan, ApiError> {
    let spec = &draft.spec;
    let address = world::engine_address(&core.deck, &replica.host);
    let port = ports.next(&replica.host, &address)?;
    let command = engine::of(&spec.engine)
        .command(&RankContext {
            service: &draft.service,
            spec,
            facts: draft.facts.as_ref(),
            shape: replica.shape,
            address: "0.0.0.0",
            port,
            devices: &replica.devices,
            release,
            replica: index,
            rank: 0,
            cores: None,
            docker: matches!(spec.runtime, RuntimeSpec::Docker(_)),
        })
        .map_err(|e| invalid(&e))?;
    Ok(ReplicaPlan {
        ranks: vec![RankPlan {
            host: replica.host.clone(),
            devices: replica.devices.clone(),
            memory_per_device: replica.memory_per_device,
            address,
            port,
            argv: command.argv,
            env: command.env,
            files: command.files,
        }],
    })
}

/// The hosts and the gateways that a spec names must be in deck.toml: a slip of the pen is no wish to do
/// without them.
fn names_are_of_the_deck(
    core: &Core,
    service: &ServiceName,
    spec: &ServiceSpec,
) -> Result<(), ApiError> {
    let unknown = |what: &str, name: &str, known: Vec<&str>| ApiError {
        kind: ErrorKind::Invalid,
        message: format!(
            "services/{service}.toml names the {what} `{name}`, which is not in deck.toml"
        ),
        hint: Some(match text::nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => format!("add [{what}s.{name}] to deck.toml"),
            None => format!("add [{what}s.{name}] to deck.toml; there are: {}", known.join(", ")),
        }),
    };
    for host in &spec.placement.hosts {
        if !core.deck.hosts.contains_key(host) {
            let known = core.deck.hosts.keys().map(HostName::as_str).collect();
            return Err(unknown("host", host.as_str(), known));
        }
    }
    if let Some(require) = &spec.placement.require {
        let known = core.deck.hosts.values().flat_map(|h| h.labels.keys().map(String::as_str));
        Requirement::parse(require).and_then(|r| r.check_labels(known)).map_err(|e| ApiError {
            kind: ErrorKind::Invalid,
            message: format!("services/{service}.toml: require, {e}"),
            hint: e.hint(),
        })?;
    }
    let known = &core.deck.gateways;
    if let Some(gateway) =
        spec.gateway.iter().chain(&spec.gateways).find(|name| !known.contains_key(*name))
    {
        let known = known.keys().map(ServiceName::as_str).collect();
        return Err(unknown("gateway", gateway.as_str(), known));
    }
    backend_is_its_own(core, service, spec)
}

/// Two services in one backend would drain each other's servers in turn, and clients would get the other's model.
fn backend_is_its_own(
    core: &Core,
    service: &ServiceName,
    spec: &ServiceSpec,
) -> Result<(), ApiError> {
    let Some(own) = Gateways::of(&core.deck, service, spec) else { return Ok(()) };
    let written =
        core.files.services.iter().filter_map(|(name, spec)| Some((name, spec.as_ref().ok()?)));
    let lives = core.state.services.iter().flat_map(|(name, state)| {
        let live = state
            .releases
            .values()
            .filter(|release| state.replicas.keys().any(|key| key.release == release.number));
        live.map(move |release| (name, &release.spec))
    });
    for (other, theirs) in written.chain(lives).filter(|(other, _)| *other != service) {
        let theirs = Gateways::of(&core.deck, other, theirs);
        if let Some((gateway, backend)) = theirs.as_ref().and_then(|theirs| own.shared_with(theirs))
        {
            return Err(ApiError {
                kind: ErrorKind::Invalid,
                message: format!(
                    "{service} and {other} would both fill the backend {backend} of the gateway {gateway}"
                ),
                hint: Some(format!("give services/{service}.toml a `backend` of its own")),
            });
        }
    }
    Ok(())
}

/// Blue-green needs places for a whole second set.
pub(super) fn beside(state: &ServiceState, spec: &ServiceSpec, kind: RolloutKind) -> bool {
    spec.rollout.effective_strategy() == Strategy::BlueGreen
        && kind == RolloutKind::Apply
        && state.stable.is_some()
}

/// Places a draft on what nobody has, the present release of the service included.
fn place_beside(core: &Core, draft: &Draft) -> Result<placement::Placement, ApiError> {
    let hosts = || core.capacities(None);
    let replicas = draft.spec.replicas.get();
    let refused = match place_draft(core, draft, replicas, hosts(), Vec::new()) {
        Ok(placed) => return Ok(placed),
        Err(error) => error,
    };
    // In place it may fit. If not, blue-green is not what is in the way.
    let in_place = place(core, draft)?;
    let fitting =
        (1..replicas).rev().find(|n| place_draft(core, draft, *n, hosts(), Vec::new()).is_ok());
    let fitting = fitting.unwrap_or(0);
    let each = in_place.replicas.first().map_or(1, |r| r.devices.len());
    let missing = usize::try_from(replicas - fitting).unwrap_or(usize::MAX).saturating_mul(each);
    let what = match draft.spec.device {
        DeviceKind::Gpu if missing == 1 => "1 more GPU".to_owned(),
        DeviceKind::Gpu => format!("{missing} more GPUs"),
        DeviceKind::Cpu => "more host memory".to_owned(),
    };
    Err(ApiError {
        message: format!(
            "blue-green needs room for a whole second set beside the old one, and {fitting} of \
             {replicas} replicas fit: {}",
            refused.message
        ),
        hint: Some(format!("set strategy = \"rolling\" (it fits in place), or free {what}")),
        ..refused
    })
}

fn place(core: &Core, draft: &Draft) -> Result<placement::Placement, ApiError> {
    let hosts = core.capacities(Some(&draft.service));
    let reuse = world::reusable(&core.state, &draft.service);
    place_draft(core, draft, draft.spec.replicas.get(), hosts, reuse)
}

/// Places so many replicas of a draft on these hosts, where those of `reuse` may give way.
pub(super) fn place_draft(
    core: &Core,
    draft: &Draft,
    replicas: u32,
    hosts: Vec<placement::HostCapacity>,
    reuse: Vec<placement::Reuse>,
) -> Result<placement::Placement, ApiError> {
    let mut demand = demand(core, draft, replicas, &hosts)?;
    demand.reuse = reuse;
    place_on(core, hosts, &demand)
}

/// What so many replicas of a draft want on hosts of these kinds, whatever runs now.
pub(super) fn demand(
    core: &Core,
    draft: &Draft,
    replicas: u32,
    hosts: &[placement::HostCapacity],
) -> Result<Demand, ApiError> {
    let spec = &draft.spec;
    let engine = engine::of(&spec.engine);
    let engine::Shapes { good: mut tried, refused } =
        engine::shapes(&*engine, spec, draft.facts.as_ref());
    if let (true, Some((_, why))) = (tried.is_empty(), refused.first()) {
        return Err(invalid(why));
    }
    let refused_shapes = refused
        .iter()
        .map(|(shape, why)| format!("not on {} GPUs each: {why}", shape.tensor))
        .collect();
    let refused_on = core.without_refused(&*engine, spec, draft.facts.as_ref(), &mut tried, hosts);
    let needs = tried.into_iter().filter_map(|shape| {
        let estimated =
            || Some(core.memory_of(&*engine, spec, draft.facts.as_ref()?, shape, hosts));
        let memory_per_device = match (spec.memory.or_else(estimated), spec.device) {
            (Some(memory), _) => memory,
            (None, DeviceKind::Cpu) => Bytes::ZERO,
            (None, DeviceKind::Gpu) => return None,
        };
        Some(ShapeNeed { shape, memory_per_device })
    });
    let shapes: Vec<ShapeNeed> = needs.collect();
    if shapes.is_empty() {
        return Err(ApiError {
            kind: ErrorKind::Invalid,
            message: format!("how much GPU memory {} needs is not known", draft.service),
            hint: Some(format!(
                "write memory = \"40GiB\" (per GPU) into services/{}.toml",
                draft.service
            )),
        });
    }
    Ok(Demand {
        service: draft.service.clone(),
        replicas,
        shapes,
        refused_shapes,
        device: spec.device,
        memory_share: engine.memory_share(spec),
        refused_on,
        // What a person wrote is what they found out.
        within_share: spec.memory.is_none(),
        whole_gpus: engine.needs_whole_gpus(spec).map(str::to_owned),
        placement: spec.placement.clone(),
        reuse: Vec::new(),
        staying: Vec::new(),
        weights: draft.facts.as_ref().map_or(Bytes::ZERO, |f| f.weight_bytes),
        weights_on: draft.looked_at.clone(),
        lacking: draft.lacking.clone(),
    })
}

/// How long placing one service may hold up the loop, and how often it may try for each shape.
const PLACING: Duration = Duration::from_millis(200);
const PLACING_STEPS: u64 = 20_000;

/// Places a draft on these hosts.
pub(super) fn place_on(
    core: &Core,
    hosts: Vec<placement::HostCapacity>,
    demand: &Demand,
) -> Result<placement::Placement, ApiError> {
    let began = std::time::Instant::now();
    let mut budget = placement::Budget {
        used: &mut || began.elapsed().as_secs_f64() / PLACING.as_secs_f64(),
        steps: PLACING_STEPS,
    };
    placement::place(&placement::World { hosts }, demand, &mut budget).map_err(|refusal| {
        let mut message = refusal.to_string();
        let down = core.hub.with(|s| world::why_down(s.hosts.values()));
        for reason in refusal.reasons.iter().chain(&down).take(20) {
            message.push_str("\n  · ");
            message.push_str(reason);
        }
        ApiError { kind: ErrorKind::Unplaceable, message, hint: refusal.hint() }
    })
}

fn planned_replica(
    core: &Core,
    index: u32,
    replica: &placement::PlacedReplica,
    argv: &[String],
) -> PlannedReplica {
    let (text, free) = core.hub.with(|s| {
        let sample = s.hosts.get(&replica.host).and_then(|h| h.sample.as_ref());
        let gpus = sample.map(|s| s.gpus.list()).unwrap_or_default();
        let parts = gpus.iter().flat_map(|g| replica.devices.iter().filter_map(|d| g.part(d)));
        let mine: Vec<_> = parts.collect();
        if replica.devices == [DeviceId::Cpu] {
            return ("cpu".to_owned(), sample.and_then(|s| s.memory).map(|m| m.free()));
        }
        let text = mine.iter().map(|g| format!("GPU {}", g.label)).collect::<Vec<_>>().join(", ");
        (text, mine.iter().filter_map(|g| g.memory).map(|m| m.free()).min())
    });
    PlannedReplica {
        replica: index,
        in_place_of: replica.in_place_of.clone(),
        ranks: vec![PlannedRank {
            host: replica.host.clone(),
            devices: replica.devices.clone(),
            devices_text: text,
            memory_per_device: replica.memory_per_device,
            free_per_device: free,
            argv: argv.to_vec(),
        }],
    }
}

/// Gives out engine ports that no living release has.
pub(super) struct PortGiver<'a> {
    core: &'a Core,
    used: std::collections::BTreeSet<(String, u16)>,
}

impl<'a> PortGiver<'a> {
    pub(super) fn new(core: &'a Core) -> Self {
        Self { core, used: world::used_ports(&core.state) }
    }

    /// These ports are spoken for.
    fn occupy(&mut self, plan: Option<&ReplicaPlan>) {
        let ranks = plan.into_iter().flat_map(|p| &p.ranks);
        self.used.extend(ranks.map(|rank| (rank.address.clone(), rank.port)));
    }

    fn next(&mut self, host: &HostName, address: &str) -> Result<u16, ApiError> {
        let first = world::first_port(&self.core.deck, host);
        let port = (first..first.saturating_add(999))
            .find(|port| !self.used.contains(&(address.to_owned(), *port)))
            .ok_or_else(|| ApiError {
                kind: ErrorKind::Unplaceable,
                message: format!("all engine ports of {host} from {first} on are taken"),
                hint: Some("set `first_engine_port` of the host in deck.toml".to_owned()),
            })?;
        self.used.insert((address.to_owned(), port));
        Ok(port)
    }
}

/// Where an edit that was never committed is kept (below the deck's directory) when an earlier revision's spec
/// takes its place; none: there is no such edit.
pub(super) fn kept_edit(repo: &DeckRepo, draft: &Draft, number: ReleaseNumber) -> Option<String> {
    draft.revision.as_ref()?;
    let present = repo.read_service(&draft.service).ok().filter(|text| *text != draft.text)?;
    let head = repo.head().ok().flatten();
    let committed = head.and_then(|head| repo.spec_at(&head, &draft.service).ok());
    (committed.as_ref() != Some(&present))
        .then(|| format!(".gpudeck/{}.before-{number}.toml", draft.service))
}

/// Commits what is rolled out. An earlier revision puts its spec back into the work tree first, so that the
/// deck says what is served; an edit that was never committed is kept beside it.
pub fn commit(
    repo: &DeckRepo,
    draft: &Draft,
    release: &Release,
    kind: RolloutKind,
) -> Result<Revision, ApiError> {
    if draft.revision.is_some() {
        let present = repo.read_service(&draft.service).unwrap_or_default();
        if present != draft.text {
            let write = |path: &std::path::Path, content: &str| {
                std::fs::write(path, content).map_err(|e| ApiError {
                    kind: ErrorKind::Internal,
                    message: format!("{}: {e}", path.display()),
                    hint: None,
                })
            };
            if let Some(kept) = kept_edit(repo, draft, release.number) {
                let kept = repo.root().join(kept);
                if let Some(dir) = kept.parent() {
                    let _ = std::fs::create_dir_all(dir);
                }
                write(&kept, &present)?;
            }
            let file = repo.root().join("services").join(format!("{}.toml", draft.service));
            write(&file, &draft.text)?;
        }
    }
    let verb = match kind {
        RolloutKind::Apply => "Apply",
        RolloutKind::Undo => "Undo",
    };
    let subject = format!("{verb} {}", draft.service);
    repo.commit_service(&ReleaseCommit {
        service: &draft.service,
        release: release.number,
        subject: &subject,
        reason: release.reason.as_deref(),
        author: Some(&release.author),
        expected: Some(&draft.text),
    })
    .map_err(|e| commit_error(&e))
}

/// Why a release was not committed.
pub(super) fn commit_error(error: &RevisionError) -> ApiError {
    ApiError {
        kind: match error {
            RevisionError::Changed { .. } => ErrorKind::Conflict,
            _ => ErrorKind::Internal,
        },
        message: error.to_string(),
        hint: error.hint(),
    }
}

/// The spec of one release against another's.
pub fn diff(
    core: &Core,
    service: &ServiceName,
    from: ReleaseNumber,
    to: ReleaseNumber,
) -> Result<String, ApiError> {
    let (_, old, _) = read_spec(core, service, Some(from))?;
    let (_, new, _) = read_spec(core, service, Some(to))?;
    diff_text(&old, &new, &format!("services/{service}.toml")).map_err(|e| invalid(&e))
}

/// A fresh repository around a new deck's files.
pub fn init_repository(dir: &std::path::Path) -> Result<(), RevisionError> {
    DeckRepo::init(dir).map(|_| ())
}

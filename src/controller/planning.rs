//! From a spec to a release: read it, inspect the model on the hosts, place it, write the command
//! lines, foresee the journey. Nothing is touched here.

mod cautions;
mod deck;
mod keep;
mod lay;
mod on_hosts;
mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use self::deck::names_are_of_the_deck;
use self::place::{place, place_beside};
use super::actions::{self, Means};
use super::core::Core;
use super::gateways::Gateways;
use super::{borrowing, plan_steps, taken_back};
use crate::api::view::PlannedReplica;
use crate::api::{ApiError, ErrorKind, Forecast, PlanTime, PlanView};
use crate::base::{Hint, HostName, Revision, ServiceName, text};
use crate::engine;
use crate::model::ModelFacts;
use crate::placement;
use crate::revision::diff_text;
use crate::rollout::{LentTo, Release, RolloutKind, ServiceState};
use crate::spec::ServiceSpec;
use crate::weights::{self, LinkFiles};

pub use self::deck::{
    Committed, DeckBeside, SHOWN_RELEASES, Stamp, commit, diff, init_repository, read_files,
    read_spec, release_view, stamp,
};
pub(super) use self::deck::{commit_error, kept_edit, moved_edit, no_spec};
pub(super) use self::lay::{PortGiver, lay_out, replica_plan};
pub(super) use self::on_hosts::look_for;
pub(super) use self::place::{beside, demand, place_draft, place_on};

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
    /// Hosts that lack what its engine needs there (the model's files, its program, its key), with the reason.
    pub lacking: BTreeMap<HostName, String>,
    /// Hosts that just said that their container engine answers, whatever is known of them from before.
    pub with_container_engine: BTreeSet<HostName>,
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

/// A plan and the release that it is of.
pub struct Planned {
    /// The release; its revision, author and reason are set when it is begun.
    pub release: Release,
    /// For people.
    pub view: PlanView,
}

fn with_hint<E: std::fmt::Display + Hint>(error: &E) -> String {
    match error.hint() {
        Some(hint) => format!("{error} → {hint}"),
        None => error.to_string(),
    }
}

/// There is no such service; the nearest one is named.
pub fn not_found(service: &ServiceName, known: Vec<ServiceName>) -> ApiError {
    // What it is called itself is no other name for it.
    let others = known.iter().filter(|name| *name != service).map(ServiceName::as_str);
    let hint = match text::nearest(service.as_str(), others) {
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
        with_container_engine: BTreeSet::new(),
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
                draft.lacking.insert(host.clone(), format!("the model is not there: {error}"));
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
    place::has_hosts(core, draft)?;
    engine.check(spec, draft.facts.as_ref()).map_err(|e| invalid(&e))?;
    names_are_of_the_deck(core, service, spec)?;
    backends_are_apart(core, state, spec)?;

    let mut warnings = draft.warnings.clone();
    warnings.extend(engine.warnings(spec));
    let nothing_to_do = is_served(state, spec);
    let keeping = if nothing_to_do { Err(None) } else { keeping(core, draft, state, kind) };
    let keeps = keeping.is_ok();
    let (laid, restart) = match keeping {
        Ok(laid) => (laid, None),
        Err(why) => (anew(core, draft, state, kind, nothing_to_do)?, Some(why)),
    };
    let Laid { release, replicas, reasons, forecast, known } = laid;
    let (steps, total) = if nothing_to_do {
        (Vec::new(), PlanTime::default())
    } else {
        let steps = plan_steps::steps(core, state, &release, &forecast, &known);
        warnings.extend(known.warnings);
        steps
    };
    if forecast.outage {
        let remedy = forecast.remedy.as_deref().map(|r| format!(" → {r}"));
        let uncordon = cautions::cordoned_room(core, &release);
        let remedy =
            remedy.map(|r| format!("{r}{}", uncordon.unwrap_or_default())).unwrap_or_default();
        warnings.insert(0, format!("OUTAGE: no replica is ready in between{remedy}"));
    }
    warnings.extend(Gateways::none_named(&core.deck, state, spec));
    warnings.extend(cautions::of_the_traffic(core, state, spec));
    warnings.extend(cautions::of_the_order(core, service, spec));
    if !nothing_to_do {
        warnings.extend(taken_back::caution(core, state, draft));
        warnings.extend(cautions::of_the_clocks(&spec.rollout));
        let restart = restart.zip(served);
        warnings.extend(restart.and_then(|(why, r)| cautions::of_a_restart(r, spec, why)));
        warnings.extend(backend_of_another(core, state, spec));
    }
    // The simulated gateway has no file to write to.
    let gateways =
        Gateways::to_be(&core.deck, service, Some(state), spec).filter(|_| !core.deck.simulated);
    if let Some(gateways) = gateways {
        let stable = state.stable.and_then(|number| state.releases.get(&number));
        let served = stable.and_then(|r| Gateways::of_release(&core.deck, r));
        warnings.extend(served.and_then(|served| gateways.to_be_led(&served)));
        // What is served stays as it is, its scaling included, and so does the way back to what was.
        if !nothing_to_do && !keeps && kind == RolloutKind::Apply {
            gateways.last()?;
        }
        warnings.extend(gateways.forgetful());
    }
    if !nothing_to_do {
        warnings.extend(core.edit_warnings(draft, release.number).map_err(|e| invalid(&e))?);
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
    if let Some(facts) = draft.facts.as_ref().filter(|_| !nothing_to_do) {
        warnings.extend(core.fit_warnings(facts, &release));
    }
    for (host, why) in &place::lacking(core, draft) {
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
        behind: None,
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

/// With the replicas that run, as far as there are to be so many, if nothing differs of what they were started with and
/// there is room for what is missing.
///
/// # Errors
/// Why all are started anew, for people; none: their spec is another one.
fn keeping(
    core: &Core,
    draft: &Draft,
    state: &ServiceState,
    kind: RolloutKind,
) -> Result<Laid, Option<String>> {
    let number = lay::next_number(core, &draft.service);
    if let Some(lender) = &draft.spec.rollout.borrow {
        // What is wrong with that is told as ever.
        borrowing::check(core, draft, lender).map_err(|_| None)?;
    }
    let kept = keep::kept(core, draft, state, number)?;
    let refused = |error: ApiError| {
        let why = error.message.lines().next().unwrap_or_default().to_owned();
        Some(format!("beside what runs it cannot be: {why}"))
    };
    let placed = keep::place_missing(core, draft, &kept).map_err(refused)?;
    lay::lay_beside(core, draft, kind, placed, &kept, None).map_err(refused)
}

/// With replicas that are all started anew, where it helps on borrowed devices.
fn anew(
    core: &Core,
    draft: &Draft,
    state: &ServiceState,
    kind: RolloutKind,
    nothing_to_do: bool,
) -> Result<Laid, ApiError> {
    let placed = if beside(state, &draft.spec, kind) && !nothing_to_do {
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
    match borrows {
        Some(laid) => Ok(laid),
        None => {
            plain.map_err(|error| or_uncordon(state, borrowing::or_later(core, &draft.spec, error)))
        }
    }
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

/// Two releases that live at the same time may have backends of their own, but none that is the canary's of the other:
/// each would take the other's servers out.
fn backends_are_apart(
    core: &Core,
    state: &ServiceState,
    spec: &ServiceSpec,
) -> Result<(), ApiError> {
    let service = &state.service;
    let Some(new) = Gateways::to_be(&core.deck, service, Some(state), spec) else { return Ok(()) };
    let lives = state
        .releases
        .values()
        .filter(|release| state.replicas.keys().any(|key| key.release == release.number));
    for release in lives {
        let served = Gateways::of_release(&core.deck, release);
        let Some((gateway, name)) = served.as_ref().and_then(|old| new.tangled_with(old)) else {
            continue;
        };
        return Err(ApiError {
            kind: ErrorKind::Invalid,
            message: format!(
                "{service} would have the backend {name} of the gateway {gateway} for all requests in one release and \
                 for its canary in another, while both serve"
            ),
            hint: Some("give `backend` in the spec another name".to_owned()),
        });
    }
    Ok(())
}

/// Two services in one backend would drain each other's servers in turn, and clients would get the other's model. A
/// service that is served is not in the way of itself because of a spec that somebody has only written.
fn backend_is_its_own(
    core: &Core,
    service: &ServiceName,
    spec: &ServiceSpec,
) -> Result<(), ApiError> {
    let lives = core.state.services.iter().flat_map(|(name, state)| {
        let live = state
            .releases
            .values()
            .filter(|release| state.replicas.keys().any(|key| key.release == release.number));
        live.map(move |release| (name, &release.spec))
    });
    let is_served = core.state.services.get(service).is_some_and(|s| !s.replicas.is_empty());
    let written = written(core).filter(|_| !is_served);
    match fills_anothers(core, service, spec, lives.chain(written)) {
        None => Ok(()),
        Some(message) => Err(ApiError {
            kind: ErrorKind::Invalid,
            message,
            hint: Some(format!("give services/{service}.toml a `backend` of its own")),
        }),
    }
}

/// What is only written, and would be refused there.
fn backend_of_another(core: &Core, state: &ServiceState, spec: &ServiceSpec) -> Option<String> {
    let service = &state.service;
    let message = fills_anothers(core, service, spec, written(core))?;
    Some(format!("{message}, if that were applied → give the other one a `backend` of its own"))
}

fn written(core: &Core) -> impl Iterator<Item = (&ServiceName, &ServiceSpec)> {
    core.files.services.iter().filter_map(|(name, spec)| Some((name, spec.as_ref().ok()?)))
}

fn fills_anothers<'a>(
    core: &Core,
    service: &ServiceName,
    spec: &ServiceSpec,
    others: impl Iterator<Item = (&'a ServiceName, &'a ServiceSpec)>,
) -> Option<String> {
    let to_be = |name: &ServiceName, spec: &ServiceSpec| {
        Gateways::to_be(&core.deck, name, core.state.services.get(name), spec)
    };
    let own = to_be(service, spec)?;
    others.filter(|(other, _)| *other != service).find_map(|(other, theirs)| {
        let theirs = to_be(other, theirs)?;
        let (gateway, backend) = own.shared_with(&theirs)?;
        Some(format!(
            "{service} and {other} would both fill the backend {backend} of the gateway {gateway}"
        ))
    })
}

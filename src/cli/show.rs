//! `gpudeck status` and `events`: what there is, from the snapshot.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use futures::StreamExt;
use serde::Serialize;
use tokio::time::Instant;

use super::args::{Args, Output};
use super::attach::attach;
use super::events::EventLines;
use super::exit::{Failure, Success};
use super::standing::{self, DeckPart};
use super::{attention, table};
use crate::api::{
    Client, Condition, DeckCondition, DeckConditionKind, Delta, Door, Gate, HostLinkState,
    HostView, Phase, PlanProgress, ReplicaView, Rollout, ServiceName, ServiceView, SkippedGate,
    Snapshot, time,
};

/// A fresh controller has so long to hear of its hosts.
const SETTLE: Duration = Duration::from_secs(20);

/// Where some hosts were heard of, the others are waited for while one of them gets on, and so long after that: one
/// that says nothing holds up nobody.
const QUIET: Duration = Duration::from_secs(2);

/// Waits, up to a few seconds, until a fresh controller has heard of every host once. Those of which nothing was heard
/// are named on standard error.
pub async fn settle(client: &Client) -> Result<Snapshot, Failure> {
    let snapshot = client.snapshot().await?;
    let seen = follow(client, snapshot, SETTLE, Some(QUIET), all_settled).await?;
    let missing: Vec<&str> =
        seen.hosts.values().filter(|host| !settled(host)).map(|host| host.name.as_str()).collect();
    if let Some(words) = not_heard_of(&missing) {
        eprintln!("gpudeck: {words}");
    }
    Ok(seen)
}

/// Waits until something holds of what there is, or the time is up: what there is then.
pub async fn until(
    client: &Client,
    limit: Duration,
    holds: impl Fn(&Snapshot) -> bool,
) -> Result<Snapshot, Failure> {
    let snapshot = client.snapshot().await?;
    follow(client, snapshot, limit, None, holds).await
}

async fn follow(
    client: &Client,
    mut seen: Snapshot,
    limit: Duration,
    quiet: Option<Duration>,
    holds: impl Fn(&Snapshot) -> bool,
) -> Result<Snapshot, Failure> {
    if holds(&seen) {
        return Ok(seen);
    }
    let end = Instant::now() + limit;
    let mut way = Way::of(&seen);
    let mut until = end;
    // By what changes: asking for everything again and again costs more than the hosts do.
    let mut deltas = client.stream().await?;
    loop {
        if let Some(quiet) = quiet
            && way.has_arrived
        {
            until = until.min(way.since + quiet).min(end);
        }
        let Ok(Some(delta)) = tokio::time::timeout_at(until, deltas.next()).await else {
            return Ok(seen);
        };
        if !seen.apply(delta) {
            deltas = client.stream().await?;
        } else if holds(&seen) {
            return Ok(seen);
        }
        if way.gets_on(&seen) {
            until = end;
        }
    }
}

/// How far the hosts are that are on their way, and since when.
struct Way {
    /// Changes with each step of any of them.
    far: u64,
    /// Some host was heard of.
    has_arrived: bool,
    since: Instant,
}

impl Way {
    fn of(snapshot: &Snapshot) -> Self {
        let mut far = DefaultHasher::new();
        for host in snapshot.hosts.values() {
            settled(host).hash(&mut far);
            if let HostLinkState::Connecting { phase } = &host.link {
                phase.hash(&mut far);
            }
        }
        let has_arrived = snapshot.hosts.values().any(settled);
        Self { far: far.finish(), has_arrived, since: Instant::now() }
    }

    /// Whether any of them has come further.
    fn gets_on(&mut self, snapshot: &Snapshot) -> bool {
        let now = Self::of(snapshot);
        let gets_on = now.far != self.far;
        if gets_on {
            *self = now;
        }
        gets_on
    }
}

fn all_settled(snapshot: &Snapshot) -> bool {
    snapshot.hosts.values().all(settled)
}

/// Most hosts that are named in one line.
const MOST_NAMED: usize = 8;

/// What is said of hosts that are not there yet.
fn not_heard_of(hosts: &[&str]) -> Option<String> {
    let named = hosts.get(..MOST_NAMED.min(hosts.len())).unwrap_or_default().join(", ");
    let more = match hosts.len().saturating_sub(MOST_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!hosts.is_empty()).then(|| format!("nothing was heard yet of {named}{more}"))
}

/// The host was heard of, or it is known why not.
pub fn settled(host: &HostView) -> bool {
    match &host.link {
        HostLinkState::Connecting { .. } => false,
        HostLinkState::Up => host.sample.is_some() && host.claim_known,
        HostLinkState::Limited { .. } => host.sample.is_some(),
        HostLinkState::Asking { .. } | HostLinkState::Down { .. } => true,
    }
}

/// Services, or one service with its replicas.
pub async fn status(args: &Args, service: Option<&ServiceName>) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let snapshot = settle(&client).await?;
    match service {
        None if args.output == Output::Json => {
            let git = standing::git(args).await;
            let deck = standing::part(&client, &snapshot.deck, git).await;
            table::json(&serde_json::json!({ "deck": deck, "services": snapshot.services }))?;
        }
        None => {
            standing::print(&snapshot.deck)?;
            services(&snapshot)?;
            for view in snapshot.services.values() {
                attention::of_service(view).iter().try_for_each(|line| table::say(line))?;
                for words in troubles(&snapshot, view) {
                    table::say(&format!("! {}: {words}", view.name))?;
                }
            }
            let hosts = snapshot.hosts.values().filter_map(attention::of_host);
            hosts.into_iter().try_for_each(|line| table::say(&line))?;
            if let Some(group) = snapshot.deck.group.as_ref().filter(|g| g.is_shown()) {
                super::together::print(group)?;
            }
            let words = standing::git(args).await.map(|git| git.plainly());
            for words in words.unwrap_or_default() {
                table::say(&format!("deck: {words}"))?;
            }
        }
        Some(name) => {
            let Some(view) = snapshot.services.get(name) else {
                return Err(no_such_service(&client, name).await);
            };
            match args.output {
                Output::Json => {
                    let deck = standing::part(&client, &snapshot.deck, None).await;
                    table::json(&OneService { service: view, deck })?;
                }
                Output::Text => {
                    standing::print(&snapshot.deck)?;
                    one_service(&snapshot, view)?;
                }
            }
        }
    }
    Ok(Success::Done)
}

/// What is said of a service that is not there.
pub async fn no_such_service(client: &Client, name: &ServiceName) -> Failure {
    // The controller words it, with the nearest name.
    match client.plan(name).await {
        Err(error) => error.into(),
        Ok(_) => Failure::other(format!("there is no service {name}"))
            .code(8)
            .with_hint("`gpudeck status` lists them"),
    }
}

/// One service for programs, with how its deck stands.
#[derive(Serialize)]
struct OneService<'a> {
    #[serde(flatten)]
    service: &'a ServiceView,
    deck: DeckPart<'a>,
}

fn services(snapshot: &Snapshot) -> Result<(), Failure> {
    let rows: Vec<Vec<String>> = snapshot
        .services
        .values()
        .map(|s| {
            vec![
                s.name.to_string(),
                s.condition.word().to_owned(),
                ready(s),
                s.stable.map_or_else(|| "–".to_owned(), |r| r.to_string()),
                s.engine.clone(),
                number(s.traffic.requests_per_s),
                percent(s.traffic.error_rate),
                number(s.traffic.mean_response_ms),
                s.url.clone().unwrap_or_else(|| "–".to_owned()),
            ]
        })
        .collect();
    table::print_fitting(&HEADINGS, &rows, FIT)
}

const HEADINGS: [&str; 9] =
    ["SERVICE", "CONDITION", "READY", "RELEASE", "ENGINE", "REQ/S", "ERRORS", "MEAN ms", "URL"];

/// In a narrow terminal first without the address, then without the engine; then names are cut, and then it is without
/// what is measured.
const FIT: table::Fit<'_> =
    table::Fit { without_empty: false, spare: &[8, 4], cut: Some(0), last: &[7, 6, 5] };

/// What is wrong with a service, or not as it looks.
fn troubles(snapshot: &Snapshot, view: &ServiceView) -> Vec<String> {
    let first_failed = attention::first_failed(view).is_some();
    let tried = view.taken_back.filter(|_| view.pending_change && !first_failed);
    let tried = tried.map(|release| {
        format!(
            "the spec in the deck is that of {release}, taken back (`gpudeck plan {}`)",
            view.name
        )
    });
    let lost = snapshot.lost(view).map(|(words, host)| {
        format!("{words} → `gpudeck drain {host}` moves away what runs there")
    });
    let unseen = snapshot.unseen(view, now());
    // The deck's lines above tell all of it, unless there is too much of it.
    let told = |trouble: &str| {
        snapshot.deck.conditions.iter().any(|condition| told_by(condition, &view.name, trouble))
    };
    let trouble = view.trouble.clone().map(|trouble| {
        if told(&trouble) {
            "it restarts again and again, as told above".to_owned()
        } else {
            trouble
        }
    });
    trouble.into_iter().chain(unseen).chain(lost).chain(tried).collect()
}

/// Whether a state of the deck tells all that is told of a service which is restarted again and again, and what to do.
fn told_by(condition: &DeckCondition, name: &ServiceName, trouble: &str) -> bool {
    let Some(words) = trouble.strip_prefix("restarting: ") else { return false };
    let (words, hint) = words.split_once(" → ").unwrap_or((words, ""));
    condition.kind == DeckConditionKind::Restarting
        && condition.text.contains(&format!("{name}: {words}"))
        && condition.hint.as_deref().unwrap_or_default() == hint
}

fn one_service(snapshot: &Snapshot, view: &ServiceView) -> Result<(), Failure> {
    let name = &view.name;
    if view.condition == Condition::Elsewhere {
        table::say(&format!("{name}: {}", view.condition.word()))?;
    } else {
        table::say(&format!(
            "{name}: {}, {} ready (floor {}), release {}",
            view.condition.word(),
            ready(view),
            view.floor,
            view.stable.map_or_else(|| "–".to_owned(), |r| r.to_string()),
        ))?;
    }
    for words in troubles(snapshot, view) {
        table::say(&format!("! {words}"))?;
    }
    if let Some(rollout) = &view.rollout {
        let state = match &rollout.outcome {
            Some(outcome) => super::history::outcome_words(Some(outcome)),
            None => step_words(&view.steps, rollout.step),
        };
        table::say(&format!("rollout to {}: {state}", rollout.to))?;
        if rollout.outcome.is_none()
            && let Some(held) = held(&view.name, rollout)
        {
            table::say(&format!("held: {held}"))?;
        }
        if let Some(verdict) = &rollout.verdict {
            let (title, result) = (verdict.title(), verdict.result);
            table::say(&format!("{title}: {result:?}: {}", verdict.reason))?;
            verdict.lines.iter().try_for_each(|line| table::say(&format!("  | {line}")))?;
        }
        for skipped in &rollout.skipped {
            let SkippedGate { gate, by, reason, at, promoted, .. } = skipped;
            let verb = if *promoted { "promoted" } else { "skipped" };
            let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            table::say(&format!("{verb} by {by} at {at}: {gate}{why}"))?;
        }
    }
    if let Some(queued) = &view.queued {
        let why = queued.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default();
        table::say(&format!(
            "queued by {} at {}: {}{why} (`gpudeck rollout cancel-queued {}` takes it out)",
            queued.by,
            queued.asked,
            queued.what(),
            view.name
        ))?;
    }
    if let Some(why) = &view.queue_trouble {
        table::say(&format!("! the queued rollout did not begin: {why}"))?;
    }
    if let Some(progress) = &view.progress {
        foreseen(progress)?;
    }
    for memory in view.memory.iter().take(3) {
        table::say(&format!("memory {}: {}", memory.release, memory.seen.text()))?;
    }
    let rows: Vec<Vec<String>> = view
        .replicas
        .iter()
        .flat_map(|r| {
            r.ranks.iter().map(|rank| {
                vec![
                    rank.rank.to_string(),
                    r.release().to_string(),
                    phase(r).to_owned(),
                    rank.host.to_string(),
                    rank.devices.len().to_string(),
                    rank.port.to_string(),
                    match r.weight_wanted_percent {
                        Some(to_be) => format!("{} → {to_be} %", r.weight_percent),
                        None => format!("{} %", r.weight_percent),
                    },
                    replica_trouble(r),
                ]
            })
        })
        .collect();
    table::print(
        &["RANK", "RELEASE", "PHASE", "HOST", "DEVICES", "PORT", "WEIGHT", "TROUBLE"],
        &rows,
    )
}

/// How many replicas of how many are ready; not known of what another controller holds.
fn ready(view: &ServiceView) -> String {
    match view.condition {
        Condition::Elsewhere => "–".to_owned(),
        _ => view.ready_in_short(),
    }
}

/// `step 2 of 5: bake 5m`. A first deployment and an undo skip the steps: they are at the last stretch from the
/// beginning, which is the only one that they have.
pub fn step_words(titles: &[String], step: usize) -> String {
    let at = step.min(titles.len().saturating_sub(1));
    let title = titles.get(at).map_or("all replicas", String::as_str);
    format!("step {} of {}: {title}", at + 1, titles.len().max(1))
}

/// What was foreseen of a rollout beside what happened.
fn foreseen(progress: &PlanProgress) -> Result<(), Failure> {
    let now = now();
    let duration = |d: Option<Duration>| d.map_or_else(|| "–".to_owned(), time::short);
    let count = |n: Option<u32>| n.map_or_else(|| "–".to_owned(), |n| n.to_string());
    let mut rows: Vec<Vec<String>> = progress
        .steps
        .iter()
        .map(|step| {
            let way_back = step.predicted_lowest.is_none();
            let (seen, predicted, _) = step.lowest();
            vec![
                step.title.clone(),
                if way_back { "–".to_owned() } else { step.predicted.text() },
                duration(step.took(now)),
                count(predicted),
                count(seen),
            ]
        })
        .collect();
    let (seen, predicted, _) = progress.lowest();
    rows.push(vec![
        "all".to_owned(),
        progress.predicted.text(),
        time::short(progress.ended.unwrap_or(now).since(progress.began)),
        predicted.to_string(),
        seen.to_string(),
    ]);
    table::print(&["STEP", "FORESEEN", "TOOK", "LOWEST FORESEEN", "LOWEST SEEN"], &rows)
}

/// This machine's clock, as the controller's.
pub fn now() -> crate::api::Timestamp {
    let since_epoch =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    crate::api::Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// What happened.
pub async fn events(args: &Args, follow: bool) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let mut deltas = client.stream().await?;
    let mut told = EventLines::new(args);
    while let Some(delta) = deltas.next().await {
        match delta {
            Delta::Snapshot(snapshot) => {
                snapshot.events.iter().try_for_each(|event| told.show(event))?;
                if !follow {
                    break;
                }
            }
            Delta::Event { event, .. } => told.show(&event)?,
            _ => {}
        }
    }
    Ok(Success::Done)
}

/// What a rollout waits for, and how a person can go on.
pub fn held(service: &ServiceName, rollout: &Rollout) -> Option<String> {
    if let Some(since) = rollout.paused {
        let by = rollout.paused_by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
        let why = rollout.paused_why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        return Some(format!(
            "paused{by} since {since}{why}; `gpudeck rollout resume {service}` goes on"
        ));
    }
    Some(match rollout.gate.as_ref()? {
        Gate::Bake { until } => format!("bakes until {until}"),
        Gate::Analyse { name, until, awaits_request: true } => {
            format!("analysis {name} waits for the first request, until {until} at most")
        }
        Gate::Analyse { name, until, .. } => format!("analysis {name} until {until}"),
        Gate::Inconclusive { why } => {
            format!("the analysis is inconclusive ({why}): retry, skip or abort")
        }
        Gate::Approve => "waits for approval: promote or abort".to_owned(),
        Gate::Run { command, attempt, until } => {
            format!("runs {command} (attempt {attempt}), at most until {until}")
        }
        Gate::Failed { why } => format!("failed ({why}): retry or abort"),
    })
}

/// Its phase in a word or two.
fn phase(replica: &ReplicaView) -> &'static str {
    match &replica.phase {
        // It has loaded long ago.
        Phase::Loading if replica.silent => "no token",
        Phase::Pending { .. } => "pending",
        Phase::Starting => "starting",
        Phase::Waiting { .. } => "waiting",
        Phase::Loading => "loading",
        Phase::Ready => "ready",
        Phase::Draining { .. } => "draining",
        Phase::Stopping => "stopping",
        Phase::Stopped => "stopped",
        Phase::Failed { .. } => "failed",
    }
}

/// What it waits for or why it failed, and what else is wrong with it.
fn replica_trouble(replica: &ReplicaView) -> String {
    let why: &str = match &replica.phase {
        Phase::Waiting { why, .. } => why,
        Phase::Failed { cause } => cause,
        _ => "",
    };
    let trouble = replica.trouble.as_deref().unwrap_or_default();
    if why.is_empty() || trouble.contains(why) {
        return trouble.to_owned();
    }
    if trouble.is_empty() { why.to_owned() } else { format!("{why}; {trouble}") }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.1}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{:.1} %", v * 100.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn who_paused_it_since_when_and_why_is_told() {
        let mut services = crate::tui::fixture::rich().services.into_values();
        let mut rollout = services.find_map(|service| service.rollout).unwrap();
        rollout.paused = Some(crate::api::Timestamp(0));
        let chat: ServiceName = "chat".parse().unwrap();
        let told = |rollout: &Rollout| held(&chat, rollout).unwrap();
        assert!(told(&rollout).starts_with("paused since 1970-"), "{}", told(&rollout));
        rollout.paused_by = Some("ann".to_owned());
        rollout.paused_why = Some("wait for ops".to_owned());
        let words = told(&rollout);
        assert!(words.starts_with("paused by ann since 1970-"), "{words}");
        assert!(words.contains(": wait for ops; `gpudeck rollout resume chat`"), "{words}");
    }

    #[test]
    fn why_a_replica_failed_stands_in_the_last_column() {
        let mut services = crate::tui::fixture::rich().services.into_values();
        let mut replica = services.find_map(|service| service.replicas.into_iter().next()).unwrap();
        replica.phase = Phase::Failed { cause: "exit code 1".to_owned() };
        replica.trouble = None;
        assert_eq!(phase(&replica), "failed");
        assert_eq!(replica_trouble(&replica), "exit code 1");
        replica.trouble = Some("rank 0: exit code 1".to_owned());
        assert_eq!(replica_trouble(&replica), "rank 0: exit code 1");
        replica.trouble = Some("slow".to_owned());
        assert_eq!(replica_trouble(&replica), "exit code 1; slow");
    }

    #[test]
    fn a_trouble_is_told_whole_where_the_deck_does_not_tell_all_of_it() {
        let condition = DeckCondition {
            kind: DeckConditionKind::Restarting,
            since: crate::tui::fixture::NOW,
            text: "chat: 1 failed; it is started again; code: 2 fail".to_owned(),
            hint: Some("look at chat".to_owned()),
        };
        let told = |name: &str, trouble: &str| {
            told_by(&condition, &name.parse().unwrap(), &format!("restarting: {trouble}"))
        };
        assert!(told("chat", "1 failed; it is started again → look at chat"));
        assert!(!told("chat", "1 failed; it is started again → look at code"), "another hint");
        assert!(!told("code", "2 failed; it is started again → look at chat"), "it is cut");
    }

    #[test]
    fn more_than_wanted_is_told_as_on_the_screen() {
        let mut view = crate::tui::fixture::rich().services.into_values().next().unwrap();
        view.condition = Condition::Serving;
        let mut told = |of, wanted| {
            (view.ready, view.wanted) = (of, wanted);
            ready(&view)
        };
        assert_eq!([told(3, 4), told(4, 4), told(5, 4)], ["3/4", "4/4", "4/4+1"]);
    }

    #[test]
    fn hosts_that_are_away_are_a_state_of_the_deck_unless_they_refuse_the_login() {
        use crate::api::DownCause;
        let mut snapshot = crate::tui::fixture::calm();
        assert_eq!(snapshot.hosts_away(), None);
        let down = |kind| HostLinkState::Down {
            kind,
            cause: "no route".to_owned(),
            hint: None,
            since: crate::tui::fixture::NOW,
            tried: crate::tui::fixture::NOW,
            retry_at: None,
            trying: None,
        };
        let with_ranks = snapshot.hosts.values().filter(|h| !h.ranks.is_empty()).count();
        let first = snapshot.hosts.values_mut().find(|h| !h.ranks.is_empty()).unwrap();
        first.link = down(DownCause::LoginLost);
        let name = first.name.clone();
        assert_eq!(snapshot.hosts_away(), None, "that has a state of its own");
        snapshot.hosts.get_mut(&name).unwrap().link = down(DownCause::Refused);
        let told = snapshot.hosts_away().unwrap();
        let begins = format!("1 of {with_ranks} hosts with replicas is not reached: {name}; ");
        assert!(told.starts_with(&begins), "{told}");
        for host in snapshot.hosts.values_mut() {
            host.link = down(DownCause::Refused);
        }
        let told = snapshot.hosts_away().unwrap();
        assert!(told.starts_with("no host of the deck is reached; "), "{told}");
    }

    #[test]
    fn replicas_on_hosts_that_are_away_were_last_seen_before() {
        const NOW: crate::api::Timestamp = crate::tui::fixture::NOW;
        let mut snapshot = crate::tui::fixture::calm();
        let sampled = |snapshot: &mut Snapshot, at: u64| {
            for host in snapshot.hosts.values_mut() {
                host.sampled = Some(crate::api::Timestamp(at));
            }
        };
        sampled(&mut snapshot, NOW.0);
        let service = snapshot.services.values().find(|s| s.ready > 0).unwrap().clone();
        let told = |snapshot: &Snapshot| snapshot.unseen(&service, NOW);
        assert_eq!(told(&snapshot), None);
        // Silent, though nobody has given up the link yet.
        sampled(&mut snapshot, NOW.0 - 20_000);
        let words = told(&snapshot).unwrap();
        assert!(words.contains("last seen 20s ago") && words.ends_with("not reached"), "{words}");
        // Down is down at once.
        sampled(&mut snapshot, NOW.0 - 4_000);
        assert_eq!(told(&snapshot), None);
        let first = service.replicas.iter().find(|r| r.phase == Phase::Ready).unwrap();
        let host = first.ranks.first().unwrap().host.clone();
        snapshot.hosts.get_mut(&host).unwrap().link = HostLinkState::Down {
            kind: crate::api::DownCause::default(),
            cause: "no route".to_owned(),
            hint: None,
            since: NOW,
            tried: NOW,
            retry_at: None,
            trying: None,
        };
        let words = told(&snapshot).unwrap();
        assert!(words.contains(&format!("4s ago: {host} is not reached")), "{words}");
        // A controller that began on a dead fleet has never seen them.
        snapshot.hosts.get_mut(&host).unwrap().sampled = None;
        let words = told(&snapshot).unwrap();
        assert!(words.contains("not seen since this controller began: "), "{words}");
        assert!(!words.contains("ago"), "{words}");
        let elsewhere = ServiceView { condition: Condition::Elsewhere, ..service.clone() };
        assert_eq!(snapshot.unseen(&elsewhere, NOW), None, "that is known there");
    }

    #[test]
    fn a_host_that_says_nothing_gets_no_further_and_is_named() {
        let mut snapshot = crate::tui::fixture::rich();
        let name = snapshot.hosts.keys().next().unwrap().clone();
        let mut at = |phase: &str| {
            let link = HostLinkState::Connecting { phase: phase.to_owned() };
            snapshot.hosts.get_mut(&name).unwrap().link = link;
            snapshot.clone()
        };
        let mut way = Way::of(&at("connecting"));
        assert!(way.has_arrived, "the others are there");
        assert!(!way.gets_on(&at("connecting")));
        assert!(way.gets_on(&at("logging in")));
        assert!(!way.gets_on(&at("logging in")));
        assert_eq!(not_heard_of(&[]), None);
        assert!(not_heard_of(&["a", "b"]).unwrap().ends_with("of a, b"));
        assert!(not_heard_of(&["a"; 10]).unwrap().ends_with("a and 2 more"));
    }

    #[test]
    fn a_rollout_that_skips_its_steps_is_at_its_only_one() {
        let titles = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let canary = titles(&["weight 10 %", "bake 5m", "all replicas"]);
        assert_eq!(step_words(&canary, 1), "step 2 of 3: bake 5m");
        assert_eq!(step_words(&canary, 2), "step 3 of 3: all replicas");
        // An undo of a spec with four steps.
        assert_eq!(step_words(&titles(&["all replicas"]), 4), "step 1 of 1: all replicas");
        assert_eq!(step_words(&[], 0), "step 1 of 1: all replicas");
    }
}

//! `gpudeck hosts`: the hosts and their GPUs, from the snapshot.

use std::collections::BTreeMap;
use std::time::Duration;

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::show::{now, settle};
use super::{no_gpus, questions, standing, table};
use crate::api::{
    DownCause, GpuHealth, Gpus, HostLinkState, HostName, HostView, Question, Timestamp, age,
    models, time,
};

/// Some samples: one that is not looked at is sampled every five seconds.
pub const FRESH: Duration = Duration::from_secs(15);
/// The same where something of ours runs, which is sampled every two.
const FRESH_WITH_RANKS: Duration = Duration::from_secs(6);

/// Hosts and their GPUs; of all, or of these.
pub async fn hosts(args: &Args, only: &[HostName]) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let mut snapshot = settle(&client).await?;
    if let Some(none) = only.iter().find(|name| !snapshot.hosts.contains_key(*name)) {
        return Err(Failure::no_host(none, snapshot.hosts.keys()));
    }
    snapshot.hosts.retain(|name, _| only.is_empty() || only.contains(name));
    if args.output == Output::Json {
        let deck = standing::part(&client, &snapshot.deck, None).await;
        table::json(&serde_json::json!({ "deck": deck, "hosts": snapshot.hosts }))?;
        return Ok(Success::Done);
    }
    standing::print(&snapshot.deck)?;
    let now = now();
    let rows: Vec<Vec<String>> =
        snapshot.hosts.values().map(|host| row(host, &snapshot.questions, now)).collect();
    table::print(&["HOST", "STATE", "GPUS", "FREE MEMORY", "RANKS", ""], &rows)?;
    Ok(Success::Done)
}

/// What people are asked for, by number.
type Questions = BTreeMap<u64, Question>;

fn row(host: &HostView, asked: &Questions, now: Timestamp) -> Vec<String> {
    let (state, note) = state(host, asked);
    let note = no_gpus::with_reason(note, host);
    vec![
        host.name.to_string(),
        match host.maintenance.word() {
            Some(word) => format!("{state}, {word}"),
            None => state,
        },
        gpus(host),
        free_memory(host),
        ranks(host),
        match old(host, now) {
            Some(old) if note.is_empty() => old,
            Some(old) => format!("{old}; {note}"),
            None => note,
        },
    ]
}

/// Its link in a word, and what there is to say of it.
fn state(host: &HostView, asked: &Questions) -> (String, String) {
    match &host.link {
        HostLinkState::Up => ("up".to_owned(), up_note(host)),
        HostLinkState::Limited { why, hint } => {
            let hint = hint.as_deref().map(|h| format!(" → {h}")).unwrap_or_default();
            ("limited".to_owned(), format!("no agent: {why}{hint}"))
        }
        HostLinkState::Connecting { phase } => ("connecting".to_owned(), phase.clone()),
        HostLinkState::Asking { question } => {
            let how = questions::how(asked, *question);
            ("asking".to_owned(), format!("question {question}: {how}"))
        }
        HostLinkState::Down { kind, cause, hint, trying, .. } => {
            let hint = hint.as_deref().map(|h| format!(" → {h}")).unwrap_or_default();
            let again = trying.as_deref().map(|p| format!(" ({p} …)")).unwrap_or_default();
            let state = if *kind == DownCause::LoginLost { kind.name() } else { "down" };
            (state.to_owned(), format!("{cause}{again}{hint}"))
        }
    }
}

/// How many GPUs of which kind, or why that is not known.
fn gpus(host: &HostView) -> String {
    let Some(sample) = &host.sample else { return "–".to_owned() };
    match &sample.gpus {
        gpus @ Gpus::None { .. } => match no_gpus::unread(gpus) {
            Some(_) => "NOT READ".to_owned(),
            None => "none".to_owned(),
        },
        Gpus::Hung { .. } if sample.gpu_trouble.is_some() => "NOT READ".to_owned(),
        Gpus::Hung { .. } => "DRIVER HUNG".to_owned(),
        Gpus::Some(gpus) => models(gpus),
    }
}

/// What is free on the GPUs that something may be placed on, or of the memory of a host without any.
fn free_memory(host: &HostView) -> String {
    let unknown = || "–".to_owned();
    let Some(sample) = &host.sample else { return unknown() };
    match &sample.gpus {
        // It has GPUs, whose memory is not known: the host's own is another thing.
        gpus if matches!(gpus, Gpus::Hung { .. }) || no_gpus::unread(gpus).is_some() => unknown(),
        Gpus::None { .. } | Gpus::Hung { .. } => {
            sample.memory.map_or_else(unknown, |m| m.free().to_string())
        }
        Gpus::Some(gpus) if gpus.is_empty() => {
            sample.memory.map_or_else(unknown, |m| m.free().to_string())
        }
        Gpus::Some(gpus) => {
            // Nothing is placed on the others.
            let well = gpus.iter().filter(|g| g.health == GpuHealth::Ok);
            let free = well.filter_map(|g| g.memory).map(|m| m.free().0).sum::<u64>();
            crate::api::Bytes(free).to_string()
        }
    }
}

/// How many ranks of the deck are there; what another controller runs is known there.
fn ranks(host: &HostView) -> String {
    match &host.claim {
        Some(claim) if !claim.ours => "–".to_owned(),
        _ => host.ranks.len().to_string(),
    }
}

/// That what is shown of a host is not of now: it says nothing (yet its link is not given up), or its GPUs are not read.
fn old(host: &HostView, now: Timestamp) -> Option<String> {
    let fresh = if host.ranks.is_empty() { FRESH } else { FRESH_WITH_RANKS };
    let age = age(now, host.sampled)?;
    if age > fresh {
        return Some(format!("{} old", time::short(age)));
    }
    let gpus = host.sample.as_ref().and_then(|sample| sample.gpus_age_ms)?;
    let gpus = age + Duration::from_millis(gpus);
    (gpus > fresh).then(|| format!("GPUs {} old", time::short(gpus)))
}

/// What is to be said of a host that is reached: who else holds it comes before its GPUs and its maintenance.
fn up_note(host: &HostView) -> String {
    let held = held_by(host);
    if !held.is_empty() {
        return held;
    }
    let mut notes = gpus_note(host);
    notes.push(maintenance_note(host));
    notes.retain(|note| !note.is_empty());
    notes.join("; ")
}

/// GPUs that nothing is placed on.
pub fn gpus_note(host: &HostView) -> Vec<String> {
    let gpus = host.sample.iter().flat_map(|sample| sample.gpus.list());
    gpus.filter_map(|gpu| match &gpu.health {
        GpuHealth::Ok => None,
        GpuHealth::Degraded { why } => Some(format!("GPU {} DEGRADED: {why}", gpu.index)),
        GpuHealth::Lost => Some(format!("GPU {} LOST", gpu.index)),
    })
    .collect()
}

/// Who cordoned it and why, or what keeps it from being empty.
fn maintenance_note(host: &HostView) -> String {
    let maintenance = &host.maintenance;
    let trouble = maintenance.drain.as_ref().and_then(|d| d.trouble.clone());
    let failed = match &maintenance.upgrade {
        Some(crate::api::UpgradeHost::Failed { why }) => Some(why.clone()),
        _ => None,
    };
    let cordon = maintenance.cordons.first().map(|c| {
        let why = c.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        format!("cordoned by {}{why}", c.by)
    });
    failed.or(trouble).or(cordon).unwrap_or_default()
}

/// Who else may act on a host.
fn held_by(host: &HostView) -> String {
    match host.claim.as_ref().filter(|c| !c.ours) {
        Some(claim) => {
            let since = claim.since.map(|s| format!(" since {s}")).unwrap_or_default();
            let until = claim.until.map(|u| format!(" until {u}")).unwrap_or_default();
            format!("held by {}{since}{until}", claim.holder)
        }
        None => String::new(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tui::fixture::{NOW, rich};

    #[test]
    fn what_runs_on_a_host_of_another_controller_is_not_known() {
        let mut host = rich().hosts.into_values().find(|h| !h.ranks.is_empty()).unwrap();
        let count = host.ranks.len().to_string();
        let mut told = |ours: Option<bool>| {
            host.claim = ours.map(|ours| crate::api::view::ClaimView {
                holder: "bob@m2 (/d)".to_owned(),
                ours,
                since: None,
                until: None,
            });
            ranks(&host)
        };
        assert_eq!([told(None), told(Some(true)), told(Some(false))], [&count, &count, "–"]);
    }

    #[test]
    fn the_memory_of_a_host_is_not_taken_for_that_of_its_gpus() {
        let mut host = rich().hosts.into_values().find(|h| !h.ranks.is_empty()).unwrap();
        let mut told = |gpus: Option<Gpus>| {
            let mut sample = crate::api::HostSample::clone(host.sample.as_ref().unwrap());
            sample.gpus = gpus.unwrap_or(sample.gpus);
            host.sample = Some(sample.into());
            free_memory(&host)
        };
        let of_gpus = told(None);
        assert_ne!(of_gpus, "–");
        assert_eq!(told(Some(Gpus::Hung { for_ms: 9_000 })), "–");
        let of_host = told(Some(Gpus::None { why: String::new() }));
        assert!(of_host != "–" && of_host != of_gpus, "{of_host}");
    }

    #[test]
    fn a_host_that_falls_silent_has_an_age_before_its_link_is_given_up() {
        let serves = |h: &HostView| h.link == HostLinkState::Up && !h.ranks.is_empty();
        let mut host = rich().hosts.into_values().find(serves).unwrap();
        let mut after = |seconds: u64, has_ranks: bool| {
            if !has_ranks {
                host.ranks.clear();
            }
            host.sampled = Some(Timestamp(NOW.0 - seconds * 1_000));
            old(&host, NOW)
        };
        assert_eq!(after(3, true), None);
        assert_eq!(after(7, true).as_deref(), Some("7s old"));
        assert_eq!(after(14, false), None, "it is sampled every five seconds");
        assert_eq!(after(16, false).as_deref(), Some("16s old"));
        host.sampled = Some(NOW);
        let mut sample = crate::api::HostSample::clone(host.sample.as_ref().unwrap());
        sample.gpus_age_ms = Some(20_000);
        host.sample = Some(sample.into());
        assert_eq!(old(&host, NOW).as_deref(), Some("GPUs 20s old"));
        host.sampled = None;
        assert_eq!(old(&host, NOW), None);
    }
}

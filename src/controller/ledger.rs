//! The journal and the audit trail as people read them. Reads files; needs no running controller.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::Paths;
use super::deck_ledger::{DeckEvent, DeckRecord};
use super::record::{DeckState, Record};
use crate::base::{Hint, ServiceName, Timestamp, text, time};
use crate::journal::{self, JournalError, Reader, RecordKind, audit};
use crate::rollout::{EventKind, StartRefusal};

/// One record of the journal, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LedgerLine {
    /// Its number.
    pub seq: u64,
    /// When; none for a checkpoint.
    pub at: Option<Timestamp>,
    /// About which service; none for a checkpoint and for what concerns the deck.
    pub service: Option<ServiceName>,
    /// In words.
    pub words: String,
    /// What stands in the journal.
    pub record: serde_json::Value,
}

/// Reads a deck's journal from its beginning, and goes on with what is appended.
pub struct Ledger(Reader);

impl Ledger {
    /// The journal of the deck whose controller keeps its files there.
    pub fn open(paths: &Paths) -> Result<Self, JournalError> {
        Ok(Self(Reader::new(&paths.journal())))
    }

    /// What was not read yet.
    pub fn more(&mut self) -> Result<Vec<LedgerLine>, JournalError> {
        Ok(self.0.more()?.into_iter().map(line).collect())
    }
}

const UNREADABLE: &str = "of a version that this gpudeck cannot read";

fn line(record: journal::Record) -> LedgerLine {
    let (at, service, words) = match record.kind {
        RecordKind::Checkpoint => (None, None, checkpoint_words(&record)),
        RecordKind::Appended if record.value.get("deck_event").is_some() => {
            match record.read::<DeckRecord>() {
                Ok(read) => (Some(read.deck_at), None, deck_words(&read.deck_event)),
                Err(_) => (None, None, UNREADABLE.to_owned()),
            }
        }
        RecordKind::Appended => match record.read::<Record>() {
            Ok(read) => {
                (Some(read.event.at), Some(read.service.clone()), event_words(&read.event.kind))
            }
            Err(_) => (None, None, UNREADABLE.to_owned()),
        },
    };
    LedgerLine { seq: record.seq, at, service, words, record: record.value }
}

fn checkpoint_words(record: &journal::Record) -> String {
    match record.read::<DeckState>() {
        Ok(state) => {
            let replicas: usize = state.services.values().map(|s| s.replicas.len()).sum();
            let services = match state.services.len() {
                1 => "1 service".to_owned(),
                n => format!("{n} services"),
            };
            format!(
                "checkpoint: {services}, {replicas} replicas, last release {}",
                state.last_release
            )
        }
        Err(_) => "checkpoint of a version that this gpudeck cannot read".to_owned(),
    }
}

/// What happened to the deck as a whole, in people's words.
pub fn deck_words(event: &DeckEvent) -> String {
    let on = |host: &crate::base::HostName, gpu: &Option<crate::api::CordonedGpu>| match gpu {
        Some(gpu) => format!("GPU {} of {host}", gpu.index),
        None => host.to_string(),
    };
    let because = |why: &Option<String>| why.as_ref().map(|w| format!(": {w}")).unwrap_or_default();
    let words = match event {
        DeckEvent::Planned { service, progress } => {
            format!(
                "{} steps are foreseen for {} of {service}",
                progress.steps.len(),
                progress.release
            )
        }
        DeckEvent::Cordoned { host, gpu, by, reason } => {
            format!("{by} cordons {}{}", on(host, gpu), because(reason))
        }
        DeckEvent::Uncordoned { host, gpu } => format!("{} is uncordoned", on(host, gpu)),
        DeckEvent::DrainBegun { host, by } => format!("{by} drains {host}"),
        DeckEvent::DrainEnded { host, trouble: None } => format!("{host} is empty"),
        DeckEvent::DrainEnded { host, trouble } => {
            format!("{host} was not emptied{}", because(trouble))
        }
        DeckEvent::GroupBegun { group } => {
            format!("{} services are rolled out together", group.services.len())
        }
        DeckEvent::GroupWent { service, state } => {
            let (word, why) = state.words();
            let why = if why.is_empty() { String::new() } else { format!(": {why}") };
            format!("together with others, {service}: {word}{why}")
        }
        DeckEvent::GroupSteered { what, by, reason } => {
            let verb = what.verb();
            format!("{by} {verb} the rollout of several services{}", because(reason))
        }
        DeckEvent::UpgradeBegun { upgrade } => {
            format!("{} hosts are upgraded", upgrade.hosts.len())
        }
        DeckEvent::UpgradeWent { host, state } => format!("{host}: {}", state.word()),
        DeckEvent::UpgradeMissed { missed_ms } => {
            let missed = time::short(Duration::from_millis(*missed_ms));
            format!(
                "nobody looked after the upgrade of hosts for {missed}: its deadlines are later"
            )
        }
    };
    text::clean(&words, 300)
}

/// What happened, in people's words.
pub fn event_words(kind: &EventKind) -> String {
    let words = match kind {
        EventKind::RolloutRequested { release, by, .. } => {
            let why = release.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
            let revision = release.revision.to_string();
            format!(
                "{by} asks for {} (revision {revision}, {} replicas){why}",
                release.number,
                release.replicas.len()
            )
        }
        EventKind::Paused { by } => format!("{by} pauses the rollout"),
        EventKind::Resumed { by } => format!("{by} resumes the rollout"),
        EventKind::Promoted { by, all: false, .. } => format!("{by} promotes"),
        EventKind::Promoted { by, all: true, .. } => format!("{by} promotes to the end"),
        EventKind::Retried { by } => format!("{by} tries again what failed"),
        EventKind::Skipped { by, reason } => format!("{by} skips the gate: {reason}"),
        EventKind::Queued { wish, replace } => {
            let how = if *replace { "replaces the rollout" } else { "queues a rollout" };
            format!("{} {how}: {}", wish.by, wish.what())
        }
        EventKind::QueueCancelled { by, .. } => format!("{by} cancels the queued rollout"),
        EventKind::QueueRefused { why, .. } => format!("the queued rollout is refused: {why}"),
        EventKind::RunEnded { attempt, end, .. } => {
            format!("the command of the step has ended (attempt {attempt}): {end:?}")
        }
        EventKind::RunLost { attempt, .. } => {
            format!("the command of the step (attempt {attempt}) was lost with its controller")
        }
        EventKind::Aborted { by, reason } => {
            let why = reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
            format!("{by} aborts the rollout{why}")
        }
        EventKind::StopRequested { by } => format!("{by} stops the service"),
        EventKind::RankRunning { rank } => {
            format!("rank {} of {} runs", rank.rank, rank.replica)
        }
        EventKind::RankRefused { rank, refusal: StartRefusal::NotYet { why } } => {
            format!("rank {} of {} cannot start yet: {why}", rank.rank, rank.replica)
        }
        EventKind::RankRefused { rank, refusal: StartRefusal::Never { why } } => {
            format!("rank {} of {} cannot start: {why}", rank.rank, rank.replica)
        }
        EventKind::RankEnded { rank, how } => {
            format!("rank {} of {} has ended: {how}", rank.rank, rank.replica)
        }
        EventKind::ReplicaReady { replica } => format!("{replica} generated a token: it is ready"),
        EventKind::NoTokenYet { replica, why } => format!("{replica} gives no token yet: {why}"),
        EventKind::ReplicaUnready { replica, why } => format!("{replica} does not answer: {why}"),
        EventKind::TrafficApplied { version } => {
            format!("the gateway has traffic table {version}")
        }
        EventKind::TrafficFailed { version, why } => {
            format!("the gateway did not take traffic table {version}: {why}")
        }
        EventKind::Drained { replica } => format!("{replica} has no request in flight any more"),
        EventKind::Measured { windows } => {
            let requests: u64 = windows.values().map(|w| w.requests).sum();
            let errors: u64 = windows.values().map(|w| w.errors).sum();
            format!("measured: {requests} requests, {errors} failed")
        }
        EventKind::Unmeasured => "the canary's requests cannot be counted at present".to_owned(),
        // Time, and whatever has no words of its own: its name, and what stands in it.
        other => plain_words(other),
    };
    text::clean(&words, 300)
}

fn plain_words(kind: &EventKind) -> String {
    let value = serde_json::to_value(kind).unwrap_or_default();
    let Some(fields) = value.as_object() else { return String::new() };
    let name = fields.get("event").and_then(|e| e.as_str()).unwrap_or("event").replace('_', " ");
    let rest: Vec<String> = fields
        .iter()
        .filter(|(key, value)| *key != "event" && !value.is_null())
        .map(|(key, value)| match value.as_str() {
            Some(word) => format!("{key} {word}"),
            None => format!("{key} {value}"),
        })
        .collect();
    if name == "tick" {
        return "time has passed".to_owned();
    }
    if rest.is_empty() { name } else { format!("{name}: {}", rest.join(", ")) }
}

/// One segment of the journal, checked.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentCheck {
    /// The file.
    pub file: PathBuf,
    /// The version of its format.
    pub version: Option<u32>,
    /// The gpudeck that wrote it.
    pub written_by: String,
    /// Whole records in it.
    pub records: u64,
    /// Number of the first.
    pub first_seq: Option<u64>,
    /// Number of the last.
    pub last_seq: Option<u64>,
    /// Bytes of a last record that was not written whole: it was never acted upon.
    pub torn_bytes: u64,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// What to do about it, where that depends on what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Checks the chain, the checksums and the tail of a deck's journal.
pub fn verify_journal(paths: &Paths) -> Result<Vec<SegmentCheck>, JournalError> {
    let dir = paths.journal();
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let report = journal::verify(&dir)?;
    let checks = report.segments.into_iter().map(|s| SegmentCheck {
        file: s.file,
        version: s.version,
        written_by: s.written_by,
        records: s.records,
        first_seq: s.first_seq,
        last_seq: s.last_seq,
        torn_bytes: s.torn_bytes,
        hint: s
            .problem
            .as_ref()
            .filter(|p| matches!(p, JournalError::Missing { .. }))
            .and_then(Hint::hint),
        problem: s.problem.map(|p| p.to_string()),
    });
    Ok(checks.collect())
}

/// The lines of a deck's audit trail, oldest first.
pub fn read_audit(paths: &Paths) -> Result<Vec<audit::Line>, JournalError> {
    audit::read(&paths.dir)
}

/// Checks a deck's audit trail: its chain, that what the journal knows of it is there, and that there is one where the
/// journal has rollouts, each of which somebody asked for.
pub fn verify_audit(paths: &Paths) -> Result<audit::AuditReport, JournalError> {
    // Read first: the trail only grows.
    let dir = paths.journal();
    let journal = if dir.is_dir() { Reader::new(&dir).more() } else { Ok(Vec::new()) };
    // One that is damaged says nothing of it; `journal verify` is what judges.
    let records = journal.as_deref().unwrap_or_default();
    let checkpoint = records.iter().rev().find(|r| r.kind == RecordKind::Checkpoint);
    let mark = checkpoint.and_then(|r| r.value.get("audited").cloned());
    let mark: Option<audit::Head> = mark.and_then(|mark| serde_json::from_value(mark).ok());
    let mut report = audit::verify(&paths.dir, mark.as_ref())?;
    if report.lines == 0 && report.problem.is_none() {
        let asked = |r: &&journal::Record| {
            r.value.pointer("/event/event").is_some_and(|kind| kind == "rollout_requested")
        };
        let rollouts = journal?.iter().filter(asked).count();
        if rollouts > 0 {
            let noun = if rollouts == 1 { "rollout" } else { "rollouts" };
            let words = format!("the trail is gone: the journal has {rollouts} {noun}");
            report.problem = Some((1, words));
        }
    }
    Ok(report)
}

//! The journal and the audit trail as people read them. Reads files; needs no running controller.

mod words;

use std::path::PathBuf;

use serde::Serialize;

pub(super) use self::words::because;
use self::words::{deck_words, event_words};
use super::deck_ledger::DeckRecord;
use super::record::{DeckState, Record};
use super::{Paths, planning};
use crate::api::ApiError;
use crate::base::{Hint, ServiceName, Timestamp};
use crate::journal::{self, JournalError, Reader, RecordKind, audit};

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

impl LedgerLine {
    /// The services that it is about: one, or those of a checkpoint.
    pub fn services(&self) -> Vec<ServiceName> {
        let state = self.record.get("services").and_then(serde_json::Value::as_object);
        let of_checkpoint = state.into_iter().flat_map(|all| all.keys());
        of_checkpoint.filter_map(|name| name.parse().ok()).chain(self.service.clone()).collect()
    }
}

/// That neither the journal nor the deck knows a service, with the names that there are.
pub fn no_such_service(service: &ServiceName, known: Vec<ServiceName>) -> ApiError {
    planning::not_found(service, known)
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

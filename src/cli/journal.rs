//! `gpudeck journal`: what was decided and done, from the disk; no controller has to run.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::args::{Args, JournalCommand, Output};
use super::attach::known;
use super::exit::{Failure, Success};
use super::page::Clock;
use super::table;
use crate::api::{ServiceName, Timestamp};
use crate::controller::ledger::LedgerLine;
use crate::controller::{Paths, ledger};

/// What is shown of the journal.
#[derive(Clone, Debug, clap::Args)]
pub struct JournalOptions {
    /// Go on as it is written
    #[arg(long, short)]
    pub follow: bool,
    /// Only of this service
    #[arg(long)]
    pub service: Option<ServiceName>,
    /// Only from then on: a time (2026-03-01T12:00:00Z) or an age (2h)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub since: Option<Timestamp>,
}

/// Reads a moment: RFC 3339, or so long ago.
pub fn since(words: &str) -> Result<Timestamp, String> {
    let now = std::time::SystemTime::now();
    let moment = match humantime::parse_duration(words) {
        Ok(age) => now.checked_sub(age).unwrap_or(std::time::UNIX_EPOCH),
        Err(_) => humantime::parse_rfc3339_weak(words)
            .map_err(|_| "write an age such as 2h, or a time such as 2026-03-01T12:00:00Z")?,
    };
    let millis = moment.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    Ok(Timestamp(u64::try_from(millis).unwrap_or(u64::MAX)))
}

/// Shows or checks it.
pub async fn run(
    args: &Args,
    command: Option<&JournalCommand>,
    options: &JournalOptions,
) -> Result<Success, Failure> {
    let deck = known(args)?;
    let paths = Paths::of(deck.id);
    match command {
        Some(JournalCommand::Verify) => verify(args, &paths),
        None => show(args, &deck.dir, &paths, options).await,
    }
}

/// Whether there is a journal. One that may not be looked at is not one that is not there.
fn is_there(paths: &Paths) -> Result<bool, Failure> {
    let dir = paths.journal();
    match std::fs::read_dir(&dir) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::other(format!("{}: {error}", dir.display())).with_hint(
            "ask as the user who runs the controller, or set GPUDECK_HOME to its directory",
        )),
    }
}

/// Refuses a service of which neither the journal nor the deck's directory knows.
fn is_known(deck: &Path, lines: &[LedgerLine], service: &ServiceName) -> Result<(), Failure> {
    let mut known: BTreeSet<ServiceName> = lines.iter().flat_map(LedgerLine::services).collect();
    let specs = std::fs::read_dir(deck.join("services")).into_iter().flatten().flatten();
    known.extend(specs.filter_map(|file| {
        file.file_name().to_str()?.strip_suffix(".toml")?.parse::<ServiceName>().ok()
    }));
    if known.contains(service) {
        return Ok(());
    }
    Err(ledger::no_such_service(service, known.into_iter().collect()).into())
}

async fn show(
    args: &Args,
    deck: &Path,
    paths: &Paths,
    options: &JournalOptions,
) -> Result<Success, Failure> {
    if !is_there(paths)? && !options.follow {
        if let Some(service) = &options.service {
            is_known(deck, &[], service)?;
        }
        if args.output == Output::Text {
            table::out("nothing was journaled for this deck yet")?;
        }
        return Ok(Success::Done);
    }
    let mut clock = Clock::of_stdout();
    let mut looked_for = options.service.as_ref();
    let mut ledger = ledger::Ledger::open(paths).map_err(|e| Failure::of(&e))?;
    loop {
        let lines = match ledger.more() {
            Ok(lines) => lines,
            // It is just about to be made.
            Err(_) if options.follow && !paths.journal().is_dir() => Vec::new(),
            Err(error) => return Err(Failure::of(&error)),
        };
        if let Some(service) = looked_for.take() {
            is_known(deck, &lines, service)?;
        }
        for line in lines {
            let other = options.service.is_some() && line.service != options.service;
            let early = match (options.since, line.at) {
                (Some(since), Some(at)) => at < since,
                // A checkpoint has no time of its own.
                (Some(_), None) => true,
                (None, _) => false,
            };
            if other || early {
                continue;
            }
            match args.output {
                Output::Json => table::json_line(&line)?,
                Output::Text => {
                    let at = match line.at.map(|at| clock.tell(at)) {
                        Some(told) => {
                            told.day.iter().try_for_each(|day| table::out(day))?;
                            told.time
                        }
                        None => "–".repeat(clock.width()),
                    };
                    let service = line.service.as_ref().map_or("", |s| s.as_str());
                    let words = format!("{:>7} {at} {service:<12} {}", line.seq, line.words);
                    table::say_hanging(&words, clock.width() + 9)?;
                }
            }
        }
        if !options.follow {
            return Ok(Success::Done);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn verify(args: &Args, paths: &Paths) -> Result<Success, Failure> {
    if !is_there(paths)? && args.output == Output::Text {
        table::out("nothing was journaled for this deck yet")?;
        return Ok(Success::Done);
    }
    let segments = ledger::verify_journal(paths).map_err(|e| Failure::of(&e))?;
    let bad = segments.iter().find_map(|s| Some((s.problem.clone()?, s.hint.clone())));
    match args.output {
        Output::Json => {
            table::json(&serde_json::json!({ "good": bad.is_none(), "segments": segments }))?;
        }
        Output::Text => {
            for segment in &segments {
                let name = segment.file.file_name().unwrap_or_default().to_string_lossy();
                let range = match (segment.first_seq, segment.last_seq) {
                    (Some(first), Some(last)) => format!("records {first} to {last}"),
                    _ => "no records".to_owned(),
                };
                let version = segment.version.map_or_else(String::new, |v| format!(", format {v}"));
                let torn = match segment.torn_bytes {
                    0 => String::new(),
                    n => format!(", {n} bytes of a torn last record (never acted upon)"),
                };
                let state = if segment.problem.is_some() { "DAMAGED" } else { "good" };
                table::out(&format!("{state:<8} {name}: {range}{version}{torn}"))?;
            }
            if bad.is_none() {
                let records: u64 = segments.iter().map(|s| s.records).sum();
                table::out(&format!(
                    "the journal is good: {records} records in {} segments",
                    segments.len()
                ))?;
            }
        }
    }
    match bad {
        None => Ok(Success::Done),
        Some((problem, hint)) => {
            Err(Failure::other(problem).with_hint(hint.unwrap_or_else(|| {
                format!("what is before it is good; see {}", paths.journal().display())
            })))
        }
    }
}

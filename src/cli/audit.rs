//! `gpudeck audit`: who asked for what, from the disk; no controller has to run.

mod words;

use std::collections::BTreeMap;

use serde_json::Value;

use self::words::{result, target, what, word};
use super::args::{Args, AuditCommand, Output};
use super::attach::known;
use super::exit::{Failure, Success};
use super::table;
use crate::api::Timestamp;
use crate::controller::{Paths, ledger};

/// Shows or checks it.
pub fn run(args: &Args, command: Option<&AuditCommand>) -> Result<Success, Failure> {
    let id = known(args)?.id;
    let paths = Paths::of(id);
    match command {
        Some(AuditCommand::Verify) => verify(args, &paths),
        None => show(args, &paths),
    }
}

fn show(args: &Args, paths: &Paths) -> Result<Success, Failure> {
    let lines = ledger::read_audit(paths).map_err(|e| Failure::of(&e))?;
    if args.output == Output::Json {
        for line in &lines {
            table::json_line(line)?;
        }
        return Ok(Success::Done);
    }
    // An answer stands beside what was asked.
    let answers: BTreeMap<u64, &Value> =
        lines.iter().filter_map(|l| Some((l.entry.get("of")?.as_u64()?, &l.entry))).collect();
    let mut rows = Vec::new();
    for line in lines.iter().filter(|l| l.entry.get("of").is_none()) {
        let entry = &line.entry;
        let at = Timestamp(entry.get("at").and_then(Value::as_u64).unwrap_or(0));
        let who = match (word(entry, "/who/user"), word(entry, "/who/ssh_key")) {
            (user, _) if user.is_empty() => "gpudeck".to_owned(),
            (user, key) if key.is_empty() => user,
            (user, key) => format!("{user} {key}"),
        };
        rows.push(vec![
            line.seq.to_string(),
            at.to_string(),
            who,
            word(entry, "/who/ssh_from"),
            what(entry),
            word(entry, "/service"),
            target(entry),
            result(answers.get(&line.seq).copied().unwrap_or(entry)),
            word(entry, "/why"),
        ]);
    }
    let headings = ["LINE", "WHEN", "WHO", "FROM", "WHAT", "SERVICE", "TARGET", "RESULT", "WHY"];
    table::print(&headings, &rows)?;
    Ok(Success::Done)
}

fn verify(args: &Args, paths: &Paths) -> Result<Success, Failure> {
    let report = ledger::verify_audit(paths).map_err(|e| Failure::of(&e))?;
    match args.output {
        Output::Json => table::json(&report)?,
        Output::Text if report.worst().is_none() => table::out(&format!(
            "the audit trail is good: {} lines{}",
            report.lines,
            report.head.as_deref().map(|h| format!(", the last one is {h}")).unwrap_or_default()
        ))?,
        Output::Text => {}
    }
    match report.worst() {
        None => Ok(Success::Done),
        Some((line, what)) => Err(Failure::other(format!("audit trail, line {line}: {what}"))
            .with_hint(format!("lines 1 to {} are as they were written", line.saturating_sub(1)))),
    }
}

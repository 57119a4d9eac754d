//! `gpudeck audit`: who asked for what, from the disk; no controller has to run.

use std::collections::BTreeMap;

use serde_json::Value;

use super::args::{Args, AuditCommand, Output};
use super::attach::known;
use super::exit::{Failure, Success};
use super::journal::failed;
use super::table;
use crate::api::{Timestamp, text};
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

fn word(value: &Value, path: &str) -> String {
    match value.pointer(path) {
        Some(Value::String(word)) => text::clean(word, 200),
        Some(Value::Null) | None => String::new(),
        Some(other) => text::clean(&other.to_string(), 200),
    }
}

fn show(args: &Args, paths: &Paths) -> Result<Success, Failure> {
    let lines = ledger::read_audit(paths).map_err(|e| failed(&e))?;
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
        let what = match word(entry, "/what/intent") {
            none if none.is_empty() => word(entry, "/event").replace('_', " "),
            intent => intent.replace('_', " "),
        };
        rows.push(vec![
            line.seq.to_string(),
            at.to_string(),
            who,
            word(entry, "/who/ssh_from"),
            what,
            word(entry, "/service"),
            result(answers.get(&line.seq).copied().unwrap_or(entry)),
            word(entry, "/why"),
        ]);
    }
    table::print(&["LINE", "WHEN", "WHO", "FROM", "WHAT", "SERVICE", "RESULT", "WHY"], &rows)?;
    Ok(Success::Done)
}

fn result(entry: &Value) -> String {
    let refused = word(entry, "/result/refused");
    if !refused.is_empty() {
        return format!("refused: {refused}");
    }
    let release = match word(entry, "/result/release") {
        none if none.is_empty() => none,
        number => format!(" r{number}"),
    };
    let outcome = word(entry, "/result/outcome");
    if !outcome.is_empty() {
        let why = word(entry, "/result/why");
        let why = if why.is_empty() { why } else { format!(": {why}") };
        return format!("{}{release}{why}", outcome.replace('_', " ")).trim().to_owned();
    }
    match word(entry, "/result/result") {
        none if none.is_empty() => word(entry, "/result"),
        known => format!("{}{release}", known.replace('_', " ")),
    }
}

fn verify(args: &Args, paths: &Paths) -> Result<Success, Failure> {
    let report = ledger::verify_audit(paths).map_err(|e| failed(&e))?;
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

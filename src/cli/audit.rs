//! `gpudeck audit`: who asked for what, from the disk; no controller has to run.

mod words;

use std::collections::BTreeMap;

use serde_json::Value;

use self::words::{result, target, what, word};
use super::args::{Args, AuditCommand, Output};
use super::attach::known;
use super::exit::{Failure, Success};
use super::{columns, page, table};
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
    let asked = lines.iter().filter(|l| l.entry.get("of").is_none());
    let rows = asked.map(|line| {
        let answer = answers.get(&line.seq).copied().unwrap_or(&line.entry);
        Row::of(line.seq, &line.entry, answer)
    });
    let rows: Vec<Row> = rows.collect();
    if !page::is_terminal() {
        let rows: Vec<Vec<String>> = rows.iter().map(Row::whole).collect();
        table::print(&HEADINGS, &rows)?;
        return Ok(Success::Done);
    }
    let lines = short(&rows, &mut page::Clock::of_stdout());
    lines.iter().try_for_each(|line| table::say_hanging(line, BELOW.len()))?;
    Ok(Success::Done)
}

const HEADINGS: [&str; 9] =
    ["LINE", "WHEN", "WHO", "FROM", "WHAT", "SERVICE", "TARGET", "RESULT", "WHY"];

/// Before what stands below a row.
const BELOW: &str = "    ";

/// A wish and what came of it, or what has happened by itself.
struct Row {
    line: u64,
    at: Timestamp,
    who: String,
    from: String,
    what: String,
    service: String,
    target: String,
    result: String,
    why: String,
}

impl Row {
    fn of(line: u64, entry: &Value, answer: &Value) -> Self {
        let who = match (word(entry, "/who/user"), word(entry, "/who/ssh_key")) {
            (user, _) if user.is_empty() => "gpudeck".to_owned(),
            (user, key) if key.is_empty() => user,
            (user, key) => format!("{user} {key}"),
        };
        Self {
            line,
            at: Timestamp(entry.get("at").and_then(Value::as_u64).unwrap_or(0)),
            who,
            from: word(entry, "/who/ssh_from"),
            what: what(entry),
            service: word(entry, "/service"),
            target: target(entry),
            result: result(answer),
            why: word(entry, "/why"),
        }
    }

    /// Everything side by side, as under [`HEADINGS`].
    fn whole(&self) -> Vec<String> {
        let mut cells = self.cells(self.at.to_string());
        cells.extend([self.result.clone(), self.why.clone()]);
        cells
    }

    fn cells(&self, at: String) -> Vec<String> {
        let Self { who, from, what, service, target, .. } = self;
        let words = [who, from, what, service, target].map(Clone::clone);
        [self.line.to_string(), at].into_iter().chain(words).collect()
    }
}

/// For a terminal: without columns that nothing is in, the day on a line of its own, and below a row why it was asked
/// and, where that is long, what came of it.
fn short(rows: &[Row], clock: &mut page::Clock) -> Vec<String> {
    let told: Vec<page::Told> = rows.iter().map(|row| clock.tell(row.at)).collect();
    let cells = |(row, told): (&Row, &page::Told)| {
        let mut cells = row.cells(told.time.clone());
        cells.push(if row.result.chars().count() <= SHORT {
            row.result.clone()
        } else {
            String::new()
        });
        cells
    };
    let table: Vec<Vec<String>> = rows.iter().zip(&told).map(cells).collect();
    // Of an empty trail the headings are left.
    let fit = table::Fit { without_empty: !rows.is_empty(), ..table::Fit::default() };
    let headings = HEADINGS.get(..8).unwrap_or(&HEADINGS);
    let laid = columns::laid(headings, &table, Some(BOUNDLESS), fit);
    let mut laid = laid.into_iter();
    let mut out: Vec<String> = laid.next().into_iter().collect();
    for ((line, row), told) in laid.zip(rows).zip(told) {
        out.extend(told.day);
        out.push(line);
        if row.result.chars().count() > SHORT {
            out.push(format!("{BELOW}{}", row.result));
        }
        if !row.why.is_empty() {
            out.push(format!("{BELOW}{}", row.why));
        }
    }
    out
}

/// What is too wide for the terminal is broken like any other line.
const BOUNDLESS: usize = 100_000;

/// A longer result stands below its row.
const SHORT: usize = 20;

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_terminal_gets_short_rows_and_the_rest_below_them() {
        let asked = json!({ "event": "asked", "at": 0, "who": { "user": "ada" }, "service": "chat",
            "what": { "intent": "stop" }, "why": "too costly" });
        let answer = json!({ "event": "answered", "of": 1,
            "result": { "refused": "another controller holds the hosts" } });
        let by_itself = json!({ "event": "stopped", "at": 86_400_000, "service": "chat",
            "result": {} });
        let rows = [Row::of(1, &asked, &answer), Row::of(3, &by_itself, &by_itself)];
        let mut clock = page::Clock::in_zone(jiff::tz::TimeZone::UTC);
        assert_eq!(
            short(&rows, &mut clock),
            [
                "LINE  WHEN      WHO      WHAT     SERVICE",
                "1970-01-01",
                "1     00:00:00  ada      stop     chat",
                "    refused: another controller holds the hosts",
                "    too costly",
                "1970-01-02",
                "3     00:00:00  gpudeck  stopped  chat",
                "    nothing of it runs any more",
            ]
        );
        assert_eq!(rows[0].whole().len(), HEADINGS.len());
    }

    #[test]
    fn of_an_empty_trail_the_headings_are_told() {
        let mut clock = page::Clock::in_zone(jiff::tz::TimeZone::UTC);
        let told = short(&[], &mut clock);
        assert_eq!(told, ["LINE  WHEN  WHO  FROM  WHAT  SERVICE  TARGET  RESULT"]);
    }
}

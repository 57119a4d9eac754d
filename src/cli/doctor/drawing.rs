//! The checks for people, with what to do below each, and for programs.

use super::{Check, Verdict};
use crate::cli::args::{Args, Output};
use crate::cli::exit::Failure;
use crate::cli::table;

/// Prints the checks.
pub(super) fn print(args: &Args, checks: &[Check]) -> Result<(), Failure> {
    if args.output == Output::Json {
        return table::json(&checks);
    }
    let width = checks.iter().map(|c| c.what.len()).max().unwrap_or(0);
    for Check { what, verdict, found, advice } in checks {
        let mark = match verdict {
            Verdict::Good => "ok  ",
            Verdict::Note => "note",
            Verdict::Poor => "poor",
            Verdict::Bad => "BAD ",
        };
        table::out(&format!("{mark}  {what:<width$}  {found}"))?;
        if let Some(advice) = advice {
            table::out(&format!("      {:<width$}  → {advice}", ""))?;
        }
    }
    Ok(())
}

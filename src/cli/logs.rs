//! `gpudeck logs chat/0/0 -f`.

use std::time::Duration;

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{show, table};
use crate::api::{Condition, Door, PreviousLogRequest, RankId, ServiceName, Snapshot, text};

/// So many bytes from the end are asked for.
const AT_FIRST: u32 = 256 << 10;

/// Prints what a rank logged.
pub async fn run(args: &Args, rank: &str, follow: bool, lines: usize) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let snapshot = show::settle(&client).await?;
    let rank = find(&snapshot, parse(rank)?)?;
    let chunk = client.log(&rank, None, AT_FIRST).await?;
    print_end(args, &rank, &chunk.text, lines)?;
    let mut next = chunk.next_offset;
    if !follow {
        return Ok(Success::Done);
    }
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let chunk = client.log(&rank, Some(next), 64 << 10).await?;
        // Only whole lines, so that a line in the making is not torn.
        let end = chunk.text.rfind('\n').map_or(0, |i| i + 1);
        let whole = if chunk.text.len() >= 32 << 10 {
            &chunk.text
        } else {
            chunk.text.get(..end).unwrap_or("")
        };
        for line in whole.lines() {
            print(args, &rank, line)?;
        }
        next = chunk.offset + u64::try_from(whole.len()).unwrap_or(0);
    }
}

/// Prints what the start before the present one logged, which has ended; on standard error which one it is.
pub async fn previous(args: &Args, rank: &str, lines: usize) -> Result<Success, Failure> {
    let (service, replica, rank) = parse(rank)?;
    let client = attach(args).await?;
    show::settle(&client).await?;
    let wanted = PreviousLogRequest { service, replica, rank, length: AT_FIRST };
    let found = client.previous_log(&wanted).await?;
    let words = format!("{} ({}) on {} {}", found.rank, found.rank.replica, found.host, found.how);
    // Programs have the rank in each line.
    if args.output == Output::Text {
        eprintln!("{}", text::clean(&words, 300));
    }
    print_end(args, &found.rank, &found.log.text, lines)?;
    Ok(Success::Done)
}

/// Prints the last lines of it.
fn print_end(args: &Args, rank: &RankId, log: &str, lines: usize) -> Result<(), Failure> {
    let all: Vec<&str> = log.lines().collect();
    for line in all.get(all.len().saturating_sub(lines)..).unwrap_or_default() {
        print(args, rank, line)?;
    }
    Ok(())
}

/// A line as it was logged, or as a JSON object with the rank that logged it.
fn print(args: &Args, rank: &RankId, line: &str) -> Result<(), Failure> {
    let line = text::clean(line, 4_000);
    match args.output {
        Output::Text => table::out(&line),
        Output::Json => table::json_line(&serde_json::json!({ "rank": rank, "line": line })),
    }
}

/// Reads `chat/0/1`, `chat/0` or `chat`.
fn parse(wanted: &str) -> Result<(ServiceName, u32, u32), Failure> {
    let mut parts = wanted.split('/');
    let bad = || {
        Failure::other(format!("`{}` is not a rank", text::clean(wanted, 60)))
            .with_hint("write SERVICE/REPLICA/RANK, for example chat/0/0")
    };
    let service: ServiceName = parts.next().unwrap_or("").parse().map_err(|_| bad())?;
    let mut number = || match parts.next() {
        None => Ok(0),
        Some(part) => part.parse::<u32>().map_err(|_| bad()),
    };
    Ok((service, number()?, number()?))
}

/// The newest start of that replica.
fn find(
    snapshot: &Snapshot,
    (service, replica, rank): (ServiceName, u32, u32),
) -> Result<RankId, Failure> {
    let missing = |message: String| {
        Failure::other(message).code(8).with_hint("`gpudeck status` lists what runs")
    };
    let view = snapshot
        .services
        .get(&service)
        .ok_or_else(|| missing(format!("there is no service {service}")))?;
    if view.condition == Condition::Elsewhere {
        // The trouble says who holds its hosts, unless a spec has a mistake.
        let why = view.trouble.as_deref().unwrap_or("another controller holds its hosts");
        let hint = "its ranks and their logs are seen there; `gpudeck controller take-over` brings them here";
        return Err(Failure::other(format!("{service}: {why}")).code(9).with_hint(hint));
    }
    view.replicas
        .iter()
        .filter(|r| r.key().replica == replica || r.id.replica == replica)
        // As it was started is how it is shown.
        .max_by_key(|r| (r.release(), r.id.replica == replica, r.id.release, r.id.attempt))
        .and_then(|r| r.ranks.iter().find(|x| x.rank.rank == rank))
        .map(|r| r.rank.clone())
        .ok_or_else(|| {
            missing(format!("{service} has no rank {replica}/{rank} now"))
                .with_hint(
                    "`gpudeck status` shows which there are; `--previous` reads what an earlier one logged",
                )
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_elsewhere_is_not_told_as_gone() {
        let mut snapshot = crate::tui::fixture::rich();
        let view = snapshot.services.values_mut().next().unwrap();
        view.condition = Condition::Elsewhere;
        view.trouble = Some("h1 is held by bob@m2 (/d)".to_owned());
        view.replicas.clear();
        let wanted = (view.name.clone(), 0, 0);
        let failure = find(&snapshot, wanted).unwrap_err();
        let told = format!("{failure:?}");
        assert!(told.contains("held by bob@m2") && told.contains("seen there"), "{told}");
    }
}

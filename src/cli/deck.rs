//! `gpudeck deck …`, `show`, `blame` and `drift`: the deck's releases, its remote, and how the hosts
//! differ from it.

use std::collections::BTreeSet;

use super::args::{Args, DeckCommand, Output};
use super::attach::{attach, deck};
use super::exit::{Failure, Success};
use super::questions::{AtTerminal, show_again};
use super::{apply, history, table};
use crate::api::release::{DriftItem, DriftKind};
use crate::api::{Door as _, HostName, Intent, ReleaseNumber, ServiceName, text};
use crate::controller::reach::OwnReach;
use crate::controller::sharing;

/// Sends, fetches, or shows how the deck stands to its remote. Runs here, with this session's keys.
pub async fn run(args: &Args, command: &DeckCommand) -> Result<Success, Failure> {
    let (dir, spec) = deck(args)?;
    let remote = spec.git.and_then(|g| g.remote);
    let wanted = match command {
        DeckCommand::Push { remote: named }
        | DeckCommand::Fetch { remote: named }
        | DeckCommand::Status { remote: named } => named.clone().or(remote),
    };
    let fetch = matches!(command, DeckCommand::Fetch { .. });
    let push = matches!(command, DeckCommand::Push { .. });
    let reach = OwnReach::of_session(AtTerminal::there());
    let work = tokio::task::spawn_blocking(move || {
        let wanted = wanted.as_deref();
        if push {
            return sharing::push(&dir, wanted, reach).map(|s| ("sent".to_owned(), s));
        }
        if fetch {
            return sharing::fetch(&dir, wanted, reach);
        }
        sharing::status(&dir, wanted).map(|s| (String::new(), s))
    });
    let work = work.await;
    show_again();
    let (words, view) = work.map_err(|e| Failure::other(e.to_string()).unforeseen())??;
    if args.output == Output::Json {
        table::json(&view)?;
        return Ok(Success::Done);
    }
    if !words.is_empty() {
        table::out(&words)?;
    }
    match (&view.remote, &view.url) {
        (Some(remote), url) => table::out(&format!(
            "{} against {remote} ({}): {} commits to send, {} lacking here{}",
            view.branch,
            url.as_deref().unwrap_or("no address"),
            view.ahead,
            view.behind,
            if view.diverged { ": DIVERGED" } else { "" }
        ))?,
        (None, _) => table::out(&format!("{}: no remote", view.branch))?,
    }
    for file in &view.dirty {
        table::out(&format!("edited and not committed: {file}"))?;
    }
    Ok(Success::Done)
}

/// One release: what it is, who, why, how it ended, and its spec.
pub async fn show(args: &Args, number: ReleaseNumber) -> Result<Success, Failure> {
    let detail = attach(args).await?.release(number).await?;
    if args.output == Output::Json {
        table::json(&detail)?;
        return Ok(Success::Done);
    }
    let release = &detail.release;
    let mark = if detail.stable { " (served)" } else { "" };
    table::out(&format!("{} of {}{mark}", release.number, detail.service))?;
    table::out(&format!("revision  {}", release.revision.0))?;
    table::out(&format!("by        {} at {}", release.author, release.created))?;
    if let Some(reason) = &release.reason {
        table::out(&format!("reason    {reason}"))?;
    }
    table::out(&format!("outcome   {}", history::outcome_words(release.outcome.as_ref())))?;
    table::out("")?;
    for line in detail.spec.lines() {
        table::out(&text::clean(line, 2_000))?;
    }
    Ok(Success::Done)
}

/// Which release last changed each line of a service's spec.
pub async fn blame(args: &Args, service: &ServiceName) -> Result<Success, Failure> {
    let lines = attach(args).await?.blame(service).await?;
    if args.output == Output::Json {
        table::json(&lines)?;
        return Ok(Success::Done);
    }
    for line in &lines {
        let (number, author, when) = match &line.release {
            Some(r) => {
                let day: String = r.created.to_string().chars().take(10).collect();
                (r.number.to_string(), r.author.clone(), day)
            }
            None => ("–".to_owned(), "not applied".to_owned(), String::new()),
        };
        let shown = text::clean(&line.text, 2_000);
        table::out(&format!("{number:<6} {author:<14} {when:<10} {:>4} {shown}", line.line))?;
    }
    Ok(Success::Done)
}

/// How the hosts differ from what the releases say: exit code 2 if they do; 7 or 9 if nothing differs on those that
/// could be looked at, and not all could.
pub async fn drift(args: &Args, service: Option<&ServiceName>) -> Result<Success, Failure> {
    let client = attach(args).await?;
    super::show::settle(&client).await?;
    let view = client.drift(service).await?;
    let hosts = view.looked_at + view.not_seen.len();
    // What was not looked at may differ, too.
    let ended = match (view.items.is_empty(), view.not_seen.is_empty()) {
        (false, _) => Ok(Success::Changes),
        (true, true) => Ok(Success::Done),
        (true, false) => {
            let (code, next) = if view.held_elsewhere {
                (
                    9,
                    "ask its operator, or take over with `gpudeck controller take-over`; `gpudeck status` says who it is",
                )
            } else {
                (
                    7,
                    "`gpudeck hosts` says what is wrong with them, `gpudeck reconnect HOST` tries at once; then ask again",
                )
            };
            let message =
                format!("{} of {hosts} hosts could not be looked at", view.not_seen.len());
            Err(Failure::other(message).code(code).with_hint(next))
        }
    };
    if args.output == Output::Json {
        table::json(&view)?;
        return ended;
    }
    if view.items.is_empty() {
        if view.looked_at > 0 || hosts == 0 {
            let of = if view.looked_at < hosts {
                format!(" ({} of {hosts} looked at)", view.looked_at)
            } else {
                String::new()
            };
            table::out(&format!("the hosts run what the releases say{of}"))?;
        }
    } else {
        print_drift(&view.items)?;
        let hints: BTreeSet<&str> = view.items.iter().filter_map(|i| i.hint.as_deref()).collect();
        for hint in hints {
            table::out(&format!("→ {}", text::clean(hint, 300)))?;
        }
    }
    for why in &view.not_seen {
        table::out(&format!("not looked at: {}", text::clean(why, 300)))?;
    }
    ended
}

fn print_drift(items: &[DriftItem]) -> Result<(), Failure> {
    let row = |i: &DriftItem| {
        let kind = serde_json::to_value(i.kind).unwrap_or_default();
        vec![
            i.host.to_string(),
            i.rank.to_string(),
            i.rank.replica.to_string(),
            kind.as_str().unwrap_or_default().to_owned(),
            i.text.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    table::print(&["HOST", "RANK", "REPLICA", "DRIFT", ""], &rows)
}

/// Ends what runs on the hosts and no release wants, one after the other.
pub async fn end_unknown(
    args: &Args,
    service: Option<&ServiceName>,
    host: Option<&HostName>,
    yes: bool,
) -> Result<Success, Failure> {
    let client = attach(args).await?;
    super::show::settle(&client).await?;
    let view = client.drift(service).await?;
    let mut items = view.items;
    items.retain(|i| i.kind == DriftKind::Unknown && host.is_none_or(|host| i.host == *host));
    if args.output == Output::Json {
        table::json(&items)?;
    } else if items.is_empty() {
        table::out("no rank runs that no release wants, on the hosts that were looked at")?;
    } else {
        print_drift(&items)?;
    }
    for why in &view.not_seen {
        eprintln!("not looked at: {}", text::clean(why, 300));
    }
    if !items.is_empty() && apply::must_ask(args, yes) {
        apply::agree("End them?").await?;
    }
    for item in items {
        let (host, rank) = (item.host, item.rank);
        let words = format!("{rank} ({}) on {host} is ended", rank.replica);
        client.send(Intent::EndRank { host, rank, reason: None }).await?;
        if args.output == Output::Text {
            table::out(&words)?;
        }
    }
    Ok(Success::Done)
}

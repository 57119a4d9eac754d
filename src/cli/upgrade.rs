//! `gpudeck hosts upgrade`: what it would do, the upgrade itself, how far it is, and what is asked for in the middle of it.

use std::time::Duration;

use super::args::{Args, Output, UpgradeOptions};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{apply, maintenance, show, table};
use crate::api::{
    Door, Intent, ServiceLow, Snapshot, Upgrade, UpgradeEntry, UpgradeHost, UpgradePlan,
    UpgradeQuestion, UpgradeSteer, text,
};

/// Whatever of it is asked for.
pub async fn run(args: &Args, options: &UpgradeOptions) -> Result<Success, Failure> {
    if let Some(command) = &options.run {
        if options.dry_run {
            return dry_run(args, command, options).await.map_err(Failure::of_a_plan);
        }
        return begin(args, command, options).await;
    }
    let client = attach(args).await?;
    let Some(what) = steer(options) else {
        let snapshot = client.snapshot().await?;
        match (args.output, &snapshot.deck.upgrade) {
            (Output::Json, upgrade) => table::json(upgrade)?,
            (Output::Text, Some(upgrade)) => print(upgrade, &snapshot)?,
            (Output::Text, None) => table::out("no hosts were upgraded here yet")?,
        }
        return Ok(Success::Done);
    };
    show::settle(&client).await?;
    let words = match &what {
        UpgradeSteer::Pause => "no further host is begun until it is resumed",
        UpgradeSteer::Stop => "no further host is begun",
        _ => "accepted",
    };
    let reason = options.why.reason.clone();
    let reply = client.send(Intent::SteerUpgrade { what, reason }).await?;
    let words = format!("{words}; `gpudeck hosts upgrade` shows how far each is");
    maintenance::told(args, &reply, &words)
}

fn steer(options: &UpgradeOptions) -> Option<UpgradeSteer> {
    let retry = options.retry.clone().map(|host| UpgradeSteer::Retry { host });
    let skip = options.skip.clone().map(|host| UpgradeSteer::Skip { host });
    retry
        .or(skip)
        .or(options.pause.then_some(UpgradeSteer::Pause))
        .or(options.resume.then_some(UpgradeSteer::Resume))
        .or(options.stop.then_some(UpgradeSteer::Stop))
}

fn question(options: &UpgradeOptions) -> UpgradeQuestion {
    UpgradeQuestion { hosts: options.hosts.clone(), max_parallel: options.max_parallel }
}

/// Shows what it would do.
async fn dry_run(args: &Args, run: &str, options: &UpgradeOptions) -> Result<Success, Failure> {
    let client = attach(args).await?;
    show::settle(&client).await?;
    let plan = client.plan_upgrade(&question(options)).await?;
    match args.output {
        Output::Json => table::json(&plan)?,
        Output::Text => print_plan(&plan, run)?,
    }
    match plan.refusal() {
        Some(refusal) => Err(refusal.clone().into()),
        None if plan.hosts.is_empty() => Ok(Success::Done),
        None => Ok(Success::Changes),
    }
}

/// Upgrades hosts, after it was shown what that does.
async fn begin(args: &Args, run: &str, options: &UpgradeOptions) -> Result<Success, Failure> {
    let client = attach(args).await?;
    show::settle(&client).await?;
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let reply = loop {
        let mut agreed = None;
        if args.output == Output::Text {
            let plan = client.plan_upgrade(&question(options)).await?;
            print_plan(&plan, run)?;
            if apply::must_ask(args, options.yes) {
                // What is refused whatever the answer is needs no question.
                if plan.refusal().is_none() {
                    apply::agree("Go on?").await?;
                }
                agreed = Some(plan.digest());
            }
        }
        let intent = Intent::UpgradeHosts {
            command: run.to_owned(),
            hosts: options.hosts.clone(),
            max_parallel: options.max_parallel,
            timeout_ms: millis(options.timeout),
            return_ms: millis(options.return_timeout),
            reason: options.why.reason.clone(),
            agreed,
        };
        match client.send(intent).await {
            Err(error) if apply::is_other_than_seen(&error) => apply::say_changed()?,
            reply => break reply?,
        }
    };
    if options.no_wait {
        let words = "accepted; `gpudeck hosts upgrade` shows how far it is";
        return maintenance::told(args, &reply, words);
    }
    let ended = |snapshot: &Snapshot| {
        let upgrade = snapshot.deck.upgrade.clone().filter(|u| u.ended.is_some())?;
        Some((upgrade, snapshot.clone()))
    };
    let Some((upgrade, snapshot)) = maintenance::wait(&client, None, ended).await? else {
        return Ok(Success::TimeIsUp);
    };
    match args.output {
        Output::Json => table::json(&upgrade)?,
        Output::Text => print(&upgrade, &snapshot)?,
    }
    let well = upgrade.hosts.iter().all(|h| h.state == UpgradeHost::Done);
    Ok(if well { Success::Done } else { Success::TakenBack })
}

/// How far each host is.
fn print(upgrade: &Upgrade, snapshot: &Snapshot) -> Result<(), Failure> {
    let steered = [("paused", &upgrade.paused), ("stopped", &upgrade.stopped)];
    for (how, steered) in steered {
        let Some(steered) = steered else { continue };
        let reason = steered.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        let words = format!("{how} by {} since {}{reason}", steered.by, steered.since);
        table::say(&text::clean(&words, 300))?;
    }
    let rows = upgrade.hosts.iter().map(|entry| {
        let mut notes: Vec<String> = entry.state.why().into_iter().collect();
        match &entry.state {
            UpgradeHost::Failed { .. } => {
                notes.push(format!("`gpudeck hosts upgrade --retry {}`", entry.host));
            }
            UpgradeHost::Returning { said, .. } => notes.push(said.clone()),
            _ => {}
        }
        notes.extend(stays_closed(entry, snapshot));
        if entry.retries > 0 {
            notes.push(format!("tried {} times", u64::from(entry.retries) + 1));
        }
        vec![entry.host.to_string(), entry.state.word().to_owned(), notes.join("; ")]
    });
    table::print(&["HOST", "UPGRADE", ""], &rows.collect::<Vec<_>>())
}

/// That a host which was not upgraded gets nothing new all the same, and what opens it.
fn stays_closed(entry: &UpgradeEntry, snapshot: &Snapshot) -> Option<String> {
    let is_left = matches!(entry.state, UpgradeHost::Failed { .. } | UpgradeHost::Skipped { .. });
    let host = snapshot.hosts.get(&entry.host).filter(|_| is_left)?;
    host.maintenance.host_cordon()?;
    Some(format!("stays cordoned until `gpudeck uncordon {}`", entry.host))
}

/// What it would do, for people.
fn print_plan(plan: &UpgradePlan, run: &str) -> Result<(), Failure> {
    table::say(&format!(
        "{}, at most {} at a time: each is drained, `{}` is run there, and it comes back",
        table::plural(plan.hosts.len() as u64, "host"),
        plan.max_parallel,
        text::clean(run, 200)
    ))?;
    let mut batch = 0;
    for host in &plan.hosts {
        if let Some(refused) = &host.refused {
            table::say(&format!("{}: REFUSED: {}", host.host, refused.message))?;
            if let Some(hint) = &refused.hint {
                table::say(&format!("  → {hint}"))?;
            }
            continue;
        }
        if host.batch != batch {
            batch = host.batch;
            let after = host.after.as_deref().map(|why| format!(", after the last: {why}"));
            table::say(&format!("batch {batch}{}", after.unwrap_or_default()))?;
        }
        maintenance::print(&host.drain, &[])?;
        for low in &host.capacity {
            table::say(&format!("  {}", capacity(low)))?;
        }
    }
    for low in &plan.lowest {
        table::say(&format!("lowest capacity on the way: {}", capacity(low)))?;
    }
    for warning in &plan.warnings {
        table::say(&format!("! {warning}"))?;
    }
    Ok(())
}

fn capacity(low: &ServiceLow) -> String {
    format!("{}: {} of {} ready, floor {}", low.service, low.lowest_ready, low.wanted, low.floor)
}

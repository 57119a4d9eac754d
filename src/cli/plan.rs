//! `gpudeck plan SERVICE`.

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::table;
use crate::api::{Door, PlanView, ServiceName, lowest_text, ready_text};

/// Shows what an apply would do.
pub async fn run(args: &Args, service: &ServiceName) -> Result<Success, Failure> {
    let client = attach(args).await?;
    super::show::settle(&client).await?;
    let plan = client.plan(service).await?;
    match args.output {
        Output::Json => table::json(&plan)?,
        Output::Text => print(&plan)?,
    }
    Ok(if plan.nothing_to_do { Success::Done } else { Success::Changes })
}

/// The plan for people.
pub fn print(plan: &PlanView) -> Result<(), Failure> {
    if let Some(behind) = &plan.behind {
        table::say(&format!("{}: {}", plan.service, behind.text()))?;
    }
    if plan.nothing_to_do {
        return table::say(&format!("{}: nothing to do, {} is served", plan.service, served(plan)));
    }
    table::say(&format!("{}: {} → {}", plan.service, served(plan), plan.to))?;
    if plan.diff.trim().is_empty() {
        table::say("  (the spec is the same)")?;
    }
    for line in plan.diff.lines() {
        table::say_hanging(&format!("  {line}"), 6)?;
    }
    for line in &plan.model {
        table::say(&format!("model  {line}"))?;
    }
    table::out("placement")?;
    for replica in &plan.replicas {
        for (rank, planned) in replica.ranks.iter().enumerate() {
            let room = replica.room(planned).map(|room| format!(", {room}")).unwrap_or_default();
            table::say(&format!(
                "  {}/{}/{rank}  {}  {}{}  needs {} each{room}",
                plan.service,
                replica.replica,
                planned.host,
                planned.devices_text,
                replica.divided(),
                planned.memory_per_device,
            ))?;
        }
    }
    for reason in &plan.reasons {
        table::say(&format!("  · {reason}"))?;
    }
    steps(plan)?;
    let forecast = &plan.forecast;
    let lowest = lowest_text(forecast.lowest_ready, forecast.lowest_serving());
    table::say(&format!("lowest capacity on the way: {lowest}, floor {}", forecast.floor))?;
    for warning in &plan.warnings {
        table::say(&format!("! {warning}"))?;
    }
    Ok(())
}

/// Every step with its starts and stops, capacity, time and gate.
fn steps(plan: &PlanView) -> Result<(), Failure> {
    let steps = table::plural(plan.steps.len() as u64, "step");
    table::say(&format!("journey: {steps}, {}", plan.total.text()))?;
    for (index, step) in (1..).zip(&plan.steps) {
        table::say(&format!("  {index} {:<24} {}", step.title, step.time.text()))?;
        for entry in &step.moves {
            table::say(&format!(
                "      {}: {} → {} ready",
                entry.text(),
                entry.how,
                entry.ready_after
            ))?;
        }
        if let Some(gate) = &step.gate {
            table::say(&format!("      gate: {gate}"))?;
        }
        // The most that one replica was ever seen to generate, times those that serve.
        let tokens = |rate: Option<f64>| {
            rate.map(|r| format!(", seen at most {r:.0} tok/s")).unwrap_or_default()
        };
        let mark = if step.lowest { " ◀ lowest point" } else { "" };
        table::say(&format!(
            "      then {}{}, {} % of the traffic new (lowest {}{}{mark})",
            ready_text(step.ready_after, step.idle_after),
            tokens(step.tokens_per_s_after),
            step.new_weight_percent,
            lowest_text(step.lowest_ready, step.lowest_serving),
            tokens(step.tokens_per_s_lowest),
        ))?;
    }
    for borrow in &plan.borrows {
        table::say(&format!("  borrowed: {}", borrow.text()))?;
    }
    for unknown in &plan.total.unknown {
        table::say(&format!("  time not known: {unknown}"))?;
    }
    Ok(())
}

fn served(plan: &PlanView) -> String {
    plan.from.map_or_else(|| "nothing".to_owned(), |r| r.to_string())
}

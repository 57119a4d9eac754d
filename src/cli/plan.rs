//! `gpudeck plan SERVICE`.

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::table;
use crate::api::{Door, PlanView, ServiceName};

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
    if plan.nothing_to_do {
        return table::out(&format!("{}: nothing to do, {} is served", plan.service, served(plan)));
    }
    table::out(&format!("{}: {} → {}", plan.service, served(plan), plan.to))?;
    for line in plan.diff.lines() {
        table::out(&format!("  {line}"))?;
    }
    for line in &plan.model {
        table::out(&format!("model  {line}"))?;
    }
    table::out("placement")?;
    for replica in &plan.replicas {
        for (rank, planned) in replica.ranks.iter().enumerate() {
            let free = planned.free_per_device.map(|f| format!(", {f} free")).unwrap_or_default();
            table::out(&format!(
                "  {}/{}/{rank}  {}  {}  needs {} each{free}",
                plan.service,
                replica.replica,
                planned.host,
                planned.devices_text,
                planned.memory_per_device,
            ))?;
        }
    }
    for reason in &plan.reasons {
        table::out(&format!("  · {reason}"))?;
    }
    table::out("journey")?;
    let list = |ids: &[crate::api::ReplicaId]| {
        ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    for stage in &plan.forecast.stages {
        let mut line = format!("  {:<22}", stage.title);
        if !stage.starts.is_empty() {
            line.push_str(&format!(" start {}", list(&stage.starts)));
        }
        if !stage.stops.is_empty() {
            line.push_str(&format!(" stop {}", list(&stage.stops)));
        }
        line.push_str(&format!(
            "  → {} ready (lowest {}), {} % new",
            stage.ready_after, stage.lowest_ready, stage.new_weight_percent
        ));
        table::out(&line)?;
    }
    table::out(&format!(
        "lowest capacity on the way: {} ready, floor {}",
        plan.forecast.lowest_ready, plan.forecast.floor
    ))?;
    for warning in &plan.warnings {
        table::out(&format!("! {warning}"))?;
    }
    Ok(())
}

fn served(plan: &PlanView) -> String {
    plan.from.map_or_else(|| "nothing".to_owned(), |r| r.to_string())
}

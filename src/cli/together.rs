//! `gpudeck apply A B …`: several services in one rollout.

use super::args::{Args, BeginOptions, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::{apply, maintenance, plan, show, table};
use crate::api::text::clean;
use crate::api::{Door as _, Group, Intent, PLAN_CHANGED, PlanView, ServiceName, Snapshot};

/// Shows what rolling them out together would do: the plan of each, in their order, in the world that those before it
/// leave. Nothing is touched.
pub async fn plan(args: &Args, services: &[ServiceName]) -> Result<Success, Failure> {
    let client = attach(args).await?;
    show::settle(&client).await?;
    let plans = client.plan_together(services).await?;
    match args.output {
        Output::Json => table::json(&plans)?,
        Output::Text => plans.iter().try_for_each(plan::print)?,
    }
    let nothing = plans.iter().all(|plan| plan.nothing_to_do);
    Ok(if nothing { Success::Done } else { Success::Changes })
}

/// Rolls them out. Every plan is made first, in their order: what cannot be planned is refused before anything is
/// touched.
pub async fn apply(
    args: &Args,
    services: &[ServiceName],
    atomic: bool,
    options: &BeginOptions,
) -> Result<Success, Failure> {
    let client = attach(args).await?;
    show::settle(&client).await?;
    let reply = loop {
        let plans = client.plan_together(services).await?;
        for planned in plans.iter().filter(|_| args.output == Output::Text) {
            plan::print(planned)?;
        }
        let asks = apply::must_ask(args, options.yes);
        if asks {
            apply::agree("Go on with all of them?").await?;
        }
        let intent = Intent::ApplyTogether {
            services: services.to_vec(),
            atomic,
            reason: options.reason.clone(),
            accept_outage: options.accept_outage,
            agreed: asks.then(|| PlanView::digest_together(&plans)),
        };
        match client.send(intent).await {
            Err(error) if asks && error.message == PLAN_CHANGED => apply::say_changed()?,
            reply => break reply?,
        }
    };
    if !options.wait {
        return maintenance::told(args, &reply, "accepted; `gpudeck status` shows how far it is");
    }
    let ended = |snapshot: &Snapshot| snapshot.deck.group.clone().filter(|g| g.ended.is_some());
    let Some(group) = maintenance::wait(&client, options.timeout, ended).await? else {
        return maintenance::time_is_up(args, "the rollouts go on (`gpudeck status` shows them)");
    };
    match args.output {
        Output::Json => table::json(&group)?,
        Output::Text => print(&group)?,
    }
    let good = group.services.iter().all(|e| e.state.is_good());
    Ok(if good { Success::Done } else { Success::TakenBack })
}

/// How far each service is.
pub fn print(group: &Group) -> Result<(), Failure> {
    if let Some(paused) = &group.paused {
        let reason = paused.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
        let words = format!("paused by {} since {}{reason}", paused.by, paused.since);
        table::say(&clean(&words, 300))?;
    }
    if let Some(ended) = &group.ended {
        let words = format!("several services, as {} asked: over since {ended}", group.by);
        table::say(&clean(&words, 300))?;
    }
    if let Some(words) = group.abort_words() {
        table::say(&clean(&words, 300))?;
    }
    let rows: Vec<Vec<String>> = group
        .services
        .iter()
        .map(|entry| {
            let (word, why) = entry.state.words();
            vec![entry.service.to_string(), word.to_owned(), why.to_owned()]
        })
        .collect();
    table::print(&["SERVICE", "TOGETHER", ""], &rows)
}

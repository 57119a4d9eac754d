//! `gpudeck plan` about placement alone: all services, `--without`, `--add`, `--defrag`; and `gpudeck move`.

use std::path::Path;

use super::args::{Args, MoveOptions, Output, PlanOptions};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::place::gpus;
use super::{apply, place, table};
use crate::api::{
    Answer, Door, Intent, Move, PlaceCheck, Rank, ReplicaTo, ServiceName, WhatIf, WhatIfView,
};

/// Answers the question and shows the answer. Nothing is touched.
pub async fn plan(
    args: &Args,
    services: &[ServiceName],
    options: &PlanOptions,
) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let snapshot = super::show::settle(&client).await?;
    let asked = |name: &ServiceName| services.is_empty() || services.contains(name);
    let edited = snapshot.services.values().filter(|s| s.pending_change && s.stable.is_some());
    let waiting = edited.map(|s| &s.name).filter(|name| asked(name));
    let question = WhatIf {
        services: services.to_vec(),
        without: options.without.clone(),
        add: options.add.clone(),
        defrag: options.defrag,
        to: None,
        explain: options.explain,
    };
    let view = client.what_if(&question).await?;
    if let Some(file) = &options.world {
        write_world(&view, file)?;
    }
    match args.output {
        Output::Json => table::json(&view)?,
        Output::Text => {
            print(&view, &question)?;
            for name in waiting {
                let words = format!("{name}: an edited spec waits: `gpudeck plan {name}` shows it");
                table::out(&words)?;
            }
        }
    }
    code(&view)
}

/// 0: everything stays as it is; 2: something would change; 1: something has no place.
fn code(view: &WhatIfView) -> Result<Success, Failure> {
    let answer = &view.answer;
    if answer.placed < answer.wanted {
        let missing = answer.wanted - answer.placed;
        let why = format!("{missing} of {} replicas have no place", answer.wanted);
        return Err(Failure::other(why).with_hint("the table says why; --explain names every host"));
    }
    if let Some(hole) = view.hole.as_ref().filter(|h| h.at.is_none()) {
        let why = format!("no moves free {} GPUs together", hole.gpus);
        return Err(Failure::other(why).with_hint("ask for fewer: --defrag=N"));
    }
    let stays = |r: &crate::api::ReplicaAnswer| r.state == "stays";
    let still = answer.services.iter().flat_map(|s| &s.replicas).all(stays);
    Ok(if still && answer.moves.is_empty() { Success::Done } else { Success::Changes })
}

/// The world as `gpudeck place` takes it.
fn write_world(view: &WhatIfView, file: &Path) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(&view.world).map_err(|e| Failure::other(e.to_string()))?;
    if file.as_os_str() == "-" {
        return table::out(&text);
    }
    std::fs::write(file, text + "\n")
        .map_err(|e| Failure::other(format!("{}: {e}", file.display())))
}

fn print(view: &WhatIfView, question: &WhatIf) -> Result<(), Failure> {
    for host in &question.without {
        table::out(&format!("what if {host} were lost"))?;
    }
    for new in &question.add {
        table::out(&format!(
            "what if there were also {} with {} {}",
            table::plural(u64::from(new.hosts), "host"),
            new.gpus,
            new.model
        ))?;
    }
    let mut shown = view.answer.clone();
    if !question.explain {
        for service in &mut shown.services {
            service.replicas.retain(|r| r.state != "stays");
        }
    }
    place::print_replicas(&shown)?;
    moves(&view.answer)?;
    if question.explain {
        place::print_rejected(&view.answer)?;
    }
    if let Some(hole) = &view.hole {
        table::out(&match &hole.at {
            None => format!("no moves free {} GPUs together", hole.gpus),
            Some(at) => format!(
                "{} GPUs together on {}: {} restarted, {} to copy",
                hole.gpus,
                rank(at),
                table::plural(u64::from(hole.restarts), "replica"),
                hole.copied
            ),
        })?;
    }
    for (service, why) in &view.left_out {
        table::out(&format!("! {service} is not in it: {why}"))?;
    }
    table::out("")?;
    place::print_levels(&view.answer)?;
    table::out(&format!(
        "largest gang that could still be placed: {} GPUs now, {} then",
        view.largest_gang_before, view.answer.largest_gang
    ))
}

fn moves(answer: &Answer) -> Result<(), Failure> {
    for moved in &answer.moves {
        table::out(&format!("  {}", one_move(answer, moved)))?;
    }
    Ok(())
}

/// `chat/0: h1 [0-3] → h2 [0-3], 40.0 GiB to copy`.
fn one_move(answer: &Answer, moved: &Move) -> String {
    let on = |ranks: &[Rank]| ranks.iter().map(rank).collect::<Vec<_>>().join(" + ");
    let to = if moved.to.is_empty() { "nowhere".to_owned() } else { on(&moved.to) };
    let copied: u64 = answer
        .copies
        .iter()
        .filter(|c| c.service == moved.service && moved.to.iter().any(|r| r.host == c.host))
        .map(|c| c.bytes.0)
        .sum();
    let copied = match copied {
        0 => String::new(),
        n => format!(", {} to copy", crate::api::Bytes(n)),
    };
    format!("{}/{}: {} → {to}{copied}", moved.service, moved.replica, on(&moved.from))
}

fn rank(rank: &Rank) -> String {
    format!("{} [{}]", rank.host, gpus(&rank.gpus))
}

/// Moves one replica, after saying what speaks against it.
pub async fn move_replica(args: &Args, options: &MoveOptions) -> Result<Success, Failure> {
    let client = attach(args).await?;
    super::show::settle(&client).await?;
    let to = ReplicaTo {
        service: options.service.clone(),
        replica: options.replica,
        host: options.host.clone(),
        gpus: options.gpus.0.clone(),
    };
    let asks = apply::must_ask(args, options.yes);
    if options.dry_run || asks {
        let question = WhatIf { to: Some(to.clone()), ..WhatIf::default() };
        let view = client.what_if(&question).await?;
        let check = view.check.unwrap_or_default();
        match args.output {
            Output::Json => table::json(&check)?,
            Output::Text => speaks_against(&check)?,
        }
        if let Some(violated) = check.violated {
            let name = format!("{}/{}", to.service, to.replica);
            return Err(Failure {
                code: 6,
                message: format!("{name} cannot be moved to {}: {violated}", to.host),
                hint: None,
            });
        }
        if options.dry_run {
            return Ok(Success::Changes);
        }
        if !apply::ask("Move it?")? {
            return Ok(Success::Done);
        }
    }
    let ReplicaTo { service, replica, host, gpus } = to;
    let reason = options.reason.clone();
    let reply = client.send(Intent::Move { service, replica, host, gpus, reason }).await?;
    match args.output {
        Output::Json => table::json_line(&reply)?,
        Output::Text => table::out(&format!(
            "{}/{}: moving to {}; `gpudeck status {0}` shows it",
            options.service, options.replica, options.host
        ))?,
    }
    Ok(Success::Done)
}

fn speaks_against(check: &PlaceCheck) -> Result<(), Failure> {
    for worse in &check.worse {
        table::out(&format!("  worse   {worse}"))?;
    }
    for better in &check.better {
        table::out(&format!("  better  {better}"))?;
    }
    if check.worse.is_empty() && check.better.is_empty() && check.violated.is_none() {
        table::out("  as good as where it is")?;
    }
    Ok(())
}

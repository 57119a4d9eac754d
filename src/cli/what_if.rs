//! `gpudeck plan` about placement alone: all services, `--without`, `--add`, `--defrag`; and `gpudeck move`.

use std::path::Path;

use super::args::{Args, MoveOptions, Output, PlanOptions};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::place::gpus;
use super::{apply, place, table};
use crate::api::{
    Bytes, Door, Hole, Intent, Level, PlaceCheck, Rank, ReplicaTo, ServiceName, WhatIf, WhatIfView,
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
    let waiting: Vec<_> = edited.filter(|s| asked(&s.name)).collect();
    let waits = !waiting.is_empty();
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
    // Where the world goes to standard output it is all that goes there: it is read by `gpudeck place -`.
    let piped = options.world.as_ref().is_some_and(|file| file.as_os_str() == "-");
    match args.output {
        _ if piped => {}
        Output::Json => table::json(&view)?,
        Output::Text => {
            print(&view, &question)?;
            for service in waiting {
                let name = &service.name;
                let what = match service.taken_back {
                    Some(release) => {
                        format!("the spec in the deck is that of {release}, taken back")
                    }
                    None => "an edited spec waits".to_owned(),
                };
                table::say(&format!("{name}: {what}: `gpudeck plan {name}` shows it"))?;
            }
        }
    }
    code(&view, waits)
}

/// 0: everything stays as it is; 2: something would change, or an edited spec waits (`waits`); 1: something has no place,
/// or cannot be read.
fn code(view: &WhatIfView, waits: bool) -> Result<Success, Failure> {
    let answer = &view.answer;
    if answer.placed < answer.wanted {
        let missing = answer.wanted - answer.placed;
        let why = format!("{missing} of {} replicas have no place", answer.wanted);
        return Err(Failure::other(why).with_hint("the table says why; --explain names every host"));
    }
    if let Some(hole) = view.hole.as_ref().filter(|h| h.at.is_none()) {
        let why = format!("no moves free {}", together(hole));
        let hint = match hole.gpus {
            1 => "`gpudeck plan --explain` says what holds them",
            _ => "ask for fewer: --defrag=N",
        };
        return Err(Failure::other(why).with_hint(hint));
    }
    if let Some(service) = view.mistaken.first() {
        let why = view.left_out.get(service).map(String::as_str).unwrap_or_default();
        return Err(Failure::other(format!("{service} is not in it: {why}"))
            .with_hint(format!("`gpudeck plan {service}` says more")));
    }
    let stays = |r: &crate::api::ReplicaAnswer| r.state == "stays";
    let still = answer.services.iter().flat_map(|s| &s.replicas).all(stays);
    Ok(if still && answer.moves.is_empty() && !waits { Success::Done } else { Success::Changes })
}

/// The world as `gpudeck place` takes it.
fn write_world(view: &WhatIfView, file: &Path) -> Result<(), Failure> {
    let mut world = view.world.clone();
    // The hole is a service there: the file gives this answer again.
    world.services.extend(view.hole.as_ref().and_then(|h| h.stand_in.clone()));
    let text = serde_json::to_string_pretty(&world)
        .map_err(|e| Failure::other(e.to_string()).unforeseen())?;
    if file.as_os_str() == "-" {
        return table::out(&text);
    }
    std::fs::write(file, text + "\n").map_err(|e| {
        Failure::other(format!("{}: {e}", file.display()))
            .with_hint("name a file that you may write, or `-` for standard output")
    })
}

fn print(view: &WhatIfView, question: &WhatIf) -> Result<(), Failure> {
    for host in &question.without {
        table::say(&format!("what if {host} were lost"))?;
    }
    for new in &question.add {
        table::say(&format!(
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
    place::print_moves(&view.answer)?;
    if let Some(away) = place::away(&view.world) {
        table::say(&away)?;
    }
    place::unread(&view.world).iter().try_for_each(|line| table::say(line))?;
    if question.explain {
        place::print_rejected(&view.answer)?;
    }
    if let Some(hole) = &view.hole {
        table::say(&match &hole.at {
            None => format!("no moves free {}", together(hole)),
            Some(at) => format!(
                "{} on {}: {} restarted, {} to copy",
                together(hole),
                rank(at),
                table::plural(u64::from(hole.restarts), "replica"),
                hole.copied
            ),
        })?;
    }
    for (service, why) in &view.left_out {
        table::say(&format!("! {service} is not in it: {why}"))?;
    }
    table::out("")?;
    table::print(
        &["LEVEL", "NOW", "THEN", "", ""],
        &changes(&view.before, &view.answer.objective),
    )?;
    table::say(&format!(
        "largest gang that could still be placed: {} now, {} then",
        table::plural(view.largest_gang_before, "GPU"),
        view.answer.largest_gang
    ))
}

/// The GPUs of a hole.
fn together(hole: &Hole) -> String {
    match hole.gpus {
        1 => "1 GPU".to_owned(),
        n => format!("{n} GPUs together"),
    }
}

/// What each level is worth now and then; what becomes worse is marked.
fn changes(before: &[Level], then: &[Level]) -> Vec<Vec<String>> {
    let value = |level: &Level| match &*level.name {
        "weights" => Bytes(level.value.unsigned_abs()).to_string(),
        _ => level.value.to_string(),
    };
    then.iter()
        .map(|level| {
            let old = before.iter().find(|l| l.name == level.name);
            let worse = old.is_some_and(|old| match &*level.sense {
                "max" => level.value < old.value,
                _ => level.value > old.value,
            });
            let unit = if level.name == "weights" { "to copy" } else { &*level.unit };
            vec![
                level.name.to_string(),
                old.map_or_else(|| "-".to_owned(), value),
                value(level),
                unit.to_owned(),
                if worse { "WORSE".to_owned() } else { String::new() },
            ]
        })
        .collect()
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
            Output::Text => {
                let (name, replica) = (&to.service, to.replica);
                table::say(&format!("{name}/{replica} → {} [{}]", to.host, gpus(&to.gpus)))?;
                speaks_against(&check)?;
            }
        }
        if let Some(violated) = check.violated {
            let name = format!("{}/{}", to.service, to.replica);
            let message = format!("{name} cannot be moved to {}: {violated}", to.host);
            return Err(Failure::other(message).code(6).with_hint(
                "choose other GPUs: `gpudeck plan --explain` says of every host why not",
            ));
        }
        if options.dry_run {
            if args.output == Output::Text {
                table::out(
                    "  a successor starts there, takes over when it has generated a token, and the \
                     replica is drained\nnothing was done: without --dry-run it is moved",
                )?;
            }
            return Ok(Success::Changes);
        }
        apply::agree("Move it?").await?;
    }
    let ReplicaTo { service, replica, host, gpus } = to;
    let reason = options.reason.clone();
    let reply = client.send(Intent::Move { service, replica, host, gpus, reason }).await?;
    match args.output {
        Output::Json => table::json_line(&reply)?,
        Output::Text => table::say(&format!(
            "{}/{}: moving to {}; `gpudeck status {0}` shows it",
            options.service, options.replica, options.host
        ))?,
    }
    Ok(Success::Done)
}

fn speaks_against(check: &PlaceCheck) -> Result<(), Failure> {
    for worse in &check.worse {
        table::say(&format!("  worse   {worse}"))?;
    }
    for better in &check.better {
        table::say(&format!("  better  {better}"))?;
    }
    if check.worse.is_empty() && check.better.is_empty() && check.violated.is_none() {
        table::out("  as good as where it is")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_worse_is_marked() {
        let level = |name: &'static str, sense: &'static str, value: i64| Level {
            name: name.into(),
            unit: "of them".into(),
            sense: sense.into(),
            value,
            bound: value,
            gap: 0.0,
            proven: true,
            by_priority: Vec::new(),
        };
        let before = [
            level("domains", "min", 0),
            level("weights", "min", 0),
            level("fragmentation", "max", 2),
        ];
        let then = [
            level("domains", "min", 1),
            level("weights", "min", 0),
            level("fragmentation", "max", 8),
        ];
        let rows = changes(&before, &then);
        assert_eq!(rows[0], ["domains", "0", "1", "of them", "WORSE"]);
        assert_eq!(rows[1][4], "");
        assert_eq!(rows[2][1..3], ["2", "8"]);
        assert_eq!(rows[2][4], "");
    }
}

//! `gpudeck cordon`, `uncordon` and `drain`.

use std::collections::BTreeSet;
use std::time::Duration;

use super::args::{Args, DrainOptions, Output, Why};
use super::attach::attach;
use super::events::EventLines;
use super::exit::{Failure, Success};
use super::{apply, show, table};
use crate::api::{
    ApiError, Client, Door, DrainPlan, ErrorKind, EventLine, HostName, Intent, IntentReply,
    ServiceName, Snapshot, time,
};

/// A host, or one GPU of it: `node1`, `node1/3`.
fn target(text: &str) -> Result<(HostName, Option<u32>), Failure> {
    let wrong = || {
        Failure::from(ApiError {
            kind: ErrorKind::Invalid,
            message: format!("`{text}` is no host and no GPU of one"),
            hint: Some("write HOST or HOST/GPU, for example node1/3".to_owned()),
        })
    };
    let (host, gpu) = match text.split_once('/') {
        Some((host, gpu)) => (host, Some(gpu.parse().map_err(|_| wrong())?)),
        None => (text, None),
    };
    Ok((host.parse().map_err(|_| wrong())?, gpu))
}

/// No new ranks there.
pub async fn cordon(args: &Args, text: &str, reason: Option<&str>) -> Result<Success, Failure> {
    let (host, gpu) = target(text)?;
    let client = attach(args).await?;
    show::settle(&client).await?;
    let reply =
        client.send(Intent::Cordon { host, gpu, reason: reason.map(str::to_owned) }).await?;
    let words = format!("{text} is cordoned: no new ranks; what runs there goes on");
    told(args, &reply, &words)?;
    if let (IntentReply::CordonedBut { comes }, Output::Text) = (&reply, args.output) {
        for comes in comes {
            table::say(&format!(
                "▲ planned before, and still to come there: {comes}; `gpudeck rollout pause` holds it, `abort` takes it back"
            ))?;
        }
    }
    Ok(Success::Done)
}

/// New ranks are welcome again.
pub async fn uncordon(args: &Args, text: &str, why: &Why) -> Result<Success, Failure> {
    let (host, gpu) = target(text)?;
    let client = attach(args).await?;
    show::settle(&client).await?;
    let reply = client.send(Intent::Uncordon { host, gpu, reason: why.reason.clone() }).await?;
    told(args, &reply, &format!("{text} is not cordoned any more"))
}

/// Hosts that are away are tried at once.
pub async fn reconnect(args: &Args, hosts: &[HostName]) -> Result<Success, Failure> {
    let client = attach(args).await?;
    for host in hosts {
        let reply = client.send(Intent::Reconnect { host: host.clone() }).await?;
        told(args, &reply, &format!("{host} is tried now"))?;
    }
    Ok(Success::Done)
}

pub(super) fn told(args: &Args, reply: &IntentReply, words: &str) -> Result<Success, Failure> {
    match (args.output, reply) {
        (Output::Json, reply) => table::json_line(reply)?,
        (Output::Text, IntentReply::NothingToDo) => table::out("nothing to do")?,
        (Output::Text, _) => table::out(words)?,
    }
    Ok(Success::Done)
}

/// Moves away what runs on a host.
pub async fn drain(
    args: &Args,
    host: &HostName,
    options: &DrainOptions,
) -> Result<Success, Failure> {
    let client = attach(args).await?;
    show::settle(&client).await?;
    if options.dry_run {
        let plan = client.plan_drain(host).await?;
        let there = on_host(&client.snapshot().await?, host);
        match args.output {
            Output::Json => table::json(&plan)?,
            Output::Text => print(&plan, &there)?,
        }
        let nothing = plan.moves.is_empty() && plan.out.is_empty() && there.is_empty();
        return Ok(if nothing { Success::Done } else { Success::Changes });
    }
    let (reply, mut news) = loop {
        let plan = client.plan_drain(host).await?;
        let snapshot = client.snapshot().await?;
        if args.output == Output::Text {
            print(&plan, &on_host(&snapshot, host))?;
        }
        let news = News::of_drain(&plan, &snapshot);
        let mut agreed = None;
        if apply::must_ask(args, options.yes) {
            apply::agree("Go on?").await?;
            agreed = Some(plan.digest());
        }
        let intent = Intent::Drain { host: host.clone(), reason: options.reason.clone(), agreed };
        match client.send(intent).await {
            Err(error) if apply::is_other_than_seen(&error) => apply::say_changed()?,
            reply => break (reply?, news),
        }
    };
    if args.output == Output::Json && !options.wait {
        table::json_line(&reply)?;
    }
    if !options.wait {
        return Ok(Success::Done);
    }
    let mut lines = EventLines::new(args);
    let ended = |snapshot: &Snapshot| {
        for event in news.since_then(snapshot) {
            // Whoever reads nothing any more is told so by what comes at the end.
            let _ = lines.show(&event);
        }
        // One that has left the deck is not shown: what it had is elsewhere then, or not yet.
        let Some(view) = snapshot.hosts.get(host) else {
            return on_host(snapshot, host).is_empty().then_some(Ok(()));
        };
        match view.maintenance.drain.clone() {
            None => Some(Err("it was uncordoned meanwhile".to_owned())),
            Some(drain) => {
                drain.ended?;
                Some(drain.trouble.map_or(Ok(()), Err))
            }
        }
    };
    let Some(result) = wait(&client, options.timeout, ended).await? else {
        return time_is_up(args, "the drain goes on (`gpudeck hosts` shows it)");
    };
    if args.output == Output::Json {
        let trouble = result.as_ref().err();
        table::json_line(
            &serde_json::json!({ "host": host, "drained": result.is_ok(), "trouble": trouble }),
        )?;
    }
    match result {
        Ok(()) => {
            if args.output == Output::Text {
                table::out(&format!("{host} is drained"))?;
            }
            Ok(Success::Done)
        }
        Err(why) => {
            if args.output == Output::Text {
                table::say(&format!("{host} could not be drained: {why}"))?;
            }
            Ok(Success::TakenBack)
        }
    }
}

/// The replicas with a rank on a host, as `chat r12-0`.
pub(super) fn on_host(snapshot: &Snapshot, host: &HostName) -> Vec<String> {
    let replicas = snapshot.services.iter().flat_map(|(service, view)| {
        let there = view.replicas.iter().filter(|r| r.ranks.iter().any(|rank| rank.host == *host));
        there.map(move |replica| format!("{service} {}", replica.id))
    });
    replicas.collect()
}

/// What a drain does; `leaving`: what is there and on its way already.
pub(super) fn print(plan: &DrainPlan, leaving: &[String]) -> Result<(), Failure> {
    if plan.moves.is_empty() && plan.out.is_empty() {
        return match leaving {
            [] => table::say(&format!("{}: nothing runs there", plan.host)),
            leaving => table::say(&format!(
                "{}: {} there, and leaving it already",
                plan.host,
                leaving.join(", ")
            )),
        };
    }
    if !plan.moves.is_empty() {
        table::say(&format!(
            "{}: {} replica{} away, each ready elsewhere before it is drained here",
            plan.host,
            plan.moves.len(),
            if plan.moves.len() == 1 { " moves" } else { "s move" }
        ))?;
    }
    let places = |places: &[crate::api::PlanPlace]| {
        let texts: Vec<String> =
            places.iter().map(|p| format!("{} {}", p.host, p.devices_text)).collect();
        texts.join(" + ")
    };
    for entry in &plan.moves {
        let load = entry.load_ms.map_or_else(
            || "load time never measured".to_owned(),
            |ms| format!("loads {}", time::short(Duration::from_millis(ms))),
        );
        table::say(&format!(
            "  {} {}  {} → {} {}  {load}",
            entry.service,
            entry.replica,
            places(&entry.from),
            entry.successor,
            places(&entry.to)
        ))?;
    }
    for entry in &plan.out {
        table::say(&format!(
            "  {} {}  {}  stops until {} is uncordoned: there is no other place",
            entry.service,
            entry.replica,
            places(&entry.from),
            plan.host
        ))?;
    }
    for warning in &plan.warnings {
        table::say(&format!("! {warning}"))?;
    }
    Ok(())
}

/// What happens while somebody waits.
struct News {
    host: HostName,
    services: BTreeSet<ServiceName>,
    /// The last event that is known.
    last: Option<EventLine>,
}

impl News {
    /// What is told of a drain from this moment on.
    fn of_drain(plan: &DrainPlan, snapshot: &Snapshot) -> Self {
        let moves = plan.moves.iter().map(|entry| &entry.service);
        let services = moves.chain(plan.out.iter().map(|entry| &entry.service)).cloned().collect();
        Self { host: plan.host.clone(), services, last: snapshot.events.back().cloned() }
    }

    /// The events that came since, of the services that leave the host, and of the host.
    fn since_then(&mut self, snapshot: &Snapshot) -> Vec<EventLine> {
        let known = self.last.as_ref();
        let known = known.and_then(|last| snapshot.events.iter().rposition(|event| event == last));
        let new = snapshot.events.iter().skip(known.map_or(0, |place| place + 1));
        let is_of_it = |event: &&EventLine| match &event.service {
            Some(service) => self.services.contains(service),
            None => {
                let words = event.text.split(|c: char| !(c.is_alphanumeric() || "-_.".contains(c)));
                event.host.as_ref() == Some(&self.host)
                    || words.into_iter().any(|word| word == self.host.as_str())
            }
        };
        let news = new.filter(is_of_it).cloned().collect();
        self.last = snapshot.events.back().cloned();
        news
    }
}

/// Looks until `ended` says so; none: the time is up first.
pub(super) async fn wait<T>(
    client: &Client,
    timeout: Option<Duration>,
    mut ended: impl FnMut(&Snapshot) -> Option<T>,
) -> Result<Option<T>, Failure> {
    let deadline = timeout.map(|t| tokio::time::Instant::now() + t);
    let mut lost = 0;
    loop {
        match client.snapshot().await {
            Ok(snapshot) => {
                lost = 0;
                if let Some(found) = ended(&snapshot) {
                    return Ok(Some(found));
                }
            }
            // The controller may be replaced in the middle.
            Err(error) => {
                lost += 1;
                if lost > 50 {
                    return Err(error.into());
                }
            }
        }
        if deadline.is_some_and(|d| tokio::time::Instant::now() > d) {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

pub(super) fn time_is_up(args: &Args, words: &str) -> Result<Success, Failure> {
    if args.output == Output::Text {
        table::out(&format!("time is up; {words}"))?;
    }
    Ok(Success::TimeIsUp)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::api::{Severity, Timestamp};

    #[test]
    fn who_waits_for_a_drain_is_told_of_it_and_of_nothing_else() {
        let mut snapshot = crate::tui::fixture::calm();
        let event = |at: u64, service: Option<&str>, words: &str| EventLine {
            at: Timestamp(at),
            severity: Severity::Info,
            service: service.map(|name| name.parse().unwrap()),
            host: None,
            text: words.to_owned(),
        };
        snapshot.events.push_back(event(1, None, "ada drains gpu-1: before"));
        let mut news = News {
            host: "gpu-1".parse().unwrap(),
            services: BTreeSet::from(["chat".parse().unwrap()]),
            last: snapshot.events.back().cloned(),
        };
        let mut told = |snapshot: &Snapshot| {
            news.since_then(snapshot).into_iter().map(|event| event.at.0).collect::<Vec<_>>()
        };
        assert!(told(&snapshot).is_empty());
        snapshot.events.extend([
            event(2, None, "ada drains gpu-1: 2 replicas to move away"),
            event(3, Some("chat"), "r1-2 is ready"),
            event(4, Some("code"), "r1-0 is ready"),
            event(5, None, "gpu-11 is drained"),
        ]);
        assert_eq!(told(&snapshot), [2, 3]);
        snapshot.events.push_back(event(6, None, "gpu-1 is drained"));
        assert_eq!(told(&snapshot), [6]);
        assert!(told(&snapshot).is_empty());
    }
}

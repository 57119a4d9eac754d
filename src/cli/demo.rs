//! `gpudeck demo`: the real program on a simulated fleet, on the screen or as a script.
//!
//! The story: two services come up; a bad revision of `chat` is rolled out, fails its analysis and is
//! taken back by itself; a good one is rolled out; it is undone. On the screen a person tells it, as
//! a script `demo --script` does.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::json;

use super::args::Args;
use super::exit::{Failure, Success};
use super::{screen, table};
use crate::api::{
    Client, Condition, Delta, Door, HostLinkState, Intent, IntentReply, Outcome, ServiceName,
    Snapshot,
};
use crate::controller::{self, Options, Paths, Running, start_in_process};
use crate::demo::{Load, World};

/// What to do where the story goes otherwise: its times are made for a machine that has time for it.
const QUIET: &str = "run it again while the machine does nothing else";

/// Requests a second that the story sends to each service.
const CHAT_RATE: f64 = 20.0;
const CODE_RATE: f64 = 3.0;

/// Longest that one scene may take.
const SCENE: Duration = Duration::from_secs(120);

/// Runs it.
pub async fn run(_args: &Args, script: bool, dir: Option<&Path>) -> Result<Success, Failure> {
    let began = Instant::now();
    let stage = Stage::build(dir).await?;
    if !script {
        let director = tokio::spawn(direct(Arc::clone(&stage.world), stage.client.clone()));
        let shown = tokio::select! {
            shown = screen::show(stage.client.clone(), None) => shown,
            () = terminated() => Err(Failure::interrupted(false)),
        };
        director.abort();
        stage.clear().await;
        return shown;
    }
    let told = tokio::select! {
        told = tell(&stage, began) => told,
        _ = tokio::signal::ctrl_c() => Err(Failure::interrupted(false)),
        () = terminated() => Err(Failure::interrupted(false)),
    };
    stage.clear().await;
    told
}

/// The terminal went away, or somebody ended us: what was started is taken down all the same.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut hangup), Ok(mut terminate)) =
        (signal(SignalKind::hangup()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = hangup.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// The world, and the controller on it.
struct Stage {
    world: Arc<World>,
    running: Running,
    client: Client,
}

impl Stage {
    async fn build(dir: Option<&Path>) -> Result<Self, Failure> {
        let failed = |what: &str, e: &dyn std::fmt::Display| {
            Failure::other(format!("the demo's {what} did not come up: {e}"))
                .with_hint("name a directory that you may write, on a disk with room: --dir DIR")
        };
        let world = World::start(dir.map(Path::to_owned)).await.map_err(|e| failed("fleet", &e))?;
        controller::init_repository(&world.deck_dir()).map_err(|e| failed("deck", &e))?;
        let options = Options {
            deck_dir: Some(world.deck_dir()),
            deck: world.deck().clone(),
            agent_binary: None,
            leave_when_idle: None,
            in_process: None,
        };
        // As GPUDECK_HOME names it: another terminal can look at the same controller.
        let home = world.root().join("home");
        let paths = Paths::in_dir(&home.join(world.deck().id.to_string()));
        let running =
            start_in_process(options, &paths).await.map_err(|e| failed("controller", &e))?;
        let client = controller::connect(&running.socket).await?;
        Ok(Self { world: Arc::new(world), running, client })
    }

    async fn clear(self) {
        let Self { world, running, client } = self;
        drop(client);
        running.stop().await;
        // Ending the engines blocks for a moment.
        let _ = tokio::task::spawn_blocking(move || drop(world)).await;
    }
}

fn service(name: &str) -> Result<ServiceName, Failure> {
    name.parse().map_err(|e| Failure::other(format!("{e}")).unforeseen())
}

fn write_spec(world: &World, text: &str) -> Result<(), Failure> {
    // Whole or not at all: the controller looks at it at any moment.
    let path = world.spec_path("chat");
    let aside = path.with_extension("new");
    std::fs::write(&aside, text)
        .and_then(|()| std::fs::rename(&aside, &path))
        .map_err(|e| Failure::other(e.to_string()).unforeseen())
}

/// Waits until `seen` holds of the snapshot.
async fn until(
    client: &Client,
    what: &str,
    seen: impl Fn(&Snapshot) -> bool,
) -> Result<Snapshot, Failure> {
    let deadline = Instant::now() + SCENE;
    loop {
        let snapshot = client.snapshot().await?;
        if seen(&snapshot) {
            return Ok(snapshot);
        }
        if Instant::now() > deadline {
            let wrong = format!("the story went otherwise: {what} did not happen in {SCENE:?}");
            return Err(Failure::other(wrong).with_hint(QUIET));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn apply(client: &Client, name: &str, reason: &str) -> Result<IntentReply, Failure> {
    let intent = Intent::Apply {
        service: service(name)?,
        reason: Some(reason.to_owned()),
        accept_outage: false,
        concurrency: None,
        agreed: None,
    };
    Ok(client.send(intent).await?)
}

fn all_hosts_up(snapshot: &Snapshot) -> bool {
    !snapshot.hosts.is_empty()
        && snapshot.hosts.values().all(|h| h.link == HostLinkState::Up && h.sample.is_some())
}

fn serves(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.services.iter().any(|(n, s)| n.as_str() == name && s.condition == Condition::Serving)
}

/// Brings both services up and puts them under load.
async fn open_scene(world: &World, client: &Client) -> Result<(Load, Load), Failure> {
    until(client, "four hosts up", all_hosts_up).await?;
    apply(client, "chat", "the demo begins").await?;
    apply(client, "code", "the demo begins").await?;
    until(client, "chat and code serving", |s| serves(s, "chat") && serves(s, "code")).await?;
    let load = |name: &str, rate| {
        world.load(name, rate).map_err(|e| Failure::other(e.to_string()).unforeseen())
    };
    Ok((load("chat", CHAT_RATE)?, load("code", CODE_RATE)?))
}

/// On the screen: sets the scene, lays the bad revision out, and the good one after it was taken back.
async fn direct(world: Arc<World>, client: Client) {
    let result = async {
        let _load = open_scene(&world, &client).await?;
        write_spec(&world, &world.spec_bad())?;
        client.send(Intent::Reload).await?;
        loop {
            let taken_back = |s: &Snapshot| {
                s.services.iter().any(|(n, v)| {
                    n.as_str() == "chat"
                        && matches!(
                            v.rollout.as_ref().and_then(|r| r.outcome.as_ref()),
                            Some(Outcome::RolledBack { .. } | Outcome::Aborted { .. })
                        )
                })
            };
            if taken_back(&client.snapshot().await?) {
                write_spec(&world, &world.spec_good())?;
                client.send(Intent::Reload).await?;
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let result: Result<(), Failure> = result.await;
    if let Err(failure) = result {
        tracing::error!("{}", failure.message);
    }
}

/// Tells the whole story and says how it went.
async fn tell(stage: &Stage, began: Instant) -> Result<Success, Failure> {
    let (world, client) = (&stage.world, &stage.client);
    let mut deltas = client.stream().await?;
    let printer = tokio::spawn(async move {
        while let Some(delta) = deltas.next().await {
            if let Delta::Event { event, .. } = delta
                && table::json_line(&event).is_err()
            {
                return;
            }
        }
    });
    let told = scenes(world, client, began).await;
    // The last events are on their way: give the printer the moment that it needs.
    tokio::time::sleep(Duration::from_millis(200)).await;
    printer.abort();
    match told {
        Ok(summary) => {
            table::json_line(&summary)?;
            Ok(Success::Done)
        }
        Err(failure) => {
            table::json_line(&json!({ "story": "failed", "why": failure.message }))?;
            Err(failure)
        }
    }
}

async fn scenes(
    world: &World,
    client: &Client,
    began: Instant,
) -> Result<serde_json::Value, Failure> {
    let mut scene_began = Instant::now();
    let mut scenes = Vec::new();
    let mut scene = |name: &str, detail: serde_json::Value| {
        let seconds = (scene_began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
        scene_began = Instant::now();
        scenes.push(json!({ "scene": name, "seconds": seconds, "detail": detail }));
    };
    let (chat, code) = open_scene(world, client).await?;
    let ready_s = began.elapsed().as_secs_f64();
    scene("two services serve", json!({ "ready_s": (ready_s * 10.0).round() / 10.0 }));
    let before = chat.counts();

    write_spec(world, &world.spec_bad())?;
    let outcome = roll(client, apply(client, "chat", "a bad revision").await?).await?;
    let Outcome::RolledBack { why } = outcome else {
        return Err(otherwise("the bad revision", &outcome));
    };
    let after_bad = chat.counts();
    scene("the bad revision is taken back", json!({ "why": why }));

    write_spec(world, &world.spec_good())?;
    let outcome = roll(client, apply(client, "chat", "a good revision").await?).await?;
    if outcome != Outcome::Completed {
        return Err(otherwise("the good revision", &outcome));
    }
    let after_good = chat.counts();
    scene("the good revision serves", json!({}));

    let undo = Intent::Undo {
        service: service("chat")?,
        to: None,
        reason: Some("as before".to_owned()),
        accept_outage: false,
        agreed: None,
        seen: None,
    };
    let outcome = roll(client, client.send(undo).await?).await?;
    if outcome != Outcome::Completed {
        return Err(otherwise("the undo", &outcome));
    }
    let at_end = chat.counts();
    scene("the good revision is undone", json!({}));

    let failed_in_good = at_end.failed.saturating_sub(after_bad.failed);
    if failed_in_good > 0 {
        let wrong = format!("{failed_in_good} requests failed while nothing was bad");
        return Err(Failure::other(wrong).with_hint(QUIET));
    }
    Ok(json!({
        "story": "as told",
        "simulated": true,
        "seconds": (began.elapsed().as_secs_f64() * 10.0).round() / 10.0,
        "scenes": scenes,
        "chat": {
            "requests": at_end.ok + at_end.failed,
            "failed_before_bad_revision": before.failed,
            "failed_during_bad_revision": after_bad.failed.saturating_sub(before.failed),
            "failed_during_good_rollout": after_good.failed.saturating_sub(after_bad.failed),
            "failed_during_undo": at_end.failed.saturating_sub(after_good.failed),
        },
        "code": { "requests": code.counts().ok + code.counts().failed, "failed": code.counts().failed },
    }))
}

fn otherwise(what: &str, outcome: &Outcome) -> Failure {
    Failure::other(format!("the story went otherwise: {what} ended with {outcome:?}"))
        .with_hint(QUIET)
}

/// Waits for the end of the rollout that was begun.
async fn roll(client: &Client, reply: IntentReply) -> Result<Outcome, Failure> {
    let IntentReply::RolloutBegun { release, .. } = reply else {
        return Err(Failure::other("the story went otherwise: there was nothing to roll out")
            .with_hint(QUIET));
    };
    let ended = |s: &Snapshot| {
        s.services
            .iter()
            .find(|(n, _)| n.as_str() == "chat")
            .and_then(|(_, v)| v.rollout.clone())
            .filter(|r| r.to == release)
            .and_then(|r| r.outcome)
    };
    let snapshot = until(client, "the end of the rollout", |s| ended(s).is_some()).await?;
    ended(&snapshot).ok_or_else(|| Failure::other("the rollout vanished").with_hint(QUIET))
}

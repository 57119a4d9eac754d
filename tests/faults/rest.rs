//! Between two faults: the stage comes to rest, or is made anew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use gpudeck::api::{HostLinkState, ServiceView, Snapshot};

use crate::stage::Stage;

/// Longest time until all is at rest after a fault was mended.
const LIMIT: Duration = Duration::from_mins(1);

impl Stage {
    /// Aborts a rollout that was left under way, and waits until every host is reached and both replicas are
    /// ready, of one release.
    pub fn come_to_rest(&self) -> Result<ServiceView, String> {
        let mut left = String::new();
        if let Some(rollout) = self.operator.look().as_ref().and_then(under_way) {
            let aborted = self.operator.run(&["rollout", "abort", "chat"]);
            left = match aborted.code() {
                Some(0) => format!("{rollout} was left under way and was aborted; "),
                code => {
                    let why = aborted.stderr.trim();
                    format!("{rollout} was left under way and abort ended with {code:?} ({why}); ")
                }
            };
        }
        let began = Instant::now();
        loop {
            let seen = self.operator.snapshot();
            if let Some(chat) = seen.as_ref().and_then(at_rest) {
                return Ok(chat.clone());
            }
            if began.elapsed() > LIMIT {
                return Err(format!(
                    "{left}not at rest within {LIMIT:?}: {}",
                    state(seen.as_ref())
                ));
            }
            // Whoever was killed is started by the next command.
            if seen.is_none() {
                let _ = self.operator.run(&["status", "chat"]);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Another stage in place of one that does not come to rest.
    pub fn anew(self) -> Self {
        // Whatever is wrong with the old one has been told; its hosts are gone with the next lab at the latest.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(self)));
        Self::new().expect("there was a lab before")
    }
}

/// The name of the rollout that is not over.
fn under_way(chat: &ServiceView) -> Option<String> {
    let rollout = chat.rollout.as_ref().filter(|r| r.outcome.is_none())?;
    Some(format!("the rollout to {}", rollout.to))
}

fn at_rest(snapshot: &Snapshot) -> Option<&ServiceView> {
    let up = snapshot.hosts.values().all(|h| h.link == HostLinkState::Up);
    let chat = snapshot.services.values().find(|s| s.name.as_str() == "chat")?;
    let one_release = chat.replicas.iter().all(|r| Some(r.id.release) == chat.stable);
    let whole = chat.ready == 2 && chat.replicas.len() == 2 && one_release;
    (up && whole && under_way(chat).is_none()).then_some(chat)
}

/// What keeps it from being at rest, for the message of a failed test.
fn state(snapshot: Option<&Snapshot>) -> String {
    let Some(snapshot) = snapshot else { return "no controller answers".to_owned() };
    let hosts = snapshot.hosts.iter().map(|(name, host)| format!("{name} {:?}", host.link));
    let chat = snapshot.services.values().find(|s| s.name.as_str() == "chat");
    let rollout = chat.and_then(under_way);
    let replicas = chat.into_iter().flat_map(|chat| {
        chat.replicas.iter().map(|r| format!("{} {:?} {:?}", r.id, r.phase, r.trouble))
    });
    let all: Vec<String> = hosts.chain(rollout).chain(replicas).collect();
    all.join(", ")
}

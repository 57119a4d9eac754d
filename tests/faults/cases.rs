//! The faults, one after the other: what is broken, when, what mends it, and how the rollout must end.

#[path = "cases/engine.rs"]
mod engine;
#[path = "cases/gateway.rs"]
mod gateway;
#[path = "cases/hosts.rs"]
mod hosts;
#[path = "cases/needs.rs"]
mod needs;
#[path = "cases/people.rs"]
mod people;
#[path = "cases/surroundings.rs"]
mod surroundings;
#[path = "cases/way_back.rs"]
mod way_back;

use std::time::Duration;

use gpudeck::api::Phase;

use crate::eye::Server;
use crate::stage::{Spec, Stage};

/// How a rollout must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Completed,
    RolledBack,
    Aborted,
    /// What cannot be judged is a person's to decide; until then it serves.
    Asks,
    /// `apply` says no, and nothing was touched.
    Refused,
}

/// Whose requests may fail: those that the broken part itself had or got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Nobody's.
    Nothing,
    /// The new release's replicas.
    Canary,
    /// Replicas on that host.
    Host(&'static str),
    /// Replicas on the host that the fault chose.
    Chosen,
    /// The gateway itself: whatever comes while it is away.
    Gateway,
}

impl Broken {
    pub fn is_of(self, server: &Server, release: u64, chosen: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Canary => server.name.starts_with(&format!("r{release}-")),
            Self::Host(host) => server.host == host,
            Self::Chosen => server.host == chosen,
            Self::Gateway => true,
        }
    }
}

pub struct Case {
    pub name: &'static str,
    pub spec: fn(&mut Spec),
    /// Before `apply`.
    pub before: fn(&Stage),
    /// After it.
    pub fault: fn(&Stage),
    /// Once the rollout has ended.
    pub mend: fn(&Stage),
    pub end: End,
    /// Part of the outcome's reason, or of the refusal; with `|` between them, one of several.
    pub why: &'static str,
    pub broken: Broken,
    /// The rollout is over that soon after `apply`.
    pub within: Duration,
    /// In the sample of every run of the tests.
    pub sample: bool,
}

impl Case {
    /// Whether this text gives the reason that the case is to have.
    pub fn is_why(&self, text: &str) -> bool {
        self.why.split('|').any(|why| text.contains(why))
    }
}

const fn nothing(_: &Stage) {}
const fn good(_: &mut Spec) {}

/// A rollout without any fault, to be changed.
const PLAIN: Case = Case {
    name: "nothing",
    spec: good,
    before: nothing,
    fault: nothing,
    mend: nothing,
    end: End::Completed,
    why: "",
    broken: Broken::Nothing,
    within: Duration::from_secs(60),
    sample: false,
};

fn loading(phase: &Phase) -> bool {
    matches!(phase, Phase::Starting | Phase::Loading)
}

/// Longer than most need.
const SLOW: Duration = Duration::from_secs(90);

/// All of them, in the order in which they are played.
pub fn cases() -> Vec<Case> {
    let none = Case { name: "none at all", ..PLAIN };
    let parts = [
        engine::cases(),
        needs::cases(),
        hosts::cases(),
        gateway::cases(),
        surroundings::cases(),
        people::cases(),
        way_back::cases(),
    ];
    std::iter::once(none).chain(parts.into_iter().flatten()).collect()
}

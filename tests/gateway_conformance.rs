//! One suite for every gateway: Debian's HAProxy and the demo's stand-in do the same.
//!
//! The link under the gateway is a test's own: it speaks to the run-time socket directly, as the
//! agent does on a host.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[path = "gateway_conformance/bench.rs"]
mod bench;
#[path = "gateway_conformance/engines.rs"]
mod engines;
#[path = "gateway_conformance/link.rs"]
mod link;
#[path = "gateway_conformance/rigs.rs"]
mod rigs;
#[path = "gateway_conformance/sections.rs"]
mod sections;
#[path = "gateway_conformance/traffic.rs"]
mod traffic;

use std::time::{Duration, Instant};

use crate::engines::Engine;
use crate::rigs::{Haproxy, Sim};
use crate::sections::sections_suite;
use crate::traffic::suite;

const DEADLINE: Duration = Duration::from_secs(15);

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_conforms() {
    let foreign = Engine::start("foreign").await;
    let Some(mut rig) = Haproxy::start(foreign.address).await else { return };
    suite(&mut rig, &foreign).await;
    sections_suite(&mut rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stand_in_conforms() {
    let foreign = Engine::start("foreign").await;
    let mut rig = Sim::start(foreign.address).await;
    suite(&mut rig, &foreign).await;
    sections_suite(&mut rig).await;
}

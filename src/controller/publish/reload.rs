//! Telling whoever balances that the files of the endpoints have changed: the user's command.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::base::{ServiceName, text};
use crate::controller::run_command::{self, Order};
use crate::gateway::Endpoints;
use crate::spec::EndpointsSpec;

/// Longest time for one run of it.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One that failed is run again after so long, unless the files change before.
const AGAIN: Duration = Duration::from_secs(5);

/// What the command was run for last, by service.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    notes: PathBuf,
    last: Mutex<BTreeMap<ServiceName, Last>>,
    /// One at a time, whatever the service: it is one name server that is told.
    turn: tokio::sync::Mutex<()>,
}

/// One run of it.
#[derive(Debug)]
struct Last {
    command: Vec<String>,
    endpoints: Endpoints,
    /// When and why it failed.
    failed: Option<(Instant, String)>,
}

impl Last {
    fn is_of(&self, spec: &EndpointsSpec, endpoints: &Endpoints) -> bool {
        self.command == spec.reload && self.endpoints == *endpoints
    }
}

impl Reloads {
    /// `notes`: a directory in which the process is noted while it runs.
    pub(super) fn new(notes: PathBuf) -> Self {
        Self { notes, ..Self::default() }
    }

    /// Whether the command has come to its end for this table, or there is none.
    pub(super) fn has_told(&self, spec: &EndpointsSpec, endpoints: &Endpoints) -> bool {
        spec.reload.is_empty()
            || self
                .last()
                .get(&endpoints.service)
                .is_some_and(|last| last.is_of(spec, endpoints) && last.failed.is_none())
    }

    /// Runs the command for a table whose files are written, unless that was done. A controller that has just begun
    /// does not know whether it was, and runs it.
    pub(super) async fn run(
        &self,
        spec: &EndpointsSpec,
        endpoints: &Endpoints,
    ) -> Result<(), String> {
        if self.has_told(spec, endpoints) {
            return Ok(());
        }
        let failed_before = self.last().get(&endpoints.service).and_then(|last| {
            let (at, why) = last.failed.as_ref().filter(|_| last.is_of(spec, endpoints))?;
            (at.elapsed() < AGAIN).then(|| why.clone())
        });
        if let Some(why) = failed_before {
            return Err(why);
        }
        let turn = self.turn.lock().await;
        let order = Order {
            command: spec.reload.clone(),
            timeout: TIMEOUT,
            dir: PathBuf::from(spec.dir.clone().unwrap_or_default()),
            env: environment(spec, endpoints),
            note: self.notes.join("endpoints-reload.json"),
        };
        let ended = run_command::run(order, CancellationToken::new()).await;
        drop(turn);
        let why = match ended {
            Some((end, _)) if end.is_good() => None,
            Some((end, output)) => {
                let said = output.last().map(|line| format!(": {line}")).unwrap_or_default();
                let command = spec.reload.join(" ");
                Some(text::clean(
                    &format!(
                        "the endpoints are written, and their `reload` ({command}) failed: {end}{said}"
                    ),
                    400,
                ))
            }
            None => Some("the `reload` of the endpoints was not run".to_owned()),
        };
        let last = Last {
            command: spec.reload.clone(),
            endpoints: endpoints.clone(),
            failed: why.clone().map(|why| (Instant::now(), why)),
        };
        self.last().insert(endpoints.service.clone(), last);
        why.map_or(Ok(()), Err)
    }

    fn last(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the command is told. The serial counts up with the time: what a zone's SOA record wants.
fn environment(spec: &EndpointsSpec, endpoints: &Endpoints) -> BTreeMap<String, String> {
    let pairs = [
        ("SERVICE", endpoints.service.to_string()),
        ("ENDPOINTS_DIR", spec.dir.clone().unwrap_or_default()),
        ("ZONE", spec.zone.clone().unwrap_or_default()),
        ("SERIAL", (endpoints.changed.0 / 1_000).to_string()),
    ];
    pairs.into_iter().map(|(name, value)| (format!("GPUDECK_{name}"), value)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Published;
    use super::super::tests::table;
    use super::*;

    #[tokio::test]
    async fn the_command_is_run_after_each_change_of_the_files_and_its_failure_is_told() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("sd");
        let of = |script: &str| EndpointsSpec {
            dir: Some(dir.to_str().unwrap().to_owned()),
            listen: None,
            zone: Some("llm.lan".to_owned()),
            reload: ["sh", "-c", script].map(str::to_owned).to_vec(),
            settle: Duration::ZERO,
        };
        let spec = of("grep -o 'SRV 0 [0-9]*' \"$GPUDECK_SERVICE.zone\" | uniq >>../seen");
        let seen = || std::fs::read_to_string(root.path().join("seen")).unwrap_or_default();
        let published = Published::new(root.path().to_owned());
        let chat: ServiceName = "chat".parse().unwrap();
        for (version, weight, expected) in
            [(1, 100, "SRV 0 100\n"), (1, 100, "SRV 0 100\n"), (2, 40, "SRV 0 100\nSRV 0 40\n")]
        {
            published.publish(&spec, &chat, version, &table(weight)).unwrap();
            published.reload(&spec, &chat).await.unwrap();
            assert_eq!(seen(), expected, "once for each change");
            assert!(published.is_current(&spec, &chat, version, &table(weight)));
        }
        // A controller that has just begun cannot know whether it was run.
        let next = Published::new(root.path().to_owned());
        next.publish(&spec, &chat, 2, &table(40)).unwrap();
        assert!(!next.is_current(&spec, &chat, 2, &table(40)));
        next.reload(&spec, &chat).await.unwrap();
        assert_eq!(seen().lines().count(), 3);

        let bad = of("echo no such zone; exit 3");
        assert!(!next.is_current(&bad, &chat, 2, &table(40)));
        let why = next.reload(&bad, &chat).await.unwrap_err();
        assert!(why.contains("failed: exit code 3: no such zone"), "{why}");
        assert_eq!(next.reload(&bad, &chat).await.unwrap_err(), why, "it rests a while");
        assert!(!next.is_current(&bad, &chat, 2, &table(40)));
        next.reload(&spec, &chat).await.unwrap();
        assert!(next.is_current(&spec, &chat, 2, &table(40)));
    }
}

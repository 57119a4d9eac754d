//! Traffic tables: one task a service brings each new one to the service's gateways and publishes it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Actions, Means};
use crate::base::{ServiceName, TrafficServer};
use crate::controller::core::Input;
use crate::controller::fence::Doubt;
use crate::controller::gateways::{NotApplied, Routes, Written};
use crate::rollout::{EventKind, Shared};
use crate::spec::{DeckSpec, EndpointsSpec};

/// So long a table that is to be published waits for hosts that were not asked yet who holds them, before it is
/// told that it is not published: a controller that has just begun has no links yet.
const LINKS_UP: Duration = Duration::from_secs(3);
const LINKS_ASKED: Duration = Duration::from_millis(200);

/// The same change of a table by somebody else is told again after so long; and of so many servers at most.
const SAY_AGAIN: Duration = Duration::from_mins(1);
const MOST_WORDS: usize = 8;

/// A traffic table and its version.
#[derive(Clone)]
struct Table {
    version: u64,
    servers: Shared<Vec<TrafficServer>>,
    /// What was told of it is told again when this grows.
    telling: u64,
}

/// The task that keeps the table of a service at its gateways.
pub(super) struct TrafficWorker {
    routes: Routes,
    endpoints: Option<EndpointsSpec>,
    table: watch::Sender<Table>,
    task: JoinHandle<()>,
}

impl Drop for TrafficWorker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Actions {
    pub(super) fn apply_traffic(
        &mut self,
        service: &ServiceName,
        deck: &DeckSpec,
        routes: Routes,
        version: u64,
        servers: Shared<Vec<TrafficServer>>,
    ) {
        let endpoints = deck.endpoints.clone();
        if let Some(worker) = self.traffic.get(service) {
            let same = worker.routes == routes && worker.endpoints == endpoints;
            if same && !worker.task.is_finished() {
                worker.table.send_modify(|table| {
                    table.version = version;
                    table.servers = servers;
                });
                return;
            }
            worker.task.abort();
        }
        let (table, receiver) = watch::channel(Table { version, servers, telling: 0 });
        let keeper = Keeper {
            means: Arc::clone(&self.means),
            service: service.clone(),
            routes: routes.clone(),
            endpoints: endpoints.clone(),
        };
        let task = tokio::spawn(keeper.keep(receiver));
        let worker = TrafficWorker { routes, endpoints, table, task };
        self.traffic.insert(service.clone(), worker);
    }

    /// The table of a service goes elsewhere now, if it goes anywhere.
    pub fn reroute(&mut self, service: &ServiceName, deck: &DeckSpec, routes: Routes) {
        let Some(worker) = self.traffic.get(service) else { return };
        if worker.routes != routes {
            let Table { version, servers, .. } = worker.table.borrow().clone();
            self.apply_traffic(service, deck, routes, version, servers);
        }
    }

    /// The services beside this one that have left gateways or backends which are emptied, or were.
    pub fn leaving_something(&self, service: &ServiceName) -> Vec<ServiceName> {
        let others = self.traffic.iter().filter(|(name, _)| *name != service);
        let leaving = others.filter(|(_, worker)| !worker.routes.leaving.is_empty());
        leaving.map(|(name, _)| name.clone()).collect()
    }

    /// What was told of the tables could not be written down: it is told again.
    pub fn retell(&self) {
        for worker in self.traffic.values() {
            worker.table.send_modify(|table| table.telling = table.telling.wrapping_add(1));
        }
    }
}

/// Brings each new table of a service to its gateways and publishes it, and brings it again when a
/// gateway forgot it.
struct Keeper {
    means: Arc<Means>,
    service: ServiceName,
    routes: Routes,
    endpoints: Option<EndpointsSpec>,
}

/// What was written to the files of each of a service's gateways.
struct Files {
    serving: Vec<Written>,
    /// Those that are left; none: nothing of the service is there any more.
    leaving: Vec<Option<Written>>,
}

/// What somebody else changed in a table that was confirmed, as it was told last.
#[derive(Default)]
struct Meddled(Option<(Vec<String>, Instant)>);

impl Meddled {
    /// What is to be told of these changes. Two that change the same again and again are told of once a while.
    fn news(&mut self, found: Vec<String>) -> Option<String> {
        let told =
            |(before, at): &(Vec<String>, Instant)| *before == found && at.elapsed() < SAY_AGAIN;
        if found.is_empty() || self.0.as_ref().is_some_and(told) {
            return None;
        }
        let mut words: Vec<String> = found.iter().take(MOST_WORDS).cloned().collect();
        if found.len() > MOST_WORDS {
            words.push(format!("{} more", found.len() - MOST_WORDS));
        }
        self.0 = Some((found, Instant::now()));
        let what = words.join(", ");
        Some(format!("somebody else had changed the gateway's table, and it was put right: {what}"))
    }
}

/// What was told of tables: each version once, and a failure once as long as it stays the same.
#[derive(Default)]
struct Told {
    telling: u64,
    success: Option<u64>,
    failure: Option<(u64, NotApplied)>,
}

impl Told {
    /// Whether it is news that this table is at the gateways; what was told in an earlier telling does not count.
    fn would_be_news(&mut self, table: &Table) -> bool {
        if self.telling != table.telling {
            *self = Self { telling: table.telling, ..Self::default() };
        }
        self.success != Some(table.version) || self.failure.is_some()
    }

    fn applied(&mut self, version: u64) {
        self.failure = None;
        self.success = Some(version);
    }

    /// Whether it is news that it is not.
    fn failed(&mut self, version: u64, failed: &NotApplied) -> bool {
        let failure = Some((version, failed.clone()));
        let news = self.failure != failure;
        self.failure = failure;
        news
    }
}

impl Keeper {
    async fn keep(self, mut table: watch::Receiver<Table>) {
        let mut told = Told::default();
        let mut meddled = Meddled::default();
        let mut files = Files {
            serving: self.routes.serving.iter().map(|_| Written::default()).collect(),
            leaving: self.routes.leaving.iter().map(|_| Some(Written::default())).collect(),
        };
        loop {
            let now = table.borrow_and_update().clone();
            let news = told.would_be_news(&now);
            let confirmed = !news;
            let Table { version, servers, .. } = now;
            let (kind, again) = match self.apply(version, &servers, &mut files, news).await {
                Ok(()) => {
                    told.applied(version);
                    (news.then_some(EventKind::TrafficApplied { version }), Duration::from_secs(2))
                }
                Err(failed) => {
                    let news = told.failed(version, &failed);
                    let NotApplied { why, lacks_backend } = failed;
                    let failed = EventKind::TrafficFailed { version, why, lacks_backend };
                    (news.then_some(failed), Duration::from_secs(1))
                }
            };
            if let Some(kind) = kind {
                let input = Input::Happened { service: self.service.clone(), kind };
                if self.means.inputs.send(input).await.is_err() {
                    return;
                }
            }
            let found = files.serving.iter_mut().flat_map(Written::take_found).collect();
            if confirmed && let Some(words) = meddled.news(found) {
                let said = Input::Say { service: self.service.clone(), words };
                if self.means.inputs.send(said).await.is_err() {
                    return;
                }
            }
            // Only what serves is waited for.
            if told.failure.is_none() {
                self.leave(&servers, &mut files).await;
            }
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(again) => {}
            }
        }
    }

    /// Empties the gateways that the service has left, once each.
    async fn leave(&self, servers: &[TrafficServer], files: &mut Files) {
        for (gateways, written) in self.routes.leaving.iter().zip(&mut files.leaving) {
            let Some(kept) = written else { continue };
            match gateways.leave(&self.means, servers, kept).await {
                Ok(true) => *written = None,
                Ok(false) => {}
                Err(why) => {
                    tracing::warn!(service = %self.service, %why, "a gateway was not left yet");
                }
            }
        }
    }

    /// Tells the endpoints, if this controller may speak for the service. Before anything is written its hosts
    /// are asked; what is out already is looked at every time.
    async fn publish(&self, version: u64, servers: &[TrafficServer]) -> Result<(), String> {
        let Some(spec) = &self.endpoints else { return Ok(()) };
        let (means, service) = (&self.means, &self.service);
        if means.published.is_current(spec, service, version, servers)
            && means.doubt(service).is_none()
        {
            return Ok(());
        }
        let end = tokio::time::Instant::now() + LINKS_UP;
        let doubt = loop {
            match means.may_speak_for(service, Duration::ZERO).await {
                Ok(()) => {
                    means.published.publish(spec, service, version, servers)?;
                    return means.published.reload(spec, service).await;
                }
                Err(doubt @ Doubt::Unknown { .. }) => {
                    means.published.withhold(service, &doubt.to_string());
                    if tokio::time::Instant::now() > end {
                        break doubt;
                    }
                    tokio::time::sleep(LINKS_ASKED).await;
                }
                Err(doubt @ Doubt::Held { .. }) => break doubt,
            }
        };
        means.published.withhold(service, &doubt.to_string());
        Err(format!("the endpoints are not published: {doubt}"))
    }

    async fn apply(
        &self,
        version: u64,
        servers: &[TrafficServer],
        files: &mut Files,
        news: bool,
    ) -> Result<(), NotApplied> {
        let tell = async {
            let mut wrong = Vec::new();
            for (gateways, written) in self.routes.serving.iter().zip(&mut files.serving) {
                wrong.extend(gateways.apply(&self.means, servers, written).await.err());
            }
            wrong
        };
        // Beside each other: a host that is waited for here may be another's matter there.
        let (published, wrong) = tokio::join!(self.publish(version, servers), tell);
        if let Some(wrong) = NotApplied::together(wrong) {
            // Whoever reads the endpoints may still send requests.
            let lacks_backend = wrong.lacks_backend && published.is_ok();
            return Err(NotApplied { lacks_backend, ..wrong });
        }
        // Whoever balances reads the endpoints when it will.
        if let Some(spec) = &self.endpoints
            && self.routes.is_empty()
            && news
            && published.is_ok()
        {
            tokio::time::sleep(spec.settle).await;
        }
        published.map_err(|why| NotApplied { why, lacks_backend: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_of_a_table_is_told_again_where_it_was_not_written_down() {
        let table = |version, telling| Table { version, servers: Shared::default(), telling };
        let failed = |why: &str| NotApplied { why: why.to_owned(), lacks_backend: false };
        let mut told = Told::default();
        assert!(told.would_be_news(&table(1, 0)));
        told.applied(1);
        assert!(!told.would_be_news(&table(1, 0)), "once");
        assert!(told.would_be_news(&table(1, 1)), "the journal was full");
        told.applied(1);
        assert!(!told.would_be_news(&table(1, 1)));
        assert!(told.would_be_news(&table(2, 1)));
        assert!(told.failed(2, &failed("no answer")));
        assert!(!told.failed(2, &failed("no answer")), "once");
        assert!(told.failed(2, &failed("no backend")));
        assert!(told.would_be_news(&table(2, 2)));
        assert!(told.failed(2, &failed("no backend")), "the journal was full");
        assert!(told.would_be_news(&table(2, 2)), "it was away in between");
    }

    #[test]
    fn what_somebody_else_changed_is_told_once() {
        let mut meddled = Meddled::default();
        let change = |n: u32| vec![format!("at main r1-{n}-a1 had weight 5, not 100")];
        assert_eq!(meddled.news(Vec::new()), None);
        let told = meddled.news(change(0)).unwrap_or_default();
        assert!(
            told.ends_with("it was put right: at main r1-0-a1 had weight 5, not 100"),
            "{told}"
        );
        assert_eq!(meddled.news(change(0)), None);
        assert_eq!(meddled.news(Vec::new()), None);
        assert_eq!(meddled.news(change(0)), None, "somebody does it again and again");
        assert!(meddled.news(change(1)).is_some());
        let many = meddled.news((0..20).flat_map(change).collect()).unwrap_or_default();
        assert!(many.ends_with("r1-7-a1 had weight 5, not 100, 12 more"), "{many}");
    }
}

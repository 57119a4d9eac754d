//! The servers of each backend: weights, modes, counters, and whose turn it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// HAProxy averages its times over this many requests (`TIME_STATS_SAMPLES`).
const TIME_SAMPLES: u64 = 512;

/// Most servers a backend takes.
pub(super) const MAX_SERVERS: usize = 1024;

/// Whether a server takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Ready,
    Drain,
    Maint,
}

/// A server of a backend.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub id: u32,
    pub address: SocketAddr,
    pub weight: u16,
    pub initial_weight: u16,
    pub mode: Mode,
    /// Added at run time: only such a server may be deleted.
    pub dynamic: bool,
    pub counters: Counters,
    /// How far this server's turn has come (smooth weighted round robin).
    turn: i64,
}

/// What HAProxy counts of a server, under the names of its CSV columns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub scur: u64,
    pub stot: u64,
    pub econ: u64,
    pub eresp: u64,
    pub cli_abrt: u64,
    pub srv_abrt: u64,
    /// 1xx to 5xx.
    pub responses: [u64; 5],
    rtime_sum: u64,
    ttime_sum: u64,
    /// Requests that got an answer.
    pub req_tot: u64,
}

impl Counters {
    pub(super) fn rtime_ms(&self) -> u64 {
        average(self.rtime_sum, self.req_tot)
    }

    pub(super) fn ttime_ms(&self) -> u64 {
        average(self.ttime_sum, self.req_tot)
    }
}

fn average(sum: u64, count: u64) -> u64 {
    sum.div_ceil(count.clamp(1, TIME_SAMPLES))
}

/// HAProxy's `swrate_add_dynamic`: a sliding sum that forgets its oldest part.
fn slide(sum: &mut u64, count: u64, value: u64) {
    if count > TIME_SAMPLES {
        *sum = sum.saturating_sub(sum.div_ceil(TIME_SAMPLES));
    }
    *sum = sum.saturating_add(value);
}

type Backend = BTreeMap<String, Server>;

/// All backends; their names are fixed, as in a configuration file.
#[derive(Debug)]
pub(crate) struct Backends(Mutex<BTreeMap<String, Backend>>);

impl Backends {
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        Self(Mutex::new(names.map(|name| (name.to_owned(), Backend::new())).collect()))
    }

    /// Locked for a moment; never held over an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Backend>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn configure(&self, backend: &str, name: &str, address: SocketAddr) {
        if let Some(servers) = self.lock().get_mut(backend) {
            let server =
                Server { dynamic: false, mode: Mode::Ready, ..Server::new(servers, address, 1) };
            servers.insert(name.to_owned(), server);
        }
    }

    /// A server of a section that gpudeck wrote: like one that was added at run time, and in
    /// service.
    pub(super) fn configure_ours(
        &self,
        backend: &str,
        name: &str,
        address: SocketAddr,
        weight: u16,
    ) {
        if let Some(servers) = self.lock().get_mut(backend)
            && servers.len() < MAX_SERVERS
        {
            let server = Server::new(servers, address, weight.min(256));
            servers.insert(name.to_owned(), Server { mode: Mode::Ready, ..server });
        }
    }

    /// Whether a request would find a server there.
    pub(super) fn has_server(&self, backend: &str) -> bool {
        let all = self.lock();
        let ready = |s: &Server| s.mode == Mode::Ready && s.weight > 0;
        all.get(backend).is_some_and(|servers| servers.values().any(ready))
    }

    /// The server whose turn it is, and a request of it begun.
    pub(super) fn take(self: &Arc<Self>, backend: &str) -> Option<(SocketAddr, InFlight)> {
        let mut all = self.lock();
        let servers = all.get_mut(backend)?;
        let ready = |s: &Server| s.mode == Mode::Ready && s.weight > 0;
        let total: i64 = servers.values().filter(|s| ready(s)).map(|s| i64::from(s.weight)).sum();
        let mut best: Option<(i64, String)> = None;
        for (name, server) in servers.iter_mut().filter(|(_, s)| ready(s)) {
            server.turn += i64::from(server.weight);
            if best.as_ref().is_none_or(|(turn, _)| server.turn > *turn) {
                best = Some((server.turn, name.clone()));
            }
        }
        let (_, name) = best?;
        let server = servers.get_mut(&name)?;
        server.turn -= total;
        server.counters.scur += 1;
        server.counters.stot += 1;
        let id = server.id;
        let address = server.address;
        drop(all);
        let in_flight = InFlight {
            backends: Arc::clone(self),
            backend: backend.to_owned(),
            name,
            id,
            began: Instant::now(),
            head_after: None,
            end: End::ClientAbort,
        };
        Some((address, in_flight))
    }
}

impl Server {
    pub(super) fn new(others: &Backend, address: SocketAddr, weight: u16) -> Self {
        Self {
            id: others.values().map(|s| s.id).max().unwrap_or(0) + 1,
            address,
            weight,
            initial_weight: weight,
            mode: Mode::Maint,
            dynamic: true,
            counters: Counters::default(),
            turn: 0,
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client had it whole.
    Complete,
    /// The client went away; so does a request that is dropped on the way.
    ClientAbort,
    /// The server was not reached.
    NoConnection,
    /// The server broke off before or in its answer.
    Broken,
}

/// A request at a server; it is counted as ended when this is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    backends: Arc<Backends>,
    backend: String,
    name: String,
    id: u32,
    began: Instant,
    head_after: Option<Duration>,
    end: End,
}

impl InFlight {
    /// The server's head has come.
    pub(super) fn head(&mut self, status: u16) {
        self.head_after = Some(self.began.elapsed());
        self.update(|counters| {
            let class = usize::from(status / 100).wrapping_sub(1);
            if let Some(count) = counters.responses.get_mut(class) {
                *count += 1;
            }
        });
    }

    /// What the end will be counted as.
    pub(super) fn ends(&mut self, end: End) {
        self.end = end;
    }

    fn update(&self, change: impl FnOnce(&mut Counters)) {
        let mut all = self.backends.lock();
        let server = all.get_mut(&self.backend).and_then(|servers| servers.get_mut(&self.name));
        // Of the same name and another id is a later server.
        if let Some(server) = server.filter(|s| s.id == self.id) {
            change(&mut server.counters);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let (end, total, head) = (self.end, self.began.elapsed(), self.head_after);
        self.update(|counters| {
            counters.scur = counters.scur.saturating_sub(1);
            match end {
                End::Complete => {}
                End::ClientAbort => counters.cli_abrt += 1,
                End::NoConnection => counters.econ += 1,
                End::Broken => {
                    counters.eresp += 1;
                    counters.srv_abrt += u64::from(head.is_some());
                }
            }
            if let Some(head) = head {
                counters.req_tot += 1;
                let count = counters.req_tot;
                slide(&mut counters.rtime_sum, count, millis(head));
                slide(&mut counters.ttime_sum, count, millis(total));
            }
        });
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_the_weights_exactly() {
        let backends = Arc::new(Backends::new(["chat"].into_iter()));
        for (port, weight) in [(1u16, 90u16), (2, 10), (3, 0)] {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            backends.configure("chat", &port.to_string(), address);
            backends.lock().get_mut("chat").unwrap().get_mut(&port.to_string()).unwrap().weight =
                weight;
        }
        let mut seen = [0; 4];
        for _ in 0..200 {
            let (address, _in_flight) = backends.take("chat").unwrap();
            seen[usize::from(address.port())] += 1;
        }
        assert_eq!(seen, [0, 180, 20, 0]);
        assert_eq!(backends.lock()["chat"]["1"].counters.scur, 0);
    }
}

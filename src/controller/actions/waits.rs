//! Waiting for engines: until a replica generates a token, and until one that drains has nothing in flight.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Means, link};
use crate::base::{HostName, ReplicaId, ServiceName};
use crate::controller::core::Input;
use crate::controller::engine_at::EngineAt;
use crate::controller::gateways::Routes;
use crate::controller::observe::{EngineMetricsAt, Said, read_engine};
use crate::controller::traffic::Totals;
use crate::engine::{TokenAnswer, TokenRequest};
use crate::fleet::{HostLink, LinkError};
use crate::rollout::EventKind;
use crate::wire::{Refusal, Reply};

/// Pauses between two askings for the first token: a tenth of the time that it has taken so far.
const TOKEN_SOONEST: Duration = Duration::from_millis(300);
const TOKEN_LATEST: Duration = Duration::from_secs(1);

/// So long an engine's answers are of one sort before they are told; twelve times that for those that every engine gives
/// while it loads.
const ANSWER_TOLD: Duration = Duration::from_secs(10);
const USUAL_TOLD: Duration = Duration::from_mins(2);

/// Asks until the replica generates a token. What it answers instead is told, so that the cause is known when its time
/// is over.
pub(super) async fn await_token(
    means: &Means,
    asks: &[TokenRequest],
    at: &EngineAt,
    host: &HostName,
    service: &ServiceName,
    replica: ReplicaId,
) {
    let began = tokio::time::Instant::now();
    let mut answers = Answers::default();
    loop {
        if let Ok(link) = link(means, host) {
            let (why, usual) = match generates(link.as_ref(), asks, at).await {
                Ok(Asked::Token) => return,
                Ok(Asked::NoToken { why, usual }) => (Some(why), usual),
                Err(LinkError::Refused { refusal: refusal @ Refusal::NoAnswer { .. }, .. }) => {
                    (Some(refusal.to_string()), true)
                }
                Err(LinkError::Refused { refusal: refusal @ Refusal::NoKey { .. }, .. }) => {
                    (Some(refusal.to_string()), false)
                }
                // The host's matter, which is told as that.
                Err(_) => (None, true),
            };
            if let Some(why) = why.filter(|why| answers.is_news(why, usual, began.elapsed())) {
                let kind = EventKind::NoTokenYet { replica, why };
                let _ = means.inputs.send(Input::Happened { service: service.clone(), kind }).await;
            }
        }
        tokio::time::sleep((began.elapsed() / 10).clamp(TOKEN_SOONEST, TOKEN_LATEST)).await;
    }
}

/// Which of an engine's answers are worth telling: those that stay, each sort once.
#[derive(Default)]
struct Answers {
    /// The sort of the newest one, and since when all are of it.
    now: Option<(String, Duration)>,
    told: Option<String>,
}

impl Answers {
    /// `usual`: an engine that loads says that, too.
    fn is_news(&mut self, why: &str, usual: bool, at: Duration) -> bool {
        // `HTTP 401`, or the first words of another: what follows differs from time to time.
        let sort: String = why.chars().take(8).collect();
        let since = match &self.now {
            Some((same, since)) if *same == sort => *since,
            _ => at,
        };
        let stays = at.saturating_sub(since) >= if usual { USUAL_TOLD } else { ANSWER_TOLD };
        let is_news = stays && self.told.as_ref() != Some(&sort);
        if is_news {
            self.told = Some(sort.clone());
        }
        self.now = Some((sort, since));
        is_news
    }
}

/// What came of asking an engine for a token.
pub(in crate::controller) enum Asked {
    /// It generated one.
    Token,
    /// It did not.
    NoToken {
        /// What it answered, for people.
        why: String,
        /// As long as it loads an engine answers so.
        usual: bool,
    },
}

/// Asks an engine once for a token, in the ways that it may offer.
pub(in crate::controller) async fn generates(
    link: &dyn HostLink,
    asks: &[TokenRequest],
    at: &EngineAt,
) -> Result<Asked, LinkError> {
    // The way that is tried first says most of what is wrong.
    let mut refused = None;
    for ask in asks {
        let request = at.post(ask.path, &ask.body, 20_000);
        let Reply::Http(reply) = link.request(request).await? else {
            return Ok(Asked::NoToken { why: "it does not speak HTTP".to_owned(), usual: false });
        };
        match ask.judge(reply.status, &reply.body) {
            TokenAnswer::Token => return Ok(Asked::Token),
            TokenAnswer::NotYet { why } => {
                return Ok(Asked::NoToken { why, usual: reply.status == 503 });
            }
            // The way that is tried first says most of what is wrong.
            TokenAnswer::NotOffered { why } => refused = refused.or(Some(why)),
        }
    }
    let why = refused.unwrap_or_else(|| "it offers no request for one".to_owned());
    Ok(Asked::NoToken { why, usual: false })
}

/// Waits until no gateway has a request of the replica in flight, and its engine none either: what
/// an earlier process of a reloaded HAProxy still serves is known to the engine alone, and to nobody where that has no
/// metrics. The decider waits no longer than the drain deadline.
pub(super) async fn await_drained(
    means: &Means,
    routes: &Routes,
    engine: Option<&EngineMetricsAt>,
    replica: ReplicaId,
) {
    let mut seen = InFlight::default();
    loop {
        let left = routes.is_empty()
            || routes.counters(means).await.is_some_and(|all| seen.look(&all, replica));
        let alone = routes.is_empty();
        // Where the engine does not say, nobody knows of what was lost sight of.
        if left && engine_is_quiet(means, engine, alone).await.unwrap_or(!seen.lost_sight) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// What gateways had in flight of a replica that drains.
#[derive(Default)]
struct InFlight {
    /// By place: requests so far, and of these in flight.
    last: BTreeMap<String, (u64, u64)>,
    /// A gateway was reloaded or restarted while it had some: its new process knows nothing of them.
    lost_sight: bool,
}

impl InFlight {
    /// Whether nothing is in flight, as the gateways count now.
    fn look(&mut self, all: &Totals, replica: ReplicaId) -> bool {
        let mut left = true;
        for (place, servers) in all {
            let now = servers
                .get(&replica)
                .map_or((0, 0), |c| (c.requests.saturating_add(c.in_flight), c.in_flight));
            left &= now.1 == 0;
            if let Some((total, in_flight)) = self.last.insert(place.clone(), now) {
                self.lost_sight |= in_flight > 0 && now.0 < total;
            }
        }
        left
    }
}

/// Whether the engine has nothing in flight; none: it does not say, and only a gateway knows (`alone`: there is none).
async fn engine_is_quiet(
    means: &Means,
    engine: Option<&EngineMetricsAt>,
    alone: bool,
) -> Option<bool> {
    let engine = engine.filter(|at| at.has_metrics())?;
    match read_engine(means, engine).await {
        Said::Metrics(seen) => {
            Some(seen.running.unwrap_or(0.0) + seen.waiting.unwrap_or(0.0) < 0.5)
        }
        Said::Nothing if alone => Some(false),
        Said::None | Said::Nothing => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::gateway::ServerCounters;

    #[test]
    fn a_gateway_that_was_reloaded_has_lost_sight_of_what_it_had() {
        let replica: ReplicaId = "r1-0-a1".parse().unwrap();
        let of = |requests, in_flight| {
            let counters = ServerCounters { in_flight, requests, ..ServerCounters::default() };
            Totals::from([("main chat".to_owned(), BTreeMap::from([(replica, counters)]))])
        };
        let gone = Totals::from([("main chat".to_owned(), BTreeMap::new())]);
        let looks = |all: &[Totals]| {
            let mut seen = InFlight::default();
            let left: Vec<bool> = all.iter().map(|totals| seen.look(totals, replica)).collect();
            (left.last().copied().unwrap(), seen.lost_sight)
        };
        // They come to their end, and the server is removed then.
        assert_eq!(looks(&[of(7, 2)]), (false, false));
        assert_eq!(looks(&[of(7, 2), of(8, 1), of(9, 0), gone.clone()]), (true, false));
        // The file is read anew: without what drains, or with it.
        assert_eq!(looks(&[of(7, 2), gone.clone()]), (true, true));
        assert_eq!(looks(&[of(0, 2), of(0, 0)]), (true, true));
        assert_eq!(looks(&[of(7, 2), gone.clone(), gone.clone()]), (true, true), "for good");
        assert_eq!(looks(&[gone]), (true, false));
    }

    #[test]
    fn of_an_engines_answers_those_that_stay_are_told_once() {
        let mut answers = Answers::default();
        let mut at =
            |second, why: &str, usual| answers.is_news(why, usual, Duration::from_secs(second));
        assert!(!at(0, "nothing listens", true));
        assert!(!at(60, "HTTP 503: loading", true));
        assert!(!at(179, "HTTP 503: loading 80 %", true));
        assert!(at(180, "HTTP 503: loading 81 %", true), "for two minutes");
        assert!(!at(181, "HTTP 401: no key", false));
        assert!(at(191, "HTTP 401: no key (request 7)", false));
        assert!(!at(300, "HTTP 401: no key (request 9)", false), "it was told");
    }
}

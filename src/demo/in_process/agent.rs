//! The agent of a simulated host: reads requests, answers, sends samples; all through the real
//! messages.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, ReadHalf, WriteHalf};

use super::host::{SimHostState, failed};
use crate::ssh::Program;
use crate::wire::{
    FromAgent, Manner, PROTOCOL_VERSION, Refusal, Reply, Request, ToAgent, Told, Verb, encode_line,
};

/// Shortest time between samples that is granted.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Plays the agent of one host.
pub(super) struct SimAgent {
    pub(super) state: Arc<SimHostState>,
}

impl Program for SimAgent {
    fn run(
        &self,
        _command: String,
        stdin: ReadHalf<DuplexStream>,
        stdout: WriteHalf<DuplexStream>,
    ) -> BoxFuture<'static, u32> {
        serve(Arc::clone(&self.state), stdin, stdout)
            .map(|served| u32::from(served.is_err()))
            .boxed()
    }
}

async fn serve(
    state: Arc<SimHostState>,
    stdin: ReadHalf<DuplexStream>,
    mut stdout: WriteHalf<DuplexStream>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stdin).lines();
    let mut interval: Option<tokio::time::Interval> = None;
    let mut manner = Manner::default();
    let mut told = Told::default();
    loop {
        let tick = async {
            match &mut interval {
                Some(interval) => interval.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            line = lines.next_line() => {
                let Some(line) = line? else { return Ok(()) };
                let asked: ToAgent = serde_json::from_str(&line)?;
                let changed;
                let asked_for = match asked.request {
                    Request::Follow { packed, .. } => Manner { changes: true, packed },
                    _ => Manner::default(),
                };
                let result = match asked.request {
                    Request::Subscribe { interval_ms } | Request::Follow { interval_ms, .. } => {
                        let period = Duration::from_millis(interval_ms).max(MIN_INTERVAL);
                        interval = Some(spread(period));
                        changed = true;
                        // As the real one: whoever asks again begins with a whole sample.
                        manner = asked_for;
                        told = Told::default();
                        Ok(Reply::Done)
                    }
                    request => {
                        changed = matches!(request, Request::Act { .. });
                        answer(&state, request)
                    }
                };
                write(&mut stdout, &FromAgent::Reply { id: asked.id, result }).await?;
                if changed {
                    write(&mut stdout, &FromAgent::Ranks(state.ranks())).await?;
                }
            }
            _ = tick => {
                if let Some(line) = state.sample().and_then(|sample| told.line(sample, manner)) {
                    stdout.write_all(&line).await?;
                    told.sent();
                }
            }
        }
    }
}

/// Samples of a fleet do not all fall on the same instant.
fn spread(period: Duration) -> tokio::time::Interval {
    let first = tokio::time::Instant::now() + period.mul_f64(rand::random());
    let mut interval = tokio::time::interval_at(first, period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    interval
}

async fn write(stdout: &mut WriteHalf<DuplexStream>, message: &FromAgent) -> std::io::Result<()> {
    let line = encode_line(message).map_err(std::io::Error::other)?;
    stdout.write_all(&line).await
}

fn answer(state: &SimHostState, request: Request) -> Result<Reply, Refusal> {
    match request {
        Request::Hello { .. } => {
            Ok(Reply::Hello { protocol: PROTOCOL_VERSION, facts: Box::new(state.facts()) })
        }
        Request::Claim { deck, epoch, holder, force, .. } => {
            state.claim(deck, epoch, holder, force)
        }
        Request::Act { deck, epoch, verb } => {
            state.may_act(deck, epoch)?;
            match verb {
                Verb::StartRank(start) => state.start(*start),
                Verb::StopRank { rank, .. } => Ok(state.stop(&rank)),
                Verb::RemoveRank { rank } => Ok(state.remove(&rank)),
                Verb::SaveState { state: text, .. } => Ok(state.save(deck, None, text)),
                Verb::SaveServiceState { service, state: text, .. } => {
                    Ok(state.save(deck, Some(service), text))
                }
                _ => Err(failed("a simulated host does not do that")),
            }
        }
        Request::Ranks { .. } => Ok(Reply::Ranks(state.ranks())),
        Request::ShowClaim { deck } => Ok(state.show_claim(deck)),
        Request::RankCommands { deck } => Ok(state.commands(deck)),
        Request::LoadState { deck } => Ok(state.load(deck, None)),
        Request::LoadServiceState { deck, service } => Ok(state.load(deck, Some(service))),
        Request::ListServiceStates { deck } => Ok(state.saved_services(deck)),
        Request::Http { port, .. } => state.http(port),
        _ => Err(failed("a simulated host does not do that")),
    }
}

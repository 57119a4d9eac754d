//! The loop: terminal, controller and clock in; frames and effects out.
//!
//! It draws when something has changed, at most thirty times a second, and sleeps otherwise. Whatever
//! takes time runs in tasks that end with the loop.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossterm::event::{Event, EventStream};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::key::Key;
use super::message::{Effect, Message, PlanOf};
use super::picture;
use super::state::{Look, State};
use super::terminal::Screen;
use super::theme::Depth;
use super::update::update;
use crate::api::{ApiError, ConcurrencyPolicy, Door, ErrorKind, Hint, Looking, RankId, Timestamp};

/// Shortest time between two frames.
const FRAME: Duration = Duration::from_millis(33);
/// Shortest time between two frames when only numbers of hosts are newer.
const CALM: Duration = Duration::from_millis(250);
/// Messages on their way to the loop.
const QUEUE: usize = 256;
/// Messages taken in before the next frame, so that a flood does not starve the screen.
const BURST: usize = 128;
/// Between two tries to reach the controller: grows up to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(5));
/// What is looked at is said again after so long (the controller believes it for 15 s).
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long one question to the controller may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the screen is to be.
#[derive(Clone, Debug, Default)]
pub struct TuiOptions {
    /// Its look.
    pub look: Look,
}

impl TuiOptions {
    /// From the environment: `NO_COLOR`, `COLORTERM`, `TERM`, `GPUDECK_ASCII`, the locale, `TZ`.
    pub fn from_env(read_only: bool) -> Self {
        let lookup = |name: &str| std::env::var(name).ok();
        Self {
            look: Look {
                depth: Depth::detect(lookup),
                ascii: wants_ascii(lookup),
                read_only,
                zone: jiff::tz::TimeZone::system(),
                can_start: false,
            },
        }
    }
}

/// Asked for, or a locale that is not UTF-8.
fn wants_ascii(lookup: impl Fn(&str) -> Option<String>) -> bool {
    if let Some(asked) = lookup("GPUDECK_ASCII") {
        return asked != "0" && !asked.is_empty();
    }
    let set = |name: &&str| lookup(name).filter(|v| !v.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(set);
    locale.is_some_and(|l| {
        let l = l.to_lowercase();
        !l.contains("utf-8") && !l.contains("utf8")
    })
}

/// Starts a controller of the deck that is shown, or finds the one that somebody else has started.
pub type StartController = Arc<dyn Fn() -> BoxFuture<'static, Result<(), ApiError>> + Send + Sync>;

/// Why the screen could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum TuiError {
    /// The terminal.
    #[error("the terminal cannot be used: {0}")]
    Terminal(#[from] io::Error),
    /// One of our own tasks panicked.
    #[error("a part of the screen has failed: {0}")]
    Task(String),
}

impl Hint for TuiError {
    fn hint(&self) -> Option<String> {
        Some(
            match self {
                Self::Terminal(_) => "run it in a terminal, or use the commands: `gpudeck --help`",
                Self::Task(_) => "start it again, and report what it printed",
            }
            .to_owned(),
        )
    }
}

/// Shows the screen until the person leaves. With `start` a person can start a controller where the deck's is gone.
pub async fn run(
    door: Arc<dyn Door>,
    mut options: TuiOptions,
    start: Option<StartController>,
) -> Result<(), TuiError> {
    options.look.can_start = start.is_some();
    let screen = Screen::take()?;
    let size = screen.size()?;
    let (sender, inbox) = mpsc::channel(QUEUE);
    let state = State::new(options.look, size, now());
    let mut the_loop = Loop {
        door,
        start,
        screen,
        state,
        sender,
        inbox,
        tasks: JoinSet::new(),
        stream: None,
        generation: 0,
        log: None,
        looked: None,
        leaving: false,
        continued: signal(SignalKind::from_raw(Signal::CONT.as_raw()))?,
    };
    the_loop.follow();
    the_loop.run().await
}

/// The wall clock. Only the loop reads it.
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A message, and which stream it came from: those of an abandoned stream are dropped.
struct Letter {
    generation: Option<u64>,
    message: Message,
}

struct Loop {
    door: Arc<dyn Door>,
    start: Option<StartController>,
    screen: Screen,
    state: State,
    sender: mpsc::Sender<Letter>,
    inbox: mpsc::Receiver<Letter>,
    tasks: JoinSet<()>,
    stream: Option<AbortHandle>,
    generation: u64,
    log: Option<AbortHandle>,
    /// What the controller was told last that is looked at, and when.
    looked: Option<(Looking, Instant)>,
    leaving: bool,
    continued: SignalStream,
}

impl Loop {
    async fn run(&mut self) -> Result<(), TuiError> {
        let mut events = EventStream::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut drawn = Instant::now().checked_sub(FRAME).unwrap_or_else(Instant::now);
        let mut ticked = drawn;
        while !self.leaving {
            let frame_due = drawn + if self.state.dirty { FRAME } else { CALM };
            // Counted from the last tick, not from the last frame: samples draw one after the other, and
            // what ends with time would never end.
            let tick = sleep_until(ticked + self.state.next_tick());
            tokio::select! {
                biased;
                _ = terminate.recv() => break,
                _ = hangup.recv() => break,
                event = events.next() => match event {
                    Some(Ok(event)) => self.on_terminal(&event).await?,
                    // The terminal is gone.
                    Some(Err(error)) => return Err(error.into()),
                    None => break,
                },
                () = sleep_until(frame_due), if self.state.dirty || self.state.fresh => {
                    self.state.now = now();
                    self.screen.draw(&self.state)?;
                    self.state.dirty = false;
                    self.state.fresh = false;
                    drawn = Instant::now();
                    self.say_looking();
                }
                letter = self.inbox.recv() => {
                    let mut next = letter;
                    let mut left = BURST;
                    while let Some(letter) = next {
                        self.on_letter(letter).await?;
                        left -= 1;
                        next = if left > 0 { self.inbox.try_recv().ok() } else { None };
                    }
                }
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    if let Err(error) = ended && error.is_panic() {
                        return Err(TuiError::Task(error.to_string()));
                    }
                }
                () = tick => {
                    ticked = Instant::now();
                    self.take(Message::Tick(now())).await?;
                }
            }
        }
        Ok(())
    }

    async fn on_terminal(&mut self, event: &Event) -> Result<(), TuiError> {
        let message = match event {
            Event::Key(key) => Key::from_event(key).map(Message::Key),
            Event::Paste(text) => Some(Message::Paste(text.clone())),
            Event::Resize(width, height) => {
                Some(Message::Resize { width: *width, height: *height })
            }
            Event::FocusGained | Event::FocusLost | Event::Mouse(_) => None,
        };
        match message {
            Some(message) => self.take(message).await,
            None => Ok(()),
        }
    }

    async fn on_letter(&mut self, letter: Letter) -> Result<(), TuiError> {
        if letter.generation.is_some_and(|g| g != self.generation) {
            return Ok(());
        }
        self.take(letter.message).await
    }

    async fn take(&mut self, message: Message) -> Result<(), TuiError> {
        // A burst of changes without need for a frame must not lose the need of those before it.
        let was_dirty = self.state.dirty;
        // Only with what is drawn afterwards: a tick finds out whether the minute has changed.
        if matches!(message, Message::Key(_) | Message::Delta(_) | Message::Lost { .. }) {
            self.state.now = now();
        }
        for effect in update(&mut self.state, message) {
            self.carry_out(effect).await?;
        }
        self.state.dirty |= was_dirty;
        Ok(())
    }

    async fn carry_out(&mut self, effect: Effect) -> Result<(), TuiError> {
        let door = Arc::clone(&self.door);
        match effect {
            Effect::Send { intent, what } => self.task(async move {
                // An answer to a question is not kept.
                let again = intent.0.service().is_some().then(|| Box::new(intent.clone()));
                let result = patiently(door.send(intent.0)).await.map(Box::new);
                Message::Replied { what, again, result }
            }),
            Effect::Plan { ticket, service, of } => self.task(async move {
                let result = match of {
                    PlanOf::Apply => patiently(door.plan(&service)).await,
                    PlanOf::Behind { replace } => {
                        let policy = if replace {
                            ConcurrencyPolicy::Replace
                        } else {
                            ConcurrencyPolicy::Queue
                        };
                        patiently(door.plan_behind(&service, Some(policy))).await
                    }
                    PlanOf::Undo(to) => patiently(door.plan_undo(&service, to)).await,
                    PlanOf::Retry => patiently(door.plan_retry(&service)).await,
                };
                Message::Planned { ticket, result: result.map(Box::new) }
            }),
            Effect::WhatIf { ticket, question } => self.task(async move {
                let result = patiently(door.what_if(&question)).await;
                Message::WhatIf { ticket, result: result.map(Box::new) }
            }),
            Effect::Diff { ticket, service, from, to } => self.task(async move {
                let result = patiently(door.diff(&service, from, to)).await;
                Message::Diffed { ticket, result }
            }),
            Effect::Log { ticket, rank, offset, length, after } => {
                self.ask_log(ticket, *rank, offset, length, after);
            }
            Effect::StartController => {
                if let Some(start) = &self.start {
                    let starting = start();
                    self.task(async move { Message::Started(patiently(starting).await) });
                }
            }
            Effect::Resync => self.follow(),
            Effect::Copy(text) => self.screen.copy(&text)?,
            Effect::Picture(path) => {
                let frame = self.screen.draw(&self.state)?;
                let written = std::fs::write(&path, picture::svg(&frame));
                let result = written.map(|()| path).map_err(|e| e.to_string());
                update(&mut self.state, Message::Pictured(result));
            }
            Effect::Redraw => self.screen.clear()?,
            Effect::Suspend => self.suspend().await?,
            Effect::Quit => self.leaving = true,
        }
        Ok(())
    }

    /// Tells the controller what is looked at, when that has changed and now and then.
    fn say_looking(&mut self) {
        if self.state.snapshot.is_none() {
            return;
        }
        let looking = self.state.looking();
        let known = self.looked.as_ref();
        if known.is_some_and(|(what, said)| *what == looking && said.elapsed() < LOOK_AGAIN) {
            return;
        }
        self.looked = Some((looking.clone(), Instant::now()));
        let door = Arc::clone(&self.door);
        // One that does not arrive is made good by the next.
        self.tasks.spawn(async move {
            let _ = patiently(door.look(&looking)).await;
        });
    }

    fn task(&mut self, work: impl Future<Output = Message> + Send + 'static) {
        let sender = self.sender.clone();
        self.tasks.spawn(async move {
            let message = work.await;
            // The loop is gone when nobody receives.
            let _ = sender.send(Letter { generation: None, message }).await;
        });
    }

    fn ask_log(
        &mut self,
        ticket: u64,
        rank: RankId,
        offset: Option<u64>,
        length: u32,
        after: Duration,
    ) {
        if let Some(before) = self.log.take() {
            before.abort();
        }
        let door = Arc::clone(&self.door);
        let sender = self.sender.clone();
        self.log = Some(self.tasks.spawn(async move {
            sleep(after).await;
            let result = patiently(door.log(&rank, offset, length)).await;
            let message = Message::Logged { ticket, result };
            let _ = sender.send(Letter { generation: None, message }).await;
        }));
    }

    /// Follows the controller, from the beginning; again and again when it is lost.
    fn follow(&mut self) {
        if let Some(before) = self.stream.take() {
            before.abort();
        }
        self.generation += 1;
        let generation = Some(self.generation);
        let door = Arc::clone(&self.door);
        let sender = self.sender.clone();
        self.stream = Some(self.tasks.spawn(async move {
            let mut pause = RETRY.0;
            loop {
                let error = match patiently(door.stream()).await {
                    Ok(mut stream) => {
                        while let Some(delta) = stream.next().await {
                            pause = RETRY.0;
                            let message = Message::Delta(Box::new(delta));
                            if sender.send(Letter { generation, message }).await.is_err() {
                                return;
                            }
                        }
                        None
                    }
                    Err(error) => Some(error),
                };
                let why = error.as_ref().map_or_else(
                    || "the connection was closed".to_owned(),
                    |e| crate::api::text::clean(&e.message, 300),
                );
                let hint = error.and_then(|e| e.hint);
                let message = Message::Lost { why, hint, retry_after: pause };
                if sender.send(Letter { generation, message }).await.is_err() {
                    return;
                }
                sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
            }
        }));
    }

    /// Ctrl-Z: the shell has the terminal until it continues us.
    async fn suspend(&mut self) -> Result<(), TuiError> {
        let continued = &mut self.continued;
        self.screen
            .step_aside(async {
                if kill_process(getpid(), Signal::TSTP).is_ok() {
                    // Without job control the signal is dropped and nobody ever continues us.
                    let _ = timeout(Duration::from_secs(1), continued.recv()).await;
                }
            })
            .await?;
        if let Ok((width, height)) = self.screen.size() {
            update(&mut self.state, Message::Resize { width, height });
        }
        update(&mut self.state, Message::Resumed);
        Ok(())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

async fn patiently<T>(work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| {
        Err(ApiError {
            kind: ErrorKind::Unreachable,
            message: format!("the controller did not answer within {}s", PATIENCE.as_secs()),
            hint: Some("see its log; `gpudeck controller status` tells how it is".to_owned()),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_is_for_those_who_ask_and_for_old_locales() {
        let with = |pairs: &'static [(&str, &str)]| {
            wants_ascii(move |name| {
                pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
            })
        };
        assert!(with(&[("GPUDECK_ASCII", "1"), ("LANG", "C.UTF-8")]));
        assert!(with(&[("LANG", "de_DE.ISO-8859-1")]));
        assert!(!with(&[("LANG", "en_US.UTF-8")]));
        assert!(!with(&[("LC_ALL", "C.utf8"), ("LANG", "C")]));
        assert!(!with(&[("GPUDECK_ASCII", "0"), ("LANG", "C")]));
        assert!(!with(&[]), "nothing said: nearly every terminal can do it");
    }
}

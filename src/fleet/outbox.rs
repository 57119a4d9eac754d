//! Between one link and whoever listens to the fleet: holds the newest of every kind of state.
//!
//! A listener that is slow, or that waits for a reply of this very link, must not hold up the
//! reading of the link. So states wait in slots, the newest in each, and one task hands them on. What need
//! not wait goes straight to the listener.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use super::{FleetEvent, LinkState};
use crate::base::HostName;

/// Questions and warnings that may wait; older ones go.
const MAX_QUEUED: usize = 64;
/// Phases of one attempt that are kept.
const MAX_WAY: usize = 24;

#[derive(Default)]
struct Slots {
    link: Option<FleetEvent>,
    facts: Option<FleetEvent>,
    ranks: Option<FleetEvent>,
    sample: Option<FleetEvent>,
    clock: Option<FleetEvent>,
    queue: VecDeque<FleetEvent>,
    /// The phases of the present attempt.
    way: Vec<String>,
    /// The host was removed or replaced: only the ends of questions still go out.
    retired: bool,
    closed: bool,
    /// The task has one on its way.
    handing_on: bool,
}

impl Slots {
    /// Nothing is there that has to go first.
    fn is_empty(&self) -> bool {
        let Self { link, facts, ranks, sample, clock, queue, .. } = self;
        let states = [link, facts, ranks, sample, clock];
        !self.handing_on && queue.is_empty() && states.iter().all(|slot| slot.is_none())
    }
}

/// Where a link puts what it has to tell.
pub(super) struct Outbox {
    host: HostName,
    slots: Mutex<Slots>,
    changed: Notify,
    events: mpsc::Sender<FleetEvent>,
}

impl Outbox {
    pub(super) fn new(host: HostName, events: mpsc::Sender<FleetEvent>) -> Arc<Self> {
        Arc::new(Self { host, slots: Mutex::default(), changed: Notify::new(), events })
    }

    pub(super) fn link(&self, state: LinkState) {
        let way = self.slots.lock().unwrap_or_else(PoisonError::into_inner).way.clone();
        self.put(FleetEvent::Link { host: self.host.clone(), state, way });
    }

    /// A new attempt to reach the host begins.
    pub(super) fn attempt(&self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).way.clear();
    }

    pub(super) fn phase(&self, phase: impl Into<String>) {
        let phase = phase.into();
        // `installing the agent 43%` is one phase.
        let step = phase.trim_end_matches(|c: char| c.is_ascii_digit() || " %".contains(c));
        {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if slots.way.last().is_none_or(|last| last != step) && slots.way.len() < MAX_WAY {
                slots.way.push(step.to_owned());
            }
        }
        self.link(LinkState::Connecting { phase });
    }

    /// Never waits.
    pub(super) fn put(&self, event: FleetEvent) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.closed || (slots.retired && !matches!(event, FleetEvent::QuestionGone { .. })) {
            return;
        }
        let event = if slots.is_empty() {
            match self.events.try_send(event) {
                Ok(()) | Err(TrySendError::Closed(_)) => return,
                Err(TrySendError::Full(event)) => event,
            }
        } else {
            event
        };
        match event {
            FleetEvent::Link { .. } => slots.link = Some(event),
            FleetEvent::Facts { .. } => slots.facts = Some(event),
            FleetEvent::Ranks { .. } => slots.ranks = Some(event),
            FleetEvent::Sample { .. } => slots.sample = Some(event),
            FleetEvent::Clock { .. } => slots.clock = Some(event),
            FleetEvent::Question { .. }
            | FleetEvent::QuestionGone { .. }
            | FleetEvent::Waits { .. }
            | FleetEvent::Warning { .. } => {
                if slots.queue.len() >= MAX_QUEUED {
                    slots.queue.pop_front();
                }
                slots.queue.push_back(event);
            }
        }
        drop(slots);
        self.changed.notify_one();
    }

    /// From now on only the ends of questions are told.
    pub(super) fn retire(&self) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = std::mem::take(&mut slots.queue);
        let Slots { closed, handing_on, .. } = *slots;
        *slots = Slots { queue, retired: true, closed, handing_on, ..Slots::default() };
    }

    /// Nothing more will come: the task ends when all is handed on.
    pub(super) fn close(&self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
    }

    /// The next event, or whether there will ever be one.
    fn take(&self) -> Result<Option<FleetEvent>, ()> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let next = slots
            .queue
            .pop_front()
            .or_else(|| slots.facts.take())
            .or_else(|| slots.link.take())
            .or_else(|| slots.ranks.take())
            .or_else(|| slots.sample.take())
            .or_else(|| slots.clock.take());
        slots.handing_on = next.is_some();
        if next.is_none() && slots.closed { Err(()) } else { Ok(next) }
    }

    /// Hands events on until the outbox is closed or nobody listens.
    pub(super) async fn forward(self: Arc<Self>) {
        loop {
            match self.take() {
                Ok(Some(event)) => {
                    if self.events.send(event).await.is_err() {
                        return;
                    }
                }
                Ok(None) => self.changed.notified().await,
                Err(()) => return,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_state_wins_and_a_full_listener_holds_up_nobody() {
        let (sender, mut events) = mpsc::channel(1);
        let outbox = Outbox::new("h".parse().unwrap(), sender);
        outbox.phase("at once");
        outbox.phase("of the attempt before");
        outbox.attempt();
        outbox.phase("connecting");
        for percent in 0..=99 {
            outbox.phase(format!("installing {percent}%"));
        }
        outbox.put(FleetEvent::QuestionGone { id: 7 });
        outbox.close();
        outbox.link(LinkState::Up);
        let read = async {
            let mut all = Vec::new();
            while all.len() < 3 {
                all.extend(events.recv().await);
            }
            all
        };
        let ((), all) = tokio::join!(outbox.forward(), read);
        let state = LinkState::Connecting { phase: "installing 99%".to_owned() };
        let way = vec!["connecting".to_owned(), "installing".to_owned()];
        let link = |state, way| FleetEvent::Link { host: "h".parse().unwrap(), state, way };
        let first = LinkState::Connecting { phase: "at once".to_owned() };
        let first = link(first, vec!["at once".to_owned()]);
        assert_eq!(all, [first, FleetEvent::QuestionGone { id: 7 }, link(state, way)]);
    }
}

//! What is asked off the loop, one at a time: whose turn it is, and the tasks. A turn ends with its token, whatever
//! becomes of the task that has it; the tasks end with the loop.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Weak};

use tokio::task::JoinSet;

use super::core::Core;
use crate::api::{ApiError, ErrorKind, Severity};
use crate::base::text;

/// It is somebody's turn for as long as this lives, also in a task that panics.
#[derive(Debug)]
pub struct Token {
    _held: Arc<()>,
}

/// Whether it is somebody's turn.
#[derive(Debug, Default)]
pub struct Turn(Weak<()>);

impl Turn {
    /// Begins a turn; none while another one lasts.
    pub fn take(&mut self) -> Option<Token> {
        if self.is_taken() {
            return None;
        }
        let held = Arc::new(());
        self.0 = Arc::downgrade(&held);
        Some(Token { _held: held })
    }

    /// Whether one lasts.
    pub fn is_taken(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// The same for each of several.
#[derive(Debug)]
pub struct Turns<K>(BTreeMap<K, Turn>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Turns<K> {
    /// Begins a turn of this one; none while another one of it lasts.
    pub fn take(&mut self, key: &K) -> Option<Token> {
        self.0.retain(|_, turn| turn.is_taken());
        self.0.entry(key.clone()).or_default().take()
    }

    /// Whether one of it lasts.
    pub fn is_taken(&self, key: &K) -> bool {
        self.0.get(key).is_some_and(Turn::is_taken)
    }
}

/// What is under way off the loop. It ends with it.
#[derive(Debug, Default)]
pub struct Tasks(JoinSet<()>);

impl Tasks {
    /// Begins one.
    pub fn spawn(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(work);
    }

    /// What those that have ended since the last look died of.
    fn died(&mut self) -> Vec<String> {
        let mut died = Vec::new();
        while let Some(ended) = self.0.try_join_next() {
            died.extend(ended.err().filter(|e| !e.is_cancelled()).map(|e| e.to_string()));
        }
        died
    }
}

impl Core {
    /// Says what of it died. Its turn is over, so that it is asked for again where it has to be.
    pub(super) fn tend_tasks(&mut self) {
        for why in self.tasks.died() {
            let words = format!("a task of the controller died: {}", text::clean(&why, 200));
            self.say(Severity::Error, None, &words);
        }
        if self.taking_over.as_ref().is_some_and(|turn| !turn.is_taken()) {
            let message = "the take-over came to nothing: its task died".to_owned();
            self.say(Severity::Error, None, &message);
            let died = ApiError { kind: ErrorKind::Internal, message, hint: None };
            let _ = self.end_take_over(Err(died));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    /// Nothing would be begun any more if the turn of a task that died lasted.
    #[tokio::test]
    async fn a_turn_ends_with_its_task_however_that_ends() {
        let mut turns = Turns::default();
        let mut tasks = Tasks::default();
        let token = turns.take(&"chat").unwrap();
        assert!(turns.take(&"chat").is_none(), "one at a time");
        assert!(turns.take(&"code").is_some(), "of each");
        tasks.spawn(async move {
            tokio::task::yield_now().await;
            panic!("as planned, with {token:?}");
        });
        assert!(turns.is_taken(&"chat"));
        while tasks.died().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!turns.is_taken(&"chat"));

        let token = turns.take(&"chat").unwrap();
        tasks.spawn(async move {
            std::future::pending::<()>().await;
            drop(token);
        });
        drop(tasks);
        while turns.is_taken(&"chat") {
            tokio::task::yield_now().await;
        }
    }
}

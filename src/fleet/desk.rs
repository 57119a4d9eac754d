//! Questions that wait for a person, whichever door answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::oneshot;

use super::outbox::Outbox;
use super::{FleetEvent, LinkState, QuestionKind};
use crate::base::{HostName, text};
use crate::ssh::Questions;

/// A person has so long to answer.
const PATIENCE: Duration = Duration::from_mins(5);

/// All open questions of the fleet.
#[derive(Default)]
pub(super) struct Desk {
    last: AtomicU64,
    open: Mutex<HashMap<u64, oneshot::Sender<SecretString>>>,
}

impl Desk {
    /// Hands an answer to whoever asked; false when nobody asks (any more).
    pub(super) fn answer(&self, id: u64, answer: SecretString) -> bool {
        let asker = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        asker.is_some_and(|asker| asker.send(answer).is_ok())
    }

    fn ask(&self) -> (u64, oneshot::Receiver<SecretString>) {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = oneshot::channel();
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        (id, receiver)
    }
}

/// The questions of one host.
pub(super) struct HostQuestions {
    pub(super) host: HostName,
    pub(super) desk: Arc<Desk>,
    pub(super) outbox: Arc<Outbox>,
}

/// Takes the question back however its asking ends.
struct Asked<'a> {
    id: u64,
    of: &'a HostQuestions,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.of.desk.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.of.outbox.put(FleetEvent::QuestionGone { id: self.id });
    }
}

impl HostQuestions {
    async fn ask(&self, kind: QuestionKind, text: String) -> Option<SecretString> {
        let (id, answer) = self.desk.ask();
        let _asked = Asked { id, of: self };
        self.outbox.put(FleetEvent::Question { id, host: self.host.clone(), kind, text });
        self.outbox.link(LinkState::Asking { question: id });
        tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
    }
}

/// Yes, no, or nothing: an answer that nobody gives in time is no "no".
fn said(answer: Option<SecretString>) -> Option<bool> {
    let answer = answer?;
    let answer = answer.expose_secret().trim();
    (!answer.is_empty()).then(|| answer.eq_ignore_ascii_case("yes"))
}

#[async_trait]
impl Questions for HostQuestions {
    async fn host_key(&self, host: &str, key_type: &str, fingerprint: &str) -> Option<bool> {
        let question = text::clean(
            &format!("The key of {host} is not known yet: {key_type} {fingerprint}. Is it right?"),
            400,
        );
        said(self.ask(QuestionKind::HostKey, question).await)
    }

    async fn secret(&self, prompt: &str) -> Option<SecretString> {
        let answer = self.ask(QuestionKind::Secret, text::clean(prompt, 300)).await?;
        if answer.expose_secret().is_empty() { None } else { Some(answer) }
    }

    fn waits_for(&self, question: &str) {
        self.outbox.phase("waiting for an answer that another host asks for");
        let (host, question) = (self.host.clone(), text::clean(question, 300));
        self.outbox.put(FleetEvent::Waits { host, question });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_nobody_gives_is_no_no() {
        let of = |text: &str| said(Some(text.to_owned().into()));
        assert_eq!(
            (of("yes"), of(" YES "), of("no"), of("y")),
            (Some(true), Some(true), Some(false), Some(false))
        );
        assert_eq!((said(None), of(""), of(" ")), (None, None, None));
    }
}

//! One thing that many connections want: one of them gets it, the others queue, and know when it
//! hangs on a person's answer.

use async_trait::async_trait;
use secrecy::SecretString;
use tokio::sync::{Mutex, MutexGuard, TryLockError, watch};

use super::Questions;

/// The thing and its queue.
#[derive(Default)]
pub(super) struct Queue<T> {
    state: Mutex<T>,
    /// The question that whoever has its turn has put to a person, while it is open.
    asked: watch::Sender<Option<String>>,
}

impl<T> Queue<T> {
    /// Waits for its turn. If a person is asked meanwhile, `questions` is told what everybody in
    /// the queue waits for.
    pub(super) async fn turn(&self, questions: &dyn Questions) -> MutexGuard<'_, T> {
        let mut asked = self.asked.subscribe();
        let telling = async {
            let question = match asked.wait_for(Option::is_some).await {
                Ok(question) => question.clone().unwrap_or_default(),
                Err(_) => return,
            };
            questions.waits_for(&question);
        };
        tokio::pin!(telling);
        let turn = self.state.lock();
        tokio::pin!(turn);
        tokio::select! {
            // Whoever need not wait is not told of anything.
            biased;
            turn = &mut turn => turn,
            () = &mut telling => turn.await,
        }
    }

    /// A turn, if nobody has one.
    pub(super) fn try_turn(&self) -> Result<MutexGuard<'_, T>, TryLockError> {
        self.state.try_lock()
    }

    /// `questions` for whoever has its turn: those in the queue know of them.
    pub(super) fn asking<'a>(&'a self, questions: &'a dyn Questions) -> Asking<'a> {
        Asking { questions, asked: &self.asked }
    }
}

/// Questions of which those in a queue know.
pub(super) struct Asking<'a> {
    questions: &'a dyn Questions,
    asked: &'a watch::Sender<Option<String>>,
}

/// However the asking ends, the question is not open any more.
struct Open<'a>(&'a watch::Sender<Option<String>>);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.asked.send_replace(None);
    }
}

#[async_trait]
impl Questions for Asking<'_> {
    fn can_ask(&self) -> bool {
        self.questions.can_ask()
    }

    // A key that nobody knows yet is no lost login: those in the queue are merely on their way.
    async fn host_key(&self, host: &str, key_type: &str, fingerprint: &str) -> Option<bool> {
        self.questions.host_key(host, key_type, fingerprint).await
    }

    async fn secret(&self, prompt: &str) -> Option<SecretString> {
        let _open = Open(self.asked);
        self.asked.send_replace(Some(prompt.to_owned()));
        self.questions.secret(prompt).await
    }

    fn waits_for(&self, question: &str) {
        // Those behind us wait for what we wait for.
        self.asked.send_replace(Some(question.to_owned()));
        self.questions.waits_for(question);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Notify;

    use super::*;

    /// Answers when all that should wait do.
    #[derive(Default)]
    struct Person {
        waiting: std::sync::Mutex<Vec<String>>,
        change: Notify,
        wanted: usize,
    }

    #[async_trait]
    impl Questions for Person {
        async fn host_key(&self, _: &str, _: &str, _: &str) -> Option<bool> {
            Some(true)
        }

        async fn secret(&self, _: &str) -> Option<SecretString> {
            while self.waiting.lock().is_ok_and(|w| w.len() < self.wanted) {
                self.change.notified().await;
            }
            Some("open".to_owned().into())
        }

        fn waits_for(&self, question: &str) {
            if let Ok(mut waiting) = self.waiting.lock() {
                waiting.push(question.to_owned());
            }
            self.change.notify_one();
        }
    }

    async fn ask(queue: Arc<Queue<()>>, person: Arc<Person>) {
        let _turn = queue.turn(&*person).await;
        queue.asking(&*person).secret("passphrase").await;
    }

    #[tokio::test]
    async fn those_who_queue_behind_a_question_know_of_it() {
        let queue = Arc::new(Queue::<()>::default());
        let first = Arc::new(Person { wanted: 2, ..Person::default() });
        let turn = queue.turn(&*first).await;
        let tell = || tokio::spawn(ask(Arc::clone(&queue), Arc::clone(&first)));
        let (second, third) = (tell(), tell());
        queue.asking(&*first).secret("passphrase of k").await;
        drop(turn);
        let waiting = first.waiting.lock().map(|w| w.clone()).unwrap_or_default();
        assert_eq!(waiting, ["passphrase of k", "passphrase of k"]);
        for task in [second, third] {
            assert!(task.await.is_ok());
        }
        // Nobody asks any more, so nobody is told that he waits.
        drop(queue.turn(&*first).await);
        assert_eq!(queue.asked.borrow().as_deref(), None);
    }
}

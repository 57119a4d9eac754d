//! Reading files that may lie on anything. A mount whose server is gone answers nothing, not even that
//! it does not answer: the thread that asks it is lost until it does. Few are risked on it, and whoever
//! waits is told; standard input and all else that blocks have the other threads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::error::failed;
use crate::base::text::clean;
use crate::base::time::short;
use crate::wire::Refusal;

/// Most threads that read files at once, of the 32 that may block.
const SLOTS: usize = 8;

/// Reads of files, few at a time.
#[derive(Debug)]
pub struct FileReads {
    slots: Arc<Semaphore>,
}

impl Default for FileReads {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(SLOTS)) }
    }
}

impl FileReads {
    /// Runs `read`, which reads `path`, on a thread of its own.
    ///
    /// # Errors
    /// What `read` says, or [`Refusal::Busy`] when it has not ended `within` that, or could not begin
    /// because earlier reads have not ended.
    pub async fn run<T: Send + 'static>(
        &self,
        path: &str,
        within: Duration,
        read: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let ending = || failed("the agent is ending");
        let deadline = Instant::now() + within;
        let slot = match timeout_at(deadline, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(slot) => slot.map_err(|_| ending())?,
            Err(_) => {
                return Err(busy(&format!(
                    "{path} is not read: {SLOTS} earlier reads of files do not end (does a mount of the \
                     host not answer?)"
                )));
            }
        };
        let reading = tokio::task::spawn_blocking(move || {
            // Given back when the thread is free again, however long nobody waits for it any more.
            let _slot = slot;
            read()
        });
        match timeout_at(deadline, reading).await {
            Ok(result) => result.map_err(|_| ending())?,
            Err(_) => Err(busy(&format!(
                "{path} could not be read within {} (does the mount that it lies on answer?)",
                short(within)
            ))),
        }
    }
}

fn busy(message: &str) -> Refusal {
    Refusal::Busy { message: clean(message, 500) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::agent::error::blocking;

    /// Reads that end when their senders are dropped, as many as may be read at once.
    async fn stuck(reads: &FileReads) -> Vec<Sender<()>> {
        let mut ends = Vec::new();
        for _ in 0..SLOTS {
            let (end, ended) = channel::<()>();
            let read = move || Ok(ended.recv().is_err());
            let told = reads.run("/mnt/dead", Duration::from_millis(1), read).await;
            let words = told.unwrap_err().to_string();
            assert!(words.contains("/mnt/dead could not be read"), "{words}");
            ends.push(end);
        }
        ends
    }

    #[test]
    fn a_dead_mount_keeps_neither_those_who_wait_nor_the_threads_of_others() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // One more than the reads may have.
            .max_blocking_threads(SLOTS + 1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let reads = FileReads::default();
            let ends = stuck(&reads).await;
            let refused = reads.run("/srv/m", Duration::from_millis(1), || Ok(())).await;
            assert!(
                matches!(&refused, Err(Refusal::Busy { message }) if message.contains("/srv/m is not read")),
                "{refused:?}"
            );
            assert_eq!(blocking(|| Ok(7)).await, Ok(7), "all else still has a thread");
            drop(ends);
            let read = reads.run("/srv/m", Duration::from_secs(30), || Ok(8)).await;
            assert_eq!(read, Ok(8), "the mount answers again");
        });
    }
}

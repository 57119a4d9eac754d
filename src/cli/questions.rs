//! `gpudeck questions` and `gpudeck answer`.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::sync::{Arc, Mutex, PoisonError};

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::args::{Args, Output};
use super::attach::attach;
use super::exit::{Failure, Success};
use super::table;
use crate::api::{Door, Intent, Question, QuestionKind, Secret};
use crate::controller::reach::Person;

/// Longest answer, in bytes.
const LONGEST: usize = 4096;

/// Who sits at the terminal, if anybody does: asked by what needs an answer and has no controller.
pub struct AtTerminal;

impl AtTerminal {
    /// None without a terminal.
    pub fn there() -> Option<Arc<dyn Person>> {
        std::io::stdin().is_terminal().then(|| Arc::new(Self) as Arc<dyn Person>)
    }
}

impl Person for AtTerminal {
    fn agrees(&self, question: &str) -> bool {
        eprint!("{question} (yes/no) ");
        let mut answer = String::new();
        let read = std::io::stdin().read_line(&mut answer);
        read.is_ok() && answer.trim().eq_ignore_ascii_case("yes")
    }

    fn secret(&self, prompt: &str) -> Option<SecretString> {
        let read = read_hidden(&format!("{prompt} (not shown): ")).ok()?;
        Some(read.into_answer()).filter(|s| !s.expose_secret().is_empty())
    }
}

/// What waits for a person.
pub async fn list(args: &Args) -> Result<Success, Failure> {
    let snapshot = attach(args).await?.snapshot().await?;
    if args.output == Output::Json {
        table::json(&snapshot.questions)?;
        return Ok(Success::Done);
    }
    let rows: Vec<Vec<String>> = snapshot
        .questions
        .values()
        .map(|q| {
            let host = q.host.as_ref().map(ToString::to_string).unwrap_or_default();
            vec![q.id.to_string(), host, q.text.clone()]
        })
        .collect();
    table::print(&["NUMBER", "HOST", "QUESTION"], &rows)?;
    Ok(Success::Done)
}

/// How a question is answered: a secret does not belong on the command line.
pub fn how(questions: &BTreeMap<u64, Question>, id: u64) -> String {
    let yes = match questions.get(&id).map(|question| question.kind) {
        Some(QuestionKind::Secret) => "",
        Some(QuestionKind::HostKey) | None => " yes",
    };
    format!("`gpudeck answer {id}{yes}`")
}

/// Answers one.
pub async fn answer(args: &Args, id: u64, answer: Option<&str>) -> Result<Success, Failure> {
    let client = attach(args).await?;
    let snapshot = client.snapshot().await?;
    let secret = snapshot.questions.get(&id).is_some_and(|q| q.kind == QuestionKind::Secret);
    let answer = match answer {
        Some(_) if secret => {
            return Err(Failure::other("a secret does not belong on a command line")
                .with_hint("leave it out: it is read from the terminal or from standard input"));
        }
        Some(answer) => answer.into(),
        None => {
            // Aside, so that Ctrl-C is heard meanwhile.
            let asked = tokio::task::spawn_blocking(|| read_hidden("answer (not shown): "));
            asked.await.map_err(|e| Failure::other(e.to_string()).unforeseen())??
        }
    };
    client.send(Intent::Answer { question: id, answer }).await?;
    if args.output == Output::Text {
        table::out("answered")?;
    }
    Ok(Success::Done)
}

/// What the terminal was like before it stopped to show what is typed.
static PENDING: Mutex<Option<rustix::termios::Termios>> = Mutex::new(None);

/// A question that is open: whoever breaks it off must not wait for its answer.
pub struct Asked(());

/// How many are open.
static ASKED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

impl Asked {
    /// One more.
    pub fn begin() -> Self {
        ASKED.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        ASKED.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Lets the terminal show what is typed, should nobody have answered before it was too late, or broken it off.
/// Whether somebody was still being asked.
pub fn show_again() -> bool {
    let pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(shown) = &pending {
        let now = rustix::termios::OptionalActions::Now;
        let _ = rustix::termios::tcsetattr(std::io::stdin(), now, shown);
    }
    pending.is_some() || ASKED.load(std::sync::atomic::Ordering::SeqCst) > 0
}

/// Reads a line without showing it; whole standard input where nobody sits at it.
fn read_hidden(prompt: &str) -> Result<Secret, Failure> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    // Wiped, and roomy, so that it does not move while it is read.
    let mut text = Zeroizing::new(String::with_capacity(2 * LONGEST));
    let failed = |e: std::io::Error| {
        Failure::other(format!("nothing could be read: {e}"))
            .with_hint("type it at a terminal, or give it on standard input")
    };
    if !stdin.is_terminal() {
        stdin.take(LONGEST as u64).read_to_string(&mut text).map_err(failed)?;
        return Ok(text.trim_end_matches('\n').into());
    }
    eprint!("{prompt}");
    let shown = tcgetattr(&stdin).map_err(|e| failed(e.into()))?;
    *PENDING.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown.clone());
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Now, &hidden).map_err(|e| failed(e.into()))?;
    let read = stdin.read_line(&mut text);
    show_again();
    eprintln!();
    read.map_err(failed)?;
    Ok(text.trim_end_matches('\n').into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Timestamp;

    #[test]
    fn what_is_told_to_answer_with_is_taken() {
        let question = |id, kind| {
            let text = "?".to_owned();
            (id, Question { id, host: None, kind, text, asked: Timestamp(0) })
        };
        let open =
            BTreeMap::from([question(1, QuestionKind::Secret), question(2, QuestionKind::HostKey)]);
        assert_eq!(how(&open, 1), "`gpudeck answer 1`");
        assert_eq!(how(&open, 2), "`gpudeck answer 2 yes`");
    }
}

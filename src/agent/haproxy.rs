//! Commands to a `HAProxy` run-time socket: one connection each, as `HAProxy` wants it outside of its
//! interactive mode (management guide, 9.3).

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::error::{failed, io_refusal};
use crate::wire::Refusal;

/// Longest answer that is read.
const MAX_ANSWER: u64 = 4 << 20;

/// Most of all answers together: they travel in one line.
const MAX_ANSWERS: usize = 2 << 20;

/// Time for one command.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Most commands at once.
const MAX_COMMANDS: usize = 1000;

/// A command that only looks.
///
/// # Errors
/// It is none, or is not one command.
pub fn check_show(command: &str) -> Result<(), Refusal> {
    if command.starts_with("show ") {
        return check(command);
    }
    Err(failed("only commands that begin with `show ` are passed on without a claim"))
}

/// One command on one line: a `;` or a line end would begin another.
fn check(command: &str) -> Result<(), Refusal> {
    if command.trim().is_empty() || command.len() > 4096 {
        return Err(failed("not a command"));
    }
    if command.contains(|c: char| c == ';' || c.is_control()) {
        return Err(failed("a command holds no `;` and no control characters"));
    }
    Ok(())
}

/// Sends the commands in order; their answers. Stops at the first that cannot be sent.
///
/// # Errors
/// A command is not one command (then none is sent), or the socket does not answer.
pub async fn run(socket: &str, commands: &[String]) -> Result<Vec<String>, Refusal> {
    if commands.len() > MAX_COMMANDS {
        return Err(failed("too many commands at once"));
    }
    commands.iter().try_for_each(|c| check(c))?;
    let mut answers = Vec::with_capacity(commands.len());
    let mut total = 0usize;
    for command in commands {
        let answer = match tokio::time::timeout(TIMEOUT, ask(socket, command)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(failed(format!("{socket} does not answer `{command}`"))),
        };
        total = total.saturating_add(answer.len());
        if total > MAX_ANSWERS {
            return Err(failed(format!("the answers of {socket} are too long")));
        }
        answers.push(answer);
    }
    Ok(answers)
}

async fn ask(socket: &str, command: &str) -> Result<String, Refusal> {
    let path = Path::new(socket);
    let fail = |e: std::io::Error| io_refusal(&e, "talk to HAProxy at", path);
    let mut stream = UnixStream::connect(path).await.map_err(fail)?;
    stream.write_all(format!("{command}\n").as_bytes()).await.map_err(fail)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await.map_err(fail)?;
    // Each answer ends with an empty line: without it half a table would pass for a whole one.
    if command.starts_with("show ") && !answer.ends_with(b"\n\n") {
        return Err(failed(format!("the answer of {socket} to `{command}` broke off")));
    }
    // Lines and their structure stay; what could steer a terminal goes.
    let keep = |c: &char| *c == '\n' || *c == '\t' || !c.is_control();
    Ok(String::from_utf8_lossy(&answer).chars().filter(keep).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[test]
    fn one_command_is_one_command() {
        assert_eq!(check_show("show stat chat 4 -1"), Ok(()));
        for bad in
            ["set weight a/b 1", "show stat; set weight a/b 1", "show stat\nshutdown", "show", ""]
        {
            assert!(check_show(bad).is_err(), "{bad:?}");
        }
        assert_eq!(check("set weight a/b 1"), Ok(()));
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = [0; 100];
            assert!(stream.read(&mut line).await.unwrap() > 0);
            stream.write_all(b"# pxname,svname\nchat,r1-0-a1\n").await.unwrap();
        });
        let answers = run(path.to_str().unwrap(), &["show stat".to_owned()]).await;
        let Err(Refusal::Failed { message }) = answers else { panic!("{answers:?}") };
        assert!(message.ends_with("broke off"), "{message}");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn asks_on_a_connection_each_and_sends_nothing_when_one_is_bad() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let mut asked = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut line = vec![0; 100];
                let n = stream.read(&mut line).await.unwrap();
                asked.push(String::from_utf8_lossy(&line[..n]).into_owned());
                stream.write_all(b"a,b\n\x1b[31mc\n\n").await.unwrap();
            }
            asked
        });
        let socket = path.to_str().unwrap();
        let bad = ["show info".to_owned(), "a;b".to_owned()];
        assert!(run(socket, &bad).await.is_err());
        let good = ["show info".to_owned(), "show stat".to_owned()];
        let answers = run(socket, &good).await.unwrap();
        assert_eq!(answers, ["a,b\n[31mc\n\n", "a,b\n[31mc\n\n"]);
        assert_eq!(server.await.unwrap(), ["show info\n", "show stat\n"]);
        let gone = run("/nonexistent/socket", &good).await;
        assert!(matches!(gone, Err(Refusal::NoFile { .. })), "{gone:?}");
    }
}

//! Jumps and proxy commands.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ssh_support::{Relay, Sshd, keygen, lab, tool, until};
use async_trait::async_trait;
use gpudeck::base::{DownCause, Hint};
use gpudeck::ssh::{Connection, Jumps, NoQuestions, Questions, SshError};
use secrecy::SecretString;

use super::{add_to, block, logins, options, says, to};

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_jumps_is_walked_with_each_hosts_own_configuration() {
    if !lab() {
        return;
    }
    let (one, two, three) = (Sshd::start(), Sshd::start(), Sshd::start());
    let mut text = block("one", &one, "");
    text += &block("two", &two, " ProxyJump one");
    text += &block("three", &three, " ProxyJump two");
    text += &block("listed", &three, " ProxyJump root@one,two");
    let options = options(one.dir.path(), &text);
    for name in ["three", "listed"] {
        let connection = to(name, &options, &NoQuestions).await.unwrap();
        assert_eq!(says(&connection, "echo through").await, "through\n");
    }
    assert_eq!((logins(&two) > 0, logins(&three)), (true, 2));
    // Each place on the way is checked and logged in to by itself.
    let stranger = two.path("stranger");
    keygen(&stranger, "ed25519", "");
    let key = two.user_key().display().to_string();
    let wrong = text.replace(&key, &stranger.display().to_string());
    let refused = self::options(one.dir.path(), &wrong);
    let error = to("three", &refused, &NoQuestions).await.err().unwrap();
    assert!(error.to_string().starts_with("jump host two: "), "{error}");
    assert!(error.needs_a_person() && error.login_lost() && error.hint().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_hosts_behind_a_bastion_open_it_once_and_once_again() {
    if !lab() {
        return;
    }
    let mut bastion = Sshd::start();
    let inner = Sshd::start();
    let mut text = block("bastion", &bastion, "");
    for n in 0..12 {
        text += &block(&format!("host{n}"), &inner, " ProxyJump bastion");
    }
    let options = options(bastion.dir.path(), &text);
    let all = || async {
        let each = (0..12).map(|n| {
            let options = options.clone();
            async move { to(&format!("host{n}"), &options, &NoQuestions).await }
        });
        futures::future::join_all(each).await
    };
    let first: Vec<_> = all().await.into_iter().map(Result::unwrap).collect();
    assert_eq!(logins(&bastion), 1);
    for connection in &first {
        assert_eq!(says(connection, "echo in").await, "in\n");
    }
    bastion.kill();
    for connection in &first {
        tokio::time::timeout(Duration::from_secs(30), connection.closed()).await.unwrap();
    }
    let error = to("host0", &options, &NoQuestions).await.err().unwrap();
    assert!(matches!(error, SshError::Jump { .. }), "{error}");
    bastion.up();
    // What was answered before holds for a moment only.
    let mut again = all().await;
    for _ in 0..100 {
        if again.iter().all(Result::is_ok) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Who got through stays, or the bastion would be left and opened another time.
        let more = all().await;
        for (kept, more) in again.iter_mut().zip(more) {
            if kept.is_err() {
                *kept = more;
            }
        }
    }
    assert!(again.iter().all(Result::is_ok));
    assert_eq!(logins(&bastion), 2, "opened once for all of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_that_refuses_us_is_left_alone_until_something_has_changed() {
    if !lab() {
        return;
    }
    let (bastion, inner) = (Sshd::start(), Sshd::start());
    let mut text = block("bastion", &bastion, "");
    for n in 0..3 {
        text += &block(&format!("host{n}"), &inner, " ProxyJump bastion");
    }
    let options = options(bastion.dir.path(), &text);
    let keys = bastion.path("authorized_keys");
    let good = fs::read_to_string(&keys).unwrap();
    fs::write(&keys, "").unwrap();
    let error = to("host0", &options, &NoQuestions).await.err().unwrap();
    assert!(error.login_lost(), "{error}");
    // It would let us in now, and is not asked by every host to find out.
    fs::write(&keys, good).unwrap();
    for name in ["host1", "host2"] {
        assert_eq!(to(name, &options, &NoQuestions).await.err(), Some(error.clone()));
    }
    assert_eq!(logins(&bastion), 0);
    options.jumps.ask_again();
    // What was said before holds for a moment even so.
    let mut host1 = to("host1", &options, &NoQuestions).await;
    for _ in 0..100 {
        if host1.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        host1 = to("host1", &options, &NoQuestions).await;
    }
    host1.unwrap();
    assert_eq!(logins(&bastion), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_is_kept_for_a_while_after_its_last_use() {
    if !lab() {
        return;
    }
    let (bastion, inner) = (Sshd::start(), Sshd::start());
    let text = block("bastion", &bastion, "") + &block("inner", &inner, " ProxyJump bastion");
    let mut options = options(bastion.dir.path(), &text);
    for _ in 0..3 {
        to("inner", &options, &NoQuestions).await.unwrap();
    }
    assert_eq!((logins(&bastion), logins(&inner)), (1, 3));
    // And not for ever.
    options.jumps = Arc::new(Jumps::lingering(Duration::from_millis(100)));
    let left = || bastion.sessions() == 0;
    until("it is left with all that was known of it", Duration::from_secs(30), left).await;
    to("inner", &options, &NoQuestions).await.unwrap();
    until("it is left", Duration::from_secs(30), left).await;
    to("inner", &options, &NoQuestions).await.unwrap();
    assert_eq!(logins(&bastion), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_whose_flow_was_cut_is_opened_anew_by_the_next_that_needs_it() {
    if !lab() {
        return;
    }
    let (bastion, inner) = (Sshd::start(), Sshd::start());
    let relay = Relay::to(bastion.port).await;
    let over =
        block("bastion", &bastion, " HostKeyAlias bastion\n StrictHostKeyChecking accept-new")
            .replace(&format!("Port {}", bastion.port), &format!("Port {}", relay.port));
    let text = over + &block("inner", &inner, " ProxyJump bastion");
    let mut options = options(bastion.dir.path(), &text);
    options.timeouts.channel = Duration::from_secs(5);
    let first = to("inner", &options, &NoQuestions).await.unwrap();
    relay.freeze();
    let error = to("inner", &options, &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("jump host bastion: "), "{error}");
    assert!(error.to_string().contains("no longer answers"), "{error}");
    // What went over it knows at once, and nobody waits for its keepalives.
    tokio::time::timeout(Duration::from_secs(10), first.closed()).await.expect("not noticed");
    options.timeouts.channel = Duration::from_secs(30);
    to("inner", &options, &NoQuestions).await.unwrap();
    assert_eq!(logins(&bastion), 2);
}

/// Answers when `wanted` others wait for the answer.
struct Crowd {
    answer: &'static str,
    wanted: usize,
    waiting: tokio::sync::watch::Sender<Vec<String>>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl Questions for Crowd {
    async fn host_key(&self, _: &str, _: &str, _: &str) -> Option<bool> {
        Some(true)
    }

    async fn secret(&self, prompt: &str) -> Option<SecretString> {
        self.asked.lock().unwrap().push(prompt.to_owned());
        let mut waiting = self.waiting.subscribe();
        let all = waiting.wait_for(|w| w.len() >= self.wanted);
        let all = tokio::time::timeout(Duration::from_secs(60), all);
        all.await.expect("not all know that they wait").unwrap();
        Some(self.answer.to_owned().into())
    }

    fn waits_for(&self, question: &str) {
        self.waiting.send_modify(|w| w.push(question.to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_hosts_that_wait_for_one_answer_know_of_it() {
    if !lab() {
        return;
    }
    let (outer, bastion, inner) = (Sshd::start(), Sshd::start(), Sshd::start());
    // A key that only the bastion in the middle takes, and one that all hosts share.
    let lock = |server: &Sshd| {
        let key = server.user_key().display().to_string();
        tool("ssh-keygen", &["-q", "-p", "-P", "", "-N", "open sesame", "-f", &key]);
    };
    lock(&bastion);
    let mut text = block("outer", &outer, "") + &block("bastion", &bastion, " ProxyJump outer");
    text += &block("alone", &bastion, "");
    for n in 0..4 {
        text += &block(&format!("host{n}"), &inner, " ProxyJump bastion");
    }
    for names in [["host0", "host1", "host2", "host3"], ["alone"; 4]] {
        let options = options(bastion.dir.path(), &text);
        let crowd = Crowd {
            answer: "open sesame",
            wanted: 3,
            waiting: tokio::sync::watch::Sender::default(),
            asked: Mutex::default(),
        };
        let each = names.map(|name| to(name, &options, &crowd));
        let all: Vec<_> = futures::future::join_all(each).await;
        assert!(all.iter().all(Result::is_ok), "{names:?}");
        assert_eq!(crowd.asked.lock().unwrap().len(), 1, "asked more than once");
        let known = crowd.waiting.borrow();
        assert!(known.iter().all(|q| q.contains("passphrase of ")), "{known:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bastion_that_forbids_forwarding_says_so() {
    if !lab() {
        return;
    }
    let mut bastion = Sshd::start();
    add_to(&mut bastion, "AllowTcpForwarding no\n");
    let inner = Sshd::start();
    let text = block("bastion", &bastion, "") + &block("inner", &inner, " ProxyJump bastion");
    let error = to("inner", &options(bastion.dir.path(), &text), &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("forbids forwarding"), "{error}");
    assert!(error.hint().unwrap().contains("AllowTcpForwarding"));
    assert_eq!(error.cause(), DownCause::NoRoute);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_behind_a_bastion_on_which_nothing_listens_is_named_and_not_the_bastion() {
    if !lab() {
        return;
    }
    let (bastion, mut inner) = (Sshd::start(), Sshd::start());
    let text = block("bastion", &bastion, "") + &block("inner", &inner, " ProxyJump bastion");
    inner.kill();
    let error = to("inner", &options(bastion.dir.path(), &text), &NoQuestions).await.err().unwrap();
    assert_eq!(error.cause(), DownCause::Refused, "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains(&inner.port.to_string()) && !hint.contains("sshd_config"), "{hint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_command_lives_and_dies_with_its_connection() {
    if !lab() {
        return;
    }
    let (way, server) = (Sshd::start(), Sshd::start());
    let (pid, dir) = (server.path("pid"), way.dir.path());
    let command = format!(
        " ProxyCommand sh -c 'echo $$ > {}; exec ssh -F /dev/null -o BatchMode=yes -i {} -o \
         UserKnownHostsFile={} -p {} -W %h:%p root@127.0.0.1'",
        pid.display(),
        way.user_key().display(),
        way.known_hosts("ed25519").display(),
        way.port
    );
    let options = options(dir, &block("far", &server, &command));
    let connection = to("far", &options, &NoQuestions).await.unwrap();
    assert_eq!(says(&connection, "echo by command").await, "by command\n");
    let pid = fs::read_to_string(pid).unwrap().trim().to_owned();
    let process = Path::new("/proc").join(pid).join("cwd");
    assert!(process.exists());
    drop(connection);
    until("the command ends", Duration::from_secs(30), || !process.exists()).await;

    let bad = block("far", &server, " ProxyCommand echo no way there >&2; exit 3");
    let error = to("far", &self::options(dir, &bad), &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("no way there"), "{error}");
}

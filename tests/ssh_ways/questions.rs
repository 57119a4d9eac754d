//! A server's own questions.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ssh_support::{keygen, lab};
use async_trait::async_trait;
use gpudeck::ssh::{ConnectOptions, NoQuestions, Questions};
use russh::server::{self, Auth, Msg, Server as _, Session};
use russh::{Channel, ChannelId, MethodKind, MethodSet};
use secrecy::SecretString;

use super::{options, says, to};

/// A server that wants what OpenSSH without PAM cannot want.
#[derive(Clone)]
pub(super) struct Asking {
    /// `password`, `codes` (password and code by questions), `password, key` (and any key after it), `hang`, `hang up`,
    /// `no channel` or `late channel`.
    wants: &'static str,
    step: usize,
    late: Arc<Late>,
}

/// A channel that is opened when it is told to.
#[derive(Default)]
pub(super) struct Late {
    pub(super) go: tokio::sync::Notify,
    pub(super) closed: tokio::sync::Notify,
}

impl server::Server for Asking {
    type Handler = Self;
    fn new_client(&mut self, _: Option<std::net::SocketAddr>) -> Self {
        self.clone()
    }
}

impl server::Handler for Asking {
    type Error = russh::Error;

    async fn auth_none(&mut self, _: &str) -> Result<Auth, Self::Error> {
        match self.wants {
            "hang" => std::future::pending().await,
            // As of a network that breaks: nothing is said.
            "hang up" => Err(russh::Error::HUP),
            _ => Ok(self.no()),
        }
    }

    async fn auth_publickey_offered(
        &mut self,
        _: &str,
        _: server::PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        match self.wants {
            "hang up" => Err(russh::Error::HUP),
            "password, key" if self.step == 1 => Ok(Auth::Accept),
            _ => Ok(self.no()),
        }
    }

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: server::VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        // With a signature.
        Ok(if self.wants == "password, key" && self.step == 1 { Auth::Accept } else { self.no() })
    }

    async fn auth_password(&mut self, _: &str, password: &str) -> Result<Auth, Self::Error> {
        Ok(match password {
            "open sesame" if self.wants == "password, key" => {
                self.step = 1;
                Auth::Reject {
                    proceed_with_methods: Some(MethodSet::from(&[MethodKind::PublicKey][..])),
                    partial_success: true,
                }
            }
            "open sesame" => Auth::Accept,
            _ => self.no(),
        })
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        _: &str,
        _: &str,
        response: Option<server::Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        let wanted = ["open sesame", "123456"];
        if let Some(response) = response {
            let given: Vec<_> = response.map(|r| r.to_vec()).collect();
            if given != [wanted[self.step].as_bytes()] {
                self.step = 0;
                return Ok(self.no());
            }
            self.step += 1;
        }
        let Some(prompt) = ["Password: ", "Code\u{1b}[31m: "].get(self.step) else {
            return Ok(Auth::Accept);
        };
        Ok(Auth::Partial {
            name: "".into(),
            instructions: "".into(),
            prompts: vec![((*prompt).into(), false)].into(),
        })
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.wants == "no channel" {
            std::future::pending::<()>().await;
        }
        if self.wants == "late channel" {
            self.late.go.notified().await;
        }
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(&mut self, _: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.late.closed.notify_one();
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)?;
        session.exit_status_request(channel, 0)?;
        session.close(channel)
    }
}

impl Asking {
    fn no(&self) -> Auth {
        let kind = match self.wants {
            "codes" => MethodKind::KeyboardInteractive,
            "password, key" if self.step == 1 => MethodKind::PublicKey,
            _ => MethodKind::Password,
        };
        Auth::Reject {
            proceed_with_methods: Some(MethodSet::from(&[kind][..])),
            partial_success: false,
        }
    }

    /// Serves on a port of the loopback interface; the task ends with the test's runtime.
    pub(super) async fn serve(wants: &'static str, key: &Path) -> u16 {
        Self::serve_late(wants, key, Arc::default()).await
    }

    /// The same, with a hand on its channels.
    pub(super) async fn serve_late(wants: &'static str, key: &Path, late: Arc<Late>) -> u16 {
        let key = russh::keys::load_secret_key(key, None).unwrap();
        let config = server::Config {
            keys: vec![key],
            auth_rejection_time: Duration::from_millis(1),
            auth_rejection_time_initial: Some(Duration::ZERO),
            ..server::Config::default()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            Asking { wants, step: 0, late }.run_on_socket(Arc::new(config), &listener).await
        });
        port
    }
}

pub(super) struct Person {
    answers: Mutex<VecDeque<&'static str>>,
    asked: Mutex<Vec<String>>,
}

impl Person {
    pub(super) fn who_says(answers: &[&'static str]) -> Self {
        Self { answers: Mutex::new(answers.iter().copied().collect()), asked: Mutex::default() }
    }
}

#[async_trait]
impl Questions for Person {
    async fn host_key(&self, _: &str, _: &str, _: &str) -> Option<bool> {
        Some(true)
    }

    async fn secret(&self, prompt: &str) -> Option<SecretString> {
        self.asked.lock().unwrap().push(prompt.to_owned());
        self.answers.lock().unwrap().pop_front().map(SecretString::from)
    }
}

pub(super) fn asking_block(port: u16, dir: &Path) -> String {
    format!(
        "Host box\n HostName 127.0.0.1\n Port {port}\n User u\n IdentityFile none\n \
         UserKnownHostsFile {}\n StrictHostKeyChecking accept-new\n",
        dir.join(format!("kh{port}")).display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_questions_are_answered_by_a_person() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("host");
    if std::process::Command::new("ssh-keygen").arg("-?").output().is_err() && !lab() {
        return;
    }
    keygen(&key, "ed25519", "");
    let port = Asking::serve("codes", &key).await;
    let options = options(dir.path(), &asking_block(port, dir.path()));
    let person = Person::who_says(&["wrong", "open sesame", "123456"]);
    to("box", &options, &person).await.unwrap();
    let asked = person.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked[2].contains("u@127.0.0.1") && asked[2].ends_with("Code:"), "{asked:?}");
    // Nobody there: a named cause, and no question.
    let error = to("box", &options, &NoQuestions).await.err().unwrap();
    assert!(error.to_string().contains("nobody answers") && error.login_lost(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_passphrase_of_a_key_that_the_server_would_take_is_asked_for() {
    if !lab() {
        return;
    }
    let server = super::ssh_support::Sshd::start();
    let mut keys = String::new();
    for name in ["one", "two", "three"] {
        let key = server.path(name);
        keygen(&key, "ed25519", "open sesame");
        keys += &format!(" IdentityFile {}\n", key.display());
    }
    let own = format!(" IdentityFile {}\n", server.user_key().display());
    let text = super::block("box", &server, "").replace(&own, &keys);
    // It takes none: nobody is asked.
    let person = Person::who_says(&[]);
    let error = to("box", &options(server.dir.path(), &text), &person).await.err().unwrap();
    assert!(error.login_lost() && error.to_string().contains("three"), "{error}");
    assert_eq!(person.asked.lock().unwrap().clone(), Vec::<String>::new());
    // It takes one of them, or two.
    server.authorize(&server.path("two"));
    let person = Person::who_says(&["open sesame"]);
    to("box", &options(server.dir.path(), &text), &person).await.unwrap();
    let asked = person.asked.lock().unwrap().clone();
    assert!(asked.len() == 1 && asked[0].ends_with("two"), "{asked:?}");
    server.authorize(&server.path("three"));
    let person = Person::who_says(&["no", "no", "no", "open sesame"]);
    to("box", &options(server.dir.path(), &text), &person).await.unwrap();
    let asked = person.asked.lock().unwrap().clone();
    assert!(asked.len() == 4 && asked[3].ends_with("three"), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_asked_for_once() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("host");
    if std::process::Command::new("ssh-keygen").arg("-?").output().is_err() && !lab() {
        return;
    }
    keygen(&key, "ed25519", "");
    let port = Asking::serve("password", &key).await;
    let options = options(dir.path(), &asking_block(port, dir.path()));
    let person = Person::who_says(&["wrong", "open sesame"]);
    to("box", &options, &person).await.unwrap();
    assert!(person.asked.lock().unwrap()[1].starts_with("wrong password; "));
    // The next connection knows it.
    let connection = to("box", &options, &NoQuestions).await.unwrap();
    says(&connection, "true").await;
    let silent = Person::who_says(&[]);
    let forgetful = ConnectOptions { key_ring: Arc::default(), ..options };
    assert!(to("box", &forgetful, &silent).await.is_err());
    assert!(to("box", &forgetful, &silent).await.is_err());
    assert_eq!(silent.asked.lock().unwrap().len(), 1, "asked again at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_came_too_early_is_offered_again_after_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let (key, own, locked) =
        (dir.path().join("host"), dir.path().join("own"), dir.path().join("locked"));
    if std::process::Command::new("ssh-keygen").arg("-?").output().is_err() && !lab() {
        return;
    }
    for (path, passphrase) in [(&key, ""), (&own, ""), (&locked, "sim sala bim")] {
        keygen(path, "ed25519", passphrase);
    }
    let port = Asking::serve("password, key", &key).await;
    let with = |file: &Path| {
        let named = format!("IdentityFile {}", file.display());
        asking_block(port, dir.path()).replace("IdentityFile none", &named)
    };
    let person = Person::who_says(&["open sesame"]);
    let connection = to("box", &options(dir.path(), &with(&own)), &person).await.unwrap();
    says(&connection, "true").await;
    assert_eq!(person.asked.lock().unwrap().len(), 1);
    // Nor is the passphrase asked for before it can be of use, be the public half there or not.
    for has_public in [true, false] {
        if !has_public {
            std::fs::remove_file(locked.with_extension("pub")).unwrap();
        }
        let person = Person::who_says(&["open sesame", "sim sala bim"]);
        to("box", &options(dir.path(), &with(&locked)), &person).await.unwrap();
        let asked = person.asked.lock().unwrap().clone();
        assert!(asked.len() == 2 && asked[0].contains("password of u@"), "{asked:?}");
        assert!(asked[1].contains("locked"), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_two_keys_are_wanted_each_does_for_one() {
    if !lab() {
        return;
    }
    let mut server = super::ssh_support::Sshd::start();
    super::add_to(&mut server, "AuthenticationMethods publickey,publickey\n");
    let own = server.user_key();
    let second = server.path("second");
    keygen(&second, "ed25519", "");
    let named = format!(" IdentityFile {}\n", own.display());
    let both = format!(" IdentityFile {}\n{named}", second.display());
    let text = super::block("box", &server, "");
    let before = to("box", &options(server.dir.path(), &text), &NoQuestions).await;
    assert!(before.err().unwrap().login_lost(), "one key is not enough");
    server.authorize(&second);
    server.authorize(&own);
    for text in [text.replace(&named, &both), text.replace(&named, &format!("{named}{both}"))] {
        let connection = to("box", &options(server.dir.path(), &text), &NoQuestions).await.unwrap();
        says(&connection, "true").await;
    }
}

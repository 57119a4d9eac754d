//! Logging in, in OpenSSH's order: keys (an agent's first), the server's own questions, a password.
//!
//! A passphrase is never asked for while a connection waits (servers hang up after two minutes), nor for a
//! key that the server would not take: the login ends with [`Login::Locked`], the key is unlocked in the
//! [`super::KeyRing`], and the connection is made again. What a server itself asks must be asked while it
//! waits.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use russh::client::{AuthResult, Handle, Handler, KeyboardInteractiveAuthResponse as Reply};
use russh::keys::HashAlg;
use russh::{MethodKind, MethodSet};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tokio::time::timeout;

use super::endpoint::{ConnectOptions, Endpoint};
use super::hang_up::HangUp;
use super::identity::{Holder, Identities, Identity, algorithm_name, gather};
use super::signer::{Outcome, Patience, Signer};
use super::{Questions, SshError};
use crate::base::{text, time};

/// The end of a connection is noticed within this time.
const NOTICED: Duration = Duration::from_secs(1);
/// A server that asks on and on is left.
const MAX_QUESTIONS: usize = 20;
/// A server that wants more factors than this is left.
const MAX_FACTORS: usize = 6;

/// A server that hangs up after so many keys does so because of them, also where it does not say so
/// (Dropbear; sshd's `MaxAuthTries` is this by default).
const MANY_REFUSALS: u32 = 6;

/// What came of trying to log in.
pub(super) enum Login {
    /// We are in.
    In,
    /// These encrypted keys are left to try.
    Locked { files: Vec<PathBuf>, tried: Vec<String> },
    /// Nothing is left to try.
    Failed { tried: Vec<String> },
}

/// What came of one way to log in.
enum Step {
    In,
    /// It was taken, and the server wants another one of these.
    More(MethodSet),
    /// It was not; these are left.
    No(MethodSet),
    /// There is no use in going on.
    Over,
    Locked(Vec<PathBuf>),
}

/// The end of a connection.
pub(super) struct Ended {
    /// Why, once it has ended.
    pub(super) why: watch::Receiver<Option<String>>,
    /// The server has said that it hangs up because of our login.
    pub(super) refused: Arc<AtomicBool>,
    /// It has hung up, also while russh does not listen.
    pub(super) hang_up: HangUp,
}

/// Tries one way after the other on a fresh connection, and stops at the first that is taken:
/// russh hangs when it is asked to go on after a success.
pub(super) async fn authenticate<H: Handler>(
    handle: &mut Handle<H>,
    endpoint: &Endpoint,
    options: &ConnectOptions,
    questions: &dyn Questions,
    ended: Ended,
    skip_locked: bool,
) -> Result<Login, SshError> {
    let identities = if endpoint.config.pubkey_authentication {
        gather(endpoint, options).await?
    } else {
        Identities::default()
    };
    let mut attempt = Attempt {
        limit: options.timeouts.auth,
        tried: identities.notes.clone(),
        endpoint,
        options,
        questions,
        identities,
        next_identity: 0,
        wanted: Vec::new(),
        refusals: 0,
        late: None,
        ended,
        skip_locked,
    };
    let login = attempt.run(handle).await;
    let is_clear = matches!(login, Ok(Login::In) | Err(SshError::Unanswered { .. }));
    if is_clear || !handle.is_closed() {
        return login;
    }
    match attempt.lost().await {
        Some(lost) => Err(lost),
        None => login.or_else(|_| Ok(attempt.failed())),
    }
}

struct Attempt<'a> {
    endpoint: &'a Endpoint,
    options: &'a ConnectOptions,
    questions: &'a dyn Questions,
    limit: Duration,
    tried: Vec<String>,
    identities: Identities,
    next_identity: usize,
    /// Encrypted keys that the server would take.
    wanted: Vec<PathBuf>,
    /// Keys that the server has refused.
    refusals: u32,
    /// Since when a signature was waited for that came too late.
    late: Option<Instant>,
    ended: Ended,
    skip_locked: bool,
}

const METHODS: [&str; 3] = ["publickey", "keyboard-interactive", "password"];

fn has(methods: &MethodSet, name: &str) -> bool {
    let kind = match name {
        "publickey" => MethodKind::PublicKey,
        "keyboard-interactive" => MethodKind::KeyboardInteractive,
        _ => MethodKind::Password,
    };
    methods.contains(&kind)
}

/// The signature hashes to try with an RSA key: what the server names and we may use, never SHA-1.
fn rsa_hashes(
    best: Option<HashAlg>,
    allows: impl Fn(&Option<HashAlg>) -> bool,
) -> Vec<Option<HashAlg>> {
    let known = [Some(HashAlg::Sha512), Some(HashAlg::Sha256)];
    let ours = known.into_iter().filter(allows);
    match best {
        // It does not say (before OpenSSH 7.2 it cannot): try both.
        None => ours.collect(),
        // Who takes the longer one takes the other, too (RFC 8332).
        Some(HashAlg::Sha512) => ours.take(1).collect(),
        Some(_) => ours.filter(|hash| *hash == best).collect(),
    }
}

impl Attempt<'_> {
    /// The ways we may go, in order.
    fn ways(&self) -> Vec<&'static str> {
        let config = &self.endpoint.config;
        let usual: Vec<String> = METHODS.iter().map(|&m| m.to_owned()).collect();
        let order = config.preferred_authentications.as_ref().unwrap_or(&usual);
        order
            .iter()
            .filter_map(|name| METHODS.iter().find(|m| *m == name).copied())
            .filter(|name| match *name {
                "publickey" => config.pubkey_authentication,
                "keyboard-interactive" => config.kbd_interactive_authentication,
                _ => config.password_authentication,
            })
            .collect()
    }

    async fn run<H: Handler>(&mut self, handle: &mut Handle<H>) -> Result<Login, SshError> {
        let ways = self.ways();
        let mut left: Option<MethodSet> = None;
        if ways.first() != Some(&"publickey") || self.identities.list.is_empty() {
            // Asking for nothing tells which ways there are, and lets us in where none is needed. A key that can be
            // offered saves the question; a passphrase is not asked for on a guess.
            let none = handle.authenticate_none(self.endpoint.config.user.clone());
            match self.result(none).await? {
                Step::In => return Ok(Login::In),
                Step::No(methods) | Step::More(methods) => left = Some(methods),
                Step::Over | Step::Locked(_) => return Ok(self.failed()),
            }
        }
        for _ in 0..MAX_FACTORS {
            let mut another = None;
            for way in &ways {
                if left.as_ref().is_some_and(|left| !has(left, way)) {
                    continue;
                }
                let step = match *way {
                    "publickey" => self.keys(handle).await?,
                    "keyboard-interactive" => self.answers(handle).await?,
                    _ => self.password(handle).await?,
                };
                match step {
                    Step::In => return Ok(Login::In),
                    Step::Over => return Ok(self.failed()),
                    Step::Locked(files) => {
                        let tried = std::mem::take(&mut self.tried);
                        return Ok(Login::Locked { files, tried });
                    }
                    Step::No(methods) => {
                        if !methods.is_empty() {
                            left = Some(methods);
                        }
                    }
                    Step::More(methods) => {
                        self.offer_again();
                        another = Some(methods);
                        break;
                    }
                }
            }
            let Some(methods) = another else { break };
            left = Some(methods);
        }
        if let Some(left) = &left {
            let wanted: Vec<String> =
                left.iter().map(|kind| <&str>::from(kind).to_owned()).collect();
            self.tried.push(format!("the server takes: {}", wanted.join(", ")));
        }
        Ok(self.failed())
    }

    fn failed(&mut self) -> Login {
        Login::Failed { tried: std::mem::take(&mut self.tried) }
    }

    /// Why a connection has ended while we logged in; none: because of the login. A way that breaks says
    /// nothing of the login, and russh tells it as one more refusal.
    async fn lost(&mut self) -> Option<SshError> {
        let why = match timeout(NOTICED, self.ended.why.wait_for(Option::is_some)).await {
            Ok(Ok(why)) => why.clone().unwrap_or_default(),
            _ => String::new(),
        };
        if self.ended.refused.load(Ordering::Acquire) || self.refusals >= MANY_REFUSALS {
            return None;
        }
        Some(match self.late {
            Some(since) => self.unanswered("an agent's signature", since),
            None => SshError::closed(&format!("while logging in: {why}")),
        })
    }

    fn late(&self) -> SshError {
        SshError::Timeout {
            address: self.endpoint.address(),
            phase: "logging in".to_owned(),
            after: self.limit,
        }
    }

    /// Waits for a result of russh, within the limit.
    async fn result(
        &mut self,
        work: impl Future<Output = Result<AuthResult, russh::Error>>,
    ) -> Result<Step, SshError> {
        match timeout(self.limit, work).await {
            Err(_) => Err(self.late()),
            Ok(Err(error)) => Err(SshError::of_library(&error)),
            Ok(Ok(result)) => Ok(Self::step(result)),
        }
    }

    fn step(result: AuthResult) -> Step {
        match result {
            AuthResult::Success => Step::In,
            AuthResult::Failure { partial_success: true, remaining_methods } => {
                Step::More(remaining_methods)
            }
            AuthResult::Failure { remaining_methods, .. } => Step::No(remaining_methods),
        }
    }

    /// After one factor the server judges keys anew: what it refused before was perhaps only too early. As OpenSSH
    /// (`pubkey_reset`), all are offered again, those first that come after the one that was offered last: where two
    /// keys are wanted the first does not do for both.
    fn offer_again(&mut self) {
        let offered = std::mem::take(&mut self.next_identity);
        self.identities.list.rotate_left(offered);
        self.wanted.clear();
    }

    /// Offers the keys that were not offered yet.
    async fn keys<H: Handler>(&mut self, handle: &mut Handle<H>) -> Result<Step, SshError> {
        let mut left = MethodSet::empty();
        while let Some(identity) = self.identities.list.get(self.next_identity).cloned() {
            self.next_identity += 1;
            if self.skip_locked && matches!(identity.holder, Holder::Locked(_)) {
                self.tried.push(format!("{} (encrypted, no passphrase given)", identity.label));
                continue;
            }
            self.tried.push(identity.label.clone());
            let hashes = self.hashes(handle, &identity).await;
            if hashes.is_empty() {
                self.tried.push(
                    "which is not offered (PubkeyAcceptedAlgorithms and the server leave no \
                     signature for it)"
                        .to_owned(),
                );
            }
            for hash in hashes {
                match self.offer(handle, &identity, hash).await? {
                    None => break,
                    Some(Step::No(methods)) => {
                        self.refusals += u32::from(!methods.is_empty());
                        if handle.is_closed() {
                            self.tried.push("then the server hung up".to_owned());
                            return Ok(Step::Over);
                        }
                        if !has(&methods, "publickey") {
                            self.tried.push("the server takes no (more) keys".to_owned());
                            return Ok(Step::No(methods));
                        }
                        left = methods;
                    }
                    Some(Step::Locked(files)) => {
                        self.wanted.extend(files);
                        break;
                    }
                    Some(step) => {
                        if matches!(step, Step::More(_)) {
                            self.tried.push("which was taken, and more is wanted".to_owned());
                        }
                        return Ok(step);
                    }
                }
            }
        }
        let mut locked = std::mem::take(&mut self.wanted);
        locked.append(&mut self.identities.locked);
        locked.dedup();
        if !self.skip_locked && !locked.is_empty() {
            return Ok(Step::Locked(locked));
        }
        for file in locked {
            self.tried.push(format!("{} (encrypted, no passphrase given)", file.display()));
        }
        Ok(Step::No(left))
    }

    /// Offers one key; none: whoever holds it would not sign.
    async fn offer<H: Handler>(
        &mut self,
        handle: &mut Handle<H>,
        identity: &Identity,
        hash: Option<HashAlg>,
    ) -> Result<Option<Step>, SshError> {
        let patience = Patience { first: self.limit, last: self.options.timeouts.sign };
        let agents = match &identity.holder {
            Holder::Agents(agents) => agents.len(),
            Holder::Us(_) | Holder::Locked(_) => 0,
        };
        let limit = self.limit + patience.whole(agents);
        let user = self.endpoint.config.user.clone();
        let since = Instant::now();
        let mut signer = Signer {
            identity,
            agents: &mut self.identities.agents,
            patience,
            ended: self.ended.why.clone(),
            hang_up: &self.ended.hang_up,
            outcome: Outcome::default(),
        };
        let offered = async {
            match &identity.certificate {
                Some(certificate) => {
                    let certificate = certificate.clone();
                    handle.authenticate_certificate_with(user, certificate, hash, &mut signer).await
                }
                None => {
                    let key = identity.key.clone();
                    handle.authenticate_publickey_with(user, key, hash, &mut signer).await
                }
            }
        };
        let offered = timeout(limit, offered).await;
        let mut outcome = signer.outcome;
        if outcome == Outcome::Late {
            // russh does not listen to the server while a signature is waited for: what it has said
            // meanwhile is heard now.
            self.late = Some(since);
            let ended = timeout(NOTICED, self.ended.why.wait_for(Option::is_some)).await;
            outcome = if ended.is_ok() { Outcome::HungUp } else { Outcome::Late };
        }
        match offered {
            Err(_) => Err(self.late()),
            Ok(Err(_)) if outcome == Outcome::HungUp => {
                Err(self.unanswered("an agent's signature", since))
            }
            Ok(Err(_)) if handle.is_closed() => Err(SshError::closed("while logging in")),
            Ok(Err(_)) if outcome == Outcome::Locked => Ok(match &identity.holder {
                Holder::Locked(file) => Some(Step::Locked(vec![file.clone()])),
                _ => None,
            }),
            Ok(Err(_)) if outcome == Outcome::Late => {
                let limit = time::short(patience.last);
                self.tried.push(format!(
                    "which its agent did not sign with within {limit} (it may want a touch, a \
                     PIN or a yes)"
                ));
                Ok(None)
            }
            Ok(Err(_)) => {
                self.tried.push("which its agent would not sign with".to_owned());
                Ok(None)
            }
            Ok(Ok(result)) => Ok(Some(Self::step(result))),
        }
    }

    /// The signature hashes to try.
    async fn hashes<H: Handler>(
        &self,
        handle: &Handle<H>,
        identity: &Identity,
    ) -> Vec<Option<HashAlg>> {
        let allowed = self.endpoint.config.pubkey_accepted_algorithms.as_ref();
        let allows = |hash: &Option<HashAlg>| {
            allowed.is_none_or(|list| list.contains(&algorithm_name(identity, *hash)))
        };
        if !identity.key.algorithm().is_rsa() {
            return Some(None).filter(allows).into_iter().collect();
        }
        match handle.best_supported_rsa_hash().await {
            Ok(Some(None)) | Err(_) => Vec::new(),
            Ok(best) => rsa_hashes(best.flatten(), allows),
        }
    }

    /// `user@host:port`: whose password it is.
    fn whom(&self) -> String {
        format!("{}@{}", self.endpoint.config.user, self.endpoint.address())
    }

    fn may_ask(&self) -> bool {
        self.questions.can_ask()
            && !self.endpoint.config.batch_mode
            && !self.options.key_ring.declined(&self.whom())
    }

    fn unanswered(&self, what: &'static str, since: Instant) -> SshError {
        SshError::Unanswered { host: self.endpoint.name.clone(), what, after: since.elapsed() }
    }

    /// Asks a person for as long as the server waits.
    async fn ask(&mut self, prompt: &str) -> Result<Option<SecretString>, SshError> {
        let since = Instant::now();
        let prompt = text::clean(prompt, 300);
        let mut ended = self.ended.why.clone();
        let answer = tokio::select! {
            answer = self.questions.secret(&prompt) => answer,
            _ = ended.wait_for(Option::is_some) => {
                return Err(self.unanswered("an answer", since));
            }
        };
        if answer.is_none() {
            self.options.key_ring.decline(&self.whom());
        }
        Ok(answer)
    }

    /// Answers what the server asks (keyboard-interactive): passwords and one-time codes.
    async fn answers<H: Handler>(&mut self, handle: &mut Handle<H>) -> Result<Step, SshError> {
        if !self.may_ask() {
            self.tried.push("its questions (nobody answers)".to_owned());
            return Ok(Step::No(MethodSet::empty()));
        }
        let mut left = MethodSet::empty();
        for _ in 0..self.endpoint.config.number_of_password_prompts.min(10) {
            self.tried.push("answers to its questions".to_owned());
            let user = self.endpoint.config.user.clone();
            let start = handle.authenticate_keyboard_interactive_start(user, None);
            let mut reply = match timeout(self.limit, start).await {
                Err(_) => return Err(self.late()),
                Ok(reply) => reply.map_err(|error| SshError::of_library(&error))?,
            };
            let mut asked = 0;
            loop {
                match reply {
                    Reply::Success => return Ok(Step::In),
                    Reply::Failure { partial_success: true, remaining_methods } => {
                        return Ok(Step::More(remaining_methods));
                    }
                    Reply::Failure { remaining_methods, .. } => {
                        left = remaining_methods;
                        break;
                    }
                    Reply::InfoRequest { name, instructions, prompts } => {
                        asked += prompts.len().max(1);
                        if asked > MAX_QUESTIONS {
                            self.tried.push("then it asked too much".to_owned());
                            return Ok(Step::Over);
                        }
                        let about = format!("{} {}", name.trim(), instructions.trim());
                        let mut answers = Vec::new();
                        for prompt in prompts {
                            let question =
                                format!("{} asks: {about} {}", self.whom(), prompt.prompt.trim());
                            let Some(answer) = self.ask(&question).await? else {
                                self.tried.push("which nobody answered".to_owned());
                                return Ok(Step::Over);
                            };
                            answers.push(answer.expose_secret().to_owned());
                        }
                        let respond = handle.authenticate_keyboard_interactive_respond(answers);
                        reply = match timeout(self.limit, respond).await {
                            Err(_) => return Err(self.late()),
                            Ok(reply) => reply.map_err(|error| SshError::of_library(&error))?,
                        };
                    }
                }
            }
            if handle.is_closed() || !has(&left, "keyboard-interactive") || asked == 0 {
                break;
            }
        }
        Ok(Step::No(left))
    }

    /// A password: the last way, and only when the server has asked for it.
    async fn password<H: Handler>(&mut self, handle: &mut Handle<H>) -> Result<Step, SshError> {
        let whom = self.whom();
        let mut known = self.options.key_ring.password(&whom);
        let mut left = MethodSet::empty();
        let mut wrong = "";
        for _ in 0..self.endpoint.config.number_of_password_prompts.min(10) {
            let password = if let Some(password) = known.take() {
                password
            } else if self.may_ask() {
                match self.ask(&format!("{wrong}password of {whom}")).await? {
                    Some(password) => password,
                    None => {
                        self.tried.push("password (not given)".to_owned());
                        break;
                    }
                }
            } else {
                self.tried.push("password (nobody can be asked)".to_owned());
                break;
            };
            self.tried.push("password".to_owned());
            let user = self.endpoint.config.user.clone();
            let given = handle.authenticate_password(user, password.expose_secret());
            match self.result(given).await? {
                Step::No(methods) => {
                    self.options.key_ring.keep_password(&whom, None);
                    left = methods;
                    if handle.is_closed() || !has(&left, "password") {
                        break;
                    }
                    wrong = "wrong password; ";
                }
                step => {
                    if matches!(step, Step::In | Step::More(_)) {
                        self.options.key_ring.keep_password(&whom, Some(password));
                    }
                    return Ok(step);
                }
            }
        }
        Ok(Step::No(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rsa_key_is_offered_with_what_both_sides_allow() {
        let (long, short) = (Some(HashAlg::Sha512), Some(HashAlg::Sha256));
        let (all, only_short) = (|_: &_| true, |hash: &Option<HashAlg>| *hash == short);
        assert_eq!(rsa_hashes(long, all), [long]);
        assert_eq!(rsa_hashes(long, only_short), [short]);
        assert_eq!(rsa_hashes(short, all), [short]);
        assert_eq!(rsa_hashes(short, |hash| *hash == long), []);
        assert_eq!(rsa_hashes(None, all), [long, short]);
        assert_eq!(rsa_hashes(None, only_short), [short]);
    }
}

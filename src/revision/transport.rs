//! SSH and HTTPS for libgit2, which speaks Git's protocol and leaves the bytes to [`Reach`].
//!
//! libgit2 knows transports of the whole process only, so the one that is meant is left in the thread for
//! the time of a call.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream, Transport};
use git2::{ErrorClass, ErrorCode, Remote};

use super::address::{Address, HttpAddress};
use super::netrc;
use super::reach::{Conversation, HttpAnswer, HttpRequest, Login, Reach, SshPlace, Unreached};
use crate::base::{quote, text};

/// Longest that is sent at once over HTTP: a deck is some texts.
const MAX_SENT: usize = 256 << 20;

/// Longest list of what a server has.
const MAX_REFERENCES: usize = 16 << 20;

/// Longest answer with what was asked for.
const MAX_TAKEN: usize = 256 << 20;

/// How often one question is asked at most: servers may say that they are elsewhere, or that they want a login.
const MAX_ASKED: usize = 8;

thread_local! {
    static REACH: RefCell<Option<Arc<dyn Reach>>> = const { RefCell::new(None) };
    /// What to do about the failure that libgit2 is told of: not in its text, where servers' words stand too.
    static HINT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The hint of the failure that this thread's call of libgit2 ended with, if it was one of ours.
pub(super) fn take_hint() -> Option<String> {
    HINT.take()
}

/// While it is there, this thread's calls of libgit2 reach other machines by it.
pub(super) struct Reaching(Option<Arc<dyn Reach>>);

impl Reaching {
    pub(super) fn by(reach: Option<&Arc<dyn Reach>>) -> Result<Self, git2::Error> {
        static REGISTERED: OnceLock<Result<(), (ErrorCode, String)>> = OnceLock::new();
        let registered =
            REGISTERED.get_or_init(|| register().map_err(|e| (e.code(), e.message().to_owned())));
        if let Err((code, message)) = registered {
            return Err(git2::Error::new(*code, ErrorClass::Net, message));
        }
        HINT.take();
        Ok(Self(REACH.replace(reach.cloned())))
    }
}

impl Drop for Reaching {
    fn drop(&mut self) {
        REACH.replace(self.0.take());
    }
}

#[allow(unsafe_code)]
fn register() -> Result<(), git2::Error> {
    for scheme in ["ssh", "git+ssh", "ssh+git"] {
        // SAFETY: libgit2's list of transports is not locked. It is changed here alone, once in the process
        // (`OnceLock`), before any remote that is not a directory is opened.
        unsafe { git2::transport::register(scheme, over_ssh)? };
    }
    for scheme in ["http", "https"] {
        // SAFETY: as above.
        unsafe { git2::transport::register(scheme, over_http)? };
    }
    Ok(())
}

fn reach() -> Result<Arc<dyn Reach>, git2::Error> {
    REACH
        .with_borrow(Clone::clone)
        .ok_or_else(|| failed("nothing is there to reach another machine by".into()))
}

fn failed(unreached: Unreached) -> git2::Error {
    HINT.set(unreached.hint);
    git2::Error::new(ErrorCode::GenericError, ErrorClass::Net, text::clean(&unreached.why, 600))
}

/// libgit2 takes an error's text as a C string and gives up the whole process if that has a zero in it.
fn io_failed(why: &str) -> io::Error {
    io::Error::other(text::clean(why, 600))
}

fn over_ssh(remote: &Remote<'_>) -> Result<Transport, git2::Error> {
    Transport::smart(remote, false, OverSsh { reach: reach()? })
}

fn over_http(remote: &Remote<'_>) -> Result<Transport, git2::Error> {
    Transport::smart(remote, true, OverHttp { reach: reach()?, found: Arc::default() })
}

struct OverSsh {
    reach: Arc<dyn Reach>,
}

/// A conversation whose errors are fit for libgit2.
struct Talk(Box<dyn Conversation>);

impl Read for Talk {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into).map_err(|e| io_failed(&e.to_string()))
    }
}

impl Write for Talk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(|e| io_failed(&e.to_string()))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(|e| io_failed(&e.to_string()))
    }
}

impl SmartSubtransport for OverSsh {
    fn action(
        &self,
        url: &str,
        service: Service,
    ) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let Address::Ssh(place, path) = Address::of(url) else {
            return Err(failed("not an address for SSH".into()));
        };
        let command = format!("{} {}", program(service), quote::shell_quoted(&path));
        let SshPlace { host, .. } = &place;
        let talk = self.reach.ssh(&place, &command);
        let talk = talk.map_err(|mut unreached| {
            unreached.why = format!("{host}: {}", unreached.why);
            failed(unreached)
        })?;
        Ok(Box::new(Talk(talk)))
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

fn program(service: Service) -> &'static str {
    match service {
        Service::UploadPackLs | Service::UploadPack => "git-upload-pack",
        Service::ReceivePackLs | Service::ReceivePack => "git-receive-pack",
    }
}

/// Where a server was found after it had said that it is elsewhere, and who asks it.
#[derive(Clone, Debug)]
struct Found {
    url: String,
    login: Option<Login>,
}

struct OverHttp {
    reach: Arc<dyn Reach>,
    found: Arc<Mutex<Option<Found>>>,
}

impl OverHttp {
    /// Asks what the server has: the first question of each conversation. Nobody is told a password unasked.
    fn look(&self, url: &str, service: Service) -> Result<HttpAnswer, Unreached> {
        let Address::Http(mut there) = Address::of(url) else {
            return Err("not an address".into());
        };
        let program = program(service);
        let question = format!("/info/refs?service={program}");
        let wanted = format!("application/x-{program}-advertisement");
        let (mut login, mut moved) = (None, false);
        for _ in 0..=MAX_ASKED {
            let answer = self.reach.http(HttpRequest {
                url: format!("{}{question}", there.url),
                login: login.clone(),
                accept: wanted.clone(),
                post: None,
                most: MAX_REFERENCES,
            })?;
            match (answer.status, &answer.location) {
                (301 | 302 | 303 | 307 | 308, Some(to)) => {
                    let next = elsewhere(&there, to, &question)?;
                    if next.origin() != there.origin() {
                        (login, moved) = (None, true);
                    }
                    there = next;
                }
                (401, _) if login.is_none() && takes_basic(&answer) => {
                    login = match there.login() {
                        Some(login) => Some(login),
                        None => netrc::login(&there.host, there.user.as_deref(), !moved)?,
                    };
                    if login.is_none() {
                        return Err(wants_login(&answer));
                    }
                }
                _ => {
                    judge(&answer, &wanted)?;
                    let found = Found { url: there.url, login };
                    *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
                    return Ok(answer);
                }
            }
        }
        Err("the server sends us from place to place".into())
    }
}

fn takes_basic(answer: &HttpAnswer) -> bool {
    answer.wants.as_ref().is_none_or(|wants| wants.to_ascii_lowercase().contains("basic"))
}

/// The place that a server names instead of itself. What was encrypted stays so.
fn elsewhere(from: &HttpAddress, to: &str, question: &str) -> Result<HttpAddress, Unreached> {
    let wrong =
        || Unreached::from(format!("the server names another place: {}", text::clean(to, 200)));
    let url = to.strip_suffix(question).ok_or_else(wrong)?;
    // Without a host it is another path of the same server.
    let url = match url.strip_prefix('/') {
        Some(path) if !path.starts_with('/') => format!("{}/{path}", from.origin()),
        _ => url.to_owned(),
    };
    let Address::Http(mut new) = Address::of(&url) else { return Err(wrong()) };
    if from.url.starts_with("https://") && !new.url.starts_with("https://") {
        return Err(wrong());
    }
    // A server does not say as whom we log in, and elsewhere nobody is told what this one may know.
    let same = new.origin() == from.origin();
    (new.user, new.password) =
        if same { (from.user.clone(), from.password.clone()) } else { (None, None) };
    Ok(new)
}

fn wants_login(answer: &HttpAnswer) -> Unreached {
    Unreached {
        why: format!("it wants a login (status {})", answer.status),
        hint: Some(
            "put `machine HOST login USER password TOKEN` into ~/.netrc, or install git and set credential.helper"
                .to_owned(),
        ),
    }
}

fn judge(answer: &HttpAnswer, wanted: &str) -> Result<(), Unreached> {
    match answer.status {
        200 if answer.content_type.split(';').next().map(str::trim) == Some(wanted) => Ok(()),
        200 => Err("no Git server answers at this address".into()),
        401 | 403 => Err(wants_login(answer)),
        404 => Err("there is no such repository (status 404), or it wants a login".into()),
        other => Err(format!("status {other}").into()),
    }
}

impl SmartSubtransport for OverHttp {
    fn action(
        &self,
        url: &str,
        service: Service,
    ) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        if matches!(service, Service::UploadPackLs | Service::ReceivePackLs) {
            let answer = self.look(url, service).map_err(failed)?;
            return Ok(Box::new(Exchange::Answer(io::Cursor::new(answer.body))));
        }
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = found.ok_or_else(|| failed("the server was not asked what it has".into()))?;
        Ok(Box::new(Exchange::Question {
            reach: Arc::clone(&self.reach),
            found,
            program: program(service),
            body: Vec::new(),
        }))
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// What is written is gathered, and sent when an answer is read.
enum Exchange {
    Question { reach: Arc<dyn Reach>, found: Found, program: &'static str, body: Vec<u8> },
    Answer(io::Cursor<Vec<u8>>),
}

impl Read for Exchange {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Self::Question { reach, found, program, body } = self {
            let wanted = format!("application/x-{program}-result");
            let answer = reach.http(HttpRequest {
                url: format!("{}/{program}", found.url),
                login: found.login.clone(),
                accept: wanted.clone(),
                post: Some((format!("application/x-{program}-request"), std::mem::take(body))),
                most: MAX_TAKEN,
            });
            let answer = answer.and_then(|a| judge(&a, &wanted).map(|()| a));
            let answer = answer.map_err(|unreached| {
                HINT.set(unreached.hint);
                io_failed(&unreached.why)
            })?;
            *self = Self::Answer(io::Cursor::new(answer.body));
        }
        match self {
            Self::Answer(body) => body.read(into),
            Self::Question { .. } => Ok(0),
        }
    }
}

impl Write for Exchange {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self::Question { body, .. } = self else {
            return Err(io_failed("written after it was answered"));
        };
        if body.len().saturating_add(bytes.len()) > MAX_SENT {
            return Err(io_failed("more is to be sent at once than a deck ever has"));
        }
        body.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

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
use super::reach::{Conversation, HttpAnswer, HttpRequest, Login, Reach, SshPlace};
use crate::base::{quote, text};

/// Longest that is sent at once over HTTP: a deck is some texts.
const MAX_SENT: usize = 256 << 20;

/// How often a server may say that it is elsewhere.
const MAX_REDIRECTS: usize = 5;

thread_local! {
    static REACH: RefCell<Option<Arc<dyn Reach>>> = const { RefCell::new(None) };
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
        .ok_or_else(|| failed("nothing is there to reach another machine by"))
}

fn failed(why: &str) -> git2::Error {
    git2::Error::new(ErrorCode::GenericError, ErrorClass::Net, text::clean(why, 600))
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
            return Err(failed("not an address for SSH"));
        };
        let command = format!("{} {}", program(service), quote::shell_quoted(&path));
        let SshPlace { host, .. } = &place;
        let talk = self.reach.ssh(&place, &command);
        let talk = talk.map_err(|why| failed(&format!("{host}: {why}")))?;
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
    /// Asks what the server has: the first question of each conversation.
    fn look(&self, url: &str, service: Service) -> Result<HttpAnswer, String> {
        let Address::Http(address) = Address::of(url) else { return Err("not an address".into()) };
        let program = program(service);
        let question = format!("/info/refs?service={program}");
        let mut found = Found { login: login(&address)?, url: address.url };
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.reach.http(HttpRequest {
                url: format!("{}{question}", found.url),
                login: found.login.clone(),
                accept: format!("application/x-{program}-advertisement"),
                post: None,
            })?;
            match (answer.status, &answer.location) {
                (301 | 302 | 303 | 307 | 308, Some(there)) => {
                    found = moved(&found, there, &question)?;
                }
                _ => {
                    judge(&answer, &format!("application/x-{program}-advertisement"))?;
                    *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
                    return Ok(answer);
                }
            }
        }
        Err("the server sends us from place to place".into())
    }
}

/// Who asks: as the address says, else as `~/.netrc` does.
fn login(address: &HttpAddress) -> Result<Option<Login>, String> {
    match address.login() {
        Some(login) => Ok(Some(login)),
        None => netrc::login(&address.host, address.user.as_deref()),
    }
}

/// The place that a server names instead of itself. Nobody is told a password of another server, and what was
/// encrypted stays so.
fn moved(from: &Found, there: &str, question: &str) -> Result<Found, String> {
    let elsewhere = || format!("the server names another place: {}", text::clean(there, 200));
    let Some(url) = there.strip_suffix(question) else { return Err(elsewhere()) };
    // Without a host it is another path of the same server.
    let url = if url.starts_with('/') {
        let host_ends = from.url.split_once("://").map_or(0, |(s, _)| s.len() + 3);
        let path = from.url.get(host_ends..).and_then(|r| r.find('/')).map(|at| at + host_ends);
        format!("{}{url}", from.url.get(..path.unwrap_or(from.url.len())).unwrap_or_default())
    } else {
        url.to_owned()
    };
    let (Address::Http(old), Address::Http(new)) = (Address::of(&from.url), Address::of(&url))
    else {
        return Err(elsewhere());
    };
    if old.url.starts_with("https://") && !new.url.starts_with("https://") {
        return Err(elsewhere());
    }
    let login = if old.host == new.host { from.login.clone() } else { login(&new)? };
    Ok(Found { url: new.url, login })
}

fn judge(answer: &HttpAnswer, wanted: &str) -> Result<(), String> {
    match answer.status {
        200 if answer.content_type.split(';').next().map(str::trim) == Some(wanted) => Ok(()),
        200 => Err("no Git server answers at this address".into()),
        401 | 403 => Err(format!(
            "it wants a login (status {}) → put `machine HOST login USER password TOKEN` into ~/.netrc, or set \
             credential.helper in Git's configuration",
            answer.status
        )),
        404 => Err("there is no such repository (status 404), or it wants a login".into()),
        other => Err(format!("status {other}")),
    }
}

impl SmartSubtransport for OverHttp {
    fn action(
        &self,
        url: &str,
        service: Service,
    ) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        if matches!(service, Service::UploadPackLs | Service::ReceivePackLs) {
            let answer = self.look(url, service).map_err(|why| failed(&why))?;
            return Ok(Box::new(Exchange::Answer(io::Cursor::new(answer.body))));
        }
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = found.ok_or_else(|| failed("the server was not asked what it has"))?;
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
            });
            let answer = answer.and_then(|a| judge(&a, &wanted).map(|()| a));
            *self = Self::Answer(io::Cursor::new(answer.map_err(|why| io_failed(&why))?.body));
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

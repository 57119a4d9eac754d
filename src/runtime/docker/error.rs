//! What container engines, and the dial to them, say: turned into one cause and a next step.

use bollard::errors::Error as BollardError;

use super::super::RuntimeError;
use crate::base::{HostName, text};
use crate::fleet::LinkError;
use crate::wire::Refusal;

/// The HTTP status of an engine's refusal, if that is what it is.
pub fn status(error: &BollardError) -> Option<u16> {
    match error {
        BollardError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

fn says(error: &BollardError, words: &str) -> bool {
    matches!(error, BollardError::DockerResponseServerError { message, .. } if message.contains(words))
}

/// A kill that came too late; Docker before 18.06 and Podman say it with status 500.
pub fn is_not_running(error: &BollardError) -> bool {
    says(error, "is not running")
}

/// Somebody is removing it already.
pub fn is_in_progress(error: &BollardError) -> bool {
    says(error, "already in progress")
}

/// The engine lacks the program for `init`; it says so when the container is to be started.
pub fn is_without_init(error: &BollardError) -> bool {
    says(error, "docker-init") && says(error, "not found")
}

/// hyper says only where it failed; why is at the end of its chain.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// A link learns only after connecting that a dial was refused, and then fails the reading.
fn carried(error: &(dyn std::error::Error + 'static)) -> Option<LinkError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(link) = inner.and_then(|e| e.downcast_ref::<LinkError>()) {
            return Some(link.clone());
        }
        cause = error.source();
    }
    None
}

/// Which engine it is about, for messages.
#[derive(Clone, Copy)]
pub struct Engine<'a> {
    /// Its host.
    pub host: &'a HostName,
    /// Its socket there.
    pub socket: &'a str,
    /// The image in use.
    pub image: &'a str,
}

impl Engine<'_> {
    /// Asking again cannot help.
    pub fn refused(&self, message: String, hint: String) -> RuntimeError {
        RuntimeError::Engine {
            host: self.host.clone(),
            message,
            hint: Some(hint),
            transient: false,
        }
    }

    /// Asking again may help.
    fn passing(&self, message: String, hint: String) -> RuntimeError {
        RuntimeError::Engine { host: self.host.clone(), message, hint: Some(hint), transient: true }
    }

    /// A container does not end.
    pub fn unfinished(&self, message: String) -> RuntimeError {
        self.passing(
            message,
            format!("look at {} (`nvidia-smi`, `dmesg`): a hung driver keeps processes", self.host),
        )
    }

    /// A container is being created by somebody, and never is there.
    pub fn unfinished_create(&self, name: &str) -> RuntimeError {
        self.passing(
            format!("{name} is being created by somebody else"),
            format!("on {}: docker ps --all", self.host),
        )
    }

    /// The image is not on the host.
    pub fn no_image(&self) -> RuntimeError {
        let image = text::clean(self.image, 120);
        self.refused(
            format!("there is no image {image}"),
            format!(
                "docker pull {} on {}, or correct `image` in the service's spec",
                crate::base::quote::shell_word(&image),
                self.host
            ),
        )
    }

    /// Podman takes a request for GPUs and leaves it out.
    pub fn no_gpus_from_podman(&self) -> RuntimeError {
        self.refused(
            "this is Podman, which gives out no GPUs through Docker's API".to_owned(),
            format!(
                "use the Docker Engine of {}: `socket` in the service's runtime, or runtime = \"process\"",
                self.host
            ),
        )
    }

    /// Any error of a request.
    pub fn error(&self, error: BollardError) -> RuntimeError {
        match error {
            BollardError::IOError { err } => match err.downcast::<LinkError>() {
                Ok(link) => self.dial(link),
                Err(err) => self.broken(&err.to_string()),
            },
            BollardError::HyperResponseError { err } => match carried(&err) {
                Some(link) => self.dial(link),
                None => self.broken(&root_cause(&err)),
            },
            BollardError::RequestTimeoutError => {
                RuntimeError::Link(LinkError::Timeout { host: self.host.clone() })
            }
            BollardError::DockerResponseServerError { status_code, message } => {
                self.answer(status_code, &message)
            }
            other => self.refused(
                text::clean(&other.to_string(), 300),
                format!("check that {} is a Docker Engine API socket", self.socket),
            ),
        }
    }

    /// The dial did not reach the socket.
    fn dial(&self, error: LinkError) -> RuntimeError {
        let LinkError::Refused { refusal, .. } = &error else { return error.into() };
        let said = refusal.to_string();
        let lower = said.to_ascii_lowercase();
        let socket = text::clean(self.socket, 120);
        let no_file = matches!(refusal, Refusal::NoFile { .. }) || lower.contains("no such file");
        if no_file {
            self.refused(
                format!("there is no socket {socket}"),
                format!(
                    "install Docker on {}, or set `socket` in the service's runtime",
                    self.host
                ),
            )
        } else if lower.contains("permission denied") {
            self.refused(
                format!("the user may not use {socket}"),
                format!(
                    "on {}: sudo usermod -aG docker USER, then connect again; or set `become = \"sudo\"` of the host \
                     in deck.toml",
                    self.host
                ),
            )
        } else if matches!(refusal, Refusal::Failed { .. }) && lower.contains("is held by") {
            // The refusal of an act, as the dial can only say it in words.
            self.passing(
                text::clean(&said, 300),
                "wait until the lease ends, or take over with `gpudeck controller take-over`"
                    .to_owned(),
            )
        } else if lower.contains("connection refused") {
            self.passing(
                format!("nothing answers at {socket}"),
                format!("on {}: sudo systemctl start docker", self.host),
            )
        } else {
            error.into()
        }
    }

    /// The stream broke off.
    fn broken(&self, what: &str) -> RuntimeError {
        self.passing(
            format!("the connection broke off: {}", text::clean(what, 200)),
            format!("on {}: systemctl status docker", self.host),
        )
    }

    /// The engine answered with an error.
    fn answer(&self, status: u16, message: &str) -> RuntimeError {
        let message = text::clean(message.trim(), 400);
        let lower = message.to_ascii_lowercase();
        let has = |words: &str| lower.contains(words);
        let host = self.host;
        if has("could not select device driver") {
            self.refused(
                message,
                format!("install the NVIDIA Container Toolkit on {host} and restart Docker there"),
            )
        } else if has("unknown device") || has("device not found") {
            self.refused(message, "plan again: the host's GPUs have changed".to_owned())
        } else if has("no such image") {
            self.no_image()
        } else if has("no space left") {
            self.refused(message, format!("free space on {host}'s disk (docker system df)"))
        } else if has("executable file not found") || has("no such file or directory") {
            self.refused(message, "correct the command: its program is not in the image".to_owned())
        } else if has("bind source path does not exist") {
            self.refused(message, format!("put the files on {host}, or correct the paths"))
        } else if status == 503 {
            self.passing(message, format!("on {host}: systemctl status docker"))
        } else {
            RuntimeError::Engine {
                host: host.clone(),
                message,
                hint: Some(format!("on {host}: journalctl -u docker")),
                transient: false,
            }
        }
    }
}

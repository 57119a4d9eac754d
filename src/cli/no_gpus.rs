//! Hosts that show no GPU: there is none, or its driver does not let it be read.

use crate::api::{Gpus, HostLinkState, HostView};

/// What those say who found that there is none.
const WITHOUT: [&str; 5] = [
    "no NVIDIA driver is installed",
    "no GPU",
    "libnvidia-ml.so.1 not found",
    // Without an agent.
    "there is no nvidia-smi",
    "No devices were found",
];

/// A host that has no GPU, as against one whose driver does not let its GPUs be read.
pub(super) fn is_without_gpu(why: &str) -> bool {
    why.is_empty() || WITHOUT.iter().any(|words| why.contains(words))
}

/// Why the GPUs of a host are not read, where its driver says so.
pub(super) fn unread(gpus: &Gpus) -> Option<&str> {
    match gpus {
        Gpus::None { why } if !is_without_gpu(why) => Some(why),
        _ => None,
    }
}

/// What is to be said of a host, with why its GPUs are not read.
pub(super) fn with_reason(note: String, host: &HostView) -> String {
    let is_reached = matches!(host.link, HostLinkState::Up | HostLinkState::Limited { .. });
    let why = host.sample.as_ref().and_then(|sample| unread(&sample.gpus));
    match why.filter(|_| is_reached) {
        None => note,
        Some(why) if note.is_empty() => format!("GPUs not read: {why}"),
        Some(why) => format!("{note}; GPUs not read: {why}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tui::fixture::rich;

    #[test]
    fn a_driver_that_cannot_be_used_is_not_taken_for_none() {
        let mut host = rich().hosts.into_values().find(|h| h.link == HostLinkState::Up).unwrap();
        let mut told = |why: &str, note: &str| {
            let mut sample = crate::api::HostSample::clone(host.sample.as_ref().unwrap());
            sample.gpus = Gpus::None { why: why.to_owned() };
            host.sample = Some(sample.into());
            with_reason(note.to_owned(), &host)
        };
        let broken = "RM detects a driver/library version mismatch: reboot the host";
        assert_eq!(told(broken, ""), format!("GPUs not read: {broken}"));
        assert_eq!(told(broken, "cordoned"), format!("cordoned; GPUs not read: {broken}"));
        for none in ["there is no nvidia-smi", "the driver shows no GPU", "No devices were found"] {
            assert_eq!(told(none, "cordoned"), "cordoned", "{none}");
        }
    }
}

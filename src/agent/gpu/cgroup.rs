//! Which container and which systemd unit a process belongs to, as `/proc/PID/cgroup` says
//! (`cgroups(7)`; the names are those that docker, podman, containerd and CRI-O give).

/// What was found; a container by its id, 64 hexadecimal digits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// The container's id.
    pub container: Option<String>,
    /// The unit: `llama.service`, `session-3.scope`.
    pub unit: Option<String>,
}

/// Longest name of a unit that is shown.
const MAX_UNIT: usize = 80;

/// Reads `/proc/PID/cgroup`. Version 1 has a line for each controller, version 2 one; in both
/// systemd's own hierarchy knows the unit.
pub fn parse(text: &str) -> Group {
    let mut group = Group::default();
    for line in text.lines().take(64) {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        for part in path.split('/').filter(|p| !p.is_empty()) {
            if let Some(id) = container(part) {
                group.container.get_or_insert_with(|| id.to_owned());
            } else if (controllers.is_empty() || controllers == "name=systemd") && is_unit(part) {
                group.unit = Some(crate::base::text::clean(part, MAX_UNIT));
            }
        }
    }
    group
}

/// `docker-ID.scope`, `libpod-ID.scope`, `cri-containerd-ID.scope`, `crio-ID`, or the bare id.
fn container(part: &str) -> Option<&str> {
    let part = part.strip_suffix(".scope").unwrap_or(part);
    let id = part.rsplit(['-', ':']).next().unwrap_or(part);
    let is_id = id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_id.then_some(id)
}

fn is_unit(part: &str) -> bool {
    // The user's own manager is not what a person started.
    let manager = part.starts_with("user@");
    let unit = |kind: &str| part.rsplit_once('.').is_some_and(|(_, ending)| ending == kind);
    !manager && (unit("service") || unit("scope"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn group(text: &str) -> (Option<String>, Option<String>) {
        let group = parse(text);
        (group.container, group.unit)
    }

    #[test]
    fn finds_containers_and_units() {
        let id = Some(ID.to_owned());
        for path in [
            format!("0::/system.slice/docker-{ID}.scope\n"),
            format!("0::/../docker-{ID}.scope/init\n"),
            format!("12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n"),
            format!("0::/machine.slice/libpod-{ID}.scope/container\n"),
            format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope\n"),
            format!("0::/kubepods/besteffort/pod1/{ID}\n"),
        ] {
            assert_eq!(group(&path), (id.clone(), None), "{path}");
        }
        let unit = |name: &str| (None, Some(name.to_owned()));
        assert_eq!(group("0::/system.slice/llama.service\n"), unit("llama.service"));
        assert_eq!(
            group("0::/user.slice/user-1000.slice/user@1000.service/app.slice/chat.service"),
            unit("chat.service")
        );
        assert_eq!(group("0::/user.slice/user-0.slice/session-3.scope"), unit("session-3.scope"));
        assert_eq!(
            group(&format!("0::/system.slice/podman-a.service/libpod-payload-{ID}")),
            (id, Some("podman-a.service".to_owned()))
        );
    }

    #[test]
    fn passes_over_nonsense() {
        assert_eq!(group(""), (None, None));
        assert_eq!(group("0::/\n"), (None, None));
        assert_eq!(group("nonsense\n::\n0::/docker-0123.scope.d\n"), (None, None));
        assert_eq!(group("5:memory:/system.slice/x.service\n"), (None, None));
        assert_eq!(
            group("0::/a\u{1b}[2J.service"),
            (None, Some("a.service".to_owned())),
            "cleaned"
        );
    }
}

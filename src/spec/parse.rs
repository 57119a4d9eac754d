//! From text to spec, with errors that name the line and the nearest valid key.

use serde::de::DeserializeOwned;

use super::{DeckSpec, EngineSpec, Requirement, ServiceSpec, StepSpec};
use crate::base::{Bytes, Hint, quote, text};

/// Longest spec that is read, in bytes.
pub const MAX_SPEC_BYTES: usize = 1 << 20;

/// A spec that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {message}", .line.map(|l| format!(", line {l}")).unwrap_or_default())]
pub struct SpecError {
    /// The file as the person knows it.
    pub file: String,
    /// The line, from 1, where known.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to write instead, where it can be guessed.
    pub suggestion: Option<String>,
}

impl Hint for SpecError {
    fn hint(&self) -> Option<String> {
        self.suggestion.clone()
    }
}

/// Reads a `deck.toml`; `file` is its name in messages.
pub fn parse_deck(content: &str, file: &str) -> Result<DeckSpec, SpecError> {
    let deck: DeckSpec = parse(content, file)?;
    for (name, gateway) in &deck.gateways {
        if !deck.hosts.contains_key(&gateway.host) {
            let known = deck.hosts.keys().map(crate::base::HostName::as_str);
            let suggestion = text::nearest(gateway.host.as_str(), known).map_or_else(
                || format!("add a [hosts.{}] section", gateway.host),
                |near| format!("did you mean `{near}`?"),
            );
            return Err(SpecError {
                file: file.to_owned(),
                line: find_line(content, gateway.host.as_str()),
                message: format!(
                    "gateway `{name}` is on host `{}`, which the deck does not have",
                    gateway.host
                ),
                suggestion: Some(suggestion),
            });
        }
    }
    for (name, host) in &deck.hosts {
        let address = host.address.as_ref().filter(|a| !quote::is_plain_host(a));
        let user = host.user.as_ref().filter(|u| !quote::is_plain_user(u));
        let (key, value) = match (address, user) {
            (Some(address), _) => ("address", address),
            (None, Some(user)) => ("user", user),
            (None, None) => continue,
        };
        return Err(SpecError {
            file: file.to_owned(),
            line: find_line(content, value),
            message: format!(
                "host `{name}`: `{key}` has characters that a shell could misread: `{}`",
                text::clean(value, 80)
            ),
            suggestion: Some(format!("write the {key} as `ssh` would be given it")),
        });
    }
    check_gateways(&deck).map_err(|(needle, message, suggestion)| SpecError {
        file: file.to_owned(),
        line: find_line(content, needle),
        message,
        suggestion: Some(suggestion),
    })?;
    Ok(deck)
}

fn check_gateways(deck: &DeckSpec) -> Result<(), Complaint> {
    for (name, gateway) in &deck.gateways {
        let one_line = |words: &str| !words.chars().any(char::is_control);
        if !gateway.listen.values().all(|l| one_line(l) && !l.trim().is_empty()) {
            return Err((
                "listen",
                format!("gateway `{name}`: `listen` is an address on one line"),
                "write for example listen = { chat = \":8080\" }".to_owned(),
            ));
        }
        if gateway.config.as_ref().is_some_and(|c| !c.starts_with('/')) {
            return Err((
                "config",
                format!("gateway `{name}`: `config` is the absolute path of a directory"),
                "write for example config = \"/etc/haproxy/gpudeck.d\"".to_owned(),
            ));
        }
        if gateway.config.is_some() && gateway.runtime_only {
            return Err((
                "runtime_only",
                format!("gateway `{name}`: with `config` nothing is told at run time only"),
                "leave out `runtime_only`, or `config` where the sections are to stay a person's"
                    .to_owned(),
            ));
        }
    }
    if let Some(endpoints) = &deck.endpoints {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if endpoints.zone.as_ref().is_some_and(|z| z.is_empty() || !z.chars().all(plain)) {
            return Err((
                "zone",
                "`zone` is a domain name".to_owned(),
                "write for example zone = \"llm.example.org\"".to_owned(),
            ));
        }
        let port = |l: &String| l.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        if !endpoints.listen.as_ref().is_none_or(port) {
            return Err((
                "listen",
                "`listen` of the endpoints is an address with a port".to_owned(),
                "write for example listen = \"127.0.0.1:9180\"".to_owned(),
            ));
        }
        if endpoints.dir.as_ref().is_some_and(|d| !d.starts_with('/')) {
            return Err((
                "dir",
                "`dir` of the endpoints is an absolute path".to_owned(),
                "write for example dir = \"/var/lib/gpudeck/endpoints\"".to_owned(),
            ));
        }
        if !endpoints.reload.is_empty() && endpoints.dir.is_none() {
            return Err((
                "reload",
                "`reload` of the endpoints tells of changed files, and there is no `dir` for them"
                    .to_owned(),
                "write for example dir = \"/var/lib/gpudeck/endpoints\"".to_owned(),
            ));
        }
    }
    Ok(())
}

/// Reads a `services/NAME.toml`; `file` is its name in messages.
pub fn parse_service(content: &str, file: &str) -> Result<ServiceSpec, SpecError> {
    let spec: ServiceSpec = parse(content, file)?;
    check_service(&spec).map_err(|(needle, message, suggestion)| SpecError {
        file: file.to_owned(),
        line: find_line(content, needle),
        message,
        suggestion: Some(suggestion),
    })?;
    Ok(spec)
}

type Complaint = (&'static str, String, String);

/// Replicas of one service at most: half of what can be placed at once.
const MOST_REPLICAS: u32 = 10_000;
/// What `memory` may say at most, as in a world for the solver.
const MOST_MEMORY: Bytes = Bytes(1 << 50);

fn check_service(spec: &ServiceSpec) -> Result<(), Complaint> {
    if spec.replicas.get() > MOST_REPLICAS {
        let message = format!("{} replicas are more than gpudeck can place", spec.replicas);
        return Err(("replicas", message, format!("write {MOST_REPLICAS} at most")));
    }
    if spec.memory.is_some_and(|memory| memory > MOST_MEMORY) {
        let message = "`memory` is what a replica needs on each GPU: 1 PiB at most".to_owned();
        return Err(("memory", message, "write for example memory = \"40GiB\"".to_owned()));
    }
    let rollout = &spec.rollout;
    let is_zero = |c: super::Count| matches!(c, super::Count::Number(0) | super::Count::Percent(0));
    if is_zero(rollout.max_unavailable) && is_zero(rollout.max_surge) {
        return Err((
            "max_unavailable",
            "max_unavailable and max_surge are both 0: nothing could ever be replaced".to_owned(),
            "set one of them to at least 1".to_owned(),
        ));
    }
    let is_more_than_all = |c: super::Count| matches!(c, super::Count::Percent(101..));
    let scales =
        rollout.steps.iter().any(|s| matches!(s, StepSpec::Scale(c) if is_more_than_all(*c)));
    if is_more_than_all(rollout.max_unavailable) || scales {
        return Err((
            if scales { "steps" } else { "max_unavailable" },
            "more than 100% of the replicas".to_owned(),
            "write at most \"100%\"; only max_surge may be more".to_owned(),
        ));
    }
    if let Some(complaint) = super::strategy::complaint(spec) {
        return Err(complaint);
    }
    if let Some(complaint) = spec.parallel.complaint() {
        return Err(complaint);
    }
    let mut last_weight = 0;
    for step in &rollout.steps {
        match step {
            StepSpec::Weight(w) if *w == 0 || *w > 100 || *w < last_weight => {
                return Err((
                    "steps",
                    format!("weight {w} is out of order: weights go from 1 to 100 and never down"),
                    "order the weights, for example 10, 50, 100".to_owned(),
                ));
            }
            StepSpec::Weight(w) => last_weight = *w,
            StepSpec::Analyse(name) if name != "default" && !spec.analysis.contains_key(name) => {
                let known = spec.analysis.keys().map(String::as_str).chain(["default"]);
                let suggestion = text::nearest(name, known).map_or_else(
                    || format!("add an [analysis.{name}] section"),
                    |near| format!("did you mean `{near}`?"),
                );
                return Err(("analyse", format!("there is no analysis `{name}`"), suggestion));
            }
            StepSpec::Run(run) => {
                if let Some((message, suggestion)) = run.complaint() {
                    return Err(("run", message, suggestion));
                }
            }
            _ => {}
        }
    }
    if let Some(require) = &spec.placement.require {
        Requirement::parse(require).map_err(|e| {
            let hint = e.hint().unwrap_or_else(|| "see docs/placement.md".to_owned());
            ("require", format!("require, {e}"), hint)
        })?;
    }
    if let Err(message) = rollout.canary_rule() {
        let suggestion = "write for example canary_header = \"x-canary: 1\"".to_owned();
        return Err(("canary_", message, suggestion));
    }
    if !spec.gateways.is_empty() && spec.gateway.is_some() {
        return Err((
            "gateways",
            "`gateway` and `gateways` are both given".to_owned(),
            "write gateways = [\"a\", \"b\"] alone".to_owned(),
        ));
    }
    if let Some(complaint) = spec.analysis.iter().find_map(|(name, a)| a.complaint(name)) {
        return Err(complaint);
    }
    if spec.memory.is_some_and(|memory| memory < LEAST_MEMORY) {
        let memory = spec.memory.unwrap_or_default();
        return Err((
            "memory",
            format!("`memory` is {} bytes, less than any engine takes", memory.0),
            format!("write the unit: memory = \"{}GiB\"", memory.0),
        ));
    }
    if spec.api_key_file.as_ref().is_some_and(|path| !is_plain_file(path)) {
        return Err((
            "api_key_file",
            "`api_key_file` is the absolute path of a file on the hosts".to_owned(),
            "write for example api_key_file = \"/etc/gpudeck/chat.key\"; the key itself lies in that file".to_owned(),
        ));
    }
    if let EngineSpec::Command(command) = &spec.engine
        && command.run.is_empty()
    {
        return Err((
            "run",
            "the command engine has no command".to_owned(),
            "write for example run = [\"my-server\", \"--port\", \"{port}\"]".to_owned(),
        ));
    }
    Ok(())
}

/// Whoever asks for less has left the unit out.
const LEAST_MEMORY: Bytes = Bytes::mib(1);

/// An absolute path that names one file, whoever reads it.
fn is_plain_file(path: &str) -> bool {
    path.starts_with('/')
        && !path.ends_with('/')
        && !path.chars().any(char::is_control)
        && !path.split('/').any(|part| part == "..")
}

fn parse<T: DeserializeOwned>(content: &str, file: &str) -> Result<T, SpecError> {
    if content.len() > MAX_SPEC_BYTES {
        return Err(SpecError {
            file: file.to_owned(),
            line: None,
            message: format!("the file is longer than {MAX_SPEC_BYTES} bytes"),
            suggestion: Some("leave out what is no setting; docs/deck.md has every key".to_owned()),
        });
    }
    toml::from_str(content).map_err(|error| {
        let message = text::clean(error.message(), 600);
        let line = error
            .span()
            .and_then(|span| content.get(..span.start))
            .map(|before| before.matches('\n').count() + 1);
        let suggestion = suggest(&message);
        let (message, hint) = match nonzero(&message) {
            Some(words) => {
                (words, "write 1 or more; `gpudeck stop SERVICE` ends all replicas".to_owned())
            }
            None => {
                let hint = "mend that line: docs/deck.md says what every key takes".to_owned();
                (message, suggestion.clone().unwrap_or(hint))
            }
        };
        // The list of all valid keys is noise once the nearest one is known.
        let message = match message.split_once(", expected") {
            Some((head, _)) if suggestion.is_some() && head.starts_with("unknown") => {
                head.to_owned()
            }
            _ => message,
        };
        SpecError { file: file.to_owned(), line, message, suggestion: Some(hint) }
    })
}

/// Serde's "invalid value: integer `0`, expected a nonzero u32" → "0 is none".
fn nonzero(message: &str) -> Option<String> {
    let is_zero = message.contains("integer `0`") && message.contains("expected a nonzero");
    is_zero.then(|| "0 is too few".to_owned())
}

/// Serde's "unknown field `x`, expected one of `a`, `b`" → "did you mean `a`?".
fn suggest(message: &str) -> Option<String> {
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    let known: Vec<&str> = quoted.collect();
    Some(match text::nearest(wrong, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("valid here: {}", known.join(", ")),
    })
}

/// The line that begins with this, or the first that has it (a key may be named in an argument before it).
fn find_line(content: &str, needle: &str) -> Option<usize> {
    let begins = content.lines().position(|l| l.trim_start().starts_with(needle));
    begins.or_else(|| content.lines().position(|l| l.contains(needle))).map(|i| i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
model = "/models/chat"
engine = "vllm"
replicas = 2
parallel = { tensor = 2 }
[rollout]
max_unavailable = "25%"
steps = [{ weight = 10 }, { bake = "5m" }, { analyse = "default" }, { approve = true }]
"#;

    #[test]
    fn a_surge_may_be_more_than_all_and_nothing_else_may() {
        let with = |line: &str| {
            let text = GOOD.replace("max_unavailable = \"25%\"", line);
            parse_service(&text, "services/chat.toml").map_err(|e| e.message)
        };
        assert!(with("max_surge = \"150%\"").is_ok());
        assert!(with("max_surge = \"1001%\"").is_err());
        assert!(with("max_unavailable = \"101%\"").unwrap_err().contains("100%"));
        let scale = GOOD.replace("{ weight = 10 }", "{ scale = \"120%\" }");
        assert!(parse_service(&scale, "services/chat.toml").unwrap_err().message.contains("100%"));
    }

    #[test]
    fn a_gateway_is_written_or_told_at_run_time_only() {
        let with = |lines: &str| {
            let deck = "id = \"018f4d8e-0000-7000-8000-000000000000\"\nname = \"shop\"\n[hosts.box]\n\
                [gateways.main]\nhost = \"box\"\nsocket = \"/s\"\n";
            parse_deck(&(deck.to_owned() + lines), "deck.toml")
        };
        assert!(!with("").unwrap().gateways.values().any(|g| g.runtime_only));
        assert!(with("runtime_only = true").unwrap().gateways.values().all(|g| g.runtime_only));
        let both = with("config = \"/d\"\nruntime_only = true").unwrap_err();
        assert!(both.message.contains("`config`") && both.hint().is_some(), "{both}");
        assert_eq!(both.line, Some(8));
    }

    #[test]
    fn a_host_whose_words_a_shell_could_misread_is_no_host() {
        let deck = |line: &str| format!("name = \"shop\"\n[hosts.box]\n{line}\n");
        let id = "id = \"018f4d8e-0000-7000-8000-000000000000\"\n";
        for (line, word) in [
            ("address = \"a;touch x\"", "`address`"),
            ("address = \"$(x)\"", "`address`"),
            ("address = \"\"", "`address`"),
            ("user = \"-l\"", "`user`"),
            ("user = \"u`x`\"", "`user`"),
        ] {
            let error = parse_deck(&(id.to_owned() + &deck(line)), "deck.toml").unwrap_err();
            assert!(error.message.contains(word), "{line}: {error}");
            assert!(error.line.is_some() && error.hint().is_some(), "{line}: {error}");
        }
        let good = deck("address = \"fe80::1%eth0\"\nuser = \"DOM\\\\ann\"");
        parse_deck(&(id.to_owned() + &good), "deck.toml").unwrap();
    }

    #[test]
    fn reads_a_service() {
        let spec = parse_service(GOOD, "services/chat.toml").unwrap();
        assert_eq!(spec.replicas.get(), 2);
        assert_eq!(spec.rollout.steps.len(), 4);
        let again = parse_service(&toml::to_string(&spec).unwrap(), "again").unwrap();
        assert_eq!(spec, again);
    }

    #[test]
    fn a_typo_names_its_line_and_the_nearest_key() {
        let error =
            parse_service(&GOOD.replace("replicas", "replcas"), "services/chat.toml").unwrap_err();
        assert_eq!(error.to_string(), "services/chat.toml, line 4: unknown field `replcas`");
        assert_eq!(error.hint().as_deref(), Some("did you mean `replicas`?"));
    }

    #[test]
    fn memory_without_a_unit_is_no_memory() {
        let with = |memory: &str| {
            let text = GOOD.replace("replicas = 2", &format!("memory = {memory}"));
            parse_service(&text, "services/chat.toml")
        };
        for bare in ["\"257\"", "257", "0"] {
            let error = with(bare).unwrap_err();
            assert_eq!(error.line, Some(4), "{bare}: {error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("GiB\"")), "{error:?}");
        }
        assert_eq!(
            with("\"257\"").unwrap_err().hint().unwrap(),
            "write the unit: memory = \"257GiB\""
        );
        for good in ["\"1MiB\"", "42949672960", "\"42949672960\"", "\"40 GiB\"", "\"1024TiB\""] {
            with(good).unwrap();
        }
        let error = with("\"1025TiB\"").unwrap_err();
        assert_eq!(error.hint().unwrap(), "write for example memory = \"40GiB\"");
    }

    #[test]
    fn no_more_replicas_than_can_be_placed() {
        let with = |n: u32| {
            let text = GOOD.replace("replicas = 2", &format!("replicas = {n}"));
            parse_service(&text, "services/chat.toml")
        };
        assert!(with(10_000).is_ok());
        let error = with(10_001).unwrap_err();
        assert_eq!((error.line, error.hint().unwrap().as_str()), (Some(4), "write 10000 at most"));
    }

    #[test]
    fn a_key_is_named_by_its_file_and_never_written_down() {
        let with = |value: &str| {
            let text = GOOD.replace("replicas = 2", &format!("api_key_file = \"{value}\""));
            parse_service(&text, "services/chat.toml")
        };
        let spec = with("/etc/gpudeck/chat.key").unwrap();
        assert_eq!(spec.api_key_file.as_deref(), Some("/etc/gpudeck/chat.key"));
        for wrong in ["sk-1234", "chat.key", "/etc/keys/", "/etc/../k", "/etc/k\\n"] {
            let error = with(wrong).unwrap_err();
            assert_eq!(error.line, Some(4), "{wrong}: {error}");
            assert!(!error.to_string().contains("sk-1234"), "what may be a key is not repeated");
        }
    }

    #[test]
    fn refuses_a_policy_that_can_never_move() {
        let text = GOOD.replace("\"25%\"", "0");
        let error = parse_service(&text, "chat").unwrap_err();
        assert_eq!(error.line, Some(7));
    }

    #[test]
    fn a_requirement_is_checked_where_it_is_written() {
        let text =
            format!("{GOOD}[placement]\nspread = \"rack\"\nrequire = \"gpu.memroy >= 80GiB\"\n");
        let error = parse_service(&text, "chat").unwrap_err();
        assert_eq!(error.line, Some(11));
        assert_eq!(error.message, "require, column 1: there is no fact `gpu.memroy`");
        assert_eq!(error.hint().as_deref(), Some("did you mean `gpu.memory`?"));
        let good = parse_service(&text.replace("memroy", "memory"), "chat").unwrap();
        assert_eq!(good.placement.spread, crate::spec::Spread::Rack);
        let again = parse_service(&toml::to_string(&good).unwrap(), "again").unwrap();
        assert_eq!(good, again);
    }

    #[test]
    fn a_placement_says_what_may_be_moved_and_what_joins_gpus() {
        use crate::spec::{Link, PlacementSpec};
        let parsed = parse_service(&format!("{GOOD}[placement]\n"), "chat").unwrap().placement;
        assert_eq!(parsed, PlacementSpec::default());
        assert!(parsed.movable && parsed.link == Link::Any);
        let text = format!("{GOOD}[placement]\nlink = \"nvlink\"\nmovable = false\n");
        let good = parse_service(&text, "chat").unwrap();
        assert_eq!((good.placement.link, good.placement.movable), (Link::Nvlink, false));
        assert_eq!(parse_service(&toml::to_string(&good).unwrap(), "again").unwrap(), good);
        let switched = parse_service(&text.replace("nvlink", "pcie_switch"), "chat").unwrap();
        assert_eq!(switched.placement.link, Link::PcieSwitch);
        assert_eq!(parse_service(&toml::to_string(&switched).unwrap(), "again").unwrap(), switched);
        let error = parse_service(&text.replace("nvlink", "nvlnk"), "chat").unwrap_err();
        assert_eq!(error.line, Some(10), "{error}");
    }

    #[test]
    fn refuses_weights_that_go_down_and_unknown_analyses() {
        let down = GOOD.replace("{ approve = true }", "{ weight = 5 }");
        assert!(parse_service(&down, "chat").is_err());
        let unknown = GOOD.replace("\"default\"", "\"defalt\"");
        assert_eq!(
            parse_service(&unknown, "chat").unwrap_err().hint().as_deref(),
            Some("did you mean `default`?")
        );
    }
}

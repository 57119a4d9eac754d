//! The requirement language: what it accepts, answers and refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use proptest::prelude::*;

use super::*;

fn facts(fact: &Fact) -> Option<Value<'static>> {
    match fact {
        Fact::GpuMemory => Some(Value::Size(80 << 30)),
        Fact::GpuModel => Some(Value::Text("H100")),
        Fact::GpuMig => Some(Value::Bool(false)),
        Fact::HostCpus => Some(Value::Number(96.0)),
        Fact::HostZone => Some(Value::Text("a")),
        Fact::Label(key) if key == "team" => Some(Value::Text("nlp")),
        _ => None,
    }
}

fn holds(text: &str) -> bool {
    Requirement::parse(text).unwrap().holds(&facts)
}

fn error(text: &str) -> String {
    let error = Requirement::parse(text).unwrap_err();
    match error.hint() {
        Some(hint) => format!("{error} -> {hint}"),
        None => error.to_string(),
    }
}

#[test]
fn answers() {
    for text in [
        "gpu.memory >= 80GiB && host.zone == 'a'",
        "gpu.memory > 80GB",
        "80GiB <= gpu.memory",
        "gpu.model in ['H100', \"H200\"]",
        "!gpu.mig",
        "gpu.mig == false",
        "!(host.cpus < 96)",
        "host.cpus < 10 || host.team == 'nlp' && host.cpus == 96",
        "true",
        // What is not known equals nothing.
        "host.rack != 'r1'",
        "!(host.rack == 'r1')",
    ] {
        assert!(holds(text), "{text}");
        assert_eq!(Requirement::parse(text).unwrap().why_not(&facts), None);
    }
    for text in [
        "gpu.memory > 80GiB",
        "gpu.mig",
        "(host.cpus == 96 || true) && false",
        "host.rack == 'r1'",
        "host.nic < 400",
        "gpu.model in ['h100']",
        "!(true || false)",
    ] {
        assert!(!holds(text), "{text}");
    }
}

#[test]
fn says_which_part_fails() {
    let why = |text: &str| Requirement::parse(text).unwrap().why_not(&facts).unwrap();
    assert_eq!(
        why("host.zone == 'a' && gpu.memory >= 141GB"),
        "gpu.memory >= 141GB fails: gpu.memory is 80.0 GiB"
    );
    assert_eq!(why("host.rack in ['r1']"), "host.rack in ['r1'] fails: host.rack is not known");
    assert_eq!(why("host.cpus < 8 || gpu.mig"), "host.cpus < 8 || gpu.mig fails");
}

#[test]
fn mistakes_point_at_the_column() {
    for (text, expected) in [
        (
            "gpu.memroy >= 80GiB",
            "column 1: there is no fact `gpu.memroy` -> did you mean `gpu.memory`?",
        ),
        (
            "gpu.memory >= 80",
            "column 15: `gpu.memory` is a size, but 80 is a number -> write a unit: 80GiB",
        ),
        ("host.zone = 'a'", "column 11: `=` is not understood here -> write `==` to compare"),
        ("host.zone < 'a'", "column 11: text has no order; compare with == or !="),
        ("host.slot == 3", "column 14: `host.slot` is text, but 3 is a number -> write '3'"),
        ("gpu.mig && (host.cpus > 1", "column 12: this parenthesis is never closed"),
        ("gpu.mig && ", "column 12: a fact or a value is missing at the end"),
        (
            "gpu.mig gpu.mig",
            "column 9: `gpu.mig` is one too many here -> join parts with `&&` or `||`",
        ),
        (
            "gpu.memory",
            "column 11: a size must be compared with something -> for example gpu.memory >= 80GiB",
        ),
        (
            "'é' == host.zone && host.zone == 'x",
            "column 34: the text that begins here has no closing '",
        ),
        (
            "gpu.memory > 3parsecs",
            "column 14: `3parsecs` is not a size; write for example `80GiB` or `512MiB`",
        ),
        ("", "column 1: it is empty -> write for example gpu.memory >= 80GiB, or leave it out"),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
    assert!(error(&"!".repeat(100)).contains("nested deeper"));
    assert!(error(&"x".repeat(5000)).contains("4096"));
}

#[test]
fn a_label_that_no_host_has_is_named() {
    let requirement = Requirement::parse("gpu.mig && host.taem == 'nlp'").unwrap();
    assert_eq!(requirement.labels().into_iter().collect::<Vec<_>>(), ["taem"]);
    let error = requirement.check_labels(["team", "slot"]).unwrap_err();
    assert_eq!(error.column, 12);
    assert_eq!(error.hint().unwrap(), "did you mean `host.team`?");
    assert_eq!(requirement.check_labels(["taem"]), Ok(()));
}

proptest! {
    #[test]
    fn never_panics(text in "[a-z.0-9'\"()!&|=<> \\[\\],éGi]{0,60}") {
        if let Ok(requirement) = Requirement::parse(&text) {
            prop_assert_eq!(requirement.holds(&facts), requirement.why_not(&facts).is_none());
        }
    }
}

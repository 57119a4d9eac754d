//! The screen as a person meets it: keys in, effects and pictures of the screen out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod columns;
mod map;
mod moving;
mod questions;
mod rollouts;
mod standing;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::fixture::{self, NOW, calm, press, rich, service_name, state};
use super::message::{Effect, Message, PlanOf, Wish};
use super::state::{Look, Mode, State};
use super::theme::Depth;
use super::update::update;
use super::{picture, view};
use crate::api::{Intent, LogChunk, QuestionKind, Timestamp};

const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (200, 50);

fn buffer(state: &State) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, state.size.0, state.size.1));
    view::draw(state, &mut buffer);
    buffer
}

fn text(state: &State) -> String {
    let buffer = buffer(state);
    let mut out = String::new();
    for y in 0..buffer.area.height {
        let row: String =
            (0..buffer.area.width).map(|x| buffer.cell((x, y)).unwrap().symbol()).collect();
        out.push_str(row.trim_end());
        out.push('\n');
    }
    out
}

fn planned(state: &mut State, effects: &[Effect], plan: crate::api::PlanView) {
    let ticket = effects.iter().find_map(|e| match e {
        Effect::Plan { ticket, .. } => Some(*ticket),
        _ => None,
    });
    let ticket = ticket.expect("a plan is asked for");
    update(state, Message::Planned { ticket, result: Ok(Box::new(plan)) });
}

fn sent(effects: &[Effect]) -> Vec<Intent> {
    let intent = |e: &Effect| match e {
        Effect::Send { intent: Wish(intent), .. } => Some(intent.clone()),
        _ => None,
    };
    effects.iter().filter_map(intent).collect()
}

fn snapshots(name: &str, keys: &str) {
    for (size, label) in [(SMALL, "80x24"), (LARGE, "200x50")] {
        let mut state = state(rich(), size);
        press(&mut state, keys);
        insta::assert_snapshot!(format!("{name}_{label}"), text(&state));
    }
}

#[test]
fn fleet() {
    snapshots("fleet", "1");
}

/// A line for each host still tells what is broken from what is idle, and what is not known from zero.
#[test]
fn a_dense_fleet_marks_broken_gpus_and_unknown_values() {
    let mut snapshot = rich();
    let node1 = snapshot.hosts[&fixture::host_name("node1")].clone();
    let node2 = snapshot.hosts[&fixture::host_name("node2")].clone();
    for n in 0..20 {
        let mut host = node1.clone();
        host.name = fixture::host_name(&format!("m{n:02}"));
        snapshot.hosts.insert(host.name.clone(), host);
    }
    let mut sick = node2;
    sick.name = fixture::host_name("b0");
    let gpus = std::sync::Arc::make_mut(sick.sample.as_mut().unwrap());
    if let crate::api::Gpus::Some(gpus) = &mut gpus.gpus {
        gpus[5].health = crate::api::GpuHealth::Ok;
    }
    snapshot.hosts.insert(sick.name.clone(), sick);
    let mut state = state(snapshot, SMALL);
    press(&mut state, "1");
    let text = text(&state);
    let row = text.lines().find(|line| line.contains(" b0 ")).unwrap();
    assert!(row.contains('▲') && row.contains("DEGRADED"), "{row}");
    assert!(row.contains('–'), "{row}");
    let row = text.lines().find(|line| line.contains(" m00 ")).unwrap();
    assert!(!row.contains('▲') && !row.contains('–'), "{row}");
}

#[test]
fn fleet_host_detail() {
    snapshots("fleet_detail", "1jjd");
}

#[test]
fn services() {
    snapshots("services", "2j");
}

#[test]
fn services_detail() {
    snapshots("services_detail", "2d");
}

#[test]
fn rollout() {
    snapshots("rollout", "3");
}

#[test]
fn events() {
    snapshots("events", "4");
}

#[test]
fn logs() {
    for (size, label) in [(SMALL, "80x24"), (LARGE, "200x50")] {
        let mut state = state(rich(), size);
        followed(&mut state, "INFO ready\nWARNING slow\nERROR \u{1b}[31mred\u{1b}[0m\n");
        insta::assert_snapshot!(format!("logs_{label}"), text(&state));
    }
}

#[test]
fn help_and_palette() {
    snapshots("help", "2?");
    snapshots("palette", ":appch");
}

/// A second start stands in the same columns as a first one.
#[test]
fn the_rows_of_replicas_stand_below_each_other() {
    let mut snapshot = calm();
    let chat = snapshot.services.get_mut(&service_name("chat")).unwrap();
    chat.replicas[1].id = "r11-0-a2".parse().unwrap();
    let mut state = state(snapshot, SMALL);
    press(&mut state, "2");
    let screen = text(&state);
    let at = |row: &str, what: &str| {
        let line = screen.lines().find(|l| l.contains(row)).unwrap();
        line.chars().collect::<String>().split(what).next().unwrap().chars().count()
    };
    assert_eq!(at("r11-0", "ready"), at("r11-1", "ready"), "{screen}");
    assert!(screen.contains("node1 GPU 0-3 try 2"), "{screen}");
    assert!(screen.lines().any(|l| l.ends_with("SHARE │")), "{screen}");
    assert!(screen.contains("45% │"), "{screen}");
}

/// What a key does to what serves is said of every such key, however narrow it is.
#[test]
fn the_help_is_read_to_its_end() {
    for width in [80, 60, 40] {
        let mut state = state(calm(), (width, 80));
        press(&mut state, "2?");
        let screen = text(&state);
        assert!(screen.contains("▲ asks for the service's name"), "{screen}");
        let shown = screen.split_whitespace().filter(|w| *w != "│").collect::<Vec<_>>().join(" ");
        assert!(
            shown.contains("try again what failed, or roll the same revision out again"),
            "{screen}"
        );
    }
    let mut state = state(calm(), SMALL);
    press(&mut state, "1?");
    assert!(!text(&state).contains("asks for the service's name"), "nothing in Fleet does");
}

#[test]
fn confirm_dialog() {
    for (size, label) in [(SMALL, "80x24"), (LARGE, "200x50")] {
        let mut state = state(calm(), size);
        let effects = press(&mut state, "2Ga");
        planned(&mut state, &effects, fixture::plan("code", true));
        press(&mut state, "cod");
        insta::assert_snapshot!(format!("confirm_{label}"), text(&state));
    }
}

/// Follows the first rank of `chat`, which writes `text`.
fn followed(state: &mut State, text: &str) {
    let effects = press(state, "2gl");
    let Some(Effect::Log { ticket, .. }) = effects.first() else { panic!("a log: {effects:?}") };
    let length = text.len() as u64;
    let chunk = LogChunk { offset: 0, next_offset: length, text: text.to_owned() };
    let next = update(state, Message::Logged { ticket: *ticket, result: Ok(chunk) });
    assert!(matches!(next.as_slice(), [Effect::Log { offset: Some(at), .. }] if *at == length));
}

#[test]
fn nothing_from_a_host_steers_the_terminal() {
    for keys in ["1", "1jjd", "2", "2Gd", "3", "4", ":", "?"] {
        let mut state = state(rich(), LARGE);
        press(&mut state, keys);
        let screen = text(&state);
        assert!(!screen.chars().any(|c| c.is_control() && c != '\n'), "{keys}");
        assert!(!screen.contains('\u{202e}') && !screen.contains("[31m"), "{keys}");
    }
}

#[test]
fn no_size_makes_it_panic_and_no_screen_is_empty() {
    let sizes: Vec<(u16, u16)> = [1, 2, 3, 4, 5, 7, 10, 13, 20, 30, 39, 40, 59, 60, 79, 80, 100]
        .into_iter()
        .chain([121, 159, 160, 200, 300])
        .flat_map(|w| [1, 2, 3, 4, 5, 6, 8, 11, 12, 19, 20, 24, 39, 40, 50, 80].map(|h| (w, h)))
        .collect();
    let mut screens: Vec<State> = Vec::new();
    for keys in ["1", "1jjd", "2", "2d", "3", "4", "5", "2+", "1/no", "2?", ":ap", "2a", "3x", "q"]
    {
        let mut state = state(rich(), LARGE);
        let effects = press(&mut state, keys);
        if effects.iter().any(|e| matches!(e, Effect::Plan { .. })) {
            planned(&mut state, &effects, fixture::plan("chat", true));
        }
        screens.push(state);
    }
    let mut following = state(rich(), LARGE);
    followed(&mut following, "one\ntwo\n");
    screens.push(following);
    let mut asking = rich();
    asking.questions.insert(3, fixture::question(3, QuestionKind::HostKey));
    screens.push(state(asking, LARGE));
    screens.push(State::new(Look::default(), LARGE, NOW));
    for size in sizes {
        for screen in &mut screens {
            screen.size = size;
            let drawn = text(screen);
            assert!(size.0 < 40 || !drawn.trim().is_empty(), "{size:?}");
            press(screen, "<pagedown><pageup>");
        }
    }
}

#[test]
fn every_screen_says_simulated() {
    for size in [SMALL, LARGE, (50, 15), (20, 6)] {
        for keys in ["1", "2", "3", "4", "5", "1d", "2d", "?", ":", "2a", "2S", "<ctrl-c>", "+"] {
            let mut state = state(calm(), size);
            press(&mut state, keys);
            assert!(text(&state).contains("SIMULATED"), "{size:?} {keys}");
        }
    }
}

#[test]
fn the_palette_finds_commands_for_services() {
    let mut state = state(calm(), LARGE);
    let effects = press(&mut state, ":plco<enter>");
    assert!(matches!(
        &effects[..],
        [Effect::Plan { service, of: PlanOf::Apply, .. }] if service.as_str() == "code"
    ));
    press(&mut state, "<esc>");
    assert_eq!(press(&mut state, ":q<enter>"), [Effect::Quit]);
    let mut state = self::state(calm(), LARGE);
    assert_eq!(press(&mut state, ":picture /x.svg<enter>"), [Effect::Picture("/x.svg".to_owned())]);
    press(&mut state, ":undo chat<enter>");
    assert!(matches!(&state.mode, Mode::Confirm(c) if c.service.as_str() == "chat"));
}

#[test]
fn read_only_offers_nothing_that_changes_anything() {
    let mut state = state(calm(), LARGE);
    state.look.read_only = true;
    assert!(press(&mut state, "2ap3x").is_empty());
    assert!(matches!(state.mode, Mode::Browse));
    press(&mut state, ":");
    let Mode::Palette(palette) = &state.mode else { panic!("the palette") };
    assert!(palette.entries.iter().all(|e| !e.label.starts_with("apply")));
    assert!(text(&state).contains("READ-ONLY"));
    press(&mut state, "<esc>2?");
    assert!(!text(&state).contains("drain and stop"));
}

#[test]
fn ascii_mode_and_no_colour() {
    let mut state = state(rich(), LARGE);
    state.look.ascii = true;
    for keys in ["1", "2", "3", "4", "?"] {
        press(&mut state, keys);
        assert!(text(&state).is_ascii(), "{keys}");
        press(&mut state, "<esc>");
    }
    state.theme = super::theme::Theme::new(Depth::None);
    for cell in &buffer(&state).content {
        assert_eq!(cell.fg, ratatui::style::Color::Reset);
        assert_eq!(cell.bg, ratatui::style::Color::Reset);
    }
}

#[test]
fn frames_are_quick() {
    let mut state = state(fixture::fleet(512), LARGE);
    let backend = TestBackend::new(LARGE.0, LARGE.1);
    let mut terminal = Terminal::new(backend).unwrap();
    let began = std::time::Instant::now();
    let frames = 50;
    for _ in 0..frames {
        press(&mut state, "j");
        terminal.draw(|frame| view::view(&state, frame)).unwrap();
    }
    let each = began.elapsed() / frames;
    // Printed, not asserted: the machine may be busy.
    println!("a frame of 200x50 with 512 hosts, drawn and compared: {each:?}");
    let drawn = text(&state);
    assert!(drawn.contains("node050"), "{drawn}");
}

/// Writes pictures of screens into the directory named by `GPUDECK_PICTURES`, to be looked at.
#[test]
fn pictures() {
    let screens = [
        ("fleet", "1"),
        ("host", "1d"),
        ("services", "2"),
        ("service", "2d"),
        ("rollout", "3"),
        ("events", "4"),
        ("help", "2?"),
        ("palette", ":ap"),
        ("apply", "2Ga"),
    ];
    for (size, label) in [(SMALL, "80x24"), (LARGE, "200x50")] {
        for (deck, snapshot) in [("calm", calm()), ("rich", rich())] {
            for (name, keys) in screens {
                let mut state = state(snapshot.clone(), size);
                let effects = press(&mut state, keys);
                if name == "apply" {
                    planned(&mut state, &effects, fixture::plan("code", true));
                    press(&mut state, "cod");
                }
                if name == "rollout" {
                    followed(
                        &mut state,
                        "INFO:     Application startup complete.\nINFO:     POST /v1/chat/completions 200 OK\nWARNING:  slow request 812 ms\nERROR:    CUDA error: an illegal memory access\n",
                    );
                    press(&mut state, "3");
                }
                let picture = picture::svg(&buffer(&state));
                assert!(picture.ends_with("</svg>\n"));
                if let Some(folder) = std::env::var_os("GPUDECK_PICTURES") {
                    let path =
                        std::path::Path::new(&folder).join(format!("{deck}-{name}-{label}.svg"));
                    std::fs::write(path, picture).unwrap();
                }
            }
        }
    }
}

#[test]
fn maintenance_and_what_was_foreseen_are_seen() {
    use crate::api::plan::{Capacity, PlanProgress, StepProgress};
    use crate::api::{Cordon, PlanMove, PlanPlace, PlanStep, PlanTime, Verb};
    let mut snapshot = rich();
    let host = snapshot.hosts.values_mut().next().unwrap();
    host.maintenance.cordons.push(Cordon {
        gpu: None,
        by: "ann".to_owned(),
        reason: Some("fan".to_owned()),
        since: NOW,
    });
    let time = |known_ms| PlanTime { known_ms, unknown: Vec::new() };
    let chat = snapshot.services.get_mut(&service_name("chat")).unwrap();
    let rollout = chat.rollout.clone().unwrap();
    let step = |title: &str, began: Option<Timestamp>, ended| StepProgress {
        title: title.to_owned(),
        predicted: time(90_000),
        predicted_lowest: Some(3),
        began,
        ended,
        lowest_ready: began.map(|_| 3),
        serving: Some(Capacity { predicted: 3, seen: began.map(|_| 2) }),
        skipped: None,
        promoted: None,
    };
    let first_ended = Timestamp(rollout.began.0 + 125_000);
    chat.progress = Some(PlanProgress {
        release: rollout.to,
        began: rollout.began,
        steps: vec![
            step("weight 10 %", Some(rollout.began), Some(first_ended)),
            step("analyse default", Some(first_ended), None),
            step("weight 50 %", None, None),
        ],
        predicted: time(270_000),
        predicted_lowest: 3,
        lowest_ready: 2,
        serving: None,
        ended: None,
    });
    let mut seen = state(snapshot, LARGE);
    press(&mut seen, "1");
    assert!(text(&seen).contains("cordoned"), "{}", text(&seen));
    press(&mut seen, "3+");
    let screen = text(&seen);
    assert!(
        screen.contains("2m05s (foreseen 1m30s), lowest 2 with traffic (foreseen 3)"),
        "{screen}"
    );
    assert!(screen.contains("foreseen 1m30s"), "{screen}");

    let mut plan = fixture::plan("code", false);
    plan.steps = plan
        .forecast
        .stages
        .iter()
        .map(|stage| PlanStep {
            title: stage.title.clone(),
            gate: None,
            moves: vec![PlanMove {
                replica: stage.starts[0],
                verb: Verb::Start,
                ranks: vec![PlanPlace {
                    host: "node4".parse().unwrap(),
                    devices: Vec::new(),
                    devices_text: "GPU 2, GPU 3".to_owned(),
                }],
                how: "in place of r12-2".to_owned(),
                at_ms: 0,
                ready_after: 2,
            }],
            new_weight_percent: 10,
            ready_after: 2,
            idle_after: 0,
            lowest_ready: 2,
            lowest_serving: 1,
            lowest: true,
            tokens_per_s_after: Some(2_400.0),
            tokens_per_s_lowest: Some(1_200.0),
            time: time(65_000),
        })
        .collect();
    plan.total = time(195_000);
    let effects = press(&mut seen, "+2Ga");
    planned(&mut seen, &effects, plan);
    let screen = text(&seen);
    for wanted in [
        "time 3m15s",
        "seen at most 2400 tok/s (lowest 1200)",
        "1m05s",
        "start r13-0 on node4 GPU 2, GPU 3",
        "◀ lowest",
    ] {
        assert!(screen.contains(wanted), "{wanted}: {screen}");
    }
}

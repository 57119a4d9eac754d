#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::super::super::clock::Clock;
use super::super::super::compile::compile;
use super::super::super::file::WorldFile;
use super::super::super::read::read;
use super::*;

/// Two racks of hosts, every fourth with two islands or all of them, and more wanted than there is room for.
fn farm(dice: &mut super::super::Dice) -> WorldFile {
    let parted = dice.below(2) == 0;
    let hosts: Vec<_> = (0..12)
        .map(|h| {
            let gpus: Vec<_> = (0..8)
                .map(|i| {
                    let island = if parted || h % 4 == 3 { i / 4 } else { 0 };
                    let total = if h % 3 == 0 { "141GiB" } else { "80GiB" };
                    json!({"index": i, "model": total, "memory_total": total, "island": island})
                })
                .collect();
            json!({"name": format!("h{h}"), "rack": format!("r{}", h / 6), "gpus": gpus})
        })
        .collect();
    let services: Vec<_> = (0..28)
        .map(|s| {
            let shapes = [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (2, 3), (4, 3), (3, 1), (3, 2)];
            let (tensor, pipeline) = shapes[dice.below(shapes.len())];
            let memory = ["40GiB", "70GiB", "76GiB", "100GiB"][dice.below(4)];
            let on: Vec<String> =
                (0..dice.below(4)).map(|_| format!("h{}", dice.below(12))).collect();
            let link = if parted { "nvlink" } else { ["any", "any", "nvlink"][dice.below(3)] };
            let replicas = [1, 1, 1, 2, 3][dice.below(5)];
            json!({"name": format!("s{s}"), "replicas": replicas, "priority": dice.below(2),
                "weights_bytes": format!("{}GiB", 4 + dice.below(90)), "weights_on": on, "link": link,
                "shapes": [{"tensor": tensor, "pipeline": pipeline, "memory": memory}]})
        })
        .collect();
    read(&json!({"hosts": hosts, "services": services}).to_string(), "world").unwrap()
}

/// An attempt to drive a slot onto a host, begun as the search begins one; none if there is nothing to drive.
fn begin(search: &mut Search<'_>, heat: f64, dice: &mut super::super::Dice) -> Option<(u32, u32)> {
    let p = search.p;
    search.look_around();
    search.bar.set(&search.state, heat, dice);
    search.owed = Levels::default();
    search.undo.clear();
    search.foresight.clear();
    let slot = u32::try_from(dice.below(p.slots.len())).unwrap();
    let host = u32::try_from(dice.below(p.hosts.len())).unwrap();
    let at = search.state.at[slot as usize].as_ref()?;
    search.left = at.hosts.to_vec();
    (search.slot, search.placed, search.is_dead) = (slot, true, false);
    (!at.hosts.contains(&host)).then_some((slot, host))
}

/// What is kept from change to change is what a placement made anew has, and no slot has two places.
fn check(search: &Search<'_>) {
    let mut anew = super::super::State::new(search.p);
    for (slot, at) in search.state.at.iter().enumerate() {
        if let Some(at) = at {
            assert!(anew.place(u32::try_from(slot).unwrap(), at.clone()));
        }
    }
    assert_eq!(search.state.score(), anew.score());
    for h in 0..search.p.hosts.len() {
        let h = u32::try_from(h).unwrap();
        assert_eq!(search.state.parts(h).len(), anew.parts(h).len());
        assert_eq!(search.state.room(h), anew.room(h));
    }
}

/// What is foreseen of an attempt is hardly ever more than what comes of it, what is told to be hopeless hardly ever
/// comes to any good, and nothing is changed by looking.
#[test]
fn what_is_foreseen_comes_true() {
    let mut dice = super::super::Dice::new(7);
    let (mut open, mut cheaper, mut others) = (0, 0, 0);
    let (mut hopeless, mut good) = (0, 0);
    for _ in 0..40 {
        let world = farm(&mut dice);
        let p = compile(&world, Clock::none());
        let mut search = Search::new(&p);
        search.construct(&mut || false);
        for n in 0..400 {
            let heat = search.bar.grain * [20.0, 1.0, 0.2, 0.0][n % 4];
            let Some((slot, host)) = begin(&mut search, heat, &mut dice) else { continue };
            let before = (search.state.score(), search.state.at.clone());
            let drawn = search.dice.clone();
            let outlook = search.foresee(slot, host, 2);
            assert_eq!((search.state.score(), search.state.at.clone()), before);
            match outlook {
                Outlook::Unknown => continue,
                // With the same dice, as far as they are thrown for the same: others drive out others in the end, and of a
                // service's replicas two may have changed their places.
                Outlook::Hopeless => {
                    search.foresight.clear();
                    search.dice = drawn;
                    search.drive(slot, host, 2);
                    hopeless += 1;
                    let better = search.bar.accepts(&search.state) && !search.is_dead;
                    good += u32::from(better && !search.changed().is_empty());
                }
                Outlook::Open => {
                    open += 1;
                    let least = search.foresight.more;
                    search.drive_as_foreseen(slot, 2);
                    let (now, then) = (search.state.levels(), before.0.levels);
                    // Where GPUs are divided otherwise than was counted others may have to go, to better places even.
                    let moved = search.changed();
                    let foreseen = moved.iter().all(|(slot, _)| search.foresight.is_gone(*slot));
                    others += u32::from(!foreseen);
                    let all = search.state.unplaced() == before.0.unplaced;
                    let costs_less = now.link < then.link + least.link
                        || now.tight < then.tight + least.tight
                        || now.bytes < then.bytes + least.bytes;
                    cheaper += u32::from(foreseen && all && costs_less);
                }
            }
            check(&search);
            if dice.below(3) > 0 || search.state.unplaced() != before.0.unplaced {
                search.take_back();
                assert_eq!((search.state.score(), search.state.at.clone()), before);
            }
        }
    }
    assert!(open > 1000 && hopeless > 1000, "{open} {hopeless}");
    assert!(cheaper * 100 < open, "{cheaper} of {open} cost less than was foreseen");
    assert!(others * 3 < open, "{others} of {open}: with others than was foreseen");
    assert!(good * 8 < hopeless, "{good} of {hopeless} were not hopeless");
}

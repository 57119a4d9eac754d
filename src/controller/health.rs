//! What has become better or worse on a host from one sample to the next, as lines for people.

use std::time::Duration;

use crate::api::Severity;
use crate::base::text::clean;
use crate::base::time::short;
use crate::wire::{Gpu, GpuHealth, Gpus, HostSample, xid};

/// The lines. Without a sample before, only what is wrong is told.
pub fn lines(before: Option<&HostSample>, after: &HostSample) -> Vec<(Severity, String)> {
    let mut lines = Vec::new();
    let hung = |sample: &HostSample| matches!(sample.gpus, Gpus::Hung { .. });
    let was_hung = before.is_some_and(hung);
    if hung(after) && !was_hung {
        let what = match &after.gpu_trouble {
            Some(why) => format!("the GPUs cannot be read, {}", clean(why, 200)),
            None => "the GPU driver does not answer".to_owned(),
        };
        let words = format!("{what}: GPU values stand still, the host's go on");
        lines.push((Severity::Error, words));
    }
    if was_hung && !hung(after) {
        lines.push((Severity::Info, "the GPU driver answers again".to_owned()));
    }
    let old = before.map_or(&[][..], |sample| sample.gpus.list());
    for (place, gpu) in after.gpus.list().iter().enumerate() {
        // Nearly always at the same place as before, and nearly always nothing is to be told.
        let is_it = |o: &&Gpu| o.uuid == gpu.uuid;
        let old = old.get(place).filter(is_it).or_else(|| old.iter().find(is_it));
        if old.map_or(&GpuHealth::Ok, |o| &o.health) == &gpu.health
            && old.and_then(|o| o.xid) == gpu.xid
        {
            continue;
        }
        let name = format!("GPU {} ({})", gpu.index, clean(&gpu.uuid, 20));
        if let Some(told) = xid_line(old, gpu, &name) {
            lines.push(told);
        }
        let was = old.map_or(&GpuHealth::Ok, |o| &o.health);
        match &gpu.health {
            health if health == was => {}
            GpuHealth::Ok => lines.push((Severity::Info, format!("{name} is well again"))),
            GpuHealth::Lost => {
                lines.push((Severity::Error, format!("{name} has fallen off the bus")));
            }
            GpuHealth::Degraded { why } => {
                let counts_on = matches!(was, GpuHealth::Degraded { why: w } if same(w, why));
                // The Xid error above has said it; a number that only grows is no news.
                let said = why.starts_with("Xid ");
                if !said && !counts_on {
                    lines.push((Severity::Error, format!("{name}: {}", clean(why, 120))));
                }
            }
        }
    }
    if !hung(after) {
        lines.extend(gone(old, after));
    }
    lines
}

/// GPUs that were there in the sample before, perhaps on an earlier connection, and are not any more.
fn gone(before: &[Gpu], after: &HostSample) -> Vec<(Severity, String)> {
    let now = after.gpus.list();
    let same = before.len() == now.len() && before.iter().zip(now).all(|(a, b)| a.uuid == b.uuid);
    if same || before.is_empty() {
        return Vec::new();
    }
    if let Gpus::None { why } = &after.gpus {
        let words =
            format!("none of its {} GPUs is there any more: {}", before.len(), clean(why, 160));
        return vec![(Severity::Error, words)];
    }
    let is_gone = |gpu: &&Gpu| !now.iter().any(|n| n.uuid == gpu.uuid);
    let words = |gpu: &Gpu| {
        let uuid = clean(&gpu.uuid, 20);
        format!(
            "GPU {} ({uuid}) is gone: of {} GPUs {} are left",
            gpu.index,
            before.len(),
            now.len()
        )
    };
    before.iter().filter(is_gone).map(|gpu| (Severity::Error, words(gpu))).collect()
}

/// A clock that is so far off misleads whoever compares logs, and certificates soon do not hold.
const CLOCK_OFF_MS: u64 = 5_000;

/// What to tell of a host's clock, by how far it was off before and is now.
pub fn clock_line(before: Option<i64>, after: i64) -> Option<(Severity, String)> {
    let wrong = |offset: i64| offset.unsigned_abs() >= CLOCK_OFF_MS;
    match (before.is_some_and(wrong), wrong(after)) {
        (false, true) => {
            let side = if after > 0 { "ahead of" } else { "behind" };
            let off = short(Duration::from_millis(after.unsigned_abs()));
            let text = format!(
                "its clock is {off} {side} the controller's → start chrony or systemd-timesyncd there"
            );
            Some((Severity::Warning, text))
        }
        (true, false) => Some((Severity::Info, "its clock is right again".to_owned())),
        _ => None,
    }
}

/// The same words but for their numbers.
fn same(one: &str, other: &str) -> bool {
    let letters = |c: &char| !c.is_ascii_digit();
    one.trim_end_matches('s')
        .chars()
        .filter(letters)
        .eq(other.trim_end_matches('s').chars().filter(letters))
}

fn xid_line(old: Option<&Gpu>, gpu: &Gpu, name: &str) -> Option<(Severity, String)> {
    let last = gpu.xid?;
    let known = old.and_then(|o| o.xid).is_some_and(|x| x == last);
    if known {
        return None;
    }
    let meaning = xid::meaning(last.code);
    let severity = if meaning.degrades() { Severity::Error } else { Severity::Warning };
    Some((severity, format!("{name}: {} → {}", xid::describe(last.code), meaning.advice())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Xid;

    fn sample(gpus: Gpus) -> HostSample {
        HostSample { gpus, ..HostSample::default() }
    }

    fn one(health: GpuHealth, xid: Option<u64>) -> HostSample {
        let xid = xid.map(|code| Xid { code, monotonic_ms: code, count: 1 });
        let gpu = Gpu { uuid: "GPU-1".into(), health, xid, ..Gpu::default() };
        sample(Gpus::Some(vec![gpu]))
    }

    fn told(before: Option<&HostSample>, after: &HostSample) -> Vec<String> {
        lines(before, after).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn tells_what_changes_and_no_more() {
        let well = one(GpuHealth::Ok, None);
        assert!(told(None, &well).is_empty() && told(Some(&well), &well).is_empty());
        let lost = one(GpuHealth::Lost, Some(79));
        let lines = told(Some(&well), &lost);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines.iter().any(|l| l.contains("Xid 79: the GPU has fallen off the bus")));
        assert!(told(Some(&lost), &lost).is_empty());
        assert_eq!(told(Some(&lost), &well), ["GPU 0 (GPU-1) is well again"]);

        let errors = |n: u32| GpuHealth::Degraded { why: format!("{n} uncorrected memory errors") };
        assert_eq!(told(None, &one(errors(2), None)).len(), 1);
        assert!(told(Some(&one(errors(2), None)), &one(errors(3), None)).is_empty());

        let hung = sample(Gpus::Hung { for_ms: 3000 });
        let longer = sample(Gpus::Hung { for_ms: 4000 });
        assert_eq!(told(Some(&well), &hung).len(), 1);
        assert!(told(Some(&hung), &longer).is_empty());
        assert_eq!(told(Some(&hung), &well), ["the GPU driver answers again"]);
        // The driver did not hang: what asks it crashed.
        let why = "the process that asks the driver has ended (signal: 11 (SIGSEGV))";
        let crashed = HostSample { gpu_trouble: Some(why.into()), ..hung.clone() };
        let lines = told(Some(&well), &crashed);
        assert!(matches!(&lines[..], [line] if line.contains(why)), "{lines:?}");
        let program = lines_of_a_program();
        assert_eq!(program, [Severity::Warning]);
    }

    #[test]
    fn what_is_not_there_any_more_is_told() {
        let gpu = |n: u32| Gpu { index: n, uuid: format!("GPU-{n}").into(), ..Gpu::default() };
        let some = |all: &[u32]| sample(Gpus::Some(all.iter().map(|n| gpu(*n)).collect()));
        let both = some(&[0, 1]);
        assert_eq!(told(Some(&both), &some(&[1])), ["GPU 0 (GPU-0) is gone: of 2 GPUs 1 are left"]);
        assert!(told(Some(&some(&[1])), &both).is_empty());
        assert!(told(Some(&both), &some(&[1, 0])).is_empty());
        let none = sample(Gpus::None { why: "version mismatch".to_owned() });
        let lines = told(Some(&both), &none);
        assert_eq!(lines, ["none of its 2 GPUs is there any more: version mismatch"]);
        assert!(told(Some(&none), &none).is_empty() && told(None, &none).is_empty());
        assert!(told(Some(&both), &sample(Gpus::Hung { for_ms: 1 })).len() == 1);
    }

    #[test]
    fn a_wrong_clock_is_told_once() {
        let (severity, text) = clock_line(None, 90_000).unwrap();
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("ahead of the controller's"), "{text}");
        assert_eq!(clock_line(Some(90_000), 91_000), None);
        assert!(clock_line(Some(0), -7_000).unwrap().1.contains("behind"));
        assert_eq!(clock_line(Some(-7_000), 3).unwrap().0, Severity::Info);
        assert_eq!(clock_line(None, 400), None);
    }

    fn lines_of_a_program() -> Vec<Severity> {
        let (before, after) = (one(GpuHealth::Ok, None), one(GpuHealth::Ok, Some(31)));
        lines(Some(&before), &after).into_iter().map(|(severity, _)| severity).collect()
    }
}

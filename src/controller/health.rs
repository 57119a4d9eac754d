//! What has become better or worse on a host from one sample to the next, as lines for people.

use crate::api::Severity;
use crate::base::text::clean;
use crate::wire::{Gpu, GpuHealth, Gpus, HostSample, xid};

/// The lines. Without a sample before, only what is wrong is told.
pub fn lines(before: Option<&HostSample>, after: &HostSample) -> Vec<(Severity, String)> {
    let mut lines = Vec::new();
    let hung = |sample: &HostSample| matches!(sample.gpus, Gpus::Hung { .. });
    let was_hung = before.is_some_and(hung);
    if hung(after) && !was_hung {
        let words = "the GPU driver does not answer: GPU values stand still, the host's go on";
        lines.push((Severity::Error, words.to_owned()));
    }
    if was_hung && !hung(after) {
        lines.push((Severity::Info, "the GPU driver answers again".to_owned()));
    }
    let old = before.map_or(&[][..], |sample| sample.gpus.list());
    for gpu in after.gpus.list() {
        let old = old.iter().find(|o| o.uuid == gpu.uuid);
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
    lines
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
        let gpu = Gpu { uuid: "GPU-1".to_owned(), health, xid, ..Gpu::default() };
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
        let program = lines_of_a_program();
        assert_eq!(program, [Severity::Warning]);
    }

    fn lines_of_a_program() -> Vec<Severity> {
        let (before, after) = (one(GpuHealth::Ok, None), one(GpuHealth::Ok, Some(31)));
        lines(Some(&before), &after).into_iter().map(|(severity, _)| severity).collect()
    }
}

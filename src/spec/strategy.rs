//! The strategies of a rollout, the journey each one means, and what may be written beside it.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{AnalysisSpec, Count, RolloutSpec, ServiceSpec, StepSpec};
use crate::base::time;

/// How long the old set stays after the switch of a blue-green rollout (Argo Rollouts'
/// `scaleDownDelaySeconds`).
pub const SCALE_DOWN_DELAY: Duration = Duration::from_secs(30);

/// How a new release replaces the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Replica by replica to the end.
    Rolling,
    /// Through the steps: shares of the traffic, gates.
    Canary,
    /// A whole second set beside the old one, then all traffic at once.
    BlueGreen,
    /// All old replicas go before the first new one starts: an outage.
    Recreate,
}

impl Strategy {
    /// As it is written in a spec.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rolling => "rolling",
            Self::Canary => "canary",
            Self::BlueGreen => "blue-green",
            Self::Recreate => "recreate",
        }
    }
}

/// The key, what is wrong with it, and what to write instead.
type Complaint = (&'static str, String, String);

impl RolloutSpec {
    /// The strategy that is written, or the one that follows from the steps.
    pub fn effective_strategy(&self) -> Strategy {
        self.strategy.unwrap_or(if self.steps.is_empty() {
            Strategy::Rolling
        } else {
            Strategy::Canary
        })
    }

    /// How long the old set of a blue-green rollout stays after the switch.
    pub fn scale_down_delay(&self) -> Duration {
        self.scale_down_delay.unwrap_or(SCALE_DOWN_DELAY)
    }

    /// How long a rollout may go without progress. None (`progress_deadline = "0s"`): for ever.
    pub fn progress_limit(&self) -> Option<Duration> {
        (!self.progress_deadline.is_zero()).then_some(self.progress_deadline)
    }

    /// How long the way back, or a single move, may go without progress before it is over: both have an end even where
    /// the way forward has none. `progress_deadline`, and where that is 0 its default, ten minutes more than
    /// `healthy_deadline` at least.
    pub fn return_limit(&self) -> Duration {
        self.progress_limit().unwrap_or_else(|| {
            let least = self.healthy_deadline.saturating_add(Duration::from_mins(10));
            Self::default().progress_deadline.max(least)
        })
    }

    /// The steps as they are walked. Those of blue-green are a canary's: all replicas without
    /// traffic, the gates, all traffic, and the time for which the old set stays.
    pub fn journey(&self) -> Cow<'_, [StepSpec]> {
        match self.effective_strategy() {
            Strategy::Rolling | Strategy::Canary => Cow::Borrowed(&self.steps),
            Strategy::Recreate => Cow::Borrowed(&[]),
            Strategy::BlueGreen => {
                let mut steps = vec![StepSpec::Scale(Count::Percent(100))];
                steps.extend(self.steps.iter().cloned());
                steps.extend([StepSpec::Weight(100), StepSpec::Bake(self.scale_down_delay())]);
                Cow::Owned(steps)
            }
        }
    }

    /// Where in the journey of a blue-green rollout the traffic switches.
    pub fn switch_step(&self) -> usize {
        self.steps.len() + 1
    }
}

/// What cannot be written together, of the strategy, its steps and the clocks.
pub(super) fn complaint(spec: &ServiceSpec) -> Option<Complaint> {
    let rollout = &spec.rollout;
    clocks(rollout).or_else(|| beside(rollout)).or_else(|| steps(spec))
}

/// Nomad's rules: `min_healthy_time` < `healthy_deadline` < `progress_deadline`, or 0 for no
/// progress deadline at all.
fn clocks(rollout: &RolloutSpec) -> Option<Complaint> {
    if rollout.progress_limit().is_some_and(|p| p <= rollout.healthy_deadline) {
        return Some((
            "progress_deadline",
            "progress_deadline must be longer than healthy_deadline".to_owned(),
            "raise progress_deadline, lower healthy_deadline, or write \"0s\" for no such clock"
                .to_owned(),
        ));
    }
    if rollout.min_healthy_time >= rollout.healthy_deadline {
        return Some((
            "min_healthy_time",
            "min_healthy_time must be shorter than healthy_deadline".to_owned(),
            format!("healthy_deadline is {}", time::short(rollout.healthy_deadline)),
        ));
    }
    None
}

fn beside(rollout: &RolloutSpec) -> Option<Complaint> {
    let strategy = rollout.effective_strategy();
    let word = strategy.word();
    let plain = RolloutSpec::default();
    match strategy {
        Strategy::Rolling | Strategy::Recreate if !rollout.steps.is_empty() => {
            return Some((
                "steps",
                format!("strategy = \"{word}\" has no steps"),
                "remove the steps, or write strategy = \"canary\" (or \"blue-green\" with gates)"
                    .to_owned(),
            ));
        }
        Strategy::Canary if rollout.steps.is_empty() => {
            return Some((
                "strategy",
                "strategy = \"canary\" has no steps".to_owned(),
                "write steps = [{ weight = 10 }, { bake = \"5m\" }], or strategy = \"rolling\""
                    .to_owned(),
            ));
        }
        Strategy::BlueGreen | Strategy::Recreate
            if rollout.max_surge != plain.max_surge
                || rollout.max_unavailable != plain.max_unavailable =>
        {
            return Some((
                if rollout.max_surge == plain.max_surge { "max_unavailable" } else { "max_surge" },
                format!("strategy = \"{word}\" knows no max_surge and max_unavailable"),
                "remove them: all replicas change at once".to_owned(),
            ));
        }
        Strategy::Recreate
            if rollout.canary_header.is_some() || rollout.canary_cookie.is_some() =>
        {
            return Some((
                "canary_",
                "strategy = \"recreate\" never has both releases: there is no canary".to_owned(),
                "remove canary_header and canary_cookie".to_owned(),
            ));
        }
        _ => {}
    }
    if rollout.scale_down_delay.is_some() && strategy != Strategy::BlueGreen {
        return Some((
            "scale_down_delay",
            format!("scale_down_delay belongs to blue-green, and this is {word}"),
            "remove it, or write strategy = \"blue-green\"".to_owned(),
        ));
    }
    None
}

fn steps(spec: &ServiceSpec) -> Option<Complaint> {
    let rollout = &spec.rollout;
    let replicas = spec.replicas.get();
    let mut last_scale = 0;
    for step in &rollout.steps {
        match step {
            StepSpec::Weight(_) | StepSpec::Scale(_)
                if rollout.effective_strategy() == Strategy::BlueGreen =>
            {
                return Some((
                    "steps",
                    "blue-green switches all traffic at once: it has gates, no weights or scales"
                        .to_owned(),
                    "keep bake, analyse, approve and run, or write strategy = \"canary\""
                        .to_owned(),
                ));
            }
            StepSpec::Analyse(name) if rollout.effective_strategy() == Strategy::BlueGreen => {
                let fallback = AnalysisSpec::default();
                let analysis = spec.analysis.get(name).unwrap_or(&fallback);
                let reached = rollout.canary_header.is_some() || rollout.canary_cookie.is_some();
                if analysis.min_requests > 0 && !reached {
                    return Some((
                        "analyse",
                        format!(
                            "before the switch of blue-green nothing is sent to the new set: \
                             analysis {name} would never see its min_requests"
                        ),
                        format!(
                            "write min_requests = 0 in [analysis.{name}] (golden prompts, queries \
                             and GPUs are judged), or a canary_header by which it is reached"
                        ),
                    ));
                }
            }
            StepSpec::Scale(scale) => {
                let wanted = match scale {
                    Count::Number(n) => *n,
                    // Rounded up, as every canary.
                    Count::Percent(p) => {
                        u32::try_from((u64::from(*p) * u64::from(replicas)).div_ceil(100))
                            .unwrap_or(u32::MAX)
                    }
                };
                if wanted == 0 || wanted > replicas || wanted < last_scale {
                    return Some((
                        "scale",
                        format!(
                            "scale {scale} is out of order: scales go from 1 to replicas = \
                             {replicas} and never down"
                        ),
                        "order the scales, for example 1, \"50%\", \"100%\"".to_owned(),
                    ));
                }
                last_scale = wanted;
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;
    use crate::base::Hint;
    use crate::spec::parse_service;

    fn parsed(rollout: &str) -> Result<RolloutSpec, (String, String)> {
        let text =
            format!("model = \"/m\"\nengine = \"vllm\"\nreplicas = 4\n[rollout]\n{rollout}\n");
        match parse_service(&text, "chat") {
            Ok(spec) => {
                let again = parse_service(&toml::to_string(&spec).unwrap(), "again").unwrap();
                assert_eq!(spec, again);
                Ok(spec.rollout)
            }
            Err(e) => Err((e.message.clone(), e.hint().unwrap_or_default())),
        }
    }

    #[test]
    fn the_strategy_follows_from_the_steps_where_none_is_written() {
        assert_eq!(parsed("").unwrap().effective_strategy(), Strategy::Rolling);
        let canary = parsed("steps = [{ weight = 10 }, { scale = \"50%\" }, { weight = 50 }]");
        assert_eq!(canary.unwrap().effective_strategy(), Strategy::Canary);
        for (word, strategy) in
            [("blue-green", Strategy::BlueGreen), ("recreate", Strategy::Recreate)]
        {
            let spec = parsed(&format!("strategy = \"{word}\"")).unwrap();
            assert_eq!(spec.effective_strategy(), strategy);
            assert_eq!(strategy.word(), word);
        }
    }

    #[test]
    fn blue_green_is_all_replicas_then_the_gates_then_all_traffic_then_a_delay() {
        let spec = parsed(
            "strategy = \"blue-green\"\nsteps = [{ approve = true }]\nscale_down_delay = \"2m\"",
        )
        .unwrap();
        let expected = [
            StepSpec::Scale(Count::Percent(100)),
            StepSpec::Approve(true),
            StepSpec::Weight(100),
            StepSpec::Bake(Duration::from_mins(2)),
        ];
        assert_eq!(*spec.journey(), expected);
        assert_eq!(spec.journey()[spec.switch_step()], StepSpec::Weight(100));
        let plain = parsed("strategy = \"blue-green\"").unwrap();
        assert_eq!(plain.journey().last(), Some(&StepSpec::Bake(SCALE_DOWN_DELAY)));
    }

    #[test]
    fn what_does_not_go_together_is_refused_with_what_to_write() {
        for (rollout, message, hint) in [
            ("strategy = \"recreate\"\nsteps = [{ weight = 10 }]", "has no steps", "remove"),
            ("strategy = \"rolling\"\nsteps = [{ approve = true }]", "has no steps", "canary"),
            ("strategy = \"canary\"", "has no steps", "steps = ["),
            (
                "strategy = \"blue-green\"\nsteps = [{ weight = 10 }]",
                "all traffic at once",
                "canary",
            ),
            ("strategy = \"blue-green\"\nsteps = [{ scale = 2 }]", "all traffic at once", "canary"),
            ("strategy = \"blue-green\"\nmax_surge = 2", "max_surge", "remove"),
            ("strategy = \"recreate\"\nmax_unavailable = 2", "max_unavailable", "remove"),
            (
                "strategy = \"blue-green\"\nsteps = [{ analyse = \"default\" }]",
                "min_requests",
                "min_requests = 0",
            ),
            ("strategy = \"recreate\"\ncanary_header = \"x-canary: 1\"", "no canary", "remove"),
            ("scale_down_delay = \"1m\"", "belongs to blue-green", "blue-green"),
            ("steps = [{ scale = 5 }, { weight = 10 }]", "scale 5 is out of order", "order"),
            ("steps = [{ scale = 0 }, { weight = 10 }]", "scale 0 is out of order", "order"),
            ("steps = [{ scale = 3 }, { scale = \"50%\" }]", "scale 50% is out of order", "order"),
            ("strategy = \"bluegreen\"", "unknown variant `bluegreen`", "blue-green"),
        ] {
            let (said, hinted) = parsed(rollout).unwrap_err();
            assert!(said.contains(message), "{rollout}: {said}");
            assert!(hinted.contains(hint), "{rollout}: {hinted}");
        }
        let reached = "strategy = \"blue-green\"\ncanary_header = \"x-canary: 1\"\nsteps = [{ analyse = \"default\" }]";
        assert!(parsed(reached).is_ok());
    }

    #[test]
    fn the_clocks_are_nomads() {
        let clocks = |min: &str, healthy: &str, progress: &str| {
            parsed(&format!(
                "min_healthy_time = \"{min}\"\nhealthy_deadline = \"{healthy}\"\nprogress_deadline = \"{progress}\""
            ))
        };
        assert!(clocks("10s", "5m", "10m").is_ok());
        assert!(
            clocks("10s", "10m", "10m").unwrap_err().0.contains("longer than healthy_deadline")
        );
        assert!(clocks("5m", "5m", "10m").unwrap_err().0.contains("shorter than healthy_deadline"));
        let endless = clocks("10s", "5m", "0s").unwrap();
        assert_eq!(endless.progress_limit(), None);
        assert_eq!(endless.return_limit(), Duration::from_mins(30));
        assert_eq!(clocks("10s", "40m", "0s").unwrap().return_limit(), Duration::from_mins(50));
        assert_eq!(clocks("10s", "5m", "10m").unwrap().return_limit(), Duration::from_mins(10));
    }
}

//! The parts of an analysis besides what the gateway counts: the engines' own metrics, the GPUs,
//! golden prompts, and queries to a Prometheus.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::AnalysisSpec;
use super::condition::Condition;
use crate::base::time;

/// Largest compiled expression of a golden prompt, in bytes.
const MAX_REGEX: usize = 1 << 20;

/// Longest prompt, in bytes.
const MAX_PROMPT: usize = 64 << 10;

/// Most measurements of one query.
const MAX_COUNT: u32 = 1_000;

/// Shortest time between two queries.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// What the engines of the canary may look like; judged where the engine says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineAnalysis {
    /// Compared with stable over the same time by a rank test; it fails when the canary is worse by
    /// more than the analysis's `max_latency_ratio` and that is significant. Shares (the error rate, preemptions) are
    /// compared by Fisher's exact test, and fail when they are also more than a percentage point above stable's.
    pub compare: Vec<EngineMetric>,
    /// The largest `p` that counts as significant (for comparisons a tenth of it before the end), also of a share
    /// that is above its limit before the end, as far as chance could show so much at any look.
    pub significance: f64,
    /// Fewest observations on each side for a comparison; with fewer the analysis is inconclusive, as far as the engines
    /// of both tell what is compared. Of fewer, what is above a limit at the end and may be chance is inconclusive.
    pub min_samples: u64,
    /// Highest 95th percentile of the time to the first token.
    #[serde(with = "time::text_option", skip_serializing_if = "Option::is_none")]
    pub max_first_token: Option<Duration>,
    /// Highest 95th percentile of the time between two tokens.
    #[serde(with = "time::text_option", skip_serializing_if = "Option::is_none")]
    pub max_inter_token: Option<Duration>,
    /// Highest 95th percentile of the time of a whole request.
    #[serde(with = "time::text_option", skip_serializing_if = "Option::is_none")]
    pub max_end_to_end: Option<Duration>,
    /// Highest mean share of the KV cache in use, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_kv_usage: Option<f64>,
    /// Highest mean number of waiting requests of a replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_waiting: Option<f64>,
    /// Highest number of preemptions for each finished request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_preemptions: Option<f64>,
}

impl Default for EngineAnalysis {
    fn default() -> Self {
        Self {
            compare: vec![
                EngineMetric::FirstToken,
                EngineMetric::InterToken,
                EngineMetric::EndToEnd,
            ],
            significance: 0.01,
            min_samples: 30,
            max_first_token: None,
            max_inter_token: None,
            max_end_to_end: None,
            max_kv_usage: None,
            max_waiting: None,
            max_preemptions: None,
        }
    }
}

/// What can be compared between canary and stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineMetric {
    /// Time to the first token.
    FirstToken,
    /// Time between two tokens.
    InterToken,
    /// Time of a whole request.
    EndToEnd,
    /// Share of the KV cache in use, as sampled.
    KvUsage,
    /// Waiting requests, as sampled.
    Waiting,
    /// Share of failed requests, as the gateway and the engines count them.
    ErrorRate,
    /// Preemptions as a share of the finished requests.
    Preemptions,
}

/// What the GPUs of the canary may do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GpuAnalysis {
    /// A new Xid, a new uncorrected memory error, or a GPU that is lost fails the analysis.
    pub errors: bool,
    /// Highest share of the samples in which a GPU was slowed down by heat or by a power brake.
    pub max_throttled: f64,
}

impl Default for GpuAnalysis {
    fn default() -> Self {
        Self { errors: true, max_throttled: 0.5 }
    }
}

/// A prompt whose answer is known, asked of every replica of the canary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenPrompt {
    /// What is asked; temperature 0.
    pub prompt: String,
    /// An expression that must match somewhere in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<String>,
    /// Words that must be in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// Longest answer, in tokens.
    #[serde(default = "max_tokens")]
    pub max_tokens: u32,
}

const fn max_tokens() -> u32 {
    64
}

impl GoldenPrompt {
    /// Whether an answer is as expected; `Err`: what was expected, for people.
    pub fn judge(&self, answer: &str) -> Result<(), String> {
        if let Some(words) = &self.contains
            && !answer.contains(words.as_str())
        {
            return Err(format!("`{}` in it", crate::base::text::clean(words, 60)));
        }
        if let Some(expression) = &self.expect {
            let matches = compile(expression).is_ok_and(|r| r.is_match(answer));
            if !matches {
                return Err(format!("/{}/", crate::base::text::clean(expression, 60)));
            }
        }
        Ok(())
    }
}

fn compile(expression: &str) -> Result<regex::Regex, String> {
    regex::RegexBuilder::new(expression).size_limit(MAX_REGEX).build().map_err(|e| e.to_string())
}

/// A query to a Prometheus, asked by the controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrometheusCheck {
    /// Its address, `https://prometheus:9090` (or `http`).
    pub url: String,
    /// A file on the controller's machine that holds the value of the `Authorization` header: the deck is no
    /// place for a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization_file: Option<PathBuf>,
    /// The query; it must give one number. Filled in: `$service`, `$canary`, `$stable` (releases).
    pub query: String,
    /// Holds of a good result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<Condition>,
    /// Holds of a bad result. With both, what is neither is inconclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Condition>,
    /// Time between two measurements.
    #[serde(default = "interval", with = "time::text")]
    pub interval: Duration,
    /// Number of measurements (without those that ended in an error).
    #[serde(default = "count")]
    pub count: u32,
    /// Time before the first measurement; default: one `interval`, by which the canary has something to show.
    #[serde(default, with = "time::text_option", skip_serializing_if = "Option::is_none")]
    pub initial_delay: Option<Duration>,
    /// Instead of the analysis's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_limit: Option<i64>,
    /// Instead of the analysis's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inconclusive_limit: Option<i64>,
    /// Instead of the analysis's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_error_limit: Option<i64>,
}

impl PrometheusCheck {
    /// Time before the first measurement.
    pub fn delay(&self) -> Duration {
        self.initial_delay.unwrap_or(self.interval)
    }

    /// What is wrong with where it is asked: the key, what, and what to write instead.
    fn mistake(&self) -> Option<(&'static str, String, &'static str)> {
        let after = |scheme| self.url.strip_prefix(scheme).filter(|rest| !rest.is_empty());
        let Some(rest) = after("http://").or_else(|| after("https://")) else {
            let shown = crate::base::text::clean(&self.url, 80);
            let what = format!("`{shown}` is not an http:// or https:// address");
            return Some(("url", what, "write for example url = \"https://prometheus:9090\""));
        };
        if rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
            let what = "the deck is no place for a password".to_owned();
            let hint = "put `Basic BASE64` into a file that authorization_file names";
            return Some(("url", what, hint));
        }
        if self.authorization_file.as_ref().is_some_and(|file| !file.is_absolute()) {
            let what = "authorization_file is a path from the root, outside the deck".to_owned();
            let hint = "write for example authorization_file = \"/etc/gpudeck/prometheus\"";
            return Some(("authorization_file", what, hint));
        }
        None
    }
}

const fn interval() -> Duration {
    Duration::from_secs(60)
}

const fn count() -> u32 {
    1
}

/// One table, or an array of them.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<PrometheusCheck>, D::Error> {
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Vec<PrometheusCheck>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a table with url and query, or an array of them")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            let one = serde::de::value::MapAccessDeserializer::new(map);
            PrometheusCheck::deserialize(one).map(|check| vec![check])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(seq))
        }
    }
    deserializer.deserialize_any(Visitor)
}

/// What is measured again and again, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckPlan {
    /// Number of measurements.
    pub count: u32,
    /// Time between two.
    pub interval: Duration,
    /// Time before the first.
    pub initial_delay: Duration,
    /// More failed ones than this: it fails; negative: never.
    pub failure_limit: i64,
    /// More inconclusive ones than this: it is inconclusive; negative: never.
    pub inconclusive_limit: i64,
    /// More errors in a row than this: it ends in an error; negative: never.
    pub consecutive_error_limit: i64,
}

impl CheckPlan {
    /// How long it takes if nothing ends in an error.
    pub const fn longest(&self) -> Duration {
        self.due(self.count.saturating_sub(1))
    }

    /// When the `nth` measurement (from 0) is due, from the beginning.
    pub const fn due(&self, nth: u32) -> Duration {
        self.initial_delay.saturating_add(self.interval.saturating_mul(nth))
    }

    /// How long until the `nth` measurement (from 0), so long after it began: never longer than it would have been for the
    /// one before, whatever the clock did.
    pub fn rest(&self, nth: u32, since: Duration) -> Duration {
        let longest = if nth == 0 { self.initial_delay } else { self.interval };
        self.due(nth).saturating_sub(since).min(longest)
    }
}

impl AnalysisSpec {
    /// Its golden prompts and queries by name (`golden 1`, `prometheus 2`).
    pub fn checks(&self) -> Vec<(String, CheckPlan)> {
        // Asked once: an answer that may be wrong would not be asked for.
        let prompt = CheckPlan {
            count: 1,
            interval: Duration::ZERO,
            initial_delay: Duration::ZERO,
            failure_limit: 0,
            inconclusive_limit: 0,
            consecutive_error_limit: self.consecutive_error_limit,
        };
        let golden = (1..=self.golden.len()).map(|n| (format!("golden {n}"), prompt));
        let queries = self.prometheus.iter().enumerate().map(|(i, check)| {
            let plan = CheckPlan {
                count: check.count.max(1),
                interval: check.interval,
                initial_delay: check.delay(),
                failure_limit: check.failure_limit.unwrap_or(self.failure_limit),
                inconclusive_limit: check.inconclusive_limit.unwrap_or(self.inconclusive_limit),
                consecutive_error_limit: check
                    .consecutive_error_limit
                    .unwrap_or(self.consecutive_error_limit),
            };
            (format!("prometheus {}", i + 1), plan)
        });
        golden.chain(queries).collect()
    }

    /// What is wrong with it: a word to find the line by, the message, and what to write instead.
    pub(super) fn complaint(&self, name: &str) -> Option<(&'static str, String, String)> {
        let share = |value: f64| value.is_finite() && (0.0..=1.0).contains(&value);
        if !share(self.max_error_rate) {
            return Some((
                "max_error_rate",
                format!("analysis {name}: max_error_rate is a share"),
                "write a number from 0 to 1, for example 0.02".to_owned(),
            ));
        }
        if !share(self.engine.significance) || self.engine.significance == 0.0 {
            return Some((
                "significance",
                format!("analysis {name}: significance is a probability"),
                "write for example 0.01".to_owned(),
            ));
        }
        let at_least = |value: f64, least: f64| value.is_finite() && value >= least;
        let engine = &self.engine;
        let (a_share, a_ratio, a_number) = (
            ("is a share from 0 to 1", "write for example 0.95"),
            ("is a finite number, at least 1", "write for example 2.0"),
            ("is a finite number, at least 0", "write for example 1.5"),
        );
        let numbers = [
            ("max_kv_usage", engine.max_kv_usage.is_none_or(share), a_share),
            ("max_throttled", share(self.gpu.max_throttled), a_share),
            ("max_latency_ratio", at_least(self.max_latency_ratio, 1.0), a_ratio),
            ("max_waiting", engine.max_waiting.is_none_or(|v| at_least(v, 0.0)), a_number),
            ("max_preemptions", engine.max_preemptions.is_none_or(|v| at_least(v, 0.0)), a_number),
        ];
        for (key, good, (what, hint)) in numbers {
            if !good {
                return Some((key, format!("analysis {name}: {key} {what}"), hint.to_owned()));
            }
        }
        for golden in &self.golden {
            let complaint = match (&golden.expect, &golden.contains) {
                (None, None) => Some("needs `expect` (an expression) or `contains`".to_owned()),
                (Some(expression), _) => compile(expression).err(),
                _ => None,
            };
            if let Some(complaint) = complaint {
                return Some((
                    if golden.expect.is_some() { "expect" } else { "prompt" },
                    format!(
                        "analysis {name}: golden prompt {}",
                        crate::base::text::clean(&complaint, 300)
                    ),
                    "write for example contains = \"Paris\"".to_owned(),
                ));
            }
            if golden.prompt.is_empty()
                || golden.prompt.len() > MAX_PROMPT
                || golden.max_tokens == 0
            {
                return Some((
                    "prompt",
                    format!(
                        "analysis {name}: a golden prompt has 1 to {MAX_PROMPT} bytes and max_tokens at least 1"
                    ),
                    "write for example prompt = \"The capital of France is\"".to_owned(),
                ));
            }
        }
        for check in &self.prometheus {
            if check.success.is_none() && check.failure.is_none() {
                return Some((
                    "query",
                    format!("analysis {name}: the query has no condition"),
                    "add for example success = \"result < 0.05\"".to_owned(),
                ));
            }
            if check.count == 0 || check.count > MAX_COUNT {
                return Some((
                    "count",
                    format!("analysis {name}: a query is asked 1 to {MAX_COUNT} times"),
                    "write for example count = 5".to_owned(),
                ));
            }
            if check.interval < SHORTEST_INTERVAL {
                return Some((
                    "interval",
                    format!("analysis {name}: between two queries there is a second at least"),
                    "write for example interval = \"1m\"".to_owned(),
                ));
            }
            if let Some((key, what, hint)) = check.mistake() {
                return Some((key, format!("analysis {name}: {what}"), hint.to_owned()));
            }
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AnalysisSpec, String> {
        let spec: AnalysisSpec = toml::from_str(text).map_err(|e| e.to_string())?;
        spec.complaint("x").map_or(Ok(spec), |(_, message, _)| Err(message))
    }

    #[test]
    fn reads_all_parts() {
        let spec = parse(
            r#"
            duration = "5m"
            engine = { max_first_token = "2s", max_kv_usage = 0.95, compare = ["first_token"] }
            gpu = { max_throttled = 0.1 }
            prometheus = { url = "http://p:9090", query = "up", success = "result < 0.05", count = 3 }
            [[golden]]
            prompt = "The capital of France is"
            contains = "Paris"
            [[golden]]
            prompt = "2+2="
            expect = "^ ?4"
            max_tokens = 2
            "#,
        )
        .unwrap();
        assert_eq!(spec.engine.max_first_token, Some(Duration::from_secs(2)));
        let names: Vec<String> = spec.checks().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["golden 1", "golden 2", "prometheus 1"]);
        assert_eq!(spec.golden[0].judge("It is Paris."), Ok(()));
        assert_eq!(spec.golden[1].judge("5"), Err("/^ ?4/".to_owned()));
        let again: AnalysisSpec =
            serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
    }

    #[test]
    fn refuses_what_cannot_work() {
        for (text, says) in [
            ("[[golden]]\nprompt = \"a\"", "needs `expect`"),
            ("[[golden]]\nprompt = \"a\"\nexpect = \"(\"", "golden prompt"),
            ("prometheus = { url = \"http://p\", query = \"up\" }", "no condition"),
            (
                "prometheus = [{ url = \"ftp://p\", query = \"up\", success = \"result > 0\" }]",
                "not an http:// or https:// address",
            ),
            (
                "prometheus = { url = \"https://a:b@p\", query = \"up\", success = \"result > 0\" }",
                "no place for a password",
            ),
            (
                "prometheus = { url = \"https://p\", query = \"up\", success = \"result > 0\", \
                 authorization_file = \"secret\" }",
                "a path from the root",
            ),
            ("prometheus = { url = \"http://p\", query = \"up\", success = \"x\" }", "comparison"),
            (
                "prometheus = { url = \"http://p\", query = \"up\", success = \"result < 1\", interval = \"10ms\" }",
                "a second at least",
            ),
            ("engine = { significance = 0.0 }", "probability"),
            ("max_error_rate = 2.0", "share"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_measurement_is_due_by_when_it_began_and_not_by_who_measures() {
        let plan = |delay, interval| CheckPlan {
            count: 3,
            interval: Duration::from_secs(interval),
            initial_delay: Duration::from_secs(delay),
            failure_limit: 0,
            inconclusive_limit: 0,
            consecutive_error_limit: 4,
        };
        let rest =
            |plan: CheckPlan, nth, since| plan.rest(nth, Duration::from_secs(since)).as_secs();
        let late = plan(600, 60);
        assert_eq!(late.longest().as_secs(), 720);
        // Another controller goes on after five minutes, and one after twelve.
        assert_eq!((rest(late, 0, 0), rest(late, 0, 300), rest(late, 0, 700)), (600, 300, 0));
        assert_eq!((rest(late, 1, 610), rest(late, 2, 660)), (50, 60));
        // A clock that was set back makes nobody wait for longer than it takes.
        assert_eq!(rest(plan(5, 60), 2, 0), 60);
    }

    #[test]
    fn a_limit_that_could_never_be_exceeded_is_no_limit() {
        let complaint = |text: &str| {
            let spec: AnalysisSpec = toml::from_str(text).unwrap();
            spec.complaint("default").map(|(key, ..)| key)
        };
        for (key, bad) in [
            ("max_kv_usage", "[engine]\nmax_kv_usage = 95"),
            ("max_throttled", "[gpu]\nmax_throttled = 50"),
            ("max_latency_ratio", "max_latency_ratio = nan"),
            ("max_latency_ratio", "max_latency_ratio = inf"),
            ("max_latency_ratio", "max_latency_ratio = 0.5"),
            ("max_waiting", "[engine]\nmax_waiting = nan"),
            ("max_preemptions", "[engine]\nmax_preemptions = -1"),
        ] {
            assert_eq!(complaint(bad), Some(key), "{bad}");
        }
        let good = "max_latency_ratio = 1\n[engine]\nmax_kv_usage = 0.95\nmax_waiting = 4\nmax_preemptions = 0.1";
        assert_eq!(complaint(good), None);
    }

    #[test]
    fn a_query_has_limits_of_its_own_and_a_prompt_is_never_forgiven() {
        let spec: AnalysisSpec = toml::from_str(
            "failure_limit = 2\n[[golden]]\nprompt = \"2+2\"\ncontains = \"4\"\n\
             [[prometheus]]\nurl = \"http://p\"\nquery = \"q\"\nsuccess = \"result < 1\"\ninterval = \"30s\"\ncount = 4\n\
             [[prometheus]]\nurl = \"http://p\"\nquery = \"q\"\nsuccess = \"result < 1\"\n\
             initial_delay = \"5m\"\nfailure_limit = 0\ninconclusive_limit = 3\nconsecutive_error_limit = 9\n",
        )
        .unwrap();
        let plans: Vec<CheckPlan> = spec.checks().into_iter().map(|(_, plan)| plan).collect();
        let [golden, first, second] = plans[..] else { panic!("{plans:?}") };
        assert_eq!((golden.failure_limit, golden.initial_delay), (0, Duration::ZERO));
        assert_eq!((first.failure_limit, first.initial_delay), (2, Duration::from_secs(30)));
        assert_eq!(first.longest(), Duration::from_secs(120));
        assert_eq!((second.failure_limit, second.inconclusive_limit), (0, 3));
        assert_eq!(
            (second.consecutive_error_limit, second.initial_delay),
            (9, Duration::from_mins(5))
        );
    }
}

//! Measurements of golden prompts and queries, counted as Argo Rollouts counts them.
//!
//! (Argo's `analysis/analysis.go`, `assessMetricStatus`: more than `failureLimit` failed → Failed;
//! more than `inconclusiveLimit` inconclusive → Inconclusive; more than `consecutiveErrorLimit`
//! errors in a row → Error; `count` measurements without an error → Successful.)

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::analysis::VerdictResult;
use crate::spec::CheckPlan;

/// A measurement that ended in an error is taken again after this long (Argo's default).
pub const ERROR_RETRY: Duration = Duration::from_secs(10);

/// What one measurement said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckResult {
    /// As it should be.
    Successful,
    /// Not as it should be.
    Failed,
    /// Neither.
    Inconclusive,
    /// It could not be measured.
    Error,
}

/// The measurements of one golden prompt or query so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckRun {
    /// Measurements without an error.
    pub measured: u32,
    /// Of these, failed.
    pub failed: u32,
    /// Of these, inconclusive.
    pub inconclusive: u32,
    /// Errors in a row.
    pub consecutive_errors: u32,
    /// What the last measurement of each kind said, the worst kind first shown.
    pub why: String,
}

impl CheckRun {
    /// Takes one more measurement.
    pub fn add(&mut self, result: CheckResult, why: &str) {
        let mut worse = |counts: bool| {
            if counts || self.why.is_empty() {
                why.clone_into(&mut self.why);
            }
        };
        match result {
            CheckResult::Error => {
                worse(true);
                self.consecutive_errors = self.consecutive_errors.saturating_add(1);
                return;
            }
            CheckResult::Successful => worse(self.failed == 0 && self.inconclusive == 0),
            CheckResult::Failed => {
                worse(true);
                self.failed = self.failed.saturating_add(1);
            }
            CheckResult::Inconclusive => {
                worse(self.failed == 0);
                self.inconclusive = self.inconclusive.saturating_add(1);
            }
        }
        self.measured = self.measured.saturating_add(1);
        self.consecutive_errors = 0;
    }

    /// What has come of it; none while more is to be measured.
    pub fn result(&self, plan: CheckPlan) -> Option<VerdictResult> {
        let over = |n: u32, limit: i64| limit >= 0 && i64::from(n) > limit;
        if over(self.failed, plan.failure_limit) {
            Some(VerdictResult::Failed)
        } else if over(self.inconclusive, plan.inconclusive_limit) {
            Some(VerdictResult::Inconclusive)
        } else if over(self.consecutive_errors, plan.consecutive_error_limit) {
            Some(VerdictResult::Error)
        } else if self.measured >= plan.count {
            Some(VerdictResult::Success)
        } else {
            None
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;
    use CheckResult::{Error, Failed, Inconclusive, Successful};

    const ARGO: CheckPlan = CheckPlan {
        count: 2,
        interval: Duration::ZERO,
        initial_delay: Duration::ZERO,
        failure_limit: 0,
        inconclusive_limit: 0,
        consecutive_error_limit: 4,
    };

    fn result(plan: CheckPlan, results: &[CheckResult]) -> Option<VerdictResult> {
        let mut run = CheckRun::default();
        for result in results {
            run.add(*result, "x");
        }
        run.result(plan)
    }

    #[test]
    fn limits_are_exceeded_not_reached() {
        assert_eq!(result(ARGO, &[Successful]), None);
        assert_eq!(result(ARGO, &[Successful, Successful]), Some(VerdictResult::Success));
        assert_eq!(result(ARGO, &[Failed]), Some(VerdictResult::Failed));
        assert_eq!(result(ARGO, &[Inconclusive]), Some(VerdictResult::Inconclusive));
        let two = CheckPlan { count: 3, failure_limit: 1, ..ARGO };
        assert_eq!(result(two, &[Failed, Successful]), None);
        assert_eq!(result(two, &[Failed, Failed]), Some(VerdictResult::Failed));
        let never = CheckPlan { failure_limit: -1, ..ARGO };
        assert_eq!(result(never, &[Failed, Failed]), Some(VerdictResult::Success));
    }

    #[test]
    fn errors_count_only_in_a_row_and_not_as_measurements() {
        let one = CheckPlan { count: 1, ..ARGO };
        assert_eq!(result(one, &[Error; 4]), None);
        assert_eq!(result(one, &[Error; 5]), Some(VerdictResult::Error));
        let mended = [Error, Error, Error, Error, Successful, Error];
        assert_eq!(result(ARGO, &mended), None);
        assert_eq!(result(one, &mended), Some(VerdictResult::Success));
    }
}

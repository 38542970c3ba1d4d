//! Whether a version may be published: every gate on its metrics and its budget must hold, on enough test rows. Pure.

use crate::baseline::{Baseline, best};
use fleetune_crds::outcome::{REASON_BUDGET_EXCEEDED, REASON_GATE_FAILED, REASON_INCONCLUSIVE, REASON_PASSED};
use fleetune_crds::{Budget, Evaluation, Metric};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The class of budget that `validate` checks; each node checks its own.
pub const DEFAULT_CLASS: &str = "*";

/// One bound and what was measured.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// `accuracy min`, `macroF1 overBaseline`, `maxBytes`, …
    pub name: String,
    /// What the spec asks for.
    pub wanted: f64,
    /// What was measured.
    pub value: f64,
    /// Of `overBaseline`: the baseline's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<f64>,
    /// Whether it holds.
    pub ok: bool,
}

/// What a version costs, as measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Bytes of its files.
    pub bytes: u64,
    /// Peak resident memory of a process that answers, in bytes.
    pub peak_memory: u64,
    /// 95th percentile of the time for one sample, in milliseconds.
    pub p95_ms: f64,
}

/// The word on a version.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Passed, GateFailed, BudgetExceeded or Inconclusive.
    pub reason: String,
    /// The first bound that does not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// What that means, for people.
    pub message: String,
}

/// The gates on metrics.
pub fn gates(evaluation: &Evaluation, metrics: &BTreeMap<Metric, f64>, baselines: &[Baseline]) -> Vec<Check> {
    let mut checks = Vec::new();
    for gate in &evaluation.gates {
        // A metric that is absent is no reason to let a version through.
        let value = metrics.get(&gate.metric).copied().unwrap_or(f64::NAN);
        let name = gate.metric.name();
        let mut check = |bound: &str, wanted: f64, baseline: Option<f64>, ok: bool| {
            checks.push(Check {
                name: format!("{name} {bound}"),
                wanted,
                value,
                baseline,
                ok,
            });
        };
        if let Some(min) = &gate.min {
            check("min", min.get(), None, value >= min.get());
        }
        if let Some(max) = &gate.max {
            check("max", max.get(), None, value <= max.get());
        }
        if let Some(over) = &gate.over_baseline {
            let base = best(baselines, gate.metric)
                .and_then(|b| b.value(gate.metric))
                .unwrap_or(f64::NAN);
            let gain = if gate.metric.larger_is_better() {
                value - base
            } else {
                base - value
            };
            check("overBaseline", over.get(), Some(base), gain >= over.get());
        }
    }
    checks
}

/// The bounds of the budget's default class.
pub fn budget(budget: &[Budget], cost: Cost) -> Vec<Check> {
    let Some(class) = budget.iter().find(|b| b.class == DEFAULT_CLASS) else {
        return Vec::new();
    };
    let bounds = [
        (
            "maxBytes",
            class.max_bytes.as_ref().map(|b| b.get() as f64),
            cost.bytes as f64,
        ),
        (
            "maxPeakMemory",
            class.max_peak_memory.as_ref().map(|b| b.get() as f64),
            cost.peak_memory as f64,
        ),
        (
            "maxP95Latency",
            class.max_p95_latency.as_ref().map(|s| s.get().as_secs_f64() * 1e3),
            cost.p95_ms,
        ),
    ];
    bounds
        .into_iter()
        .filter_map(|(name, wanted, value)| {
            wanted.map(|wanted| Check {
                name: name.to_owned(),
                wanted,
                value,
                baseline: None,
                ok: value <= wanted,
            })
        })
        .collect()
}

/// The word on a version, from its checks and the number of test rows.
pub fn verdict(evaluation: &Evaluation, samples: usize, gates: &[Check], budget: &[Check]) -> Verdict {
    let failed = |reason: &str, check: &Check| Verdict {
        reason: reason.to_owned(),
        gate: Some(check.name.clone()),
        message: format!(
            "{}: {:.6} does not meet {:.6}{}",
            check.name,
            check.value,
            check.wanted,
            check
                .baseline
                .map_or(String::new(), |b| format!(" over the baseline's {b:.6}"))
        ),
    };
    let few = samples < evaluation.min_samples as usize;
    if few && !evaluation.allow_inconclusive {
        return Verdict {
            reason: REASON_INCONCLUSIVE.to_owned(),
            gate: Some("minSamples".to_owned()),
            message: format!(
                "{samples} test rows are fewer than the {} of spec.evaluation.minSamples: add data, or set allowInconclusive",
                evaluation.min_samples
            ),
        };
    }
    if let Some(check) = gates.iter().find(|c| !c.ok) {
        // With too few rows a failed gate proves as little as a passed one; who allows that takes the version as it is.
        if !few {
            return failed(REASON_GATE_FAILED, check);
        }
    }
    if let Some(check) = budget.iter().find(|c| !c.ok) {
        return failed(REASON_BUDGET_EXCEEDED, check);
    }
    Verdict {
        reason: REASON_PASSED.to_owned(),
        gate: None,
        message: if few {
            format!("allowed though {samples} test rows are too few for a verdict")
        } else {
            match gates.len() {
                0 => format!("no gate is set; measured on {samples} test rows"),
                1 => format!("the gate holds on {samples} test rows"),
                n => format!("all {n} bounds hold on {samples} test rows"),
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(gates: &str) -> Evaluation {
        serde_yaml::from_str(&format!("{{gates: {gates}}}")).unwrap()
    }

    fn baselines() -> Vec<Baseline> {
        vec![Baseline {
            name: "b".into(),
            what: String::new(),
            metrics: BTreeMap::from([("macroF1".into(), 0.7), ("mse".into(), 2.0)]),
        }]
    }

    fn judge(text: &str, metric: Metric, value: f64, samples: usize) -> (String, Option<String>) {
        let evaluation = evaluation(text);
        let checks = gates(&evaluation, &BTreeMap::from([(metric, value)]), &baselines());
        let verdict = verdict(&evaluation, samples, &checks, &[]);
        (verdict.reason, verdict.gate)
    }

    #[test]
    fn gates_hold_or_name_themselves() {
        let f1 = Metric::MacroF1;
        for (text, metric, value, samples, reason, gate) in [
            ("[]", f1, 0.1, 20, "Passed", None),
            ("[{metric: macroF1, min: '0.8'}]", f1, 0.8, 20, "Passed", None),
            (
                "[{metric: macroF1, min: '0.8'}]",
                f1,
                0.79,
                20,
                "GateFailed",
                Some("macroF1 min"),
            ),
            (
                "[{metric: macroF1, min: '0.8'}]",
                f1,
                f64::NAN,
                20,
                "GateFailed",
                Some("macroF1 min"),
            ),
            (
                "[{metric: accuracy, min: '0'}]",
                f1,
                1.0,
                20,
                "GateFailed",
                Some("accuracy min"),
            ),
            (
                "[{metric: macroF1, overBaseline: '0.05'}]",
                f1,
                0.76,
                20,
                "Passed",
                None,
            ),
            (
                "[{metric: macroF1, overBaseline: '0.05'}]",
                f1,
                0.74,
                20,
                "GateFailed",
                Some("macroF1 overBaseline"),
            ),
            (
                "[{metric: mse, max: '1'}]",
                Metric::Mse,
                1.5,
                20,
                "GateFailed",
                Some("mse max"),
            ),
            (
                "[{metric: mse, overBaseline: '0.4'}]",
                Metric::Mse,
                1.5,
                20,
                "Passed",
                None,
            ),
            (
                "[{metric: mse, overBaseline: '0.6'}]",
                Metric::Mse,
                1.5,
                20,
                "GateFailed",
                Some("mse overBaseline"),
            ),
            (
                "[{metric: macroF1, min: '0.8'}]",
                f1,
                0.9,
                19,
                "Inconclusive",
                Some("minSamples"),
            ),
        ] {
            let got = judge(text, metric, value, samples);
            assert_eq!(
                (got.0.as_str(), got.1.as_deref()),
                (reason, gate),
                "{text} {value} {samples}"
            );
        }
    }

    #[test]
    fn too_few_rows_pass_where_allowed() {
        let mut allowed = evaluation("[{metric: macroF1, min: '0.8'}]");
        allowed.allow_inconclusive = true;
        let checks = gates(&allowed, &BTreeMap::from([(Metric::MacroF1, 0.1)]), &[]);
        assert_eq!(verdict(&allowed, 3, &checks, &[]).reason, "Passed");
        assert_eq!(verdict(&allowed, 30, &checks, &[]).reason, "GateFailed");
    }

    #[test]
    fn the_default_class_bounds_the_cost() {
        let text =
            "[{class: amd64, maxBytes: '1'}, {class: '*', maxBytes: 1Ki, maxP95Latency: 50ms, maxPeakMemory: 1Mi}]";
        let bounds: Vec<Budget> = serde_yaml::from_str(text).unwrap();
        let cost = Cost {
            bytes: 1024,
            peak_memory: 2 << 20,
            p95_ms: 50.0,
        };
        let checks = budget(&bounds, cost);
        let ok: Vec<bool> = checks.iter().map(|c| c.ok).collect();
        assert_eq!(ok, [true, false, true]);
        let verdict = verdict(&evaluation("[]"), 20, &[], &checks);
        assert_eq!(
            (verdict.reason.as_str(), verdict.gate.as_deref()),
            ("BudgetExceeded", Some("maxPeakMemory"))
        );
        assert!(budget(&bounds[..1], cost).is_empty());
    }
}

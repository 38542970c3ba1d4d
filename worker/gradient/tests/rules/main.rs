//! Every entry of the registry against central differences in f64, or against golden values where the engine has no f64
//! kernel for the operator.
#![allow(clippy::unwrap_used, clippy::panic)]

mod cases;
mod golden;
mod harness;
mod windows;

use fleetune_gradient::registry::{REGISTRY, Support};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn trainable() -> impl Iterator<Item = &'static str> {
    REGISTRY
        .iter()
        .filter(|e| matches!(e.support, Support::Trainable(_)))
        .map(|e| e.operator)
}

#[test]
fn every_rule_has_a_case() {
    let names: BTreeSet<&str> = trainable().collect();
    assert_eq!(names.len(), trainable().count(), "an operator is listed twice");
    for operator in names {
        let by_differences = !cases::cases(operator, &cases::Shape::default(), 1).is_empty();
        let by_golden = golden::GOLDEN.iter().any(|g| g.0 == operator);
        assert!(
            by_differences ^ by_golden,
            "{operator} is checked by no case, or by two kinds of case"
        );
    }
}

#[test]
fn every_golden_value_has_a_rule() {
    for (operator, ..) in golden::GOLDEN {
        assert!(
            trainable().any(|o| o == *operator),
            "{operator} has golden values and no rule"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rules_agree_with_differences(shape in cases::shapes(), seed: u64) {
        for operator in trainable() {
            for case in cases::cases(operator, &shape, seed) {
                harness::check(operator, &case, seed);
            }
        }
    }
}

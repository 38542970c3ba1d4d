//! The table of operators in the documentation is the registry.
#![allow(clippy::unwrap_used)]

use fleetune_gradient::registry::{REGISTRY, Support};
use std::fmt::Write;
use std::path::Path;

const START: &str =
    "<!-- Made by `FLEETUNE_WRITE_SCHEMA=1 cargo test --workspace --test gradient_docs`; do not edit below. -->\n";

fn table() -> String {
    let mut text =
        format!("{START}\n| operator | y and its gradient, g = ∂L/∂y | trained through |\n| --- | --- | --- |\n");
    for entry in REGISTRY {
        let support = match entry.support {
            Support::Trainable(_) => "yes".to_owned(),
            Support::FrozenOnly(reason) => format!("no: {reason}"),
        };
        let formula = entry.formula.replace('|', "\\|");
        writeln!(text, "| `{}` | {formula} | {support} |", entry.operator).unwrap();
    }
    text
}

#[test]
fn the_table_is_the_registry() {
    let path = Path::new(env!("FLEETUNE_ROOT")).join("docs/gradients.md");
    let have = std::fs::read_to_string(&path).unwrap();
    let intro = have.split(START).next().unwrap();
    let want = format!("{intro}{}", table());
    if std::env::var_os("FLEETUNE_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, want).unwrap();
    } else {
        assert_eq!(
            have, want,
            "docs/gradients.md is not what the registry says: run with FLEETUNE_WRITE_SCHEMA=1"
        );
    }
}

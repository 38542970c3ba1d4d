//! `docs/pipeline.schema.json` is the JSON Schema of `pipeline.json`, for clients in other languages. Run this test with
//! FLEETUNE_WRITE_SCHEMA=1 after a change of the type, and commit what it writes.
#![allow(clippy::unwrap_used, clippy::panic)] // A test may end itself.

use fleetune_worker::pipeline::{Pipeline, VERSION};
use std::path::Path;

#[test]
fn the_committed_schema_is_that_of_the_type() {
    let mut schema = schemars::schema_for!(Pipeline);
    let name = format!("https://fleetune.dev/schemas/pipeline-v{VERSION}.json");
    schema.insert("$id".into(), name.into());
    let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
    let path = Path::new(env!("FLEETUNE_ROOT")).join("docs/pipeline.schema.json");
    if std::env::var_os("FLEETUNE_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "{} is not the schema of the type: see the head of this test",
        path.display()
    );
}

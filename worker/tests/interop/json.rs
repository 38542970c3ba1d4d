//! `report.json` and `pipeline.json` of a real job, before a validator and the schemas in `docs`.

use super::fixture::Fixture;
use super::programs::{Python, run};
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn json_files_are_what_their_schemas_say() {
    let Some(python) = Python::find() else { return };
    let fixture = Fixture::new(&python);
    let made = fixture.made();
    let docs = Path::new(env!("FLEETUNE_ROOT")).join("docs");
    let check = |schema: &str, file: &Path, code: i32| {
        run(python.script("check_json.py").arg(docs.join(schema)).arg(file), code)
    };
    for (schema, file, spoil) in [
        ("report.schema.json", "report/report.json", ["verdict", "selfTest"]),
        ("pipeline.schema.json", "version/pipeline.json", ["before", "input"]),
    ] {
        let path = made.join(file);
        check(schema, &path, 0);
        let whole: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (what, value) in [(spoil[0], Value::Null), (spoil[1], json!("text"))] {
            let mut spoiled = whole.clone();
            spoiled[what] = value;
            let other = fixture.path("spoiled.json");
            std::fs::write(&other, spoiled.to_string()).unwrap();
            assert!(check(schema, &other, 3).contains(what), "{file}");
        }
    }
}

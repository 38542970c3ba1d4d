//! The committed definitions, the chart templates and the types say the same, and every field of the API is written the
//! way the conventions ask for.
#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of a test may end it.

use fleetune_crds::{reference, yaml};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use std::path::{Path, PathBuf};

const REMEDY: &str = "run `cargo run -p fleetune-crds --bin crdgen` and commit what it writes";

fn root() -> PathBuf {
    PathBuf::from(env!("FLEETUNE_ROOT"))
}

fn all() -> Vec<(&'static str, CustomResourceDefinition)> {
    yaml::hub().into_iter().chain(yaml::edge()).collect()
}

fn same(path: &Path, expected: &str) {
    let found = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}: {REMEDY}", path.display()));
    assert!(
        found == expected,
        "{} is not what the types say: {REMEDY}",
        path.display()
    );
}

#[test]
fn committed_definitions_and_chart_templates_are_those_of_the_types() {
    for (chart, kinds) in [("fleetune", yaml::hub()), ("fleetune-edge", yaml::edge())] {
        let templates = root().join("charts").join(chart).join("templates/crds");
        for (name, definition) in &kinds {
            same(
                &root().join("crds").join(format!("{name}.yaml")),
                &yaml::text(definition).unwrap(),
            );
            same(
                &templates.join(format!("{name}.yaml")),
                &yaml::template(definition).unwrap(),
            );
        }
        let shipped = std::fs::read_dir(&templates).unwrap().count();
        assert_eq!(
            shipped,
            kinds.len(),
            "{} holds the kinds of its cluster and no other",
            templates.display()
        );
    }
}

#[test]
fn the_page_of_fields_is_that_of_the_types() {
    let all = all();
    let page = reference::page(all.iter().map(|(_, definition)| definition));
    same(&root().join("docs/fields.md"), &page);
    assert!(
        page.contains("| `train.earlyStopping.patience` | integer |"),
        "nested fields are there"
    );
    assert!(
        !page.contains("matchExpressions"),
        "types of Kubernetes are not repeated"
    );
}

/// Collects what is wrong below `path`.
fn check(path: &str, schema: &JSONSchemaProps, foreign: bool, wrong: &mut Vec<String>) {
    for (name, property) in schema.properties.iter().flatten() {
        let below = format!("{path}.{name}");
        let first = name.chars().next().unwrap_or('_');
        if !(first.is_ascii_lowercase() && name.chars().all(|c| c.is_ascii_alphanumeric())) {
            wrong.push(format!("{below}: not camelCase"));
        }
        let foreign = foreign || FOREIGN.iter().any(|f| below.ends_with(f));
        let described = property.description.as_deref().is_some_and(|d| !d.is_empty());
        if !described && !matches!(below.matches('.').count(), 1) {
            wrong.push(format!("{below}: no description"));
        }
        check(&below, property, foreign, wrong);
    }
    if schema
        .description
        .as_deref()
        .is_some_and(|d| d.contains("Auto-generated"))
    {
        wrong.push(format!("{path}: the description of the derive"));
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
        // Lists inside types of Kubernetes are as Kubernetes has them.
        if schema.x_kubernetes_list_type.is_none() && !foreign {
            wrong.push(format!("{path}: a list without a list type"));
        }
        check(&format!("{path}[]"), item, foreign, wrong);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &schema.additional_properties {
        check(&format!("{path}{{}}"), value, foreign, wrong);
    }
}

/// Fields whose types are those of Kubernetes.
const FOREIGN: &[&str] = &[
    ".nodeSelector",
    ".clusters",
    ".targets.nodes",
    ".resources",
    ".tolerations",
];

#[test]
fn every_field_is_camel_case_and_described_and_every_list_has_a_list_type() {
    let mut wrong = Vec::new();
    for (name, definition) in all() {
        for version in &definition.spec.versions {
            let schema = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
            let described = schema.description.as_deref().is_some_and(|d| d.len() > 20);
            if !described {
                wrong.push(format!("{name}: the kind has no description"));
            }
            check(name, schema, false, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_kind_has_short_name_category_columns_and_status() {
    for (name, definition) in all() {
        assert_eq!(
            definition.spec.names.categories.as_deref(),
            Some(&["fleetune".to_owned()][..]),
            "{name}"
        );
        assert_eq!(
            definition.spec.names.short_names.as_ref().map(Vec::len),
            Some(1),
            "{name}"
        );
        let version = &definition.spec.versions[0];
        let columns = version.additional_printer_columns.as_ref().unwrap();
        assert_eq!(columns.last().unwrap().name, "Age", "{name}");
        let status = version.subresources.as_ref().and_then(|s| s.status.as_ref());
        assert_eq!(
            status.is_some(),
            name != "modelversions",
            "{name}: all but a version have a status"
        );
    }
}

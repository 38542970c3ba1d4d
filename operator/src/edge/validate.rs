//! Placements whose fields can be acted on. One that cannot is left alone, entries on nodes included, and its status
//! says why.

use fleetune_crds::{ModelPlacement, names};
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};
use std::collections::BTreeMap;
use std::time::Duration;

/// The edge controller's own settings.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How old the hub's last answer may be for new activations to be permitted.
    pub activation_ttl: Duration,
    /// How long a Node must be absent before its EdgeNode is removed.
    pub absent_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            activation_ttl: Duration::from_mins(5),
            absent_after: Duration::from_hours(1),
        }
    }
}

/// A placement that can be acted on.
#[derive(Clone, Debug)]
pub struct Placement {
    /// `NAMESPACE/MODEL`.
    pub key: String,
    /// The object.
    pub object: ModelPlacement,
    selector: Selector,
}

impl Placement {
    /// Whether a node with these labels is meant.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector.matches(labels)
    }
}

/// All placements, sorted into those that can be acted on and those that cannot.
#[derive(Clone, Debug, Default)]
pub struct Validated {
    /// Can be acted on, sorted by name.
    pub placements: Vec<Placement>,
    /// Cannot: the object and what is wrong with it.
    pub refused: Vec<(ModelPlacement, String)>,
}

/// Sorts the placements.
pub fn validate(placements: &[ModelPlacement]) -> Validated {
    let mut out = Validated::default();
    for object in placements {
        let spec = &object.spec;
        let expected = names::placement_name(&spec.namespace, &spec.model_name);
        if object.name_any() != expected {
            let message = format!("a placement of this model must be named {expected}; delete this one");
            out.refused.push((object.clone(), message));
            continue;
        }
        match Selector::try_from(spec.node_selector.clone()) {
            Ok(selector) => out.placements.push(Placement {
                key: names::model_key(&spec.namespace, &spec.model_name),
                object: object.clone(),
                selector,
            }),
            Err(error) => {
                let message = format!("spec.nodeSelector: {error}; correct targets.nodes of the ModelRollout");
                out.refused.push((object.clone(), message));
            }
        }
    }
    out.placements.sort_by_key(|p| p.object.name_any());
    out
}

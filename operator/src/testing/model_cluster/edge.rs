//! The edge controllers of the model cluster, and the runtimes of its nodes.

use super::{Died, World, invariants};
use crate::edge::observe::{ABSENT_SINCE, NodeView, Observed as EdgeObserved};
use crate::edge::plan::{Step as EdgeStep, plan as edge_plan};
use crate::edge::validate::{Settings, validate as edge_validate};
use fleetune_crds::{EdgeNode, EdgeNodeSpec, EdgeNodeStatus, ModelPlacementStatus, VersionState};
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;

impl World {
    /// One look of a cluster's controller; with `stale` from what it last knew of the hub.
    pub fn edge(&mut self, cluster: &str, stale: bool) {
        let now = self.now;
        let device = self.devices.get_mut(cluster).unwrap();
        if device.connected {
            device.heard_at = now;
            device.answered_at = Some(now);
            if !stale {
                device.known = device.placement.clone();
            }
        }
        let _ = self.edge_pass(cluster);
    }

    fn edge_pass(&mut self, cluster: &str) -> Result<(), Died> {
        let device = &self.devices[cluster];
        let nodes = device.nodes.iter().filter(|(_, n)| !n.gone);
        let seen = EdgeObserved {
            placements: device.known.iter().cloned().collect(),
            nodes: nodes
                .map(|(name, node)| (name.clone(), node.view()))
                .collect::<BTreeMap<String, NodeView>>(),
            edge_nodes: device.edge_nodes.clone(),
            hub_answered_at: device.answered_at,
        };
        let want = edge_validate(&seen.placements);
        let plan = edge_plan(&want, &Settings::default(), &seen, self.now);
        assert_eq!(
            plan,
            edge_plan(&want, &Settings::default(), &seen, self.now),
            "equal input, equal plan"
        );
        for step in plan.steps {
            match step {
                EdgeStep::CreateNode { name, class } => {
                    let next = self.write()?;
                    let mut object = EdgeNode::new(
                        &name,
                        EdgeNodeSpec {
                            class,
                            models: BTreeMap::new(),
                        },
                    );
                    object.metadata.resource_version = Some(next);
                    object.metadata.generation = Some(1);
                    self.devices.get_mut(cluster).unwrap().edge_nodes.insert(name, object);
                }
                EdgeStep::WriteNode {
                    name,
                    resource_version,
                    spec,
                    absent_since,
                } => {
                    let next = self.write()?;
                    let device = self.devices.get_mut(cluster).unwrap();
                    let aborted = device
                        .known
                        .as_ref()
                        .map(|p| p.spec.aborted.clone())
                        .unwrap_or_default();
                    let object = device.edge_nodes.get_mut(&name).unwrap();
                    assert_eq!(object.resource_version().unwrap(), resource_version);
                    if let Some(spec) = spec {
                        invariants::check_orders(&object.spec, &spec);
                        let before = object.spec.models.get(&Self::key());
                        if spec.models.get(&Self::key()) != before {
                            let bad = before.and_then(|o| o.source.as_ref());
                            if bad.is_some_and(|s| aborted.contains(&s.digest)) {
                                self.returning.insert(name.clone());
                            } else {
                                self.returning.remove(&name);
                            }
                        }
                        for order in spec.models.values() {
                            if let Some(source) = &order.source {
                                let all = self.ordered.entry(source.digest.to_string()).or_default();
                                all.insert(name.clone());
                            }
                        }
                        object.spec = spec;
                        object.metadata.generation = object.metadata.generation.map(|g| g + 1);
                    }
                    match absent_since {
                        Some(Some(at)) => {
                            object.annotations_mut().insert(ABSENT_SINCE.into(), at.to_string());
                        }
                        Some(None) => {
                            object.annotations_mut().remove(ABSENT_SINCE);
                        }
                        None => {}
                    }
                    object.metadata.resource_version = Some(next);
                }
                EdgeStep::DeleteNode { name, .. } => {
                    self.write()?;
                    self.devices.get_mut(cluster).unwrap().edge_nodes.remove(&name);
                }
                EdgeStep::Report { status, .. } => {
                    self.check_picks();
                    if !self.devices[cluster].connected {
                        return Ok(());
                    }
                    self.report(cluster, *status)?;
                }
            }
        }
        self.check_picks();
        Ok(())
    }

    fn report(&mut self, cluster: &str, status: ModelPlacementStatus) -> Result<(), Died> {
        let next = self.write()?;
        let device = self.devices.get_mut(cluster).unwrap();
        if let Some(object) = device.placement.as_mut() {
            object.status = Some(status);
            object.metadata.resource_version = Some(next);
        }
        Ok(())
    }

    /// Every runtime of a cluster that is not dark looks at its EdgeNode once.
    pub fn runtimes(&mut self, cluster: &str) {
        let now = self.now;
        let device = self.devices.get_mut(cluster).unwrap();
        let mut version = self.version;
        for (name, node) in &mut device.nodes {
            let Some(edge_node) = device.edge_nodes.get_mut(name) else {
                continue;
            };
            if node.dark || node.gone {
                continue;
            }
            let order = edge_node.spec.models.get(&Self::key());
            node.look(order, now);
            // As the runtime does: a model that was removed is named only while somebody asks.
            let is_named = order.is_some() || node.state.state != VersionState::Removed;
            let status = EdgeNodeStatus {
                observed_generation: edge_node.metadata.generation,
                build: "0.1.0".into(),
                models: is_named
                    .then(|| (Self::key(), node.state.clone()))
                    .into_iter()
                    .collect(),
                conditions: Vec::new(),
            };
            if node.was_told() && edge_node.status.as_ref() != Some(&status) {
                version += 1;
                edge_node.status = Some(status);
                edge_node.meta_mut().resource_version = Some(version.to_string());
            }
        }
        self.version = version;
    }
}

//! The hub's controller in the model cluster: one look, and the writes of its plan.

use super::{Died, HubView, MODEL, NAMESPACE, UNREACHABLE_AFTER, World};
use crate::modelrollout::observe as hub_observe;
use crate::modelrollout::plan::{Step as HubStep, plan as hub_plan};
use crate::modelrollout::validate::validate as hub_validate;
use fleetune_crds::conditions::{self, READY, Wanted};
use fleetune_crds::{DeviceCluster, ModelPlacement, RolloutActionStatus, names};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use std::collections::BTreeMap;

impl World {
    /// One look of the hub's controller; with `stale` from what it saw at its last look.
    pub fn hub(&mut self, stale: bool) {
        let Some(rollout) = self.rollout.clone() else { return };
        let fresh = HubView {
            rollout,
            placements: self
                .devices
                .iter()
                .filter_map(|(name, d)| Some((name.clone(), d.placement.clone()?)))
                .collect(),
        };
        let view = match self.last_hub_view.take().filter(|_| stale) {
            Some(old) => old,
            None => fresh.clone(),
        };
        self.last_hub_view = Some(fresh);
        let _ = self.hub_pass(&view);
    }

    fn hub_pass(&mut self, view: &HubView) -> Result<(), Died> {
        let want = hub_validate(&view.rollout).unwrap();
        let clusters = self.devices.keys().map(|name| {
            let object = json!({
                "apiVersion": "fleetune.dev/v1alpha1", "kind": "DeviceCluster",
                "metadata": { "name": name, "labels": { "name": name } }, "spec": { "mode": "Pull" },
                "status": { "namespace": names::cluster_namespace(name) },
            });
            serde_json::from_value::<DeviceCluster>(object).unwrap()
        });
        let mut rollouts = self.others.clone();
        rollouts.insert(want.uid.clone(), want.name.clone());
        let heard: BTreeMap<&str, Timestamp> = self.devices.iter().map(|(n, d)| (n.as_str(), d.heard_at)).collect();
        let placements = view.placements.values().cloned();
        let seen = hub_observe::Observed {
            versions: hub_observe::versions(&want, self.versions.clone()),
            actions: hub_observe::actions(&want, self.actions.clone()),
            clusters: hub_observe::clusters(&want, clusters, placements, |name| heard[name] + UNREACHABLE_AFTER),
            rollouts,
        };
        let prev = view.rollout.status.clone().unwrap_or_default();
        let plan = hub_plan(&want, &seen, &prev, self.now);
        assert_eq!(plan, hub_plan(&want, &seen, &prev, self.now), "equal input, equal plan");

        let mut version = view.rollout.metadata.resource_version.clone();
        if view.rollout.status.as_ref() != Some(&plan.status) {
            let current = self.rollout.as_ref().and_then(|r| r.metadata.resource_version.clone());
            if current != version {
                return Ok(()); // a conflict
            }
            let next = self.write()?;
            self.check_run(&prev, &plan.status);
            let rollout = self.rollout.as_mut().unwrap();
            rollout.status = Some(plan.status.clone());
            rollout.metadata.resource_version = Some(next.clone());
            version = Some(next);
        }
        let mut failed = false;
        for step in &plan.steps {
            match step {
                HubStep::RemoveFinalizer { .. } if failed => {}
                HubStep::AddFinalizer | HubStep::RemoveFinalizer { .. } => {
                    let current = self.rollout.as_ref().and_then(|r| r.metadata.resource_version.clone());
                    if current != version {
                        return Ok(());
                    }
                    let next = self.write()?;
                    if *step == HubStep::AddFinalizer {
                        let rollout = self.rollout.as_mut().unwrap();
                        rollout.metadata.finalizers = Some(vec![names::FINALIZER.into()]);
                        rollout.metadata.resource_version = Some(next);
                    } else {
                        self.rollout = None;
                    }
                }
                HubStep::Answer { action, taken, message } => {
                    self.write()?;
                    self.answers.insert(action.clone(), (*taken, message.clone()));
                    let of = self.actions.iter_mut().find(|a| a.name_any() == *action);
                    let wanted = [Wanted::new(READY, Some(*taken), "Answered", message)];
                    of.unwrap().status = Some(RolloutActionStatus {
                        observed_generation: Some(1),
                        conditions: conditions::replace(&[], &wanted, 1, self.now),
                    });
                }
                HubStep::Create { cluster, spec } => {
                    if self.devices[cluster].placement.is_some() {
                        failed = true;
                        continue;
                    }
                    let next = self.write()?;
                    let mut object = ModelPlacement::new(&names::placement_name(NAMESPACE, MODEL), *spec.clone());
                    object.metadata.namespace = Some(names::cluster_namespace(cluster));
                    object.metadata.generation = Some(1);
                    object.metadata.resource_version = Some(next);
                    self.devices.get_mut(cluster).unwrap().placement = Some(object);
                }
                HubStep::Write {
                    cluster,
                    resource_version,
                    spec,
                } => {
                    let current = self.devices[cluster].placement.as_ref();
                    if current.and_then(ResourceExt::resource_version).as_ref() != Some(resource_version) {
                        failed = true;
                        continue;
                    }
                    let next = self.write()?;
                    let object = self.devices.get_mut(cluster).unwrap().placement.as_mut().unwrap();
                    assert!(spec.epoch >= object.spec.epoch, "epochs only grow");
                    object.spec = *spec.clone();
                    object.metadata.generation = object.metadata.generation.map(|g| g + 1);
                    object.metadata.resource_version = Some(next);
                }
                HubStep::Delete { cluster, .. } => {
                    self.write()?;
                    self.devices.get_mut(cluster).unwrap().placement = None;
                }
            }
        }
        Ok(())
    }
}

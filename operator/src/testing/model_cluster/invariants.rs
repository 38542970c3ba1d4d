//! What must always hold. A violation panics.

use super::World;
use fleetune_crds::common::Digest;
use fleetune_crds::{EdgeNodeSpec, ModelOrder, ModelRolloutStatus, RunState, VersionState};
use k8s_openapi::jiff::SignedDuration;

impl World {
    /// What must hold when the status moves.
    pub(super) fn check_run(&self, prev: &ModelRolloutStatus, next: &ModelRolloutStatus) {
        assert!(next.epoch >= prev.epoch, "epochs only grow");
        let Some(run) = &next.run else { return };
        for (i, pair) in run.waves.windows(2).enumerate() {
            assert!(
                pair[0].passed_at.is_some(),
                "wave {} started before the one before passed",
                i + 1
            );
            assert!(pair[1].nodes >= pair[0].nodes, "waves are cumulative");
        }
        let old = prev.run.as_ref().filter(|r| r.number == run.number);
        if let Some(old) = old {
            for (a, b) in old.waves.iter().zip(&run.waves) {
                assert!(a.name != b.name || a.nodes == b.nodes, "a wave's size is fixed");
            }
            let both = old.waves.iter().zip(&run.waves);
            let passed = both
                .filter(|(a, b)| a.passed_at.is_none() && b.passed_at.is_some())
                .count();
            if passed > 0 && old.stage_hash == run.stage_hash {
                self.check_pass(&run.digest, run.number);
            }
        }
    }

    /// A wave passes: what the hub was told of proven nodes must be true.
    fn check_pass(&self, version: &Digest, run: i64) {
        let strategy = &self.rollout.as_ref().unwrap().spec.strategy;
        let quorum: usize = strategy.quorum.as_str().trim_end_matches('%').parse().unwrap();
        let (mut picks, mut proven, mut failed) = (0, 0, 0);
        for device in self.devices.values() {
            for (name, edge_node) in &device.edge_nodes {
                let order = edge_node.spec.models.get(&Self::key());
                let pick =
                    order.is_some_and(|o| o.run == run && o.source.as_ref().is_some_and(|s| s.digest == *version));
                let state = device.nodes.get(name).map(|n| &n.state);
                if let (true, Some(state)) = (pick, state) {
                    if state.digest.as_ref() == Some(version) && state.state == VersionState::Skipped {
                        continue;
                    }
                    picks += 1;
                    let is = |s| state.digest.as_ref() == Some(version) && state.state == s;
                    proven += usize::from(is(VersionState::Proven));
                    failed += i32::from(is(VersionState::Failed));
                }
            }
        }
        assert!(picks > 0, "an empty wave never passes");
        assert!(proven * 100 >= quorum * picks, "passed with {proven} proven of {picks}");
        // Of a node that fails while its cluster is cut off nobody can know: the wave passes by its quorum.
        if self.calm {
            assert!(failed <= strategy.max_failures, "passed with {failed} failed");
        }
    }

    /// No more nodes have the running version than its wave has; no more are on their way than may be, late joiners
    /// included. Going back from an aborted version needs no permission.
    pub(super) fn check_picks(&self) {
        let status = self.status();
        let run = status.run.filter(|r| r.state == RunState::Progressing);
        let (mut picks, mut of_wave, mut of_all) = (0, 0, 0);
        for device in self.devices.values() {
            for (name, edge_node) in &device.edge_nodes {
                let Some(order) = edge_node.spec.models.get(&Self::key()) else {
                    continue;
                };
                let Some(source) = &order.source else { continue };
                let state = device.nodes.get(name).map(|n| &n.state);
                let state = state.filter(|s| s.epoch >= order.epoch && s.digest.as_ref() == Some(&source.digest));
                let state = state.map(|s| s.state);
                let on_its_way = i32::from(!is_answer(state) && !self.is_late(order));
                if run
                    .as_ref()
                    .is_some_and(|r| order.run == r.number && source.digest == r.digest)
                {
                    picks += i32::from(state != Some(VersionState::Skipped));
                    of_wave += on_its_way;
                }
                of_all += if self.returning.contains(name) { 0 } else { on_its_way };
            }
        }
        // Without a wave there is a run that has just begun, or one whose list of stages changed: picks stay.
        let wave = run.and_then(|r| r.waves.last().map(|w| w.nodes));
        assert!(
            wave.is_none_or(|wave| picks <= wave),
            "{picks} picked in a wave of {wave:?}"
        );
        let Some(rollout) = self.rollout.as_ref().filter(|_| self.calm) else {
            return;
        };
        let most = rollout.spec.strategy.max_unavailable.get();
        let limit = |nodes: u32| i32::try_from(most.of(nodes).max(1)).unwrap();
        if let Some(wave) = wave {
            let limit = limit(wave.unsigned_abs());
            assert!(of_wave <= limit, "{of_wave} of the wave on their way, {limit} may be");
        }
        let all: usize = self.devices.values().map(|d| d.nodes.len()).sum();
        let limit = limit(u32::try_from(all).unwrap());
        assert!(of_all <= limit, "{of_all} on their way, {limit} may be");
    }

    /// One that missed its deadline has failed.
    fn is_late(&self, order: &ModelOrder) -> bool {
        let deadline = SignedDuration::try_from(order.progress_deadline.get()).unwrap();
        self.now >= order.picked_at.0 + deadline
    }
}

/// A node that says this is not on its way any more.
fn is_answer(state: Option<VersionState>) -> bool {
    matches!(
        state,
        Some(VersionState::Active | VersionState::Proven | VersionState::Failed | VersionState::Skipped)
    )
}

/// What the EdgeNode's CRD checks, and that a key is never lost while it serves.
pub(super) fn check_orders(old: &EdgeNodeSpec, new: &EdgeNodeSpec) {
    for (key, before) in &old.models {
        match new.models.get(key) {
            Some(after) => assert!(after.epoch >= before.epoch, "epochs only grow"),
            None => assert_eq!(
                before.state,
                fleetune_crds::OrderState::Remove,
                "absence is never an order"
            ),
        }
    }
}

//! What people see of a rollout: phase, counts, conditions, events. Derived last, from what has been decided; nothing
//! here decides anything, and nothing reads the phase back.

use super::plan::{Owner, Planner, Waiting};
use fleetune_crds::conditions::{self, READY, RECONCILING, STALLED, Wanted};
use fleetune_crds::{ClusterCounts, ModelRolloutStatus, NodeCounts, RunState};

/// Condition that is present, and true, while a stage waits for a RolloutAction.
pub const WAITING_FOR_APPROVAL: &str = "WaitingForApproval";

/// An event on a transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Something is wrong.
    pub warning: bool,
    /// A PascalCase word.
    pub reason: &'static str,
    /// What happened.
    pub note: String,
}

/// Fills in everything that follows from the decisions.
pub fn summarise(p: &mut Planner<'_>, prev: &ModelRolloutStatus) {
    p.next.observed_generation = Some(p.want.generation);
    p.next.clusters = clusters(p);
    p.next.nodes = nodes(p, prev);
    p.next.wave = p.run().filter(|r| !r.waves.is_empty()).map(|r| {
        let all = p.want.stages.len().max(r.waves.len());
        format!("{}/{all}", r.waves.len())
    });
    let (phase, wanted) = conditions_of(p);
    p.next.phase = Some(phase.to_owned());
    p.next.conditions = conditions::replace(&prev.conditions, &wanted, p.want.generation, p.now);
}

fn clusters(p: &Planner<'_>) -> ClusterCounts {
    let mut counts = ClusterCounts::default();
    for cluster in p.seen.clusters.values().filter(|c| c.matched) {
        counts.matched += 1;
        counts.unreachable += i32::from(!p.is_reachable(cluster));
        let owner = cluster.placement.as_ref().map(|o| p.owner(o));
        counts.claimed += i32::from(matches!(owner, Some(Owner::Other(_))));
    }
    counts
}

fn nodes(p: &Planner<'_>, prev: &ModelRolloutStatus) -> NodeCounts {
    let mut sum = NodeCounts::default();
    let running = p.active_run().map(|r| r.number);
    for (_, cluster, order) in p.ours() {
        let mut here = 0;
        for class in order.classes() {
            let counts = match running {
                Some(run) => order.counts(class, run),
                None => order.status.classes.get(class).cloned().unwrap_or_default(),
            };
            here += counts.eligible.max(counts.picked);
            sum.eligible += counts.eligible;
            sum.picked += counts.picked;
            sum.active += counts.active;
            sum.proven += counts.proven;
            sum.failed += counts.failed;
            sum.skipped += counts.skipped;
            sum.unreachable += if p.is_reachable(cluster) { counts.unreachable } else { 0 };
        }
        if !p.is_reachable(cluster) {
            // Whatever they do now, nobody here knows.
            sum.unreachable += here;
        }
    }
    // A run that is taken back keeps the number that ended it; the nodes themselves are fine again.
    let back = |s: &ModelRolloutStatus| {
        let run = s.run.as_ref();
        run.filter(|r| matches!(r.state, RunState::RollingBack | RunState::RolledBack))
            .map(|r| r.number)
    };
    if back(&p.next).is_some() && back(&p.next) == back(prev) {
        sum.failed = prev.nodes.failed;
    }
    sum
}

fn conditions_of(p: &Planner<'_>) -> (&'static str, Vec<Wanted>) {
    let (phase, ready, reason, message) = summary(p);
    let mut wanted = vec![Wanted::new(READY, Some(ready), reason, message.clone())];
    let moving = matches!(
        phase,
        "Pending" | "Progressing" | "Soaking" | "RollingBack" | "Removing" | "WaitingForApproval"
    );
    if moving {
        wanted.push(Wanted::new(RECONCILING, Some(true), reason, message.clone()));
    }
    if phase == "WaitingForApproval" {
        wanted.push(Wanted::new(WAITING_FOR_APPROVAL, Some(true), reason, message.clone()));
    }
    if let Some(claims) = claims(p) {
        wanted.push(Wanted::new(STALLED, Some(true), "ClaimedBy", claims));
    } else if matches!(phase, "Stalled" | "RolledBack") || reason == "RunFailed" {
        wanted.push(Wanted::new(STALLED, Some(true), reason, message));
    }
    (phase, wanted)
}

fn claims(p: &Planner<'_>) -> Option<String> {
    let claimed = p.seen.clusters.iter().filter(|(_, c)| c.matched);
    let claimed: Vec<String> = claimed
        .filter_map(|(name, c)| match p.owner(c.placement.as_ref()?) {
            Owner::Other(owner) => Some(format!("{name} by ModelRollout {owner}")),
            _ => None,
        })
        .collect();
    (!claimed.is_empty() && p.want.deleted_at.is_none()).then(|| {
        format!(
            "model {} is claimed in {}; delete that rollout or select other clusters",
            p.want.model,
            claimed.join(", ")
        )
    })
}

/// Phase, Ready, reason, message.
fn summary(p: &Planner<'_>) -> (&'static str, bool, &'static str, String) {
    if p.want.deleted_at.is_some() {
        let left = match p.waiting.last() {
            Some(Waiting::Removal(left)) => format!("waiting for nodes of {} to unload", left.join(", ")),
            _ => "the rollout is being deleted".to_owned(),
        };
        return ("Removing", false, "Removing", left);
    }
    if let Some(problem) = &p.problem {
        let phase = if problem.stalled { "Stalled" } else { "Pending" };
        return (phase, false, problem.reason, problem.message.clone());
    }
    let counts = &p.next.nodes;
    let Some(run) = p.run() else {
        return waiting(p, "Pending", "the first run has not started".to_owned());
    };
    let version = &run.version;
    match run.state {
        RunState::Failed => ("Paused", false, "RunFailed", format!("{version}: {}", run.message)),
        RunState::RollingBack => {
            let to = p.next.proven.as_ref().map_or("no version", |v| v.name.as_str());
            (
                "RollingBack",
                false,
                "RollingBack",
                format!("{version} goes back to {to}: {}", run.message),
            )
        }
        RunState::RolledBack if !is_moot(p) => {
            ("RolledBack", false, "RolledBack", format!("{version}: {}", run.message))
        }
        RunState::Complete | RunState::RolledBack => {
            let Some(proven) = &p.next.proven else {
                return waiting(p, "Pending", "no version is proven".to_owned());
            };
            if p.waiting.contains(&Waiting::Paused) {
                let what = format!("{} serves and a run of another version is due", proven.name);
                return waiting(p, "Paused", what);
            }
            (
                "Complete",
                true,
                "Complete",
                format!(
                    "{} serves on {} of {} nodes",
                    proven.name, counts.active, counts.eligible
                ),
            )
        }
        RunState::Progressing => {
            let wave = run.waves.last().map_or_else(
                || format!("{version}: no wave has started"),
                |wave| {
                    format!(
                        "{version}: wave {} of {} nodes: {} picked, {} serve, {} proven, {} failed, {} not reachable",
                        wave.name,
                        wave.nodes,
                        counts.picked,
                        counts.active,
                        counts.proven,
                        counts.failed,
                        counts.unreachable
                    )
                },
            );
            let phase = if run.waves.is_empty() { "Pending" } else { "Progressing" };
            waiting(p, phase, wave)
        }
    }
}

/// The spec has moved on from the run that was rolled back.
fn is_moot(p: &Planner<'_>) -> bool {
    let Some(run) = p.run() else { return true };
    p.want.version.as_ref().is_some_and(|name| *name != run.version)
}

/// The words for what is being waited for.
fn waiting(p: &Planner<'_>, phase: &'static str, context: String) -> (&'static str, bool, &'static str, String) {
    let with = |text: String| format!("{context}; {text}");
    match p.waiting.first() {
        None => (phase, false, "Progressing", context),
        Some(Waiting::NoClusters) => (
            "Pending",
            false,
            "NoClusterMatches",
            "spec.targets.clusters matches no DeviceCluster that allows this namespace".to_owned(),
        ),
        Some(Waiting::NoPlacement) if claims(p).is_some() => {
            ("Stalled", false, "ClaimedBy", claims(p).unwrap_or_default())
        }
        Some(Waiting::NoPlacement) => (
            "Pending",
            false,
            "Placing",
            "waiting for the namespaces and placements of the clusters".to_owned(),
        ),
        Some(Waiting::Reports(clusters)) => (
            phase,
            false,
            "WaitingForClusters",
            with(format!(
                "{} of the clusters have not answered their order: {}",
                clusters.len(),
                first(clusters)
            )),
        ),
        Some(Waiting::NoEligibleNodes) => (
            "Pending",
            false,
            "NoEligibleNodes",
            with("no node matches the selector, is Ready with its runtime, is not cordoned and can take it".to_owned()),
        ),
        Some(Waiting::Approval(stage)) => (
            "WaitingForApproval",
            false,
            "WaitingForApproval",
            with(format!("stage {stage} waits for a RolloutAction with action Approve")),
        ),
        Some(Waiting::Soak) => ("Soaking", false, "Soaking", context),
        Some(Waiting::Quorum { proven, nodes }) => (
            phase,
            false,
            "QuorumNotReached",
            with(format!(
                "{proven} of {nodes} are proven, the quorum is {}%",
                p.want.quorum
            )),
        ),
        Some(Waiting::Paused) => ("Paused", false, "Paused", with("spec.paused is true".to_owned())),
        Some(Waiting::Activating | Waiting::RollingBack | Waiting::Removal(_)) => {
            (phase, false, "Progressing", context)
        }
    }
}

fn first(clusters: &[String]) -> String {
    let mut text = clusters.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    if clusters.len() > 5 {
        text.push_str(", …");
    }
    text
}

/// The events that a change of status is worth: transitions only.
pub fn events(prev: &ModelRolloutStatus, next: &ModelRolloutStatus) -> Vec<Event> {
    let mut out = Vec::new();
    let mut event = |warning, reason, note: String| out.push(Event { warning, reason, note });
    let Some(run) = &next.run else { return out };
    let old = prev.run.as_ref().filter(|r| r.number == run.number);
    if old.is_none() {
        event(
            false,
            "RunStarted",
            format!("run {} of {} started", run.number, run.version),
        );
    }
    for (index, wave) in run.waves.iter().enumerate() {
        let before = old.and_then(|r| r.waves.get(index)).filter(|w| w.name == wave.name);
        if before.is_none() {
            let note = format!("wave {} of run {} started: {} nodes", wave.name, run.number, wave.nodes);
            event(false, "WaveStarted", note);
        }
        if wave.passed_at.is_some() && before.is_none_or(|w| w.passed_at.is_none()) {
            event(
                false,
                "WavePassed",
                format!("wave {} of run {} passed", wave.name, run.number),
            );
        }
    }
    if old.map(|r| r.state) != Some(run.state) {
        let note = format!("run {} of {}: {}", run.number, run.version, run.message);
        match run.state {
            RunState::Progressing => {}
            RunState::Complete => event(
                false,
                "RunComplete",
                format!("run {}: {} is proven", run.number, run.version),
            ),
            RunState::Failed => event(true, "RunFailed", note),
            RunState::RollingBack => event(true, "RollingBack", note),
            RunState::RolledBack => event(true, "RolledBack", note),
        }
    }
    let stalled = |s: &ModelRolloutStatus| conditions::get(&s.conditions, STALLED).cloned();
    if let Some(now) = stalled(next)
        && stalled(prev).is_none_or(|before| before.reason != now.reason)
        && !matches!(now.reason.as_str(), "RolledBack" | "RunFailed")
    {
        event(true, "Stalled", format!("{}: {}", now.reason, now.message));
    }
    if conditions::is_true(&next.conditions, WAITING_FOR_APPROVAL)
        && !conditions::is_true(&prev.conditions, WAITING_FOR_APPROVAL)
    {
        let message = conditions::get(&next.conditions, WAITING_FOR_APPROVAL).map_or("", |c| c.message.as_str());
        event(false, "ApprovalWanted", message.to_owned());
    }
    out
}

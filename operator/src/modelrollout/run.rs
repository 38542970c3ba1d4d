//! The life of a run: when one starts, when a wave passes and the next one starts, when a run fails, is aborted, is
//! complete, or is back where it came from.

use super::observe::Version;
use super::plan::{Planner, Problem, Step, Waiting};
use super::{place, waves};
use fleetune_crds::{Action, OnFailure, Run, RunState, VersionRef, Wave};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Most digests that are remembered as aborted; the CRD's limit.
const MAX_ABORTED: usize = 32;

/// One step of the run's life.
pub fn advance(p: &mut Planner<'_>) {
    match p.run().map(|r| r.state) {
        None | Some(RunState::Complete | RunState::RolledBack) => between_runs(p),
        Some(RunState::Progressing | RunState::Failed) => during_run(p),
        Some(RunState::RollingBack) => roll_back(p),
    }
}

/// The version that a run should be about.
fn target<'a>(p: &Planner<'a>) -> Result<&'a Version, Problem> {
    let want = p.want;
    if let Some(name) = &want.version {
        return p.version(name).ok_or_else(|| Problem {
            reason: "VersionNotFound",
            message: format!(
                "spec.version: there is no ModelVersion {name} of model {} in {}; name one that `kubectl get mv` lists",
                want.model, want.namespace
            ),
            stalled: true,
        });
    }
    let proven = p.next.proven.as_ref();
    let proven = proven.and_then(|proven| p.seen.versions.iter().find(|v| v.source.digest == proven.digest));
    let least = proven.map_or(i64::MIN, |v| v.sequence);
    let candidates = p.seen.versions.iter();
    candidates
        .filter(|v| v.sequence >= least && !p.next.aborted.contains(&v.source.digest))
        .max_by_key(|v| v.sequence)
        .ok_or_else(|| Problem {
            reason: "NoVersion",
            message: format!(
                "spec.follow: no version of model {} has been published in {} that was not aborted",
                want.model, want.namespace
            ),
            stalled: false,
        })
}

fn between_runs(p: &mut Planner<'_>) {
    let version = match target(p) {
        Ok(version) => version,
        Err(problem) => {
            // Nothing newer to follow is no problem: what came of the last run stands.
            if p.want.version.is_some() || (p.next.proven.is_none() && p.run().is_none()) {
                p.problem = Some(problem);
            }
            return;
        }
    };
    let digest = &version.source.digest;
    if p.next.proven.as_ref().is_some_and(|proven| proven.digest == *digest) {
        if p.run().is_none() && p.ours().next().is_some() {
            inherited(p, version);
        }
        return;
    }
    let ended_alike =
        |r: &Run| r.state == RunState::RolledBack && r.digest == *digest && r.stage_hash == p.want.stage_hash;
    if p.run().is_some_and(ended_alike) {
        return;
    }
    if let Some(proven) = p.next.proven.as_ref().and_then(|v| p.seen.source(&v.digest))
        && !p.want.allow_contract_change
        && proven.contract != version.source.contract
    {
        p.problem = Some(Problem {
            reason: "ContractChanged",
            message: format!(
                "version {} has other inputs, outputs or labels than the version that serves: clients may break; roll \
                 it out as a model of another name, or set spec.allowContractChange",
                version.name
            ),
            stalled: true,
        });
        return;
    }
    if p.want.paused {
        p.waiting.push(Waiting::Paused);
        return;
    }
    if p.ours().next().is_none() {
        p.waiting.push(if p.seen.clusters.values().any(|c| c.matched) {
            Waiting::NoPlacement
        } else {
            Waiting::NoClusters
        });
        return;
    }
    start(p, version);
}

/// The version was inherited from placements without an owner, so the nodes have proven it already: a run without waves
/// says so.
fn inherited(p: &mut Planner<'_>, version: &Version) {
    start(p, version);
    let now = Time(p.now);
    if let Some(run) = p.next.run.as_mut() {
        run.state = RunState::Complete;
        run.finished_at = Some(now);
        run.message = "the nodes serve this version already".into();
    }
}

/// Starts a run without a wave yet: its orders have zero counts, and from the answers the first wave is sized.
fn start(p: &mut Planner<'_>, version: &Version) {
    let before = p.run().map_or(0, |r| r.number);
    let told = p.ours().map(|(_, _, o)| o.spec.run.max(o.status.run)).max();
    let digest = version.source.digest.clone();
    // Naming an aborted version again is a person's right.
    p.next.aborted.retain(|d| *d != digest);
    p.next.epoch += 1;
    p.next.run = Some(Run {
        number: before.max(told.unwrap_or(0)) + 1,
        version: version.name.clone(),
        digest,
        stage_hash: p.want.stage_hash.clone(),
        started_at: Time(p.now),
        finished_at: None,
        state: RunState::Progressing,
        message: String::new(),
        wave: 0,
        waves: Vec::new(),
    });
}

fn during_run(p: &mut Planner<'_>) {
    let Some(run) = p.run().cloned() else { return };
    if let Some(name) = p.want.version.as_ref().filter(|name| **name != run.version) {
        match target(p) {
            Ok(_) => end_badly(p, &format!("superseded by version {name}"), true),
            // The run is held, not aborted: a typing error must not take nodes back.
            Err(problem) => p.problem = Some(problem),
        }
        return;
    }
    let abort = p
        .seen
        .actions
        .iter()
        .find(|a| a.action == Action::Abort && a.run == run.number && a.stage_hash == run.stage_hash);
    if let Some(abort) = abort {
        end_badly(
            p,
            &format!("aborted by {} (RolloutAction {})", abort.by, abort.name),
            true,
        );
        return;
    }
    let tally = place::tally(p, &run);
    if tally.failed > p.want.max_failures {
        let message = format!(
            "{} failed of at most {}{}",
            tally.failed,
            p.want.max_failures,
            place::first_failure(p, &run)
        );
        end_badly(p, &message, p.want.on_failure == OnFailure::Rollback);
        return;
    }
    let stage_hash = p.want.stage_hash.clone();
    if let Some(run) = p.next.run.as_mut() {
        run.state = RunState::Progressing;
        run.message.clear();
        if run.stage_hash != stage_hash {
            // Another list of stages: progress starts again; what has been picked stays picked.
            run.stage_hash = stage_hash;
            run.waves.clear();
            run.wave = 0;
            p.next.epoch += 1;
            return;
        }
    }
    if p.want.paused {
        p.waiting.push(Waiting::Paused);
        return;
    }
    if run.waves.iter().any(|w| w.passed_at.is_none()) {
        if let Some(waiting) = verdict(p, &run, &tally) {
            let hopeless = matches!(waiting, Waiting::Quorum { .. })
                && !reaches(p.want.quorum, tally.slots - tally.failed, tally.slots);
            if hopeless {
                let message = format!(
                    "{} of {} failed: the quorum of {}% is out of reach{}",
                    tally.failed,
                    tally.slots,
                    p.want.quorum,
                    place::first_failure(p, &run)
                );
                end_badly(p, &message, p.want.on_failure == OnFailure::Rollback);
            } else {
                p.waiting.push(waiting);
            }
            return;
        }
        if let Some(wave) = p.next.run.as_mut().and_then(|r| r.waves.last_mut()) {
            wave.passed_at = Some(Time(p.now));
        }
    }
    next_wave(p, &run, &tally);
}

/// Why the running wave has not passed; `None` once it has. Inconclusive is waiting, never passing.
fn verdict(p: &Planner<'_>, run: &Run, tally: &place::Tally) -> Option<Waiting> {
    if !tally.unanswered.is_empty() {
        return Some(Waiting::Reports(tally.unanswered.clone()));
    }
    let nodes = run.waves.last().map_or(0, |w| w.nodes);
    if tally.slots == 0 {
        return Some(Waiting::NoEligibleNodes);
    }
    let all_given = tally.taken >= nodes || tally.spare == 0;
    if !all_given || tally.open > 0 {
        let soaking = all_given && tally.open == tally.soaking;
        return Some(if soaking { Waiting::Soak } else { Waiting::Activating });
    }
    (!reaches(p.want.quorum, tally.proven, tally.slots)).then_some(Waiting::Quorum {
        proven: tally.proven,
        nodes: tally.slots,
    })
}

fn reaches(quorum: i64, nodes: i32, of: i32) -> bool {
    i64::from(nodes) * 100 >= quorum * i64::from(of)
}

fn next_wave(p: &mut Planner<'_>, run: &Run, tally: &place::Tally) {
    let index = run.waves.len();
    let Some(stage) = p.want.stages.get(index) else {
        complete(p);
        return;
    };
    let approved = p.seen.actions.iter().any(|a| {
        a.action == Action::Approve
            && a.run == run.number
            && a.stage_hash == run.stage_hash
            && a.stage.as_deref() == Some(&stage.name)
    });
    if stage.approval && !approved {
        p.waiting.push(Waiting::Approval(stage.name.clone()));
        return;
    }
    if !tally.unanswered.is_empty() {
        p.waiting.push(Waiting::Reports(tally.unanswered.clone()));
        return;
    }
    let nodes = waves::size(stage.nodes.get(), &place::cells(p, run));
    if nodes == 0 {
        p.waiting.push(Waiting::NoEligibleNodes);
        return;
    }
    let wave = Wave {
        name: stage.name.clone(),
        nodes,
        started_at: Time(p.now),
        passed_at: None,
    };
    p.next.epoch += 1;
    if let Some(run) = p.next.run.as_mut() {
        run.wave = i32::try_from(index).unwrap_or(i32::MAX);
        run.waves.push(wave);
    }
}

fn complete(p: &mut Planner<'_>) {
    p.next.epoch += 1;
    if let Some(run) = p.next.run.as_mut() {
        run.state = RunState::Complete;
        run.finished_at = Some(Time(p.now));
        p.next.proven = Some(VersionRef {
            name: run.version.clone(),
            digest: run.digest.clone(),
        });
    }
}

/// Ends a run that failed or was aborted: by going back, or by standing still.
fn end_badly(p: &mut Planner<'_>, message: &str, back: bool) {
    let Some(run) = p.next.run.as_mut() else { return };
    run.message = fleetune_crds::conditions::cut(message.to_owned());
    if !back {
        run.state = RunState::Failed;
        return;
    }
    run.state = RunState::RollingBack;
    let digest = run.digest.clone();
    p.next.aborted.retain(|d| *d != digest);
    p.next.aborted.insert(0, digest);
    p.next.aborted.truncate(MAX_ABORTED);
    p.next.epoch += 1;
}

/// Back is where no node that can be reached runs an aborted version, and every cluster that can be has said so.
fn roll_back(p: &mut Planner<'_>) {
    let epoch = p.next.epoch;
    let still = p.ours().any(|(_, cluster, order)| {
        let answered = order.spec.epoch == epoch && order.is_answered();
        p.is_reachable(cluster) && (!answered || order.sum(|c| c.aborted) > 0)
    });
    if still {
        p.waiting.push(Waiting::RollingBack);
        return;
    }
    if let Some(run) = p.next.run.as_mut() {
        run.state = RunState::RolledBack;
        run.finished_at = Some(Time(p.now));
    }
}

/// Says of every new action what became of it, judged by the run as it was before this plan, and by the list of stages as
/// it is after it: a word on stages that were changed meanwhile is void.
pub fn answer(p: &mut Planner<'_>, run: Option<&Run>) {
    let after = p.run().cloned();
    let hash = |run: &Run| match &after {
        Some(after) if after.number == run.number => after.stage_hash.clone(),
        _ => run.stage_hash.clone(),
    };
    for action in p.seen.actions.iter().filter(|a| !a.answered) {
        let verdict = match run {
            None => Err("this rollout has no run yet".to_owned()),
            Some(run) if run.number != action.run => {
                Err(format!("it is for run {}, not for run {}", action.run, run.number))
            }
            Some(run) if hash(run) != action.stage_hash => Err(format!(
                "it is for the list of stages {}, not for {}",
                action.stage_hash,
                hash(run)
            )),
            Some(run) => match action.action {
                Action::Abort if run.state == RunState::Complete => Err("the run is complete".to_owned()),
                Action::Abort => Ok("the run is aborted".to_owned()),
                Action::Approve => {
                    let stage = action.stage.as_deref().unwrap_or_default();
                    let known = p.want.stages.iter().any(|s| s.name == stage && s.approval);
                    if known {
                        Ok(format!("stage {stage} may start"))
                    } else {
                        Err(format!("no stage {stage:?} waits for approval"))
                    }
                }
            },
        };
        p.steps.push(Step::Answer {
            action: action.name.clone(),
            taken: verdict.is_ok(),
            message: match verdict {
                Ok(message) => message,
                Err(message) => format!("ignored: {message}"),
            },
        });
    }
}

//! The whole loop over an API server in memory: from a job to its version, with a crash after every write, with Jobs
//! that fail or vanish, and with nothing written once there is nothing left to do.

use crate::finetunejob::step::WorkerStep;
use crate::finetunejob::sweep::sweep;
use crate::finetunejob::{State, reconcile};
use crate::runtime::Context;
use crate::testing::builders::{TestClock, context, finetune_job, hub_config};
use crate::testing::mock_api::MockApi;
use fleetune_crds::common::Digest;
use fleetune_crds::{FineTuneJob, ModelVersion};
use proptest::prelude::*;
use serde_json::{Value, json};

const JOB: &str = "/apis/fleetune.dev/v1alpha1/namespaces/shop/finetunejobs/shirts-1";
const VERSIONS: &str = "/apis/fleetune.dev/v1alpha1/namespaces/shop/modelversions";

pub fn summary() -> Value {
    json!({
        "samples": 300,
        "metrics": { "macroF1": "0.91", "accuracy": "0.92" },
        "baseline": "majority",
        "baselineMetrics": { "macroF1": "0.1" },
        "bytes": 1000,
        "p95LatencyMs": "12.5",
        "peakMemoryBytes": 100_000,
        "contract": Digest::of(b"contract"),
    })
}

struct Lab {
    api: MockApi,
    clock: TestClock,
    ctx: Context<crate::config::HubConfig>,
    state: State,
}

impl Lab {
    fn new(change: impl FnOnce(&mut FineTuneJob)) -> Self {
        let (api, clock) = (MockApi::default(), TestClock::default());
        let ctx = context(&api, &clock, hub_config());
        let state = State::new(&ctx.metrics.registry).unwrap();
        let mut job = finetune_job();
        change(&mut job);
        api.put(JOB, serde_json::to_value(job).unwrap());
        let lab = Self { api, clock, ctx, state };
        lab.clock.advance(1000);
        lab
    }

    fn job(&self) -> Option<FineTuneJob> {
        self.api.get(JOB).map(|value| serde_json::from_value(value).unwrap())
    }

    fn phase(&self) -> String {
        self.job()
            .and_then(|j| j.status)
            .and_then(|s| s.phase)
            .unwrap_or_default()
    }

    fn reason(&self) -> String {
        let conditions = self.job().unwrap().status.unwrap().conditions;
        conditions.into_iter().find(|c| c.type_ == "Succeeded").unwrap().reason
    }

    /// One pass, a second later.
    async fn pass(&self) -> Result<(), String> {
        self.clock.advance(1);
        let cached = self.job().unwrap_or_else(finetune_job);
        let done = reconcile(&cached, &self.ctx, &self.state).await;
        done.map(|_| ()).map_err(|error| crate::runtime::error::chain(&error))
    }

    async fn passes(&self, count: usize) {
        for _ in 0..count {
            self.pass().await.unwrap();
        }
    }

    fn worker(step: WorkerStep) -> String {
        let namespace = if step == WorkerStep::Publish {
            "fleetune-system"
        } else {
            "shop"
        };
        let name = step.job_name("shop", "shirts-1");
        format!("/apis/batch/v1/namespaces/{namespace}/jobs/{name}")
    }

    /// Ends a worker Job the way the Job controller and the kubelet would.
    fn end(&self, step: WorkerStep, exit: i32, outcome: &Value) {
        let path = Self::worker(step);
        let Some(job) = self.api.get(&path) else { return };
        if !job["status"]["conditions"].is_null() || !job["metadata"]["deletionTimestamp"].is_null() {
            return;
        }
        let uid = job["metadata"]["uid"].as_str().unwrap().to_owned();
        let pods = path
            .split("/jobs/")
            .next()
            .unwrap()
            .replace("/apis/batch/v1", "/api/v1");
        self.api.put(
            &format!("{pods}/pods/{}-{uid}", step.name()),
            json!({
                "metadata": { "name": format!("{}-{uid}", step.name()), "labels": { "batch.kubernetes.io/controller-uid": uid } },
                "status": {
                    "phase": if exit == 0 { "Succeeded" } else { "Failed" },
                    "containerStatuses": [{
                        "name": "worker", "image": "i", "imageID": "i", "ready": false, "restartCount": 0,
                        "state": { "terminated": { "exitCode": exit, "reason": "Error", "message": outcome.to_string() } },
                    }],
                },
            }),
        );
        let type_ = if exit == 0 { "Complete" } else { "Failed" };
        self.api.change(&path, |job| {
            job["status"] =
                json!({ "conditions": [{ "type": type_, "status": "True", "reason": "R", "message": "m" }] });
        });
    }

    fn succeed(&self, step: WorkerStep) {
        self.end(step, 0, &good_outcome(step));
    }

    /// How often the worker Job of each step was made.
    fn creations(&self) -> Vec<usize> {
        let count = |step: WorkerStep| {
            let path = Self::worker(step);
            let collection = path.rsplit_once('/').unwrap().0.to_owned();
            let made = |write: &&crate::testing::mock_api::Write| {
                write.method == "POST" && write.path == collection && (200..300).contains(&write.code)
            };
            self.api.writes().iter().filter(made).count()
        };
        // Two steps share a collection: together they are made at most twice.
        vec![count(WorkerStep::Finetune), count(WorkerStep::Publish)]
    }
}

fn good_outcome(step: WorkerStep) -> Value {
    match step {
        WorkerStep::Finetune => {
            json!({ "code": "Done", "reason": "Done", "digest": Digest::of(b"candidate"), "dataManifest": Digest::of(b"data") })
        }
        WorkerStep::Validate => {
            json!({ "code": "Done", "reason": "Passed", "digest": Digest::of(b"report"), "summary": summary() })
        }
        WorkerStep::Publish => json!({ "code": "Done", "reason": "Done", "digest": Digest::of(b"signature") }),
    }
}

/// Drives a job to its end; a pass may fail, and is then tried again.
async fn drive(lab: &Lab) {
    for _ in 0..60 {
        if lab.pass().await.is_err() {
            lab.api.heal();
        }
        for step in WorkerStep::ALL {
            lab.succeed(step);
        }
        if lab.phase() == "Succeeded" {
            // One more pass lets the Jobs go; the crash may be there.
            if lab.pass().await.is_err() {
                lab.api.heal();
                lab.pass().await.unwrap();
            }
            return;
        }
    }
    panic!("did not end: {:?}", lab.job());
}

fn assert_published(lab: &Lab) {
    let job = lab.job().unwrap();
    let status = job.status.unwrap();
    assert_eq!(status.phase.as_deref(), Some("Succeeded"));
    let name = format!("shirts-{}", Digest::of(b"candidate").short());
    assert_eq!(status.version.as_deref(), Some(name.as_str()));
    assert_eq!(lab.api.paths("/modelversions/"), [format!("{VERSIONS}/{name}")]);
    let version: ModelVersion = serde_json::from_value(lab.api.get(&format!("{VERSIONS}/{name}")).unwrap()).unwrap();
    assert_eq!(version.spec.source.signature, Digest::of(b"signature"));
    assert_eq!(version.spec.sequence, 1);
    assert!(version.metadata.owner_references.is_none());
}

#[tokio::test]
async fn from_apply_to_version_and_then_silence() {
    let lab = Lab::new(|_| {});
    let mut phases = Vec::new();
    for step in WorkerStep::ALL {
        lab.passes(2).await;
        phases.push(lab.phase());
        lab.succeed(step);
    }
    lab.passes(3).await;
    assert_eq!(phases, ["FineTuning", "Validating", "Publishing"]);
    assert_published(&lab);
    for step in WorkerStep::ALL {
        let job = lab.api.get(&Lab::worker(step)).unwrap();
        assert_eq!(job["metadata"]["finalizers"], json!([]), "{step:?} may be deleted now");
    }
    lab.api.clear_writes();
    lab.clock.advance(100_000);
    lab.passes(5).await;
    assert_eq!(lab.api.writes(), [], "converged means no writes");
}

#[tokio::test]
async fn the_first_pass_writes_in_this_order() {
    let lab = Lab::new(|_| {});
    lab.passes(1).await;
    let writes: Vec<String> = lab
        .api
        .writes()
        .iter()
        .map(|w| {
            format!(
                "{} {} {}",
                w.method,
                w.path.rsplit('/').next().unwrap(),
                w.manager.as_deref().unwrap_or("-")
            )
        })
        .collect();
    assert_eq!(
        writes,
        [
            "PATCH shirts-1 -",
            "PATCH status fleetune-finetunejob",
            "POST configmaps -",
            "POST jobs -",
            "PATCH status fleetune-finetunejob",
            "POST events -"
        ]
    );
    let started = lab.job().unwrap().status.unwrap().started_at;
    assert!(started.is_some(), "the spec is immutable before the first Job is made");
    lab.api.clear_writes();
    lab.passes(3).await;
    assert_eq!(lab.api.writes(), [], "a step that runs needs no write");
}

#[tokio::test]
async fn a_crash_after_any_write_changes_nothing_but_time() {
    let calm = Lab::new(|_| {});
    drive(&calm).await;
    let all = calm.api.writes().len() as u32;
    assert!(all > 12, "{all} writes");
    for n in 1..=all {
        let lab = Lab::new(|_| {});
        lab.api.crash_after(n);
        drive(&lab).await;
        assert_published(&lab);
        assert_eq!(lab.creations(), [2, 1], "after write {n}: one Job a step");
    }
}

#[tokio::test]
async fn a_job_deleted_by_hand_is_not_run_again() {
    let lab = Lab::new(|_| {});
    lab.passes(2).await;
    lab.api.delete(&Lab::worker(WorkerStep::Finetune));
    lab.passes(4).await;
    assert_eq!((lab.phase().as_str(), lab.reason().as_str()), ("Failed", "JobDeleted"));
    assert_eq!(lab.api.get(&Lab::worker(WorkerStep::Finetune)), None, "it was let go");
    assert_eq!(lab.creations(), [1, 0]);
}

#[tokio::test]
async fn a_finished_job_deleted_by_hand_before_it_was_read_still_counts() {
    let lab = Lab::new(|_| {});
    lab.passes(2).await;
    lab.succeed(WorkerStep::Finetune);
    lab.api.delete(&Lab::worker(WorkerStep::Finetune));
    drive(&lab).await;
    assert_published(&lab);
    assert_eq!(lab.creations(), [2, 1]);
}

#[tokio::test]
async fn failures_end_a_job_with_the_workers_word() {
    let lab = Lab::new(|_| {});
    lab.passes(2).await;
    let outcome = json!({ "code": "BadInput", "reason": "LabelColumnAbsent", "message": "no column 'label'" });
    lab.end(WorkerStep::Finetune, 2, &outcome);
    lab.passes(3).await;
    assert_eq!(lab.reason(), "LabelColumnAbsent");
    let lab = Lab::new(|_| {});
    lab.passes(2).await;
    lab.succeed(WorkerStep::Finetune);
    lab.passes(2).await;
    let mut outcome = good_outcome(WorkerStep::Validate);
    outcome["reason"] = json!("GateFailed");
    outcome["gate"] = json!("macroF1");
    outcome["message"] = json!("0.71 is below 0.80");
    lab.end(WorkerStep::Validate, 0, &outcome);
    lab.passes(3).await;
    let status = lab.job().unwrap().status.unwrap();
    assert_eq!(lab.reason(), "GateFailed");
    assert_eq!(
        status.report,
        Some(Digest::of(b"report")),
        "a refused candidate keeps its report"
    );
    assert_eq!(lab.creations(), [2, 0], "nothing is published");
    let text = String::from_utf8(lab.ctx.metrics.text().unwrap()).unwrap();
    assert!(
        text.contains(r#"fleetune_job_gate_verdicts_total{verdict="fail"} 1"#),
        "{text}"
    );
    assert!(text.contains(r#"split="test""#), "{text}");
}

#[tokio::test]
async fn deletion_ends_pods_and_leaves_nothing() {
    let lab = Lab::new(|_| {});
    lab.passes(2).await;
    for step in [WorkerStep::Finetune, WorkerStep::Validate] {
        lab.succeed(step);
        lab.passes(2).await;
    }
    assert!(lab.api.get(&Lab::worker(WorkerStep::Publish)).is_some());
    lab.api.delete(JOB);
    assert!(lab.job().is_some(), "the finalizer holds it");
    lab.passes(2).await;
    assert!(lab.job().is_none());
    assert_eq!(lab.api.paths("/fleetune-system/jobs/"), [""; 0]);
    assert_eq!(lab.api.paths("/fleetune-system/configmaps/"), [""; 0]);
    let text = String::from_utf8(lab.ctx.metrics.text().unwrap()).unwrap();
    assert!(!text.contains("fleetune_job_metric{"), "series go with the job");
}

#[tokio::test]
async fn ttl_deletes_a_finished_job() {
    let lab = Lab::new(|job| job.spec.ttl_after_finished = Some("1h".parse().unwrap()));
    drive(&lab).await;
    lab.clock.advance(3500);
    lab.passes(1).await;
    assert!(lab.job().is_some());
    lab.clock.advance(200);
    lab.passes(2).await;
    assert!(lab.job().is_none());
    assert_eq!(
        lab.api.paths("/modelversions/").len(),
        1,
        "the version outlives its job"
    );
}

#[tokio::test]
async fn the_same_digest_again_is_no_new_version_and_another_one_comes_after_it() {
    let lab = Lab::new(|_| {});
    drive(&lab).await;
    let name = lab.api.paths("/modelversions/").remove(0);
    let first = lab.api.get(&name).unwrap();
    let mut again = finetune_job();
    again.metadata.uid = Some("second".into());
    lab.api.delete(JOB);
    lab.passes(2).await;
    for step in WorkerStep::ALL {
        lab.api.delete(&Lab::worker(step));
    }
    for path in lab.api.paths("/configmaps/") {
        lab.api.delete(&path);
    }
    for path in lab.api.paths("/pods/") {
        lab.api.delete(&path);
    }
    lab.api.put(JOB, serde_json::to_value(&again).unwrap());
    drive(&lab).await;
    assert_eq!(lab.api.get(&name).unwrap(), first);
    assert_eq!(lab.api.paths("/modelversions/").len(), 1);
}

#[tokio::test]
async fn a_worker_job_without_a_job_is_let_go() {
    let lab = Lab::new(|_| {});
    lab.passes(2).await;
    let path = Lab::worker(WorkerStep::Finetune);
    let look = || async {
        let worker = serde_json::from_value(lab.api.get(&path).unwrap()).unwrap();
        sweep(&worker, &lab.ctx).await.unwrap();
    };
    lab.api.clear_writes();
    look().await;
    assert_eq!(lab.api.writes(), [], "its job is there");
    // Someone takes the finalizer off by force, and the job goes at once.
    lab.api.change(JOB, |job| job["metadata"]["finalizers"] = json!([]));
    lab.api.delete(JOB);
    look().await;
    look().await;
    assert_eq!(lab.api.get(&path), None);
}

/// What the world does between two passes.
#[derive(Clone, Copy, Debug)]
enum Event {
    Succeed(usize),
    Fail(usize),
    DeleteJob(usize),
    Suspend(bool),
    Crash(u32),
    Conflict,
    Nothing,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0usize..3).prop_map(Event::Succeed),
        (0usize..3).prop_map(Event::Fail),
        (0usize..3).prop_map(Event::DeleteJob),
        any::<bool>().prop_map(Event::Suspend),
        (1u32..6).prop_map(Event::Crash),
        Just(Event::Conflict),
        Just(Event::Nothing),
    ]
}

fn happen(lab: &Lab, event: Event) {
    match event {
        Event::Succeed(n) => lab.succeed(WorkerStep::ALL[n]),
        Event::Fail(n) => lab.end(
            WorkerStep::ALL[n],
            2,
            &json!({ "code": "BadInput", "reason": "Bad", "message": "m" }),
        ),
        Event::DeleteJob(n) => lab.api.delete(&Lab::worker(WorkerStep::ALL[n])),
        Event::Suspend(on) => lab.api.change(JOB, |job| {
            job["spec"]["suspend"] = json!(on);
        }),
        Event::Crash(n) => lab.api.crash_after(n),
        Event::Conflict => lab.api.fail_next("shirts-1", 409),
        Event::Nothing => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever happens between passes: at most one Job a step, ever; a job that is over stays as it is; and a job that
    /// is let alone comes to an end and then writes nothing.
    #[test]
    fn at_most_one_job_a_step_whatever_happens(events in proptest::collection::vec(event(), 0..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let lab = Lab::new(|_| {});
            for event in events {
                happen(&lab, event);
                let before = lab.job().unwrap().status.unwrap_or_default();
                if lab.pass().await.is_err() {
                    lab.api.heal();
                }
                let after = lab.job().unwrap().status.unwrap_or_default();
                if before.finished_at.is_some() {
                    prop_assert_eq!(before.phase, after.phase);
                    prop_assert_eq!(before.version, after.version);
                }
            }
            lab.api.heal();
            happen(&lab, Event::Suspend(false));
            for _ in 0..20 {
                let _ = lab.pass().await;
                for step in WorkerStep::ALL {
                    lab.succeed(step);
                }
            }
            let made = lab.creations();
            prop_assert!(made[0] <= 2 && made[1] <= 1, "{made:?}");
            prop_assert!(["Succeeded", "Failed"].contains(&lab.phase().as_str()), "{}", lab.phase());
            lab.api.clear_writes();
            lab.passes(3).await;
            prop_assert_eq!(lab.api.writes(), vec![]);
            Ok(())
        })?;
    }
}

//! validate, verdict, build and status, by table.

use crate::finetunejob::observe::{ContainerEnd, JobEnd, Observed, SeenJob, SeenPod};
use crate::finetunejob::plan::{Facts, Plan, Stage, Step, plan};
use crate::finetunejob::progress::read_progress;
use crate::finetunejob::step::WorkerStep;
use crate::finetunejob::validate::{Validated, validate};
use crate::finetunejob::verdict::{Trouble, Verdict, read_outcome, slow_start, verdict};
use crate::finetunejob::{build, status};
use crate::runtime::Wake;
use crate::testing::builders::{finetune_job, hub_config};
use fleetune_crds::common::Digest;
use fleetune_crds::outcome::{Code, Outcome, Progress};
use fleetune_crds::{FineTuneJob, FineTuneJobStatus, Input, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use std::time::Duration;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn want(change: impl FnOnce(&mut FineTuneJob)) -> Validated {
    let mut job = finetune_job();
    change(&mut job);
    validate(&job, &hub_config()).unwrap()
}

fn facts() -> Facts {
    Facts {
        candidate: Some(Digest::of(b"candidate")),
        data_manifest: Some(Digest::of(b"manifest")),
        report: Some(Digest::of(b"report")),
        summary: Some(serde_json::from_value(super::road::summary()).unwrap()),
        passed: Some(true),
        signature: Some(Digest::of(b"signature")),
    }
}

#[test]
fn checkpoints_go_to_the_claim_that_the_spec_names() {
    let want = want(|job| job.spec.worker.volume_claim = Some("work".into()));
    let claim = |step| {
        let pod = build::job(&want, step, &facts(), &hub_config())
            .spec
            .unwrap()
            .template
            .spec
            .unwrap();
        let volume = pod.volumes.unwrap().into_iter().find(|v| v.name == "work")?;
        let mount = pod.containers[0]
            .volume_mounts
            .clone()
            .unwrap()
            .into_iter()
            .find(|m| m.name == "work");
        Some((volume.persistent_volume_claim.unwrap().claim_name, mount.unwrap()))
    };
    let (name, mount) = claim(WorkerStep::Finetune).unwrap();
    assert_eq!((name.as_str(), mount.mount_path.as_str()), ("work", names::WORK_DIR));
    assert_eq!(mount.read_only, None, "checkpoints are written");
    assert!(claim(WorkerStep::Validate).is_none() && claim(WorkerStep::Publish).is_none());
}

#[test]
fn what_cannot_be_carried_out_is_refused_with_its_reason() {
    type Change = fn(&mut FineTuneJob);
    let cases: [(&str, Change); 11] = [
        ("UnsupportedUri", |j| j.spec.dataset.uri = "file:///data".into()),
        ("UnsupportedUri", |j| j.spec.dataset.uri = "oci://r/a".into()),
        ("UnsupportedUri", |j| j.spec.base_model.uri = "gs://b/m".into()),
        ("ClaimInvalid", |j| j.spec.dataset.uri = "pvc://claim".into()),
        ("ClaimInvalid", |j| j.spec.dataset.uri = "pvc://../x".into()),
        ("ClaimInvalid", |j| j.spec.dataset.uri = "pvc:///x".into()),
        ("SigningKeyNotAllowed", |j| j.metadata.namespace = Some("other".into())),
        ("SigningKeyNotAllowed", |j| {
            j.spec.output.signing_key = Some("unknown".into());
        }),
        ("", |j| j.spec.base_model.uri = "oci://r/a".into()),
        ("UnsupportedUri", |j| {
            j.spec.input = text_input("file:///tokenizer.json");
        }),
        ("", |j| j.spec.input = text_input("oci://r/a")),
    ];
    for (reason, change) in cases {
        let mut job = finetune_job();
        change(&mut job);
        let result = validate(&job, &hub_config()).map_err(|invalid| invalid.reason());
        assert_eq!(result.err().unwrap_or(""), reason);
    }
    let mut config = hub_config();
    config.default_signing_key = None;
    assert_eq!(
        validate(&finetune_job(), &config).unwrap_err().reason(),
        "SigningKeyMissing"
    );
}

fn text_input(uri: &str) -> Input {
    let text = json!({"text": {"tokenizer": {"uri": uri, "sha256": "0".repeat(64)}}});
    serde_json::from_value(text).unwrap()
}

#[test]
fn a_tokenizer_in_a_claim_of_its_own_is_mounted() {
    let want = want(|job| job.spec.input = text_input("pvc://words/minilm/tokenizer.json"));
    assert!(want.claims.contains("words"), "{:?}", want.claims);
}

#[test]
fn built_objects() {
    let mut want = want(|job| {
        job.spec.dataset.uri = "pvc://shirts/data.tar".into();
        job.spec.dataset.credentials_secret = Some("s3".into());
        job.spec.base_model.credentials_secret = Some("s3".into());
        job.spec.output.push_secret = Some("push".into());
        job.spec.worker.image = Some("author/worker:1".into());
        job.spec.worker.node_selector.insert("disk".into(), "ssd".into());
    });
    want.manifest = "MANIFEST".into();
    let config = hub_config();
    let mut settings = insta::Settings::clone_current();
    // This tree's, in whichever clone the test was built first.
    settings.set_snapshot_path(concat!(
        env!("FLEETUNE_ROOT"),
        "/operator/src/finetunejob/tests/snapshots"
    ));
    settings.bind(|| {
        for step in WorkerStep::ALL {
            insta::assert_yaml_snapshot!(
                format!("job_{}", step.name()),
                build::job(&want, step, &facts(), &config)
            );
        }
        insta::assert_yaml_snapshot!("config", build::config(&want, WorkerStep::Finetune));
        insta::assert_yaml_snapshot!(
            "version",
            build::version(&want, &facts(), 3, &Digest::of(b"signature"), at(0))
        );
    });
}

#[test]
fn the_manifest_for_the_worker_is_the_job_again() {
    let want = want(|_| {});
    let read: FineTuneJob = serde_yaml::from_str(&want.manifest).unwrap();
    assert_eq!(read.spec, finetune_job().spec);
    assert_eq!(
        (read.name_any().as_str(), read.namespace().as_deref()),
        ("shirts-1", Some("shop"))
    );
    assert!(read.status.is_none() && read.metadata.uid.is_none());
}

fn pod(message: &str, exit_code: i32, reason: &str) -> SeenPod {
    SeenPod {
        name: "p".into(),
        failed: exit_code != 0,
        end: Some(ContainerEnd {
            exit_code,
            reason: reason.into(),
            message: message.into(),
        }),
        ..SeenPod::default()
    }
}

fn ended(end: JobEnd, pods: Vec<SeenPod>) -> SeenJob {
    SeenJob {
        name: "shirts-1-finetune".into(),
        ours: true,
        held: true,
        end: Some(end),
        pods,
        ..SeenJob::default()
    }
}

#[test]
fn a_verdict_never_trusts_a_message_further_than_the_exit_code() {
    let failed = || JobEnd::Failed {
        reason: "BackoffLimitExceeded".into(),
        message: "m".into(),
    };
    let bad = serde_json::to_string(&Outcome::new(Code::BadInput, "OneClassOnly", "only 'cat'")).unwrap();
    let done = serde_json::to_string(&Outcome::new(Code::Done, "Done", "")).unwrap();
    let hostile = format!("{{\"code\":\"Done\",\"reason\":\"{}\"}}", "A".repeat(5000));
    let evicted = SeenPod {
        name: "p".into(),
        failed: true,
        reason: Some("Evicted".into()),
        ..SeenPod::default()
    };
    let cases = [
        (ended(JobEnd::Complete, vec![pod(&done, 0, "Completed")]), "done"),
        (
            ended(JobEnd::Complete, vec![pod(&bad, 0, "Completed")]),
            "OutcomeUnreadable",
        ),
        (
            ended(JobEnd::Complete, vec![pod(&hostile, 0, "Completed")]),
            "OutcomeUnreadable",
        ),
        (
            ended(JobEnd::Complete, vec![pod("", 0, "Completed")]),
            "OutcomeUnreadable",
        ),
        (ended(JobEnd::Complete, vec![]), "OutcomeLost"),
        (ended(failed(), vec![pod(&bad, 2, "Error")]), "OneClassOnly"),
        (ended(failed(), vec![pod(&done, 1, "Error")]), "WorkerFailed"),
        (ended(failed(), vec![pod("", 137, "OOMKilled")]), "OOMKilled"),
        (ended(failed(), vec![pod("\u{0}", 101, "Error")]), "WorkerFailed"),
        (ended(failed(), vec![evicted]), "Evicted"),
        (ended(failed(), vec![]), "WorkerFailed"),
    ];
    for (job, expected) in cases {
        let got = match verdict(&job) {
            Verdict::Done(_) => "done".to_owned(),
            Verdict::Failed(trouble) => trouble.reason,
            Verdict::Running(_) => "running".to_owned(),
        };
        assert_eq!(got, expected, "{job:?}");
    }
    let deleted = SeenJob {
        deleting: true,
        ..SeenJob::default()
    };
    assert!(matches!(verdict(&deleted), Verdict::Failed(trouble) if trouble.reason == "JobDeleted"));
}

#[test]
fn a_step_that_waits_says_what_for() {
    let mut job = ended(JobEnd::Complete, vec![]);
    job.end = None;
    job.created = Some(at(0));
    assert_eq!(slow_start(&job, at(60)), None);
    assert_eq!(slow_start(&job, at(61)).unwrap().reason, "NoPod");
    let lost = serde_json::to_string(&Outcome::new(Code::Transient, "SourceUnreachable", "s3 is away")).unwrap();
    job.pods.push(pod(&lost, 3, "Error"));
    let Verdict::Running(Some(trouble)) = verdict(&job) else {
        panic!()
    };
    assert_eq!(trouble.message, "try 2 after SourceUnreachable: s3 is away");
    job.pods.push(SeenPod {
        created: Some(at(10)),
        starting: true,
        ..SeenPod::default()
    });
    assert_eq!(slow_start(&job, at(71)).unwrap().reason, "PodNotStarting");
    job.pods[1].trouble = Some(Trouble::new("ImagePullBackOff", "no such image"));
    let Verdict::Running(Some(trouble)) = verdict(&job) else {
        panic!()
    };
    assert_eq!(trouble.reason, "ImagePullBackOff");
}

#[test]
fn outcomes_are_checked_word_by_word() {
    let with = |key: &str, value: serde_json::Value| {
        let mut outcome = json!({ "code": "Done", "reason": "Done", "summary": super::road::summary() });
        outcome[key] = value;
        read_outcome(&outcome.to_string()).is_some()
    };
    assert!(with("reason", json!("Passed")));
    for reason in ["", "passed", "A b", "A\n", "Ä"] {
        assert!(!with("reason", json!(reason)), "{reason:?}");
    }
    let mut summary = super::road::summary();
    summary["metrics"] = (0..17)
        .map(|n| (format!("m{n}"), json!("1")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    assert!(!with("summary", summary), "more metrics than the status may hold");
    assert!(!with("digest", json!("sha256:12")));
}

#[test]
fn progress_is_bounded_and_checked() {
    let read = |value: serde_json::Value| read_progress(value.to_string().as_bytes());
    assert_eq!(read(json!({ "stage": "a b", "done": 1, "total": 2 })), None);
    let mut metrics = serde_json::Map::new();
    for n in 0..100 {
        metrics.insert(format!("train.m{n}"), json!(n));
    }
    metrics.insert("no-dot".into(), json!(1));
    metrics.insert("train.bad\"label".into(), json!(1));
    let progress = read(json!({ "stage": "train", "done": 1, "total": 2, "metrics": metrics })).unwrap();
    assert_eq!(progress.metrics.len(), 32);
    assert!(progress.metrics.keys().all(|name| name.starts_with("train.m")));
}

fn step_names(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|step| format!("{step:?}")).collect()
}

#[test]
fn a_new_job_starts_in_one_pass() {
    let plan = plan(
        &want(|_| {}),
        &Observed::default(),
        &FineTuneJobStatus::default(),
        at(0),
    );
    assert_eq!(
        step_names(&plan),
        [
            "AddFinalizer",
            "RecordStart",
            "EnsureConfig(Finetune)",
            "CreateJob(Finetune)"
        ]
    );
    assert_eq!(plan.stage, Stage::Running(WorkerStep::Finetune));
}

#[test]
fn suspend_holds_back_and_ends_what_runs() {
    let seen = Observed {
        finalizer: true,
        ..Observed::default()
    };
    let none = FineTuneJobStatus::default();
    let held = plan(&want(|j| j.spec.suspend = true), &seen, &none, at(0));
    assert_eq!((held.steps.len(), held.stage), (0, Stage::Suspended));
    let mut running = seen.clone();
    let mut job = ended(JobEnd::Complete, vec![]);
    job.end = None;
    running.jobs.insert(WorkerStep::Finetune, job);
    let stopped = plan(&want(|j| j.spec.suspend = true), &running, &none, at(0));
    assert_eq!(stopped.steps, [Step::Suspend(WorkerStep::Finetune, true)]);
    running.jobs.get_mut(&WorkerStep::Finetune).unwrap().suspended = true;
    let again = plan(&want(|_| {}), &running, &none, at(0));
    assert_eq!(again.steps, [Step::Suspend(WorkerStep::Finetune, false)]);
}

#[test]
fn the_deadline_ends_a_job_and_wakes_in_time() {
    let want = want(|j| j.spec.active_deadline = Some("1m".parse().unwrap()));
    let started = FineTuneJobStatus {
        started_at: Some(Time(at(100))),
        ..FineTuneJobStatus::default()
    };
    let mut job = ended(JobEnd::Complete, vec![]);
    job.end = None;
    let mut seen = Observed {
        finalizer: true,
        ..Observed::default()
    };
    seen.jobs.insert(WorkerStep::Finetune, job);
    let before = plan(&want, &seen, &started, at(158));
    assert_eq!(before.wake, Wake::After(Duration::from_secs(2)));
    let after = plan(&want, &seen, &started, at(160));
    assert!(matches!(&after.stage, Stage::Failed(trouble) if trouble.reason == "DeadlineExceeded"));
}

/// Started at 100, suspended from 120 to 300 and from 310 to 400, with a deadline of a minute: it has run for 30 s at 400.
#[test]
fn the_deadline_does_not_count_what_was_suspended() {
    let mut job = finetune_job();
    job.spec.active_deadline = Some("1m".parse().unwrap());
    job.status = Some(FineTuneJobStatus {
        started_at: Some(Time(at(100))),
        ..FineTuneJobStatus::default()
    });
    let mut worker = ended(JobEnd::Complete, vec![]);
    worker.end = None;
    let mut seen = Observed {
        finalizer: true,
        ..Observed::default()
    };
    seen.jobs.insert(WorkerStep::Finetune, worker);
    let mut pass = |suspend: bool, now: i64| {
        job.spec.suspend = suspend;
        let want = validate(&job, &hub_config()).unwrap();
        let plan = plan(&want, &seen, &job.status.clone().unwrap(), at(now));
        job.status = Some(status::status(&job, &seen, &plan, at(now)));
        plan
    };
    for (suspend, now) in [
        (true, 120),
        (true, 299),
        (false, 300),
        (true, 310),
        (true, 399),
        (false, 400),
    ] {
        let plan = pass(suspend, now);
        assert!(!matches!(plan.stage, Stage::Failed(_)), "at {now}: {:?}", plan.stage);
        assert_eq!(plan.wake == Wake::Resync, suspend, "at {now}");
    }
    assert_eq!(pass(false, 429).wake, Wake::After(Duration::from_secs(1)));
    assert!(matches!(pass(false, 430).stage, Stage::Failed(trouble) if trouble.reason == "DeadlineExceeded"));
}

#[test]
fn a_status_follows_kstatus_and_keeps_still() {
    let job = finetune_job();
    let seen = Observed {
        progress: Some(Progress {
            stage: "train".into(),
            done: 12,
            total: 100,
            ..Progress::default()
        }),
        ..Observed::default()
    };
    let mut plan = plan(&want(|_| {}), &seen, &FineTuneJobStatus::default(), at(5));
    let first = status::status(&job, &seen, &plan, at(5));
    assert_eq!(first.phase.as_deref(), Some("FineTuning"));
    assert_eq!(first.progress.as_deref(), Some("train 12/100"));
    let types = |s: &FineTuneJobStatus| s.conditions.iter().map(|c| c.type_.clone()).collect::<Vec<_>>();
    assert_eq!(types(&first), ["Succeeded", "Reconciling"]);
    let stored = FineTuneJob {
        status: Some(first.clone()),
        ..job.clone()
    };
    assert_eq!(
        status::status(&stored, &seen, &plan, at(9)),
        first,
        "time alone changes nothing"
    );
    plan.stage = Stage::Failed(Trouble::new("OneClass", "m"));
    let failed = status::status(&stored, &seen, &plan, at(9));
    assert_eq!(types(&failed), ["Succeeded", "Stalled", "DataReady"]);
    assert_eq!(failed.finished_at, Some(Time(at(9))));
    plan.facts = facts();
    plan.stage = Stage::Succeeded("shirts-0123".into());
    let done = status::status(&stored, &seen, &plan, at(9));
    assert_eq!(
        types(&done),
        [
            "Succeeded",
            "DataReady",
            "Trained",
            "Evaluated",
            "GatesPassed",
            "Published"
        ]
    );
    assert_eq!(done.objective.unwrap().value.as_str(), "0.91");
}

//! Jobs on a claim: what one leaves there serves the next, and a training that was killed goes on. The tests share the lab
//! and run one after the other.

use anyhow::{Context, Result};
use fleetune_tests::road::{Road, SHOP, apply, on_the_road, process, until};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of a claim and of its volume.
const CLAIM: &str = "training";

/// A job on a claim leaves what its frozen part gave there; the next one reads it, and ends in the same bytes.
#[test]
fn jobs_on_a_claim_share_what_the_frozen_part_gave() -> Result<()> {
    on_the_road(|road| async move {
        let first = road.job("examples/shirts.yaml", "shirts-1").await?;
        let disk = volume(&road).await?;
        let changes = json!({ "worker": { "volumeClaim": CLAIM } });
        let kept = disk.join("features");
        let mut seen = Vec::new();
        for name in ["leaves", "reads"] {
            let name = format!("shirts-{name}-{}", std::process::id());
            let version = road.job_with(&first, &name, &changes).await?;
            assert_eq!(version.spec.source.digest, first.spec.source.digest, "{name}");
            let files = std::fs::read_dir(&kept)?.collect::<std::io::Result<Vec<_>>>()?;
            let times = files.iter().map(|f| Ok((f.file_name(), f.metadata()?.modified()?)));
            seen.push(times.collect::<Result<BTreeMap<_, _>>>()?);
        }
        let names: Vec<Vec<_>> = seen.iter().map(|times| times.keys().collect()).collect();
        assert_eq!(names[0].len(), 2, "the features of training and validation rows");
        assert_eq!(names[0], names[1], "none was written anew under another key");
        // A file that is read gets younger.
        assert!(seen[0].values().zip(seen[1].values()).all(|(left, read)| left < read));
        Ok(())
    })
}

/// A training whose process is killed once it has written a checkpoint goes on from there in a pod of its own, and ends in
/// the same bytes as one that nobody disturbed.
#[test]
fn a_training_that_was_killed_goes_on_from_its_checkpoint() -> Result<()> {
    on_the_road(|road| async move {
        let first = road.job("examples/shirts.yaml", "shirts-1").await?;
        let disk = volume(&road).await?;
        // On one core this lasts longer than the half minute after which the first checkpoint is written.
        let train = json!({ "method": "LastLayers", "lastLayers": { "count": 12 }, "epochs": 3 });
        let requests = json!({ "cpu": "500m", "memory": "512Mi" });
        let resources = json!({ "requests": requests, "limits": { "cpu": "1", "memory": "2Gi" } });
        let worker = json!({ "volumeClaim": CLAIM, "resources": resources });
        let changes = json!({ "train": train, "worker": worker });
        let (whole, killed) = (
            format!("shirts-whole-{}", std::process::id()),
            format!("shirts-killed-{}", std::process::id()),
        );
        let whole = road.job_with(&first, &whole, &changes).await?;
        let kill_it = async {
            let written = "the training has written a checkpoint";
            until(written, Duration::from_mins(5), async || checkpoint(&disk)).await?;
            kill(process("fleetune-worker", "finetune")?, Signal::SIGKILL).context("killing the training")
        };
        let (resumed, done) = tokio::join!(road.job_with(&first, &killed, &changes), kill_it);
        done?;
        let resumed = resumed?;
        assert_eq!(resumed.spec.source.digest, whole.spec.source.digest);
        let step = format!("batch.kubernetes.io/job-name={killed}-finetune");
        let hub = road.lab.cluster("hub")?;
        let logs = hub.kubectl(&["logs", "-n", SHOP, "-l", &step, "--tail=-1"]).await?;
        let line = logs.lines().find(|line| line.contains("goes on from a checkpoint"));
        let line: Value = serde_json::from_str(line.with_context(|| format!("it started over:\n{logs}"))?)?;
        assert!(line["step"].as_u64() > Some(1), "{line}");
        assert_eq!(checkpoint(&disk)?, None, "a job that is done leaves no checkpoint");
        Ok(())
    })
}

/// The last state of a training on a claim's disk.
fn checkpoint(disk: &Path) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(disk)? {
        let latest = entry?.path().join("latest");
        if latest.exists() {
            return Ok(Some(latest));
        }
    }
    Ok(None)
}

/// An empty volume in a folder of the hub's node and the claim that takes it, if they are not there, and that folder.
async fn volume(road: &Road) -> Result<PathBuf> {
    let disk = road.lab.node_disk("hub-1")?.join(CLAIM);
    std::fs::create_dir_all(&disk)?;
    // What a test before this one left on the same lab. The folder itself may be mounted.
    for entry in std::fs::read_dir(&disk)? {
        std::fs::remove_dir_all(entry?.path())?;
    }
    // The pod's user is none of this machine's.
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o777))?;
    for object in claim() {
        apply(&road.lab, "hub", &object).await?;
    }
    Ok(disk)
}

/// A volume in a folder of the hub's node, and the claim that takes it.
fn claim() -> [Value; 2] {
    let size = json!({ "storage": "64Mi" });
    [
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": CLAIM },
            "spec": {
                "capacity": size, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": { "path": format!("/var/{CLAIM}"), "type": "Directory" },
                "claimRef": { "namespace": SHOP, "name": CLAIM },
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": CLAIM, "namespace": SHOP },
            "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": CLAIM,
                "resources": { "requests": size },
            },
        }),
    ]
}

//! The lab itself: it comes up, pods run and reach each other over clusters, nodes lose power and links are cut, and
//! afterwards the machine is as it was.

#![allow(clippy::unwrap_used, clippy::panic)] // Helpers of a test may end it.

use anyhow::{Context, Result, ensure};
use fleetune_tests::images;
use fleetune_tests::lab::paths::Paths;
use fleetune_tests::lab::topology::CLUSTERS;
use fleetune_tests::lab::{self, Cluster, Lab, http, wait};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_mins(1);

/// A pod that serves its own name at `/` and one series at `/metrics`, on a given node.
fn pod(name: &str, node: &str, image: &str) -> serde_json::Value {
    let script = format!(
        "mkdir -p /tmp/www && echo {name} > /tmp/www/index.html && echo 'lab_probe 1' > /tmp/www/metrics && \
         exec httpd -f -p 8080 -h /tmp/www"
    );
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "probe" },
            "annotations": { "prometheus.io/scrape": "true", "prometheus.io/port": "8080" } },
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0,
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "main", "image": image, "command": ["sh", "-c", script],
                "readinessProbe": { "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1 },
                "resources": { "limits": { "memory": "32Mi", "cpu": "200m" } },
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } }
            }]
        }
    })
}

async fn apply(cluster: &Cluster, object: &serde_json::Value) -> Result<()> {
    let file = tempfile::Builder::new().suffix(".json").tempfile()?;
    serde_json::to_writer(file.as_file(), object)?;
    cluster
        .kubectl(&["apply", "-f", file.path().to_str().context("a path")?])
        .await
        .map(|_| ())
}

async fn pod_ready(cluster: &Cluster, name: &str) -> Result<()> {
    let target = format!("pod/{name}");
    cluster
        .kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &target])
        .await
        .map(|_| ())
}

async fn pod_address(cluster: &Cluster, name: &str) -> Result<String> {
    cluster
        .kubectl(&["get", "pod", name, "-o", "jsonpath={.status.podIP}"])
        .await
}

/// The body that a pod gets from `HOST:PORT` and a path. Busybox's wget, linked statically, crashes on some errors.
async fn fetch(cluster: &Cluster, pod: &str, address: &str, path: &str) -> Result<String> {
    let (host, port) = address.rsplit_once(':').context("HOST:PORT")?;
    let script = format!("printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {host} {port}");
    let answer = cluster.kubectl(&["exec", pod, "--", "sh", "-c", &script]).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("no answer from {address}: {answer:?}"))?;
    ensure!(head.contains(" 200 "), "{address}{path}: {head}");
    Ok(body.to_owned())
}

/// What must be the same before and after.
fn machine() -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    let settings = [
        "kernel/panic",
        "kernel/panic_on_oops",
        "vm/overcommit_memory",
        "vm/panic_on_oom",
        "kernel/keys/root_maxkeys",
        "kernel/keys/root_maxbytes",
        "net/ipv4/ip_forward",
        "net/ipv4/conf/all/rp_filter",
        "fs/inotify/max_user_instances",
    ];
    for key in settings {
        let value = std::fs::read_to_string(format!("/proc/sys/{key}")).unwrap_or_default();
        seen.insert(key.to_owned(), value);
    }
    let interfaces = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut interfaces: Vec<String> = interfaces.collect();
    interfaces.sort();
    seen.insert("interfaces".into(), interfaces.join(" "));
    seen.insert("routes".into(), std::fs::read_to_string("/proc/net/route").unwrap());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points: Vec<&str> = mounts.lines().filter_map(|l| l.split(' ').nth(4)).collect();
    seen.insert("mounts".into(), points.join("\n"));
    for folder in [
        "/etc",
        "/opt",
        "/var/lib",
        "/var/log",
        "/run",
        "/usr/libexec",
        "/mnt",
        "/",
    ] {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        seen.insert(folder.to_owned(), names.join(" "));
    }
    seen
}

/// Whether the lab can run here. A test that cannot run says so, and fails where FLEETUNE_REQUIRE_LAB is set.
fn runs_here() -> bool {
    let why = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if Paths::from_env().is_ok_and(|paths| paths.program("kubelet").is_ok()) {
        return true;
    } else {
        "the programs are not there: run `make tools`"
    };
    assert!(
        std::env::var_os("FLEETUNE_REQUIRE_LAB").is_none(),
        "the lab cannot run: {why}"
    );
    eprintln!("\n*** SKIPPED: the lab cannot run here ({why}) ***\n");
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lab() -> Result<()> {
    if !runs_here() {
        return Ok(());
    }
    Lab::down().await?;
    let before = machine();
    a_forwarder_that_nobody_noted_ends().await?;
    an_interrupted_run(&before)?;
    let (lab, took) = Lab::up(&CLUSTERS).await?;
    eprintln!("lab up: {:.1} s", took.as_secs_f64());

    let image = images::busybox(&Paths::from_env()?)?;
    let digest = image.push(lab.registry_loopback(), "lab/busybox").await?;
    let image = format!("{}/lab/busybox@{digest}", lab.registry_addr());

    pods_run_and_reach_each_other(&lab, &image).await?;
    an_image_of_a_binary_runs(&lab).await?;
    the_machine_reaches_a_node(&lab).await?;
    prometheus_scrapes_everywhere(&lab).await?;
    an_api_server_comes_back(&lab).await?;
    a_node_loses_power(&lab).await?;
    a_link_is_cut(&lab).await?;

    // Whoever comes next gets a whole lab, whatever the one before left it like.
    lab.power_off("hub-1").await?;
    lab.cut("edge-a").await?;
    let lab = Lab::up_or_attach().await?;
    let edge = lab.cluster("edge-a")?;
    wait("the same lab is whole again", MINUTE, || async {
        Ok(fetch(edge, "on-edge-a-2", &lab.registry_addr(), "/v2/").await.is_ok())
    })
    .await?;
    lab.cluster("hub")?.wait_node("hub-1", true, MINUTE).await?;

    let up = lab.clusters().iter().map(Cluster::name).collect::<Vec<_>>();
    assert_eq!(up, ["hub", "edge-a", "edge-b"]);
    Lab::down().await?;
    let left = lab::leftovers(&Paths::from_env()?)?;
    assert!(left.is_empty(), "down left {left:?}");
    let after = machine();
    for (what, value) in &before {
        assert_eq!(value, &after[what], "{what} changed");
    }
    Ok(())
}

/// A run that is killed between the forwarder's start and its note leaves a process that no later run can know: it ends by
/// itself and takes no port.
async fn a_forwarder_that_nobody_noted_ends() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut forwarder = tokio::process::Command::new(env!("CARGO_BIN_EXE_lab"));
    forwarder.args(["forward", "--cache"]).arg(dir.path()).arg("hub");
    forwarder
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = forwarder.spawn()?;
    // The starter's end of the input goes with the starter.
    drop(child.stdin.take());
    let output = tokio::time::timeout(MINUTE, child.wait_with_output())
        .await
        .context("it stays")??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("before it was noted"), "{said}");
    Ok(())
}

/// A run that is killed in the middle leaves nothing that the next one, or `down`, does not remove.
fn an_interrupted_run(before: &BTreeMap<String, String>) -> Result<()> {
    let paths = Paths::from_env()?;
    for millis in [150, 2500, 4500] {
        let mut up = Command::new(env!("CARGO_BIN_EXE_lab"))
            .arg("up")
            .stderr(Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(millis));
        up.kill()?;
        up.wait()?;
    }
    lab::run(Command::new(env!("CARGO_BIN_EXE_lab")).arg("down"))?;
    assert!(lab::leftovers(&paths)?.is_empty(), "{:?}", lab::leftovers(&paths)?);
    assert_eq!(before, &machine(), "an interrupted run changed the machine");
    Ok(())
}

/// An image made of a binary and what it is linked with starts, as the user that it says, on a read-only root.
async fn an_image_of_a_binary_runs(lab: &Lab) -> Result<()> {
    let image = images::of_binary(Path::new(env!("CARGO_BIN_EXE_lab")))?;
    let digest = image.push(lab.registry_loopback(), "lab/lab").await?;
    let edge = lab.cluster("edge-b")?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "binary" },
        "spec": {
            "restartPolicy": "Never", "securityContext": { "runAsNonRoot": true },
            "containers": [{ "name": "main", "image": format!("{}/lab/lab@{digest}", lab.registry_addr()),
                "args": ["--help"], "securityContext": { "readOnlyRootFilesystem": true } }]
        }
    });
    apply(edge, &pod).await?;
    edge.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "--timeout=60s",
        "pod/binary",
    ])
    .await?;
    let said = edge.kubectl(&["logs", "binary"]).await?;
    assert!(said.contains("power-off"), "{said}");
    Ok(())
}

async fn pods_run_and_reach_each_other(lab: &Lab, image: &str) -> Result<()> {
    for cluster in lab.clusters() {
        for node in cluster.nodes() {
            apply(cluster, &pod(&format!("on-{node}"), &node, image)).await?;
        }
    }
    let mut addresses = BTreeMap::new();
    for cluster in lab.clusters() {
        for node in cluster.nodes() {
            let name = format!("on-{node}");
            pod_ready(cluster, &name).await?;
            addresses.insert(name.clone(), pod_address(cluster, &name).await?);
        }
    }
    // Every pod of an edge reaches the hub's pod, the other edge's, its sibling's, the data, the registry and the hub's API.
    let edge = lab.cluster("edge-a")?;
    for (name, address) in &addresses {
        let text = fetch(edge, "on-edge-a-1", &format!("{address}:8080"), "/").await?;
        assert_eq!(text.trim(), name);
    }
    fetch(edge, "on-edge-a-2", lab.data_url().trim_start_matches("http://"), "/").await?;
    fetch(edge, "on-edge-a-2", &lab.registry_addr(), "/v2/").await?;
    let hub = lab.cluster("hub")?;
    let text = fetch(hub, "on-hub-1", &format!("{}:8080", addresses["on-edge-b-2"]), "/").await?;
    assert_eq!(text.trim(), "on-edge-b-2");
    edge.kubectl(&[
        "exec",
        "on-edge-a-1",
        "--",
        "nc",
        "-w",
        "3",
        "10.77.0.1",
        "6443",
        "-e",
        "true",
    ])
    .await?;
    Ok(())
}

async fn the_machine_reaches_a_node(lab: &Lab) -> Result<()> {
    let edge = lab.cluster("edge-a")?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "probe" },
        "spec": { "type": "NodePort", "selector": { "app": "probe" }, "externalTrafficPolicy": "Local",
            "ports": [{ "port": 8080, "nodePort": 30080 }] }
    });
    apply(edge, &service).await?;
    let http = http()?;
    for node in edge.nodes() {
        let url = format!("http://{}/", lab.runtime_addr(&node)?);
        let expected = format!("on-{node}");
        wait(&format!("{url} answers {expected}"), MINUTE, || async {
            Ok(http.get(&url).send().await?.text().await?.trim() == expected)
        })
        .await?;
    }
    Ok(())
}

async fn prometheus_scrapes_everywhere(lab: &Lab) -> Result<()> {
    wait("Prometheus has scraped a pod of every node", MINUTE, || async {
        Ok(lab.prometheus_query("lab_probe == 1").await?.len() == 5)
    })
    .await?;
    let found = lab
        .prometheus_query(r#"lab_probe{cluster="edge-b",node="edge-b-1"}"#)
        .await?;
    assert_eq!(found[0]["metric"]["pod"], "on-edge-b-1");
    let servers = lab
        .prometheus_query("count by (cluster) (apiserver_request_total)")
        .await?;
    assert_eq!(servers.len(), 3, "{servers:?}");
    Ok(())
}

async fn an_api_server_comes_back(lab: &Lab) -> Result<()> {
    let hub = lab.cluster("hub")?;
    lab.stop_apiserver("hub").await?;
    assert!(
        hub.kubectl(&["get", "--raw", "/readyz", "--request-timeout=2s"])
            .await
            .is_err()
    );
    lab.start_apiserver("hub").await?;
    hub.kubectl(&["get", "pod", "on-hub-1"]).await?;
    Ok(())
}

async fn a_node_loses_power(lab: &Lab) -> Result<()> {
    let edge = lab.cluster("edge-a")?;
    let start = Instant::now();
    lab.power_off("edge-a-1").await?;
    edge.wait_node("edge-a-1", false, MINUTE).await?;
    eprintln!("power off to NotReady: {:.1} s", start.elapsed().as_secs_f64());
    edge.wait_node("edge-a-2", true, MINUTE).await?;
    let http = http()?;
    let url = format!("http://{}/", lab.runtime_addr("edge-a-1")?);
    assert!(
        http.get(&url).send().await.is_err(),
        "a node that is off answers nothing"
    );
    let start = Instant::now();
    lab.power_on("edge-a-1").await?;
    edge.wait_node("edge-a-1", true, MINUTE).await?;
    eprintln!("power on to Ready: {:.1} s", start.elapsed().as_secs_f64());
    wait("its pod runs again", MINUTE, || async {
        Ok(http.get(&url).send().await?.text().await?.trim() == "on-edge-a-1")
    })
    .await?;
    eprintln!("power on to its pod answering: {:.1} s", start.elapsed().as_secs_f64());
    assert!(
        lab.power_on("edge-a-1").await.is_err(),
        "a node that is on cannot be turned on"
    );
    Ok(())
}

async fn a_link_is_cut(lab: &Lab) -> Result<()> {
    let edge = lab.cluster("edge-b")?;
    let data = lab.data_url();
    let data = data.trim_start_matches("http://");
    fetch(edge, "on-edge-b-1", data, "/").await?;
    lab.cut("edge-b").await?;
    assert!(
        fetch(edge, "on-edge-b-1", data, "/").await.is_err(),
        "the hub cannot be reached over a link that is cut"
    );
    // The cluster itself goes on, and so does the machine's own way in.
    edge.wait_node("edge-b-1", true, MINUTE).await?;
    lab.heal("edge-b").await?;
    wait("the hub is reached again", MINUTE, || async {
        Ok(fetch(edge, "on-edge-b-1", data, "/").await.is_ok())
    })
    .await
}

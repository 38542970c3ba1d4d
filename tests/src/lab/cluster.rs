//! One cluster of a running lab, as tests and the demo use it: clients, kubectl, helm, and waits on its nodes.

use super::apiserver::client_from;
use super::controlplane::folder;
use super::paths::{Paths, search_path};
use super::topology::ClusterSpec;
use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A cluster of the lab.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(super) spec: ClusterSpec,
    pub(super) paths: Paths,
}

impl Cluster {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.spec.name
    }

    /// URL of its API server for whoever lives in the lab: pods on any cluster.
    pub fn server(&self) -> String {
        self.spec.server()
    }

    /// Names of its nodes.
    pub fn nodes(&self) -> Vec<String> {
        self.spec.node_specs().map(super::topology::NodeSpec::name).collect()
    }

    /// The administrator's kubeconfig for the machine, which reaches the API server over loopback.
    pub fn kubeconfig(&self) -> PathBuf {
        folder(&self.paths, self.spec).join("kubeconfig")
    }

    /// The administrator's kubeconfig for whoever lives in the lab, such as a hub in mode Push.
    ///
    /// # Errors
    /// When the lab is not up.
    pub fn inner_kubeconfig(&self) -> Result<String> {
        read(&folder(&self.paths, self.spec).join("inner.kubeconfig"))
    }

    /// The certificate of its authority, PEM.
    ///
    /// # Errors
    /// When the lab is not up.
    pub fn ca_bundle(&self) -> Result<String> {
        read(&folder(&self.paths, self.spec).join("ca.crt"))
    }

    /// A client of the administrator.
    ///
    /// # Errors
    /// When the lab is not up.
    pub async fn client(&self) -> Result<kube::Client> {
        client_from(&read(&self.kubeconfig())?).await
    }

    /// Runs kubectl against this cluster and returns what it printed.
    ///
    /// # Errors
    /// When it says no; the message holds what it printed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.tool("kubectl", args).await
    }

    /// Runs helm against this cluster and returns what it printed.
    ///
    /// # Errors
    /// When it says no; the message holds what it printed.
    pub async fn helm(&self, args: &[&str]) -> Result<String> {
        self.tool("helm", args).await
    }

    async fn tool(&self, program: &str, args: &[&str]) -> Result<String> {
        let home = self.paths.lab().join("home");
        std::fs::create_dir_all(&home)?;
        let output = tokio::process::Command::new(self.paths.program(program)?)
            .args(args)
            .env("KUBECONFIG", self.kubeconfig())
            .env("PATH", search_path(&self.paths.bin()))
            // Caches and plugins of the user's own stay out of it.
            .env("HOME", &home)
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("cannot run {program}"))?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        anyhow::ensure!(
            output.status.success(),
            "{program} {} on {}: {}\n{out}{}",
            args.join(" "),
            self.name(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(out)
    }

    /// Waits until a node is Ready and its kubelet has been heard of since the call, or until it no longer is Ready. A node
    /// that lost its power a moment ago is still called Ready, which is not enough.
    ///
    /// # Errors
    /// When it does not happen within `deadline`.
    pub async fn wait_node(&self, name: &str, ready: bool, deadline: Duration) -> Result<()> {
        let start = Timestamp::now();
        let client = self.client().await?;
        let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
        let end = Instant::now() + deadline;
        if ready {
            wait(&format!("node {name} renews its lease"), deadline, || async {
                let renewed = leases
                    .get_opt(name)
                    .await?
                    .and_then(|l| l.spec)
                    .and_then(|s| s.renew_time);
                Ok(renewed.is_some_and(|time| time.0 > start))
            })
            .await?;
        }
        self.wait_condition(name, ready, end.saturating_duration_since(Instant::now()))
            .await
    }

    /// Waits until the control plane calls a node Ready, or no longer does.
    pub(super) async fn wait_condition(&self, name: &str, ready: bool, deadline: Duration) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client().await?);
        let what = format!("node {name} is{} Ready", if ready { "" } else { " not" });
        wait(&what, deadline, || async {
            Ok(nodes.get_opt(name).await?.is_some_and(|node| is_ready(&node) == ready))
        })
        .await
    }

    /// Waits until pods can be made: the ServiceAccount that they get by default is there.
    pub(super) async fn wait_account(&self, deadline: Duration) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, "default");
        wait("the default ServiceAccount is there", deadline, || async {
            Ok(accounts.get_opt("default").await?.is_some())
        })
        .await
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// Asks again and again until the answer is yes. An error is a no, and the last one is told.
///
/// # Errors
/// When the answer is not yes within `deadline`.
pub async fn wait<F>(what: &str, deadline: Duration, mut ask: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>> + Send,
{
    let end = Instant::now() + deadline;
    loop {
        let last = match tokio::time::timeout(Duration::from_secs(5), ask()).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => String::new(),
            Ok(Err(error)) => format!(": {error:#}"),
            Err(_) => ": no answer within 5 s".into(),
        };
        anyhow::ensure!(
            Instant::now() < end,
            "after {} s it is still not so that {what}{last}",
            deadline.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{}: is the lab up?", path.display()))
}

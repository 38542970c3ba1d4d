//! The charts on a real API server, installed by Helm.

use super::HOME;
use crate::lab::ApiServer;
use crate::lab::paths::{Paths, tree};
use anyhow::{Context, Result, bail};
use fleetune_crds::names;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Whether the programs that these tests need are there; where they are not, a test is skipped.
///
/// # Errors
/// When one is missing although the lab is required.
pub fn ready() -> Result<bool> {
    let paths = Paths::from_env()?;
    let missing = ["etcd", "kube-apiserver", "helm", "kubectl"].map(|p| paths.program(p).err());
    let Some(error) = missing.into_iter().flatten().next() else {
        return Ok(true);
    };
    if std::env::var_os("FLEETUNE_REQUIRE_LAB").is_some_and(|v| v == "1") {
        return Err(error);
    }
    tracing::warn!("SKIPPED: {error}");
    Ok(false)
}

/// Runs `helm` or `kubectl` against the server and returns what it printed.
///
/// # Errors
/// What it printed, where it fails.
pub fn tool(program: &str, kubeconfig: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new(Paths::from_env()?.program(program)?)
        .args(args)
        .env("KUBECONFIG", kubeconfig)
        .current_dir(tree())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{program} {}: {errors}", args.join(" "));
    Ok(text + &errors)
}

/// Installs or upgrades a chart of this tree, called as it is, with values as `--set` takes them.
///
/// # Errors
/// When Helm fails, or warns.
pub fn install(kubeconfig: &Path, chart: &str, values: &str) -> Result<()> {
    let path = format!("charts/{chart}");
    let install = ["upgrade", "--install", chart, &path, "--set", values];
    let place = ["--namespace", HOME, "--create-namespace"];
    let told = tool("helm", kubeconfig, &[&install[..], &place[..]].concat())?;
    if told.to_lowercase().contains("warning") {
        bail!("helm warns: {told}");
    }
    Ok(())
}

/// A client that acts as a `ServiceAccount`; with the node that its token would name, where one is given.
///
/// # Errors
/// When the client cannot be made.
pub async fn acting(server: &ApiServer, namespace: &str, account: &str, node: Option<&str>) -> Result<kube::Client> {
    let mut kubeconfig: Value = serde_yaml::from_str(&server.kubeconfig()?)?;
    let user = kubeconfig.pointer_mut("/users/0/user").context("no user")?;
    user["as"] = json!(format!("system:serviceaccount:{namespace}:{account}"));
    user["as-groups"] = json!(groups(namespace));
    let kubeconfig = serde_json::from_value(kubeconfig)?;
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    if let Some(node) = node {
        let header = "impersonate-extra-authentication.kubernetes.io%2fnode-name";
        config.headers.push((header.parse()?, node.parse()?));
    }
    Ok(kube::Client::try_from(config)?)
}

/// The groups of a `ServiceAccount`.
pub fn groups(namespace: &str) -> [String; 3] {
    [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".to_owned(),
    ]
}

/// A client that acts as the runtime, with the node that its token would name.
///
/// # Errors
/// When the client cannot be made.
pub async fn runtime(server: &ApiServer, node: Option<&str>) -> Result<kube::Client> {
    acting(server, names::NODE_NAMESPACE, "fleetune-node", node).await
}

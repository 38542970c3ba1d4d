//! Kubeconfigs come from outside: one that would run a program or read a file here is refused.

use crate::runtime;
use crate::runtime::error::chain;
use k8s_openapi::api::core::v1::Secret;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::Path;

/// Key of a Secret that holds a kubeconfig.
pub const KEY: &str = "kubeconfig";
/// Most bytes of a kubeconfig.
const MAX: usize = 1 << 20;

/// Why a kubeconfig cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KubeconfigError {
    /// It could not be read.
    #[error("the kubeconfig cannot be read: {0}")]
    Read(String),
    /// It asks for what is refused.
    #[error("the kubeconfig uses {0}, which is refused: put certificates and token into it as data")]
    Refused(&'static str),
    /// No client can be made of it.
    #[error("no client can be made of the kubeconfig: {0}")]
    Client(String),
}

impl KubeconfigError {
    /// The reason of a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Read(_) | Self::Client(_) => "KubeconfigInvalid",
            Self::Refused(_) => "KubeconfigRefused",
        }
    }
}

/// The text of a kubeconfig file.
///
/// # Errors
/// When it cannot be read.
pub async fn read(path: &Path) -> Result<String, KubeconfigError> {
    let text = tokio::fs::read_to_string(path).await;
    text.map_err(|error| KubeconfigError::Read(format!("{}: {error}", path.display())))
}

/// The text of the kubeconfig in a Secret.
///
/// # Errors
/// When there is none.
pub fn of_secret(secret: &Secret) -> Result<&str, KubeconfigError> {
    let data = secret.data.as_ref().and_then(|d| d.get(KEY));
    let data = data.ok_or(KubeconfigError::Read("the Secret has no key `kubeconfig`".into()))?;
    std::str::from_utf8(&data.0).map_err(|e| KubeconfigError::Read(e.to_string()))
}

/// A client from the text of a kubeconfig, and the namespace of its context.
///
/// # Errors
/// When it cannot be read, or would run a program or read a file.
pub async fn client(text: &str) -> Result<(Client, String), KubeconfigError> {
    let config = config(text).await?;
    let namespace = config.default_namespace.clone();
    let client = runtime::client::client(config).map_err(|e| KubeconfigError::Client(chain(&e)))?;
    Ok((client, namespace))
}

/// Whether a client could be made of the text of a kubeconfig; nothing is asked of its server.
///
/// # Errors
/// When it cannot be read, or would run a program or read a file.
pub async fn check(text: &str) -> Result<(), KubeconfigError> {
    client(text).await.map(|_| ())
}

async fn config(text: &str) -> Result<Config, KubeconfigError> {
    if text.len() > MAX {
        return Err(KubeconfigError::Refused("more than 1 MiB"));
    }
    let kubeconfig = Kubeconfig::from_yaml(text).map_err(|e| KubeconfigError::Read(e.to_string()))?;
    refuse(&kubeconfig)?;
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    config.map_err(|e| KubeconfigError::Client(chain(&e)))
}

fn refuse(kubeconfig: &Kubeconfig) -> Result<(), KubeconfigError> {
    for auth in kubeconfig.auth_infos.iter().filter_map(|a| a.auth_info.as_ref()) {
        let refused = [
            (auth.exec.is_some(), "an exec plugin"),
            (auth.auth_provider.is_some(), "an auth provider"),
            (auth.token_file.is_some(), "a token file"),
            (auth.client_certificate.is_some(), "a client certificate file"),
            (auth.client_key.is_some(), "a client key file"),
        ];
        if let Some((_, what)) = refused.iter().find(|(is, _)| *is) {
            return Err(KubeconfigError::Refused(what));
        }
    }
    let mut clusters = kubeconfig.clusters.iter().filter_map(|c| c.cluster.as_ref());
    if clusters.any(|c| c.certificate_authority.is_some()) {
        return Err(KubeconfigError::Refused("a certificate authority file"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(user: &str, cluster: &str) -> Kubeconfig {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://10.0.0.1:6443'{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        );
        Kubeconfig::from_yaml(&text).unwrap()
    }

    #[test]
    fn a_kubeconfig_that_runs_or_reads_something_here_is_refused() {
        assert!(refuse(&kubeconfig("token: t", ", certificate-authority-data: YQ==")).is_ok());
        for (user, cluster) in [
            ("exec: {apiVersion: client.authentication.k8s.io/v1, command: sh}", ""),
            ("auth-provider: {name: gcp, config: {}}", ""),
            ("tokenFile: /etc/passwd", ""),
            ("client-certificate: /c", ""),
            ("client-key: /k", ""),
            ("token: t", ", certificate-authority: /ca"),
        ] {
            let refused = refuse(&kubeconfig(user, cluster));
            assert!(matches!(refused, Err(KubeconfigError::Refused(_))), "{user} {cluster}");
        }
    }
}

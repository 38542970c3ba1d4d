//! One API server with its etcd on loopback, for tests that need the real API but no nodes. It starts in about three
//! seconds, keeps everything in a temporary folder, and ends with the value or with the process, whichever is first.

use super::paths::Paths;
use super::pki::{Authority, Identity, write_private, write_token_key};
use anyhow::{Context, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions::is_crd_established};
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How often a start is tried: a port that was free may be taken before the server binds it.
const ATTEMPTS: u32 = 3;
/// Longest wait for the API to answer; a start takes seconds even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// A running API server. No controller manager runs: nothing is garbage-collected, and no ServiceAccount is made.
pub struct ApiServer {
    dir: tempfile::TempDir,
    authority: Authority,
    port: u16,
    etcd: Option<Keeper>,
    apiserver: Option<Keeper>,
    program: PathBuf,
    etcd_port: u16,
}

impl ApiServer {
    /// Starts etcd and kube-apiserver and waits until the API answers.
    ///
    /// # Errors
    /// When the programs are missing or do not start; the message holds the end of their logs.
    pub async fn start() -> Result<Self> {
        super::install_crypto();
        let paths = Paths::from_env()?;
        let (etcd, apiserver) = (paths.program("etcd")?, paths.program("kube-apiserver")?);
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Self::attempt(&etcd, &apiserver).await {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("the API server was never tried")))
    }

    async fn attempt(etcd: &Path, apiserver: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("fleetune-api-").tempdir()?;
        let authority = Authority::new("fleetune-test")?;
        write_pki(dir.path(), &authority)?;
        let ports = free_ports(3)?;
        let (client, peer, port) = (ports[0], ports[1], ports[2]);

        let mut command = Command::new(etcd);
        command.args(etcd_args(dir.path(), "127.0.0.1", client, peer));
        let etcd = keep("etcd", quiet(&command, &dir.path().join("etcd.log"))?)?;
        let mut server = Self {
            dir,
            authority,
            port,
            etcd: Some(etcd),
            apiserver: None,
            program: apiserver.to_owned(),
            etcd_port: client,
        };
        server.serve().await?;
        Ok(server)
    }

    /// Starts kube-apiserver and waits until it answers.
    async fn serve(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args([
            &format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            // The endpoints of the service `kubernetes` may not be loopback addresses.
            "--endpoint-reconciler-type=none",
            &format!("--secure-port={}", self.port),
            "--service-cluster-ip-range=10.96.0.0/24",
            // Pods are made without a controller manager that makes ServiceAccounts.
            "--disable-admission-plugins=ServiceAccount",
        ]);
        command.args(common_apiserver_args(self.dir.path(), "https://kubernetes.default.svc"));
        let log = self.dir.path().join("apiserver.log");
        let keeper = keep("kube-apiserver", quiet(&command, &log)?)?;
        let ended = [self.etcd.as_ref(), Some(&keeper)].map(|k| k.map(|k| k.ended.clone()).unwrap_or_default());
        self.apiserver = Some(keeper);
        let client = self.client().await?;
        let outcome = tokio::select! {
            ready = wait_ready(&client, DEADLINE) => ready,
            () = until(&ended[0]) => Err(anyhow::anyhow!("etcd ended")),
            () = until(&ended[1]) => Err(anyhow::anyhow!("kube-apiserver ended")),
        };
        if outcome.is_err() {
            self.stop();
        }
        outcome.with_context(|| tail(&log))
    }

    /// Kills kube-apiserver, starts it again on the same port over the same etcd and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        end(&mut self.apiserver);
        self.serve().await
    }

    /// Address of the API server.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// A kubeconfig of the administrator.
    ///
    /// # Errors
    /// When the certificate cannot be issued.
    pub fn kubeconfig(&self) -> Result<String> {
        self.kubeconfig_of("admin", Some("system:masters"))
    }

    /// A kubeconfig of any user, by a client certificate of its own.
    ///
    /// # Errors
    /// When the certificate cannot be issued.
    pub fn kubeconfig_of(&self, user: &str, group: Option<&str>) -> Result<String> {
        let identity: Identity = self.authority.issue(user, group, &[])?;
        Ok(self.authority.kubeconfig("test", &self.url(), &identity))
    }

    /// The administrator's kubeconfig as a file, for kubectl and helm. It goes with the server.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_path(&self) -> Result<PathBuf> {
        let path = self.dir.path().join("kubeconfig");
        write_private(&path, &self.kubeconfig()?)?;
        Ok(path)
    }

    /// A client of the administrator.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub async fn client(&self) -> Result<kube::Client> {
        client_from(&self.kubeconfig()?).await
    }

    /// A client of any user.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub async fn client_of(&self, user: &str, group: Option<&str>) -> Result<kube::Client> {
        client_from(&self.kubeconfig_of(user, group)?).await
    }

    /// Installs the committed definitions of all kinds and waits until the server serves them.
    ///
    /// # Errors
    /// When the server refuses one; the message holds all refusals.
    pub async fn install_crds(&self) -> Result<()> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client().await?);
        let (mut names, mut refused) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(super::paths::tree().join("crds"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "yaml") {
                continue;
            }
            let crd: CustomResourceDefinition = serde_yaml::from_str(&std::fs::read_to_string(&path)?)?;
            names.push(crd.metadata.name.clone().context("a definition without a name")?);
            if let Err(kube::Error::Api(status)) = api.create(&PostParams::default(), &crd).await {
                refused.push(format!("{}: {}", path.display(), status.message));
            }
        }
        anyhow::ensure!(
            refused.is_empty(),
            "the server refuses definitions:\n{}",
            refused.join("\n")
        );
        for name in names {
            let established = await_condition(api.clone(), &name, is_crd_established());
            let served = tokio::time::timeout(Duration::from_secs(20), established).await;
            served.with_context(|| format!("{name} is not established"))??;
        }
        Ok(())
    }

    fn stop(&mut self) {
        end(&mut self.apiserver);
        end(&mut self.etcd);
    }
}

/// Kills a process and waits until it is gone.
fn end(keeper: &mut Option<Keeper>) {
    if let Some(keeper) = keeper.take() {
        drop(keeper.alive);
        let _ = keeper.thread.join();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A client from the text of a kubeconfig.
///
/// # Errors
/// When the text is not a kubeconfig or the client cannot be made.
pub async fn client_from(kubeconfig: &str) -> Result<kube::Client> {
    super::install_crypto();
    let parsed = Kubeconfig::from_yaml(kubeconfig).context("kubeconfig")?;
    let mut config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await?;
    config.proxy_url = None;
    Ok(kube::Client::try_from(config)?)
}

/// Waits until `/readyz` says ok.
///
/// # Errors
/// When it does not within `deadline`.
pub async fn wait_ready(client: &kube::Client, deadline: Duration) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        let request = kube::core::Request::new("").get("readyz", &kube::api::GetParams::default())?;
        let last = match tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await {
            Ok(Ok(text)) if text == "ok" => return Ok(()),
            Ok(Ok(text)) => text,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer within 5 s".into(),
        };
        if Instant::now() > end {
            bail!("the API server is not ready after {} s: {last}", deadline.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Writes what a control plane reads: the authority, the server's certificate, the client towards kubelets, the token key.
pub(super) fn write_pki(dir: &Path, authority: &Authority) -> Result<()> {
    write_pki_for(dir, authority, &["127.0.0.1", "localhost"])
}

/// The same, for a server of the given names and addresses.
pub(super) fn write_pki_for(dir: &Path, authority: &Authority, names: &[&str]) -> Result<()> {
    write_private(&dir.join("ca.crt"), &authority.certificate())?;
    write_token_key(dir)?;
    authority
        .issue("kube-apiserver", None, names)?
        .write(dir, "apiserver")?;
    authority
        .issue("kube-apiserver-kubelet-client", Some("system:masters"), &[])?
        .write(dir, "kubelet-client")
}

pub(super) fn etcd_args(dir: &Path, address: &str, client: u16, peer: u16) -> Vec<String> {
    vec![
        "--name=lab".into(),
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls=http://{address}:{client}"),
        format!("--advertise-client-urls=http://{address}:{client}"),
        format!("--listen-peer-urls=http://{address}:{peer}"),
        format!("--initial-advertise-peer-urls=http://{address}:{peer}"),
        format!("--initial-cluster=lab=http://{address}:{peer}"),
        // The lab survives no power cut of the machine, and need not.
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

/// What every API server of ours gets, here and in the lab.
pub(super) fn common_apiserver_args(dir: &Path, issuer: &str) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    vec![
        format!("--client-ca-file={}", file("ca.crt")),
        format!("--tls-cert-file={}", file("apiserver.crt")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--service-account-key-file={}", file("token.pub")),
        format!("--service-account-signing-key-file={}", file("token.key")),
        format!("--service-account-issuer={issuer}"),
        format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        "--kubelet-preferred-address-types=InternalIP,Hostname".into(),
        "--profiling=false".into(),
    ]
}

/// `count` ports of loopback that were free a moment ago.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()?;
    held.iter().map(|l| Ok(l.local_addr()?.port())).collect()
}

/// The command, with its output in a file and bound to die with the thread that starts it.
fn quiet(inner: &Command, log: &Path) -> Result<Command> {
    let file = File::create(log)?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    Ok(command)
}

/// A thread that holds a process. Dropping `alive` ends it, and it ends the process.
struct Keeper {
    alive: mpsc::Sender<()>,
    /// Becomes true when the process has ended by itself.
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

/// Starts a process from a thread that lives as long as it shall: the kernel's parent-death signal is bound to the
/// thread, and a test's thread ends before its process does.
fn keep(name: &'static str, mut command: Command) -> Result<Keeper> {
    let (alive, receiver) = mpsc::channel::<()>();
    let (started, outcome) = mpsc::channel();
    let ended = Arc::new(AtomicBool::new(false));
    let flag = ended.clone();
    let thread = std::thread::spawn(move || {
        let mut child: Child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let _ = started.send(Err(anyhow::Error::new(error).context(format!("cannot start {name}"))));
                return;
            }
        };
        let _ = started.send(Ok(()));
        while receiver.recv_timeout(Duration::from_millis(100)) == Err(mpsc::RecvTimeoutError::Timeout) {
            if !matches!(child.try_wait(), Ok(None)) {
                flag.store(true, Ordering::Relaxed);
            }
        }
        let _ = child.kill();
        let _ = child.wait();
    });
    outcome.recv().context("the keeper thread ended")??;
    Ok(Keeper { alive, ended, thread })
}

async fn until(flag: &AtomicBool) {
    while !flag.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The last lines of a log, for an error message.
pub(super) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!(
        "{}:\n{}",
        log.display(),
        lines[lines.len().saturating_sub(12)..].join("\n")
    )
}

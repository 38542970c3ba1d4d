//! The machine's way into the lab: listens on loopback in the machine's network namespace and connects in the lab's.
//! The process that does so also keeps the list of targets for Prometheus.

use super::net;
use super::paths::Paths;
use super::topology::{self, Forward};
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::Write as _;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// How long a connection into the lab may take; a node that is off answers nothing at all.
const CONNECT: Duration = Duration::from_secs(5);

/// Waits for a line of input, then follows the pods of all clusters for Prometheus, and meanwhile serves every port until
/// the process is killed.
///
/// # Errors
/// When the input ends before a line, a port is taken or a namespace is not there.
pub async fn run(paths: Paths, clusters: Vec<topology::ClusterSpec>) -> Result<()> {
    // This process alone is not found by the network that it is in: unless it is noted, nobody would ever end it.
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    anyhow::ensure!(
        !line.is_empty(),
        "whoever started the forwarder ended before it was noted"
    );
    if clusters.contains(&topology::HUB) {
        std::fs::create_dir_all(paths.lab().join("targets"))?;
        for cluster in &clusters {
            tokio::spawn(super::discover::follow(paths.clone(), *cluster));
        }
    }
    super::up::blocking(move || serve(&paths, &clusters)).await
}

/// Listens on every port and copies until the process is killed.
///
/// # Errors
/// When a port is taken or a namespace is not there.
fn serve(paths: &Paths, clusters: &[topology::ClusterSpec]) -> Result<()> {
    let mut ready = Vec::new();
    for forward in topology::forwards(clusters) {
        // A socket belongs to the namespace it was made in, whichever its thread moves to afterwards.
        let listener = TcpListener::bind(("127.0.0.1", forward.port))
            .with_context(|| format!("port {} of loopback is taken", forward.port))?;
        let namespace = File::open(net::file(paths, forward.namespace))
            .with_context(|| format!("the lab's network {}", forward.namespace))?;
        let target: SocketAddr = forward.target.parse()?;
        ready.push((forward, listener, namespace, target));
    }
    let mut threads = Vec::new();
    for (forward, listener, namespace, target) in ready {
        threads.push(std::thread::spawn(move || {
            accept(&forward, &listener, &namespace, target)
        }));
    }
    for thread in threads {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("a forwarding thread panicked"))??;
    }
    Ok(())
}

/// Moves this thread into the lab and serves one port. Threads made from here are in the lab as well.
fn accept(forward: &Forward, listener: &TcpListener, namespace: &File, target: SocketAddr) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter the network {}", forward.namespace))?;
    loop {
        let Ok((near, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        std::thread::spawn(move || {
            // Closing the near side is the only way to say that the far side cannot be reached.
            let Ok(far) = TcpStream::connect_timeout(&target, CONNECT) else {
                return;
            };
            let _ = near.set_nodelay(true);
            let _ = far.set_nodelay(true);
            let (Ok(near2), Ok(far2)) = (near.try_clone(), far.try_clone()) else {
                return;
            };
            let other = std::thread::spawn(move || copy(near, far));
            copy(far2, near2);
            let _ = other.join();
        });
    }
}

/// Copies one direction and passes its end on.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.flush();
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

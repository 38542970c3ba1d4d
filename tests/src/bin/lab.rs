//! The lab's command line: up, down, status, and what can happen to a machine in between.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use fleetune_tests::images;
use fleetune_tests::lab::paths::Paths;
use fleetune_tests::lab::topology::{self, CLUSTERS, ClusterSpec};
use fleetune_tests::lab::{self, Lab};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "lab",
    about = "Real Kubernetes clusters on one machine: a hub and two device clusters."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings the lab up, removing an earlier one first.
    Up {
        /// Only this cluster.
        #[arg(long)]
        only: Option<String>,
    },
    /// Removes everything that the lab made.
    Down,
    /// Prints what is up.
    Status,
    /// Pulls a node's plug.
    PowerOff {
        /// The node.
        node: String,
    },
    /// Turns a node on and waits until it is Ready.
    PowerOn {
        /// The node.
        node: String,
    },
    /// Cuts a cluster from all others.
    Cut {
        /// The cluster.
        cluster: String,
    },
    /// Joins a cluster to the others again.
    Heal {
        /// The cluster.
        cluster: String,
    },
    /// Installs, unpacks and builds what is missing of the lab's programs.
    Tools,
    /// Builds the images of operator and worker, pushes them into the lab's registry, and prints sizes and references.
    Images,
    /// Prints what to export so that kubectl and helm reach the lab.
    Env,
    /// Forwards loopback ports into the lab; started by `up`.
    #[command(hide = true)]
    Forward {
        /// The cache folder.
        #[arg(long)]
        cache: PathBuf,
        /// Names of the clusters, separated by commas.
        clusters: String,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match execute().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn execute() -> Result<()> {
    let mut out = std::io::stdout();
    match Cli::parse().command {
        Command::Up { only } => {
            let clusters: Vec<ClusterSpec> = match only {
                Some(name) => vec![topology::cluster(&name)?],
                None => CLUSTERS.to_vec(),
            };
            let (lab, took) = Lab::up(&clusters).await?;
            let nodes: usize = lab.clusters().iter().map(|c| c.nodes().len()).sum();
            writeln!(
                out,
                "{} clusters, {nodes} nodes up in {:.1} s",
                clusters.len(),
                took.as_secs_f64()
            )?;
        }
        Command::Down => Lab::down().await?,
        Command::Status => write!(out, "{}", lab::status(&Paths::from_env()?)?)?,
        Command::PowerOff { node } => attached()?.power_off(&node).await?,
        Command::PowerOn { node } => {
            let lab = attached()?;
            lab.power_on(&node).await?;
            let cluster = topology::node(&node)?.cluster.name;
            lab.cluster(cluster)?
                .wait_node(&node, true, std::time::Duration::from_mins(2))
                .await?;
        }
        Command::Cut { cluster } => attached()?.cut(&cluster).await?,
        Command::Heal { cluster } => attached()?.heal(&cluster).await?,
        Command::Env => {
            let paths = Paths::from_env()?;
            let files: Vec<String> = attached()?
                .clusters()
                .iter()
                .map(|c| c.kubeconfig().display().to_string())
                .collect();
            writeln!(
                out,
                "export KUBECONFIG={}\nexport PATH={}:$PATH",
                files.join(":"),
                paths.bin().display()
            )?;
        }
        Command::Tools => {
            let paths = Paths::from_env()?;
            tokio::task::spawn_blocking(move || lab::tools::install(&paths)).await??;
            write!(out, "{}", lab::tools::versions(&Paths::from_env()?)?)?;
        }
        Command::Images => {
            let built = images::build(&attached()?).await?;
            for (name, image) in [("operator", built.operator), ("worker", built.worker)] {
                let megabytes = image.compressed_bytes as f64 / 1e6;
                writeln!(out, "{name:9} {megabytes:6.1} MB compressed  {}", image.reference)?;
            }
        }
        Command::Forward { cache, clusters } => {
            let specs = clusters.split(',').map(topology::cluster).collect::<Result<Vec<_>>>()?;
            lab::forward::run(Paths::at(cache), specs).await?;
        }
    }
    Ok(())
}

fn attached() -> Result<Lab> {
    Lab::attach(&Paths::from_env()?)?.context("the lab is not up: run `lab up`")
}

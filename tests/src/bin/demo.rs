//! `demo run`: the whole road on this machine, from `kubectl apply` to a prediction of an edge node. Exit status 0 only
//! if all that the summary says was read back from the clusters.

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use fleetune_crds::{FineTuneJob, ModelRollout, RunState, conditions};
use fleetune_tests::road::{self, Ask, NODES, Road, SHOP, Show};
use kube::Api;
use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "The whole road on this machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings up the lab, installs Fleetune, runs the example job and its rollout, prints what came of it.
    Run,
}

#[tokio::main]
async fn main() -> Result<()> {
    fleetune_tests::lab::install_crypto();
    match Cli::parse().command {
        Command::Run => run().await,
    }
}

async fn run() -> Result<()> {
    let mut show = Show::default();
    let road = Road::ready(&mut show).await?;
    let hub = road.lab.cluster("hub")?;

    show.step("kubectl apply -f examples/shirts.yaml");
    hub.kubectl(&["apply", "-f", &road::path("examples/shirts.yaml")?])
        .await?;
    let client = hub.client().await?;
    let succeeded = road::follow(
        Api::<FineTuneJob>::namespaced(client.clone(), SHOP),
        "shirts-1",
        Duration::from_mins(20),
        |job| {
            if let Some(status) = &job.status {
                let text = |field: &Option<String>| field.clone().unwrap_or_default();
                show.line(
                    "shirts-1",
                    format!("{} {}", text(&status.phase), text(&status.progress)).trim(),
                );
            }
            match road::job_done(job) {
                ControlFlow::Break(true) => ControlFlow::Break(Ok(())),
                ControlFlow::Break(false) => ControlFlow::Break(Err(why(job))),
                ControlFlow::Continue(()) => ControlFlow::Continue(()),
            }
        },
    )
    .await?;
    succeeded.map_err(anyhow::Error::msg).context("the job failed")?;
    let version = Api::<FineTuneJob>::namespaced(client.clone(), SHOP)
        .get("shirts-1")
        .await?
        .status
        .and_then(|s| s.version)
        .context("the job names no version")?;

    show.step("kubectl apply -f examples/shirts-rollout.yaml");
    hub.kubectl(&["apply", "-f", &road::path("examples/shirts-rollout.yaml")?])
        .await?;
    let mut done = road::rollout_done(&version);
    let state = road::follow(
        Api::<ModelRollout>::namespaced(client, SHOP),
        "shirts",
        Duration::from_mins(10),
        |rollout| {
            if let Some(status) = &rollout.status {
                let n = &status.nodes;
                let text = format!(
                    "{} wave {}: {} picked, {} active, {} proven, {} failed, {} unreachable",
                    status.phase.as_deref().unwrap_or_default(),
                    status.wave.as_deref().unwrap_or("-"),
                    n.picked,
                    n.active,
                    n.proven,
                    n.failed,
                    n.unreachable
                );
                show.line("shirts", &text);
            }
            done(rollout)
        },
    )
    .await?;
    ensure!(state == RunState::Complete, "the rollout ended {state:?}");

    show.step("read back from the clusters");
    let text = road::summary(&road.lab, SHOP, "shirts-1", "shirts").await?;
    let sample = road::samples::images(1)?.pop().context("no sample")?;
    let mut out = std::io::stdout();
    writeln!(out, "\n{text}")?;
    for node in NODES {
        let answer = Ask::new(&road.lab.runtime_addr(node)?)?
            .image("shirts", &sample.encoded)
            .await?;
        let best = answer.probabilities.iter().copied().fold(0.0, f32::max);
        writeln!(
            out,
            "  {node} says {} ({best:.2}); the true label is {}",
            answer.label, sample.label
        )?;
    }
    writeln!(
        out,
        "\nThe lab stays up: `make -s demo-env` prints how to reach it, `make demo-down` removes it."
    )?;
    Ok(())
}

fn why(job: &FineTuneJob) -> String {
    let status = job.status.clone().unwrap_or_default();
    conditions::get(&status.conditions, conditions::SUCCEEDED)
        .map(|c| format!("{}: {}", c.reason, c.message))
        .unwrap_or_default()
}

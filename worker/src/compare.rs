//! `fleetune-worker compare`: versions of one job on the same test rows, each against the first one: the gain with its
//! paired 95 % interval. It trains nothing and judges nothing.

use crate::config::Job;
use crate::data::{self, Part, Row};
use crate::error::{INVALID_JOB, INVALID_VERSION, Result, WorkerError};
use crate::features::{each, prepare, targets};
use crate::finetune::{blocking, fetch};
use crate::progress::Tracker;
use crate::train::{Targets, metrics};
use crate::version::Version;
use fleetune_crds::Task;
use serde::Serialize;
use std::path::PathBuf;

/// Standard deviations on either side of a 95 % interval of the normal distribution.
const NORMAL_95: f64 = 1.959_964;

/// What `compare` prints.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Test rows.
    pub samples: usize,
    /// One for each version, in the order of the command line.
    pub versions: Vec<Compared>,
}

/// One version.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Compared {
    /// Its folder.
    pub dir: PathBuf,
    /// Of a Classification the share of right answers, of a Regression the mean absolute error.
    pub score: f64,
    /// How much better it is than the first version.
    pub gain: f64,
    /// Ends of the paired 95 % interval of the gain.
    pub interval: [f64; 2],
}

/// Compares the versions in `dirs` on the test rows of `job`.
pub async fn run(job: Job, dirs: Vec<PathBuf>) -> Result<Comparison> {
    let scratch = tempfile::tempdir().map_err(|e| WorkerError::io("making", &std::env::temp_dir(), &e))?;
    let tracker = Tracker::new(false);
    let fetched = fetch(&job, scratch.path(), true, false, &tracker).await?;
    blocking(move || {
        let data = data::load(&job, &fetched.data, &tracker)?;
        let rows: Vec<&Row> = data.part(Part::Test).collect();
        let truth = targets(&rows)?;
        let mut all: Vec<Vec<f64>> = Vec::new();
        for dir in &dirs {
            let version = Version::open(dir)?;
            if version.task() != job.spec.task || version.labels() != data.labels {
                return Err(WorkerError::bad(
                    INVALID_VERSION,
                    format!("{} answers another question than the job asks", dir.display()),
                ));
            }
            let answers = each(&rows, &tracker, |row| {
                let output = version.run(&prepare(version.preparer(), row)?)?;
                Ok(output.into_iter().map(f64::from).collect::<Vec<f64>>())
            })?;
            all.push(quality(&answers, &truth));
        }
        let first = all
            .first()
            .ok_or_else(|| WorkerError::bad(INVALID_JOB, "name at least one version's folder"))?;
        let sign = if job.spec.task == Task::Classification {
            1.0
        } else {
            -1.0
        };
        let versions = dirs
            .into_iter()
            .zip(&all)
            .map(|(dir, own)| {
                let (gain, interval) = paired(own, first);
                Compared {
                    dir,
                    score: sign * own.iter().sum::<f64>() / own.len().max(1) as f64,
                    gain,
                    interval,
                }
            })
            .collect();
        Ok(Comparison {
            samples: rows.len(),
            versions,
        })
    })
    .await
}

/// How good each answer is: 1 if right, else 0; of a value the absolute error, below 0.
fn quality(answers: &[Vec<f64>], truth: &Targets) -> Vec<f64> {
    match truth {
        Targets::Classes(classes) => answers
            .iter()
            .zip(classes)
            .map(|(answer, class)| f64::from(u8::from(metrics::argmax(answer) == *class)))
            .collect(),
        Targets::Values(values) => answers
            .iter()
            .zip(values)
            .map(|(answer, value)| -(answer.first().copied().unwrap_or(f64::NAN) - value).abs())
            .collect(),
    }
}

/// Mean of the differences, row by row, and the ends of its 95 % interval: mean ± 1.96 s / √n.
fn paired(own: &[f64], other: &[f64]) -> (f64, [f64; 2]) {
    let differences: Vec<f64> = own.iter().zip(other).map(|(a, b)| a - b).collect();
    let n = differences.len().max(1) as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let squares: f64 = differences.iter().map(|d| (d - mean) * (d - mean)).sum();
    let half = NORMAL_95 * (squares / (n - 1.0).max(1.0) / n).sqrt();
    (mean, [mean - half, mean + half])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_by_hand() {
        // Of ten rows two got better, one worse: mean 0.1, deviation √(2.9 / 9).
        let other = [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let own = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let (mean, [low, high]) = paired(&own, &other);
        let half = 1.959_964 * (2.9f64 / 9.0 / 10.0).sqrt();
        assert!((mean - 0.1).abs() < 1e-12);
        assert!((low - (0.1 - half)).abs() < 1e-12 && (high - (0.1 + half)).abs() < 1e-12);
        let (mean, [low, high]) = paired(&own, &own);
        assert!(mean == 0.0 && low == 0.0 && high == 0.0);
    }

    #[test]
    fn errors_of_values_count_below_zero() {
        let got = quality(&[vec![3.0], vec![1.0]], &Targets::Values(vec![1.0, 1.5]));
        assert_eq!(got, [-2.0, -0.5]);
        let got = quality(&[vec![0.2, 0.8], vec![0.7, 0.3]], &Targets::Classes(vec![1, 1]));
        assert_eq!(got, [1.0, 0.0]);
    }
}

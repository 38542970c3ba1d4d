//! A client that asks one node at a steady rate until it is stopped, and keeps every answer.

use super::{Ask, Prediction};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// Requests a second.
pub const RATE: u32 = 50;

/// What a hammer has heard.
#[derive(Debug, Default)]
pub struct Heard {
    /// Requests that were not answered with a prediction, in their own words.
    pub failed: Vec<String>,
    /// Different answers by version, with how often each came.
    pub answers: BTreeMap<String, Vec<(Prediction, u32)>>,
    /// Answers in all.
    pub count: u32,
}

impl Heard {
    /// Versions that answered differently to the same question: mixed answers.
    pub fn mixed(&self) -> Vec<&String> {
        self.answers
            .iter()
            .filter(|(_, different)| different.len() > 1)
            .map(|(version, _)| version)
            .collect()
    }

    /// Nothing of the switches was noticed: each request was answered.
    ///
    /// # Errors
    /// When one was not; the message has the first one's words.
    pub fn nothing_lost(&self, node: &str) -> anyhow::Result<()> {
        let (failed, first) = (self.failed.len(), self.failed.first());
        anyhow::ensure!(failed == 0, "{node}: {failed} of {} failed: {first:?}", self.count);
        Ok(())
    }

    fn note(&mut self, answer: anyhow::Result<Prediction>) {
        self.count += 1;
        match answer {
            Ok(answer) => {
                let seen = self.answers.entry(answer.version.clone()).or_default();
                match seen.iter_mut().find(|(known, _)| *known == answer) {
                    Some((_, times)) => *times += 1,
                    None => seen.push((answer, 1)),
                }
            }
            Err(error) => self.failed.push(format!("{error:#}")),
        }
    }
}

/// A running hammer.
pub struct Hammer {
    stop: watch::Sender<bool>,
    task: JoinHandle<Heard>,
}

impl Hammer {
    /// Asks `model` about one picture, [`RATE`] times a second.
    pub fn start(ask: Ask, model: String, encoded: Vec<u8>) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut heard = Heard::default();
            let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
            // A slow answer must not be followed by a burst: the rate is an upper bound.
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = stopped.changed() => return heard,
                    _ = tick.tick() => heard.note(ask.image(&model, &encoded).await),
                }
            }
        });
        Self { stop, task }
    }

    /// Stops it and returns what it heard.
    ///
    /// # Errors
    /// When the task has panicked.
    pub async fn stop(self) -> anyhow::Result<Heard> {
        self.stop.send_replace(true);
        Ok(self.task.await?)
    }
}

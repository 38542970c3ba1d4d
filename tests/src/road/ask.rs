//! A client of the Open Inference Protocol v2, as plain as any user's: one sample in, one answer out.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use serde_json::{Value, json};
use std::time::Duration;

/// A client of one node's runtime.
#[derive(Clone)]
pub struct Ask {
    http: reqwest::Client,
    base: String,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Digest of the version that answered.
    pub version: String,
    /// Probability of each label.
    pub probabilities: Vec<f32>,
    /// The label with the largest one.
    pub label: String,
}

impl Ask {
    /// A client of the runtime that listens at `address` (`HOST:PORT`).
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(address: &str) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build()?;
        Ok(Self {
            http,
            base: format!("http://{address}/v2"),
        })
    }

    /// Asks `model` about a PNG or JPEG.
    ///
    /// # Errors
    /// When the runtime does not answer with a prediction; the message has its own words.
    pub async fn image(&self, model: &str, encoded: &[u8]) -> Result<Prediction> {
        let text = base64::engine::general_purpose::STANDARD.encode(encoded);
        self.infer(
            model,
            json!([{ "name": "image", "datatype": "BYTES", "shape": [1], "data": [text] }]),
        )
        .await
    }

    /// Asks `model` about a window of `channels` × `samples` values, channel after channel.
    ///
    /// # Errors
    /// When the runtime does not answer with a prediction; the message has its own words.
    pub async fn window(&self, model: &str, channels: usize, values: &[f32]) -> Result<Prediction> {
        ensure!(
            channels > 0 && values.len().is_multiple_of(channels),
            "a window of {channels} channels"
        );
        let shape = [1, channels, values.len() / channels];
        self.infer(
            model,
            json!([{ "name": "window", "datatype": "FP32", "shape": shape, "data": values }]),
        )
        .await
    }

    async fn infer(&self, model: &str, inputs: Value) -> Result<Prediction> {
        let url = format!("{}/models/{model}/infer", self.base);
        let response = self.http.post(&url).json(&json!({ "inputs": inputs })).send().await?;
        let status = response.status();
        let body = response.text().await?;
        if !status.is_success() {
            bail!("{url}: {status}: {body}");
        }
        let answer: Value = serde_json::from_str(&body).with_context(|| format!("{url}: {body}"))?;
        let output = |name: &str| {
            answer["outputs"]
                .as_array()
                .and_then(|outputs| outputs.iter().find(|o| o["name"] == name))
                .map(|o| o["data"].clone())
                .with_context(|| format!("{url}: no output {name} in {body}"))
        };
        Ok(Prediction {
            version: answer["model_version"].as_str().context("no model_version")?.to_owned(),
            probabilities: serde_json::from_value(output("probabilities")?)?,
            label: output("label")?[0].as_str().context("no label")?.to_owned(),
        })
    }
}

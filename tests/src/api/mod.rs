//! What tests on a real API server without nodes share: objects as JSON, waiting for an answer, rights by the access
//! table, and the operator's processes inside the test.

pub mod access;
pub mod fleet;
pub mod helm;
pub mod operator;
pub mod render;
pub mod runtimes;

use anyhow::{Result, bail};
use kube::api::{Api, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Namespace of the operator in these tests.
pub const HOME: &str = "fleetune-system";
/// Longest wait for an answer; on an idle machine it comes in seconds.
const DEADLINE: Duration = Duration::from_mins(2);

/// Logs of the operator, shown with the output of a test that fails.
pub fn logs() {
    let logs = tracing_subscriber::fmt().with_env_filter("info,kube_client=off");
    // Another test of this process may have set them up.
    let _ = logs.with_test_writer().try_init();
}

/// Creates an object.
///
/// # Errors
/// When it is no such object, or the server refuses it.
pub async fn make<K>(api: &Api<K>, object: Value) -> Result<K>
where
    K: DeserializeOwned + Clone + Debug + Serialize,
{
    let object: K = serde_json::from_value(object)?;
    Ok(api.create(&PostParams::default(), &object).await?)
}

/// Asks until the answer is there.
///
/// # Errors
/// When asking fails, or the answer does not come within two minutes.
pub async fn eventually<T, F: Future<Output = Result<Option<T>>>>(what: &str, mut ask: impl FnMut() -> F) -> Result<T> {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() > end {
            bail!("never came: {what}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The code of an answer: 200, or that of the refusal.
///
/// # Errors
/// When there was no answer.
pub fn code<T>(result: Result<T, kube::Error>) -> Result<u16> {
    match result {
        Ok(_) => Ok(200),
        Err(kube::Error::Api(status)) => Ok(status.code),
        Err(error) => Err(error.into()),
    }
}

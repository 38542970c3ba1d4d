//! Clients of API servers, all with the same settings.

use kube::{Client, Config};
use std::time::Duration;

/// Longest time until a connection stands.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest time until a request is on its way.
const WRITE: Duration = Duration::from_secs(10);

/// A client of the API server that `config` names.
///
/// # Errors
/// When its certificates or credentials cannot be read.
pub fn client(mut config: Config) -> Result<Client, kube::Error> {
    // Controllers and watches have their own backoff, with a bound. The library's hidden retries double their wait up to
    // minutes inside one call, which would hold a reconcile and its slot.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT);
    config.write_timeout = Some(WRITE);
    Client::try_from(config)
}

//! The only place that reads the wall clock, and the only source of jitter. Decisions get the time as an argument.

use k8s_openapi::jiff::Timestamp;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// A wall clock that a test can replace.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The clock of the machine.
    pub fn system() -> Self {
        #[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
        Self(Arc::new(Timestamp::now))
    }

    /// A clock that a test drives.
    pub fn from_fn(read: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

/// `base` moved by up to `share` of itself in either direction, so that what started together does not stay together.
pub fn jitter(base: Duration, share: f64) -> Duration {
    // Keys of the standard hasher are random for each process and each call: enough to spread load, and no dependency.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let unit = (random >> 11) as f64 / (1u64 << 53) as f64;
    base.mul_f64((1.0 + share * (2.0 * unit - 1.0)).max(0.0))
}

/// The time without its fraction of a second, as a `Time` field keeps it: what is compared with a stored status must have
/// been cut the same way, or it differs each time and is written each time.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Time from `earlier` to `later`; zero where `later` is not later.
pub fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_in_its_bounds_and_moves() {
        let base = Duration::from_secs(100);
        let all: Vec<_> = (0..100).map(|_| jitter(base, 0.2)).collect();
        assert!(all.iter().all(|d| (80.0..=120.0).contains(&d.as_secs_f64())));
        assert!(all.iter().any(|d| *d != all[0]));
    }
}

//! Per-object delays after errors, and the one-a-second limit on reconciles of one object. In memory only: after a
//! restart every object gets a first try at once.

use crate::runtime::clock::jitter;
use crate::runtime::error::Class;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Delay after the first failure; doubled for each further one.
pub const FIRST: Duration = Duration::from_secs(1);
/// Longest delay between two tries.
pub const MAX: Duration = Duration::from_mins(5);
/// Delay after a lost race: long enough for the watch to bring the winner's write.
pub const CONFLICT: Duration = Duration::from_millis(250);
/// Shortest time between the starts of two reconciles of one object.
pub const FLOOR: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Entry {
    started: Option<Instant>,
    failures: u32,
}

/// What is remembered of each object of one controller.
pub struct Pace<K>(Mutex<HashMap<K, Entry>>);

impl<K: Eq + Hash> Default for Pace<K> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Eq + Hash> Pace<K> {
    fn entries(&self) -> MutexGuard<'_, HashMap<K, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the right to reconcile now, or says how long to wait.
    pub fn start(&self, key: K, now: Instant) -> Result<(), Duration> {
        let mut entries = self.entries();
        let entry = entries.entry(key).or_default();
        match entry.started {
            Some(last) if now < last + FLOOR => Err(last + FLOOR - now),
            _ => {
                entry.started = Some(now);
                Ok(())
            }
        }
    }

    /// Remembers a success.
    pub fn succeeded(&self, key: &K) {
        if let Some(entry) = self.entries().get_mut(key) {
            entry.failures = 0;
        }
    }

    /// Remembers a failure; the delay until the next try, or `None` where only a change of the object helps.
    pub fn failed(&self, key: K, class: Class) -> Option<Duration> {
        let mut entries = self.entries();
        let entry = entries.entry(key).or_default();
        match class {
            Class::Conflict => Some(CONFLICT),
            Class::Invalid => {
                entry.failures = 0;
                None
            }
            Class::Transient => {
                let delay = delay(entry.failures);
                entry.failures = entry.failures.saturating_add(1);
                Some(jitter(delay, 0.2).min(MAX))
            }
            Class::Bug => {
                entry.failures = entry.failures.saturating_add(1);
                Some(jitter(MAX, 0.2).min(MAX))
            }
        }
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, key: &K) {
        self.entries().remove(key);
    }

    /// Number of objects whose last try failed.
    pub fn in_backoff(&self) -> i64 {
        let failing = self.entries().values().filter(|e| e.failures > 0).count();
        i64::try_from(failing).unwrap_or(i64::MAX)
    }
}

/// The delay after `failures` earlier failures in a row, before jitter.
pub fn delay(failures: u32) -> Duration {
    FIRST.saturating_mul(2u32.saturating_pow(failures.min(16))).min(MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit() {
        let seconds: Vec<_> = (0..10).map(|n| delay(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(delay(u32::MAX), MAX);
    }

    #[test]
    fn one_object_is_reconciled_once_a_second() {
        let pace = Pace::default();
        let t0 = Instant::now();
        assert_eq!(pace.start("a", t0), Ok(()));
        assert_eq!(
            pace.start("a", t0 + Duration::from_millis(400)),
            Err(Duration::from_millis(600))
        );
        assert_eq!(pace.start("b", t0), Ok(()), "another object is another matter");
        assert_eq!(pace.start("a", t0 + FLOOR), Ok(()));
    }

    #[test]
    fn classes_and_reset() {
        let pace = Pace::default();
        let secs = |class| pace.failed("a", class).map(|d| d.as_secs_f64());
        assert!((0.8..=1.2).contains(&secs(Class::Transient).unwrap()));
        assert!((1.6..=2.4).contains(&secs(Class::Transient).unwrap()));
        assert_eq!(secs(Class::Conflict), Some(0.25));
        assert_eq!(pace.in_backoff(), 1);
        assert_eq!(secs(Class::Invalid), None);
        assert_eq!(pace.in_backoff(), 0);
        secs(Class::Transient);
        pace.succeeded(&"a");
        assert!(secs(Class::Transient).unwrap() <= 1.2);
        pace.forget(&"a");
        assert_eq!(pace.in_backoff(), 0);
    }
}

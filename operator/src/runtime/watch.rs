//! Watches that see again soon after their server was away.
//!
//! A server that starts answers in turns with a refused connection, 503, 403 (it has not read its own rules yet) and 410
//! (it does not remember where the watch was). Each of them is an error, and each error costs a wait. So the wait is
//! bounded to seconds, and it is each watch's own: `kube`'s `Controller` puts another, common wait on all its streams
//! together, of up to a minute for each error of any of them, and then a controller of six watches is blind for minutes.
//! Errors therefore end here, counted and logged, and no controller sees one.

use crate::runtime::clock::jitter;
use crate::runtime::controller::Kind;
use crate::runtime::error::chain;
use crate::runtime::metrics::Metrics;
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, Stream, StreamExt};
use kube::runtime::reflector::Store;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use std::sync::Arc;
use std::time::Duration;

/// Wait after the first error; doubled for each further one.
const FIRST: Duration = Duration::from_millis(500);
/// Longest wait between two tries. A few hundred agents that have lost their hub ask it a few dozen times a second.
const MAX: Duration = Duration::from_secs(5);

/// The wait after errors of one watch; from the start again after a success.
#[derive(Default)]
struct Patience(u32);

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = FIRST.saturating_mul(2u32.saturating_pow(self.0.min(16))).min(MAX);
        self.0 = self.0.saturating_add(1);
        Some(jitter(wait, 0.2))
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// The events and errors of a watch, without the field managers, which nobody reads.
pub fn watch<K: Kind>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send {
    watcher(api, config)
        .backoff(Patience::default())
        .modify(|object| object.managed_fields_mut().clear())
}

/// True once a cache is filled, false if it never will be. Any number may wait for it: of several that wait for the store
/// itself only one is ever woken.
pub fn filled<K: Kind>(cache: &Store<K>) -> Shared<BoxFuture<'static, bool>> {
    let cache = cache.clone();
    async move { cache.wait_until_ready().await.is_ok() }.boxed().shared()
}

/// What a stream brings but for its errors, which are counted for `kind` and logged.
pub fn news<T: Send + 'static>(
    stream: impl Stream<Item = watcher::Result<T>> + Send + 'static,
    kind: &'static str,
    metrics: &Arc<Metrics>,
) -> impl Stream<Item = watcher::Result<T>> + Send + 'static {
    let metrics = metrics.clone();
    stream.filter(move |event| {
        if let Err(error) = event {
            metrics.watch_failed(kind);
            tracing::debug!(kind, error = chain(error), "watch error");
        }
        futures::future::ready(event.is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use k8s_openapi::api::core::v1::ConfigMap;

    use kube::runtime::Controller;
    use kube::runtime::controller::Action;
    use kube::runtime::reflector::{ObjectRef, store};
    use tokio::time::Instant;

    #[test]
    fn the_wait_doubles_to_its_bound_and_starts_again_after_a_success() {
        let mut patience = Patience::default();
        let waits: Vec<f64> = patience.by_ref().take(6).map(|d| d.as_secs_f64()).collect();
        for (wait, around) in waits.iter().zip([0.5, 1.0, 2.0, 4.0, 5.0, 5.0]) {
            assert!((0.8 * around..=1.2 * around).contains(wait), "{waits:?}");
        }
        patience.reset();
        assert!(patience.next().unwrap() <= Duration::from_millis(600));
    }

    /// Each waits in a task of its own, as reconciles do.
    #[tokio::test(start_paused = true)]
    async fn everyone_who_waits_for_a_cache_is_woken() {
        let (reader, mut writer) = store::<ConfigMap>();
        let filled = filled(&reader);
        let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(filled.clone())).collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        for event in [watcher::Event::Init, watcher::Event::InitDone] {
            writer.apply_watcher_event(&event);
        }
        for one in waiting {
            let woken = tokio::time::timeout(Duration::from_secs(1), one).await;
            assert!(woken.expect("nobody woke it").unwrap());
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("never")]
    struct Never;

    /// On a clock of its own: a watch fails twenty times in a row, another one speaks after a second.
    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_silences_no_other() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let mut object = ConfigMap::default();
        object.metadata.name = Some("a".into());
        object.metadata.namespace = Some("b".into());
        let (reader, mut writer) = store();
        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(object.clone()),
            watcher::Event::InitDone,
        ] {
            writer.apply_watcher_event(&event);
        }
        let errors = (0..20).map(|_| Err::<ConfigMap, _>(watcher::Error::NoResourceVersion));
        let failing = stream::iter(errors).chain(stream::pending());
        let speaking = stream::once(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(object)
        });
        let started = Instant::now();
        let controller = Controller::for_stream(stream::pending(), reader)
            .watches_stream(news(failing, "Failing", &metrics), |_| None::<ObjectRef<ConfigMap>>)
            .watches_stream(
                news(speaking.chain(stream::pending()), "Speaking", &metrics),
                |object| Some(ObjectRef::from_obj(&object)),
            )
            .run(
                |object: Arc<ConfigMap>, _| async move {
                    assert_eq!(object.name_any(), "a");
                    Ok::<_, Never>(Action::await_change())
                },
                |_, _, _| Action::await_change(),
                Arc::new(()),
            );
        let mut controller = std::pin::pin!(controller);
        controller.next().await.unwrap().unwrap();
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }
}

//! The node's own EdgeNode: its spec becomes orders, the states become one status. It is watched by name; that it cannot
//! be read, or is gone, is no order. Written is only what differs, and a version on its way is worth a write of its own
//! only if it takes long.

use super::runtime::{Models, Orders, Shared};
use fleetune_crds::conditions::{self, READY, Wanted};
use fleetune_crds::{EdgeNode, EdgeNodeStatus, ModelState, VersionState, names};
use futures::TryStreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Config};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Writes that come at once are one write.
const COALESCE: Duration = Duration::from_millis(100);
/// How long a version may be on its way before that is worth a write.
const ON_ITS_WAY: Duration = Duration::from_secs(3);
/// Longest time for one write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait between attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The EdgeNode as it was last seen.
#[derive(Clone, Debug, Default)]
struct Seen {
    generation: i64,
    /// The keys of its spec.
    keys: Vec<String>,
    status: EdgeNodeStatus,
}

/// Watches and writes until the process stops. Without a cluster it tries for ever: the node serves without.
pub async fn run<M: Models>(shared: Arc<Shared<M>>, node: String) {
    let mut stopping = shared.stopping.subscribe();
    let work = async {
        let client = connect().await;
        let api: Api<EdgeNode> = Api::all(client);
        let (sender, receiver) = watch::channel(None);
        tokio::join!(
            observe(&shared, api.clone(), &node, sender),
            write(&shared, api.clone(), &node, receiver)
        );
    };
    tokio::select! {
        () = work => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

async fn connect() -> Client {
    let mut wait = Duration::from_secs(1);
    loop {
        match client().await {
            Ok(client) => return client,
            Err(error) => tracing::warn!(%error, "no access to an API server: serving what the store has"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer().await?;
    // The loop that writes has a backoff of its own; the library's hidden retries would hold an old state for minutes.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

async fn observe<M: Models>(
    shared: &Arc<Shared<M>>,
    api: Api<EdgeNode>,
    node: &str,
    sender: watch::Sender<Option<Seen>>,
) {
    let config = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let stream = watcher::watcher(api, config).default_backoff();
    futures::pin_mut!(stream);
    let mut away = false;
    loop {
        match stream.try_next().await {
            Ok(Some(Event::Apply(edge_node) | Event::InitApply(edge_node))) => {
                if std::mem::take(&mut away) {
                    tracing::info!("the API server answers again");
                }
                take(shared, &edge_node, &sender);
            }
            // An EdgeNode that is gone leaves everything as it is; there is only nothing to write to.
            Ok(Some(Event::Delete(_))) => {
                tracing::warn!("the EdgeNode is gone: serving on");
                sender.send_replace(None);
            }
            Ok(Some(Event::Init | Event::InitDone)) => {}
            Ok(None) => return,
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(%error, "the API server does not answer: serving on");
                }
            }
        }
    }
}

fn take<M: Models>(shared: &Arc<Shared<M>>, edge_node: &EdgeNode, sender: &watch::Sender<Option<Seen>>) {
    let orders = Orders {
        models: edge_node.spec.models.clone(),
        class: Some(edge_node.spec.class.clone()),
    };
    shared.orders.send_if_modified(|old| {
        // A key that is gone from the spec is no order: the last one stays.
        let mut next = orders.clone();
        for (key, order) in &old.models {
            next.models.entry(key.clone()).or_insert_with(|| order.clone());
        }
        let changed = *old != next;
        *old = next;
        changed
    });
    sender.send_replace(Some(Seen {
        generation: edge_node.metadata.generation.unwrap_or_default(),
        keys: edge_node.spec.models.keys().cloned().collect(),
        status: edge_node.status.clone().unwrap_or_default(),
    }));
}

async fn write<M: Models>(
    shared: &Arc<Shared<M>>,
    api: Api<EdgeNode>,
    node: &str,
    mut seen: watch::Receiver<Option<Seen>>,
) {
    let mut states = shared.states.subscribe();
    let mut ready = shared.ready.subscribe();
    let mut locked = shared.locked.subscribe();
    if locked.wait_for(|locked| *locked).await.is_err() {
        return;
    }
    // What was written last: newer than what the watch has seen so far.
    let mut written: Option<EdgeNodeStatus> = None;
    let mut pending_since: Option<tokio::time::Instant> = None;
    let mut wait = Duration::from_secs(1);
    loop {
        let target = seen.borrow_and_update().clone();
        let next = target.as_ref().map(|target| {
            let old = written.as_ref().unwrap_or(&target.status);
            let next = wanted(
                old,
                target,
                &states.borrow_and_update(),
                *ready.borrow_and_update(),
                &shared.build,
                Timestamp::now(),
            );
            (next != *old, can_wait(old, &next), next)
        });
        match next {
            Some((true, true, _)) if pending_since.is_none_or(|since| since.elapsed() < ON_ITS_WAY) => {
                let since = *pending_since.get_or_insert_with(tokio::time::Instant::now);
                tokio::select! {
                    () = tokio::time::sleep_until(since + ON_ITS_WAY) => {}
                    () = changed(&mut seen, &mut states, &mut ready) => {}
                }
                continue;
            }
            Some((true, _, next)) => {
                let body = serde_json::json!({
                    "apiVersion": "fleetune.dev/v1alpha1",
                    "kind": "EdgeNode",
                    "metadata": { "name": node },
                    "status": next,
                });
                let params = PatchParams::apply(names::MANAGER_NODE).force();
                let patch = Patch::Apply(&body);
                match tokio::time::timeout(WRITE_TIMEOUT, api.patch_status(node, &params, &patch)).await {
                    Ok(Ok(_)) => {
                        shared.metrics.status_writes.inc();
                        written = Some(next);
                        pending_since = None;
                        wait = Duration::from_secs(1);
                        tokio::time::sleep(COALESCE).await;
                    }
                    failed => {
                        if let Ok(Err(error)) = failed {
                            tracing::warn!(%error, "the status cannot be written: trying again");
                        } else {
                            tracing::warn!("the status cannot be written in time: trying again");
                        }
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(LONGEST_WAIT);
                    }
                }
                continue;
            }
            _ => {}
        }
        pending_since = None;
        if target.is_none() {
            // A new EdgeNode has a status of its own.
            written = None;
        }
        changed(&mut seen, &mut states, &mut ready).await;
        tokio::time::sleep(COALESCE).await;
    }
}

async fn changed(
    seen: &mut watch::Receiver<Option<Seen>>,
    states: &mut watch::Receiver<BTreeMap<String, ModelState>>,
    ready: &mut watch::Receiver<bool>,
) {
    // The senders live as long as the runtime.
    tokio::select! {
        _ = seen.changed() => {}
        _ = states.changed() => {}
        _ = ready.changed() => {}
    }
}

/// The status that the node should have.
fn wanted(
    old: &EdgeNodeStatus,
    seen: &Seen,
    states: &BTreeMap<String, ModelState>,
    ready: bool,
    build: &str,
    now: Timestamp,
) -> EdgeNodeStatus {
    // A model that was removed is worth a word only while somebody asks.
    let models: BTreeMap<String, ModelState> = states
        .iter()
        .filter(|(key, state)| seen.keys.contains(key) || state.state != VersionState::Removed)
        .map(|(key, state)| (key.clone(), state.clone()))
        .collect();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let wanted = if ready {
        Wanted::new(READY, Some(true), "Serving", "every active version serves")
    } else {
        Wanted::new(
            READY,
            Some(false),
            "NotServing",
            "an active version is not loaded, or has not passed its self-test under this build",
        )
    };
    EdgeNodeStatus {
        observed_generation: Some(seen.generation),
        build: build.to_owned(),
        models,
        conditions: conditions::replace(&old.conditions, &[wanted], seen.generation, now),
    }
}

/// Whether a write can wait: nothing differs but versions on their way, and the generation that is looked at.
fn can_wait(old: &EdgeNodeStatus, next: &EdgeNodeStatus) -> bool {
    let firm = |status: &EdgeNodeStatus| {
        let mut status = status.clone();
        status.observed_generation = None;
        for condition in &mut status.conditions {
            condition.observed_generation = None;
        }
        for state in status.models.values_mut() {
            state.epoch = 0;
            state.message.clear();
        }
        status
    };
    let (mut before, mut after) = (firm(old), firm(next));
    after.models.retain(|key, state| {
        let on_its_way = matches!(
            state.state,
            VersionState::Staging | VersionState::Staged | VersionState::Idle
        ) && state.reason.is_empty()
            && state.digest.is_some();
        let same_serves = before.models.get(key).map(|old| &old.active) == Some(&state.active)
            || (!before.models.contains_key(key) && state.active.is_none());
        if on_its_way && same_serves {
            before.models.remove(key);
            return false;
        }
        true
    });
    before == after
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetune_crds::common::Digest;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn state(state: VersionState, active: Option<&[u8]>) -> ModelState {
        ModelState {
            epoch: 1,
            digest: Some(Digest::of(b"new")),
            state,
            reason: String::new(),
            message: String::new(),
            since: Time(at(1)),
            active: active.map(Digest::of),
        }
    }

    fn status(generation: i64, states: &[ModelState], old: &EdgeNodeStatus) -> EdgeNodeStatus {
        let seen = Seen {
            generation,
            keys: vec!["shop/shirts".into()],
            status: EdgeNodeStatus::default(),
        };
        let states = states
            .iter()
            .map(|state| ("shop/shirts".to_owned(), state.clone()))
            .collect();
        wanted(old, &seen, &states, true, "0.1.0", at(100 + generation))
    }

    #[test]
    fn nothing_changes_nothing_is_written() {
        let first = status(
            1,
            &[state(VersionState::Active, Some(b"new"))],
            &EdgeNodeStatus::default(),
        );
        let mut second = status(1, &[state(VersionState::Active, Some(b"new"))], &first);
        assert_eq!(first, second);
        // Through the API server and back.
        second = serde_json::from_str(&serde_json::to_string(&second).unwrap()).unwrap();
        assert_eq!(first, second);
    }

    #[test]
    fn only_what_matters_is_written_at_once() {
        use VersionState as V;
        let before = status(1, &[state(V::Proven, Some(b"old"))], &EdgeNodeStatus::default());
        let cases = [
            ("staging", V::Staging, Some(b"old".as_slice()), true),
            ("staged", V::Staged, Some(b"old"), true),
            ("active", V::Active, Some(b"new"), false),
            ("failed", V::Failed, Some(b"old"), false),
            ("unloaded meanwhile", V::Staging, None, false),
        ];
        for (name, version, active, waits) in cases {
            let next = status(2, &[state(version, active)], &before);
            assert_ne!(before, next, "{name}");
            assert_eq!(can_wait(&before, &next), waits, "{name}");
        }
        let mut troubled = state(V::Staging, Some(b"old"));
        troubled.reason = "RegistryUnreachable".into();
        assert!(!can_wait(&before, &status(2, &[troubled], &before)));
        assert!(
            can_wait(&before, &status(2, &[state(V::Proven, Some(b"old"))], &before)),
            "the generation alone"
        );
        let first = status(1, &[state(V::Staging, None)], &EdgeNodeStatus::default());
        assert!(
            !can_wait(&EdgeNodeStatus::default(), &first),
            "the first status has the build and Ready"
        );
    }

    #[test]
    fn a_removed_model_is_named_while_somebody_asks() {
        let mut seen = Seen {
            generation: 1,
            keys: vec!["shop/shirts".into()],
            status: EdgeNodeStatus::default(),
        };
        let states = BTreeMap::from([("shop/shirts".to_owned(), state(VersionState::Removed, None))]);
        let old = EdgeNodeStatus::default();
        assert_eq!(wanted(&old, &seen, &states, true, "b", at(1)).models.len(), 1);
        seen.keys.clear();
        assert_eq!(wanted(&old, &seen, &states, true, "b", at(1)).models.len(), 0);
    }
}

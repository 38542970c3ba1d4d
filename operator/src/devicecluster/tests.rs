//! Tests of the controller: judging heartbeats by table, and the whole loop over an API server in memory.

use super::observe::{Beat, Beats, Home, Observed, SeenSecret};
use super::plan::{Stage, Step, plan};
use super::validate::validate;
use super::{State, reconcile};
use crate::config::HubConfig;
use crate::runtime::Context;
use crate::runtime::clock::whole_seconds;
use crate::testing::builders::{TestClock, context, hub_config};
use crate::testing::mock_api::MockApi;
use base64::Engine as _;
use fleetune_crds::conditions::{READY, STALLED, get};
use fleetune_crds::{DeviceCluster, DeviceClusterStatus};
use futures::FutureExt;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const CLUSTER: &str = "/apis/fleetune.dev/v1alpha1/deviceclusters/berlin";
const NAMESPACE: &str = "/api/v1/namespaces/fleetune-dc-berlin";
const SECRET: &str = "/api/v1/namespaces/fleetune-dc-berlin/secrets/fleetune-edge";
const ACCOUNT: &str = "/api/v1/namespaces/fleetune-dc-berlin/serviceaccounts/fleetune-edge";
const BINDING: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/fleetune-dc-berlin/rolebindings/fleetune-edge";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/fleetune-dc-berlin/leases/fleetune-heartbeat";

/// What a new leader has in memory.
fn fresh_state(api: &MockApi) -> State {
    let api = api.clone();
    let heartbeat = move |_: &str| {
        let lease = api
            .get(LEASE)
            .map(|lease| Arc::new(serde_json::from_value(lease).unwrap()));
        futures::future::ready(lease).boxed()
    };
    State::new(Duration::from_mins(15), Box::new(heartbeat))
}

struct Lab {
    api: MockApi,
    clock: TestClock,
    ctx: Context<HubConfig>,
    state: State,
}

impl Lab {
    fn new(mode: &str) -> Self {
        let (api, clock) = (MockApi::default(), TestClock::default());
        let ctx = context(&api, &clock, hub_config());
        let mut spec = json!({ "mode": mode });
        if mode == "Push" {
            spec["kubeconfigSecret"] = json!("berlin");
        }
        api.put(
            CLUSTER,
            json!({ "apiVersion": "fleetune.dev/v1alpha1", "kind": "DeviceCluster", "metadata": { "name": "berlin" }, "spec": spec }),
        );
        clock.advance(1_000_000);
        let state = fresh_state(&api);
        Self { api, clock, ctx, state }
    }

    fn cluster(&self) -> Option<DeviceCluster> {
        self.api
            .get(CLUSTER)
            .map(|value| serde_json::from_value(value).unwrap())
    }

    async fn pass(&self) {
        let Some(cluster) = self.cluster() else { return };
        reconcile(&cluster, &self.ctx, &self.state).await.unwrap();
    }

    fn ready(&self) -> String {
        let status = self.cluster().unwrap().status.unwrap();
        get(&status.conditions, READY).unwrap().reason.clone()
    }

    fn beat(&self, second: u32) {
        self.api.change(LEASE, |lease| {
            lease["spec"]["renewTime"] = json!(format!("2026-01-01T00:00:{second:02}.000000Z"));
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_pull_cluster_gets_a_home_and_an_account_and_then_silence() {
    let lab = Lab::new("Pull");
    lab.pass().await;
    assert_eq!(lab.ready(), "AwaitingHeartbeat");
    let secret = lab.api.get(SECRET).unwrap();
    let kubeconfig = base64::engine::general_purpose::STANDARD
        .decode(secret["data"]["kubeconfig"].as_str().unwrap())
        .unwrap();
    let kubeconfig: Value = serde_json::from_slice(&kubeconfig).unwrap();
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["server"], "https://hub.test:6443");
    assert_eq!(kubeconfig["contexts"][0]["context"]["namespace"], "fleetune-dc-berlin");
    assert_eq!(
        lab.api.get(BINDING).unwrap()["roleRef"]["name"],
        json!("fleetune-edge-hub")
    );
    lab.pass().await;
    lab.api.clear_writes();
    for second in 1..10 {
        lab.beat(second);
        lab.pass().await;
        tokio::time::advance(Duration::from_mins(1)).await;
    }
    let writes: Vec<String> = lab.api.writes().into_iter().map(|w| w.path).collect();
    let events = writes.iter().filter(|path| path.contains("/events")).count();
    assert_eq!(events, 1, "{writes:?}");
    assert_eq!(
        writes.len() - events,
        1,
        "one write for Reachable, none for further beats: {writes:?}"
    );
    assert_eq!(lab.ready(), "Reachable");
    tokio::time::advance(Duration::from_mins(5)).await;
    lab.pass().await;
    assert_eq!(lab.ready(), "Unreachable");
    lab.beat(30);
    lab.pass().await;
    assert_eq!(lab.ready(), "Reachable");
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_judges_nobody_before_a_period_of_its_own() {
    let lab = Lab::new("Pull");
    lab.pass().await;
    lab.beat(1);
    lab.pass().await;
    assert_eq!(lab.ready(), "Reachable");
    let next = Lab {
        state: fresh_state(&lab.api),
        ..lab
    };
    tokio::time::advance(Duration::from_hours(1)).await;
    next.pass().await;
    assert_eq!(next.ready(), "Reachable", "an old beat is no news to a new leader");
    tokio::time::advance(Duration::from_secs(299)).await;
    next.pass().await;
    assert_eq!(next.ready(), "Reachable");
    tokio::time::advance(Duration::from_secs(1)).await;
    next.pass().await;
    assert_eq!(next.ready(), "Unreachable");
}

#[tokio::test(start_paused = true)]
async fn a_namespace_of_someone_else_is_refused() {
    let lab = Lab::new("Pull");
    lab.api
        .put(NAMESPACE, json!({ "metadata": { "name": "fleetune-dc-berlin" } }));
    lab.pass().await;
    assert_eq!(lab.ready(), "NamespaceTaken");
    let status = lab.cluster().unwrap().status.unwrap();
    assert!(get(&status.conditions, STALLED).is_some());
    assert_eq!(lab.api.get(ACCOUNT), None);
    assert_eq!(lab.api.get(LEASE), None);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_renewed_at_a_third_of_their_life() {
    let lab = Lab::new("Pull");
    lab.pass().await;
    lab.pass().await;
    let first = lab.api.get(SECRET).unwrap();
    let expires: Timestamp = first["metadata"]["annotations"]["fleetune.dev/token-expires-at"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let life = expires.as_second() - lab.clock.now().as_second();
    lab.clock.advance(life / 3 - 10);
    lab.pass().await;
    assert_eq!(lab.api.get(SECRET).unwrap(), first);
    lab.clock.advance(20);
    lab.pass().await;
    let second = lab.api.get(SECRET).unwrap();
    assert_ne!(second["data"], first["data"]);
    let status = lab.cluster().unwrap().status.unwrap();
    assert_eq!(status.token_issued_at.unwrap().0, whole_seconds(lab.clock.now()));
}

#[tokio::test(start_paused = true)]
async fn deregistering_revokes_and_keeps_the_rest() {
    let lab = Lab::new("Pull");
    lab.pass().await;
    let placement = "/apis/fleetune.dev/v1alpha1/namespaces/fleetune-dc-berlin/modelplacements/shop.shirts";
    lab.api.put(placement, json!({ "metadata": { "name": "shop.shirts" } }));
    lab.api.delete(CLUSTER);
    assert!(lab.cluster().is_some(), "the finalizer holds it");
    lab.pass().await;
    assert!(lab.cluster().is_none());
    for gone in [SECRET, ACCOUNT, BINDING] {
        assert_eq!(lab.api.get(gone), None, "{gone}");
    }
    for kept in [NAMESPACE, LEASE, placement] {
        assert!(lab.api.get(kept).is_some(), "{kept}");
    }
}

#[tokio::test(start_paused = true)]
async fn push_needs_no_account_and_a_change_to_push_revokes_it() {
    let lab = Lab::new("Push");
    lab.pass().await;
    assert!(lab.api.get(LEASE).is_some());
    assert_eq!(lab.api.get(ACCOUNT), None);
    let lab = Lab::new("Pull");
    lab.pass().await;
    lab.api.change(CLUSTER, |cluster| {
        cluster["spec"] = json!({ "mode": "Push", "kubeconfigSecret": "berlin" });
        cluster["metadata"]["generation"] = json!(2);
    });
    lab.pass().await;
    assert_eq!(lab.api.get(ACCOUNT), None);
    assert_eq!(lab.cluster().unwrap().status.unwrap().token_issued_at, None);
}

#[tokio::test(start_paused = true)]
async fn a_kubeconfig_that_cannot_be_used_is_told_until_it_can() {
    let lab = Lab::new("Push");
    let put = |user: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://10.0.0.1:6443'}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
        );
        let data = json!({ "kubeconfig": base64::engine::general_purpose::STANDARD.encode(text) });
        lab.api.put(
            "/api/v1/namespaces/fleetune-system/secrets/berlin",
            json!({ "data": data }),
        );
    };
    lab.pass().await;
    assert_eq!(lab.ready(), "KubeconfigMissing");
    for (user, reason, word) in [
        (
            "exec: {apiVersion: client.authentication.k8s.io/v1, command: sh}",
            "KubeconfigRefused",
            "an exec plugin",
        ),
        (
            "auth-provider: {name: gcp, config: {}}",
            "KubeconfigRefused",
            "an auth provider",
        ),
        ("tokenFile: /etc/passwd", "KubeconfigRefused", "a token file"),
        ("token: [", "KubeconfigInvalid", "cannot be read"),
    ] {
        put(user);
        lab.pass().await;
        let conditions = lab.cluster().unwrap().status.unwrap().conditions;
        for type_ in [READY, STALLED] {
            let condition = get(&conditions, type_).unwrap();
            assert_eq!(condition.reason, reason, "{type_} with {user}");
            let message = &condition.message;
            assert!(
                message.contains(word) && message.contains("fleetune-system/berlin"),
                "{message}"
            );
        }
    }
    let events = lab
        .api
        .writes()
        .into_iter()
        .filter(|w| w.path.contains("/events"))
        .count();
    assert_eq!(events, 3, "Missing, Refused, Invalid: one for each change of reason");
    put("token: t");
    lab.pass().await;
    assert_eq!(lab.ready(), "AwaitingHeartbeat");
    assert!(get(&lab.cluster().unwrap().status.unwrap().conditions, STALLED).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_crash_after_any_write_changes_nothing_but_time() {
    let calm = Lab::new("Pull");
    calm.pass().await;
    let all = calm.api.writes().len() as u32;
    assert!(all >= 7, "{all}");
    for n in 1..=all {
        let lab = Lab::new("Pull");
        lab.api.crash_after(n);
        let _ = reconcile(&lab.cluster().unwrap(), &lab.ctx, &lab.state).await;
        lab.api.heal();
        lab.pass().await;
        lab.pass().await;
        assert_eq!(lab.ready(), "AwaitingHeartbeat", "after write {n}");
        for made in [NAMESPACE, LEASE, ACCOUNT, BINDING, SECRET] {
            assert!(lab.api.get(made).is_some(), "{made} after write {n}");
        }
        lab.api.clear_writes();
        lab.pass().await;
        assert_eq!(lab.api.writes(), [], "after write {n}");
    }
}

#[test]
fn beats_are_judged_by_our_own_clock() {
    let beats = Beats::default();
    let t0 = Instant::now();
    let at = |secs| t0 + Duration::from_secs(secs);
    let since = Duration::from_secs;
    assert_eq!(beats.note("a", Some("1"), at(0)), Beat::Still { since: since(0) });
    assert_eq!(beats.note("a", Some("1"), at(10)), Beat::Still { since: since(10) });
    assert_eq!(
        beats.note("a", Some("0"), at(20)),
        Beat::Moved { since: since(0) },
        "even backwards"
    );
    assert_eq!(beats.note("a", Some("0"), at(25)), Beat::Moved { since: since(5) });
    assert_eq!(beats.note("b", None, at(0)), Beat::Never);
    assert_eq!(beats.note("b", Some("1"), at(5)), Beat::Moved { since: since(0) });
}

#[test]
fn plans_by_table() {
    let cluster: DeviceCluster = serde_json::from_value(json!({
        "apiVersion": "fleetune.dev/v1alpha1", "kind": "DeviceCluster", "metadata": { "name": "berlin" },
        "spec": { "mode": "Pull" },
    }))
    .unwrap();
    let want = validate(&cluster, &hub_config(), "fleetune-system").unwrap();
    let now = Timestamp::from_second(1000).unwrap();
    let whole = Observed {
        finalizer: true,
        home: Home::Ours,
        heartbeat: true,
        account: true,
        binding: true,
        secret: Some(SeenSecret {
            hash: want.hub.clone().unwrap().hash(),
            issued_at: Some(now),
            expires_at: Timestamp::from_second(4000).ok(),
        }),
        beat: Beat::Never,
        ..Observed::default()
    };
    let steps = |seen: &Observed| plan(&want, seen, &DeviceClusterStatus::default(), now).steps;
    assert_eq!(steps(&whole), []);
    let lacking = |change: fn(&mut Observed)| {
        let mut seen = whole.clone();
        change(&mut seen);
        steps(&seen)
    };
    assert_eq!(lacking(|s| s.binding = false), [Step::EnsureBinding]);
    assert_eq!(lacking(|s| s.account = false), [Step::EnsureAccount, Step::IssueToken]);
    assert_eq!(lacking(|s| s.secret = None), [Step::IssueToken]);
    assert_eq!(
        lacking(|s| s.secret.as_mut().unwrap().hash = "old".into()),
        [Step::IssueToken],
        "the hub moved"
    );
    assert_eq!(lacking(|s| s.home = Home::Going), []);
    let mut config = hub_config();
    config.hub.url = None;
    let refused = super::plan::refused(&validate(&cluster, &config, "fleetune-system").unwrap_err());
    assert!(matches!(
        refused.stage,
        Stage::Stalled {
            reason: "HubUrlMissing",
            ..
        }
    ));
}

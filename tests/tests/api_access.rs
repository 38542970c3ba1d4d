//! What lies outside the access table is refused, by a real API server with the charts' RBAC: every component, every
//! verb, every namespace, on everything that the table names; and nothing that it does not name is granted to anybody.

use anyhow::Result;
use fleetune_crds::access::{Actor, GRANTS, Scope};
use fleetune_crds::names;
use fleetune_operator::devicecluster::build;
use fleetune_tests::api::helm::{acting, groups, install, ready};
use fleetune_tests::api::{HOME, code, logs, make};
use fleetune_tests::lab::ApiServer;
use futures::StreamExt;
use k8s_openapi::api::authorization::v1::{ResourceRule, SelfSubjectRulesReview, SubjectAccessReview};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchParams,
};
use kube::core::GroupVersionKind;
use serde_json::json;
use std::collections::BTreeSet;

/// Requests under way at the same time.
const PARALLEL: usize = 16;
const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// What Kubernetes lets everybody ask about themselves.
const EVERYBODY: [(&str, &str); 3] = [
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
];

/// One component, as the API server knows it.
struct Who {
    called: &'static str,
    namespace: &'static str,
    account: &'static str,
    actors: &'static [Actor],
}

/// The components of an installation in which the edge chart is in mode Pull, or in mode Push.
fn components(pull: bool) -> Vec<Who> {
    let who = |called, namespace, account, actors| Who {
        called,
        namespace,
        account,
        actors,
    };
    let edge: &[Actor] = if pull {
        &[Actor::Edge, Actor::PullEdge]
    } else {
        &[Actor::Edge]
    };
    vec![
        who("hub", HOME, "fleetune-hub", &[Actor::Hub]),
        who(
            "agent of a, on the hub",
            "fleetune-dc-a",
            names::EDGE_ACCOUNT,
            &[Actor::EdgeOnHub],
        ),
        who("edge controller", HOME, "fleetune-edge", edge),
        who("node runtime", names::NODE_NAMESPACE, "fleetune-node", &[Actor::Node]),
        who("worker pod", "shop", "default", &[]),
        who("publish pod", HOME, "default", &[]),
    ]
}

/// Where a question is asked: the whole cluster, and every namespace that a grant or a person could mean.
const PLACES: [&str; 6] = [
    "",
    HOME,
    names::NODE_NAMESPACE,
    "fleetune-dc-a",
    "fleetune-dc-b",
    "shop",
];

impl Who {
    /// What the table says.
    fn may(&self, place: &str, group: &str, resource: &str, name: &str, verb: &str) -> bool {
        GRANTS.iter().any(|grant| {
            let there = match grant.scope {
                Scope::Cluster => true,
                Scope::Operator => place == HOME,
                Scope::NodeRuntime => place == names::NODE_NAMESPACE,
                Scope::DeviceCluster => place == self.namespace,
            };
            self.actors.contains(&grant.actor)
                && there
                && (grant.group, grant.resource) == (group, resource)
                && (grant.names.is_empty() || grant.names.contains(&name))
                && grant.verbs.contains(&verb)
        })
    }

    /// Whether a rule that the server knows of gives nothing beyond the table.
    fn covers(&self, place: &str, rule: &ResourceRule) -> bool {
        let groups = rule.api_groups.iter().flatten();
        let all = groups.flat_map(|group| rule.resources.iter().flatten().map(move |resource| (group, resource)));
        let none = [String::new()];
        let named = rule
            .resource_names
            .as_deref()
            .filter(|names| !names.is_empty())
            .unwrap_or(&none);
        all.into_iter().all(|(group, resource)| {
            let own = EVERYBODY.contains(&(group, resource)) && rule.verbs == ["create"];
            own || named.iter().all(|name| {
                rule.verbs
                    .iter()
                    .all(|verb| self.may(place, group, resource, name, verb))
            })
        })
    }
}

/// One question.
#[derive(Clone)]
struct Question {
    place: &'static str,
    group: &'static str,
    resource: &'static str,
    name: &'static str,
    verb: &'static str,
}

/// Everything that the table names, with every verb, everywhere, by every name that it knows and by one that it does not.
fn questions() -> Vec<Question> {
    let mut all = Vec::new();
    let resources: BTreeSet<_> = GRANTS.iter().map(|g| (g.group, g.resource)).collect();
    for (group, resource) in resources {
        let of = GRANTS.iter().filter(|g| (g.group, g.resource) == (group, resource));
        let mut known: BTreeSet<&str> = of.flat_map(|g| g.names.iter().copied()).collect();
        known.extend(["", "other"]);
        for place in PLACES {
            for name in &known {
                all.extend(VERBS.map(|verb| Question {
                    place,
                    group,
                    resource,
                    name,
                    verb,
                }));
            }
        }
    }
    all
}

async fn allowed(reviews: &Api<SubjectAccessReview>, who: &Who, asked: &Question) -> Result<bool> {
    let (resource, subresource) = asked.resource.split_once('/').unwrap_or((asked.resource, ""));
    let review = serde_json::from_value(json!({ "spec": {
        "user": format!("system:serviceaccount:{}:{}", who.namespace, who.account),
        "groups": groups(who.namespace),
        "resourceAttributes": {
            "namespace": asked.place, "group": asked.group, "resource": resource, "subresource": subresource,
            "name": asked.name, "verb": asked.verb,
        },
    } }))?;
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_outside_the_table_is_refused() -> Result<()> {
    logs();
    if !ready()? {
        return Ok(());
    }
    let server = ApiServer::start().await?;
    let kubeconfig = server.kubeconfig_path()?;
    install(&kubeconfig, "fleetune", "replicas=1")?;
    install(&kubeconfig, "fleetune-edge", "cluster=a")?;
    let admin = server.client().await?;
    for namespace in ["fleetune-dc-a", "fleetune-dc-b", "shop"] {
        let namespace = json!({ "metadata": { "name": namespace } });
        make(&Api::<Namespace>::all(admin.clone()), namespace).await?;
    }
    // What the hub does when it registers a Pull cluster.
    let bindings: Api<RoleBinding> = Api::namespaced(admin.clone(), "fleetune-dc-a");
    bindings.create(&PostParams::default(), &build::binding("a")).await?;
    for who in components(true) {
        the_table_is_what_the_server_says(&server, &admin, &who).await?;
    }
    an_agent_in_the_namespace_of_another_cluster_is_refused(&server).await?;
    install(&kubeconfig, "fleetune-edge", "mode=Push")?;
    for who in components(false) {
        the_table_is_what_the_server_says(&server, &admin, &who).await?;
    }
    Ok(())
}

async fn the_table_is_what_the_server_says(server: &ApiServer, admin: &kube::Client, who: &Who) -> Result<()> {
    let reviews: Api<SubjectAccessReview> = Api::all(admin.clone());
    let answers = futures::stream::iter(questions())
        .map(|asked| {
            let reviews = &reviews;
            async move { (allowed(reviews, who, &asked).await, asked) }
        })
        .buffer_unordered(PARALLEL);
    let mut answers = std::pin::pin!(answers);
    let mut granted = 0;
    while let Some((answer, asked)) = answers.next().await {
        let Question {
            place,
            group,
            resource,
            name,
            verb,
        } = asked;
        let answer = answer?;
        let expected = who.may(place, group, resource, name, verb);
        assert_eq!(
            answer, expected,
            "{}: {verb} {group}/{resource} {name:?} in {place:?}",
            who.called
        );
        granted += usize::from(answer);
    }
    assert_eq!(granted == 0, who.actors.is_empty(), "{}", who.called);

    // And nothing else, whatever it is called.
    let own: Api<SelfSubjectRulesReview> = Api::all(acting(server, who.namespace, who.account, None).await?);
    for place in PLACES.into_iter().filter(|place| !place.is_empty()) {
        let review = serde_json::from_value(json!({ "spec": { "namespace": place } }))?;
        let status = own
            .create(&PostParams::default(), &review)
            .await?
            .status
            .unwrap_or_default();
        for rule in status.resource_rules {
            assert!(who.covers(place, &rule), "{} in {place}: {rule:?}", who.called);
        }
    }
    Ok(())
}

/// No reviews here, but the requests themselves.
async fn an_agent_in_the_namespace_of_another_cluster_is_refused(server: &ApiServer) -> Result<()> {
    let agent = acting(server, "fleetune-dc-a", names::EDGE_ACCOUNT, None).await?;
    for (group, version, kind, plural) in [
        (names::GROUP, "v1alpha1", "ModelPlacement", "modelplacements"),
        ("coordination.k8s.io", "v1", "Lease", "leases"),
        ("", "v1", "Secret", "secrets"),
        ("", "v1", "ConfigMap", "configmaps"),
    ] {
        let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        let there: Api<DynamicObject> = Api::namespaced_with(agent.clone(), "fleetune-dc-b", &kind);
        let name = names::LEASE_HEARTBEAT;
        let object = DynamicObject::new(name, &kind);
        let (list, patch) = (
            ListParams::default(),
            Patch::Merge(json!({ "metadata": { "labels": { "a": "b" } } })),
        );
        let (delete, params) = (DeleteParams::default(), PatchParams::default());
        let answers = [
            ("get", code(there.get(name).await)?),
            ("list", code(there.list(&list).await)?),
            (
                "watch",
                code(there.watch(&WatchParams::default(), "0").await.map(|_| ()))?,
            ),
            ("create", code(there.create(&PostParams::default(), &object).await)?),
            ("patch", code(there.patch(name, &params, &patch).await)?),
            (
                "patch of the status",
                code(there.patch_status(name, &params, &patch).await)?,
            ),
            ("delete", code(there.delete(name, &delete).await)?),
            ("deletecollection", code(there.delete_collection(&delete, &list).await)?),
        ];
        for (verb, code) in answers {
            assert_eq!(code, 403, "{verb} {plural}");
        }
    }
    Ok(())
}

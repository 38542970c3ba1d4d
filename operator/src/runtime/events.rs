//! Kubernetes events, on transitions only. An event that cannot be written is logged and forgotten: nothing depends on
//! events.

use fleetune_crds::conditions::cut;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};

/// Writes events as one controller; made once, so that the server can count repeats.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// A recorder for this component and pod.
    pub fn new(client: Client, component: &str, pod: &str) -> Self {
        Self(Recorder::new(
            client,
            Reporter {
                controller: component.to_owned(),
                instance: Some(pod.to_owned()),
            },
        ))
    }

    /// Something went as it should.
    pub async fn normal<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, action: &str, note: String) {
        self.publish(about, EventType::Normal, reason, action, note, None).await;
    }

    /// Something needs a look.
    pub async fn warning<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, action: &str, note: String) {
        self.publish(about, EventType::Warning, reason, action, note, None)
            .await;
    }

    /// Something needs a look because of another object. It is no repeat of what another object gave rise to.
    pub async fn warning_of<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        related: ObjectReference,
        reason: &str,
        action: &str,
        note: String,
    ) {
        self.publish(about, EventType::Warning, reason, action, note, Some(related))
            .await;
    }

    async fn publish<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        type_: EventType,
        reason: &str,
        action: &str,
        note: String,
        secondary: Option<ObjectReference>,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(cut(note)),
            action: action.to_owned(),
            secondary,
        };
        if let Err(error) = self.0.publish(&event, &about.object_ref(&())).await {
            tracing::debug!(%error, reason, name = about.name_any(), "event was not written");
        }
    }
}

//! How one node stands to one order: a pure reading of the EdgeNode's spec and status and of the node's reachability.

use super::observe::NodeView;
use fleetune_crds::common::Digest;
use fleetune_crds::{ModelOrder, ModelState, OrderState, Source, VersionState};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// Reason of a pick that was reachable and did not become active in time.
pub const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";

/// How a node stands to its order's version. The order of precedence: what the runtime has answered for good, then
/// whether the node can be reached, then the deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Told, reachable, no answer yet; counts as failed from then on.
    InFlight {
        /// When.
        deadline: Timestamp,
    },
    /// Serves it, in its soak.
    Active,
    /// Served it through its soak. Stays so while the node is dark.
    Proven,
    /// Touched and bad.
    Failed {
        /// A PascalCase word.
        reason: String,
        /// What, where and what to do.
        message: String,
    },
    /// Cannot take it; no fault of the version.
    Skipped,
    /// Not to be reached, or not answering; spends no failure budget.
    Unreachable,
}

/// Reads the standing of `order` on a node. `node` is `None` while the Node object is absent.
pub fn standing(order: &ModelOrder, state: Option<&ModelState>, node: Option<&NodeView>, now: Timestamp) -> Standing {
    let wanted = digest(order.source.as_ref());
    let answer = state.filter(|s| s.epoch >= order.epoch && s.digest.as_ref() == wanted);
    let reachable = node.filter(|n| n.is_reachable());
    if let Some(answer) = answer {
        match answer.state {
            VersionState::Proven => return Standing::Proven,
            VersionState::Skipped => return Standing::Skipped,
            VersionState::Failed => {
                return Standing::Failed {
                    reason: answer.reason.clone(),
                    message: answer.message.clone(),
                };
            }
            VersionState::Active if reachable.is_some() => return Standing::Active,
            // An order for no version is carried out once the runtime has taken it.
            VersionState::Idle if wanted.is_none() => return Standing::Proven,
            _ => {}
        }
    }
    let Some(node) = reachable else {
        return Standing::Unreachable;
    };
    // A node that was away gets its time from its return: it may have been in the middle of a download.
    let allowed = SignedDuration::try_from(order.progress_deadline.get()).unwrap_or(SignedDuration::MAX);
    let deadline = order
        .picked_at
        .0
        .max(node.reachable_since)
        .saturating_add(allowed)
        .unwrap_or(Timestamp::MAX);
    if now >= deadline {
        return Standing::Failed {
            reason: DEADLINE_EXCEEDED.to_owned(),
            message: format!(
                "the node is reachable and did not serve the version within {}; see its runtime's log",
                order.progress_deadline
            ),
        };
    }
    Standing::InFlight { deadline }
}

/// The digest of an optional source.
pub fn digest(source: Option<&Source>) -> Option<&Digest> {
    source.map(|s| &s.digest)
}

/// Whether an order serves (rather than removes) a version, and which.
pub fn serves(order: &ModelOrder) -> Option<&Digest> {
    match order.state {
        OrderState::Serve => digest(order.source.as_ref()),
        OrderState::Remove => None,
    }
}

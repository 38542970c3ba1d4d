//! Conditions after the kstatus rules: a summary (`Ready` or `Succeeded`) from the first pass on, `Reconciling` and
//! `Stalled` only while true, `observedGeneration` on each, and a transition time that moves only when `status` does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Summary of a bounded object (FineTuneJob).
pub const SUCCEEDED: &str = "Succeeded";
/// Summary of a long-lived object.
pub const READY: &str = "Ready";
/// Present, and true, only while a controller is working towards the spec.
pub const RECONCILING: &str = "Reconciling";
/// Present, and true, only while nothing will change without a person.
pub const STALLED: &str = "Stalled";

/// The longest message a condition or an event carries, in bytes.
pub const MAX_MESSAGE: usize = 1024;

/// What a controller wants a condition to say; time and generation are added by [`set`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The condition's type.
    pub type_: &'static str,
    /// `Some(true)` True, `Some(false)` False, `None` Unknown.
    pub status: Option<bool>,
    /// A PascalCase word; part of the API.
    pub reason: String,
    /// What, where and what to do, for people.
    pub message: String,
}

impl Wanted {
    /// A condition with this type, status, reason and message.
    pub fn new(type_: &'static str, status: Option<bool>, reason: &str, message: impl Into<String>) -> Self {
        Self {
            type_,
            status,
            reason: reason.to_owned(),
            message: cut(message.into()),
        }
    }
}

/// Adds `wanted` to `conditions` or changes the one of its type. The transition time moves only when `status` changes.
pub fn set(conditions: &mut Vec<Condition>, wanted: &Wanted, generation: i64, now: Timestamp) {
    let status = match wanted.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let mut next = Condition {
        type_: wanted.type_.to_owned(),
        status: status.to_owned(),
        reason: wanted.reason.clone(),
        message: wanted.message.clone(),
        observed_generation: Some(generation),
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|c| c.type_ == wanted.type_) {
        Some(old) => {
            if old.status == next.status {
                next.last_transition_time = old.last_transition_time.clone();
            }
            *old = next;
        }
        None => conditions.push(next),
    }
}

/// Replaces the whole list by `wanted`, in that order, keeping the transition times of conditions whose status stays.
pub fn replace(old: &[Condition], wanted: &[Wanted], generation: i64, now: Timestamp) -> Vec<Condition> {
    let mut next: Vec<Condition> = old
        .iter()
        .filter(|c| wanted.iter().any(|w| w.type_ == c.type_))
        .cloned()
        .collect();
    for want in wanted {
        set(&mut next, want, generation, now);
    }
    next.sort_by_key(|c| wanted.iter().position(|w| w.type_ == c.type_));
    next
}

/// Whether the condition of this type is True.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions.iter().any(|c| c.type_ == type_ && c.status == "True")
}

/// The condition of this type.
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Cuts a message to [`MAX_MESSAGE`] bytes at a character boundary.
pub fn cut(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE - 3)
            .rev()
            .find(|i| message.is_char_boundary(*i))
            .unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn time_moves_only_with_status() {
        let wanted = |status, reason| Wanted::new(READY, Some(status), reason, "m");
        let first = replace(&[], &[wanted(false, "Waiting")], 1, at(1));
        let second = replace(&first, &[wanted(false, "StillWaiting")], 2, at(2));
        assert_eq!(second[0].last_transition_time, Time(at(1)));
        assert_eq!(second[0].reason, "StillWaiting");
        assert_eq!(second[0].observed_generation, Some(2));
        let third = replace(&second, &[wanted(true, "Done")], 2, at(3));
        assert_eq!(third[0].last_transition_time, Time(at(3)));
    }

    #[test]
    fn what_is_not_wanted_goes() {
        let stalled = Wanted::new(STALLED, Some(true), "Bad", "m");
        let ready = Wanted::new(READY, Some(false), "Bad", "m");
        let first = replace(&[], &[ready.clone(), stalled], 1, at(1));
        assert_eq!(first.len(), 2);
        let second = replace(&first, &[ready], 1, at(1));
        assert_eq!(second.len(), 1);
        assert!(!is_true(&second, STALLED));
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let text = cut("ä".repeat(2000));
        assert!(text.len() <= MAX_MESSAGE && text.ends_with('…'));
    }
}

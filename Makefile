# What a person types. Everything is set up inside the checkout: a .venv, and target/.
#
#   make demo    28,000 airports on three nodes and on five that gossip: nodes killed, paused, wiped, and brought back; one
#                that joins and one that leaves
#   make test    all tests, Rust and Python
#   make sim     simulated clusters: SEEDS=200 NODES=5; make sim-bugs plants bugs and finds them
#   make bench   measures this machine and writes docs/benchmarks.md, about a quarter of an hour

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUST_SOURCES := $(shell find crates plugins python/src schema -name '*.rs' -o -name 'Cargo.toml' -not -path '*/target/*') Cargo.toml

SEEDS ?= 200
NODES ?= 5

.PHONY: demo test test-rust test-python sim sim-bugs bench transfer reliability profile lint words diagrams format schema clean

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

# Deterministic simulation: a seed that breaks a promise is named, and replayed with `quorate-sim show SEED`.
sim:
	cargo run --quiet --locked --package quorate-sim -- run --seeds $(SEEDS) --nodes $(NODES)

# Each planted bug must be found.
sim-bugs:
	cargo run --quiet --locked --package quorate-sim -- bugs --seeds 1000

bench: $(VENV)/.built
	cargo build --release --locked -p quorate-server -p quorate-example-fjall
	$(BIN)/python bench/run.py

# What docs/reliability.md has figures for, measured into it.
reliability: $(VENV)/.built
	$(BIN)/python bench/reliability.py

# What a change of layout moves, how fast, and what clients notice, into docs/benchmarks.md.
transfer: $(VENV)/.built
	$(BIN)/python bench/transfer.py

# Where the time goes, into the same page. Needs perf.
profile: $(VENV)/.built
	RUSTFLAGS="-C force-frame-pointers=yes" cargo build --profile profiling --locked -p quorate-server
	$(BIN)/python bench/profile.py

# What must hold before a change is proposed.
lint: $(VENV)/.built
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(BIN)/ruff check python/quorate tests demo bench
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
	$(BIN)/ruff check --fix --quiet python/quorate tests demo bench

# Regenerates the committed Cap'n Proto code. Needs the schema compiler (Debian: capnproto).
schema:
	cargo run --quiet --package quorate-schema-generator

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "maturin>=1.9,<2" "pytest>=8" airportsdata "mypy>=1.18" "ruff>=0.13"
	touch $@

# A release build of the node and the client, installed into .venv as `pip install .` would, but editable.
$(VENV)/.built: $(VENV)/.ready $(RUST_SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" VIRTUAL_ENV="$(abspath $(VENV))" $(BIN)/maturin develop --release --locked --quiet
	touch $@

clean:
	rm -rf $(VENV) target

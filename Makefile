# make demo       start a cell on this machine and mount it twice; make demo-stop ends it
# make test       everything that must hold: formatting, lints, all tests
# make soak       the long tests: random operations for SOAK_SECS (600) seconds, seeds printed
# make install    install what `cargo build --release --locked` has built; PREFIX, DESTDIR, SBINDIR
# make check      the quick part: formatting, lints, the repository's rules, dependencies

CARGO ?= cargo
PREFIX ?= /usr/local
# Where mount(8) looks for its helpers: no other place will do, whatever the prefix.
SBINDIR ?= /sbin
DFS_BIN_DIR ?= $(or $(CARGO_TARGET_DIR),target)/release
# What building and tests call, each with the Debian package that brings it.
TOOLS := cc:build-essential curl:curl fusermount3:fuse3 git:git jq:jq make:make mkfs.ext4:e2fsprogs mount:mount \
	openssl:openssl perl:perl pgbench:postgresql python3:python3-venv rsync:rsync script:bsdutils setfattr:attr \
	setpriv:util-linux sqlite3:sqlite3 systemd-analyze:systemd unshare:util-linux vim:vim
# Test suites of others, from crates.io.
TEST_CRATES := fsx@0.3.2 pjdfstest@0.2.2
TOOLS_DIR := $(or $(CARGO_TARGET_DIR),target)/tools

# One thing after the other, also under make -j: each step says what the next one needs.
.NOTPARALLEL:
.PHONY: demo demo-stop test soak check lint build install install-deps install-suites

demo:
	@examples/demo.sh start

demo-stop:
	@examples/demo.sh stop

test: install-deps install-suites lint build
	@.ci/run-tests

# The tests that `make test` leaves out say so by their names.
soak: install-deps install-suites build
	$(CARGO) test --locked --package dfs --test fuse -- --ignored --nocapture --test-threads 1 soak

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

install: bin := $(DESTDIR)$(PREFIX)/bin
install: units := $(DESTDIR)$(PREFIX)/lib/systemd/system
install: manuals := $(DESTDIR)$(PREFIX)/share/man
install: shells := $(DESTDIR)$(PREFIX)/share
install: samples := $(DESTDIR)$(PREFIX)/share/doc/dfs/examples
install:
	@for program in dfs dfs-server; do \
		test -x "$(DFS_BIN_DIR)/$$program" || { \
			echo "$(DFS_BIN_DIR)/$$program is missing: cargo build --release --locked" >&2; exit 1; \
		}; \
	done
	install -d "$(bin)" "$(units)" "$(samples)" "$(DESTDIR)$(SBINDIR)"
	install -m 755 "$(DFS_BIN_DIR)/dfs" "$(DFS_BIN_DIR)/dfs-server" "$(bin)"
	ln -sfn "$(PREFIX)/bin/dfs" "$(DESTDIR)$(SBINDIR)/mount.dfs"
	ln -sfn "$(PREFIX)/bin/dfs" "$(DESTDIR)$(SBINDIR)/mount.fuse.dfs"
	sed 's,/usr/local/bin/,$(PREFIX)/bin/,' examples/dfs-server.service \
		| install -m 644 /dev/stdin "$(units)/dfs-server.service"
	install -d "$(manuals)/man1" "$(manuals)/man8" "$(shells)/bash-completion/completions" \
		"$(shells)/zsh/site-functions" "$(shells)/fish/vendor_completions.d"
	"$(DFS_BIN_DIR)/dfs" man "$(manuals)/man1"
	mv "$(manuals)"/man1/*.8 "$(manuals)/man8"
	"$(DFS_BIN_DIR)/dfs" completions bash >"$(shells)/bash-completion/completions/dfs"
	"$(DFS_BIN_DIR)/dfs" completions zsh >"$(shells)/zsh/site-functions/_dfs"
	"$(DFS_BIN_DIR)/dfs" completions fish >"$(shells)/fish/vendor_completions.d/dfs.fish"
	install -m 644 examples/data.mount examples/data.automount examples/fstab.line "$(samples)"

install-deps:
	@.ci/install-packages $(TOOLS)
	@python3 -c 'import ensurepip' 2>/dev/null || .ci/install-packages ensurepip:python3-venv

install-suites:
	@CARGO="$(CARGO)" .ci/install-crates "$(TOOLS_DIR)" $(TEST_CRATES)
	@.ci/install-file "$(TOOLS_DIR)/bin" ping_pong:ctdb:usr/bin/ping_pong

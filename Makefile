# Everything that a fresh machine needs comes with the target that needs it. Start with: make demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
S3_PACKAGES := ceph-mon ceph-osd radosgw ceph-common
TEST_PACKAGES := fuse3 libfuse2 strace git iproute2 faketime openssl $(S3_PACKAGES)
GATEWAY ?= /tmp/vaultfs-gateway
GATEWAY_PORT ?= 7480
BENCH_PACKAGES := fuse3 libfuse2 git restic borgbackup squashfuse squashfs-tools erofs-utils erofsfuse
S3_BENCH_PACKAGES := fuse3 libfuse2 rclone s3fs $(S3_PACKAGES)

.PHONY: demo demo-s3 test check fast test-torch soak bench bench-s3 bench-quick gateway gateway-down clean help
.DEFAULT_GOAL := help

help: ## List the targets.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/installed-%: pyproject.toml tools/require
	tools/require python $(PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

demo: $(VENV)/installed-demo ## Commit, clean, mount and train on real images; then say who read what.
	tools/require fuse
	$(BIN)/python -m demo

demo-s3: $(VENV)/installed-demo,s3 ## The same with a bucket of a real S3 service (Ceph, started for it) and an empty node.
	tools/require packages $(S3_PACKAGES)
	tools/require fuse
	$(BIN)/python -m demo --s3

test: $(VENV)/installed-dev check ## All checks and all tests.
	tools/require packages $(TEST_PACKAGES)
	tools/require fuse
	$(BIN)/python -m pytest

gateway: $(VENV)/installed-s3 ## Start a real S3 service to try things with (Ceph, in memory), and print what to export.
	tools/require packages $(S3_PACKAGES)
	@$(BIN)/python -m vault.testing.ceph up $(GATEWAY) --port $(GATEWAY_PORT)

gateway-down: ## End it, with all that is in it.
	@$(BIN)/python -m vault.testing.ceph down $(GATEWAY)

check: $(VENV)/installed-dev ## Style, types and layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: $(VENV)/installed-dev ## The tests that need no mount and no patience.
	$(BIN)/python -m pytest -m 'not fuse and not slow'

test-torch: $(VENV)/installed-dev,torch ## A real training with PyTorch, killed, resumed, repeated, bundled (minutes).
	tools/require packages $(TEST_PACKAGES)
	tools/require fuse
	$(BIN)/python -m pytest tests/jobs

soak: $(VENV)/installed-dev ## Readers, faults and kill -9 at random for SECONDS (600), every byte compared.
	tools/require packages $(TEST_PACKAGES)
	tools/require fuse
	VAULTFS_SOAK_S=$(or $(SECONDS),600) $(BIN)/python -m pytest -s -m soak --timeout=0 -o faulthandler_timeout=0 tests/soak

bench: $(VENV)/installed-dev ## Vault beside its peers: writes docs/reference/performance.md (about an hour).
	tools/require packages $(BENCH_PACKAGES)
	$(BIN)/python -m bench --write docs/reference/performance.md

bench-s3: $(VENV)/installed-dev ## The same over S3: writes docs/reference/performance-s3.md (a quarter of an hour).
	tools/require packages $(S3_BENCH_PACKAGES)
	$(BIN)/python -m bench --suite s3 --write docs/reference/performance-s3.md

bench-quick: $(VENV)/installed-dev ## The same on small trees, to the terminal (minutes).
	tools/require packages $(BENCH_PACKAGES)
	$(BIN)/python -m bench --quick

clean: ## Remove what these targets have made.
	rm -rf $(VENV) .demo .bench .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

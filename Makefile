# Every daily act is one command; `make help` lists them. What is missing is installed first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BROWSER := $(VENV)/.browser
NETWORK := $(VENV)/.network
LIBVIRT := $(VENV)/.libvirt
BENCH := $(VENV)/.bench
QTEST := $(VENV)/.qtest
LIBVIRT_PROGRAMS := libvirtd=libvirt-daemon,libvirt-daemon-driver-qemu virsh=libvirt-clients

QTEST_PROGRAMS := gcc ninja=ninja-build pkg-config flex bison xz=xz-utils /usr/include/glib-2.0/glib.h=libglib2.0-dev \
	/usr/include/pixman-1/pixman.h=libpixman-1-dev /usr/include/gnutls/gnutls.h=libgnutls28-dev \
	/usr/include/libtasn1.h=libtasn1-6-dev /usr/include/zstd.h=libzstd-dev /usr/include/zlib.h=zlib1g-dev /usr/include/libfdt.h=libfdt-dev

.PHONY: help demo lab kvm matrix capabilities bench libvirt libvirt-kvm campaign soak qtest fuzz fuzz-guided model captures docs deb image release test check format clean system

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(READY) ## show the main job on real arm64 KVM: a guest that is refused moves; DEMO=tcg is quicker
	$(BIN)/python -m tests.lab.demo $(DEMO)

lab: $(READY) ## a shell in an emulated arm64 host with /dev/kvm; LAB="--suite bookworm --cpu cortex-a72" chooses
	$(BIN)/python -m tests.lab.shell $(LAB)

kvm: $(READY) ## all tests on real arm64 KVM; `make test` has half of them (40 minutes)
	$(BIN)/python -m pytest tests/kvm -m ""

matrix: $(READY) ## move guests between every two of 14 lab hosts, and compare with what was predicted (an hour; goes on where it was stopped; LAB="--survey" moves none)
	$(BIN)/python -m tests.lab.matrix $(LAB)

capabilities: $(READY) ## try every migration capability between real QEMUs (30 minutes); LAB="--again multifd" does a part
	$(BIN)/python -m tests.lab.capabilities $(LAB)

bench: $(BENCH) ## compare with socat and haproxy, and write docs/benchmarks.md (30 minutes); PARTS="migrations --rounds 3" is quicker
	$(BIN)/python -m benchmarks $(PARTS)

libvirt: $(LIBVIRT) ## virsh migrate through the proxy, between two libvirt daemons (2 minutes; installs libvirt)
	$(BIN)/python -m pytest tests/lab/libvirt_lab.py tests/live/libvirt_migrations.py

libvirt-kvm: $(READY) ## virsh migrate between two emulated arm64 hosts with KVM, through a transparent proxy (10 minutes)
	$(BIN)/python -m pytest tests/live/libvirt_kvm_migrations.py

campaign: $(READY) ## migrations with faults between real QEMUs, one guest left of each; COUNT=1000 CAMPAIGN="--seed 7" chooses
	$(BIN)/python -m tests.campaign --count $(or $(COUNT),50) $(CAMPAIGN)

soak: $(READY) ## two hours of migrations to and fro through one proxy, and what the proxy has meanwhile; SOAK="--minutes 5" is quicker
	$(BIN)/python -m tests.campaign.soak $(SOAK)

qtest: $(QTEST) ## QEMU's own migration-test through the proxy (builds QEMU, a quarter of an hour, then 20 minutes); QTEST_OPTIONS="--arch aarch64 --modes repair"
	$(BIN)/python -m tests.qtest $(QTEST_OPTIONS)

fuzz: $(READY) ## fuzz parser, judge, files and headers; SECONDS=3600 FUZZ="--seed 7 --only parser" chooses
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60) $(FUZZ)

fuzz-guided: $(READY) ## the same by coverage, with atheris, one target; SECONDS=600 TARGET=parser
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,fuzz]'
	$(BIN)/python -m tests.fuzz.guided --seconds $(or $(SECONDS),60) --target "$(or $(TARGET),parser)"

model: $(READY) ## walk through all orders of steps and faults of a migration, and print what is found (a second)
	$(BIN)/python -m tests.model

captures: $(READY) ## record captures/ anew, on the lab's hosts and on this machine (5 minutes)
	$(BIN)/python -m tests.lab.captures

docs: $(READY) ## the pages of docs/ as a site in build/site; a link that leads nowhere fails
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,docs]'
	$(BIN)/mkdocs build --quiet

deb: $(READY) ## Debian packages for bookworm and trixie in dist/, tried in a fresh root of each (root; 4 minutes)
	@sh tools/install-system-packages "$(PYTHON)" mmdebstrap dpkg-deb=dpkg
	$(BIN)/python -m tools.build_deb
	@for suite in bookworm:12 trixie:13; do \
		tools/try-deb "$${suite%:*}" dist/vmstate-proxy_*~deb"$${suite#*:}_$$(dpkg --print-architecture)".deb || exit; \
	done

image: $(READY) ## an OCI image of trixie with the Debian package, in dist/ (root; 2 minutes)
	@sh tools/install-system-packages "$(PYTHON)" mmdebstrap dpkg-deb=dpkg
	$(BIN)/python -m tools.build_image

release: $(READY) ## a release in dist/, a commit and a tag; VERSION=0.2.0 names it, nothing is pushed (5 minutes)
	@sh tools/install-system-packages "$(PYTHON)" dpkg-deb=dpkg
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,release]'
	$(BIN)/python -m tools.release $(VERSION)

test: check $(BROWSER) $(NETWORK) ## lint, types, unit tests, migrations between real QEMUs, and on real arm64 KVM
	$(BIN)/python -m pytest

check: $(READY) ## lint, types and the arrows between the floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY) ## put the code into the house's shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove what was installed into this folder
	rm -rf $(VENV) .import_linter_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

system: ## install what Debian or Ubuntu has to provide: Python's venv, and QEMU for arm64 and x86
	@sh tools/install-system-packages "$(PYTHON)"

$(READY): pyproject.toml tools/install-system-packages
	@sh tools/install-system-packages "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -m compileall -q proxy formats
	@touch $@

$(BROWSER): $(READY) tools/install-browser
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,browser]'
	@sh tools/install-browser "$(PYTHON)" $(BIN)
	@touch $@

$(NETWORK): $(READY) tools/install-system-packages
	@sh tools/install-system-packages "$(PYTHON)" nft=nftables ip=iproute2 promtool=prometheus systemd-analyze=systemd qemu-img=qemu-utils
	@touch $@

$(BENCH): $(READY) tools/install-system-packages
	@sh tools/install-system-packages "$(PYTHON)" socat=socat haproxy=haproxy
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
	@touch $@

$(QTEST): $(NETWORK)
	@sh tools/install-system-packages "$(PYTHON)" $(QTEST_PROGRAMS)
	@touch $@

$(LIBVIRT): $(NETWORK)
	@sh tools/install-system-packages "$(PYTHON)" $(LIBVIRT_PROGRAMS)
	@touch $@

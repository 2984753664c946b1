# make demo         a small environment, the demo data, every chapter offline, two at a time; ends with the path of one HTML report
# make test         the whole environment, then everything that must hold
# make environment  what the demo needs, and no more: for a cluster's login node
# make docs         the documentation site, in _docs/
# make executed     the chapters with the demo's figures, as a forge shows them (papers/executed, docs/pictures)
# make pretrained   train again the small models that travel with the package
# make clean        forget the environment and what was built; runs and the data cache stay
#
# A demo that was stopped, however rudely, goes on when it is called again; chapters whose code changed run anew.

SHELL  := /bin/bash
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

# One environment, two sets of extras: the demo needs the first, everything else all of them. Each has its stamp, which
# carries the hash of the files that list requirements; the larger set counts for the smaller one.
FEW  := chapters
ALL  := chapters,dev,docs,interop,bench
HASH := $(shell cat constraints.txt settings.ini setup.py pyproject.toml | sha256sum | cut -c1-12)
INSTALLED := $(VENV)/.installed-few-$(HASH)
COMPLETE  := $(VENV)/.installed-all-$(HASH)
FETCHED   := $(VENV)/.fetched-$(shell sha256sum data_manifests/demo.json | cut -c1-12)

SNAKEMAKE := $(BIN)/snakemake --snakefile papers/Snakefile --profile papers/profiles/local

# Two threads on two busy cores are slower than one; Numba's compiled functions outlive the process.
export OMP_NUM_THREADS ?= 1
export NUMBA_CACHE_DIR ?= $(CURDIR)/$(VENV)/numba

.PHONY: demo test environment docs executed pretrained clean
.NOTPARALLEL:

# After install and fetch nothing may need the network, so it is not asked for. What the engine says about itself is shown
# only if something failed; the chapters speak for themselves.
demo: $(FETCHED)
	@mkdir -p runs
	@SPECTRAL_OFFLINE=1 $(SNAKEMAKE) --jobs $(JOBS) 2> runs/demo.log || { tail -n 20 runs/demo.log >&2; exit 1; }
	@echo "report: $(CURDIR)/runs/report.html"

# Exported modules that lag behind their notebooks are found by tests/test_packaging.py.
test: $(COMPLETE) $(FETCHED)
	$(BIN)/ruff check spectral_core tests benchmarks papers docs
	$(BIN)/nbdev_test --n_workers 2
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

environment: $(FETCHED)

docs: $(COMPLETE) $(FETCHED)
	$(BIN)/python docs/build.py

executed: demo
	$(BIN)/python -m spectral_core.publishing runs/demo papers/executed docs/pictures

pretrained: $(FETCHED)
	$(BIN)/python -m spectral_core.shipping

clean:
	rm -rf $(VENV) _docs _proc .snakemake

install = test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[$(1)]'

$(COMPLETE):
	$(call install,$(ALL))
	rm -f $(VENV)/.installed-*
	touch $@ $(INSTALLED)

$(INSTALLED):
	$(call install,$(FEW))
	rm -f $(VENV)/.installed-*
	touch $@

$(FETCHED): $(INSTALLED)
	$(BIN)/spectral-core fetch demo
	rm -f $(VENV)/.fetched-*
	touch $@

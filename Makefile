# make demo         the environment, the demo data, every chapter offline; ends with the path of one HTML report
# make test         the environment, then everything that must hold
# make pretrained   train again the small models that travel with the package
# make clean        forget the environment; runs and the data cache stay

SHELL  := /bin/bash
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV   := .venv
BIN    := $(VENV)/bin
EXTRAS := chapters,dev

# The environment is made anew when, and only when, a file that lists requirements changes.
REQUIREMENTS := constraints.txt settings.ini setup.py pyproject.toml
INSTALLED    := $(VENV)/.installed-$(shell cat $(REQUIREMENTS) | sha256sum | cut -c1-12)
FETCHED      := $(VENV)/.fetched-$(shell sha256sum data_manifests/demo.json | cut -c1-12)

CHAPTERS := $(patsubst papers/%.ipynb,%,$(wildcard papers/[0-9]*.ipynb))
RUNS     := $(CHAPTERS:%=runs/demo/%)

# Two threads on two busy cores are slower than one; Numba's compiled functions outlive the process.
export OMP_NUM_THREADS ?= 1
export NUMBA_CACHE_DIR ?= $(CURDIR)/$(VENV)/numba

.PHONY: demo test pretrained clean $(RUNS)

demo: $(RUNS)
	@$(BIN)/spectral-core report --out runs/report.html $(RUNS)
	@echo "report: $(CURDIR)/runs/report.html"

# After install and fetch nothing may need the network, so it is not asked for.
$(RUNS): runs/demo/%: $(FETCHED)
	SPECTRAL_OFFLINE=1 $(BIN)/spectral-core run $(firstword $(subst _, ,$*)) --profile demo --out $@

# Exported modules that lag behind their notebooks are found by tests/test_packaging.py.
test: $(FETCHED)
	$(BIN)/ruff check spectral_core tests
	$(BIN)/nbdev_test --n_workers 2
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

pretrained: $(FETCHED)
	$(BIN)/python -c "from spectral_core.shipping import ship_sdss; print(ship_sdss())"

clean:
	rm -rf $(VENV)

$(INSTALLED): $(REQUIREMENTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	rm -f $(VENV)/.installed-*
	touch $@

$(FETCHED): $(INSTALLED)
	$(BIN)/spectral-core fetch demo
	rm -f $(VENV)/.fetched-*
	touch $@

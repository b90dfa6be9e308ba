# make reproduce [PROFILE=smoke|mini|full] [PROCESSES=1] every table and figure, then outputs/<profile>/index.html
# make test        library notebooks, command line, workflow, bad input, the report in a browser
# make lab         JupyterLab           make bench    speed, beside what you would use instead
# In an environment of your own (conda), nothing is installed: make reproduce VENV=$CONDA_PREFIX
PROFILE ?= smoke
PROCESSES ?= 1
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(if $(filter .venv,$(VENV)),.venv/installed)

export PYTHONHASHSEED := 0
unexport PYTHONDONTWRITEBYTECODE # where it is set, each process would compile every library anew

.PHONY: reproduce test lab bench clean
.DEFAULT_GOAL := reproduce

reproduce: $(INSTALLED)
	@$(BIN)/python -m thesis_lib.workflow lock -- $(BIN)/snakemake --nolock --cores $(CORES) \
		--config profile=$(PROFILE) processes=$(PROCESSES) --rerun-incomplete --keep-going --quiet rules host
	@echo "Report: file://$(CURDIR)/outputs/$(PROFILE)/index.html"

test: $(INSTALLED)
	$(BIN)/nbdev_test --path nbs --n_workers $(CORES) --skip_folder_re '^([_.]|experiments|benchmarks)' $(if $(THESIS_DATA),--flags data)
	$(BIN)/python -m pytest -q

lab: $(INSTALLED)
	$(BIN)/jupyter lab --notebook-dir=.

bench: $(INSTALLED)
	$(MAKE) reproduce PROFILE=benchmarks CORES=1

# The environment: from the lock file, by uv (the one that is installed, else one that pip fetches; it is five times as fast), and if that fails by pip.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f'Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	command -v uv >/dev/null || .venv/bin/pip install -q --disable-pip-version-check "uv>=0.5" || true
	PATH="$$PATH:$(CURDIR)/.venv/bin"; install="uv pip install -q --python .venv/bin/python"; \
	{ $$install -r requirements.lock && $$install --no-deps -e .; } || { echo "without uv: pip, which takes some minutes"; \
	install=".venv/bin/pip install -q --disable-pip-version-check"; $$install --no-compile -r requirements.lock && $$install --no-deps -e .; }
	touch $@

clean:
	rm -rf .venv .snakemake outputs/smoke data/people data/crops

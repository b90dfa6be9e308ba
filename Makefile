# make reproduce [PROFILE=smoke|mini|full] [PROCESSES=1] every table and figure, then outputs/<profile>/index.html
# make test        library notebooks, command line, workflow, bad input, the report in a browser
# make lab         JupyterLab           make bench    speed, beside what you would use instead
PROFILE ?= smoke
PROCESSES ?= 1
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
PYTHON ?= python3
BIN := .venv/bin
GPUS := $(shell nvidia-smi -L 2>/dev/null | wc -l | tr -d ' ')

export PYTHONHASHSEED := 0

.PHONY: reproduce test lab bench clean
.DEFAULT_GOAL := reproduce

reproduce: .venv/installed
	$(BIN)/snakemake --cores $(CORES) --resources gpu=$(GPUS) --config profile=$(PROFILE) processes=$(PROCESSES) --rerun-incomplete --keep-going --quiet rules host
	@echo "Report: file://$(CURDIR)/outputs/$(PROFILE)/index.html"

test: .venv/installed
	$(BIN)/nbdev_test --path nbs --n_workers $(CORES) --skip_folder_re '^([_.]|experiments|benchmarks)' $(if $(THESIS_DATA),--flags data)
	$(BIN)/python -m pytest -q

lab: .venv/installed
	$(BIN)/jupyter lab --notebook-dir=.

bench: .venv/installed
	$(MAKE) reproduce PROFILE=benchmarks CORES=1

# The environment: from the lock file, by uv where it is installed, else by pip.
.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f'Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	if command -v uv >/dev/null; \
	then uv pip install -q --python $(BIN)/python -r requirements.lock && uv pip install -q --python $(BIN)/python --no-deps -e .; \
	else $(BIN)/pip install -q --disable-pip-version-check -r requirements.lock && $(BIN)/pip install -q --disable-pip-version-check --no-deps -e .; fi
	touch $@

clean:
	rm -rf .venv .snakemake outputs/smoke data/people data/crops

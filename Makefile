# make reproduce [PROFILE=smoke|mini|full] [PROCESSES=1] every table and figure, then outputs/<profile>/index.html
# make test        library notebooks, command line, workflow, bad input, the report in a browser
# make lab         JupyterLab           make bench    speed, beside what you would use instead
# make live        the first camera, skeleton and classes, in a browser; or VIDEO=file [OUT=video.webm]
#                  (CLASSIFIER=folder of a run, PORT=8765)
# make landmarks   the environment of MediaPipe; with VIDEO=file OUT=landmarks.txt [OVERLAY=video.webm] it records
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

.PHONY: reproduce test lab bench live landmarks clean
.DEFAULT_GOAL := reproduce

LANDMARKS := .venv-landmarks/installed

# Without MediaPipe's environment, the runs that need it say so and the others go on.
# Snakemake 9 looks for work again once in a timespan for every run that has ended: each second, it took a third of a
# core.
reproduce: $(INSTALLED)
	$(if $(filter mini benchmarks,$(PROFILE)),-@$(MAKE) --no-print-directory $(LANDMARKS))
	@$(BIN)/python -m thesis_lib.workflow lock -- $(BIN)/snakemake --nolock --cores $(CORES) \
		--config profile=$(PROFILE) processes=$(PROCESSES) --rerun-incomplete --keep-going \
		--max-jobs-per-timespan 1000/5s --quiet rules host
	@echo "Report: file://$(CURDIR)/outputs/$(PROFILE)/index.html"

test: $(INSTALLED)
	$(BIN)/nbdev_test --path nbs --n_workers $(CORES) --skip_folder_re '^([_.]|experiments|benchmarks)' $(if $(THESIS_DATA),--flags data)
	$(BIN)/python -m pytest -q

lab: $(INSTALLED)
	$(BIN)/jupyter lab --notebook-dir=.

bench: $(INSTALLED)
	$(MAKE) reproduce PROFILE=benchmarks CORES=1

live: $(INSTALLED) $(LANDMARKS)
	$(BIN)/python -m thesis_lib.live "$(or $(VIDEO),$(CAMERA),0)" $(if $(OUT),--out "$(OUT)") \
		$(if $(CLASSIFIER),--classifier "$(CLASSIFIER)") $(if $(PORT),--port $(PORT))

landmarks: $(INSTALLED) $(LANDMARKS)
ifdef VIDEO
	$(BIN)/python -m thesis_lib.live.capture "$(VIDEO)" "$(or $(OUT),$(error OUT=landmarks.txt is missing))" \
		$(if $(OVERLAY),--overlay "$(OVERLAY)")
else
	@echo "To record: make landmarks VIDEO=file OUT=landmarks.txt [OVERLAY=video.webm]"
endif

# $(call needs_python,WHO,LAST): stops unless $(PYTHON) is 3.11 to 3.LAST
needs_python = $(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, $(2)) else \
	'Python %d.%d found, $(1) needs 3.11 to 3.$(2): make PYTHON=python3.12' % v)"

# MediaPipe, in an environment of its own: it wants NumPy 1. The file lists what Pose needs of its requirements.
$(LANDMARKS): requirements-landmarks.txt
	$(call needs_python,MediaPipe,12)
	$(PYTHON) -m venv .venv-landmarks
	PATH="$$PATH:$(CURDIR)/$(BIN)"; { uv pip install -q --no-deps --python .venv-landmarks/bin/python -r requirements-landmarks.txt; } || \
	.venv-landmarks/bin/pip install -q --disable-pip-version-check --no-deps -r requirements-landmarks.txt
	touch $@

# The environment: from the lock file, by uv (the one that is installed, else one that pip fetches; it is five times
# as fast), and if that fails by pip.
.venv/installed: requirements.lock pyproject.toml
	$(call needs_python,thesis_lib,13)
	$(PYTHON) -m venv .venv
	command -v uv >/dev/null || .venv/bin/pip install -q --disable-pip-version-check "uv>=0.5" || true
	PATH="$$PATH:$(CURDIR)/.venv/bin"; install="uv pip install -q --python .venv/bin/python"; \
	{ $$install -r requirements.lock && $$install --no-deps -e .; } || \
	{ echo "without uv: pip, which takes some minutes"; install=".venv/bin/pip install -q --disable-pip-version-check"; \
	$$install --no-compile -r requirements.lock && $$install --no-deps -e .; }
	touch $@

clean:
	rm -rf .venv .venv-landmarks .snakemake outputs/smoke data/people data/crops data/clips data/clip_crops

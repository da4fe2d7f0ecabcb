# The verbs of this repository. Each installs what it needs into a virtual environment first.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= build/demo

# Tests start some thousand processes, and without this each of them might compile every module anew.
export PYTHONDONTWRITEBYTECODE :=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow stress test-rest versions fuzz check bench docs clean

# A tiny checkpoint from a seed, exported twice by the Prefect flow with a server of its own: six built, six cached.
demo: $(INSTALLED)
	rm -rf $(DEMO)/CosyVoice-tiny $(DEMO)/store
	$(BIN)/cosyjit synth $(DEMO)/CosyVoice-tiny --family cosyvoice --size tiny --seed 0
	env -u PREFECT_API_URL PREFECT_HOME=$(abspath $(DEMO))/prefect COSYJIT_STORE=$(abspath $(DEMO))/store \
		$(BIN)/python -c 'from cosyjit.flows.export import export; [export("$(DEMO)/CosyVoice-tiny") for _ in "12"]'
	@ls $(DEMO)/CosyVoice-tiny/*.zip

PYTEST := $(BIN)/python -m pytest --numprocesses logical

# What each change is tried with while it is written. A file may be split between workers, so that none waits at the end.
test: $(INSTALLED)
	$(PYTEST) --dist worksteal -m "not slow and not stress"

# A file's costly fixtures are made once, and the longest files come first, in the order of tests/conftest.py.
BY_FILE := --dist loadfile --no-loadscope-reorder

# The second tier: more cases of the same, and what starts many processes.
test-slow: $(INSTALLED)
	$(PYTEST) $(BY_FILE) -m "slow and not stress"

# What takes minutes: a service that is cancelled and killed, and several machines.
stress: $(INSTALLED)
	$(PYTEST) $(BY_FILE) -m stress

# Both at once, as before a change lands. There is a process more than processors, since the longest tests wait for servers. Crash
# tests at a sample of the steps are left out, since others are at every step.
test-rest: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $$(( $$(nproc) + 1 )) $(BY_FILE) -m "slow or stress" -k "not some_steps"

# Environments from the lowest torch, Python and dependencies to the newest; each loads what the others export.
VERSIONS ?= build/versions
VERSIONS_TESTS ?= tests/encoders $(addprefix tests/,$(addsuffix .py,torchscript/test_script torchscript/test_gate \
	configuration/test_config sources/test_modelscope sources/test_hugging_face cli/test_modelscope store/test_signed_stores store/test_backends \
	test_prefect_api vllm/test_logits))
versions: $(INSTALLED)
	$(BIN)/python -m tests.versions $(VERSIONS) $(VERSIONS_TESTS)

# A hundred thousand inputs for each reader of what strangers write, and new ones for each property: some twenty minutes.
fuzz: $(INSTALLED)
	for target in $(filter-out _%,$(basename $(notdir $(wildcard tests/fuzz/*.py)))); do \
		$(BIN)/python -m tests.support.fuzzing $$target -runs=100000 || exit; done
	$(PYTEST) --hypothesis-profile explore -m hypothesis

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Needs 16 GB of disk, and most of an hour; BENCH names a directory for the full-size stand-in and what is made of it. ROUNDS
# is how often each is measured, where it is not as often as each says.
BENCH ?= build/bench
ROUNDS ?=
bench: $(INSTALLED)
	for measured in export incremental decode service folders onnx; do \
		$(BIN)/python -m benchmarks.$$measured $(BENCH) $(ROUNDS) || exit; done
	$(BIN)/python -m benchmarks.store $(BENCH)

# The pages as a site in build/site, which fails at a broken link.
DOCUMENTED := $(VENV)/.docs
docs: $(DOCUMENTED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf build $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[s3,dask,signing,onnx,hf,hub,otel,dev]'
	touch $@

$(DOCUMENTED): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

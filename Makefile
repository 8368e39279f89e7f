# Every target makes what it needs: a virtual environment in .venv with the versions of constraints.txt.
# The stamps (.venv/.made, .torch, .ready) make a second run quick; `make clean` removes everything made here.

PYTHON ?= python3.11
VENV := .venv
ZOO := .venv-zoo
PEER_LLM := .venv-peer-llm
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
BENCHES := $(patsubst benchmarks/%.py,bench-%,$(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format bench bench-sparse bench-budget bench-llm zoo docs venv clean

help: ## Say what there is to make
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | while IFS="$$(printf '\t')" read -r name what; \
	    do printf '  make %-10s %s\n' "$$name" "$$what"; done

demo: $(VENV)/.ready ## Prune a sentence encoder to half its latency and write the report
	$(BIN)/python examples/minilm.py

test: lint ## Lint, types and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

lint: $(VENV)/.ready ## Lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready ## Write the sources as the formatter wants them
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(BENCHES) bench-sparse bench-budget bench-llm ## Make every CSV in benchmarks/results anew

bench-%: $(VENV)/.ready ## Make one anew: benchmarks/%.py
	$(BIN)/python benchmarks/$*.py
	$(BIN)/python benchmarks/_tables.py

bench-sparse: $(VENV)/.ready ## Make the figures of sparse weights anew: benchmarks/sparse
	$(BIN)/python benchmarks/sparse
	$(BIN)/python benchmarks/_tables.py

bench-budget: $(VENV)/.ready ## Make the figures of measured budgets anew: benchmarks/budget
	$(BIN)/python benchmarks/budget
	$(BIN)/python benchmarks/_tables.py

bench-llm: $(VENV)/.ready $(PEER_LLM)/.ready ## Make the figures of language models anew, beside llm-compressor: benchmarks/llm
	$(BIN)/python benchmarks/llm
	$(BIN)/python benchmarks/_tables.py

zoo: $(ZOO)/.ready ## Cut some 650 models, prove and reload each, beside Torch-Pruning; goes on from where it stopped
	$(ZOO)/bin/python benchmarks/zoo
	$(BIN)/python benchmarks/zoo/page.py

docs: $(VENV)/.ready ## Build the documentation into site/
	$(BIN)/mkdocs build --strict

venv: $(VENV)/.ready ## Only make the virtual environment

clean: ## Remove the virtual environment and everything built
	rm -rf $(VENV) $(ZOO) $(PEER_LLM) site dist build out .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	    { echo "secateur needs Python 3.11 or newer; say which with make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch comes first and alone: pip then takes the build that suits the machine, and the rest finds it in place.
$(VENV)/.torch: $(VENV)/.made requirements/torch.txt
	$(PIP) -r requirements/torch.txt
	@touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml constraints.txt requirements/materials.txt
	$(PIP) -c constraints.txt -e ".[onnx,openvino,huggingface,peft,remote,dev]"
	$(PIP) --no-deps -r requirements/materials.txt
	@touch $@

# The zoo's own packages, and those of the peer of language models, lie beside those of the main environment, which
# they look into.
BESIDE = $(PYTHON) -m venv $(@D) && \
	    main=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	    here=$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	    echo "import site; site.addsitedir('$$main')" > "$$here/main.pth" && \
	    $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<

$(ZOO)/.ready: requirements/zoo.txt $(VENV)/.ready
	$(BESIDE)
	@touch $@

$(PEER_LLM)/.ready: requirements/peer-llm.txt $(VENV)/.ready
	$(BESIDE)
	@touch $@

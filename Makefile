# `make setup` makes .venv; everything else calls it first. See CONTRIBUTING.md.
PYTHON ?= python3
# Where PyTorch comes from, when not from pip's own index (README.md, "PyTorch").
TORCH_INDEX_URL ?=
# Arguments of `make quickstart` and `make test`, e.g. ARGS="--minutes 5".
ARGS ?=

BIN := .venv/bin
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest

.PHONY: setup quickstart test test-slow test-crash test-oracles sanitize fuzz races check format clean
.DEFAULT_GOAL := setup

setup: .venv/.ready

# The engine's sources: a change builds it anew.
ENGINE := CMakeLists.txt $(wildcard csrc/*.*)

.venv/.ready: pyproject.toml constraints.txt $(ENGINE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Flyweight needs Python 3.11 or newer, and $(PYTHON) is not that;" \
	        "name one that is: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	    echo "$(PYTHON) could not make .venv; on Debian and Ubuntu: apt install python3-venv" >&2; \
	    exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { \
	    echo "Flyweight's engine needs a C++ compiler, and $${CXX:-c++} is not there;" \
	        "on Debian and Ubuntu: apt install g++; on a Mac: xcode-select --install" >&2; exit 1; }
	$(BIN)/python -m pip install $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) '$(TORCH)'
	$(BIN)/python -m pip install -c constraints.txt -e '.[train,test]'
	@touch $@

quickstart: setup
	$(BIN)/flyweight quickstart $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin

test: check
	$(PYTEST) -n 2 -m "not slow and not crash" $(ARGS)

test-slow: setup
	$(PYTEST) -m slow $(ARGS)

# Kills the trainer at 105 instants and fills its disk, writes included.
test-crash: setup
	$(PYTEST) -m crash $(ARGS)

# The engine's tests, and those of training's kernels, with the address and undefined-behaviour
# sanitizers watching: a copy of the package with a module of its own, so that the usual one stays.
# PYTHONSAFEPATH: without it `python -m` would take the package in this folder, whose module is not
# watched. The test that limits the address space leaves the sanitizer none for itself.
SANITIZE := build/sanitize
sanitize: setup
	$(BIN)/python -m pip install -q 'cmake>=3.20' ninja nanobind
	$(BIN)/cmake -S . -B $(SANITIZE) -G Ninja -DFLYWEIGHT_SANITIZE=ON \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(BIN)/cmake --build $(SANITIZE)
	rm -rf $(SANITIZE)/tree && mkdir $(SANITIZE)/tree && cp -R flyweight $(SANITIZE)/tree
	rm -f $(SANITIZE)/tree/flyweight/engine/_native.*.so
	$(BIN)/cmake --install $(SANITIZE) --prefix $(SANITIZE)/tree
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) \
	    $$($${CXX:-c++} -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
	    UBSAN_OPTIONS=print_stacktrace=1 PYTHONSAFEPATH=1 PYTHONPATH=$(abspath $(SANITIZE)/tree) \
	    $(PYTEST) -p no:cacheprovider -q tests/engine tests/fuzz tests/train/test_kernels.py \
	    tests/train/test_training_loss.py $(ARGS) \
	    --deselect tests/engine/test_load.py::test_a_model_larger_than_memory_is_one_clear_error

# libFuzzer on what comes from anywhere, FUZZ_SECONDS each: programs under the sanitizers (clang), the
# readers of GGUF and safetensors (atheris, on Linux). What it found before is kept in build/fuzz;
# a finding is an error and a file there, to be put into tests/fuzz/findings.
FUZZ := build/fuzz
FUZZ_SECONDS ?= 60
FUZZ_OPTIONS = -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1
fuzz: setup
	$(BIN)/python -m pip install -q -c constraints.txt 'cmake>=3.20' ninja atheris
	CXX=$${CLANGXX:-clang++} $(BIN)/cmake -S csrc/fuzz -B $(FUZZ) -G Ninja \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/cmake --build $(FUZZ) --target fuzz_program
	$(BIN)/python -m tests.fuzz.programs $(FUZZ)/seeds/program
	mkdir -p $(FUZZ)/corpus/program
	$(FUZZ)/fuzz_program $(FUZZ_OPTIONS) -max_len=4096 -rss_limit_mb=2048 -timeout=20 \
	    -use_value_profile=1 -artifact_prefix=$(FUZZ)/program- \
	    $(FUZZ)/corpus/program $(FUZZ)/seeds/program
	for kind in gguf safetensors; do \
	    mkdir -p $(FUZZ)/corpus/$$kind; \
	    $(BIN)/python -m tests.fuzz.readers seeds $$kind $(FUZZ)/seeds/$$kind || exit 1; \
	    $(BIN)/python -m tests.fuzz.readers $$kind $(FUZZ_OPTIONS) -max_len=65536 \
	        -artifact_prefix=$(FUZZ)/$$kind- $(FUZZ)/corpus/$$kind $(FUZZ)/seeds/$$kind || exit 1; \
	done

# The seeds of the programs on several threads, with the thread sanitizer (clang) watching the pool,
# its barriers, and callers from many threads.
races: setup
	$(BIN)/python -m pip install -q -c constraints.txt 'cmake>=3.20' ninja
	CXX=$${CLANGXX:-clang++} $(BIN)/cmake -S csrc/fuzz -B $(FUZZ) -G Ninja \
	    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/cmake --build $(FUZZ) --target fuzz_races
	$(BIN)/python -m tests.fuzz.programs $(FUZZ)/seeds/program
	TSAN_OPTIONS=halt_on_error=1 $(FUZZ)/fuzz_races $(FUZZ)/seeds/program/*

# llama.cpp is built from source for these, with all processors: minutes.
test-oracles: setup
	$(BIN)/python -m pip install -c constraints.txt llama-cpp-python
	$(PYTEST) -m oracle $(ARGS)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Runs are kept: they are yours.
clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	rm -f flyweight/engine/_native.*.so
	find csrc/inplace -mindepth 1 ! -name CMakeLists.txt -delete
	find flyweight tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

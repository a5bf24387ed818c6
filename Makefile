# Every target sets up all it needs: a virtual environment in .venv, installed from constraints.txt.
# It asks of the machine only Python 3.10+ (with venv and headers) and a C++17 compiler.

# A Python of your choice: make PYTHON=python3.12 ...   Otherwise the first of these that is new enough.
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11 python3.10 python,$(shell \
	$(name) -c 'import sys; sys.version_info >= (3, 10) and print("$(name)")' 2>/dev/null)))
# Sanitizers for the C++ unit tests, as CI runs them: make test SANITIZE=address,undefined
SANITIZE ?=
# How long each libFuzzer target runs, and the clang that builds them: make fuzz SECONDS=600 CLANG=clang++-18
SECONDS ?= 60
CLANG ?= $(firstword $(foreach name,clang++ clang++-22 clang++-21 clang++-20 clang++-19 clang++-18 clang++-17 clang++-16 \
	clang++-15 clang++-14,$(shell command -v $(name) 2>/dev/null)))

BIN := .venv/bin
PIP := PYTHONWARNINGS=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --constraint constraints.txt
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
CPP := $(shell find csrc -name '*.cpp' -o -name '*.hpp')
PY := gptfast kernels tests benchmarks setup.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-cpp fuzz lint format wheel clean

help:
	@echo "make demo [DATA=file.txt]  train a small GPT on a text for about three minutes and sample from it"
	@echo "make test                  run the C++ and Python tests"
	@echo "make fuzz [SECONDS=600]    run each libFuzzer target of csrc/fuzz; needs clang"
	@echo "make lint                  ruff, mypy, clang-format; changes nothing"
	@echo "make format                let ruff and clang-format rewrite the sources"
	@echo "make wheel                 build a wheel into dist/"
	@echo "make clean                 remove .venv and everything built (never runs/)"

demo: .venv/demo
	$(BIN)/gptfast demo $(if $(DATA),--data '$(DATA)')

test: .venv/dev test-cpp
	$(BIN)/python -m pytest -q

test-cpp: .venv/dev
	@$(BIN)/cmake -S csrc -B build/test-cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
		-DGPTFAST_TESTS=ON -DGPTFAST_WERROR=ON -DGPTFAST_SANITIZE=$(SANITIZE) --log-level=WARNING > build/test-cpp.log
	@$(BIN)/cmake --build build/test-cpp
	$(BIN)/ctest --test-dir build/test-cpp --output-on-failure

# Inputs worth keeping gather in build/fuzz/corpus, from where the next run goes on; one that fails is named in the output.
fuzz: .venv/tools
	@test -n "$(CLANG)" || { echo "error: no clang++, which has libFuzzer; install it (Debian, Ubuntu: apt install clang), or name it: make fuzz CLANG=/path/to/clang++" >&2; exit 1; }
	@$(BIN)/cmake -S csrc -B build/fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_CXX_COMPILER=$(CLANG) \
		-DGPTFAST_FUZZ=ON -DGPTFAST_SANITIZE=address,undefined --log-level=WARNING > build/fuzz.log
	@$(BIN)/cmake --build build/fuzz
	@for target in $(patsubst csrc/fuzz/%.cpp,%,$(wildcard csrc/fuzz/fuzz_*.cpp)); do \
		echo "$$target, $(SECONDS) seconds" && mkdir -p build/fuzz/corpus/$$target && \
		build/fuzz/$$target -max_total_time=$(SECONDS) -max_len=512 -len_control=0 -verbosity=0 -print_funcs=0 -print_final_stats=1 \
			-artifact_prefix=build/fuzz/$$target- build/fuzz/corpus/$$target || exit 1; \
	done

lint: .venv/dev build/typed
	$(BIN)/ruff check $(PY)
	$(BIN)/ruff format --check $(PY)
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p gptfast

format: .venv/dev
	$(BIN)/ruff check --fix $(PY)
	$(BIN)/ruff format $(PY)
	$(BIN)/clang-format -i $(CPP)

wheel: .venv/dev
	rm -rf build/lib* build/bdist*
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

clean:
	rm -rf .venv build dist *.egg-info gptfast/_core* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# mypy knows a package by its folder: a view of the tree in which kernels/ and benchmarks/ lie where they are imported.
.PHONY: build/typed
build/typed:
	@rm -rf $@ && mkdir -p $@/gptfast
	@ln -s $(CURDIR)/gptfast/* $(CURDIR)/kernels $(CURDIR)/benchmarks $@/gptfast/

# The virtual environment with the tools that build csrc; the package is then built with them, without pip's isolated
# environment, so that versions are those of constraints.txt and a rebuild compiles only what changed.
.venv/tools: constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 or newer found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@test -n "$$CXX" || command -v c++ g++ clang++ >/dev/null || { echo "error: no C++ compiler; install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)" >&2; exit 1; }
	@echo "Setting up .venv with $(PYTHON) (once; torch is large)"
	@$(PYTHON) -m venv .venv
	@$(PIP) setuptools wheel cmake ninja pybind11
	@touch $@

.venv/demo: .venv/tools $(SOURCES)
	@$(PIP) --no-build-isolation --editable '.[demo]'
	@touch $@

.venv/dev: .venv/tools $(SOURCES)
	@$(PIP) --no-build-isolation --editable '.[demo,test,lint]'
	@touch $@

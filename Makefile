# One command each; `make help` lists them. Everything that a command needs is set up by the command itself.
# Works with GNU make 3.81 and any POSIX shell.

.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV ?= .venv
PYTHON ?=

ifeq ($(OS),Windows_NT)
PY := $(VENV)/Scripts/python
else
PY := $(VENV)/bin/python
endif
PIP := "$(PY)" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Settings of a lesson, passed on as options. DATA and OUT may hold blanks and quotes, so the shell reads them itself.
export DATA OUT PACK SUBMISSIONS ROSTER
on = $(filter-out 0 no false,$(1))
OPTIONS = $${DATA:+--data "$$DATA"} $${OUT:+--out "$$OUT"} $(if $(BACKEND),--backend $(BACKEND)) \
	$(if $(PRECISION),--precision $(PRECISION)) $(if $(SEED),--seed $(SEED)) $(if $(call on,$(FULL)),--full) $(if $(call on,$(QUICK)),--quick) \
	$(if $(call on,$(BRIEF)),--brief) $(if $(call on,$(CHECK)),--check) $(if $(CLUSTER),--cluster $(CLUSTER))

FILES := $(sort $(wildcard lessons/lesson_[0-9][0-9]_*.py))
NUMBERS := $(foreach f,$(FILES),$(patsubst 0%,%,$(word 2,$(subst _, ,$(notdir $(f))))))
LESSONS := $(addprefix lesson-,$(NUMBERS))

PAGES := $(sort $(wildcard notebooks/[0-9][0-9]_*.ipynb))
NOTEBOOKS := $(foreach f,$(PAGES),notebook-$(patsubst 0%,%,$(word 1,$(subst _, ,$(notdir $(f))))))

##@ Learn
.PHONY: $(LESSONS)
## lesson-N: run lesson N. DATA=file on your own text, FULL=1 all ablations (half an hour), BRIEF=1 without derivations, BACKEND=cupy PRECISION=tf32 on a GPU
$(LESSONS): lesson-%: $(VENV)/.installed
	@"$(PY)" -m lessons $* $(OPTIONS)

.PHONY: lessons compare
## lessons: every lesson, one after the other; the same settings
lessons: $(VENV)/.installed
	@for n in $(NUMBERS); do "$(PY)" -m lessons $$n $(OPTIONS) || exit; done

## compare: every method of the course at equal budgets (an hour and a half; goes on where it was stopped). CLUSTER=slurm
compare: $(VENV)/.installed
	@"$(PY)" -m lessons 11 --full $(OPTIONS)

.PHONY: claims
## claims: what lecture notes say of these methods, each with a verdict from the records. FULL=1 measures what is missing
claims: $(VENV)/.installed
	@"$(PY)" -m lessons.claims $(if $(call on,$(FULL)),--full) $(if $(call on,$(QUICK)),--quick) $${OUT:+--out "$$OUT"}

.PHONY: $(NOTEBOOKS) notebooks
## notebook-N: open notebook N of the course in the browser; 0 is where to start
$(NOTEBOOKS): notebook-%: $(VENV)/.installed-notebooks
	@"$(PY)" -m jupyter lab $$(printf 'notebooks/%02d_*.ipynb' $*)

## notebooks: run them all from clean kernels and keep what they show (half an hour). QUICK=1 only tries them
notebooks: $(VENV)/.installed-notebooks
	@"$(PY)" notebooks/execute.py $(if $(call on,$(QUICK)),--quick) $${OUT:+--out "$$OUT"}

notebook-%:
	@echo "There is no notebook $* yet. There is: $(NOTEBOOKS)" >&2; exit 2

lesson-%:
	@echo "There is no lesson $* yet. There is: $(LESSONS)" >&2; exit 2

.PHONY: data bases
## data: download well-known public sets (tiny Shakespeare, movie reviews), each checked
data: $(VENV)/.installed
	@"$(PY)" -m minigpt.data.download

## bases: train the base models again (hours; goes on where it was stopped)
bases: $(VENV)/.installed
	@"$(PY)" -m minigpt.bases.build

##@ Exercises
GRADES := $(addprefix grade-,$(NUMBERS))
.PHONY: $(GRADES) fill
## grade-N: judge your exercises of lesson N, in seconds
$(GRADES): grade-%: $(VENV)/.installed
	@"$(PY)" -m classroom grade $*

grade-%:
	@echo "There is no lesson $*. There is: $(GRADES)" >&2; exit 2

## fill: fill in solutions that your teacher has released: PACK=file.zip
fill: $(VENV)/.installed
	@test -n "$$PACK" || { echo "Which pack? make fill PACK=file.zip" >&2; exit 2; }
	@"$(PY)" -m classroom fill "$$PACK"

##@ Teach
.PHONY: handout solutions grade-all grader-check
## handout: write the students' repository to dist/handout, or to OUT=dir
handout: $(VENV)/.installed
	@"$(PY)" -m classroom handout $${OUT:+--out "$$OUT"}

## solutions: a pack of the solutions of lesson N=… to release, as PACK=file.zip
solutions: $(VENV)/.installed
	@test -n "$(N)" && test -n "$$PACK" || { echo "make solutions N=3 PACK=file.zip" >&2; exit 2; }
	@"$(PY)" -m classroom solutions --lesson $(N) --out "$$PACK"

## grade-all: grade a class: N=… SUBMISSIONS=dir ROSTER=file.csv OUT=dir; goes on where it was stopped. ARGS="--help" for more
grade-all: $(VENV)/.installed
	@"$(PY)" -m classroom grade-all $(if $(N),--lesson $(N)) $${SUBMISSIONS:+--submissions "$$SUBMISSIONS"} \
	  $${ROSTER:+--roster "$$ROSTER"} $${OUT:+--out "$$OUT"} $(ARGS)

## grader-check: grade the grader: solutions, stubs, typical mistakes, other right ways, attacks
grader-check: $(VENV)/.installed
	@"$(PY)" -m classroom check $(ARGS)

##@ Check
.PHONY: test parity lint bench gpu-check
## test: run the tests. ARGS="…" for pytest
test: $(VENV)/.installed-dev
	@"$(PY)" -m pytest $(ARGS)

## parity: compare with PyTorch, transformers, peft, tokenizers, tiktoken, scikit-learn; NVIDIA's compiler (a large download)
parity: $(VENV)/.installed-parity
	@"$(PY)" -m pytest tests/parity tests/cuda/test_nvrtc.py -m parity $(ARGS)

## lint: style, format, types, and that imports go one way
lint: $(VENV)/.installed-dev
	@"$(PY)" -m ruff check
	@"$(PY)" -m ruff format --check
	@"$(PY)" -m mypy
	@"$(PY)" -c "from importlinter.cli import lint_imports_command; lint_imports_command()" --no-cache

## bench: time it against PyTorch and others, in one run
bench: $(VENV)/.installed-parity
	@"$(PY)" -m benchmarks $(ARGS)

## gpu-check: on a GPU: every kernel against float64, whole steps and their times against PyTorch; ten minutes
gpu-check: $(VENV)/.installed-gpu
	@"$(PY)" -m benchmarks.gpu_check $(ARGS)

##@ House-keeping
.PHONY: setup clean help
## setup: only make the environment in .venv. PYTHON=path to choose the Python, VENV=path for another place
setup: $(VENV)/.installed

## clean: remove the environment and all caches; results in runs/ stay
clean:
	rm -rf -- "$(VENV)" build dist ./*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf -- {} +

## help: this list
help:
	@awk '/^##@ /{printf "\n%s\n", substr($$0, 5)} \
	  /^## /{i = index($$0, ":"); printf "  make %-13s %s\n", substr($$0, 4, i - 4), substr($$0, i + 2)}' Makefile
	@printf '\nLessons so far: %s\n' "$(LESSONS)"

# ---------------------------------------------------------------------------------------- the environment
# Each stamp stands for a set of packages, installed again when what they are changes.

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up in $(VENV) (once, about a minute) ..."
	@test -x "$(PY)" || { \
	  for python in $(if $(PYTHON),"$(PYTHON)",python3.14 python3.13 python3.12 python3.11 python3 python); do \
	    if "$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	      "$$python" -m venv "$(VENV)" && exit 0; exit 1; \
	    fi; \
	  done; \
	  echo "No Python 3.11 or newer with venv was found$(if $(PYTHON), at $(PYTHON))." >&2; \
	  echo "Install one (on Debian and Ubuntu: python3-venv too), or name it: make PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@$(PIP) --editable . || { echo "Setting up failed: see above. The same command tries again." >&2; exit 1; }
	@touch -- "$@"

$(VENV)/.installed-notebooks: $(VENV)/.installed
	@echo "Adding what the notebooks need ..."
	@$(PIP) --editable ".[notebooks]"
	@touch -- "$@"

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Adding what the tests need ..."
	@$(PIP) --editable ".[dev]"
	@touch -- "$@"

$(VENV)/.installed-gpu: $(VENV)/.installed-parity
	@echo "Adding CuPy and the parts of CUDA that it needs ..."
	@$(PIP) --editable ".[gpu]"
	@touch -- "$@"

$(VENV)/.installed-parity: $(VENV)/.installed-dev
	@echo "Adding the libraries to compare with (several hundred megabytes) ..."
	@$(PIP) --editable ".[dev,parity]"
	@touch -- "$@"

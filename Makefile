PYTHON ?= python3
ARGS ?=
JOBS ?= 2
CHROMIUM ?=

VENV := .venv
BIN := $(VENV)/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
STUDENT := build/student

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-browser browser-ready chromium lab figures clean
.NOTPARALLEL:

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo 'Options: PYTHON=python3.12 chooses the interpreter for .venv; ARGS="..." goes to demo, lab and figures.'

demo: $(VENV)/.installed  ## the four findings of the review, reproduced and caught
	@$(BIN)/python -m lab demo $(ARGS)

lab: $(VENV)/.installed  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks $(ARGS)

figures: $(VENV)/.installed  ## draw every picture in figures/ again
	@$(BIN)/python -m lab figures $(ARGS)

# One thread a process: $(JOBS) processes share the cores. LAB_CACHE keeps the user's own cache out of it.
test test-browser: export OMP_NUM_THREADS := 1
test test-browser: export MKL_NUM_THREADS := 1
test test-browser: export HF_HUB_OFFLINE := 1
test test-browser: export JUPYTER_PREFER_ENV_PATH := 1
test test-browser: export LAB_CACHE := $(CURDIR)/build/cache
test: NBMAKE := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations=3 \
	--nbmake --nbmake-kernel=python3 --nbmake-timeout=120
test: $(VENV)/.installed-test  ## lint, unit tests, every notebook with and without its solutions
	@rm -rf $(STUDENT) build/cache
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
ifneq ($(NOTEBOOKS),)
	$(BIN)/nbstripout --verify --keep-id $(NOTEBOOKS)
endif
	$(BIN)/python -m pytest -n $(JOBS) -m "not browser"
ifneq ($(NOTEBOOKS),)
	LAB_EXERCISES=solved $(NBMAKE) notebooks
	$(BIN)/python -m lab.exercises notebooks $(STUDENT)
	LAB_EXERCISES=unsolved $(NBMAKE) $(STUDENT)
endif

# LAB_BROWSER: what is missing is an error, not a skip.
test-browser: browser-ready  ## the widgets and lesson 04 in JupyterLab in Chromium
	@rm -rf build/browser
	LAB_BROWSER=1 $(BIN)/python -m pytest -m browser --durations=3 tests/browser
	@echo "Screenshots are in build/browser/"

browser-ready: chromium $(VENV)/.installed-browser

# The names that tests/browser/conftest.py looks for.
chromium:
	@for name in $(or $(CHROMIUM),chromium chromium-browser google-chrome); do \
		command -v "$$name" >/dev/null && exit 0; \
	done; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	[ -z "$(CHROMIUM)" ] && command -v apt-get >/dev/null && $$sudo apt-get update -qq && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium || { \
		echo "There is no $(or $(CHROMIUM),Chromium), and apt-get did not install it. Install it, or name one:" \
			"make test-browser CHROMIUM=/path/to/chrome" >&2; exit 1; }

clean:  ## remove what the other targets made, except .venv
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find lab tests notebooks figures -name __pycache__ -o -name .ipynb_checkpoints 2>/dev/null | xargs rm -rf

# pip stands for the whole environment: a venv whose making was cut short has no pip and is made again.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' on the PATH. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Name another: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-browser: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,browser]'
	@touch $@ $(VENV)/.installed-test $(VENV)/.installed

# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install what is missing.

VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
SYSTEM_PYTHON ?= python3
# the folder of photos and the classes of `make study`; without PHOTOS it takes what data/ holds
PHOTOS ?=
CLASSES ?=
EPOCHS ?=
DATA ?=

.DEFAULT_GOAL := help
.PHONY: help setup browser demo study test lint lab clean

help:  ## say what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(INSTALLED) browser  ## make .venv, install everything, find or install Chromium

$(INSTALLED): requirements.txt pyproject.toml
	@$(SYSTEM_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Carspotter needs Python 3.11 or newer; name one: make SYSTEM_PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(SYSTEM_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --disable-pip-version-check --progress-bar off -r requirements.txt
	$(PYTHON) -m pip install --disable-pip-version-check --no-deps -e .
	@touch $@

browser: $(INSTALLED)
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null && command -v chromedriver >/dev/null; then \
	  :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Chromium and its driver from the distribution's packages"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null; \
	else \
	  $(PYTHON) -c 'from selenium.webdriver.common.selenium_manager import SeleniumManager as M; print("Browser:", M().binary_paths(["--browser", "chrome"])["browser_path"])'; \
	fi || { echo "No Chromium with chromedriver could be found or installed. Install both with your system's packages"; \
	  echo "(Debian and Ubuntu: sudo apt-get install chromium chromium-driver) and run this again."; exit 1; }

demo: setup  ## the whole road on the sample site: scrape, curate, split, train, check -> demo/index.html
	$(PYTHON) -m carspotter demo

study: setup  ## the same on your photos: make study PHOTOS=FOLDER CLASSES="a b"
	$(PYTHON) -m carspotter study $(if $(PHOTOS),"$(PHOTOS)") $(if $(CLASSES),--classes $(CLASSES)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(DATA),--data "$(DATA)")

test: setup  ## run the tests
	$(PYTHON) -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)  ## check and format-check the code
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

lab: $(INSTALLED)  ## open the notebooks in Jupyter
	$(VENV)/bin/jupyter lab notebooks

clean:  ## delete what can be made again (never data/ or results/)
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +

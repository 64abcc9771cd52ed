"""A vLLM that is there already, behind one fleet for all of these tests."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.integration.fleet import Fleet, running
from tests.real.adapters import ADAPTERS, model, through_both
from tests.real.engine import Engine, listed_model
from tests.real.given import given


@pytest.fixture(scope="session")
def base_url() -> str:
    return given("SLUICE_REAL_BASE_URL")


@pytest.fixture(scope="session")
def upstream_model(base_url: str) -> str:
    return listed_model(base_url)[0]


@pytest.fixture(scope="session")
def context_tokens(base_url: str) -> int:
    return listed_model(base_url)[1]


@pytest.fixture(scope="session")
def fleet(base_url: str, upstream_model: str) -> Iterator[Fleet]:
    plan = through_both(base_url, upstream_model)
    plan.extra["models"].extend(
        model(f"unknown-to-{adapter}", (adapter, "no-such-model"))
        for adapter in ADAPTERS
    )
    with running(plan) as fleet:
        yield fleet


@pytest.fixture
async def engine(base_url: str, upstream_model: str) -> AsyncIterator[Engine]:
    async with Engine(base_url, upstream_model) as engine:
        yield engine

"""Ledgers on every store at hand."""

import os
import shutil
from collections.abc import AsyncIterator
from typing import override

import pytest

from gateway.admission.redis_ledger import RedisLedger
from gateway.demo.valkey import EmbeddedValkey
from tests.contract.desk import Desk


class InstalledRedis(EmbeddedValkey):
    """A ``redis-server`` of this machine, run just like the embedded Valkey."""

    @override
    def _command(self) -> tuple[str, ...]:
        _, *arguments = super()._command()
        return (str(shutil.which("redis-server")), *arguments)


# Another store than those at hand, for instance a release to be checked.
_URL = os.environ.get("SLUICE_TEST_REDIS_URL")  # noqa: TID251 # the tests' own switch
_SERVERS = [EmbeddedValkey, *([InstalledRedis] if shutil.which("redis-server") else [])]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """One loop for the session, so that tests share the servers."""
    return "asyncio"


@pytest.fixture(scope="session", params=[_URL] if _URL else _SERVERS)
async def store_url(
    request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[str]:
    if _URL:
        yield _URL
    else:
        async with request.param() as server:
            yield server.url


@pytest.fixture(params=_SERVERS)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[EmbeddedValkey]:
    """A store for one test alone, that may be harmed."""
    async with request.param() as server:
        yield server


@pytest.fixture
async def redis_desk(store_url: str) -> AsyncIterator[Desk]:
    async with (
        RedisLedger(store_url) as ledger,
        RedisLedger(store_url, lease_seconds=-1) as lapsing,
    ):
        yield Desk(ledger, lapsing)

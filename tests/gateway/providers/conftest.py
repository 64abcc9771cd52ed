"""What tests of providers share: both event loops, and a transport on them."""

from collections.abc import AsyncIterator

import pytest

from gateway.providers.transport import PooledTransport


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Each promise holds on both loops; they differ in how they read and close."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
async def transport() -> AsyncIterator[PooledTransport]:
    async with PooledTransport() as transport:
        yield transport

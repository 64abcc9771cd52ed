"""What the tests of any real server may use; each directory has its own ``fleet``."""

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI

from tests.integration.fleet import Fleet, Key
from tests.real.adapters import ADAPTERS


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    """By which the gateway speaks to the server; also a model's public name."""
    return str(request.param)


@pytest.fixture
def key(fleet: Fleet) -> Key:
    return fleet.new_key()


@pytest.fixture
async def openai(fleet: Fleet, key: Key) -> AsyncIterator[AsyncOpenAI]:
    url = f"{fleet.base_url}/v1"
    async with AsyncOpenAI(base_url=url, api_key=key.secret, max_retries=0) as client:
        yield client

"""What every test may use."""

import pytest
from hypothesis import settings

# One profile: examples are few enough for two cores, and never fail on a slow machine.
settings.register_profile("suite", deadline=None, max_examples=100)
settings.load_profile("suite")


@pytest.fixture
def anyio_backend() -> str:
    """The product runs on asyncio; uvloop is asked for where it matters."""
    return "asyncio"

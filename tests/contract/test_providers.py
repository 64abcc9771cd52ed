"""The provider contract, on every adapter that configuration can name."""

import pytest

from tests.contract.provider_contract import ProviderContract
from tests.contract.provider_desk import ADAPTERS


class TestProviders(ProviderContract):
    @pytest.fixture(params=ADAPTERS)
    def adapter(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
    def anyio_backend(
        self, request: pytest.FixtureRequest
    ) -> tuple[str, dict[str, bool]]:
        """Each promise holds on both loops."""
        return "asyncio", {"use_uvloop": request.param}

"""The ledger contract, on Redis and on the model that Redis is compared with."""

import pytest

from tests.contract.desk import Desk
from tests.contract.ledger_contract import LedgerContract
from tests.contract.model_ledger import Books, ModelLedger


class TestModelLedger(LedgerContract):
    @pytest.fixture
    def desk(self) -> Desk:
        books = Books(clock=lambda: 1_795_000_000.0)
        return Desk(ModelLedger(books), ModelLedger(books, lease_seconds=-1))


class TestRedisLedger(LedgerContract):
    @pytest.fixture
    def desk(self, redis_desk: Desk) -> Desk:
        return redis_desk

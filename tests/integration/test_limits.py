"""What is held while an exchange goes on, and what comes back when it is settled."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest

from gateway.auth.principal import Limits
from tests.integration.fleet import MODEL_CAP, Fleet, Key, Plan, Terms, running
from tests.integration.raw_client import (
    OUR_PROMPT_TOKENS,
    PROMPT_TOKENS,
    Leave,
    RawClient,
    chat,
)

pytestmark = pytest.mark.anyio

TOKENS = 10
MODELS = {
    "brief": f"sim-r0-t{TOKENS}-f0",
    "endless": "sim-r20-t100000-f0",
    "failing": "sim-xstatus-503",
}
MONTHLY = Terms(Limits(tokens_per_month=1000, tokens_per_day=2000))
TOKENS_A_MINUTE = Terms(Limits(tokens_per_minute=6000))
REQUESTS_A_MINUTE = Terms(Limits(requests_per_minute=60))
MOST_OF_A_MINUTE = 5000


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    terms = (MONTHLY, TOKENS_A_MINUTE, REQUESTS_A_MINUTE)
    with running(Plan(models=MODELS, terms=terms)) as fleet:
        yield fleet


@asynccontextmanager
async def streaming(
    fleet: Fleet, key: Key, **members: object
) -> AsyncIterator[RawClient]:
    """A stream that has begun; its client leaves at the end of the block."""
    async with RawClient(fleet, key, uuid4().hex) as client:
        await client.ask("endless", **members)
        await client.read_until(b"river")
        yield client
        await client.leave(Leave.RST)
    await fleet.used(key)


async def ask(
    fleet: Fleet, key: Key, model: str = "brief", **members: object
) -> httpx.Response:
    async with fleet.client(key) as client:
        body = {**chat(model), **members}
        return await client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize(
    ("members", "completion"),
    [
        ({}, MODEL_CAP),
        ({"n": 3}, 3 * MODEL_CAP),
        ({"n": 3, "max_tokens": 50}, 3 * 50),
        ({"max_tokens": 20, "max_completion_tokens": 30}, 30),
        ({"max_tokens": 30, "max_completion_tokens": 20}, 30),
        ({"n": 2, "best_of": 4, "max_tokens": 7}, 4 * 7),
        ({"max_tokens": 10 * MODEL_CAP}, 10 * MODEL_CAP),
    ],
)
async def test_largest_cap_is_held_for_every_choice(
    fleet: Fleet, members: dict[str, object], completion: int
) -> None:
    key = fleet.new_key()
    async with streaming(fleet, key, **members):
        quota = await fleet.quota(key)
    held = OUR_PROMPT_TOKENS + completion
    assert [window["reserved"] for window in quota["windows"]] == [held, held]
    (reservation,) = quota["reservations"]
    assert (reservation["reserved"], reservation["model"]) == (held, "endless")
    assert 0 < reservation["age_seconds"] < 10


async def test_all_choices_are_charged(fleet: Fleet) -> None:
    key = fleet.new_key()
    answer = (await ask(fleet, key, n=3, max_tokens=50)).json()
    assert len(answer["choices"]) == 3
    assert await fleet.used(key) == PROMPT_TOKENS + 3 * TOKENS


async def test_month_is_held_charged_and_refused_like_the_day(fleet: Fleet) -> None:
    key = fleet.new_key(MONTHLY)
    async with streaming(fleet, key, max_tokens=900):
        day, month = (await fleet.quota(key))["windows"]
        refused = await ask(fleet, key, max_tokens=100)
    held = OUR_PROMPT_TOKENS + 900
    assert (day["name"], day["limit"], day["reserved"]) == ("day", 2000, held)
    assert (month["name"], month["limit"], month["reserved"]) == ("month", 1000, held)
    assert month["remaining"] == 1000 - held
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert_ends_with_the_month(int(refused.headers["retry-after"]))
    assert (await ask(fleet, key, max_tokens=100)).status_code == 200
    used = await fleet.used(key)
    day, month = (await fleet.quota(key))["windows"]
    assert month["used"] == day["used"] == used > PROMPT_TOKENS + TOKENS


def assert_ends_with_the_month(seconds: int) -> None:
    then = datetime.now(UTC) + timedelta(seconds=seconds)
    assert (then - timedelta(minutes=1)).month != (then + timedelta(minutes=1)).month
    assert (then - timedelta(minutes=1)).month == datetime.now(UTC).month


async def test_tokens_of_the_minute_come_back_when_settled(fleet: Fleet) -> None:
    key = fleet.new_key(TOKENS_A_MINUTE)
    async with streaming(fleet, key, max_tokens=MOST_OF_A_MINUTE):
        refused = await ask(fleet, key, max_tokens=MOST_OF_A_MINUTE)
        left = (await fleet.quota(key))["rates"]["tokens_per_minute"]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert left["limit"] == 6000
    assert left["remaining"] is not None
    assert left["remaining"] < 6000 - MOST_OF_A_MINUTE + 100
    used = await fleet.used(key)
    back = (await fleet.quota(key))["rates"]["tokens_per_minute"]["remaining"]
    assert back is not None
    assert 6000 - used <= back <= 6000
    assert (await ask(fleet, key, max_tokens=MOST_OF_A_MINUTE)).status_code == 200


async def test_request_of_the_minute_never_comes_back(fleet: Fleet) -> None:
    key = fleet.new_key(REQUESTS_A_MINUTE)
    for _ in range(3):
        assert (await ask(fleet, key, "failing")).status_code == 503
    assert await fleet.used(key) == 0
    left = (await fleet.quota(key))["rates"]["requests_per_minute"]
    assert left in [{"limit": 60, "remaining": some} for some in (57, 58)]

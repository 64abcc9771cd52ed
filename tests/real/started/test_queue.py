"""A vLLM that serves one request at a time, and says every second that it is there."""

from collections.abc import AsyncIterator, Iterator

import anyio
import pytest

from tests.integration.fleet import Fleet, running
from tests.integration.raw_client import Leave
from tests.real.adapters import through_both
from tests.real.engine import Engine, listed_model
from tests.real.given import given
from tests.real.leaving import Scene, asking
from tests.real.real_server import RealServer, started

pytestmark = [pytest.mark.real, pytest.mark.anyio]

FLAGS = ("--max-num-seqs", "1", "--sse-keep-alive-interval", "1")
COMMENTED_SECONDS = 1.5
WAITED_SECONDS = 4.5
PATIENT = {"first_byte_seconds": 2, "idle_seconds": 2}
"""For a comment a second, not for the whole wait."""
IMPATIENT = {"first_byte_seconds": 0.5}
"""Less than it takes to the first comment."""
LONG = {"max_tokens": 1000, "ignore_eos": True}
SHORT = {"max_tokens": 10, "ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with started(given("SLUICE_REAL_VLLM"), *FLAGS) as server:
        yield server


@pytest.fixture(scope="module")
def fleet(server: RealServer) -> Iterator[Fleet]:
    name = listed_model(server.url)[0]
    with running(through_both(server.url, name, streaming=PATIENT)) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def impatient_fleet(server: RealServer) -> Iterator[Fleet]:
    name = listed_model(server.url)[0]
    with running(through_both(server.url, name, streaming=IMPATIENT)) as fleet:
        yield fleet


@pytest.fixture
async def engine(server: RealServer) -> AsyncIterator[Engine]:
    async with Engine(server.url, listed_model(server.url)[0]) as engine:
        yield engine


@pytest.fixture
async def occupant(fleet: Fleet, engine: Engine) -> AsyncIterator[Scene]:
    """The one request that vLLM works on."""
    await engine.quiet()
    async with asking(fleet, engine, "vllm", fleet.new_key(), **LONG) as scene:
        await engine.at_work()
        yield scene
    await engine.quiet()


@pytest.mark.parametrize("how", Leave)
@pytest.mark.parametrize(
    ("stream", "waited_seconds"), [(True, 0), (True, COMMENTED_SECONDS), (False, 0)]
)
@pytest.mark.usefixtures("occupant")
async def test_request_leaves_the_queue_when_its_client_leaves(
    fleet: Fleet,
    engine: Engine,
    adapter: str,
    stream: bool,
    waited_seconds: float,
    how: Leave,
) -> None:
    key = fleet.new_key()
    async with asking(fleet, engine, adapter, key, stream=stream, **LONG) as scene:
        assert (await engine.at_work(2)).waiting == 1
        await anyio.sleep(waited_seconds)
        left = await scene.leave(how)
    print(f"{adapter}, queued {waited_seconds}, {how.value}: {left}")
    left.check()
    assert left.charged == (0 if stream else left.prompt[1])


async def test_answer_is_whole_when_it_came_after_the_comments_of_a_long_wait(
    fleet: Fleet, engine: Engine, adapter: str, occupant: Scene
) -> None:
    key = fleet.new_key()
    async with asking(fleet, engine, adapter, key, **SHORT) as scene:
        await engine.at_work(2)
        await anyio.sleep(WAITED_SECONDS)
        assert (await engine.inside()).waiting == 1
        await occupant.client.leave(Leave.FIN)
        await scene.client.read_to_end()
    assert scene.client.status == 200
    assert scene.client.body.endswith(b"data: [DONE]\n\n")
    assert all(
        line.startswith(b"data: ") for line in scene.client.body.split(b"\n\n")[:-1]
    )
    exact, _ = await scene.prompt(0)
    assert await fleet.used(key) == exact + 10


@pytest.mark.usefixtures("occupant")
async def test_request_leaves_the_queue_when_its_first_byte_is_due(
    impatient_fleet: Fleet, engine: Engine, adapter: str
) -> None:
    fleet, key = impatient_fleet, impatient_fleet.new_key()
    async with asking(fleet, engine, adapter, key, **SHORT) as scene:
        await scene.client.read_to_end()
        _, after = await engine.watched(scene.before.busy)
    assert after.running == 1
    assert scene.client.status == 504
    assert b'"upstream_timeout"' in scene.client.body
    assert await fleet.used(key) == 0

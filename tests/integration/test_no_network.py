"""Nothing is fetched at run time: the gateway speaks to its store and its providers."""

import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.integration import guard
from tests.integration.fleet import Plan, running
from tests.integration.raw_client import RawClient

pytestmark = pytest.mark.anyio

MODELS = {"brief": "sim-r0-t10-f0", "uncounted": "sim-r0-t10-f0-xno-usage"}
WITH_TIKTOKENS_OWN_LOADER = """
import sys, pathlib
from tests.integration.guard import keep_to_this_machine
keep_to_this_machine(pathlib.Path(sys.argv[1]))
import tiktoken
tiktoken.get_encoding("o200k_base")
"""


@pytest.mark.parametrize("tokenizer", ["o200k_base", "cl100k_base"])
async def test_gateway_speaks_to_this_machine_alone_from_start_to_end(
    tokenizer: str, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    plan = Plan(
        models=MODELS,
        tokenizer=tokenizer,
        command=(sys.executable, guard.__file__, str(report), "gateway"),
        environment={"TIKTOKEN_CACHE_DIR": str(tmp_path / "nowhere")},
    )
    with running(plan) as fleet:
        key = fleet.new_key()
        for model in MODELS:
            for stream in (True, False):
                async with RawClient(fleet, key, uuid4().hex) as client:
                    await client.ask(model, stream=stream)
                    await client.read_to_end()
                assert (client.status, client.complete) == (200, True)
        assert await fleet.used(key) > 0
    spoken_to = {line.split(" ", 2)[2] for line in report.read_text().splitlines()}
    assert "127.0.0.1" in spoken_to
    assert guard.REFUSED not in report.read_text()


def test_guard_refuses_the_loader_that_fetches(tmp_path: Path) -> None:
    report = tmp_path / "report"
    ran = subprocess.run(
        [sys.executable, "-c", WITH_TIKTOKENS_OWN_LOADER, report],
        cwd=Path(__file__).parents[2],
        env={"TIKTOKEN_CACHE_DIR": str(tmp_path / "empty")},
        capture_output=True,
        check=False,
    )
    assert ran.returncode != 0
    assert report.read_text().startswith(guard.REFUSED)

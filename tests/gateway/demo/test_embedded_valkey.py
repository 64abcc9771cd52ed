import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from redis.asyncio import Redis

from gateway.demo.processes import NotReady
from gateway.demo.valkey import EmbeddedValkey

pytestmark = pytest.mark.anyio

PARENT = """
import sys, tempfile, threading, anyio
from gateway.demo.valkey import EmbeddedValkey

async def main():
    async with EmbeddedValkey() as valkey:
        print(valkey.pid, flush=True)
        await anyio.sleep_forever()

tempfile.tempdir = sys.argv[2]
if sys.argv[1] == "main":
    anyio.run(main)
else:
    threading.Thread(target=anyio.run, args=(main,)).start()
"""


def is_gone(pid: int) -> bool:
    """Whether a process has ended, also if nobody has asked for its exit code."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False
    )
    return state.stdout.strip()[:1] in {b"", b"Z"}


def group_of(leader: int) -> list[str]:
    """Living processes of a group, its leader among them."""
    found = subprocess.run(
        ["pgrep", "-g", str(leader)], capture_output=True, text=True, check=False
    )
    return [pid for pid in found.stdout.split() if not is_gone(int(pid))]


@pytest.fixture
def short_directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="v") as directory:
        yield directory


async def test_valkey_keeps_what_it_is_told_and_nothing_on_disk() -> None:
    async with EmbeddedValkey() as valkey, Redis.from_url(valkey.url) as redis:
        assert valkey.url.startswith("unix:///")
        await redis.set("a", "1")
        assert await redis.get("a") == b"1"
        assert await redis.config_get("maxmemory-policy", "appendonly", "save") == {
            "maxmemory-policy": "noeviction",
            "appendonly": "no",
            "save": "",
        }
        directory = Path(valkey.url.removeprefix("unix://")).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {path.name for path in directory.iterdir()} == {
            "valkey.sock",
            "valkey.log",
        }
        assert (await redis.info("server"))["tcp_port"] == 0
    assert not directory.exists()
    assert is_gone(valkey.pid)


async def test_valkeys_are_strangers_when_many_are_up() -> None:
    async with EmbeddedValkey() as one, EmbeddedValkey() as other:
        async with Redis.from_url(one.url) as redis:
            await redis.set("a", "1")
        async with Redis.from_url(other.url) as redis:
            assert await redis.get("a") is None


async def test_valkey_listens_on_the_port_when_one_is_given() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ("--maxclients", "77")
    async with EmbeddedValkey(port=port, arguments=arguments) as valkey:
        assert valkey.url == f"redis://127.0.0.1:{port}/0"
        async with Redis.from_url(valkey.url) as redis:
            assert await redis.config_get("maxclients") == {"maxclients": "77"}


async def test_valkey_says_why_when_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NotReady, match=f"127.0.0.1:{port}.*in use"):
            async with EmbeddedValkey(port=port):
                pass


async def test_valkey_comes_back_empty_at_its_url_when_started_again() -> None:
    async with EmbeddedValkey() as valkey:
        url, pid = valkey.url, valkey.pid
        async with Redis.from_url(url) as redis:
            await redis.set("a", "1")
        os.kill(pid, signal.SIGKILL)
        await valkey.stop()
        await valkey.start()
        assert (valkey.url, valkey.pid == pid) == (url, False)
        async with Redis.from_url(url) as redis:
            assert await redis.get("a") is None


@pytest.mark.parametrize("thread", ["main", "other"])
def test_valkey_dies_when_its_parent_is_killed(
    thread: str, short_directory: str
) -> None:
    command = [sys.executable, "-c", PARENT, thread, short_directory]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as parent:
        try:
            assert parent.stdout is not None
            valkey = int(parent.stdout.readline())
            assert not is_gone(valkey)
        finally:
            parent.kill()
    wait_until_gone(valkey, within_seconds=2)


def wait_until_gone(leader: int, *, within_seconds: float) -> None:
    until = time.monotonic() + within_seconds
    while group_of(leader):
        assert time.monotonic() < until
        time.sleep(0.02)


async def test_no_watchdog_is_left_when_valkey_ends() -> None:
    async def leader() -> int:
        async with EmbeddedValkey() as valkey:
            assert len(group_of(valkey.pid)) == 2  # the server and its watchdog
            return valkey.pid

    pid = await anyio.to_thread.run_sync(anyio.run, leader)
    await anyio.to_thread.run_sync(lambda: wait_until_gone(pid, within_seconds=2))

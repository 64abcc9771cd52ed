"""The way to a Redis Cluster: a ``Store`` for each master, and the table of its slots.

All keys of a principal share a hash tag, so each call belongs to one slot. It goes to
the node the table names, and what that node answers decides:

============ ====================================================================
reply        then
============ ====================================================================
MOVED        the table learns, and the call goes to the node that is named
ASK          the call goes there this once, after ASKING
TRYAGAIN     some of the keys have moved, some have not: the call is sent again
CLUSTERDOWN  nobody serves the slot: the same
no reply     the call fails, and the table is read anew
============ ====================================================================

A call is sent again only by who waits for it, and only within its time. All are
idempotent. ADR 16.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import anyio
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from gateway.admission.books import key_of
from gateway.admission.scripts import command
from gateway.admission.store import (
    PROBE_SECONDS,
    SECOND_LOOK_SECONDS,
    Reply,
    Store,
)
from gateway.errors import StoreUnavailable

REFRESH_SECONDS = 0.2
"""The table is read no more often than this."""

AGAIN_SECONDS = 0.01
"""Before a call is sent a third time, and each time after that."""

_ASKING = command("ASKING")
_SLOTS = command("CLUSTER", "SLOTS")
_INFO = command("CLUSTER", "INFO")
_WELL = b"cluster_state:ok"
_NO_HOST = (None, b"", b"?")
"""What a node that does not know its own address is announced with."""

type Address = tuple[str, int]
"""Host and port."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeUrls:
    """URLs of nodes: the seed's, with another host and port.

    Attributes:
        seeds: The nodes that the URL itself names.
    """

    scheme: str
    login: str
    query: str
    seeds: tuple[Address, ...]

    @classmethod
    def like(cls, url: str) -> Self:
        """Those of a cluster with one or more nodes, separated by commas, at a URL."""
        parts = urlsplit(url)
        login, at, hosts = parts.netloc.rpartition("@")
        named = [urlsplit(f"//{host}") for host in hosts.split(",")]
        seeds = ((one.hostname or "localhost", one.port or 6379) for one in named)
        return cls(parts.scheme, login + at, parts.query, tuple(seeds))

    def of(self, address: Address) -> str:
        """The URL of a node; a cluster has one database, so the path is gone."""
        host, port = address
        host = f"[{host}]" if ":" in host else host
        netloc = f"{self.login}{host}:{port}"
        return urlunsplit((self.scheme, netloc, "", self.query, ""))


class _NoOwner(StoreUnavailable):
    """The table has no node for the slot."""


@dataclass(slots=True, eq=False)
class _Node:
    host: str
    store: Store
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    is_left: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class _Call:
    """A call on its way; awaiting it follows what the nodes answer."""

    encoded: bytes
    slot: int
    deadline: float
    reply: asyncio.Future[Reply | Exception]
    follow: Callable[["_Call", Exception], Awaitable[Reply | Exception]]

    def __await__(self) -> Generator[Any, None, Reply | Exception]:
        reply = yield from self.reply.__await__()
        if isinstance(reply, Exception):
            return (yield from self.follow(self, reply).__await__())
        return reply


class ClusterStore:
    """A Redis Cluster, from entering the block to leaving it.

    Any node may be down at any time, also all of them when the block is entered. A lost
    node fails the calls for its slots alone, each as a single store does.

    Args:
        url: ``redis://`` or ``rediss://`` of any node, or of several: their hosts and
            ports separated by commas. Its login and query are for all nodes.
        timeout_seconds: Longest wait for a reply, all nodes asked for it included.
        on_change: Told whether all slots can be used, each time that changes.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 0.2,
        on_change: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._urls = NodeUrls.like(url)
        self._timeout_seconds = timeout_seconds
        self._on_change = on_change
        self._is_up = False
        self._nodes: dict[Address, _Node] = {}
        self._owners: list[_Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._masters: tuple[_Node, ...] = ()
        self._has_looked = asyncio.Event()
        self._is_stale = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(exc_type, exc, traceback)  # noqa: ASYNC102 - its tasks end when cancelled

    @property
    def masters(self) -> tuple[Store, ...]:
        """The stores of all slots; none before the first ``ping`` has succeeded."""
        return tuple(node.store for node in self._masters)

    def send(self, encoded: bytes, principal: str) -> Awaitable[Reply | Exception]:
        """Queue a command for the node that has this principal's keys.

        Returns:
            What never raises when awaited (once); ``reply_of`` awaits it.
        """
        slot = key_slot(key_of(principal).encode())
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        reply = self._send(encoded, slot)
        return _Call(encoded, slot, deadline, reply, self._follow)

    async def ping(self) -> None:
        """Ask for a sign of life: a master that sees a cluster in working order.

        One lost master does not make a fleet unready that can still serve the keys of
        the others; a cluster that refuses all calls does.

        Raises:
            StoreUnavailable: There is none.
        """
        with anyio.move_on_after(self._timeout_seconds):
            await self._has_looked.wait()
        for reply in [self._send_to(node, _INFO) for node in self._masters]:
            info = await reply
            if isinstance(info, bytes) and _WELL in info:
                return
        self._is_stale.set()
        raise StoreUnavailable(retry_after_seconds=PROBE_SECONDS)

    def _send(self, encoded: bytes, slot: int) -> asyncio.Future[Reply | Exception]:
        return self._send_to(self._owners[slot], encoded)

    def _send_to(
        self, node: _Node | None, encoded: bytes
    ) -> asyncio.Future[Reply | Exception]:
        try:
            if node is not None:
                return node.store.send(encoded)
            refusal: StoreUnavailable = _NoOwner()
        except StoreUnavailable as error:
            refusal = error
        self._is_stale.set()
        refused: asyncio.Future[Reply | Exception]
        refused = asyncio.get_running_loop().create_future()
        refused.set_result(refusal)
        return refused

    async def _follow(self, call: _Call, reply: Exception) -> Reply | Exception:
        now = asyncio.get_running_loop().time()
        answer: Reply | Exception = reply
        pause = 0.0
        with anyio.move_on_after(max(call.deadline - now, SECOND_LOOK_SECONDS)):
            while self._is_elsewhere(call, answer):
                await anyio.sleep(pause)
                pause = AGAIN_SECONDS
                answer = await self._again(call, answer)
        return answer

    def _is_elsewhere(self, call: _Call, reply: Reply | Exception) -> bool:
        if isinstance(reply, _NoOwner):  # at the start, calls wait for the table
            is_found = self._owners[call.slot] is not None
            return is_found or not self._has_looked.is_set()
        return isinstance(reply, AskError | TryAgainError | ClusterDownError)

    async def _again(self, call: _Call, reply: Exception) -> Reply | Exception:
        match reply:
            case MovedError():
                self._owners[call.slot] = await self._node_named_by(reply, call.slot)
                self._is_stale.set()
            case AskError():
                node = await self._node_named_by(reply, call.slot)
                asking = self._send_to(node, _ASKING)
                asked = self._send_to(node, call.encoded)  # next to it on the wire
                await asking
                return await asked
            case _NoOwner():
                await self._has_looked.wait()
            case _:
                self._is_stale.set()
        return await self._send(call.encoded, call.slot)

    async def _node_named_by(self, reply: AskError, slot: int) -> _Node:
        owner = self._owners[slot]
        host = reply.host or (owner.host if owner else "")
        return await self._node_at((host, reply.port))

    async def _node_at(self, address: Address) -> _Node:
        node = self._nodes.get(address)
        if node is None:
            store = Store(
                self._urls.of(address),
                timeout_seconds=self._timeout_seconds,
                on_change=self._node_changed,
            )
            node = self._nodes[address] = _Node(address[0], store)
            self._tasks.start_soon(self._keep, node)
        await node.is_open.wait()
        return node

    @staticmethod
    async def _keep(node: _Node) -> None:
        async with node.store:
            node.is_open.set()
            await node.is_left.wait()

    async def _run(self) -> None:
        for address in self._urls.seeds:
            await self._node_at(address)
        while True:
            self._is_stale.clear()
            if not await self._look():
                self._is_stale.set()
            self._has_looked.set()
            await anyio.sleep(REFRESH_SECONDS)
            await self._is_stale.wait()

    async def _look(self) -> bool:
        """Read the table from the first node that has one; each time from another."""
        lost_last = sorted(
            self._nodes, key=lambda one: not self._nodes[one].store.is_up
        )
        for address in lost_last:
            node = self._nodes[address] = self._nodes.pop(address)
            table = await self._send_to(node, _SLOTS)
            if isinstance(table, list) and table:
                await self._take(table, node.host)
                return True
            logger.debug("%s:%d has no table of slots: %s", *address, table)
        return False

    async def _take(self, table: list[Any], asked: str) -> None:
        owners: list[_Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, (host, port, *_), *_ in table:
            name = asked if host in _NO_HOST else host.decode()
            node = await self._node_at((name, port))
            owners[first : last + 1] = [node] * (last + 1 - first)
        self._owners = owners
        self._masters = tuple({node: None for node in owners if node is not None})
        for address, node in list(self._nodes.items()):
            is_needed = node in self._masters or address in self._urls.seeds
            if node.store.is_lost and not is_needed:
                node.is_left.set()
                del self._nodes[address]
        self._say()

    def _node_changed(self, is_up: bool) -> None:  # noqa: FBT001 - as Store tells it
        if not is_up:
            self._is_stale.set()
        self._say()

    def _say(self) -> None:
        is_up = None not in self._owners and all(one.is_up for one in self.masters)
        if is_up is not self._is_up:
            self._is_up = is_up
            self._on_change(is_up)

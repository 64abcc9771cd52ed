"""A Redis Cluster of three masters and three replicas, private to this process."""

import os
import signal
import socket
from contextlib import AsyncExitStack, ExitStack
from itertools import count
from types import TracebackType
from typing import Any, Final, Self

import anyio
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from gateway.admission.books import key_of
from gateway.demo.valkey import EmbeddedValkey

MASTERS: Final = 3
SLOTS: Final = 16384
NODE_TIMEOUT_SECONDS: Final = 0.5
"""After which a silent master is taken for dead."""
_FORM_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.02
_HOST: Final = "127.0.0.1"


class ClusterNode:
    """One server, and a client of it that follows no redirection."""

    def __init__(self, kind: type[EmbeddedValkey], port: int, bus_port: int) -> None:
        self.port = port
        self.bus_port = bus_port
        options = {
            "--cluster-enabled": "yes",
            "--cluster-port": bus_port,
            "--cluster-node-timeout": round(NODE_TIMEOUT_SECONDS * 1000),
            "--cluster-require-full-coverage": "no",
            "--cluster-allow-replica-migration": "no",
            "--repl-diskless-sync-delay": 0,
        }
        words = [str(word) for option in options.items() for word in option]
        self.server = kind(port=port, arguments=words)
        self.client = Redis(host=_HOST, port=port, socket_timeout=2.0)

    @property
    def address(self) -> str:
        return f"{_HOST}:{self.port}"

    @property
    def id(self) -> str:
        """The cluster's name for it."""
        name: bytes = self.ask("CLUSTER", "MYID")
        return name.decode()

    def ask(self, *command: str | bytes | int) -> Any:
        """A command as it is: redis-py's own cluster commands parse the replies."""
        connection = self.client.connection_pool.get_connection()
        try:
            connection.send_command(*command)  # type: ignore[no-untyped-call]
            return connection.read_response()
        finally:
            self.client.connection_pool.release(connection)

    def serves(self, slot: int) -> bool:
        """Whether it takes itself for this slot's master."""
        return self.names(self, slot)

    def names(self, other: "ClusterNode", slot: int) -> bool:
        """Whether it takes another for this slot's master."""
        table = self.ask("CLUSTER", "SLOTS")
        return any(
            first <= slot <= last and port == other.port
            for first, last, (_, port, *_), *_ in table
        )

    def stop(self) -> None:
        """Have it hang."""
        os.kill(self.server.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on after ``stop``."""
        os.kill(self.server.pid, signal.SIGCONT)

    async def kill(self) -> None:
        """``kill -9``."""
        os.kill(self.server.pid, signal.SIGKILL)
        await self.server.stop()


class RedisCluster:
    """The nodes, from entry to exit; ``nodes[3:]`` replicate ``nodes[:3]`` at first.

    Args:
        kind: What runs a node.
    """

    def __init__(self, kind: type[EmbeddedValkey] = EmbeddedValkey) -> None:
        ports = _free_ports(4 * MASTERS)
        self.nodes = [
            ClusterNode(kind, port, bus_port)
            for port, bus_port in zip(ports[::2], ports[1::2], strict=True)
        ]
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """Of one node; the others are found."""
        return f"redis://{self.nodes[0].address}"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            clients = stack.enter_context(ExitStack())
            for node in self.nodes:
                clients.enter_context(node.client)
                await stack.enter_async_context(node.server)
            await self._form()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def slot_of(self, principal: str) -> int:
        """Where this key's books are."""
        return key_slot(key_of(principal).encode())

    def owner_of(self, principal: str) -> ClusterNode:
        """The master that serves this key, as the nodes see it that answer."""
        slot = self.slot_of(principal)
        for node in self.nodes:
            try:
                table = node.ask("CLUSTER", "SLOTS")
            except (RedisError, OSError):
                continue
            for first, last, (_, port, *_), *_ in table:
                if first <= slot <= last:
                    return next(one for one in self.nodes if one.port == port)
        message = f"nobody serves slot {slot}"
        raise LookupError(message)

    def principal_at(self, node: ClusterNode, name: str) -> str:
        """An id whose books are at this master."""
        names = (f"{name}-{number}" for number in count())
        return next(one for one in names if self.owner_of(one) is node)

    def replica_of(self, master: ClusterNode) -> ClusterNode:
        """The one it has at first."""
        return self.nodes[(self.nodes.index(master) + MASTERS) % len(self.nodes)]

    async def begin_move(self, slot: int, to: ClusterNode) -> ClusterNode:
        """Announce that a slot moves to another master; no key has yet."""
        source = next(node for node in self.nodes if node.serves(slot))
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        await anyio.lowlevel.checkpoint()
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
        return source

    async def move_keys(self, slot: int, source: ClusterNode, to: ClusterNode) -> None:
        """Move the keys of a slot, two at a time."""
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 2):
            source.ask("MIGRATE", _HOST, to.port, "", 0, 1000, "KEYS", *keys)
            await anyio.lowlevel.checkpoint()

    async def end_move(self, slot: int, source: ClusterNode, to: ClusterNode) -> None:
        """The new master serves the slot; until all know that."""
        for node in (to, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", to.id)
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(_FORM_SECONDS):
            while not all(node.names(to, slot) for node in self.nodes):  # noqa: ASYNC110 - the same
                await anyio.sleep(_LOOK_SECONDS)

    async def move(self, slot: int, to: ClusterNode) -> None:
        """Move a slot to another master, as ``redis-cli --cluster reshard`` does."""
        source = await self.begin_move(slot, to)
        await self.move_keys(slot, source, to)
        await self.end_move(slot, source, to)

    async def wait_until_well(self) -> None:
        """Until every node that runs sees all slots served, and its master."""
        with anyio.fail_after(_FORM_SECONDS):
            while not all(map(_is_well, self.nodes)):  # noqa: ASYNC110 - of others
                await anyio.sleep(_LOOK_SECONDS)

    async def _form(self) -> None:
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if node is not first:
                node.ask("CLUSTER", "MEET", _HOST, first.port, first.bus_port)
        bounds = [SLOTS * number // MASTERS for number in range(MASTERS + 1)]
        for node, begin, end in zip(self.nodes, bounds, bounds[1:], strict=False):
            node.ask("CLUSTER", "ADDSLOTSRANGE", begin, end - 1)
        with anyio.fail_after(_FORM_SECONDS):
            while not all(map(self._knows_all, self.nodes)):  # noqa: ASYNC110 - the same
                await anyio.sleep(_LOOK_SECONDS)
        for master, replica in zip(self.nodes, self.nodes[MASTERS:], strict=False):
            replica.ask("CLUSTER", "REPLICATE", master.id)
        await self.wait_until_well()

    def _knows_all(self, node: ClusterNode) -> bool:
        known = node.ask("CLUSTER", "NODES").decode()
        return known.count("connected") >= len(self.nodes) and "handshake" not in known


def _is_well(node: ClusterNode) -> bool:
    try:
        if b"cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
            return False
        role, *rest = node.ask("ROLE")
    except (OSError, RedisError):
        return True  # it was killed
    return bool(rest[1]) if role == b"master" else rest[2] == b"connected"


def _free_ports(amount: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server((_HOST, 0))) for _ in range(amount)
        ]
        return [one.getsockname()[1] for one in listeners]

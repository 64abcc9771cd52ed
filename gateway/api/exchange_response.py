"""The response that owns an exchange, and the only reader of ``receive()``."""

from collections.abc import Callable
from copy import replace
from typing import override

import anyio
from anyio import TaskHandle, to_thread
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.edge import raw_send_of, request_id_of
from gateway.api.http_client import HttpClient
from gateway.api.request_body import Body, parse_body, read_body
from gateway.api.services import Services
from gateway.exchange.ask import Ask
from gateway.exchange.exchange import Exchange
from gateway.settings.schema import AffinitySettings
from streaming.errors import ClientDisconnected, Fault

INLINE_BYTES = 131_072
"""Of a body that is parsed on the event loop: some 10 ms at worst."""

type Parse = Callable[[Body, str], Ask]
"""From a parsed body and a request id to what is asked for."""


class ExchangeResponse(Response):
    """Reads the request, runs its exchange, answers it: all in one frame.

    Args:
        services: What the application is made of.
        parse: Turns the body into what is asked for.
    """

    def __init__(self, services: Services, parse: Parse) -> None:
        self._services = services
        self._parse = parse
        self.background = None  # what the framework looks at in any response

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request; every fault becomes an answer."""
        services = self._services
        client = HttpClient(
            send,
            raw_send_of(scope),
            beats_early=services.settings.streaming.heartbeat_before_first_event,
        )
        try:
            services.exchanges.check_room()  # before anything is read
            exchange = services.exchanges.begin(
                await self._read(scope, receive), client
            )
        except ClientDisconnected:
            return
        except Fault as fault:
            services.metrics.rejection(fault.code)
            await client.fail(fault)
            return
        async with anyio.create_task_group() as tasks:
            client.beat_in(tasks)
            watching = tasks.start_soon(_watch, receive, exchange)
            await exchange.run()
            # A server tells the watcher when its answer has ended: then nobody waits.
            if watching.status is TaskHandle.Status.PENDING:
                tasks.cancel_scope.cancel()

    async def _read(self, scope: Scope, receive: Receive) -> Ask:
        settings = self._services.settings
        body = await read_body(
            receive, scope["headers"], settings.server.max_body_bytes
        )
        if len(body) <= INLINE_BYTES:
            parsed = parse_body(body)
        else:
            parsed = await to_thread.run_sync(parse_body, body)
        ask = self._parse(parsed, request_id_of(scope))
        if (affinity := settings.routing.affinity) is None:
            return ask
        return replace(ask, session=_session(affinity, scope, ask))


def _session(affinity: AffinitySettings, scope: Scope, ask: Ask) -> str:
    """What the client calls its session; empty when it calls it nothing."""
    if affinity.field is not None:
        named = ask.body.get(affinity.field)
        return named if isinstance(named, str) else ""
    assert affinity.header is not None  # noqa: S101 - one of them is set
    return Headers(scope=scope).get(affinity.header, "")


async def _watch(receive: Receive, exchange: Exchange) -> None:
    """Wait for the client to leave; nothing else can come after the body."""
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.leave()

"""A simulated vLLM: its HTTP interface, its bytes and its failures, without a model.

It answers like vLLM 0.32 (``answers``), at the pace and with the fault that the
request's model name asks for (``scenario``), and keeps a record of every generation
request (``attempts``)::

    POST   /v1/chat/completions, /v1/completions, /v1/embeddings
    GET    /v1/models, /health
    GET    /sim/log     the records as a JSON list, newest last
    DELETE /sim/log     forgets them: []
    GET    /sim/stats   {"open_connections", "in_flight", "attempts"}
"""

import asyncio
from collections.abc import Callable, Iterator
from http import HTTPMethod, HTTPStatus
from types import TracebackType
from typing import Final, Self

import anyio
import msgspec

from gateway.demo import wire
from gateway.demo.answers import answer_to
from gateway.demo.attempts import Attempt, AttemptLog, now
from gateway.demo.connection import Connection, Reply
from gateway.demo.embeddings import embeddings
from gateway.demo.faults import steps_of
from gateway.demo.generation import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    Generation,
    Refused,
    read_generation,
)
from gateway.demo.request_reader import Request
from gateway.demo.scenario import SimulatorSettings, UnknownFault, scenario_for
from gateway.demo.wire import Ending, Step, Write

_CLOSE_SECONDS: Final = 2.0


class SimulatedProvider:
    """The simulated provider in this process; ``async with`` opens and closes it.

    Args:
        settings: Defaults for requests whose model name says nothing else.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.

    Attributes:
        log: The live records, newest last.
    """

    def __init__(
        self,
        settings: SimulatorSettings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.log = AttemptLog()
        self._settings = settings or SimulatorSettings()
        self._host = host
        self._port = port
        self._connections: set[Connection] = set()
        self._routes: dict[str, dict[str, Callable[[Request], Reply]]] = {
            CHAT_COMPLETIONS: {HTTPMethod.POST: self._generate},
            COMPLETIONS: {HTTPMethod.POST: self._generate},
            "/v1/embeddings": {HTTPMethod.POST: self._embed},
            "/v1/models": {HTTPMethod.GET: self._models},
            "/health": {HTTPMethod.GET: self._health},
            "/sim/stats": {HTTPMethod.GET: self._stats},
            "/sim/log": {
                HTTPMethod.GET: self._read_log,
                HTTPMethod.DELETE: self._clear_log,
            },
        }

    @property
    def port(self) -> int:
        """The port it listens on, once open."""
        return self._port

    @property
    def base_url(self) -> str:
        """For an OpenAI client, once open."""
        return f"http://{self._host}:{self._port}/v1"

    @property
    def open_connections(self) -> int:
        """Sockets of clients."""
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        """Answers going on, hanging ones among them."""
        return sum(connection.busy for connection in self._connections)

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            OSError: The port is taken, or the address is not one of this machine.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._connection, self._host, self._port, backlog=4096
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening and cut every connection."""
        self._server.close()
        for connection in list(self._connections):
            connection.stop()
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self._server.wait_closed()

    def _connection(self) -> Connection:
        return Connection(
            self._reply_to, self._settings.keep_alive_seconds, self._connections
        )

    def _reply_to(self, request: Request) -> Reply:
        methods = self._routes.get(request.path)
        if methods is None:
            status = HTTPStatus.NOT_FOUND
            return _json(request, {"detail": status.phrase}, status)
        if request.method not in methods:
            status = HTTPStatus.METHOD_NOT_ALLOWED
            return _json(request, {"detail": status.phrase}, status)
        return methods[request.method](request)

    def _generate(self, request: Request) -> Reply:
        attempt = Attempt(
            request_id=request.request_id, path=request.path, started=now()
        )
        self.log.begin(attempt)
        try:
            steps = self._steps(request, attempt)
        except Refused as refusal:
            steps = _json(request, refusal.envelope, refusal.status).steps
        return Reply(steps, attempt)

    def _embed(self, request: Request) -> Reply:
        try:
            return _json(request, embeddings(request.body, self._settings.model))
        except Refused as refusal:
            return _json(request, refusal.envelope, refusal.status)

    def _steps(self, request: Request, attempt: Attempt) -> Iterator[Step]:
        generation = read_generation(request, self._settings.model)
        attempt.model, attempt.stream = generation.model, generation.stream
        scenario = self._scenario(generation)
        attempt.fault = scenario.fault
        return steps_of(answer_to(generation, scenario))

    def _scenario(self, generation: Generation) -> SimulatorSettings:
        try:
            return scenario_for(generation.model, self._settings)
        except UnknownFault as error:
            message = f"The model `{generation.model}` does not exist: no such fault."
            raise Refused(message, "model", HTTPStatus.NOT_FOUND) from error

    def _models(self, request: Request) -> Reply:
        model = {
            "id": self._settings.model,
            "object": "model",
            "created": now().wall_ns // 10**9,
            "owned_by": "vllm",
            "root": self._settings.model,
            "parent": None,
            "max_model_len": 131_072,
            "permission": [],
        }
        return _json(request, {"object": "list", "data": [model]})

    def _health(self, request: Request) -> Reply:
        return _body(request, b"")

    def _stats(self, request: Request) -> Reply:
        stats = {
            "open_connections": self.open_connections,
            "in_flight": self.in_flight,
            "attempts": self.log.total,
        }
        return _json(request, stats)

    def _read_log(self, request: Request) -> Reply:
        return _json(request, list(self.log))

    def _clear_log(self, request: Request) -> Reply:
        self.log.clear()
        return self._read_log(request)


async def serve_simulated(
    settings: SimulatorSettings,
    host: str,
    port: int,
    *,
    listening: Callable[[str], object] = lambda _: None,
) -> None:
    """Serve until cancelled; ``listening`` is called with the base URL, once.

    Raises:
        OSError: The port is taken, or the address is not one of this machine.
    """
    async with SimulatedProvider(settings, host=host, port=port) as provider:
        listening(provider.base_url)
        await anyio.sleep_forever()


def _json(
    request: Request, content: object, status: HTTPStatus = HTTPStatus.OK
) -> Reply:
    return _body(request, msgspec.json.encode(content), status)


def _body(request: Request, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    response = wire.whole(status, wire.JSON, request.request_id, body)
    return Reply(iter((Write(0.0, response), Ending.KEEP_ALIVE)))

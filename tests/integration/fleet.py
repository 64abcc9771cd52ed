"""What an integration test runs against: a store, a provider and a gateway, all real.

::

    test ── HTTP ──► gateway serve ── HTTP ──► SimulatedProvider, in this process
                     processes    └─────────► Valkey, a process

The fleet lives in a thread of its own, so that it serves tests of any colour, also one
that blocks its event loop. The provider's log is read from here by any thread.
"""

import json
import os
import secrets
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from prometheus_client.parser import text_string_to_metric_families

from gateway.api.quota import Quota, WindowBody
from gateway.auth.principal import Limits
from gateway.auth.secret import digest, new_secret
from gateway.demo.attempts import Attempt, End
from gateway.demo.simulated import SimulatedProvider
from gateway.demo.valkey import EmbeddedValkey
from tests.integration.gateway_process import GatewayProcess

GATEWAY = Path(sys.executable).with_name("gateway")
SETTLE_SECONDS = 2.0
"""How long after an exchange's end its settlement may be seen."""
ARRIVE_SECONDS = 10.0
"""How long a request may take to the provider, on whatever machine this is."""
_LOOK_SECONDS = 0.005
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the usual one is read from disk


KEYS_FILE = "keys.json"
MODEL_CAP = 500
"""``max_output_tokens`` of every model."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a key may use."""

    limits: Limits = field(default_factory=Limits)
    models: tuple[str, ...] = ("*",)


UNLIMITED = Terms()


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the keys document, with its secret."""

    id: str
    secret: str
    terms: Terms

    @property
    def headers(self) -> dict[str, str]:
        """What a request must carry."""
        return {"authorization": f"Bearer {self.secret}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is particular to a fleet.

    Attributes:
        models: Public name to the simulated model's, which says how it behaves.
        terms: Of keys; there are eight of each, besides the unlimited ones.
        unlimited: How many there are of those.
        gateways: How many there are.
        workers: How many processes share the port of each.
        store_url: Of a store of the test's own; the fleet does not wait for it.
        keys_file: Whether the gateways have their keys from a file.
        server, streaming: Sections of the configuration.
        providers: More of them, by name: base URLs. The model of that name is their
            only one, here and there.
        max_concurrency: Of each of these providers.
        extra: More of the configuration, section by section; lists are added to.
        tokenizer: Of every model.
        command: Runs the gateway's command line.
        environment: More variables of the gateway.
    """

    models: Mapping[str, str]
    terms: Sequence[Terms] = ()
    unlimited: int = 120
    gateways: int = 1
    workers: int = 1
    store_url: str | None = None
    keys_file: bool = False
    server: Mapping[str, object] = field(default_factory=dict)
    streaming: Mapping[str, object] = field(default_factory=dict)
    providers: Mapping[str, str] = field(default_factory=dict)
    max_concurrency: int = 256
    extra: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = "o200k_base"
    command: Sequence[str] = (str(GATEWAY),)
    environment: Mapping[str, str] = field(default_factory=dict)

    def configuration(self, provider: str) -> dict[str, object]:
        """The gateway's, with the simulated provider at this URL."""
        urls = {"simulated": provider, **self.providers}
        candidates = {
            **{name: ("simulated", model) for name, model in self.models.items()},
            **{name: (name, name) for name in self.providers},
        }
        document: dict[str, Any] = {
            "server": {"host": "127.0.0.1", "drain_seconds": 2, **self.server},
            "streaming": dict(self.streaming),
            "keys": {"file": KEYS_FILE} if self.keys_file else {"env": "GATEWAY_KEYS"},
            "providers": [
                {
                    "name": name,
                    "adapter": "vllm",
                    "base_url": url,
                    "max_concurrency": self.max_concurrency,
                }
                for name, url in urls.items()
            ],
            "models": [
                {
                    "name": name,
                    "tokenizer": self.tokenizer,
                    "max_output_tokens": MODEL_CAP,
                    "candidates": [{"provider": at, "model": model}],
                }
                for name, (at, model) in candidates.items()
            ],
        }
        for section, more in self.extra.items():
            known = document.setdefault(section, type(more)())
            document[section] = known + more if isinstance(more, list) else more
        return document


class Fleet:
    """The parts, running from entry to exit of the block.

    Leaving the block checks what is true of every test: a gateway leaves in order
    when asked, with code 0, and has logged no exception in its whole life.

    Attributes:
        provider: Its ``log`` has every attempt.
        gateways: All of them; where nothing else is said, the first is meant.
        keys: Of the document, in its order.
        directory: Where the configuration is, and the keys file.
        store_url: Of the store.
    """

    directory: Path
    gateways: Sequence[GatewayProcess] = ()

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._pepper = secrets.token_hex(16)
        amounts = {UNLIMITED: plan.unlimited, **dict.fromkeys(plan.terms, 8)}
        keys = _new_keys(amounts)
        self._unused = {terms: iter(some) for terms, some in keys.items()}
        self.keys = [key for some in keys.values() for key in some]
        self._stack = AsyncExitStack()
        self.provider = SimulatedProvider()
        self.store_url = plan.store_url or ""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if not self._plan.store_url:
                self.store_url = (
                    store_url_given()
                    or (await stack.enter_async_context(EmbeddedValkey())).url
                )
            await stack.enter_async_context(self.provider)
            directory = anyio.TemporaryDirectory[str](prefix="fleet-")
            self.directory = Path(await stack.enter_async_context(directory))
            await self._write_configuration()
            self.gateways = [self._gateway(n) for n in range(self._plan.gateways)]
            stack.push_async_callback(self._stop)
            for gateway in self.gateways:
                await gateway.start()
            path = "/healthz" if self._plan.store_url else "/readyz"
            for at, gateway in enumerate(self.gateways):
                async with self.client(at=at) as client:
                    await gateway.answers(path, client)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async with self._stack:
            await self._stop()
            for gateway in self.gateways:
                seen = gateway.exit_code, gateway.exceptions_logged
                assert seen == (0, ""), f"exit code {seen[0]}: {seen[1][:4000]}"

    @property
    def base_url(self) -> str:
        """Of the gateway, without ``/v1``."""
        return self.gateways[0].base_url

    @property
    def pid(self) -> int:
        """The gateway's process id."""
        return self.gateways[0].pid

    @property
    def rss_bytes(self) -> int:
        """Memory of the gateway's process (Linux)."""
        return self.gateways[0].rss_bytes

    def new_key(self, terms: Terms = UNLIMITED) -> Key:
        """A key nobody has used; all but unlimited ones are in the plan."""
        return next(self._unused[terms])

    def client(self, key: Key | None = None, at: int = 0) -> httpx.AsyncClient:
        """A client of a gateway, for the caller's event loop and to be closed."""
        return httpx.AsyncClient(
            base_url=self.gateways[at].base_url,
            headers={} if key is None else key.headers,
            limits=httpx.Limits(max_connections=None),
            timeout=30,
            trust_env=False,
            verify=_NO_TLS,
        )

    async def quota(self, key: Key, at: int = 0) -> Quota:
        """``GET /v1/quota``."""
        async with self.client(key, at) as client:
            answer = await client.get("/v1/quota")
            return cast("Quota", answer.raise_for_status().json())

    async def day(self, key: Key) -> WindowBody:
        """The day's window of the quota."""
        return (await self.quota(key))["windows"][0]

    async def used(self, key: Key) -> int:
        """What was charged today, once nothing is held any more."""
        day = await eventually(lambda: self.day(key), lambda day: day["reserved"] == 0)
        assert day["reserved"] == 0
        return day["used"]

    async def metric(
        self, name: str, by: str = "", at: int = 0, **labels: str
    ) -> Counter[str]:
        """The samples of a metric with these labels, added up by one more label."""
        async with self.client(at=at) as client:
            text = (await client.get("/metrics")).raise_for_status().text
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    found[sample.labels.get(by, "")] += round(sample.value)
        return found

    async def outcomes(self, model: str) -> Counter[str]:
        """How the exchanges of a model ended."""
        name = "gateway_exchanges_total"
        return await self.metric(name, by="outcome", model=model)

    async def outcomes_since(self, model: str, before: Counter[str]) -> Counter[str]:
        """The same since then, as soon as one has ended."""
        after = await eventually(
            lambda: self.outcomes(model), lambda now: now != before
        )
        return after - before

    async def attempt(self, request_id: str) -> Attempt:
        """The provider's record of a request, as soon as there is one."""
        found = await eventually(
            lambda: self._find(request_id), lambda one: one is not None, ARRIVE_SECONDS
        )
        assert found is not None
        return found

    async def _find(self, request_id: str) -> Attempt | None:
        await anyio.lowlevel.checkpoint()
        log = list(self.provider.log)
        return next((one for one in log if one.request_id == request_id), None)

    def command(self, *arguments: str) -> tuple[str, ...]:
        """The gateway's command line."""
        return (*self._plan.command, *arguments)

    @property
    def environment(self) -> dict[str, str]:
        """All variables of a gateway."""
        keys = {"GATEWAY_KEYS": self.keys_document(self.keys)}
        return {
            "PATH": os.environ["PATH"],  # noqa: TID251 - for whatever the command is
            "REDIS_URL": self.store_url,
            **({} if self._plan.keys_file else keys),
            "GATEWAY_KEY_PEPPER": self._pepper,
            **self._plan.environment,
        }

    def keys_document(self, keys: Sequence[Key]) -> str:
        """The document that has these keys."""
        entries = [
            {
                "id": key.id,
                "digest": digest(key.secret, self._pepper),
                "models": key.terms.models,
                "limits": asdict(key.terms.limits),
            }
            for key in keys
        ]
        return json.dumps({"keys": entries})

    async def _write_configuration(self) -> None:
        document = self._plan.configuration(self.provider.base_url)
        here = anyio.Path(self.directory)
        await (here / "gateway.json").write_text(json.dumps(document))
        await (here / KEYS_FILE).write_text(self.keys_document(self.keys))

    def _gateway(self, number: int) -> GatewayProcess:
        port = free_port()
        config = str(self.directory / "gateway.json")
        workers = str(self._plan.workers)
        where = ("--config", config, "--port", str(port), "--workers", workers)
        return GatewayProcess(
            self.command("serve", *where),
            self.environment,
            port,
            self.directory / f"gateway-{number}.log",
        )

    async def _stop(self) -> None:
        async with anyio.create_task_group() as tasks:
            for gateway in self.gateways:
                tasks.start_soon(gateway.stop)


@contextmanager
def running(plan: Plan) -> Iterator[Fleet]:
    """The fleet, for any thread but its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Fleet(plan)) as fleet,
    ):
        yield fleet


async def eventually[T](
    read: Callable[[], Awaitable[T]],
    holds: Callable[[T], bool],
    within_seconds: float = SETTLE_SECONDS,
) -> T:
    """The first value that is as it should be, or the last one read in time."""
    until = anyio.current_time() + within_seconds
    while not holds(value := await read()) and anyio.current_time() < until:  # noqa: ASYNC110 - of another process nothing can be awaited
        await anyio.sleep(_LOOK_SECONDS)
    return value


async def end_of(attempt: Attempt) -> End | None:
    """How an attempt ended for its provider, as soon as it has."""
    with anyio.move_on_after(SETTLE_SECONDS):
        while attempt.end is None:  # noqa: ASYNC110 - the provider tells nobody
            await anyio.sleep(_LOOK_SECONDS)
    return attempt.end


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return cast("int", listener.getsockname()[1])


def store_url_given() -> str | None:
    """Of a store that is there already; it is not emptied."""
    return os.environ.get("SLUICE_TEST_REDIS_URL")  # noqa: TID251 - a switch of tests


def _new_keys(amounts: Mapping[Terms, int]) -> dict[Terms, list[Key]]:
    fleet = secrets.token_hex(4)  # a store that is shared must not mix them up
    return {
        terms: [
            Key(f"{fleet}-{index}-{number}", new_secret(), terms)
            for number in range(amount)
        ]
        for index, (terms, amount) in enumerate(amounts.items())
    }

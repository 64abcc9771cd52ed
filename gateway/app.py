"""The composition root: the only place where the parts are made and put together.

Opened in this order, closed in the other: the store (settlements go on until the end),
the providers' connections, the loops of keeper and ticker (after the last exchange).
"""

import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from time import monotonic, thread_time
from types import TracebackType

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.abc import TaskGroup
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from gateway import collector
from gateway.admission.estimate import Estimator
from gateway.admission.leases import LeaseKeeper
from gateway.admission.ledger_metrics import LedgerMetrics
from gateway.admission.redis_ledger import RedisLedger
from gateway.admission.tokenizer import load_tokenizer
from gateway.api import generation, health, models, quota
from gateway.api.edge import Edge
from gateway.api.error_response import answer_fault, answer_no_route
from gateway.api.services import Services
from gateway.auth.failures import FailedAuthLimiter
from gateway.auth.keyring import Keyring, parse_keys
from gateway.errors import Draining, StoreUnavailable
from gateway.exchange.capacity import Capacity, exchanges_within, file_limit
from gateway.exchange.exchange import Bounds, Exchanges
from gateway.providers.adapter import AdaptedProvider
from gateway.providers.provider import Endpoint, Provider
from gateway.providers.registry import ProviderConfig, build_provider
from gateway.providers.upstream import UpstreamClient
from gateway.routing.attempt import Attempts
from gateway.routing.breaker import BreakerRule
from gateway.routing.health import watch
from gateway.routing.router import Candidate, Router
from gateway.routing.standing import Rules, Standing
from gateway.settings import (
    DocumentError,
    ProviderSettings,
    Settings,
    SettingsError,
    keys_document_text,
    pepper,
    provider_keys,
    redis_url,
    secret,
    tokenizer_cache_dir,
)
from gateway.telemetry.board import REPORT_SECONDS, REPORT_SHARE, Seat
from gateway.telemetry.metrics import Metrics
from streaming.deadlines import Deadlines
from streaming.dialects.chat import ChatDialect
from streaming.dialects.completions import CompletionsDialect
from streaming.dialects.embeddings import EmbeddingsDialect
from streaming.errors import Fault
from streaming.ticker import Ticker

END_SECONDS = 3.0
"""How long the last exchanges may take to tell their clients and settle."""
_SEED_SECONDS = 0.5
_log = logging.getLogger(__name__)
_COUNTING_THREADS = 2
_CORS_REQUEST = ["authorization", "content-type", "x-api-key", "x-request-id"]
_CORS_ANSWER = [
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
    "x-gateway-provider",
    "x-gateway-model",
    "x-gateway-attempts",
]


def create_app(settings: Settings) -> ASGIApp:
    """The application, not yet running: its lifespan opens everything.

    Raises:
        SettingsError: A variable or file that the configuration names is missing, or
            the keys document cannot be used.
    """
    return Application(settings, *from_environment(settings)).asgi


def from_environment(settings: Settings) -> tuple[str, Keyring]:
    """The store's URL and the keys, from where the configuration says they are.

    Raises:
        SettingsError: A variable or file that the configuration names is missing.
        KeysError: The keys document cannot be used.
    """
    key_pepper = pepper()
    if key_pepper is None:
        raise SettingsError(["keys: GATEWAY_KEY_PEPPER is not set"])
    principals = parse_keys(keys_document_text(settings.keys))
    return redis_url(settings.redis), Keyring(principals, key_pepper)


class Application:
    """The application; its block is the lifespan of everything in it.

    Args:
        settings: The configuration.
        store_url: Of the quota store.
        keyring: Who may call.
        seat: Where this process is one of several workers.

    Attributes:
        asgi: What a server runs; its lifespan enters and leaves the block.
        exchanges: What a server drains.
    """

    def __init__(
        self,
        settings: Settings,
        store_url: str,
        keyring: Keyring,
        seat: Seat | None = None,
    ) -> None:
        self._settings = settings
        self._seat = seat
        self._metrics = Metrics(seat)
        self._keyring = keyring
        self._observer = LedgerMetrics(self._metrics)
        self._ledger = RedisLedger(
            store_url,
            cluster=settings.redis.cluster,
            timeout_seconds=settings.redis.timeout_seconds,
            observer=self._observer,
        )
        self._keeper = LeaseKeeper(
            self._ledger,
            monotonic,
            on_settled=self._metrics.settlement,
            on_swept=self._observer.swept,
            principals=lambda: [one.id for one in self._keyring.principals],
        )
        self._ticker = Ticker(monotonic)
        self._providers = _providers(settings)
        self._standing = Standing(_rules(settings), self._metrics, monotonic)
        self.exchanges = self._make_exchanges()
        self.asgi = self._assemble()
        self._stack = AsyncExitStack()
        self._unread: anyio.Event
        self._unseeded: anyio.Event

    async def __aenter__(self) -> None:
        await self._stack.enter_async_context(self._ledger)
        for provider in self._providers.values():
            self._stack.push_async_callback(provider.client.aclose)
        self._unread = anyio.Event()
        self._unseeded = anyio.Event()
        self._unseeded.set()
        loops = await self._stack.enter_async_context(anyio.create_task_group())
        for loop in (self._ticker.run, self._keeper.run, self._reread, self._seed):
            loops.start_soon(loop)
        self._watch_providers(loops)
        self._stack.callback(loops.cancel_scope.cancel)
        self._observe()
        if (port := self._settings.telemetry.metrics_port) is not None and (
            self._seat is None or self._seat.is_first
        ):
            close = self._metrics.serve(self._settings.server.host, port)
            self._stack.callback(close)
        if self._seat is not None:
            loops.start_soon(self._report)
        collector.tune()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the last exchanges, settle what still waits, close."""
        self.exchanges.draining = True
        self.exchanges.end_all(Draining())
        with anyio.move_on_after(END_SECONDS, shield=True):
            await self._ticker.idle()
            await self._keeper.drain()
        await self._stack.aclose()
        self._metrics.report()

    async def _report(self) -> None:
        while True:
            begun = thread_time()
            self._metrics.report()
            took = thread_time() - begun
            await anyio.sleep(max(REPORT_SECONDS, took / REPORT_SHARE))

    def _watch_providers(self, loops: TaskGroup) -> None:
        """Probe those that have a health path; leave out those without their key."""
        for one in self._settings.providers:
            usable = _is_usable(one)
            self._standing.note_health(one.name, is_up=usable)
            if not usable:
                _log.warning(
                    "provider %s is left out: no %s", one.name, one.api_key_env
                )
            elif one.health_path is not None:
                client = self._providers[one.name].client
                probe = partial(_status, client, one.health_path)
                loops.start_soon(watch, one.name, probe, self._standing)

    def reload_keys(self) -> None:
        """Read the keys document again; one that cannot be used changes nothing."""
        self._unread.set()  # this is a signal handler: it can start no task

    async def _reread(self) -> None:
        while True:
            await self._unread.wait()
            self._unread = anyio.Event()
            try:
                # In a thread: 10,000 keys take 0.4 s.
                principals = await to_thread.run_sync(
                    lambda: parse_keys(keys_document_text(self._settings.keys))
                )
            except DocumentError as error:
                mistakes = "; ".join(error.mistakes)
                _log.error("the keys document is not taken: %s", mistakes)
                continue
            self._keyring.replace(principals)
            self._unseeded.set()
            _log.info("the keys document is taken: %d keys", len(principals))

    async def _seed(self) -> None:
        """Make new keys known to the store as soon as it can be reached."""
        while True:
            await self._unseeded.wait()
            self._unseeded = anyio.Event()
            try:
                await self._ledger.seed(self._keyring.principals)
            except StoreUnavailable:
                self._unseeded.set()
                await anyio.sleep(_SEED_SECONDS)

    @property
    def drain_seconds(self) -> float:
        """How long exchanges may go on after the signal to leave."""
        return self._settings.server.drain_seconds

    def _make_exchanges(self) -> Exchanges:
        settings = self._settings
        return Exchanges(
            router=_router(settings, self._providers),
            attempts=Attempts(self._standing),
            estimators=_estimators(settings),
            dialects={
                Endpoint.CHAT_COMPLETIONS: ChatDialect(),
                Endpoint.COMPLETIONS: CompletionsDialect(),
                Endpoint.EMBEDDINGS: EmbeddingsDialect(),
            },
            keeper=self._keeper,
            ticker=self._ticker,
            metrics=self._metrics,
            bounds=_bounds(settings),
            capacity=Capacity(
                min(settings.server.max_exchanges, exchanges_within(file_limit())),
                settings.server.max_lag_seconds,
            ),
            clock=monotonic,
        )

    def _assemble(self) -> ASGIApp:
        web = FastAPI(
            title="Sluice",
            openapi_url=None,
            telemetry={"tracing": False, "metrics": False, "logs": False},
            lifespan=lambda _: self,
            exception_handlers={Fault: answer_fault, HTTPException: answer_no_route},
        )
        services = web.state.services = Services(
            settings=self._settings,
            keyring=self._keyring,
            failed_auth=FailedAuthLimiter(),
            ledger=self._ledger,
            exchanges=self.exchanges,
            metrics=self._metrics,
            clock=monotonic,
        )
        generation.add_routes(web, services)
        for routes in (models, quota, health):
            web.include_router(routes.router)
        if self._settings.telemetry.metrics_port is None:
            web.include_router(health.metrics_router)
        origins = self._settings.server.cors_origins
        return Edge(_with_cors(web, origins) if origins else web)

    def _observe(self) -> None:
        """Gauges that are read off when somebody looks."""
        metrics, keeper = self._metrics, self._keeper
        metrics.settlement_queue.set_function(lambda: keeper.backlog)
        metrics.reservations_open.set_function(lambda: len(keeper.kept))
        metrics.reserved_tokens.set_function(
            lambda: sum(one.amount for one in keeper.kept)
        )
        metrics.event_loop_lag.set_function(lambda: self._ticker.lag_seconds)


def _providers(settings: Settings) -> dict[str, AdaptedProvider]:
    keys = provider_keys(settings)
    return {
        one.name: build_provider(
            ProviderConfig(
                name=one.name,
                adapter=one.adapter,
                base_url=one.base_url,
                api_key=keys[one.name],
                connect_seconds=one.connect_seconds,
                buffer_bytes=settings.streaming.buffer_bytes,
            )
        )
        for one in settings.providers
    }


def _estimators(settings: Settings) -> dict[str, Estimator]:
    """One per model; models of one vocabulary share its tokenizer."""
    names = {model.tokenizer for model in settings.models}
    tokenizers = {name: load_tokenizer(name, tokenizer_cache_dir()) for name in names}
    limiter = CapacityLimiter(_COUNTING_THREADS)
    return {
        model.name: Estimator(
            tokenizers[model.tokenizer], model.max_output_tokens, limiter
        )
        for model in settings.models
    }


def _router(settings: Settings, providers: Mapping[str, Provider]) -> Router:
    return Router({
        model.name: [
            Candidate(providers[one.provider], one.model, one.priority, one.weight)
            for one in model.candidates
        ]
        for model in settings.models
    })


def _rules(settings: Settings) -> Rules:
    breaker, affinity = settings.routing.breaker, settings.routing.affinity
    return Rules(
        most={one.name: one.max_concurrency for one in settings.providers},
        retry_budget=settings.routing.retry_budget,
        breaker=BreakerRule(
            breaker.failures, breaker.window_seconds, breaker.open_seconds
        ),
        max_load=affinity.max_load if affinity else 1.0,
    )


def _is_usable(provider: ProviderSettings) -> bool:
    """Whether the provider's key is there, if it needs one."""
    return provider.api_key_env is None or secret(provider.api_key_env) is not None


async def _status(client: UpstreamClient, path: str) -> int:
    status, _ = await client.get(path)
    return status


def _bounds(settings: Settings) -> Bounds:
    streaming = settings.streaming
    return Bounds(
        max_event_bytes=streaming.max_event_bytes,
        max_response_bytes=settings.server.max_response_bytes,
        deadlines=Deadlines(
            first_byte_seconds=streaming.first_byte_seconds,
            idle_seconds=streaming.idle_seconds,
            write_stall_seconds=streaming.write_stall_seconds,
            total_seconds=streaming.total_seconds,
            heartbeat_seconds=streaming.heartbeat_seconds,
        ),
    )


def _with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=_CORS_REQUEST,
        expose_headers=_CORS_ANSWER,
    )

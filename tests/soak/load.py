"""What clients do during a soak, and the record of it.

Most clients have a key of their own and one exchange at a time, so that the charge of
each is seen. The others share keys with small limits, and reach them.
"""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import uuid4

import anyio
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.admission.books import Calendar, calendar_at, keys_of
from gateway.demo.attempts import Attempt
from gateway.demo.text import passage
from tests.integration.fleet import Fleet, Key
from tests.integration.raw_client import (
    OUR_PROMPT_TOKENS,
    PROMPT_TOKENS,
    Leave,
    RawClient,
)
from tests.soak.chaos import Chaos
from tests.soak.history import LEAST_ALLOWANCE, End, Exchange, History, Sample

CAPS = (1, 80)
MODELS = {
    "burst": "sim-r0-t60-f0-c4",
    "quick": "sim-r400-t50-f5-c5",
    "steady": "sim-r100-t60-f20-c3",
    "slow": "sim-r25-t50-f50",
    "unreported": "sim-r200-t40-f5-c4-xno-usage",
    "wordless": "sim-xhang-before-first",
}
PROMPT_OF = {"unreported": OUR_PROMPT_TOKENS}
"""Where the gateway has only its own estimate."""
WEIGHTS = (30, 30, 20, 12, 6, 2)
LEAVING_SHARE = 0.4
LEAVING_SECONDS = 0.8
WORDLESS_SECONDS = 0.3
UNSEEN_SECONDS = 0.5
"""A request whose client left at once may be read by its gateway as late as this."""
SETTLED_SECONDS = 30.0
KILLED_SECONDS = 5.0
"""A settlement that had to wait for the store may be this much later than its end."""
SAMPLE_SECONDS = 0.05
LOOK_SECONDS = 0.02
RETRY_SECONDS = 0.1

_LENGTHS = [len(passage(0, tokens)) for tokens in range(CAPS[1] + 1)]


@dataclass(frozen=True, slots=True)
class Wish:
    """What one client does."""

    model: str
    cap: int
    stream: bool
    shows_usage: bool
    leaves_after: float | None
    how: Leave

    @property
    def members(self) -> dict[str, object]:
        """Of its request."""
        members: dict[str, object] = {"max_tokens": self.cap, "stream": self.stream}
        if self.stream and self.shows_usage:
            members["stream_options"] = {"include_usage": True}
        return members


@dataclass
class Load:
    """All clients together.

    Attributes:
        wanted: Exchanges that are still to begin; those refused do not count.
    """

    fleet: Fleet
    chaos: Chaos
    redis: Redis
    random: Random
    wanted: int
    history: History = field(default_factory=History)
    _places: list[tuple[Exchange, int, float]] = field(default_factory=list)
    _attempts: defaultdict[str, list[Attempt]] = field(
        default_factory=lambda: defaultdict(list)
    )

    async def run(self, own: Iterable[Key], shared: Sequence[Key], crowd: int) -> None:
        """Until no exchange is wanted."""
        async with anyio.create_task_group() as watchers:
            watchers.start_soon(self._sample, shared)
            watchers.start_soon(self._collect)
            async with anyio.create_task_group() as clients:
                left = list(shared)
                for _ in range(crowd):
                    clients.start_soon(self._share, left)
                for key in own:
                    clients.start_soon(self._own, key)
            watchers.cancel_scope.cancel()

    async def finish(self, keys: Sequence[Key]) -> History:
        """The history, once nothing is held any more or that has taken too long."""
        with anyio.move_on_after(SETTLED_SECONDS):
            while any(one.held or one.in_use for one in await self._books(keys)):  # noqa: ASYNC110 - of other processes nothing can be awaited
                await anyio.sleep(RETRY_SECONDS)
        self.history.final = {one.key: one for one in await self._books(keys)}
        self.history.losses = self.chaos.losses
        self._take_log()
        for one in self.history.exchanges:
            one.sent = sum(attempt.tokens for attempt in self._attempts[one.id])
        for one, at, settled in self._places:
            one.killed = self._was_killed(at, one.began, settled)
        return self.history

    async def _own(self, key: Key) -> None:
        used = 0
        while self.wanted > 0:
            losses = self.chaos.losses_begun
            at, one = await self._exchange(key)
            if one is None:
                continue
            if not one.relayed and one.end is not End.REFUSED:
                await anyio.sleep(UNSEEN_SECONDS)
            before, used = used, await self._settled(key)
            self._places.append((one, at, anyio.current_time()))
            is_seen = one.relayed > 0 or one.end is End.REFUSED
            if is_seen and self.chaos.losses_begun == losses:
                one.charged = used - before

    async def _share(self, left: list[Key]) -> None:
        used_up = 0
        while self.wanted > 0 and used_up < len(left):
            key = left[0]
            at, one = await self._exchange(key)
            if one is None:
                continue
            self._places.append((one, at, one.ended + KILLED_SECONDS))
            if one.code == "insufficient_quota":
                used_up += 1
                left.append(left.pop(left.index(key)))  # what is held may come back
            elif one.end is not End.REFUSED:
                used_up = 0

    def _was_killed(self, at: int, since: float, until: float) -> bool:
        return any(
            gateway == at and since <= when <= until
            for gateway, when in self.chaos.kills
        )

    def _wish(self) -> Wish:
        random = self.random
        (model,) = random.choices(tuple(MODELS), WEIGHTS)
        leaves = random.random() < LEAVING_SHARE or model == "wordless"
        most = WORDLESS_SECONDS if model == "wordless" else LEAVING_SECONDS
        return Wish(
            model=model,
            cap=random.randint(*CAPS),
            stream=random.random() < 0.75,
            shows_usage=random.random() < 0.5,
            leaves_after=random.uniform(0, most) if leaves else None,
            how=random.choice((Leave.FIN, Leave.RST)),
        )

    async def _exchange(self, key: Key) -> tuple[int, Exchange | None]:
        """One exchange at a gateway; None where that could not be reached."""
        up = sorted(self.chaos.up)
        if not up:
            await anyio.sleep(RETRY_SECONDS)
            return 0, None
        self.wanted -= 1
        at, wish = self.random.choice(up), self._wish()
        one = Exchange(
            id=uuid4().hex,
            key=key.id,
            stream=wish.stream,
            began=anyio.current_time(),
            estimate=OUR_PROMPT_TOKENS,
            prompt=PROMPT_OF.get(wish.model, PROMPT_TOKENS),
            allowance=max(LEAST_ALLOWANCE, wish.cap),
        )
        try:
            async with RawClient(self.fleet, key, one.id, at) as client:
                self.history.exchanges.append(one)
                await _converse(client, wish, one)
        except OSError:  # it was killed a moment ago
            self.wanted += 1
            await anyio.sleep(RETRY_SECONDS)
            return at, None
        one.ended = anyio.current_time()
        if one.end is End.REFUSED:
            self.wanted += 1
            await anyio.sleep(RETRY_SECONDS)
        return at, one

    async def _settled(self, key: Key) -> int:
        """What a key has used, as soon as nothing is held."""
        with anyio.move_on_after(SETTLED_SECONDS):
            while True:
                (books,) = await self._books([key])
                if not books.held and not books.in_use:
                    return books.used
                await anyio.sleep(LOOK_SECONDS)
        return -1

    async def _sample(self, keys: Sequence[Key]) -> None:
        while True:
            self.history.samples += await self._books(keys)
            await anyio.sleep(SAMPLE_SECONDS)

    async def _books(self, keys: Sequence[Key]) -> list[Sample]:
        """The books of these keys, from one transaction."""
        names = [keys_of(key.id, _this_month()) for key in keys]
        replies: list[Any] = []
        while not replies:
            pipeline = self.redis.pipeline(transaction=True)
            for name in names:
                _ = pipeline.hmget(name[8], ["used", "held"])
                _ = pipeline.zcard(name[2])
            try:
                replies = await pipeline.execute()
            except RedisError:
                await anyio.sleep(RETRY_SECONDS)
        at = anyio.current_time()
        return [
            Sample(
                at=at,
                key=key.id,
                used=int(window[0] or 0),
                held=int(window[1] or 0),
                in_use=in_use,
                limit=key.terms.limits.tokens_per_month,
                concurrency=key.terms.limits.concurrency,
            )
            for key, window, in_use in zip(
                keys, replies[::2], replies[1::2], strict=True
            )
        ]

    async def _collect(self) -> None:
        while True:
            await anyio.sleep(1)
            self._take_log()

    def _take_log(self) -> None:
        log = self.fleet.provider.log
        while log:
            attempt = log.popleft()
            self._attempts[attempt.request_id].append(attempt)


def _this_month() -> Calendar:
    return calendar_at(int(datetime.now(UTC).timestamp()))


async def _converse(client: RawClient, wish: Wish, one: Exchange) -> None:
    """Ask, listen as long as the client stays, and note what came."""
    with anyio.move_on_after(wish.leaves_after) as stay:
        try:
            await client.ask(wish.model, **wish.members)
            await client.read_to_end()
        except anyio.BrokenResourceError:
            pass
    if client.complete:
        _note_answer(client, one)
    elif stay.cancelled_caught:
        one.end = End.LEFT
        with suppress(OSError):  # it is gone: the gateway was faster
            await client.leave(wish.how)
    else:
        one.code = f"broken with status {client.status}"
    one.relayed = _relayed(client, wish)


def _note_answer(client: RawClient, one: Exchange) -> None:
    if client.status != 200:
        one.end, one.code = End.REFUSED, json.loads(client.body)["error"]["code"]
        return
    if not one.stream:
        one.end = End.COMPLETE
        usage = json.loads(client.body).get("usage")
        one.reported = usage["total_tokens"] if usage else None
        return
    *events, last, _ = bytes(client.body).split(b"\n\n")
    if last != b"data: [DONE]":
        one.end, one.code = End.CUT, last.decode()
        return
    one.end = End.COMPLETE
    usage = json.loads(events[-1].removeprefix(b"data: ")).get("usage")
    one.reported = usage["total_tokens"] if usage else None


def _relayed(client: RawClient, wish: Wish) -> int:
    """Tokens of the text that came, which must be the provider's."""
    if client.status != 200:
        return 0
    if wish.stream:
        text = client.text
    elif not client.complete:
        return 0
    else:
        text = json.loads(client.body)["choices"][0]["message"]["content"]
    tokens = bisect_left(_LENGTHS, len(text))
    assert text == passage(0, tokens)
    return tokens

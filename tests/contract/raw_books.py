"""The books as they lie in the store, seen past the ledger."""

from dataclasses import dataclass
from typing import Any

from redis import Redis

from gateway.admission.books import PREFIX


@dataclass
class RawBooks:
    """Reads every key of one principal."""

    client: Redis
    principal: str

    def name(self, rest: str) -> str:
        return f"{PREFIX}{{{self.principal}}}:{rest}"

    def keys(self) -> list[str]:
        """All but the hash of the key itself, which has no TTL."""
        found = self.client.scan_iter(self.name("*"), 1000)
        return sorted({name.decode() for name in found} - {self.name("key")})

    def contents(self) -> dict[str, Any]:
        """All that is written, by key. (A DUMP also tells the order of a hash, which
        the store changes by itself.)"""
        read: dict[bytes, Any] = {
            b"hash": self.client.hgetall,
            b"zset": lambda name: self.client.zrange(name, 0, -1, withscores=True),
            b"string": self.client.get,
            b"none": lambda _: None,  # expired just now
        }
        kinds: dict[str, Any] = {name: self.client.type(name) for name in self.keys()}
        return {name: read[kind](name) for name, kind in kinds.items()}

    def is_still(self, before: dict[str, Any]) -> bool:
        """Whether nothing has changed since, but rates that have run out."""
        now = self.contents()
        for name in (self.name("rpm"), self.name("tpm")):
            if now.get(name) is None:
                now.pop(name, None)
                before.pop(name, None)
        return now == before

    def window(self, kind: str, name: str) -> str:
        return self.name(f"{kind}:{name}")

    def windows(self) -> dict[str, tuple[int, int]]:
        """Used and held of each window, by key."""
        names = [name for name in self.keys() if ":day:" in name or ":month:" in name]
        fields: dict[str, Any] = {name: self.client.hgetall(name) for name in names}
        return {
            name: (int(books[b"used"]), int(books[b"held"]))
            for name, books in fields.items()
        }

    def records(self) -> set[str]:
        """Ids of holds and tombstones."""
        names: Any = self.client.hkeys(self.name("records"))
        return {name.decode() for name in names}

    def scores(self, rest: str) -> dict[str, float]:
        """Of ``leases`` or ``graves``: Unix ms."""
        pairs: Any = self.client.zrange(self.name(rest), 0, -1, withscores=True)
        return {name.decode(): score for name, score in pairs}

    def age(self, rest: str, ms: float) -> None:
        """Make leases or graves so much older."""
        for name in self.scores(rest):
            self.client.zincrby(self.name(rest), -ms, name)

    def without_ttl(self) -> list[str]:
        """Keys that would stay forever."""
        return [name for name in self.keys() if self.client.pttl(name) == -1]

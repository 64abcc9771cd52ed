"""One server behind every adapter that can speak to it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tests.integration.fleet import Plan

ADAPTERS = ("vllm", "openai")
CAP = 4096
STORE_SECONDS = 2
"""A model that is served beside the store leaves it little of the processor."""
NONE: Mapping[str, object] = MappingProxyType({})


def provider(adapter: str, base_url: str, **members: object) -> dict[str, object]:
    """Of the configuration; named after its adapter unless members say otherwise."""
    return {"name": adapter, "adapter": adapter, "base_url": base_url, **members}


def model(name: str, *candidates: tuple[str, str]) -> dict[str, object]:
    """Of the configuration; candidates are a provider and its model, best first."""
    return {
        "name": name,
        "max_output_tokens": CAP,
        "candidates": [
            {"provider": provider, "model": upstream, "priority": priority}
            for priority, (provider, upstream) in enumerate(candidates)
        ],
    }


def through_both(
    base_url: str, upstream: str, members: Mapping[str, object] = NONE, **more: Any
) -> Plan:
    """A public model per adapter, of its name: all of them are this server's one.

    Args:
        base_url: Of the server.
        upstream: Its model.
        members: More of each provider.
        more: Of the plan.
    """
    extra = {
        "providers": [provider(one, base_url, **members) for one in ADAPTERS],
        "models": [model(one, (one, upstream)) for one in ADAPTERS],
        "redis": {"timeout_seconds": STORE_SECONDS},
    }
    return Plan(**{"models": {}, "unlimited": 400, "extra": extra, **more})

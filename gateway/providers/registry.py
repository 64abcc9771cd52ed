"""The adapters, by the names that configuration gives them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gateway.providers.openai import OpenAIProvider
from gateway.providers.provider import Provider
from gateway.providers.upstream import UpstreamClient
from gateway.providers.vllm import VllmProvider

_ADAPTERS: dict[str, Callable[[UpstreamClient, str], "BuiltProvider"]] = {
    "openai": OpenAIProvider,
    "vllm": VllmProvider,
}


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """What it takes to build a provider.

    Attributes:
        name: What candidates and metrics call it.
        adapter: A key of the registry.
        base_url: Up to and with ``/v1``.
        api_key: None where the server asks for none.
        connect_seconds: The longest wait for a connection.
        buffer_bytes: Of an answer, held for a client that does not read.
    """

    name: str
    adapter: str
    base_url: str
    api_key: str | None = field(repr=False)
    connect_seconds: float
    buffer_bytes: int


class BuiltProvider(Provider, Protocol):
    """A provider, and the client that its builder probes it with and closes."""

    client: UpstreamClient


def build_provider(config: ProviderConfig) -> BuiltProvider:
    """Make a provider; nothing is opened before its first call.

    Raises:
        KeyError: There is no such adapter.
        ValueError: The key cannot be sent in a header.
    """
    client = UpstreamClient(
        config.base_url,
        api_key=config.api_key,
        connect_seconds=config.connect_seconds,
        buffer_bytes=config.buffer_bytes,
    )
    return _ADAPTERS[config.adapter](client, config.name)

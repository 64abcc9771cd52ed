"""The adapters, by the names that configuration gives them."""

from dataclasses import dataclass, field

from gateway.providers.adapter import AdaptedProvider, Adapter
from gateway.providers.upstream import UpstreamClient
from gateway.providers.vllm import VLLM


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


def build_provider(config: ProviderConfig) -> AdaptedProvider:
    """Make a provider; nothing is opened before its first call.

    Raises:
        KeyError: There is no such adapter.
        ValueError: The key cannot be sent in a header.
    """
    adapter, make_client = _parts(config.adapter)
    client = make_client(
        config.base_url,
        api_key=config.api_key,
        connect_seconds=config.connect_seconds,
        buffer_bytes=config.buffer_bytes,
    )
    return AdaptedProvider(client, config.name, adapter)


def _parts(adapter: str) -> tuple[Adapter, type[UpstreamClient]]:
    match adapter:
        case "vllm":
            return VLLM, UpstreamClient
        case "openai":
            # Only whoever speaks to OpenAI pays for the SDK: 0.7 s and 26 MB.
            from gateway.providers.openai import OPENAI, OpenAIClient  # noqa: PLC0415

            return OPENAI, OpenAIClient
        case _:
            raise KeyError(adapter)

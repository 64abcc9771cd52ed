"""The configuration file's shape, section by section; a field's text is its document.

Secrets are never in it, only the names of the variables that hold them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gateway.settings.document import DocumentError, Shape


def _http_url(url: str) -> str:
    """An origin and a path, without its last slashes."""
    if not _is_plain(url):
        message = "must be printable ASCII without blanks"
        raise ValueError(message)
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0
    except ValueError:  # its text quotes the URL, which may hold a password
        usable = False
    else:
        if "@" in parts.netloc:
            message = "must hold no credentials; api_key_env names their variable"
            raise ValueError(message)
    if not usable or not url.lower().startswith(("http://", "https://")):
        message = "must be http:// or https:// and a host"
        raise ValueError(message)
    if "?" in url or "#" in url:
        message = "must have neither query nor fragment"
        raise ValueError(message)
    return url.rstrip("/")


def _absolute_path(path: str) -> str:
    if not _is_plain(path) or not path.startswith("/") or path.startswith("//"):
        message = "must be a path that begins with one slash"
        raise ValueError(message)
    return path


def _not_empty[T](listed: tuple[T, ...]) -> tuple[T, ...]:
    # A `min_length` would also complain of a list whose only entry is wrong.
    if not listed:
        message = "must not be empty"
        raise ValueError(message)
    return listed


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


type Seconds = Annotated[float, Field(gt=0, le=86_400)]
type Bytes = Annotated[int, Field(ge=256, le=2**30)]
type Port = Annotated[int, Field(ge=1, le=65_535)]
type Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
type VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
# Goes into headers and labels; the characters left out are a glob's.
type ModelName = Annotated[str, Field(pattern=r"^[!-~&&[^*?\[\]]]{1,256}$")]
type Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/?#@\s]+)$")]
type BaseUrl = Annotated[str, AfterValidator(_http_url)]
type HealthPath = Annotated[str, AfterValidator(_absolute_path)]
type Listed[T] = Annotated[tuple[T, ...], Field(strict=False)]
type NonEmpty[T] = Annotated[
    tuple[T, ...], Field(strict=False), AfterValidator(_not_empty)
]


class ServerSettings(Shape):
    """The gateway's own socket."""

    host: Annotated[str, Field(pattern=r"^[!-~]{1,255}$")] = "0.0.0.0"  # noqa: S104 - a container is reached from outside
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port to listen on; 0 lets the system choose."""
    drain_seconds: Annotated[float, Field(ge=0, le=86_400)] = 25.0
    """Streams may finish this long after SIGTERM."""
    max_body_bytes: Bytes = 1_048_576
    """Largest request body."""
    max_response_bytes: Bytes = 33_554_432
    """Largest non-stream answer: it is held until whole, then relayed."""
    max_exchanges: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Exchanges at a time in a process; fewer where file descriptors are short."""
    max_lag_seconds: Seconds = 1.0
    """How late three ticks in a row may be before new exchanges are refused."""
    cors_origins: Listed[Origin] = ()
    """Web origins that may call the gateway; `*` is any, none by default."""


class RedisSettings(Shape):
    """The quota store."""

    url_env: VariableName = "REDIS_URL"
    """Variable with the store's `redis://`, `rediss://` or `unix://` URL."""
    timeout_seconds: Annotated[float, Field(gt=0, le=10)] = 0.2
    """Longest wait for the store's answer; new requests are refused after it."""
    cluster: bool = False
    """Whether the URL is that of a Redis Cluster."""


class KeysSettings(Shape):
    """Where the keys document is; exactly one of the two."""

    env: VariableName | None = None
    """Variable that holds the document; `GATEWAY_KEYS` when `keys` is absent."""
    file: Annotated[Path | None, Field(strict=False)] = None
    """Or a file; a relative path is taken from the configuration file's directory."""

    @field_validator("file")
    @classmethod
    def _beside_the_configuration(
        cls, file: Path | None, info: ValidationInfo
    ) -> Path | None:
        directory = (info.context or {}).get("directory") or Path()
        return file and directory / file

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.env is None) == (self.file is None):
            message = "must have exactly one of env and file"
            raise ValueError(message)
        return self


class StreamingSettings(Shape):
    """Bounds and deadlines of the relay."""

    buffer_bytes: Bytes = 65_536
    """What one stream may hold between provider and client."""
    max_event_bytes: Bytes = 1_048_576
    """Largest single event of a provider."""
    heartbeat_seconds: Annotated[float, Field(ge=0, le=86_400)] = 15.0
    """Silence towards the client after which a comment is sent; 0 is never."""
    heartbeat_before_first_event: bool = False
    """Whether a heartbeat may commit status 200 before the provider has answered."""
    first_byte_seconds: Seconds = 60.0
    """Streams: until the provider's first body byte."""
    idle_seconds: Seconds = 30.0
    """Streams: between two reads from the provider."""
    write_stall_seconds: Seconds = 20.0
    """Until a client that takes nothing is cut off."""
    total_seconds: Seconds = 1800.0
    """Longest exchange; besides connect the only bound on a non-stream answer."""


class ProviderSettings(Shape):
    """One upstream."""

    name: Id
    """What candidates, metrics and `x-gateway-provider` call it."""
    adapter: Literal["vllm", "openai"]
    """Which dialect it speaks."""
    base_url: BaseUrl
    """Its URL up to and with `/v1`; last slashes are dropped."""
    api_key_env: VariableName | None = None
    """Variable with its key; while that is unset the provider counts as unhealthy."""
    max_concurrency: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Requests at a time from this process; more go to the next candidate."""
    connect_seconds: Seconds = 2.0
    """Longest wait for a connection."""
    health_path: HealthPath | None = None
    """Path on its host that is asked whether it is up; null asks nothing."""


class CandidateSettings(Shape):
    """A model at a provider that can serve one of ours."""

    provider: Id
    """The provider's name."""
    model: ModelName
    """The model's name there."""
    priority: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Lower is tried first; the equal are balanced by load."""
    weight: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    """Share among candidates of equal priority."""


class ModelSettings(Shape):
    """A model as clients know it."""

    name: ModelName
    """What clients ask for."""
    tokenizer: Literal["o200k_base", "cl100k_base"] = "o200k_base"
    """Vocabulary that counts its tokens where the provider does not say."""
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] = 4096
    """Reserved, and sent upstream, when the client names no cap."""
    candidates: NonEmpty[CandidateSettings]
    """In order of preference."""


class BreakerSettings(Shape):
    """When a failing candidate is left alone."""

    failures: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Failures within the window that open it."""
    window_seconds: Seconds = 10.0
    """How long a failure counts."""
    open_seconds: Seconds = 5.0
    """Until one request may try again."""


class AffinitySettings(Shape):
    """Which requests belong together; exactly one of `header` and `field`."""

    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] | None = None
    """A request header that names the session."""
    field: Literal["user", "prompt_cache_key"] | None = None
    """Or a field of the request that does."""
    max_load: Annotated[float, Field(ge=1, le=100)] = 1.25
    """A candidate with more than this, times its share, is passed over."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.header is None) == (self.field is None):
            message = "must have exactly one of header and field"
            raise ValueError(message)
        return self


class RoutingSettings(Shape):
    """Choice of candidates and retries."""

    retry_budget: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Extra attempts as a share of live requests."""
    affinity: AffinitySettings | None = None
    """Keeps a session's requests at one of equal candidates; null balances by load."""
    breaker: BreakerSettings = BreakerSettings()
    """When a failing candidate is left alone."""


class TelemetrySettings(Shape):
    """Metrics and traces."""

    otlp_endpoint_env: VariableName = "OTEL_EXPORTER_OTLP_ENDPOINT"
    """Variable with the OTLP base URL (HTTP/protobuf); unset: no tracing."""
    metrics_port: Port | None = None
    """Port for `/metrics` alone; null serves it on the main port."""


class Settings(Shape):
    """The whole file; made by ``load_settings`` or ``parse_settings``."""

    server: ServerSettings = ServerSettings()
    redis: RedisSettings = RedisSettings()
    keys: KeysSettings = KeysSettings(env="GATEWAY_KEYS")
    streaming: StreamingSettings = StreamingSettings()
    providers: NonEmpty[ProviderSettings]
    models: NonEmpty[ModelSettings]
    routing: RoutingSettings = RoutingSettings()
    telemetry: TelemetrySettings = TelemetrySettings()


class SettingsError(DocumentError):
    """The configuration, or a variable or file it names, cannot be used.

    Attributes:
        mistakes: All of them, each as ``path: message``.
        keys: The ``keys`` section where that one is right, so that a checker can go
            on to the keys document.
    """

    def __init__(
        self, mistakes: Iterable[str], keys: KeysSettings | None = None
    ) -> None:
        self.keys = keys
        super().__init__(mistakes)

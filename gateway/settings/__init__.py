"""Configuration: one YAML file, every field validated, and the environment it names.

``schema`` is the file's shape, ``document`` reads text and words mistakes, ``loader``
makes settings of a file, ``environment`` is the only place that reads the environment.
"""

from gateway.settings.document import DocumentError
from gateway.settings.environment import (
    config_path,
    keys_document_text,
    pepper,
    provider_keys,
    redis_url,
    secret,
    tokenizer_cache_dir,
    unset_variables,
)
from gateway.settings.loader import load_settings, parse_settings
from gateway.settings.schema import (
    BreakerSettings,
    CandidateSettings,
    KeysSettings,
    ModelSettings,
    ProviderSettings,
    RedisSettings,
    RoutingSettings,
    ServerSettings,
    Settings,
    SettingsError,
    StreamingSettings,
    TelemetrySettings,
)

__all__ = [
    "BreakerSettings",
    "CandidateSettings",
    "DocumentError",
    "KeysSettings",
    "ModelSettings",
    "ProviderSettings",
    "RedisSettings",
    "RoutingSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "StreamingSettings",
    "TelemetrySettings",
    "config_path",
    "keys_document_text",
    "load_settings",
    "parse_settings",
    "pepper",
    "provider_keys",
    "redis_url",
    "secret",
    "tokenizer_cache_dir",
    "unset_variables",
]

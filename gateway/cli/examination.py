"""What can be said of a configuration without starting anything."""

from dataclasses import dataclass
from pathlib import Path

from gateway.auth.keyring import parse_keys
from gateway.settings import (
    DocumentError,
    KeysSettings,
    RedisSettings,
    Settings,
    SettingsError,
    keys_document_text,
    load_settings,
    provider_keys,
    redis_url,
    secret,
    unset_variables,
)


@dataclass(frozen=True, slots=True)
class Findings:
    """Lines of ``path: message``.

    Attributes:
        mistakes: What must be corrected, in the configuration and in its keys.
        warnings: Variables that serving needs and that are not set here.
    """

    mistakes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def examine(config: Path) -> Findings:
    """All that is wrong with a configuration file and the keys document it names."""
    try:
        settings = load_settings(config)
    except SettingsError as error:
        return Findings((*error.mistakes, *_keys_mistakes(error.keys)))
    mistakes = (
        *_keys_mistakes(settings.keys),
        *_redis_mistakes(settings.redis),
        *_provider_mistakes(settings),
    )
    return Findings(mistakes, tuple(unset_variables(settings)))


def _keys_mistakes(keys: KeysSettings | None) -> tuple[str, ...]:
    if keys is None:
        return ()
    try:
        parse_keys(keys_document_text(keys))
    except DocumentError as error:
        return error.mistakes
    return ()


def _redis_mistakes(redis: RedisSettings) -> tuple[str, ...]:
    if secret(redis.url_env) is None:
        return ()
    try:
        redis_url(redis)
    except SettingsError as error:
        return error.mistakes
    return ()


def _provider_mistakes(settings: Settings) -> tuple[str, ...]:
    try:
        provider_keys(settings)
    except SettingsError as error:
        return error.mistakes
    return ()

"""What the environment holds: secrets, and where things are. Nothing else reads it."""

import os
from collections.abc import Iterator
from pathlib import Path

from gateway.settings.schema import (
    KeysSettings,
    RedisSettings,
    Settings,
    SettingsError,
)

_PEPPER = "GATEWAY_KEY_PEPPER"


def secret(name: str) -> str | None:
    """The variable's value; None when it is unset or empty."""
    return os.environ.get(name) or None  # noqa: TID251 - the one place


def pepper() -> str | None:
    """The HMAC key of all digests, ``GATEWAY_KEY_PEPPER``."""
    return secret(_PEPPER)


def config_path() -> Path | None:
    """The configuration file named by ``GATEWAY_CONFIG``."""
    return _directory_or_file("GATEWAY_CONFIG")


def tokenizer_cache_dir() -> Path | None:
    """The operator's own directory of tokenizer files, by tiktoken's two names."""
    return _directory_or_file("TIKTOKEN_CACHE_DIR") or _directory_or_file(
        "DATA_GYM_CACHE_DIR"
    )


def redis_url(redis: RedisSettings) -> str:
    """The store's URL; it may hold a password.

    Raises:
        SettingsError: The variable is unset, or no URL of a kind that is known, or one
            of a unix socket where a cluster is meant.
    """
    url = secret(redis.url_env)
    if url is None:
        raise SettingsError([f"redis.url_env: {redis.url_env} is not set"])
    if not url.startswith(("redis://", "rediss://", "unix://")):
        message = f"{redis.url_env} must begin with redis://, rediss:// or unix://"
        raise SettingsError([f"redis.url_env: {message}"])
    if redis.cluster and url.startswith("unix://"):
        message = f"{redis.url_env} must begin with redis:// or rediss:// for a cluster"
        raise SettingsError([f"redis.url_env: {message}"])
    return url


def provider_keys(settings: Settings) -> dict[str, str | None]:
    """Each provider's key by the provider's name; None where there is none.

    Raises:
        SettingsError: One cannot be sent in a header: a line's end that came with the
            secret, as a rule.
    """
    keys: dict[str, str | None] = {}
    mistakes = []
    for index, one in enumerate(settings.providers):
        key = secret(one.api_key_env) if one.api_key_env else None
        if key is not None and not (key.isascii() and key.isprintable()):
            path = f"providers.{index}.api_key_env"
            mistakes.append(f"{path}: {one.api_key_env} is not printable ASCII")
        keys[one.name] = key
    if mistakes:
        raise SettingsError(mistakes)
    return keys


def keys_document_text(keys: KeysSettings) -> str:
    """The keys document as its source has it.

    Raises:
        SettingsError: The variable is unset, or the file cannot be read.
    """
    if keys.file is not None:
        return _file_text(keys.file)
    text = secret(keys.env or "")
    if text is None:
        raise SettingsError([f"keys.env: {keys.env} is not set"])
    return text


def unset_variables(settings: Settings) -> Iterator[str]:
    """A line ``path: message`` for every variable that serving needs and is unset."""
    named = {"redis.url_env": settings.redis.url_env}
    for index, provider in enumerate(settings.providers):
        if provider.api_key_env is not None:
            named[f"providers.{index}.api_key_env"] = provider.api_key_env
    for path, name in named.items():
        if secret(name) is None:
            yield f"{path}: {name} is not set"
    if pepper() is None:
        yield f"keys: {_PEPPER} is not set"


def _file_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise SettingsError([f"keys.file: {path}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise SettingsError([f"keys.file: {path}: not UTF-8"]) from None


def _directory_or_file(name: str) -> Path | None:
    value = secret(name)
    return None if value is None else Path(value)

"""From a configuration file to settings, or to all that is wrong with it."""

from collections.abc import Iterator
from pathlib import Path

from gateway.settings.document import (
    DocumentError,
    Shape,
    entries,
    inside,
    read_yaml,
    repeated_values,
    validate,
)
from gateway.settings.schema import (
    KeysSettings,
    ServerSettings,
    Settings,
    SettingsError,
)


def load_settings(path: Path) -> Settings:
    """The settings of a YAML file.

    Raises:
        SettingsError: The file cannot be read, is not YAML, or has mistakes in it.
    """
    try:
        document = read_yaml(path.read_bytes())
    except OSError as error:
        raise SettingsError([f"{path}: {error.strerror}"]) from None
    except DocumentError as error:
        raise SettingsError(f"{path}: {m}" for m in error.mistakes) from None
    return parse_settings(document, path.parent)


def parse_settings(document: object, directory: Path | None = None) -> Settings:
    """The settings of a file's data: mappings, lists, text, numbers, booleans, None.

    Args:
        document: The whole file.
        directory: Where relative paths in it begin. Default: the working directory.

    Raises:
        SettingsError: The document has mistakes.
    """
    settings, mistakes = validate(Settings, document, directory)
    mistakes += contradictions(document)
    if settings is None or mistakes:
        section, _ = validate(_KeysSection, document, directory)
        raise SettingsError(mistakes, None if section is None else section.keys)
    return settings


class _KeysSection(Shape, extra="ignore"):
    keys: KeysSettings = Settings.model_fields["keys"].default


def contradictions(document: object) -> Iterator[str]:
    """Mistakes between fields, each of which may be right by itself."""
    providers = [*entries(document, "providers")]
    yield from repeated_values(providers, "name")
    yield from repeated_values(entries(document, "models"), "name")
    names = [provider.get("name") for _, provider in providers]
    for at, model in entries(document, "models"):
        candidates = [*entries(model, "candidates", f"{at}.")]
        yield from repeated_values(candidates, "provider", "model")
        for path, candidate in candidates:
            provider = candidate.get("provider")
            if isinstance(provider, str) and provider not in names:
                yield f"{path}.provider: no provider has this name"
    port = inside(document, "server", "port")
    main_port = ServerSettings().port if port is None else port
    if inside(document, "telemetry", "metrics_port") == main_port:
        yield "telemetry.metrics_port: must not be server.port; null is the same port"

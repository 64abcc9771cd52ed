"""Text of a document, YAML or JSON, to data; and all that is wrong with it.

A mistake is one line, ``path: message``, with the path as in ``providers.0.base_url``.
No message quotes a value: a secret may have been put where its name belongs.
"""

import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class DocumentError(Exception):
    """A document cannot be used.

    Attributes:
        mistakes: All of them, each as ``path: message``.
    """

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


class Shape(BaseModel):
    """A mapping whose fields are all known; the base of everything validated here."""

    model_config = ConfigDict(
        allow_inf_nan=False,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        strict=True,
        use_attribute_docstrings=True,
    )


class Members(dict[object, object]):
    """A mapping as it was read, and the names its text gives more than once."""

    repeated: tuple[str, ...] = ()


def _members(names: Iterable[str], mapping: Mapping[object, object]) -> Members:
    members = Members(mapping)
    members.repeated = tuple(name for name, n in Counter(names).items() if n > 1)
    return members


def _members_of_pairs(pairs: list[tuple[object, object]]) -> Members:
    return _members((str(name) for name, _ in pairs), dict(pairs))


def _mapping(data: object) -> Members:
    if not isinstance(data, Members):
        raise DocumentError(["must be a mapping"])
    return data


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of JSON.

    ``1_000``, ``010`` and ``22:22`` stay text, which a number field refuses: YAML 1.1
    reads them as 1000, 8 and 1342. ``1e3`` is a number, as everywhere else.
    """

    def construct_members(self, node: yaml.MappingNode) -> Members:
        # Before constructing, which merges `<<` into the node's pairs.
        names = [key.value for key, _ in node.value if isinstance(key.value, str)]
        return _members(names, self.construct_mapping(node, deep=True))


_QUOTED = re.compile(r"'[^<\\].+'")  # an alias or a tag, not a character or <token>
_MAP = "tag:yaml.org,2002:map"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_NOT_JSON = {_INT, _FLOAT, "tag:yaml.org,2002:timestamp"}
_DIGITS = list("-0123456789")

_Loader.yaml_implicit_resolvers = {
    first: [resolver for resolver in resolvers if resolver[0] not in _NOT_JSON]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"-?(0|[1-9][0-9]*)\Z"), _DIGITS)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?\Z"),
    _DIGITS,
)
_Loader.add_constructor(_MAP, _Loader.construct_members)


def read_yaml(text: bytes) -> Members:
    """The members of one YAML document.

    Raises:
        DocumentError: It is not YAML, with line and column, or no mapping.
    """
    try:
        return _mapping(yaml.load(text, _Loader))  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = _QUOTED.sub("…", error.problem or "not YAML")
        raise DocumentError([f"{where}{problem}"]) from None
    except yaml.reader.ReaderError as error:
        mistake = f"position {error.position}: {error.reason}"
        raise DocumentError([mistake]) from None
    except (ValueError, LookupError, AttributeError, RecursionError):
        # What PyYAML lets through: `!!int x`, `!!bool x`, `!!timestamp x`, depth.
        mistake = "a value does not fit its tag, or is nested too deeply"
        raise DocumentError([mistake]) from None


def read_json(text: str) -> Members:
    """The members of one JSON document.

    Raises:
        DocumentError: It is not JSON, with line and column, or no object.
    """
    try:
        return _mapping(json.loads(text, object_pairs_hook=_members_of_pairs))
    except json.JSONDecodeError as error:
        mistake = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise DocumentError([mistake]) from None
    except (ValueError, RecursionError):
        mistake = "nested too deeply, or a number of too many digits"
        raise DocumentError([mistake]) from None


def validate[S: Shape](
    shape: type[S], document: object, directory: Path | None = None
) -> tuple[S | None, list[str]]:
    """The document as ``shape``, or else all that is wrong with its fields.

    Names given twice count as mistakes. Relative paths in the document are taken from
    ``directory``.
    """
    mistakes = [f"{path}: given twice" for path in _repeated_names(document)]
    try:
        shaped = shape.model_validate(document, context={"directory": directory})
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        for fault in details:
            message = _WORDING.get(fault["type"], fault["msg"])
            mistakes.append(
                f"{_path(fault['loc'])}: {message.removeprefix('Value error, ')}"
            )
        return None, mistakes
    return shaped, mistakes


_WORDING = {
    "extra_forbidden": "unknown field",
    "missing": "required",
    "model_type": "must be a mapping",
    "tuple_type": "must be a list",
}


type Entry = tuple[str, dict[object, object]]
"""A mapping of a list, and its path."""


def inside(document: object, *path: str) -> object:
    """What is at the path, None where there is nothing."""
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def entries(document: object, name: str, at: str = "") -> Iterator[Entry]:
    """The mappings in a document's list ``name``; ``at`` is the document's own path.

    For rules between fields, which must also be checked in a document that is wrong
    elsewhere: whatever has another shape is passed over.
    """
    listed = inside(document, name)
    for index, entry in enumerate(listed if isinstance(listed, list) else ()):
        if isinstance(entry, dict):
            yield f"{at}{name}.{index}", entry


def repeated_values(listed: Iterable[Entry], *fields: str) -> Iterator[str]:
    """A mistake for every entry that has the same text in ``fields`` as one before."""
    first: dict[tuple[object, ...], str] = {}
    for path, entry in listed:
        values = tuple(entry.get(field) for field in fields)
        if all(isinstance(value, str) for value in values):
            before = first.setdefault(values, path)
            if before != path:
                yield f"{path}.{fields[-1]}: the same as in {before}"


def _repeated_names(document: object) -> Iterator[str]:
    # A queue, not recursion: JSON may nest deeper than Python calls.
    queue: deque[tuple[tuple[str | int, ...], object]] = deque([((), document)])
    while queue:
        path, data = queue.popleft()
        if isinstance(data, Members):
            yield from (_path((*path, name)) for name in data.repeated)
            queue.extend(((*path, str(name)), member) for name, member in data.items())
        elif isinstance(data, list):
            queue.extend(((*path, index), item) for index, item in enumerate(data))


def _path(steps: Iterable[str | int]) -> str:
    """One line, also where a name has line feeds in it."""
    texts = [str(step) for step in steps]
    return ".".join(t if t.isprintable() else ascii(t) for t in texts) or "document"

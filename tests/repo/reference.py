"""What documents say of the code, made from the code.

A document marks the places; what stands in them is made here::

    <!-- made: metrics -->

    ...

    <!-- /made -->

``python -m tests.repo.reference`` fills all of them; ``test_reference`` compares.
"""

import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase

import gateway.errors
import streaming.errors
from gateway.admission import estimate, ledger
from gateway.admission.ledger import SettleResult
from gateway.admission.scripts import Move
from gateway.auth.keyring import KeyEntry
from gateway.auth.principal import Limits, Principal
from gateway.exchange import charge
from gateway.settings.schema import Settings
from gateway.telemetry.metrics import OF_WORKERS, AttemptResult, Metrics, Mode
from streaming.errors import ClientFault, Fault, LocalFault, UpstreamFault
from streaming.outcome import Outcome
from streaming.stages.metering import UsageSource

ROOT = Path(__file__).parents[2]

SOURCE = "".join(
    path.read_text("utf-8") for path in sorted((ROOT / "gateway").rglob("*.py"))
)
"""All of the gateway's own code."""

MADE = re.compile(
    r"(?P<begin>^<!-- made: (?P<name>[\w-]+) -->\n).*?(?P<end>^<!-- /made -->$)",
    re.DOTALL | re.MULTILINE,
)

type Schema = dict[str, Any]
"""A JSON Schema, as pydantic writes it."""


def documents() -> list[Path]:
    """Every document that may have such places."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """A document's text with every marked place made anew.

    Raises:
        KeyError: A place has a name that nothing here makes.
    """
    return MADE.sub(
        lambda place: f"{place['begin']}\n{MAKERS[place['name']]()}\n\n{place['end']}",
        text,
    )


def main() -> None:
    """Fill the documents."""
    for path in documents():
        path.write_text(filled(path.read_text("utf-8")), "utf-8")


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Rows in Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: object) -> str:
    """A code span that may stand in a table."""
    return f"`{text}`".replace("|", "\\|")


def codes(texts: Iterable[object]) -> str:
    """Several of them."""
    return " ".join(map(code, texts))


def prose(docstring: str) -> str:
    """A docstring's paragraph on one line, with Markdown's code spans."""
    return re.sub(r"\s*\n\s*", " ", docstring).replace("``", "`").replace("|", "\\|")


# The configuration file and the keys document, from their pydantic shapes.


def settings() -> str:
    """Every section of the file: what it is, and a table of its fields."""
    schema = Settings.model_json_schema()
    sections = schema["properties"].items()
    return "\n\n".join(
        block
        for name, section in sections
        for block in _section(name, section, schema["$defs"])
    )


def keys() -> str:
    """The fields of a key's entry."""
    schema = KeyEntry.model_json_schema()
    definitions = schema["$defs"]
    fields = schema["properties"]
    limits = _resolved(fields.pop("limits"), definitions)["properties"]
    fields |= {f"limits.{name}": field for name, field in limits.items()}
    meanings = _attributes(Principal) | _attributes(Limits)
    for name, field in fields.items():
        field["description"] = meanings[name.rpartition(".")[2]]
    return _fields(fields, definitions)


def unread_settings() -> str:
    """Fields that nothing in the product reads yet."""
    shape = (ROOT / "gateway" / "settings" / "schema.py").read_text("utf-8")
    source = SOURCE.replace(shape, "")
    schema = Settings.model_json_schema()
    unread = [code(path) for path in _unread("", schema, schema["$defs"], source)]
    return f"Not in force: {', '.join(unread)}." if unread else "All are in force."


def _unread(
    path: str, section: Schema, definitions: Schema, source: str
) -> Iterator[str]:
    section = _resolved(section.get("items", section), definitions)
    for name, given in section.get("properties", {}).items():
        field = _resolved(given, definitions)
        if not re.search(rf"\.{name}\b", source):
            yield path + name
        else:
            at = f"{path}{name}{'[]' * ('items' in field)}."
            yield from _unread(at, field, definitions, source)


def _section(path: str, section: Schema, definitions: Schema) -> Iterator[str]:
    """A section's blocks, and those of the sections below it."""
    section = _resolved(section, definitions)
    if section["type"] == "array":
        path, section = f"{path}[]", _resolved(section["items"], definitions)
    fields = {
        name: _resolved(field, definitions)
        for name, field in section["properties"].items()
    }
    below = [name for name, field in fields.items() if _is_section(field, definitions)]
    plain = {name: field for name, field in fields.items() if name not in below}
    yield f"### {code(path)}"
    yield section["description"]
    yield _fields(plain, definitions)
    for name in below:
        yield from _section(f"{path}.{name}", fields[name], definitions)


def _fields(fields: Mapping[str, Schema], definitions: Schema) -> str:
    return table(
        ("field", "value", "default", "meaning"),
        (
            (
                code(name),
                _value(field, definitions),
                code(json.dumps(field["default"])) if "default" in field else "none",
                field["description"],
            )
            for name, field in fields.items()
        ),
    )


def _is_section(field: Schema, definitions: Schema) -> bool:
    return "properties" in _resolved(field.get("items", field), definitions)


def _resolved(field: Schema, definitions: Schema) -> Schema:
    """The field with what it refers to; its own words win."""
    if "$ref" not in field:
        return field
    target = definitions[field["$ref"].rpartition("/")[2]]
    return {**_resolved(target, definitions), **field}


def _value(field: Schema, definitions: Schema) -> str:
    match _resolved(field, definitions):
        case {"anyOf": choices}:
            return " or ".join(_value(one, definitions) for one in choices)
        case {"enum": choices}:
            return " or ".join(map(code, choices))
        case {"type": "array", "items": items}:
            return f"list of {_value(items, definitions)}"
        case {"pattern": str(pattern)}:
            return code(pattern.removeprefix("^").removesuffix("$"))
        case resolved:
            kind = str(resolved.get("format", resolved["type"]))
            return " ".join([kind, *_bounds(resolved)])


def _bounds(field: Schema) -> Iterator[str]:
    words = {"exclusiveMinimum": "above", "minimum": "from", "maximum": "to"}
    return (f"{words[key]} {field[key]:.16g}" for key in words if key in field)


def _attributes(described: type) -> dict[str, str]:
    """Each attribute's line in the class's docstring."""
    _, _, listed = (inspect.getdoc(described) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", listed, re.MULTILINE)
    return {name: prose(text) for name, text in entries}


# Metrics, from the registry, which has no public list of what is in it.

LABELS: Mapping[str, Iterable[object] | str] = {
    "model": "a name in `models`",
    "provider": "a name in `providers`; `none` when nobody answered",
    "mode": Mode,
    "outcome": Outcome,
    "direction": ("prompt", "completion"),
    "source": UsageSource,
    "settlements_total.result": (*SettleResult, "expired"),
    "attempts_total.result": AttemptResult,
    "rejections_total.reason": "an error code: [errors.md](errors.md)",
    "degraded_total.reason": sorted(set(re.findall(r'degraded\("(\w+)"\)', SOURCE))),
    "script": Move,
    "version": "of the distribution",
}
"""The values of every label; a metric's name precedes it where they differ."""


def metrics() -> str:
    """Every metric."""
    return table(
        ("metric", "kind", "labels", "meaning", "of workers"),
        (
            (
                code(name),
                str(one._type),
                codes(one._labelnames),
                one._documentation,
                OF_WORKERS.get(name, sum).__name__,
            )
            for name, one in collectors().items()
        ),
    )


def labels() -> str:
    """The values of every label."""
    return table(
        ("label", "values"),
        (
            (
                code(label),
                values if isinstance(values, str) else codes(map(str, values)),
            )
            for label, values in LABELS.items()
        ),
    )


def buckets() -> str:
    """The bounds of every histogram."""
    return table(
        ("histogram", "upper bounds, seconds"),
        (
            (code(name), " ".join(f"{bound:g}" for bound in one._upper_bounds[:-1]))
            for name, one in collectors().items()
            if isinstance(one, Histogram)
        ),
    )


def collectors() -> dict[str, MetricWrapperBase]:
    """The metrics by the names they are exposed under."""
    return {
        collector._name + ("_total" if collector._type == "counter" else ""): collector
        for collector in Metrics()._registry._collector_to_names
        if isinstance(collector, MetricWrapperBase)
    }


# Errors, from the families of faults.


def faults(family: type[Fault]) -> str:
    """A family, by status and code."""
    members = sorted(_members(family), key=lambda one: (one.status, one.code))
    return table(
        ("status", "code", "type", "message", "outcome", "next", "class"),
        (
            (
                str(fault.status),
                code(fault.code),
                code(fault.type),
                (fault.__doc__ or "").partition("\n")[0],
                code(fault.outcome),
                "yes" if fault.try_next else "",
                code(fault.__name__),
            )
            for fault in members
        ),
    )


def fault_notes() -> str:
    """What some of them say beyond their message."""
    notes = []
    for fault in _members(Fault):
        _, _, more = (inspect.getdoc(fault) or "").partition("\n\n")
        if more and not more.startswith("Args:"):
            notes.append(f"- {code(fault.__name__)}: {prose(more)}")
    return "\n".join(notes)


def _members(family: type[Fault]) -> Iterator[type[Fault]]:
    """The family and all that derive from it in the product."""
    if family.__module__ in {gateway.errors.__name__, streaming.errors.__name__}:
        yield family
    for member in family.__subclasses__():
        yield from _members(member)


# Tables that stand in the docstring of the module they are about.


def docstring_table(module: ModuleType) -> str:
    """The first table of a module's docstring."""
    lines = (inspect.getdoc(module) or "").splitlines()
    top, middle, bottom, *_ = (
        number for number, line in enumerate(lines) if line.startswith("==")
    )
    columns = [rule.span() for rule in re.finditer("=+", lines[top])]
    columns[-1] = (columns[-1][0], 1000)  # the last one may be wider than its rule
    heads, *rows = (
        [prose(line[start:end].strip()) for start, end in columns]
        for line in (*lines[top + 1 : middle], *lines[middle + 1 : bottom])
    )
    return table(heads, rows)


# Layers, from import-linter's contracts.


def layers() -> str:
    """The enforced order of each package, top to bottom."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    lines = [
        f"{one['containers'][0]}: {' > '.join(one['layers'])}"
        for one in tools["importlinter"]["contracts"]
        if one["type"] == "layers"
    ]
    return "\n".join(["```text", *lines, "```"])


MAKERS: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "unread-settings": unread_settings,
    "keys": keys,
    "metrics": metrics,
    "labels": labels,
    "buckets": buckets,
    "client-faults": lambda: faults(ClientFault),
    "upstream-faults": lambda: faults(UpstreamFault),
    "local-faults": lambda: faults(LocalFault),
    "fault-notes": fault_notes,
    "layers": layers,
    "charges": lambda: docstring_table(charge),
    "states": lambda: docstring_table(ledger),
    "prompts": lambda: docstring_table(estimate),
}
"""What can stand in a marked place, by name."""


if __name__ == "__main__":
    main()

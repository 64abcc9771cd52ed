import re
from pathlib import Path

import pytest

from tests.repo import reference


@pytest.mark.parametrize(
    "path",
    reference.documents(),
    ids=lambda path: str(path.relative_to(reference.ROOT)),
)
def test_document_says_what_the_code_says(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text == reference.filled(text), "run: python -m tests.repo.reference"


def test_everything_that_can_be_made_stands_somewhere() -> None:
    texts = [path.read_text("utf-8") for path in reference.documents()]
    places = {
        place["name"] for text in texts for place in reference.MADE.finditer(text)
    }
    assert places == reference.MAKERS.keys()


def test_every_label_of_every_metric_has_its_values_told() -> None:
    used = {
        (label, f"{name.removeprefix('gateway_')}.{label}")
        for name, collector in reference.collectors().items()
        for label in collector._labelnames
    }
    told = reference.LABELS.keys()
    assert [names for names in used if told.isdisjoint(names)] == []
    assert told <= {name for names in used for name in names}


def test_every_variable_that_is_read_by_name_is_described() -> None:
    source = reference.ROOT / "gateway" / "settings" / "environment.py"
    names = set(re.findall(r'"([A-Z][A-Z_]{3,})"', source.read_text("utf-8")))
    page = (reference.ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert names
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_filled_replaces_only_what_is_marked() -> None:
    text = "a\n<!-- made: layers -->\nold\n<!-- /made -->\nb\n<!-- /made -->\n"
    filled = reference.filled(text)
    assert filled.startswith("a\n<!-- made: layers -->\n\n```text\ngateway: ")
    assert filled.endswith("\n\n<!-- /made -->\nb\n<!-- /made -->\n")
    assert "old" not in filled
    assert reference.filled(filled) == filled


def test_filled_refuses_a_name_that_nothing_makes() -> None:
    with pytest.raises(KeyError):
        reference.filled("<!-- made: nothing -->\n<!-- /made -->")

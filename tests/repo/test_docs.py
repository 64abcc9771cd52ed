import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer.main

from gateway.cli.root import app
from gateway.settings import parse_settings
from gateway.settings.document import read_yaml
from tests.repo.reference import ROOT, documents

README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / "commit.md", *documents()]
ADRS = ROOT / "docs" / "adr"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
COMMAND = re.compile(r"(?:`|\$ |uv run )gateway ((?:keys )?[a-z]+)([^\n`]*)")
LOCK = (ROOT / "uv.lock").read_text("utf-8")
# Whatever hosts the lock file names; nothing else may.
HOSTS = sorted(set(re.findall(r"https://([^/\"]+)/", LOCK)))
REGISTRIES = re.compile("|".join(map(re.escape, HOSTS)))
OUR_PATHS = re.compile(r"(?<![\w.])/(?:work|tmp/w|root(?!/[.]cache))/")

type Fences = dict[str, list[str]]


def every_document() -> pytest.MarkDecorator:
    names = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
    return pytest.mark.parametrize("path", DOCUMENTS, ids=names)


def fences(text: str) -> Fences:
    """The fenced blocks by language, in order."""
    found: Fences = {}
    for language, block in FENCE.findall(text):
        found.setdefault(language, []).append(block)
    return found


def anchors(path: Path) -> set[str]:
    """What a link may name of a document, made as GitHub makes it."""
    headings = HEADING.findall(FENCE.sub("", path.read_text("utf-8")))
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


def committed_files() -> list[Path]:
    """What is, or would be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


def flags_of(command: Any, path: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every command below this one by its full name, with its flags."""
    for name, below in getattr(command, "commands", {}).items():
        yield from flags_of(below, f"{path}{name} ")
    if not hasattr(command, "commands"):
        yield path.strip(), {flag for one in command.params for flag in one.opts}


COMMANDS = dict(flags_of(typer.main.get_command(app)))


@every_document()
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    lost = []
    for link in LINK.findall(FENCE.sub("", path.read_text("utf-8"))):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


@every_document()
def test_every_make_target_exists(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"^([a-z]+):", makefile, re.MULTILINE)
    named = re.findall(r"(?:`|\$ )make ([a-z]+)", path.read_text("utf-8"))
    assert set(named) <= set(targets)


@every_document()
def test_every_command_and_flag_exists(path: Path) -> None:
    unknown = []
    for name, rest in COMMAND.findall(path.read_text("utf-8")):
        asked = set(re.findall(r"(?<= )--[a-z-]+", rest))
        if name not in COMMANDS or not asked <= COMMANDS[name]:
            unknown.append(f"{name}{rest}")
    assert unknown == []


def test_every_command_is_in_the_readme() -> None:
    assert {name for name, _ in COMMAND.findall(README)} == set(COMMANDS)


def test_every_decision_is_in_the_index_under_its_title() -> None:
    index = (ADRS / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[(\d+)\]\(([^)]+)\) \| (.+) \|$", index, re.MULTILINE)
    titled = {}
    for path in ADRS.glob("0*.md"):
        title, _, _ = path.read_text("utf-8").partition("\n")
        titled[path.name] = title
    assert titled == {name: f"# {number}. {title}" for number, name, title in rows}
    assert [int(name[:4]) for _, name, _ in rows] == list(range(1, len(rows) + 1))


def test_architecture_draws_every_package_and_module_below_the_root() -> None:
    tree = fences((ROOT / "docs" / "architecture.md").read_text("utf-8"))["text"][1]
    for package in ("gateway", "streaming"):
        _, _, drawn = tree.partition(f"{package}/")
        drawn, _, _ = drawn.partition("\ngateway/")
        below = [
            f"{path.name}/" if path.is_dir() else path.name
            for path in (ROOT / package).iterdir()
            if path.name not in {"__init__.py", "__pycache__"}
        ]
        assert [name for name in below if f" {name} " not in drawn] == []


def test_readme_configuration_is_valid() -> None:
    (text,) = fences(README)["yaml"]
    settings = parse_settings(read_yaml(text.encode()))
    assert settings.models[0].candidates[0].provider == settings.providers[0].name


@pytest.mark.parametrize("pattern", [REGISTRIES, OUR_PATHS], ids=["registry", "path"])
def test_no_file_names_a_registry_or_a_path_of_one_machine(
    pattern: re.Pattern[str],
) -> None:
    naming = [
        str(path.relative_to(ROOT))
        for path in committed_files()
        if path.name != "uv.lock"
        and pattern.search(path.read_bytes().decode("utf-8", "replace"))
    ]
    assert naming == []


@contextmanager
def demo() -> Iterator[tuple[str, str]]:
    """A running ``gateway demo``: its base URL and its key."""
    command = [str(Path(sys.executable).with_name("gateway")), "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            said = ""
            while "Ctrl-C" not in said:
                line = running.stdout.readline()
                assert line, "the demo ended"
                said += line
            yield (
                re.findall(r"base URL +(\S+)", said)[0],
                re.findall(r"key +(\S+)", said)[0],
            )
        finally:
            running.send_signal(signal.SIGINT)
            try:
                assert running.wait(10) == 0
            finally:
                running.kill()


def test_readme_snippet_prints_what_it_says_when_run_against_the_demo() -> None:
    blocks = fences(README)
    (snippet,) = blocks["python"]
    (printed,) = blocks["text"]
    with demo() as (base_url, key):
        ran = subprocess.run(
            [sys.executable, "-c", snippet],
            env={"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": key},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    assert (ran.stdout, ran.stderr) == (printed, "")

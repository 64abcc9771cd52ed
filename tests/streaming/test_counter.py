import random
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.admission.tokenizer import VOCABULARIES, load_tokenizer
from streaming.counter import (
    LONGEST_RUN,
    SETTLE_CHARACTERS,
    IncrementalCounter,
    last_safe_cut,
    pieces,
)

type Encode = Callable[[str], list[int]]

FRAGMENTS = [
    *(
        "a",
        "Z",
        "s",
        "t",
        "LL",
        "don't",
        "I'LL",
        "o'\u017f",
        "'",
        "''s",
        "word",
        "Hello",
    ),
    *("0", "12345", "3.14", "x1", "1st", "²", "Ⅷ", "٣"),
    *(" ", "  ", "\t", "\n", "\r\n", "\n\n  ", "\r", "\x0b", "\x1c", "\x85", "\xa0"),
    *("\u2028", "\u3000", "\ufeff", "\u200b"),
    *("/", "//", ".\n/", "\n/", "!\r\n//", ".", ",", "-", "_", "{", "`", "\\", "\x00"),
    *('{"a": [1, null]}', "def f(x):\n    return x\n", "</s>", "<|endoftext|>"),
    *(
        "使用JSON",
        "Path",
        "今天天气",
        "\uff0c好的。",
        "か",
        "カー",
        "\u3099",
        "゛",
        "한국어",
    ),
    *("é", "e\u0301", "\u0301", "ǅ", "ʰ", "ß", "Я", "สวัสดี", "\u0e31", "א", "\u0627"),
    *("😀", "👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "\ud83d", "\ude00", "\udfff"),
]
TEXTS = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8)), max_size=30
).map("".join)
EDGES = list("aStl9'/.-_{\n\r\t \x1c\xa0字か・\u30a0힣。\uff0c\u3099")
BEFORE = ["", "xx", "x", " ", "\n", "'", ".", "don'", "使", "7", "\n\n "]
AFTER = ["", "s", "'t", "/", " \n", "\u0301", "9"]


@pytest.fixture(scope="module", params=sorted(VOCABULARIES))
def encoding(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def encode(encoding: str) -> Encode:
    return load_tokenizer(encoding, None).encode


@pytest.fixture(scope="module")
def prose() -> str:
    """Markdown, prose and code of some 100,000 characters, all of it ours."""
    root = Path(__file__).parents[2]
    sources = sorted((root / "streaming").rglob("*.py"))
    text = "".join(path.read_text("utf-8") for path in sources)
    return (text * (1 + 100_000 // len(text)))[:100_000]


def split(text: str, sizes: random.Random, most: int) -> Iterator[str]:
    at = 0
    while at < len(text):
        size = sizes.randint(1, most)
        yield text[at : at + size]
        at += size


@given(text=TEXTS, sizes=st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_counter_agrees_with_one_encoding_after_every_piece(
    encode: Encode, text: str, sizes: random.Random
) -> None:
    counter = IncrementalCounter(encode)
    fed = ""
    for piece in split(text, sizes, 9):
        counter.feed(piece)
        fed += piece
        assert counter.total() == len(encode(fed))
    assert counter.total() == len(encode(text))


@given(parts=st.lists(TEXTS, min_size=1, max_size=6), sizes=st.randoms())
@settings(max_examples=60, deadline=None)
def test_counter_agrees_with_one_encoding_when_text_is_long(
    encode: Encode, parts: list[str], sizes: random.Random
) -> None:
    text = "".join(sizes.choices(parts, k=200))
    counter = IncrementalCounter(encode)
    for piece in split(text, sizes, sizes.choice((3, 40, 700))):
        counter.feed(piece)
    if counter.forced == 0:
        assert counter.total() == len(encode(text))
    assert abs(counter.total() - len(encode(text))) <= 2 * counter.forced


@pytest.fixture(scope="module")
def encode_pairs(encoding: str) -> Encode:
    """An encoding's pattern with a vocabulary in which any two neighbours merge.

    So that a cut which divides what the pattern keeps together is always seen, not only
    where the real vocabulary has a token for it.
    """
    characters = [*EDGES, *"".join(BEFORE + AFTER)]
    spelled = [character.encode() for character in characters]
    prefixes = [bytes_[:end] for bytes_ in spelled for end in range(2, len(bytes_) + 1)]
    pairs = [left + right for left in spelled for right in spelled]
    tokens = [*(bytes([byte]) for byte in range(256)), *prefixes, *pairs]
    ranks = {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}
    return tiktoken.Encoding(
        "pairs",
        pat_str=VOCABULARIES[encoding].pattern,
        mergeable_ranks=ranks,
        special_tokens={},
    ).encode_ordinary


@pytest.mark.parametrize("left", EDGES)
def test_safe_cut_divides_the_encoding_when_anything_surrounds_it(
    encode: Encode, encode_pairs: Encode, left: str
) -> None:
    safe = [right for right in EDGES if last_safe_cut(left + right) > 0]
    for right, before, after in product(safe, BEFORE, AFTER):
        for either in (encode, encode_pairs):
            parts = either(before + left) + either(right + after)
            assert parts == either(before + left + right + after)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("don", "'t"),
        ("used.\n", "/etc"),
        ("  ", " x"),
        ("\n", " x"),
        (".", "net"),
        ("使用JSON", "Path"),
        ("か", "\u3099"),
        ("e", "\u0301"),
        ("\ud83d", "\ude00"),
        ("12", "345"),
    ],
)
def test_text_is_not_cut_where_an_encoding_would_not_be(left: str, right: str) -> None:
    assert last_safe_cut(left + right, len(left) - 1, len(left) + 1) == len(left) - 1


def test_counter_is_exact_over_a_long_answer(encode: Encode, prose: str) -> None:
    counter = IncrementalCounter(encode)
    for piece in split(prose, random.Random(1), 12):
        counter.feed(piece)
    assert counter.total() == len(encode(prose))
    assert counter.forced == 0


@pytest.mark.parametrize("run", [" ", "=", "x", "字", "😀", "\ud83d", "สวัสดี"])
def test_run_without_a_cut_is_cut_by_force_and_counts_alike_for_any_split(
    encode: Encode, run: str
) -> None:
    text = "Begin: " + (run * 40_000)[:40_000] + " 1 end."
    longest = 0

    def measuring(part: str) -> list[int]:
        nonlocal longest
        longest = max(longest, len(part))
        return encode(part)

    totals = set()
    for most in (100, 5_000, 50_000):
        counter = IncrementalCounter(measuring)
        for piece in split(text, random.Random(most), most):
            counter.feed(piece)
        totals.add(counter.total())
        assert counter.forced == 2
    assert longest <= LONGEST_RUN
    assert len(totals) == 1
    assert abs(totals.pop() - len(encode(text))) <= 2 * 2


@pytest.mark.parametrize(("length", "forced"), [(LONGEST_RUN, 0), (LONGEST_RUN + 1, 1)])
def test_cut_is_forced_only_when_a_run_is_longer_than_the_longest(
    encode: Encode, length: int, forced: int
) -> None:
    counter = IncrementalCounter(encode)
    counter.feed("x" * length)
    assert counter.total() == len(encode("x" * length))
    counter.feed(" y")
    counter.total()
    assert counter.forced == forced


def test_every_character_is_encoded_once_however_small_the_pieces(prose: str) -> None:
    encoded: list[str] = []

    def recording(part: str) -> list[str]:
        encoded.append(part)
        return []

    counter = IncrementalCounter(recording)
    for piece in split(prose, random.Random(2), 5):
        counter.feed(piece)
    assert len(encoded) < 2 * len(prose) / SETTLE_CHARACTERS
    assert prose.startswith("".join(encoded))
    assert len(prose) - len("".join(encoded)) < 2 * SETTLE_CHARACTERS


def test_total_encodes_nothing_when_nothing_was_fed_since() -> None:
    encoded: list[str] = []

    def recording(part: str) -> list[str]:
        encoded.append(part)
        return [part]

    counter = IncrementalCounter(recording)
    counter.feed("one two three")
    first = counter.total()
    calls = len(encoded)
    counter.feed("")
    assert counter.total() == first
    assert len(encoded) == calls
    counter.feed(" four")
    assert counter.total() > first


def test_no_call_encodes_more_than_a_slice_when_a_piece_is_long(
    encode: Encode,
) -> None:
    lengths: list[int] = []

    def watched(part: str) -> list[int]:
        lengths.append(len(part))
        return encode(part)

    counter = IncrementalCounter(watched)
    text = "One lock, two weirs; 3.14 don't. " * 3000
    counter.feed(text)
    while counter.is_behind:
        before = len(lengths)
        counter.catch_up()
        assert len(lengths) == before + 1
    assert max(lengths) <= LONGEST_RUN
    assert len(lengths) > len(text) // LONGEST_RUN - 1
    assert counter.total() == len(encode(text))


@given(text=TEXTS, size=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_pieces_are_the_text_in_order_and_no_longer_than_asked(
    text: str, size: int
) -> None:
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= size


def test_pieces_have_as_many_tokens_as_the_text(encode: Encode, prose: str) -> None:
    parts = list(pieces(prose, 1_000))
    assert len(parts) > 100
    assert sum(len(encode(part)) for part in parts) == len(encode(prose))

import json
import threading
from typing import Any

import anyio
import pytest

from gateway.admission.estimate import (
    COUNTED_CHARACTERS,
    INLINE_CHARACTERS,
    LARGEST_CAP,
    Completion,
    Estimate,
    Estimator,
    estimate_completion,
    estimate_prompt,
)
from gateway.admission.tokenizer import Tokenizer, load_tokenizer, tokens_from_bytes
from gateway.errors import InvalidRequest

# The example of OpenAI's cookbook, "How to count tokens with tiktoken": its API
# reports 129 prompt tokens for gpt-4 and 124 for gpt-4o.
COOKBOOK = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates "
        "corporate jargon into plain English.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "New synergies will help drive top-line growth.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Things working well together will increase revenue.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on "
        "opportunities for increased leverage.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Let's talk later when we're less busy about how to do better.",
    },
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for "
        "the client deliverable.",
    },
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("o200k_base", None)


class Letters:
    """A token for every character; remembers who asked for what."""

    def __init__(self) -> None:
        self.longest = 0
        self.threads: set[int] = set()

    def encode(self, text: str) -> list[int]:
        self.longest = max(self.longest, len(text))
        self.threads.add(threading.get_ident())
        return [0] * len(text)


def of(content: object, **members: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content, **members}]}


def letters(body: dict[str, Any]) -> int:
    """The prompt, where every character is a token."""
    return estimate_prompt(body, Tokenizer("letters", Letters().encode))


PLAIN = 3 + len("user") + 3
"""A message without content."""


@pytest.mark.parametrize(
    ("name", "tokens"), [("cl100k_base", 129), ("o200k_base", 124)]
)
def test_prompt_counts_what_openai_reports_for_the_cookbooks_example(
    name: str, tokens: int
) -> None:
    body = {"model": "any", "messages": COOKBOOK}
    assert estimate_prompt(body, load_tokenizer(name, None)) == tokens


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({}, 3),
        (of(None), PLAIN),
        (of(""), PLAIN),
        (of("four"), PLAIN + 4),
        (of("four", name="me"), PLAIN + 4 + 2 + 1),
        (of([{"type": "text", "text": "four"}, {"type": "text", "text": "2!"}]), 16),
        (of([{"type": "input_text", "text": "four"}]), PLAIN + 4),
        (of([{"type": "refusal", "refusal": "no"}]), PLAIN + 2),
        (of(["four", None]), PLAIN + 4),
        (of(None, refusal="no"), PLAIN + 2),
        (of("a", reasoning="why"), PLAIN + 1 + 3),
        (of("a", reasoning="why", reasoning_content="why"), PLAIN + 1 + 3),
        (of("a", tool_call_id="call_1", cache_control={"x": 1}), PLAIN + 1),
        (of(None, function_call={"name": "f", "arguments": "{}"}), PLAIN + 3),
        ({"messages": [{"content": "a"}, {"content": "b"}]}, 3 + 3 + 1 + 3 + 1),
    ],
)
def test_prompt_counts_overhead_role_name_and_content(
    body: dict[str, Any], tokens: int
) -> None:
    assert letters(body) == tokens


def test_prompt_counts_names_and_arguments_of_tool_calls() -> None:
    function = {"name": "weather", "arguments": '{"city":"Ulm"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    assert letters(of(None, tool_calls=[call, call])) == PLAIN + 2 * (7 + 14)


@pytest.mark.parametrize("name", ["tools", "functions", "response_format"])
def test_prompt_counts_compact_json_of(name: str) -> None:
    value = {"type": "json_schema", "schema": {"title": "Füße", "required": [1, None]}}
    compact = '{"type":"json_schema","schema":{"title":"Füße","required":[1,null]}}'
    assert letters({name: value}) == 3 + len(compact)
    assert letters({name: [value]}) == 3 + len(compact) + 2
    assert letters({name: None}) == 3


@pytest.mark.parametrize("odd", [7, True, {"a": 1}, {"type": "new", "new": {"b": "c"}}])
def test_prompt_counts_json_of_what_it_has_no_rule_for(odd: object) -> None:
    size = len(json.dumps(odd, separators=(",", ":")))
    assert letters(of([odd])) == PLAIN + size
    assert letters(of(None, tool_calls=[odd])) == PLAIN + size
    if not isinstance(odd, dict):
        assert letters({"messages": odd}) == 3 + 3 + size


def test_prompt_counts_media_by_their_own_rules() -> None:
    content = [
        {"type": "text", "text": "four"},
        {"type": "image_url", "image_url": {"url": "https://e.com/a", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://e.com/a"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA" * 100}},
        {"type": "file", "file": {"file_data": "AAAA" * 100}},
    ]
    assert letters(of(content)) == PLAIN + 4 + 85 + 1445 + 3 + 200


def test_special_tokens_in_a_prompt_are_text(tokenizer: Tokenizer) -> None:
    assert estimate_prompt(of("<|endoftext|>"), tokenizer) == 3 + 1 + 7 + 3


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "in_thread"),
    [
        ("a" * (INLINE_CHARACTERS - 1_000), False),
        ("a" * (INLINE_CHARACTERS + 1), True),
        ([{"type": "text", "text": "a"}] * INLINE_CHARACTERS, True),
    ],
)
async def test_prompt_is_counted_in_a_thread_when_it_is_long(
    content: object, in_thread: bool
) -> None:
    counting = Letters()
    tokenizer = Tokenizer("letters", counting.encode)
    estimator = Estimator(tokenizer, 10, anyio.CapacityLimiter(1))
    estimate = await estimator.estimate(of(content), None)
    assert estimate.prompt_tokens == letters(of(content))
    assert counting.longest <= INLINE_CHARACTERS
    assert (threading.get_ident() not in counting.threads) is in_thread


@pytest.mark.anyio
async def test_prompt_is_judged_by_its_bytes_when_it_is_very_long() -> None:
    counting = Letters()
    tokenizer = Tokenizer("letters", counting.encode)
    estimator = Estimator(tokenizer, 10, anyio.CapacityLimiter(1))
    content = "é" * COUNTED_CHARACTERS
    estimate = await estimator.estimate(of(content), None)
    bytes_in_all = len("user") + 2 * COUNTED_CHARACTERS
    assert estimate.prompt_tokens == 3 + 3 + tokens_from_bytes(bytes_in_all)
    assert not counting.threads


@pytest.mark.anyio
async def test_estimate_holds_the_cap_for_every_choice(tokenizer: Tokenizer) -> None:
    estimator = Estimator(tokenizer, 4096, anyio.CapacityLimiter(1))
    assert await estimator.estimate(of("hello"), None) == Estimate(8, 4096, 4096)
    body = {**of("hello"), "max_tokens": 10, "n": 3}
    assert await estimator.estimate(body, 100) == Estimate(8, 30, None)


@pytest.mark.parametrize(
    ("members", "key_cap", "expected"),
    [
        ({}, None, Completion(500, 1, 500)),
        ({}, 200, Completion(200, 1, 200)),
        ({}, 800, Completion(500, 1, 500)),
        ({"max_tokens": None, "n": None}, 200, Completion(200, 1, 200)),
        ({"max_tokens": 7}, None, Completion(7, 1, None)),
        ({"max_completion_tokens": 7}, None, Completion(7, 1, None)),
        ({"max_tokens": 7, "max_completion_tokens": 9}, None, Completion(9, 1, None)),
        ({"max_tokens": 9, "max_completion_tokens": 7}, None, Completion(9, 1, None)),
        ({"max_tokens": 9_000}, None, Completion(9_000, 1, None)),
        ({"max_tokens": 200}, 200, Completion(200, 1, None)),
        ({"n": 3}, None, Completion(500, 3, 500)),
        ({"n": 3, "best_of": 5}, None, Completion(500, 5, 500)),
        ({"n": 128, "best_of": 5}, None, Completion(500, 128, 500)),
        ({"max_tokens": LARGEST_CAP}, None, Completion(LARGEST_CAP, 1, None)),
    ],
)
def test_completion_is_the_largest_cap_that_reaches_the_provider(
    members: dict[str, object], key_cap: int | None, expected: Completion
) -> None:
    completion = estimate_completion(members, 500, key_cap)
    assert completion == expected
    assert completion.tokens == expected.cap * expected.choices


WRONG = [0, -1, 1.0, "7", True, False, [7], {}]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        *((name, value) for name in ("max_tokens", "n", "best_of") for value in WRONG),
        ("max_tokens", LARGEST_CAP + 1),
        ("max_completion_tokens", 0),
        ("max_completion_tokens", 10**400),
        ("n", 129),
        ("best_of", 129),
    ],
)
def test_request_is_invalid_when_a_cap_or_number_of_choices_is_not_sane(
    param: str, value: object
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        estimate_completion({param: value}, 500, None)
    assert caught.value.param == param


@pytest.mark.parametrize("param", ["max_tokens", "max_completion_tokens"])
def test_request_is_invalid_when_a_cap_is_above_the_keys(param: str) -> None:
    body: dict[str, object] = {"max_tokens": 1, "max_completion_tokens": 1, param: 201}
    with pytest.raises(InvalidRequest) as caught:
        estimate_completion(body, 500, 200)
    assert caught.value.param == param

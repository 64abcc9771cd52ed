"""A provider's error answer, and what the caller may know of it."""

import json
from contextlib import AbstractAsyncContextManager
from typing import override

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamBusy, UpstreamLimited, UpstreamUnreachable
from gateway.providers.provider import Call, Provider, Upstream
from gateway.routing.refusal import MESSAGE_BYTES, redact, refusal
from streaming.errors import UpstreamReported

SECRET = "sk-provider-secret"


class Keyed(Provider):
    """A provider with a secret that nobody asks anything."""

    name = "keyed"
    reports_progress = False

    @override
    def redact(self, text: str) -> str:
        return text.replace(SECRET, "***")

    @override
    def open(self, call: Call, model: str) -> AbstractAsyncContextManager[Upstream]:
        raise NotImplementedError


def envelope(**members: object) -> bytes:
    return json.dumps({"error": {"message": "why", **members}}).encode()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_request"),
        (404, "model_not_found"),
        (413, "request_too_large"),
        (422, "invalid_request"),
        (429, "rate_limit_exceeded"),
    ],
)
def test_callers_own_fault_keeps_its_status(status: int, code: str) -> None:
    fault = refusal(status, {}, envelope(code=status))
    assert (fault.status, fault.code, fault.message) == (status, code, "why")


@pytest.mark.parametrize(
    ("status", "seen"), [(401, 502), (403, 502), (418, 502), (500, 502), (501, 502)]
)
def test_providers_fault_is_its_own(status: int, seen: int) -> None:
    fault = refusal(status, {}, envelope(code="anything"))
    assert (fault.status, fault.code) == (seen, "upstream_error")
    assert not fault.try_next


@pytest.mark.parametrize("status", [503, 529])
def test_busy_provider_is_left_for_the_next(status: int) -> None:
    fault = refusal(status, {}, envelope())
    assert isinstance(fault, UpstreamBusy)
    assert (fault.status, fault.code) == (503, "upstream_error")
    assert fault.try_next


def test_limited_provider_is_left_for_the_next() -> None:
    fault = refusal(429, {}, envelope())
    assert isinstance(fault, UpstreamLimited)
    assert (fault.status, fault.type) == (429, "rate_limit_error")
    assert fault.try_next


def test_code_and_param_are_the_providers_when_they_are_words() -> None:
    fault = refusal(400, {}, envelope(code="too_odd", param="temperature"))
    assert (fault.code, fault.param) == ("too_odd", "temperature")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail": "not here"}', "not here"),
        (b'{"error": "a bare string"}', "a bare string"),
        (b'"a string"', "a string"),
        (b'{"message": "llama.cpp"}', "llama.cpp"),
        (b"plain text", "plain text"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'{"error": {"message": 5}}', "The provider reported an error."),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_message_is_found_in_any_shape(body: bytes, message: str) -> None:
    assert refusal(400, {}, body).message == message


@pytest.mark.parametrize("status", [400, 429, 503])
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("", None),
        ("-1", None),
        ("Mon, 23 Nov", None),
        ("9" * 400, None),
    ],
)
def test_retry_after_is_kept_when_it_is_a_number(
    status: int, value: str, seconds: float | None
) -> None:
    fault = refusal(status, {"retry-after": value}, b"")
    assert fault.retry_after_seconds == seconds


@given(st.integers(400, 599), st.binary(max_size=60))
def test_any_answer_is_a_refusal_that_can_be_told(status: int, body: bytes) -> None:
    fault = refusal(status, {}, body)
    assert fault.status in {400, 404, 413, 422, 429, 502, 503}
    assert isinstance(fault.code, str)
    assert fault.message is not None


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (f"key {SECRET} is bad", "key *** is bad"),
        ("<h1>Bad</h1>\n\n<p>gateway</p>", "Bad gateway"),
        ("  a\tb  ", "a b"),
        ("<br>", "The provider reported an error."),
        ("x" * 1000, "x" * MESSAGE_BYTES),
        ("é" * 400, "é" * (MESSAGE_BYTES // 2)),
        ("a" + "é" * 400, "a" + "é" * ((MESSAGE_BYTES - 1) // 2)),
    ],
)
def test_message_is_made_fit_for_the_caller(message: str, told: str) -> None:
    fault = UpstreamReported(message)
    redact(fault, Keyed())
    assert fault.message == told


def test_failed_providers_request_goes_to_the_next() -> None:
    fault = refusal(502, {}, envelope())
    assert isinstance(fault, UpstreamUnreachable)
    assert (fault.status, fault.code) == (502, "upstream_error")
    assert fault.try_next

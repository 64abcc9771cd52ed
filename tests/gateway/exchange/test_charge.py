"""What an exchange costs: the table of ``gateway.exchange.charge``, cell by cell."""

import pytest

from gateway.admission.ledger import Usage
from gateway.errors import Draining, UpstreamUnreachable
from gateway.exchange.charge import Ending, charge
from streaming.dialects.reading import Reading, TokenUsage
from streaming.errors import (
    ClientDisconnected,
    ClientStalled,
    Fault,
    LocalFault,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTruncated,
)
from streaming.stages.metering import Meter

ESTIMATE = 17
REPORTED = TokenUsage(13, 5)
THE_PROVIDER = [UpstreamTruncated, UpstreamTimeout, UpstreamInvalid]
CLIENT_OR_US = [ClientDisconnected, ClientStalled, Draining, LocalFault]


def words(text: str) -> list[str]:
    return text.split()


def meter(*, usage: TokenUsage | None = None, text: str = "") -> Meter:
    """A meter that has noted this much; a word is a token."""
    meter = Meter(words)
    meter.note(Reading(texts=[(0, text)] if text else [], usage=usage))
    return meter


def ending(
    cause: type[Fault] | None, *, stream: bool, heard: bool, shown: bool
) -> Ending:
    fault = None if cause is None else cause()
    return Ending(stream, fault, heard, shown, ESTIMATE)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("heard", [True, False])
def test_proper_end_costs_what_the_provider_reports(stream: bool, heard: bool) -> None:
    ended = ending(None, stream=stream, heard=heard, shown=True)
    assert charge(ended, meter(usage=REPORTED)) == Usage(13, 5)


def test_proper_end_costs_estimate_and_count_when_nothing_is_reported() -> None:
    ended = ending(None, stream=True, heard=True, shown=True)
    assert charge(ended, meter(text="three words here")) == Usage(ESTIMATE, 3)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize("cause", [*THE_PROVIDER, UpstreamUnreachable])
def test_providers_failure_costs_nothing_when_nothing_was_shown(
    cause: type[Fault], heard: bool, stream: bool
) -> None:
    ended = ending(cause, stream=stream, heard=heard, shown=False)
    assert charge(ended, meter(usage=REPORTED)) is None


@pytest.mark.parametrize("cause", THE_PROVIDER)
def test_providers_failure_costs_what_was_generated_when_some_was_shown(
    cause: type[Fault],
) -> None:
    ended = ending(cause, stream=True, heard=True, shown=True)
    assert charge(ended, meter(usage=REPORTED)) == Usage(13, 5)


@pytest.mark.parametrize("cause", CLIENT_OR_US)
def test_leaving_costs_nothing_when_no_event_had_come(cause: type[Fault]) -> None:
    ended = ending(cause, stream=True, heard=False, shown=False)
    assert charge(ended, meter()) is None


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("cause", CLIENT_OR_US)
def test_leaving_costs_what_was_generated_when_events_had_come(
    cause: type[Fault], shown: bool
) -> None:
    ended = ending(cause, stream=True, heard=True, shown=shown)
    assert charge(ended, meter(usage=REPORTED)) == Usage(13, 5)


@pytest.mark.parametrize("cause", CLIENT_OR_US)
def test_leaving_costs_the_prompt_when_a_whole_answer_was_awaited(
    cause: type[Fault],
) -> None:
    ended = ending(cause, stream=False, heard=False, shown=False)
    assert charge(ended, meter()) == Usage(ESTIMATE, 0)


@pytest.mark.parametrize("cause", CLIENT_OR_US)
def test_leaving_costs_all_when_the_whole_answer_had_come(cause: type[Fault]) -> None:
    ended = ending(cause, stream=False, heard=True, shown=False)
    assert charge(ended, meter(usage=REPORTED)) == Usage(13, 5)


def test_zero_is_charged_when_zero_is_reported() -> None:
    ended = ending(None, stream=True, heard=True, shown=True)
    assert charge(ended, meter(usage=TokenUsage(0, 0))) == Usage(0, 0)

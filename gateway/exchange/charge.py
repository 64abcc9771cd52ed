"""What an exchange costs, decided from how it ended.

====== ===================== ========================= ============================
mode   ended by              before the first event    later
====== ===================== ========================= ============================
stream its proper end        what it used              what it used
stream the provider          nothing                   prompt + what was generated
stream the client, or us     nothing                   prompt + what was generated
json   the provider          nothing                   (has no events)
json   the client, or us     prompt                    what it used
====== ===================== ========================= ============================

For a provider's failure the first event is the first the client has seen; for the
client's leaving it is the first we have. A json answer is one event: the whole of it.
"""

import msgspec

from gateway.admission.ledger import Usage
from streaming.errors import Fault, UpstreamFault
from streaming.stages.metering import Meter


class Ending(msgspec.Struct, frozen=True):
    """How an exchange that had been dispatched ended.

    Attributes:
        stream: Whether events were asked for.
        cause: What ended it; None is its proper end.
        heard: Whether an event, or a whole json answer, had come from the provider.
        shown: Whether an event had been handed to the client.
        prompt_tokens: The estimate.
        prompts: How many prompts there were; running usage speaks of one of them.
    """

    stream: bool
    cause: Fault | None
    heard: bool
    shown: bool
    prompt_tokens: int
    prompts: int = 1


def charge(ending: Ending, meter: Meter) -> Usage | None:
    """The tokens to settle; None when everything is given back."""
    cause = ending.cause
    if isinstance(cause, UpstreamFault) and not ending.shown:
        return None
    if cause is not None and not ending.heard:
        return None if ending.stream else Usage(ending.prompt_tokens, 0)
    prompt = ending.prompt_tokens
    if meter.usage is not None and (cause is None or ending.prompts == 1):
        prompt = meter.usage.prompt_tokens
    return Usage(prompt, meter.completion_tokens())

"""vLLM: an OpenAI-compatible server that reports usage with every event if asked."""

import msgspec

from gateway.providers.adapter import Adapter, stream_options
from gateway.providers.provider import Call


def encode(call: Call, model: str) -> bytes:
    """Return the call's body for vLLM.

    Without ``stream`` vLLM refuses ``stream_options``, so there none is added, and a
    client's own goes through for the error it deserves.
    """
    members: dict[str, object] = {**call.members, "model": model}
    if call.stream:
        members["stream_options"] = {
            **stream_options(call),
            "include_usage": True,
            "continuous_usage_stats": True,
        }
    if call.default_cap is not None:
        members["max_tokens"] = call.default_cap
    return msgspec.json.encode(members)


VLLM = Adapter(encode, reports_progress=True)

"""OpenAI's API through its SDK, and servers that follow that API to the letter.

The SDK sends; it reads nothing. Bodies go in as bytes and come out as the transport's
own stream, so that bytes stay bytes. It never retries: attempts are the router's.
"""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, cast, override

import httpx
import msgspec
from openai import APIConnectionError, AsyncOpenAI, AsyncStream

from gateway.providers.adapter import Adapter, stream_options
from gateway.providers.provider import Call, Endpoint
from gateway.providers.upstream import Headers, UpstreamClient

_CAPS = {
    Endpoint.CHAT_COMPLETIONS: "max_completion_tokens",
    Endpoint.COMPLETIONS: "max_tokens",
}


def encode(call: Call, model: str) -> bytes:
    """Return the call's body for OpenAI.

    Usage is asked for in every stream, and the padding that hides token lengths from
    eavesdroppers is declined unless the client decides on it itself: it is relayed over
    TLS, and costs as many bytes as the text.
    """
    members: dict[str, object] = {**call.members, "model": model}
    if call.stream:
        members["stream_options"] = {
            "include_obfuscation": False,
            **stream_options(call),
            "include_usage": True,
        }
    if call.default_cap is not None:
        members[_CAPS[call.endpoint]] = call.default_cap
    return msgspec.json.encode(members)


class OpenAIClient(UpstreamClient):
    """An ``UpstreamClient`` whose requests are made by the SDK."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        connect_seconds: float,
        buffer_bytes: int = 65536,
    ) -> None:
        super().__init__(
            base_url,
            api_key=api_key,
            connect_seconds=connect_seconds,
            buffer_bytes=buffer_bytes,
        )
        self._base_url = base_url.rstrip("/")
        # With OPENAI_LOG=debug it would write down what providers answer.
        logging.getLogger("openai").setLevel(logging.WARNING)
        # The key is the client's to send: given none, the SDK would look for one, and
        # for the rest of its settings, in the environment.
        self._sdk = AsyncOpenAI(
            base_url=base_url,
            api_key="unused",
            organization="",
            project="",
            max_retries=0,
            http_client=_BareClient(self),  # type: ignore[arg-type] # it takes httpx's, too
        )

    @override
    async def post(
        self,
        path: str,
        headers: Headers,
        body: bytes,
        on_send: Callable[[], None] | None,
    ) -> httpx.Response:
        """See ``UpstreamClient.post``."""
        given = {name.decode(): value.decode() for name, value in headers}
        _on_send.set(on_send)  # of the exchange's own task: it is read a few calls down
        try:
            answer: object = await self._sdk.post(
                f"{self._base_url}/{path}",  # a relative one is parsed twice
                cast_to=httpx.Response,
                content=body,
                options={"headers": given},
                stream=True,
                stream_cls=AsyncStream[object],
            )
            return cast("httpx.Response", answer)
        except _Unsuccessful as answered:
            return answered.response
        except APIConnectionError as error:
            raise error.__cause__ or error from None


_on_send: ContextVar[Callable[[], None] | None] = ContextVar("on_send")
_PASSED = {"accept", "content-type", "x-request-id"}


class _Unsuccessful(Exception):
    """An answer that the SDK would read to its end, however long it is."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response


class _BareClient(httpx.AsyncClient):
    """What the SDK asks for, without what it adds: redirects, cookies, environment.

    Args:
        client: Whose transport, URL and key it is; it closes the transport.
    """

    def __init__(self, client: UpstreamClient) -> None:
        super().__init__(transport=client.transport, trust_env=False)
        self._client = client

    @override
    def build_request(
        self, method: str, url: httpx.URL | str, **given: Any
    ) -> httpx.Request:
        passed = [
            (name.encode("ascii"), value.encode("ascii"))
            for name, value in given["headers"]
            if name in _PASSED
        ]
        body, on_send = given["content"], _on_send.get()
        return self._client.request(method, str(url), passed, body, on_send)

    @override
    async def send(self, request: httpx.Request, **given: Any) -> httpx.Response:
        response = await self._client.transport.handle_async_request(request)
        if not response.is_success:
            raise _Unsuccessful(response)
        return response


OPENAI = Adapter(encode, reports_progress=False)

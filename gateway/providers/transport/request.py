"""The bytes of a request, from what httpx gives."""

import httpx

_FRAMING = {b"content-length", b"transfer-encoding"}


def encode_head(request: httpx.Request, body: bytes | None) -> tuple[bytes, bool]:
    """Return the head, its blank line included, and whether the body goes in chunks.

    ``httpx.Request(stream=…)`` names neither host nor length: what is missing is added.

    Args:
        request: Its fields go out in its order, byte for byte.
        body: None when it is a stream.

    Raises:
        httpx.LocalProtocolError: A field would break out of its line.
    """
    fields = request.headers.raw
    names = {name.lower() for name, _ in fields}
    if b"host" not in names:
        fields.insert(0, (b"Host", request.url.netloc))
    unframed = names.isdisjoint(_FRAMING)
    if unframed and body is None:
        fields.append((b"Transfer-Encoding", b"chunked"))
    elif unframed and body:
        fields.append((b"Content-Length", b"%d" % len(body)))
    start = b"%b %b HTTP/1.1\r\n" % (request.method.encode(), request.url.raw_path)
    head = b"".join([start, *[b"%b: %b\r\n" % field for field in fields], b"\r\n"])
    breaks = len(fields) + 2
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
        message = "a line break or a NUL in a header field"
        raise httpx.LocalProtocolError(message)
    return head, b"transfer-encoding" in names or (unframed and body is None)


def chunk(piece: bytes) -> bytes:
    """Frame a piece of a body; an empty one is its end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)

"""Who may ask, and how much: the API key, the Host header, the kind and size of a body and the time it may take."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .api import error_body

MAX_BODY = 1 << 20  # bytes
BODY_SECONDS = 30.0
OPEN = ("/", "/health", "/openapi.json")  # without a key

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware: hands on requests whose body is whole, small and JSON.

    With a key every route but OPEN asks for it. Without one, only names of this machine are answered to: a page in a
    browser here could else reach the server under its own site's name (DNS rebinding).
    """

    def __init__(self, app: App, key: str | None) -> None:
        self.app, self.expected = app, None if key is None else b"Bearer " + key.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            # Also of requests that are refused: to close a connection on what was not read resets it, answer and all.
            body = await asyncio.wait_for(read(receive), BODY_SECONDS)
        except asyncio.TimeoutError:
            return await refuse(send, 408, f"the body did not arrive within {BODY_SECONDS:.0f} s", "timeout_error")
        except ConnectionError:  # nobody is there to answer
            return
        headers = dict(scope["headers"])
        if self.expected is None:
            name = headers.get(b"host", b"localhost").decode("latin-1")
            if not is_loopback(name if name.endswith("]") else name.rsplit(":", 1)[0]):
                message = "without an API key the server answers to localhost only; start it with --api-key"
                return await refuse(send, 403, message, "permission_error")
        elif scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                what = "the API key is wrong" if given else "the API key is missing"
                message = f"{what}; send it as Authorization: Bearer KEY"
                return await refuse(send, 401, message, "authentication_error", "invalid_api_key")
        if body is None:
            message = f"the body is larger than {MAX_BODY:,} bytes"
            return await refuse(send, 413, message, "invalid_request_error", "request_too_large")
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if body and kind != b"application/json":  # also none: that is what any page may send here, unasked
            message = "send the body with the header Content-Type: application/json"
            return await refuse(send, 415, message, "invalid_request_error")
        await self.app(scope, replay(body, receive), send)


async def read(receive: Receive) -> bytes | None:
    """The whole body; None where it is too large. More is read than is kept, so that the client, still writing, gets to
    see the answer.
    """
    body, size = bytearray(), 0
    while size <= 16 * MAX_BODY:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= MAX_BODY:
            body += chunk
        if not message.get("more_body", False):
            return bytes(body) if size <= MAX_BODY else None
    return None


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body`, and then what the connection says, which is that it is gone."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message


async def refuse(send: Send, status: int, message: str, kind: str, code: str | None = None) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error_body(message, kind, code=code)).encode()})

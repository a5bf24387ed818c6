"""The routes: OpenAI's interface, `/health`, and the page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from .. import __version__
from ..assistant import Assistant
from ..errors import GptfastError
from .api import ChatRequest, CompletionRequest, ErrorBody, Request, Writer, error_body, explain, usage_of
from .engine import Engine, Event, Generation, PromptTooLong, QueueFull, Stopped, put_all
from .guard import Guard, Receive, Send

KINDS = {
    400: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    429: "rate_limit_error",
}


class Problem(HTTPException):
    """What a request is answered with when it cannot be met."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message, {"Retry-After": "1"} if status in (429, 503) else None)
        self.body = error_body(message, KINDS.get(status, "server_error"), param, code)


def encoded(value: Any) -> bytes:
    """JSON in ASCII: no text can spoil it, half a surrogate pair from a client's own text included."""
    return json.dumps(value, separators=(",", ":")).encode()


def answer(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(encoded(value), status, headers, "application/json")


class Texts:
    """The generations of one request, seen from the event loop."""

    def __init__(self, engine: Engine, prompts: Sequence[list[int]], request: Request, stops: Sequence[str]) -> None:
        n, self.engine = request.n or 1, engine
        self.prompt_tokens = sum(map(len, prompts))
        self.events: list[Event] = []
        self.ready = asyncio.Event()
        self.generations = [
            Generation(
                prompt, request.limit or engine.context, self._put, request.sampling,
                None if request.seed is None else request.seed + i * n + j, stops,
            )
            for i, prompt in enumerate(prompts) for j in range(n)
        ]  # fmt: skip
        self.open = len(self.generations)
        self.numbers = {id(g): i for i, g in enumerate(self.generations)}
        engine.submit(self.generations)

    def _put(self, event: Event) -> None:
        self.events.append(event)
        self.ready.set()

    @property
    def usage(self) -> dict[str, int]:
        return usage_of(self.prompt_tokens, sum(g.tokens for g in self.generations))

    async def pieces(self) -> AsyncIterator[list[tuple[int, str, str | None]]]:
        """The number, more text and the finish reason of those that have any: all that has come since the last time,
        so that a slow reader gets larger pieces, and holds up nobody. Raises Problem.
        """
        while self.open:
            await self.ready.wait()
            self.ready.clear()
            events, self.events = self.events, []
            merged: dict[int, tuple[str, str | None]] = {}
            for event in events:
                if event.finish == "error":
                    raise self._problem()
                number = self.numbers[id(event.generation)]
                merged[number] = (merged.get(number, ("", None))[0] + event.text, event.finish)
                self.open -= event.finish is not None
            yield [(number, text, finish) for number, (text, finish) in merged.items()]

    def _problem(self) -> Problem:
        if self.engine.failure is not None:
            return Problem(500, "the model failed; the server's log says why, and a restart may help")
        if self.engine.stopped:
            return Problem(503, "the server is stopping")
        return Problem(500, "the model computed no numbers; its weights may be damaged")

    async def watch(self, receive: Receive) -> None:
        """Cancel all when the client has left."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.engine.cancel(self.generations)


class EventStream(Response):
    """Server-sent events, one `data:` line a piece."""

    def __init__(self, texts: Texts, writer: Writer, usage: bool) -> None:
        self.texts, self.writer, self.usage = texts, writer, usage
        self.background = None
        self.status_code = 200
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "Content-Type": "text/event-stream"})

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(self.texts.watch(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for lines in self._lines():
                await send({"type": "http.response.body", "body": lines, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            watcher.cancel()
            self.texts.engine.cancel(self.texts.generations)

    async def _lines(self) -> AsyncIterator[bytes]:
        writer = self.writer
        if writer.chat:
            yield b"".join(self._line([writer.role(i)]) for i in range(self.texts.open))
        try:
            async for pieces in self.texts.pieces():
                lines = []
                for number, text, finish in pieces:
                    if text:
                        lines.append(self._line([writer.choice(number, text, None, True)]))
                    if finish:
                        lines.append(self._line([writer.choice(number, None, finish, True)]))
                yield b"".join(lines)
        except Problem as problem:
            yield b"data: " + encoded(problem.body) + b"\n\n"
            return
        if self.usage:
            yield b"data: " + encoded(writer.body([], self.texts.usage, True)) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _line(self, choices: list[dict[str, Any]]) -> bytes:
        return b"data: " + encoded(self.writer.body(choices, None, True)) + b"\n\n"


async def respond(texts: Texts, writer: Writer, request: Request, receive: Receive) -> Response:
    if request.stream:
        return EventStream(texts, writer, request.wants_usage)
    whole = [["", ""] for _ in texts.generations]  # text, finish reason
    watcher = asyncio.create_task(texts.watch(receive))
    try:
        async for pieces in texts.pieces():
            for number, text, finish in pieces:
                whole[number][0] += text
                whole[number][1] = finish or ""
    finally:
        watcher.cancel()
        texts.engine.cancel(texts.generations)
    choices = [writer.choice(i, text, finish, False) for i, (text, finish) in enumerate(whole)]
    return answer(writer.body(choices, texts.usage, False))


def page() -> tuple[bytes, dict[str, str]]:
    """The chat page, and headers that let it run its own script and talk to this server, and nothing else."""
    html = (Path(__file__).parent / "page.html").read_bytes()
    hashes = {}
    for tag in ("script", "style"):
        inner = re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), html, re.S)
        hashes[tag] = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(x).digest()).decode()}'" for x in inner)
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def make_app(assistant: Assistant, rows: int = 32, waiting: int = 64, key: str | None = None) -> FastAPI:
    """An ASGI application that answers with `assistant`; its engine is `app.state.engine`. key: the API key that
    requests must bring.
    """
    engine = Engine(assistant.model, assistant.encoding, rows, waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def deliver(events: list[Event]) -> None:
            loop.call_soon_threadsafe(put_all, events)

        engine.deliver = deliver
        engine.start()
        yield
        engine.close()
        await asyncio.to_thread(engine.join)

    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody} for status in (400, 401, 403, 404, 408, 413, 415, 429, 500, 503)
    }
    app = FastAPI(title="gptfast", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.engine = engine
    app.add_middleware(Guard, key=key)

    def no_model(name: str | None) -> Problem:
        message = f"there is no model {name!r}; this server has {assistant.name!r}"
        return Problem(404, message, "model", "model_not_found")

    def begin(request: Request, prompts: Sequence[list[int]], stops: Sequence[str]) -> Texts:
        if request.model not in (None, assistant.name):
            raise no_model(request.model)
        param = "messages" if isinstance(request, ChatRequest) else "prompt"
        try:
            return Texts(engine, prompts, request, stops)
        except GptfastError as error:
            code = "context_length_exceeded" if isinstance(error, PromptTooLong) else None
            raise Problem(400, str(error), param, code) from None
        except QueueFull:
            raise Problem(429, f"{engine.limit} requests are waiting; try again", code="queue_full") from None
        except Stopped:
            raise Problem(503, "the model failed" if engine.failure else "the server is stopping") from None

    @app.post("/v1/chat/completions", responses=errors)
    async def chat_completions(body: ChatRequest, request: HTTPRequest) -> Response:
        try:
            prompt = assistant.prompt([message.plain() for message in body.messages])
        except GptfastError as error:
            raise Problem(400, f"messages: {error}", "messages") from None
        texts = begin(body, [prompt], [*body.stops, *assistant.template.stops()])
        return await respond(texts, Writer(assistant.name, chat=True), body, request.receive)

    @app.post("/v1/completions", responses=errors)
    async def completions(body: CompletionRequest, request: HTTPRequest) -> Response:
        prompts = [assistant.encode(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompts]
        texts = begin(body, prompts, body.stops)
        return await respond(texts, Writer(assistant.name, chat=False), body, request.receive)

    model = {"id": assistant.name, "object": "model", "created": 0, "owned_by": "gptfast"}

    @app.get("/v1/models", responses=errors)
    async def models() -> Response:
        return answer({"object": "list", "data": [{**model, "context_length": assistant.context}]})

    @app.get("/v1/models/{name:path}", responses=errors)
    async def one_model(name: str) -> Response:
        if name != assistant.name:
            raise no_model(name)
        return answer(model)

    @app.get("/health", responses={503: {}})
    async def health() -> Response:
        active, waits = engine.load()
        status = "failed" if engine.failure else "stopping" if engine.stopped else "ok"
        return answer({"status": status, "active": active, "waiting": waits}, 503 if engine.stopped else 200)

    html, headers = page()

    @app.get("/", include_in_schema=False)
    async def chat_page() -> Response:
        return Response(html, headers=headers, media_type="text/html; charset=utf-8")

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: HTTPRequest, error: StarletteHTTPException) -> Response:
        body = error.body if isinstance(error, Problem) else None
        if body is None:
            message = {
                400: "the body is not JSON in UTF-8, or nests too deep, or has a number of too many digits",
                404: "there is no such path",
                405: "the path has no such method",
            }.get(error.status_code, str(error.detail))
            body = error_body(message, KINDS.get(error.status_code, "invalid_request_error"))
        return answer(body, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: HTTPRequest, error: RequestValidationError) -> Response:
        message, param = explain(error.errors())
        return answer(error_body(message, "invalid_request_error", param), 400)

    @app.exception_handler(Exception)
    async def failed(request: HTTPRequest, error: Exception) -> Response:
        return answer(error_body("the server failed; its log says why", "server_error"), 500)

    return app

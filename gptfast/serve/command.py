"""`gptfast serve`."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..assistant import PLAIN, load_assistant
from ..errors import GptfastError

KEY = "GPTFAST_API_KEY"


@dataclass(frozen=True)
class ServeConfig:
    """Serve a trained model over HTTP: OpenAI's interface under /v1, and a chat page at /."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run folder, one of its checkpoints, or a model folder in Hugging Face's layout."""
    host: str = "127.0.0.1"
    """The address to listen on. Any but this machine's own loopback needs an API key."""
    port: int = 8000
    """The port; 0 takes a free one."""
    api_key: str | None = None
    """The key that requests must bring. Other users of this machine see flags: the environment's GPTFAST_API_KEY is
    better."""
    rows: int = 32
    """Texts made at a time. Each holds keys and values for a whole context."""
    waiting: int = 64
    """Requests that may wait for a row; more are answered with 429."""
    name: str | None = None
    """The model's id in the interface; by default the folder's name."""
    checkpoint: str = "best"
    """Of a run: best (lowest validation loss), last, or a step."""
    encoding: str | None = None
    """The tokenizer (a name or a path), if the folder does not name it (GPT-2's for a vocabulary of 50,257)."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises GptfastError where the port is taken or the address is not this machine's."""
    if not 0 <= port < 65536:
        raise GptfastError(f"--port is {port}; it must be from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise GptfastError(f"cannot listen on --host {host!r}: {error}; give an address of this machine") from None
    try:
        if os.name != "nt":  # a port whose last connections linger is free; on Windows the option means another thing
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        advice = "stop what listens there, or choose another --port" if port else "choose another --host"
        raise GptfastError(f"cannot listen on {host}, port {port}: {error.strerror}; {advice}") from None
    return listener


def require_key(listener: socket.socket, given: str | None) -> str | None:
    """The API key. Raises GptfastError where others can reach the socket and there is none."""
    key = given if given is not None else os.environ.get(KEY)
    if key is not None and (not key.isascii() or not key.isprintable() or not key.strip() or key != key.strip()):
        raise GptfastError(f"the API key must be printable ASCII, without spaces around it; mend --api-key or {KEY}")
    address = listener.getsockname()[0]
    if key is None and not ipaddress.ip_address(address.split("%")[0]).is_loopback:
        raise GptfastError(f"{address} can be reached from elsewhere: set a key in {KEY}, or listen on 127.0.0.1")
    return key


def main(argv: list[str]) -> None:
    config = tyro.cli(ServeConfig, args=argv, prog="gptfast serve")
    for name in ("rows", "waiting"):
        if getattr(config, name) < 1:
            raise GptfastError(f"--{name} is {getattr(config, name)}; it must be at least 1")
    try:
        import uvicorn

        from .app import make_app
    except ImportError as error:
        raise GptfastError(f"serving needs {error.name}; install it: pip install 'gptfast-kernels[serve]'") from None

    class Server(uvicorn.Server):
        """Ends all answers at once when it is told to stop, and does not wait for their last token."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            app.state.engine.close()
            super().handle_exit(sig, frame)

    with bind(config.host, config.port) as listener:  # before the model is loaded: it takes time to say what is wrong
        key = require_key(listener, config.api_key)
        assistant = load_assistant(config.run, config.checkpoint, config.encoding, config.device, config.name)
        c = assistant.model.config
        weight = next(assistant.model.parameters())
        cache = 2 * c.n_layer * c.context_length * c.n_embd * weight.element_size() * config.rows
        try:
            app = make_app(assistant, config.rows, config.waiting, key)
        except RuntimeError as error:  # of torch, for want of memory
            why = f"({cache / 1e9:.1f} GB): {str(error).splitlines()[0]}"
            raise GptfastError(f"no room for --rows {config.rows} {why}; take fewer") from None
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        template = (
            "a base model's plain template" if assistant.template is PLAIN else f"template {assistant.template.name!r}"
        )
        print(
            f"{assistant.name}: {assistant.model.num_parameters():,} parameters on {weight.device}, {template}; "
            f"{config.rows} rows of {c.context_length} tokens, {cache / 1e6:,.0f} MB\n"
            f"{address} has a chat page, {address}/v1 OpenAI's interface{'' if key is None else ', with the API key'}; "
            "Ctrl-C stops",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        # httptools, which uvicorn prefers where it is installed, takes headers without end: 300 MB filled 300 MB.
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5,
            limit_concurrency=1024, ws="none", http="h11",
        )  # fmt: skip
        Server(settings).run(sockets=[listener])

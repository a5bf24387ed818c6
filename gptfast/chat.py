"""`gptfast chat`: a conversation with a trained model in the terminal."""

from __future__ import annotations

import json
import queue
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text

from .assistant import Assistant, load_assistant
from .errors import GptfastError
from .files import atomic_write
from .generate import show_any_text
from .serve.engine import Engine, Event, Generation, Sampling, Stopped

HELP = '''/reset        begin a new conversation
/system TEXT  set the system message; without TEXT, take it away
/save FILE    write the conversation as a line of JSON: {"messages": [...]}
/help         this
/quit         end, as Ctrl-D does
Several lines are one message between """ and """. Ctrl-C stops an answer.'''
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what could command the terminal, in the text of a model


@dataclass(frozen=True)
class ChatConfig:
    """Talk to a trained model in the terminal, or pipe it one message a line; /help lists what can be said to the
    program itself.

    The whole conversation is the model's prompt. When it leaves less than a quarter of the context to the answer, or
    less than --max-new-tokens if that is fewer, the oldest exchange is dropped, and that is said.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """A run folder, one of its checkpoints, or a model folder in Hugging Face's layout."""
    system: str = ""
    """The system message to begin with."""
    max_new_tokens: int = 256
    """Tokens of an answer at most."""
    temperature: float = 0.8
    """Below 1 keeps to likely tokens; 0 always takes the likeliest."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float | None = None
    """Sample among the fewest tokens whose probabilities reach p."""
    seed: int | None = None
    """The same seed gives the same answers; by default they differ."""
    checkpoint: str = "best"
    """Of a run: best (lowest validation loss), last, or a step."""
    encoding: str | None = None
    """The tokenizer (a name or a path), if the folder does not name it (GPT-2's for a vocabulary of 50,257)."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


class Chat:
    """A conversation. history: user and assistant in turn, of which the model sees what follows the first `dropped`
    exchanges.
    """

    def __init__(self, assistant: Assistant, sampling: Sampling, max_new_tokens: int, seed: int | None = None) -> None:
        self.assistant, self.sampling, self.max_new_tokens, self.seed = assistant, sampling, max_new_tokens, seed
        self.system = ""
        self.history: list[dict[str, str]] = []
        self.dropped, self.finish = 0, ""
        self.answers = 0
        self._engine = Engine(assistant.model, assistant.encoding, rows=1, waiting=1)
        self._engine.start()

    def messages(self, dropped: int = 0) -> list[dict[str, str]]:
        """All, or without the first `dropped` exchanges."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.history[2 * dropped :]]

    def reset(self) -> None:
        self.history.clear()
        self.dropped = 0

    def ask(self, question: str) -> Iterator[str]:
        """Yield the answer in pieces. `finish` says how it ended; closed early, it stops. An empty answer is not kept,
        nor is its question. Raises GptfastError for a question that does not fit.
        """
        turn = {"role": "user", "content": question}
        context, dropped = self.assistant.context, self.dropped
        room = min(self.max_new_tokens, context // 4)
        while True:
            prompt = self.assistant.prompt([*self.messages(dropped), turn])
            if 2 * dropped == len(self.history) or len(prompt) + room <= context:
                break
            dropped += 1
        seed = None if self.seed is None else self.seed + self.answers
        stops = self.assistant.template.stops()
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        generation = Generation(prompt, self.max_new_tokens, events.put, self.sampling, seed, stops)
        try:
            self._engine.submit([generation])
        except Stopped:
            raise GptfastError("the model failed; /save keeps what was said, then start the chat anew") from None
        self.dropped = dropped
        self.answers += 1
        answer, self.finish = "", ""
        try:
            while not self.finish:
                event = events.get()
                answer += event.text
                self.finish = event.finish or ""
                yield event.text
            if self.finish == "error":
                raise GptfastError(f"the model failed: {self._engine.failure or 'it computed no numbers'}")
        finally:
            self._engine.cancel([generation])
            while not self.finish:
                self.finish = events.get().finish or ""
            if answer.strip():
                self.history += [turn, {"role": "assistant", "content": answer}]

    def close(self) -> None:
        self._engine.close()
        self._engine.join()


class Terminal:
    """Answers go to standard output, all else to standard error: piped, the output is the answers."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.out = Console(highlight=False, soft_wrap=True)
        self.notes = Console(stderr=True, highlight=False, soft_wrap=True)
        self.interactive = sys.stdin.isatty()

    def note(self, text: str, style: str = "dim") -> None:
        self.notes.print(Text(text, style))

    def read(self) -> str | None:
        """The next line or block; None at the end."""
        line = self._line("> ")
        if line is None or not line.lstrip().startswith('"""'):
            return line
        lines = [line.lstrip()[3:]]
        while not lines[-1].rstrip().endswith('"""'):
            following = self._line(". ")
            if following is None:
                break
            lines.append(following)
        lines[-1] = lines[-1].rstrip().removesuffix('"""')
        return " " + "\n".join(lines).strip("\n")  # behind a space it is no command

    def _line(self, prompt: str) -> str | None:
        try:
            if self.interactive:
                if not sys.stdout.isatty():  # where input() would write it
                    self.notes.print(prompt, end="")
                    prompt = ""
                text = input(prompt)
            elif not (text := sys.stdin.readline()):
                return None
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise GptfastError(f"the input is not UTF-8 at byte {error.start}; convert it") from None
        return text.rstrip("\n").encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def run(self) -> None:
        while True:
            try:
                text = self.read()
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self.note("\n/quit or Ctrl-D ends the chat")
                continue
            if text is None or text.strip() == "/quit":
                return
            try:
                if text.startswith("/"):
                    self.command(*text[1:].partition(" ")[::2])
                elif text.strip():
                    self.answer(text.strip())
            except GptfastError as error:
                if not self.interactive:
                    raise
                self.note(f"error: {error}", "red")

    def answer(self, question: str) -> None:
        dropped, pieces = self.chat.dropped, self.chat.ask(question)
        try:
            for piece in pieces:
                if self.chat.dropped > dropped:
                    self.note(f"({self.chat.dropped - dropped} of the oldest exchanges no longer fit and were dropped)")
                    dropped = self.chat.dropped
                self.out.print(Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", piece)), end="")
        except KeyboardInterrupt:
            pieces.close()  # type: ignore[attr-defined]
            if not self.interactive:
                raise
        self.out.print()
        how = {"cancelled": "stopped", "length": "cut: the context or --max-new-tokens is used up"}.get(
            self.chat.finish
        )
        if how:
            self.note(f"({how})")

    def command(self, name: str, argument: str) -> None:
        argument = argument.strip()
        if name == "reset":
            self.chat.reset()
            self.note("(a new conversation)")
        elif name == "system":
            self.chat.system = argument
            self.note("(the system message is set)" if argument else "(there is no system message now)")
        elif name == "save":
            if not argument:
                raise GptfastError("/save needs the name of a file")
            try:
                path = Path(argument).expanduser()
                if path.exists():
                    raise GptfastError(f"{path} exists; give another name")
                with atomic_write(path, "w") as file:
                    file.write(json.dumps({"messages": self.chat.messages()}, ensure_ascii=False) + "\n")
            except GptfastError:
                raise
            except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown ~user, a zero byte
                raise GptfastError(f"cannot write {argument}: {error}; give another name") from None
            self.note(f"({path} holds {len(self.chat.messages())} messages)")
        elif name == "help":
            self.note(HELP)
        else:
            raise GptfastError(f"there is no /{name}; /help lists what there is")


def check(config: ChatConfig) -> None:
    limits = {
        "max-new-tokens": (config.max_new_tokens, config.max_new_tokens >= 1, "at least 1"),
        "temperature": (config.temperature, 0 <= config.temperature < float("inf"), "at least 0"),
        "top-k": (config.top_k, config.top_k is None or config.top_k >= 1, "at least 1"),
        "top-p": (config.top_p, config.top_p is None or 0 < config.top_p <= 1, "above 0 and at most 1"),
    }
    for name, (value, good, limit) in limits.items():
        if not good:
            raise GptfastError(f"--{name} is {value}; it must be {limit}")


def main(argv: list[str]) -> None:
    config = tyro.cli(ChatConfig, args=argv, prog="gptfast chat")
    check(config)
    show_any_text()
    assistant = load_assistant(config.run, config.checkpoint, config.encoding, config.device)
    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    chat = Chat(assistant, sampling, config.max_new_tokens, config.seed)
    chat.system = config.system
    terminal = Terminal(chat)
    if terminal.interactive:
        try:
            import readline  # noqa: F401  (input() then edits lines and remembers them)
        except ImportError:
            pass
        template = assistant.template.name
        terminal.note(f"{assistant.name}, template {template!r}, context {assistant.context:,}. /help, /quit")
    try:
        terminal.run()
    finally:
        chat.close()

"""Many requests on one `Decoder`: continuous batching (Yu et al. 2022, "Orca", section 3.2).

One thread owns the model. Each round of its loop reads a bounded number of tokens of new prompts, so that no prompt,
however long, holds up the texts in the making (Agrawal et al. 2023, "SARATHI"); then every text grows by a token, in
one step of the model. A row is free again the moment its text ends.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..decode import Decoder
from ..errors import GptfastError
from ..model import GPT
from ..sampling import TextStream, probabilities

# Tokens of prompts that a round reads; each part counts as a quarter at least, because the weights are read for it. On
# one core GPT-2 124M held up others for 1.63 s to read 960 tokens at once; now it is 0.50 s, and the 960 take 1.78 s.
PART = 256
COLDEST = 1e-4  # below it logits over temperature leave fp32, and the likeliest token is as good as certain


class Sampling(NamedTuple):
    """temperature 0 (below COLDEST) takes the likeliest token; see `GPT.generate`."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


SAMPLING = Sampling()


class Event(NamedTuple):
    """More text of a generation; with `finish` its last: "stop" (end-of-text or a stop string), "length", "cancelled"
    or "error".
    """

    generation: Generation
    text: str
    finish: Literal["stop", "length", "cancelled", "error"] | None = None


class Generation:
    """One text to be made. put: called with each Event; where, see `Engine`. The same seed and sampling give the same
    text, whatever runs beside it, as far as the model's numbers do not depend on the batch: in floating point two
    tokens of almost the same probability may change places.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        put: Callable[[Event], object],
        sampling: Sampling = SAMPLING,
        seed: int | None = None,
        stops: Sequence[str] = (),
    ) -> None:
        self.prompt, self.max_tokens, self.put, self.sampling = prompt, max_tokens, put, sampling
        self.random = random.Random(seed)
        self.text = TextStream(stops)
        self.read = 0  # tokens of the prompt that the model has read
        self.tokens = 0  # that were made, end-of-text and those of a stop string included
        self.last = 0  # the latest of them
        self.cancelled = False


class QueueFull(Exception):
    """As many requests wait as may."""


class Stopped(Exception):
    """The engine makes no more texts: it was closed, or the model failed."""


class PromptTooLong(GptfastError):
    """A prompt that leaves no room for an answer."""


def draw(logits: Tensor, uniform: Sequence[float], sampling: Sampling) -> Tensor:
    """A token int64 [n] for each row of logits [n, V], by inverting the cumulative distribution at `uniform`, numbers
    in [0, 1); -1 where the logits are not numbers.
    """
    if sampling.temperature < COLDEST:
        tokens = logits.argmax(-1)
        return tokens.where(logits.isfinite().any(-1) & ~logits.isnan().any(-1), -1)
    p = probabilities(logits, *sampling)
    wide = torch.float32 if p.device.type == "mps" else torch.float64
    mass = p.cumsum(-1, dtype=wide)  # [n, V]
    total = mass[:, -1:]
    at = torch.tensor(uniform, dtype=wide, device=p.device)[:, None] * total
    at = at.minimum(total.nextafter(torch.zeros_like(total)))  # rounding must not reach beyond the last token
    return torch.searchsorted(mass, at, right=True).where(total > 0, -1)[:, 0]


class Engine:
    """rows: texts made at a time. waiting: requests that may wait for a row; more are refused.

    deliver: gets the events of each round, on the engine's thread, which it must not block; by default each goes to
    its generation's `put`, there.
    """

    def __init__(
        self, model: GPT, encoding: Any, rows: int, waiting: int, deliver: Callable[[list[Event]], None] | None = None
    ) -> None:
        self.encoding, self.limit = encoding, waiting
        self.context, self.vocab_size = model.config.context_length, model.config.vocab_size
        self.deliver = deliver or put_all
        self.failure: Exception | None = None
        self._decoder = Decoder(model, rows)
        self._rows: list[Generation | None] = [None] * rows  # only the thread touches these three
        self._unread: deque[int] = deque()  # rows whose prompt is not yet read to its end, in turn
        self._events: list[Event] = []
        self._waiting: deque[Generation] = deque()
        self._changed = threading.Condition()  # guards _waiting and _closing
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="gptfast-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End every text, and the thread, after the step that it is in."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self) -> None:
        """Wait for the step that it is in, 10 seconds at most."""
        if self._thread.ident is not None:
            self._thread.join(10)

    @property
    def stopped(self) -> bool:
        return self._closing

    def load(self) -> tuple[int, int]:
        """How many texts are being made, and how many wait."""
        return sum(g is not None for g in self._rows), len(self._waiting)

    def check(self, prompt: Sequence[int]) -> None:
        """Raises GptfastError for a prompt that the model cannot continue."""
        if len(prompt) >= self.context:
            raise PromptTooLong(
                f"the prompt has {len(prompt):,} tokens, and the model's context holds {self.context:,} with the "
                "answer; shorten it"
            )
        if not prompt or not 0 <= min(prompt) <= max(prompt) < self.vocab_size:
            raise GptfastError(f"a prompt is one token id or more, each from 0 to {self.vocab_size - 1:,}")

    def submit(self, generations: Sequence[Generation]) -> None:
        """Queue them, all or none. Raises GptfastError, QueueFull or Stopped."""
        for generation in generations:
            self.check(generation.prompt)
        most = self.limit + len(self._rows)
        if len(generations) > most:
            raise GptfastError(f"{len(generations)} texts at once are more than the {most} that may run and wait here")
        with self._changed:
            if self._closing:
                raise Stopped
            free = self._rows.count(None)
            if len(self._waiting) + len(generations) > self.limit + free:
                raise QueueFull
            self._waiting.extend(generations)
            self._changed.notify()

    def cancel(self, generations: Sequence[Generation]) -> None:
        """Their rows are free after the step that they are in. What has ended stays as it is."""
        with self._changed:
            for generation in generations:
                generation.cancelled = True

    # The thread

    def _run(self) -> None:
        try:
            while self._next_round():
                self._read()
                self._step()
                self._flush()
        except Exception as error:
            self.failure = error
            raise
        finally:
            with self._changed:
                self._closing = True
                left = [g for g in (*self._rows, *self._waiting) if g is not None]
                self._waiting.clear()
            self._rows = [None] * len(self._rows)
            self._events += [Event(g, "", "error") for g in left]
            self._flush()

    def _next_round(self) -> bool:
        """Wait for something to do; free the rows of those who left, and give free rows to those who wait. False: it
        is over.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or any(self._rows))
            if self._closing:
                return False
            gone = [g for g in self._waiting if g.cancelled]
            if gone:
                self._waiting = deque(g for g in self._waiting if not g.cancelled)
            for row, generation in enumerate(self._rows):
                if generation is not None and generation.cancelled:
                    gone.append(generation)
                    self._rows[row] = None
            self._unread = deque(row for row in self._unread if self._rows[row])
            self._events += [Event(g, "", "cancelled") for g in gone]
            while self._waiting and None in self._rows:
                row = self._rows.index(None)
                self._rows[row] = self._waiting.popleft()
                self._unread.append(row)
        return True

    def _read(self) -> None:
        """Read PART tokens of prompts, which take turns; where no text would wait for it, one prompt whole."""
        waits = any(g is not None and g.tokens for g in self._rows)
        room = PART if waits else max(PART, self.context)
        while room >= PART // 4 and self._unread:
            row = self._unread.popleft()
            g = self._rows[row]
            assert g is not None
            part = g.prompt[g.read : g.read + room]
            logits = self._decoder.prefill(torch.tensor([part], device=self._decoder.device), row, g.read)
            g.read += len(part)
            if g.read < len(g.prompt):
                self._unread.append(row)
            else:
                self._grow([row], logits)
                self._flush()
            if not waits:
                return
            room -= max(len(part), PART // 4)

    def _step(self) -> None:
        """One more token for every text that has one."""
        active = [(row, g.last) for row, g in enumerate(self._rows) if g is not None and g.tokens]
        if active:
            rows = [row for row, _ in active]
            tokens = torch.tensor([last for _, last in active], device=self._decoder.device)
            self._grow(rows, self._decoder.step(tokens, None if len(rows) == len(self._rows) else rows))

    def _grow(self, rows: list[int], logits: Tensor) -> None:
        """Take a token for each of `rows` from logits [n, V], and make of it what is to be shown."""
        generations = [g for row in rows if (g := self._rows[row]) is not None]
        for row, generation, token in zip(rows, generations, self._sample(generations, logits), strict=True):
            generation.tokens += 1
            generation.last = token
            event = self._event(generation, token)
            if event.text or event.finish:
                self._events.append(event)
            if event.finish:
                self._rows[row] = None

    def _sample(self, generations: list[Generation], logits: Tensor) -> list[int]:
        """Rows of equal settings together; each draws from a generator of its own."""
        logits = logits[:, : self.encoding.n_vocab]  # a padded vocabulary has ids that are no token
        groups: dict[Sampling, list[int]] = {}
        for i, generation in enumerate(generations):
            groups.setdefault(generation.sampling, []).append(i)
        tokens = torch.empty(len(generations), dtype=torch.int64, device=logits.device)
        for sampling, index in groups.items():
            uniform = [generations[i].random.random() for i in index]
            at = torch.tensor(index, device=logits.device)
            tokens[at] = draw(logits if len(groups) == 1 else logits[at], uniform, sampling)
        return tokens.tolist()

    def _event(self, g: Generation, token: int) -> Event:
        if token < 0:  # the model computed no numbers
            return Event(g, g.text.push(b"", final=True), "error")
        if token == self.encoding.eot_token:
            return Event(g, g.text.push(b"", final=True), "stop")
        # The last token that fits is not fed to the model again.
        final = g.tokens >= min(g.max_tokens, self.context - len(g.prompt))
        try:
            data = self.encoding.decode_bytes([token])
        except KeyError:  # a gap in the vocabulary
            data = b""
        text = g.text.push(data, final)
        return Event(g, text, "stop" if g.text.stopped else "length" if final else None)

    def _flush(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self.deliver(events)


def put_all(events: list[Event]) -> None:
    for event in events:
        event.generation.put(event)

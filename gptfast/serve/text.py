"""Bytes of tokens to text that may be shown: whole characters, and nothing that may become a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Ends before the first of `stops` that is complete: what it gives does not depend on how the text falls into
    tokens.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stops = stops
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # the beginning of a stop string, perhaps

    def push(self, data: bytes, final: bool = False) -> str:
        """The text that is certain after `data`; with `final` all that was held back."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data, final)
        ends = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        held = 0 if final else max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)

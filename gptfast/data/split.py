"""Which text is kept for validation: a rule fixed before tokenizing, applied to the stream of pieces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import GptfastError
from .readers import Piece
from .samplers import hash64


class Part(NamedTuple):
    """A piece of a document within one split."""

    text: str
    begins: bool
    eot: bool  # followed by end-of-text


@dataclass(frozen=True)
class SplitRule:
    """Which text goes to validation.

    `group` = k: of each k consecutive documents, a seeded one. `cuts`: document i from character cuts[i] on.
    """

    seed: int
    group: int = 0
    cuts: tuple[int, ...] = ()

    def describe(self) -> str:
        if self.group:
            return f"one document of each {self.group}, chosen by seed {self.seed}"
        return f"the end of each document, from character {', '.join(map(str, self.cuts))}" if self.cuts else "none"

    def apply(self, pieces: Iterable[Piece]) -> Iterator[tuple[str, Part]]:
        document = at = 0
        block = chosen = -1  # a group of documents, and the place in it of the one for validation
        for text, ends in pieces:
            if self.group:
                if document // self.group != block:
                    block = document // self.group
                    chosen = hash64(self.seed, block) % self.group
                yield "val" if document % self.group == chosen else "train", Part(text, at == 0, ends)
            elif self.cuts:
                cut = max(self.cuts[document] - at, 0)
                train, val = text[:cut], text[cut:]
                if train:
                    yield "train", Part(train, at == 0, False)
                if val:
                    yield "val", Part(val, at <= self.cuts[document], ends)
            else:
                yield "train", Part(text, at == 0, ends)
            document, at = (document + 1, 0) if ends else (document, at + len(text))


def choose_split(pieces: Iterable[Piece], fraction: float, seed: int) -> SplitRule:
    """Look at the first documents: by whole documents when there are enough of them, else by characters."""
    group = math.ceil(1 / fraction - 1e-9)
    lengths, length = [], 0
    for piece in pieces:
        length += len(piece.text)
        if piece.ends:
            lengths.append(length)
            length = 0
        if len(lengths) == group:
            return SplitRule(seed, group=group)
    cuts = tuple(int((1 - fraction) * n) for n in lengths)
    if not any(cuts):
        raise GptfastError(f"the text is too short to give {fraction:g} of it to validation; use --val-fraction 0")
    return SplitRule(seed, cuts=cuts)

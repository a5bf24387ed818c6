"""Which tokens make up row n of training: pure functions of the row's number.

No sampler holds a position or a random state. Row n is the same whenever and wherever it is asked for, so the exact
place in the data is one integer, resuming needs nothing more, and data-parallel ranks share the rows by arithmetic.
The randomness is ours and of fixed definition (a 64-bit hash and a Feistel network), because numpy does not promise
that its generators give the same stream in every release.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import GptfastError
from .tokens import TokenSet

IGNORE = -100  # target of a position that has nothing to predict; torch's default ignore_index
_MASK = (1 << 64) - 1


class Row(NamedTuple):
    """`tokens` int64 [T+1]; `starts` int64: positions in [0, T] where a document begins (None: boundaries not kept)."""

    tokens: np.ndarray
    starts: np.ndarray | None


class Batch(NamedTuple):
    """`idx` and `targets` int64 [B, T], targets[:, t] the token after idx[:, t] (-100 where it is another document's).

    `cu_seqlens` int32 [n + 1]: where sequences begin in the flattened B*T positions, ending with B*T; None when
    documents are not kept apart.
    """

    idx: np.ndarray
    targets: np.ndarray
    cu_seqlens: np.ndarray | None


class Sampler(Protocol):
    """`context` is T; `len` is the number of rows in one epoch; `row(n)` is defined for every n >= 0."""

    context: int
    encoding_name: str

    def __len__(self) -> int: ...

    def row(self, n: int) -> Row: ...


def mix(x: Any) -> Any:
    """The splitmix64 finaliser (Steele et al. 2014), on a Python int or elementwise on a uint64 array."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def hash64(*numbers: int) -> int:
    """A 64-bit hash of a few integers: the key of a stream of random choices."""
    key = 0
    for number in numbers:
        key = mix(key ^ (number & _MASK))
    return key


def permute(i: Any, n: int, key: int) -> Any:
    """Where position i of [0, n) goes under the permutation named `key`; i is an int or a uint64 array.

    A Feistel network on pairs (left, right) of a square that just holds n, walking again while it lands outside.
    Needs no memory, whatever n is.
    """
    side = math.isqrt(n - 1) + 1  # side**2 >= n, and exceeds it by less than 2 * side + 1: walks are short

    def walk(x: Any) -> Any:
        left, right = x // side, x % side
        round_key = key
        for _ in range(3):
            left = (left + mix(right ^ round_key) % side) % side
            right = (right + mix(left ^ mix(round_key)) % side) % side
            round_key = mix(round_key + 1)
        return left * side + right

    x = walk(i)
    if isinstance(x, np.ndarray):
        while (outside := x >= n).any():
            x[outside] = walk(x[outside])
        return x
    while x >= n:
        x = walk(x)
    return x


def _require(tokens: TokenSet, needed: int) -> None:
    if len(tokens) < needed:
        raise GptfastError(
            f"{tokens.name} has {len(tokens):,} tokens, but one window needs {needed:,} (the context and one more); "
            "use a longer text or a shorter context"
        )


@dataclass(frozen=True)
class SlidingWindow:
    """Windows starting at 0, stride, 2 * stride, ... (the loader of the book *Build a Large Language Model*).

    Every window once an epoch, in a fresh order each epoch. The last tokens that fill no window are left out.
    Source: S. Raschka, ch. 2, `GPTDatasetV1`: starts are range(0, len(tokens) - max_length, stride).
    """

    tokens: TokenSet
    max_length: int
    stride: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.max_length < 1 or self.stride < 1:
            raise GptfastError(f"max_length ({self.max_length}) and stride ({self.stride}) must be at least 1")
        _require(self.tokens, self.max_length + 1)

    @property
    def context(self) -> int:
        return self.max_length

    @property
    def encoding_name(self) -> str:
        return self.tokens.encoding_name

    def __len__(self) -> int:
        return -(-(len(self.tokens) - self.max_length) // self.stride)

    def row(self, n: int) -> Row:
        epoch, window = divmod(n, len(self))
        if self.shuffle:
            window = permute(window, len(self), hash64(self.seed, epoch))
        return Row(self.tokens.read(window * self.stride, self.max_length + 1), None)


@dataclass(frozen=True)
class RandomOffsets:
    """Windows at independent uniform offsets (nanoGPT's `get_batch`). An "epoch" is as many rows as cover the text."""

    tokens: TokenSet
    context: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.context < 1:
            raise GptfastError(f"context ({self.context}) must be at least 1")
        _require(self.tokens, self.context + 1)

    @property
    def encoding_name(self) -> str:
        return self.tokens.encoding_name

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.context)

    def row(self, n: int) -> Row:
        # The high half of a 128-bit product maps 64 random bits to [0, choices) without the bias of a remainder.
        offset = (hash64(self.seed, n) * (len(self.tokens) - self.context)) >> 64
        return Row(self.tokens.read(offset, self.context + 1), None)


class PackedDocuments:
    """Documents in a fresh order each epoch, joined, cut into windows of context + 1 that overlap by one token.

    Each row carries the places where documents begin, so attention and loss can stay inside a document. What is left
    at the end of an epoch's order (less than a window) is dropped. Holds 16 bytes a document for the epoch at hand.
    """

    def __init__(self, tokens: TokenSet, context: int, seed: int = 0) -> None:
        if context < 1:
            raise GptfastError(f"context ({context}) must be at least 1")
        _require(tokens, context + 1)
        self.tokens, self.context, self.seed = tokens, context, seed
        self.encoding_name = tokens.encoding_name
        self._latest: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For each document of the epoch's order: where it lies in the token set, and where it ends in the stream."""
        latest = self._latest  # read and replaced as a whole: several threads may ask at once
        if latest is None or latest[0] != epoch:
            starts = self.tokens.documents
            count = len(starts)
            order = permute(np.arange(count, dtype=np.uint64), count, hash64(self.seed, epoch)).astype(np.int64)
            lengths = np.diff(starts, append=len(self.tokens))[order]
            self._latest = latest = (epoch, starts[order], np.cumsum(lengths))
        return latest[1], latest[2]

    def row(self, n: int) -> Row:
        epoch, window = divmod(n, len(self))
        lies_at, ends = self._order(epoch)
        begin = window * self.context
        end = begin + self.context + 1
        tokens = np.empty(end - begin, dtype=np.int64)
        starts = []
        document = int(np.searchsorted(ends, begin, side="right"))
        position = begin
        while position < end:
            document_end = int(ends[document])
            document_begin = int(ends[document - 1]) if document else 0
            if document_begin >= begin:
                starts.append(document_begin - begin)
            n_here = min(document_end, end) - position
            source = int(lies_at[document]) + position - document_begin
            tokens[position - begin : position - begin + n_here] = self.tokens.read(source, n_here)
            position += n_here
            document += 1
        return Row(tokens, np.array(starts, dtype=np.int64))


class Mixture:
    """Several samplers in fixed proportions: every block of 1,000 rows holds each source's share, in a mixed order.

    Shares are rounded by largest remainder; `realised` gives what they became. Weights need not sum to 1. A source
    smaller than its share starts its next epoch, as GPT-3's Wikipedia did 3.4 times (Brown et al. 2020, table 2.2).
    """

    BLOCK = 1000

    def __init__(self, sources: Sequence[tuple[Sampler, float]], seed: int = 0) -> None:
        if not sources or any(not (math.isfinite(w) and w > 0) for _, w in sources):
            raise GptfastError("a mixture needs at least one source, and each weight must be a number above 0")
        self.samplers = [sampler for sampler, _ in sources]
        for what in ("context", "encoding_name"):
            values = [getattr(sampler, what) for sampler in self.samplers]
            if len(set(values)) > 1:
                raise GptfastError(f"the sources of a mixture must have the same {what}, but have {values}")
        self.context, self.encoding_name, self.seed = self.samplers[0].context, self.samplers[0].encoding_name, seed
        total = sum(w for _, w in sources)
        exact = [self.BLOCK * w / total for _, w in sources]
        counts = [int(x) for x in exact]
        by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
        for i in by_remainder[: self.BLOCK - sum(counts)]:
            counts[i] += 1
        if 0 in counts:
            weight = sources[counts.index(0)][1]
            raise GptfastError(
                f"source {counts.index(0)} of the mixture would never be drawn: its weight {weight:g} is under "
                f"1/{2 * self.BLOCK} of the total {total:g}; raise it or leave the source out"
            )
        self._counts, self._bounds = counts, np.cumsum(counts)

    @property
    def realised(self) -> list[float]:
        """The share of rows that each source really gets; sums to 1."""
        return [count / self.BLOCK for count in self._counts]

    def __len__(self) -> int:
        """Rows until as many tokens were drawn as the sources hold together."""
        return sum(len(sampler) for sampler in self.samplers)

    def row(self, n: int) -> Row:
        block, i = divmod(n, self.BLOCK)
        slot = permute(i, self.BLOCK, hash64(self.seed, block))
        source = int(np.searchsorted(self._bounds, slot, side="right"))
        count = self._counts[source]
        rank = slot - (int(self._bounds[source]) - count)
        return self.samplers[source].row(block * count + rank)


def batch(sampler: Sampler, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
    """Batch `step` of data-parallel `rank` among `world`: rows (step * world + rank) * batch_size + [0, batch_size).

    The ranks' rows are disjoint and together the same as those of one process with batch_size * world.
    """
    first = (step * world + rank) * batch_size
    rows = [sampler.row(first + i) for i in range(batch_size)]
    tokens = np.stack([row.tokens for row in rows])  # [B, T+1]
    idx, targets = np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])
    if all(row.starts is None for row in rows):
        return Batch(idx, targets, None)
    length = sampler.context
    cuts = [np.arange(0, batch_size * length + 1, length, dtype=np.int64)]
    for i, row in enumerate(rows):
        if row.starts is None:
            continue
        targets[i, row.starts[row.starts > 0] - 1] = IGNORE
        cuts.append(i * length + row.starts[row.starts < length])
    return Batch(idx, targets, np.unique(np.concatenate(cuts)).astype(np.int32))

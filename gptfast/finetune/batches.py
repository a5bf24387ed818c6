"""Texts of different lengths as batches: padded to the longest of a batch, or packed into rows.

Padding goes to the right, where causal attention keeps it from every real token; what it costs is time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SORTED_BATCHES = 16  # in training, texts are sorted by length among those of so many batches


class Batch(NamedTuple):
    """idx int64 [B, T]. last int64 [N]: the token that classifies each text, over the flattened [B * T] positions.
    texts int64 [N]: which texts these are. cu_seqlens int32 and positions int64 [B, T] where rows are packed, else
    None. tokens: those of the N texts, of B * T.
    """

    idx: Tensor
    last: Tensor
    texts: np.ndarray
    tokens: int
    cu_seqlens: Tensor | None = None
    positions: Tensor | None = None


Collate = Callable[[Sequence[Sequence[int]], np.ndarray], Batch]


def batches(
    ids: Sequence[Sequence[int]], size: int, collate: Collate, rng: np.random.Generator | None
) -> Iterator[Batch]:
    """Every text once, `size` in a batch, texts of similar length together; in random order where `rng` is given."""
    lengths = np.array([len(x) for x in ids])
    if rng is None:
        order = np.argsort(lengths, kind="stable")
        groups = [order[i : i + size] for i in range(0, len(order), size)]
    else:
        order, groups = rng.permutation(len(ids)), []
        for i in range(0, len(order), size * SORTED_BATCHES):
            part = order[i : i + size * SORTED_BATCHES]
            part = part[np.argsort(lengths[part], kind="stable")]
            groups += [part[j : j + size] for j in range(0, len(part), size)]
        groups = [groups[i] for i in rng.permutation(len(groups))]
    return (collate(ids, group) for group in groups)


def padding_share(ids: Sequence[Sequence[int]], size: int, collate: Collate, seed: int) -> float:
    """The share of an epoch's tokens that are padding."""
    epoch = [(b.idx.numel(), b.tokens) for b in batches(ids, size, collate, np.random.default_rng(seed))]
    return 1 - sum(tokens for _, tokens in epoch) / sum(places for places, _ in epoch)


def padded(pad_id: int, to: int | None = None) -> Collate:
    """One text a row, filled with `pad_id` to the longest, or all to the length `to`, of which the last position then
    classifies, padding or not.
    """

    def collate(ids: Sequence[Sequence[int]], texts: np.ndarray) -> Batch:
        lengths = np.array([len(ids[i]) for i in texts])
        T = to or int(lengths.max())
        idx = np.full((len(texts), T), pad_id, dtype=np.int64)
        for row, i in zip(idx, texts, strict=True):
            row[: len(ids[i])] = ids[i]
        last = np.arange(len(texts)) * T + (T if to else lengths) - 1
        return Batch(torch.from_numpy(idx), torch.from_numpy(last), texts, int(lengths.sum()))

    return collate


def packed(pad_id: int, width: int) -> Collate:
    """Several texts a row of at most `width` tokens: first-fit decreasing, attention and positions anew in each."""

    def collate(ids: Sequence[Sequence[int]], texts: np.ndarray) -> Batch:
        rows: list[list[int]] = []
        room: list[int] = []
        for i in sorted(texts.tolist(), key=lambda i: -len(ids[i])):
            n = len(ids[i])
            row = next((r for r, free in enumerate(room) if free >= n), len(rows))
            if row == len(rows):
                rows.append([])
                room.append(width)
            rows[row].append(i)
            room[row] -= n
        T = width - min(room)
        idx = np.full((len(rows), T), pad_id, dtype=np.int64)
        positions = np.zeros((len(rows), T), dtype=np.int64)
        bounds, last, order = [0], [], []
        for r, texts_of_row in enumerate(rows):
            at = 0
            for i in texts_of_row:
                n = len(ids[i])
                idx[r, at : at + n], positions[r, at : at + n] = ids[i], np.arange(n)
                at += n
                bounds.append(r * T + at)
                last.append(r * T + at - 1)
                order.append(i)
            if at < T:  # the rest of the row is a document of padding
                bounds.append((r + 1) * T)
        tokens = sum(len(ids[i]) for i in order)
        return Batch(
            torch.from_numpy(idx), torch.tensor(last), np.array(order), tokens,
            torch.tensor(bounds, dtype=torch.int32), torch.from_numpy(positions),
        )  # fmt: skip

    return collate

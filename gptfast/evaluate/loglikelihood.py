"""Log likelihoods of continuations: what every task of this package is made of.

A token is scored by the position before it, so only the positions of a continuation meet the vocabulary. Continuations
of the same context (the endings of a question, the names of classes) share its keys and values: the context runs once.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import GptfastError
from ..model import GPT, KVCache

TOKENS = 8192  # positions in a batch, the shared ones counted for each row that attends to them
ENOUGH = 128  # positions that are worth a batch, though there are shorter rows to fill it with
LOGITS = 1 << 25  # of a chunk: 128 MiB in fp32


class Truncated(UserWarning):
    """Some contexts were cut."""


Ids = Sequence[int]
OnDone = Callable[[float], Any]  # told how much more is done


def loglikelihoods(
    model: GPT, encoding: Any, pairs: Sequence[tuple[str, str]], on_done: OnDone = lambda n: None
) -> list[tuple[float, bool, int]]:
    """For each (context, continuation): log p(continuation | context) in nats, whether greedy decoding would write it,
    and its tokens.

    A context that is too long loses its beginning, and a warning says so. An empty one is the end-of-text token, which
    stands before every document in training. Raises GptfastError for a continuation that is empty or longer than the
    model's context.
    """
    ids = [encode_pair(encoding, context, continuation) for context, continuation in pairs]
    for (_, continuation), (_, scored) in zip(pairs, ids, strict=True):
        if not 0 < len(scored) <= model.config.context_length:
            raise GptfastError(
                f"the continuation {continuation[:40]!r} has {len(scored):,} tokens; it must have at least one, and at "
                f"most the model's context of {model.config.context_length:,}"
            )
    cut = sum(len(context) + len(scored) > model.config.context_length + 1 for context, scored in ids)
    if cut:
        warnings.warn(
            Truncated(
                f"{cut:,} of {len(ids):,} contexts are too long for the model's {model.config.context_length:,} tokens "
                "and lost their beginning"
            ),
            stacklevel=2,
        )
    return score(model, ids, on_done)


def encode_pair(encoding: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The tokens of a context and of what follows it, split as lm-evaluation-harness splits them.

    Spaces at the end of the context belong to the continuation, where GPT-2's tokens have them, and both are encoded as
    one text. Where a token of that text spans the boundary, they are encoded apart.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    before = encoding.encode_ordinary(kept)
    whole = encoding.encode_ordinary(kept + continuation)
    after = whole[len(before) :] if whole[: len(before)] == before else encoding.encode_ordinary(continuation)
    return before or [encoding.eot_token], after


class _Row(NamedTuple):
    """ids: what follows the shared part of a context; its last `scored` are the continuation of requests `numbers`."""

    ids: tuple[int, ...]
    scored: int
    numbers: list[int]


class _Group(NamedTuple):
    """Rows with the same context, of which `shared` runs once for all of them."""

    shared: tuple[int, ...]
    rows: list[_Row]


def score(
    model: GPT, requests: Sequence[tuple[Ids, Ids]], on_done: OnDone = lambda n: None
) -> list[tuple[float, bool, int]]:
    """`loglikelihoods` of token ids. Contexts have at least one token and are cut from the left without a word."""
    results: list[tuple[float, bool, int]] = [(0.0, False, 0)] * len(requests)
    with evaluating(model):
        for groups in _batches(_groups(requests, model.config.context_length)):
            cache = _shared(model, [group.shared for group in groups])
            every = [(g, row) for g, group in enumerate(groups) for row in group.rows]
            for batch in _rows_of_like_length(every, cache.length):
                rows = [row for _, row in batch]
                x = _hidden(model, cache, [g for g, _ in batch], rows)  # [R, T, C]
                # The position before a token scores it; rows are padded behind their end, where no position sees it.
                at = [(r, t - 1) for r, row in enumerate(rows) for t in range(len(row.ids) - row.scored, len(row.ids))]
                targets = torch.tensor([token for row in rows for token in row.ids[-row.scored :]], device=x.device)
                r, t = torch.tensor(at, device=x.device).T
                logp, greedy = _score_tokens(model, x[r, t], targets)
                sizes = [row.scored for row in rows]
                for row, p, is_greedy in zip(rows, logp.split(sizes), greedy.split(sizes), strict=True):
                    for number in row.numbers:
                        results[number] = (float(p.sum()), bool(is_greedy.all()), row.scored)
                on_done(sum(len(row.numbers) for row in rows))
    return results


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode and no gradients, and afterwards the mode that was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _groups(requests: Sequence[tuple[Ids, Ids]], context_length: int) -> list[_Group]:
    by_context: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for number, (context, continuation) in enumerate(requests):
        kept = tuple(context[-(context_length + 1 - len(continuation)) :])
        by_context.setdefault(kept, {}).setdefault(tuple(continuation), []).append(number)
    groups = []
    for context, continuations in by_context.items():
        # The last token of the context stays with each row: its position scores the first of the continuation.
        shared = context[:-1] if len(continuations) > 1 else ()
        rows = [_Row(context[len(shared) :] + c, len(c), numbers) for c, numbers in continuations.items()]
        groups.append(_Group(shared, rows))
    return groups


def _batches(groups: list[_Group]) -> Iterator[list[_Group]]:
    """Groups whose shared parts are of one length, so that every row goes on at the same position."""
    for length, alike in itertools.groupby(sorted(groups, key=lambda g: len(g.shared)), lambda g: len(g.shared)):
        batch = list(alike)
        size = max(1, TOKENS // length) if length else len(batch)
        yield from (batch[i : i + size] for i in range(0, len(batch), size))


def _rows_of_like_length(rows: list[tuple[int, _Row]], shared: int) -> Iterator[list[tuple[int, _Row]]]:
    """Batches of rows, the longest first: few enough to fit, and of at most a fifth of padding, or little."""
    batch: list[tuple[int, _Row]] = []
    for row in sorted(rows, key=lambda row: len(row[1].ids), reverse=True):
        width = len(batch[0][1].ids) - 1 if batch else 0
        is_full = (len(batch) + 1) * (shared + width) > TOKENS
        if batch and (is_full or (len(row[1].ids) - 1 < 0.8 * width and len(batch) * width >= ENOUGH)):
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _shared(model: GPT, contexts: list[tuple[int, ...]]) -> KVCache:
    """Keys and values of `contexts`, which have one length S: [L, G, S, H, D]."""
    c, S = model.config, len(contexts[0])
    k = model.wte.weight.new_empty(c.n_layer, len(contexts), S, c.n_head, c.n_embd // c.n_head)
    cache = KVCache(k, torch.empty_like(k))
    if S:
        model.hidden(torch.tensor(contexts, device=k.device), cache=cache)
    return cache


def _hidden(model: GPT, cache: KVCache, groups: list[int], rows: list[_Row]) -> Tensor:
    """The final hidden states [R, T, C] of the rows but their last tokens, each behind its group in `cache`."""
    device, S = cache.k.device, cache.length
    T = len(rows[0].ids) - 1
    idx = torch.tensor([row.ids[:-1] + (0,) * (T + 1 - len(row.ids)) for row in rows], device=device)  # [R, T]
    if S == 0:
        return model.hidden(idx)
    L, _, _, H, D = cache.k.shape
    k, v = (x.new_empty(L, len(rows), S + T, H, D) for x in (cache.k, cache.v))
    at = torch.tensor(groups, device=device)
    k[:, :, :S], v[:, :, :S] = cache.k[:, at], cache.v[:, at]
    return model.hidden(idx, cache=KVCache(k, v, S))


def _score_tokens(model: GPT, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p of targets [N] given hidden states x [N, C], in fp32, and whether each is the likeliest token."""
    logp, greedy = [], []
    size = max(1, LOGITS // model.config.vocab_size)
    for some, target in zip(x.split(size), targets.split(size), strict=True):
        logits = model.lm_head(some).float()  # [n, V]
        logp.append(logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(1))
        greedy.append(logits.argmax(1) == target)
    return torch.cat(logp).double().cpu(), torch.cat(greedy).cpu()

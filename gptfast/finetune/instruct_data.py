"""Instruction data: a file of examples to batches of tokens, with a loss on the responses.

Files: .json (a list) or .jsonl (an object a line) of Alpaca's {"instruction", "input", "output"} or of chats,
{"messages": [{"role", "content"}]}. A preference file has "chosen" and "rejected" where a response stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..data.readers import read_text
from ..errors import GptfastError
from ..model import GPT
from .table import is_unicode
from .templates import Template

IGNORED = -100  # a position whose next token is not to be learned
SORTED_BATCHES = 16  # padded examples are sorted by length among those of so many batches

Loss = Literal["response", "all"]


class Tokens(NamedTuple):
    """Of one example: ids, and targets as long: targets[t] is the token after ids[t], or -100.

    The target behind each response is end-of-text, which is no input: in a chat, the next question follows directly, as
    it does in the prompt when somebody talks to the model.
    """

    ids: list[int]
    targets: list[int]


class Batch(NamedTuple):
    """idx and targets int64 [B, T]; n: how many targets are not -100; tokens: how many of B * T are no padding.
    cu_seqlens int32 [documents + 1] and positions int64 [B, T] where examples are packed, else None.
    """

    idx: Tensor
    targets: Tensor
    n: int
    tokens: int
    cu_seqlens: Tensor | None = None
    positions: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        cu_seqlens, positions = moved(self.cu_seqlens), moved(self.positions)
        return Batch(self.idx.to(device), self.targets.to(device), self.n, self.tokens, cu_seqlens, positions)


def read_examples(path: str | Path) -> list[dict[str, Any]]:
    """The objects in a .json or .jsonl file. Raises GptfastError that says which is none."""
    path = Path(path)
    text = read_text(path)
    if path.suffix not in (".json", ".jsonl"):
        raise GptfastError(f"{path} is neither .json (a list) nor .jsonl (an object a line); rename or convert it")
    examples = []
    where = ""
    try:
        if path.suffix == ".json":
            examples = json.loads(text)
        else:
            for number, line in enumerate(text.split("\n"), 1):
                where = f", line {number}"
                if line.strip():
                    examples.append(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise GptfastError(f"{path}{where} is not valid JSON: {error}") from None
    if not isinstance(examples, list) or not examples:
        raise GptfastError(f"{path} holds no list of examples; see docs/instruct.md for the formats")
    for index, example in enumerate(examples):
        if not isinstance(example, dict):
            raise GptfastError(f"{path}: example {index} (from 0) is {example!r:.60}, not an object")
        if not is_unicode(json.dumps(example, ensure_ascii=False)):
            raise GptfastError(f"{path}: example {index} (from 0) has half of a surrogate pair, which is no character")
    return examples


def split(n: int, seed: int | None) -> tuple[list[int], list[int], list[int]]:
    """Which of n examples are for training (85 %), testing (10 %) and validation (the rest), in an order drawn with
    `seed`; None leaves them in the order of the file, as "Build a Large Language Model (From Scratch)" does: 1,100
    examples give 935, 110 and 55.
    """
    order = list(range(n)) if seed is None else np.random.default_rng(seed).permutation(n).tolist()
    train, test = int(n * 0.85), int(n * 0.1)
    if not train or train + test >= n:
        raise GptfastError(f"{n} examples are too few to train on one part and validate on another; give at least 2")
    return order[:train], order[train : train + test], order[train + test :]


def tokenise(example: Any, template: Template, encoding: Any, loss: Loss = "response") -> Tokens:
    """An example as tokens. Each text of the template is encoded by itself, as the prompt is when the model answers."""
    ids: list[int] = []
    learned: list[bool] = []  # of each token, whether it is a target
    ends: list[int] = []  # of responses, one past their last token
    for text, is_response in template.render(example):
        new = encoding.encode_ordinary(text)
        ids += new
        learned += [is_response or loss == "all"] * len(new)
        if is_response:
            ends.append(len(ids))
    targets = [token if wanted else IGNORED for token, wanted in zip(ids[1:], learned[1:], strict=True)] + [IGNORED]
    for end in ends:
        targets[end - 1] = encoding.eot_token
    return Tokens(ids, targets)


def every(examples: Sequence[Any], where: str | Path, make: Callable[[Any], Any]) -> list[Any]:
    """`make` of each example. Raises GptfastError that names the first that is bad, and says how many are."""
    made: list[Any] = []
    bad: list[tuple[int, GptfastError]] = []
    for index, example in enumerate(examples):
        try:
            made.append(make(example))
        except GptfastError as error:
            bad.append((index, error))
    if bad:
        first, reason = bad[0]
        more = f" ({len(bad) - 1} more are bad)" if len(bad) > 1 else ""
        raise GptfastError(f"{where}: example {first} (from 0): {reason}{more}")
    return made


class Fitted(NamedTuple):
    """Examples that fit the context, and how many did not: cut at its end, or left out."""

    examples: list[Tokens]
    cut: int
    dropped: int


def fit_context(examples: Sequence[Tokens], context: int, long: Literal["truncate", "drop"]) -> Fitted:
    """Truncate or drop what is longer than `context` tokens; an example that has nothing left to learn is dropped."""
    kept, cut, dropped = [], 0, 0
    for ids, targets in examples:
        fits = len(ids) <= context
        short = Tokens(ids[:context], targets[:context])
        if (not fits and long == "drop") or all(target == IGNORED for target in short.targets):
            dropped += 1
            continue
        cut += not fits
        kept.append(short)
    return Fitted(kept, cut, dropped)


def pad(examples: Sequence[Tokens], to: int | None = None) -> Batch:
    """An example a row, filled to the longest of them, or to the length `to`. Causal attention keeps what is filled in
    from every real token.
    """
    T = to or max(len(x.ids) for x in examples)
    idx = torch.zeros(len(examples), T, dtype=torch.long)
    targets = torch.full_like(idx, IGNORED)
    for row, x in enumerate(examples):
        idx[row, : len(x.ids)] = torch.tensor(x.ids)
        targets[row, : len(x.ids)] = torch.tensor(x.targets)
    return Batch(idx, targets, int((targets != IGNORED).sum()), sum(len(x.ids) for x in examples))


def pack(examples: Sequence[Tokens]) -> Batch:
    """All examples in one row [1, T] without padding, each a document: attention and positions begin anew in it."""
    lengths = torch.tensor([0] + [len(x.ids) for x in examples])
    idx = torch.tensor([[token for x in examples for token in x.ids]])
    targets = torch.tensor([[target for x in examples for target in x.targets]])
    positions = torch.cat([torch.arange(int(n)) for n in lengths])[None]
    n = int((targets != IGNORED).sum())
    return Batch(idx, targets, n, idx.numel(), lengths.cumsum(0).to(torch.int32), positions)


def batches(examples: Sequence[Tokens], size: int, packing: bool, rng: np.random.Generator | None) -> Iterator[Batch]:
    """Every example once, `size` in a batch; in random order where `rng` is given. Where they are padded, examples of
    similar length are together.
    """
    order = np.arange(len(examples)) if rng is None else rng.permutation(len(examples))
    if not packing:
        lengths = np.array([len(x.ids) for x in examples])
        span = size * SORTED_BATCHES
        parts = [order[i : i + span] for i in range(0, len(order), span)]
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    for i in range(len(groups)) if rng is None else rng.permutation(len(groups)):
        chosen = [examples[n] for n in groups[i]]
        yield pack(chosen) if packing else pad(chosen)


def target_losses(model: GPT, batch: Batch, reduction: Literal["sum", "none"] = "sum") -> Tensor:
    """fp32 losses [n] of the n targets of a batch in order, or their sum; logits are made for them only."""
    targets = batch.targets.flatten()
    kept = (targets != IGNORED).nonzero()[:, 0]
    x = model.hidden(batch.idx, batch.cu_seqlens, positions=batch.positions).flatten(0, 1)  # [B * T, C]
    return ops.linear_cross_entropy(x[kept], model.lm_head.weight, targets[kept], reduction=reduction)

"""`gptfast finetune-dpo`: learning from preferences without a reward model (Rafailov et al. 2023).

Among policies p that maximise the mean of a reward r(x, y) less beta KL(p || ref), the best is

    p(y | x) = ref(y | x) exp(r(x, y) / beta) / Z(x)        so        r = beta log(p / ref) + beta log Z(x)

With Bradley and Terry's model of preference, P(chosen preferred) = sigmoid(r(x, chosen) - r(x, rejected)), Z cancels,
and the likelihood of the preferences is a loss on p alone: with log p(y | x) the sum over the tokens of a response,

    m = beta [log p(chosen) / ref(chosen) - log p(rejected) / ref(rejected)]      loss = -log sigmoid(m)

    d loss / d log p(chosen) = -beta sigmoid(-m) = -d loss / d log p(rejected)

m is the margin of the implicit rewards, and a pair is judged right where it is above 0. The reference is the model as
it was; its log-probabilities do not change, so they are computed once, before training, and no second model is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import GptfastError
from ..model import GPT
from ..precision import ComputeCopy
from ..settings import parse
from .fit import FitDisplay, fit
from .instruct import Start, TuneConfig, describe, finish, result_table, split_of
from .instruct_data import (
    IGNORED,
    Batch,
    Tokens,
    every,
    fit_context,
    pack,
    read_examples,
    target_losses,
    tokenise,
)

if TYPE_CHECKING:
    from .templates import Template


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TuneConfig):
    """Teach a GPT which of two responses is preferred. `--config FILE` reads any of these from a YAML or TOML recipe;
    flags overrule it.
    """

    beta: float = 0.1
    """How strongly the model is held to what it was: the scale of the implicit reward."""
    lr: float = 5e-6
    """Peak learning rate."""
    epochs: float = 1.0
    """Passes over the training data."""

    def check(self) -> None:
        super().check()
        if not 0 < self.beta < float("inf"):
            raise GptfastError(f"--beta is {self.beta}; it must be above 0")


class Pair(NamedTuple):
    """The tokens of an example with the chosen response and with the rejected one."""

    chosen: Tokens
    rejected: Tokens


def pair_of(example: dict[str, Any], template: Template, encoding: Any) -> Pair:
    """Of {"instruction", "input", "chosen", "rejected"}, or {"messages", "chosen", "rejected"} where the messages end
    with the user's.
    """

    def tokens(key: str) -> Tokens:
        response = example.get(key)
        if not isinstance(response, str) or not response.strip():
            raise GptfastError(f"it has no text {key!r}")
        if "messages" not in example:
            return tokenise({**example, "output": response}, template, encoding)
        if not isinstance(example["messages"], list):
            raise GptfastError("its messages are not a list of {'role', 'content'}")
        chat = [*example["messages"], {"role": "assistant", "content": response}]
        ids, targets = tokenise(chat, template, encoding)
        # Earlier answers are part of the question: targets are the last response's tokens and its end-of-text.
        first = len(ids) - len(encoding.encode_ordinary(template.render(chat)[-1][0])) - 1
        return Tokens(ids, [IGNORED] * first + targets[first:])

    return Pair(tokens("chosen"), tokens("rejected"))


def response_log_probabilities(model: GPT, batch: Batch) -> Tensor:
    """fp32 [documents]: the sum of log p over the targets of each document of a packed batch."""
    assert batch.positions is not None and batch.cu_seqlens is not None
    losses = target_losses(model, batch, "none")  # [n]
    document = (batch.positions.flatten() == 0).cumsum(0) - 1  # [T]
    of_target = document[batch.targets.flatten() != IGNORED]
    return -losses.new_zeros(len(batch.cu_seqlens) - 1).index_add(0, of_target, losses)


def pair_batch(pairs: Sequence[Pair]) -> Batch:
    """Every chosen response, then every rejected one, packed into a row."""
    return pack([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])


def margins(model: GPT, batch: Batch, reference: Tensor, beta: float) -> Tensor:
    """m of each pair, fp32 [pairs]; reference [2, pairs] has the log-probabilities of the model as it was."""
    log_p = response_log_probabilities(model, batch).view(2, -1)
    chosen, rejected = log_p - reference
    return beta * (chosen - rejected)


def dpo_loss(margins: Tensor) -> Tensor:
    """-log sigmoid(m), summed over the pairs."""
    return -F.logsigmoid(margins).sum()


def run(config: DPOConfig) -> dict[str, Any]:
    """Train as `config` says; returns what `fit` does. Raises GptfastError for what the user can mend."""
    config.check()
    examples = read_examples(config.data)
    display = FitDisplay()
    start = Start(config, display)
    device, size = start.device, config.batch_size
    pairs = every(examples, config.data, lambda e: pair_of(e, start.template, start.encoding))
    parts = {
        name: [i for i in part if pairs[i].chosen != pairs[i].rejected]
        for name, part in split_of(len(examples), config.split, config.seed).items()
    }
    if equal := len(examples) - sum(map(len, parts.values())):
        display.note(f"{equal:,} pairs were left out: what is chosen and what is rejected are the same")
    if not (parts["train"] and parts["val"]):
        raise GptfastError(f"{config.data} has no pair to train on, or none to validate with, whose responses differ")
    fitted = {name: _fit_pairs([pairs[i] for i in part], start.context, config.long) for name, part in parts.items()}
    describe(display, parts, fitted, start.context)

    before = ComputeCopy(start.model, start.precision.dtype).model.eval()
    data = {name: Referenced(part.examples, before, size, device) for name, part in fitted.items()}
    del before
    start.model.train()
    sampled = np.random.default_rng(config.seed).permutation(len(data["train"]))[: max(1, len(data["val"]))]
    sample = start.sampler([examples[i] for i in parts["val"]])

    def epoch(n: int) -> Iterable[tuple[Batch, Tensor]]:
        return data["train"].batches(np.random.default_rng([config.seed, n]).permutation(len(data["train"])), size)

    def loss(model: nn.Module, batch: tuple[Batch, Tensor]) -> tuple[Tensor, int]:
        assert isinstance(model, GPT)
        m = margins(model, batch[0].to(device), batch[1], config.beta)
        return dpo_loss(m), len(m)

    @torch.no_grad()
    def scores(model: GPT, name: str, which: np.ndarray | None = None) -> dict[str, float]:
        order = np.arange(len(data[name])) if which is None else which
        m = torch.cat([margins(model, b.to(device), r, config.beta) for b, r in data[name].batches(order, size)])
        values = {"loss": dpo_loss(m) / len(m), "accuracy": (m > 0).float().mean(), "margin": m.mean()}
        return {f"{name}_{key}": value.item() for key, value in values.items()}

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, GPT)
        sample(model)
        return scores(model, "train", sampled) | scores(model, "val")

    start.open("finetune-dpo", [examples[i] for i in parts["test"]])
    result = fit(
        start.model, config, config.out, epoch=epoch, loss=loss, evaluate=evaluate, save=start.save,
        steps_per_epoch=-(-len(data["train"]) // (size * config.grad_accum)),
        monitor="val_loss", higher_is_better=False,
    )  # fmt: skip
    best = start.close(config.out.name)
    table = result_table(("pairs", "loss", "reward accuracy", "reward margin"))
    for name in ("train", "val", "test"):
        if len(data[name]):
            s = scores(best, name)
            loss_, accuracy, margin = s.values()
            table.add_row(name, f"{len(data[name]):,}", f"{loss_:.4f}", f"{accuracy:.2%}", f"{margin:.4f}")
            result |= s
    finish(display, config, result, table)
    return result


class Referenced:
    """Pairs with the log-probabilities [2, N] that `model`, the reference, gives their responses."""

    @torch.no_grad()
    def __init__(self, pairs: Sequence[Pair], model: GPT, size: int, device: torch.device) -> None:
        self.pairs = pairs
        groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        each = [response_log_probabilities(model, pair_batch(group).to(device)).view(2, -1) for group in groups]
        self.reference = torch.cat(each, dim=1) if each else torch.empty(2, 0)

    def __len__(self) -> int:
        return len(self.pairs)

    def batches(self, order: np.ndarray, size: int) -> Iterable[tuple[Batch, Tensor]]:
        """In the given order, `size` pairs in a batch, each with its reference [2, pairs]."""
        for i in range(0, len(order), size):
            group = order[i : i + size].tolist()
            yield pair_batch([self.pairs[n] for n in group]), self.reference[:, group]


class _Fitted(NamedTuple):
    examples: list[Pair]
    cut: int
    dropped: int


def _fit_pairs(pairs: Sequence[Pair], context: int, long: Any) -> _Fitted:
    """As `fit_context`; a pair goes with either of its two."""
    kept, cut = [], 0
    for pair in pairs:
        fitted = fit_context(pair, context, long)
        if not fitted.dropped:
            kept.append(Pair(*fitted.examples))
            cut += bool(fitted.cut)
    return _Fitted(kept, cut, len(pairs) - len(kept))


def main(argv: list[str]) -> None:
    run(parse(DPOConfig, argv, "gptfast finetune-dpo"))

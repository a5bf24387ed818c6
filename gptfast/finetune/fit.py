"""The fine-tuning loop: batches to loss to weights, evaluated as it goes, the best model kept."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checkpoint import BEST
from ..display import Display
from ..errors import GptfastError
from ..files import fsync_folder, make_folder
from ..optim import adamw, learning_rate
from ..precision import ComputeCopy, choose, keep_memory
from ..report import Metrics
from ..train import stop_signals


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What every fine-tuning command can be told about the loop. Commands inherit it, with defaults of their own."""

    epochs: float = 3.0
    """Passes over the training data."""
    batch_size: int = 8
    """Examples in a batch."""
    grad_accum: int = 1
    """Batches in a step; each target has the same weight, whichever batch it is in."""
    lr: float = 5e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine down to 0, or constant."""
    warmup: float = 0.1
    """The share of all steps in which the learning rate rises from 0."""
    weight_decay: float = 0.1
    """AdamW's decay, of matrices only."""
    grad_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates once an epoch."""
    patience: int = 0
    """Stop after so many evaluations without a better one; 0 never does."""
    seed: int = 123
    """Of all that is random: the split, new weights, the order of the data, dropout."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto takes bf16 where the hardware multiplies matrices in it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    def check(self) -> None:
        """Raise GptfastError for a setting that no training can have."""
        good: dict[str, Callable[[float], bool]] = {
            "above 0": lambda x: 0 < x < math.inf,
            "at least 0": lambda x: 0 <= x < 2**63,
            "from 0 to 1": lambda x: 0 <= x <= 1,
        }
        limits = {
            "above 0": ("epochs", "batch_size", "grad_accum", "lr"),
            "at least 0": ("weight_decay", "grad_clip", "eval_every", "patience", "seed"),
            "from 0 to 1": ("warmup",),
        }
        for words, names in limits.items():
            for name in names:
                if not good[words](getattr(self, name)):  # also refuses NaN
                    raise GptfastError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be {words}")


class FitDisplay(Display):
    """A progress line in a terminal, and a line for each evaluation."""

    def step(self, row: dict[str, Any]) -> None:
        self.progress.update(
            self.task, completed=row["step"], description=f"epoch {row['epoch']:.2f}  loss {row['loss']:.4f}"
        )

    def evaluation(self, row: dict[str, Any]) -> None:
        values = "  ".join(
            f"{name.replace('_', ' ')} {value:.4f}" for name, value in row.items() if name not in ("step", "epoch")
        )
        self.console.print(f"step {row['step']:>6}  epoch {row['epoch']:>6.2f}  {values}")


def fit(
    model: nn.Module,
    config: FitConfig,
    run: Path,
    *,
    epoch: Callable[[int], Iterable[Any]],
    steps_per_epoch: int,
    loss: Callable[[nn.Module, Any], tuple[Tensor, int]],
    evaluate: Callable[[nn.Module], dict[str, float]],
    monitor: str,
    higher_is_better: bool,
    save: Callable[[Path], None],
) -> dict[str, Any]:
    """Train the parameters of `model` that require gradients; leave metrics.jsonl and best/ in the folder `run`.

    epoch(n): the batches of epoch n = 0, 1, ..., anything that `loss` takes. steps_per_epoch: optimizer steps an epoch,
    ceil(batches / grad_accum). loss(model, batch): the loss SUMMED over the targets of a batch, a scalar with its
    gradient, and the number of targets. A step minimises the mean over all targets of its grad_accum batches.
    evaluate(model): numbers by name ("train_loss", "val_loss", "val_accuracy"), called in eval mode and without
    gradients: before the first step, every eval_every steps (or each epoch) and at the end. `loss` and `evaluate` are
    given `model`, or its bf16 copy; save(folder) writes `model` itself, in fp32, to a folder that exists and is empty.

    The best by `monitor`, a name that `evaluate` returns, is saved as run/best, whole or not at all; the untrained
    model does not count. SIGINT and SIGTERM end the training after the step at hand, with a last evaluation. The same
    seed gives the same weights.

    Returns {"steps", "epochs", "best": the evaluation of the model in run/best, "last": the last evaluation, "stopped":
    None, "patience", "SIGINT" or "SIGTERM", "seconds"}. Raises GptfastError for a loss, gradient or monitored value
    that is not finite; the weights are not changed then, and the best so far stays.
    """
    config.check()
    make_folder(run)
    device = next(model.parameters()).device
    if device.type == "cpu":
        keep_memory()
    torch.manual_seed(config.seed)  # whatever has been drawn before, dropout is the seed's
    steps = max(1, round(config.epochs * steps_per_epoch))
    eval_every = config.eval_every or steps_per_epoch
    copy = ComputeCopy(model, choose(device, config.precision).dtype)
    optimizer = adamw(model, config.lr, weight_decay=config.weight_decay)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = _groups(epoch, config.grad_accum)
    display, metrics = FitDisplay(), Metrics(run)
    best: dict[str, float] | None = None
    stale = 0  # evaluations since the best
    stopped: str | None = None
    start = time.perf_counter()

    def evaluated(step: int) -> dict[str, float]:
        copy.model.eval()
        with torch.no_grad():
            row = {"step": step, "epoch": step / steps_per_epoch, **evaluate(copy.model)}
        copy.model.train()
        metrics.write(row)
        display.evaluation(row)
        if not math.isfinite(row[monitor]):
            kept = f"{run / BEST} holds the best before it" if best else "no model was saved"
            raise GptfastError(f"{monitor} is {row[monitor]} after step {step}; {kept}. Start anew with a lower --lr")
        return row

    display.start(0, steps)
    try:
        with stop_signals() as signals:
            copy.model.train()
            last = evaluated(0)
            for step in range(1, steps + 1):
                began = time.perf_counter()
                rate = learning_rate(
                    step - 1, steps, config.lr, schedule=config.schedule, warmup=round(config.warmup * steps), floor=0.0
                )
                for group in optimizer.param_groups:
                    group["lr"] = rate
                total, targets = 0.0, 0
                copy.clear_gradients()
                for batch in next(groups):
                    value, n = loss(copy.model, batch)
                    value.backward()
                    copy.collect_gradients()
                    total, targets = total + value.item(), targets + n
                mean, norm = _finish_gradients(trained, total, targets, config.grad_clip, step)
                optimizer.step()
                copy.refresh()
                row = {
                    "step": step, "epoch": step / steps_per_epoch, "loss": mean, "lr": rate, "grad_norm": norm,
                    "targets_per_second": targets / (time.perf_counter() - began),
                }  # fmt: skip
                metrics.write(row)
                display.step(row)
                if signals:
                    stopped = signal.Signals(signals[0]).name
                if stopped or step == steps or step % eval_every == 0:
                    last = evaluated(step)
                    sign = 1 if higher_is_better else -1
                    if best is None or sign * last[monitor] > sign * best[monitor]:
                        with atomic_folder(run / BEST) as folder:
                            save(folder)
                        best, stale = last, 0
                    else:
                        stale += 1
                        if config.patience and stale >= config.patience and step < steps:
                            stopped = stopped or "patience"
                if stopped:
                    break
    finally:
        display.stop()
        metrics.close()
    return {
        "steps": int(last["step"]), "epochs": last["epoch"], "best": best, "last": last, "stopped": stopped,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def _groups(epoch: Callable[[int], Iterable[Any]], size: int) -> Iterator[list[Any]]:
    """The batches of a step, over and over the data; the last step of an epoch takes what is left of it."""
    for number in count():
        batches, empty = iter(epoch(number)), True
        while group := list(islice(batches, size)):
            empty = False
            yield group
        if empty:
            raise GptfastError(f"epoch {number} has no batches; there is nothing to train on")


@torch.no_grad()
def _finish_gradients(
    trained: list[nn.Parameter], total: float, targets: int, clip: float, step: int
) -> tuple[float, float]:
    """Gradients of the sum over all targets become those of the mean, and are clipped; the mean loss and their norm."""
    if not targets:
        raise GptfastError(f"the batches of step {step} hold no target to learn from; check the data and its lengths")
    gradients = [p.grad for p in trained if p.grad is not None]
    torch._foreach_div_(gradients, targets)
    norm = nn.utils.clip_grad_norm_(trained, clip or math.inf).item()
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise GptfastError(
            f"step {step} gave loss {total / targets} and gradient norm {norm}; the weights were not changed. "
            "Start anew with a lower --lr"
        )
    return total / targets, norm


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty hidden folder beside `path`; when what is written there is complete it becomes `path`, or its files take
    the places of those that are at `path`.

    No system renames a folder over another, and to move the old one away first would leave a moment with none. A file
    is replaced in one step, so a kill leaves a whole model as long as only one of its files, the weights, has changed.
    Raises GptfastError where it cannot be written; what was at `path` is then still there.
    """
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        yield hidden
        files = list(hidden.iterdir())
        for file in files:
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            for file in files:
                os.replace(file, path / file.name)
            fsync_folder(path)
        else:
            os.replace(hidden, path)
            fsync_folder(path.parent)
    except OSError as error:
        raise GptfastError(f"cannot write {path}: {error.strerror or error}; free some space") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)

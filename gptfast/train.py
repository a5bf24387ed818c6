"""The training loop: batches to loss to weights, watched, saved, and resumable bit for bit."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from . import checkpoint
from .data import Loader, Sampler, SlidingWindow, TokenSet
from .display import Display
from .errors import GptfastError
from .files import atomic_write
from .machine import matmul_rate
from .model import GPT
from .optim import adamw, learning_rate
from .precision import ComputeCopy, Precision, keep_memory
from .report import Metrics, plot_losses
from .sampling import stream_text

if TYPE_CHECKING:
    from .pretrain import PretrainConfig


class Trainer:
    """Trains `model` on rows of `sampler` and leaves a run in config.out.

    evaluation: by name ("train", "val") the token sets whose loss is watched, each with its share in the mean. state:
    what a checkpoint records beside its tensors: `step` (finished ones), `position` (batches taken), `best` (step and
    loss, or None), and what the run must be resumed with.
    """

    def __init__(
        self,
        config: PretrainConfig,
        model: GPT,
        sampler: Sampler,
        evaluation: dict[str, list[tuple[TokenSet, float]]],
        encoding: Any,
        precision: Precision,
        state: dict[str, Any],
        display: Display,
    ) -> None:
        self.config, self.model, self.sampler, self.encoding = config, model, sampler, encoding
        self.run, self.state, self.display = config.out, state, display
        self.device = next(model.parameters()).device
        if self.device.type == "cpu":
            keep_memory()
        self.copy = ComputeCopy(model, precision.dtype)
        self.forward = torch.compile(self.copy.model) if config.compile else self.copy.model
        self.optimizer = adamw(model, config.lr, (config.beta1, config.beta2), config.weight_decay)
        self.saved_step = -1
        self.evaluation = {
            name: [(share, *self._spread_windows(tokens)) for tokens, share in sets]
            for name, sets in evaluation.items()
        }

    def _spread_windows(self, tokens: TokenSet) -> tuple[SlidingWindow, list[np.ndarray]]:
        """Evenly spread windows, the same at every evaluation, as batches of row numbers. eval_batches 0 takes all."""
        context, batch_size = self.model.config.context_length, self.config.batch_size
        windows = SlidingWindow(tokens, context, context, shuffle=False)
        wanted = min(self.config.eval_batches * batch_size or len(windows), len(windows))
        rows = np.linspace(0, len(windows) - 1, wanted).astype(np.int64)
        return windows, np.array_split(rows, -(-wanted // batch_size))

    def resume(self, folder: Path) -> None:
        """Go on from the checkpoint in `folder`: parameters, moments and random states become its own."""
        checkpoint.restore(folder, self.model, self.optimizer)
        self.copy.refresh()
        self.saved_step = self.state["step"]

    def fit(self) -> None:
        """Train to config.steps, or until SIGINT or SIGTERM, which save and leave."""
        c, state = self.config, self.state
        # Measured before the seed's random numbers are used, and restored, so that it changes no run.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            self.peak = matmul_rate(self.device, next(self.copy.model.parameters()).dtype)
        self.metrics = Metrics(self.run, state["step"], c.tensorboard)
        self.copy.model.train()
        with Loader(self.sampler, c.batch_size, self.device, state["position"]) as loader, stop_signals() as stop:
            self.display.start(state["step"], c.steps)
            try:
                if state["step"] == 0:
                    self._evaluate()
                    self._plot()
                    self._sample()
                while state["step"] < c.steps and not stop:
                    row = self._timed_step(loader)
                    self.metrics.write(row)
                    self.display.step(row)
                    self._after_step()
                if stop and self.saved_step != state["step"]:
                    self._save()
            finally:
                self.display.stop()
                self.metrics.close()
        if stop and state["step"] < c.steps:
            self.display.note(
                f"stopped by {signal.Signals(stop[0]).name} after step {state['step']}; go on with --resume"
            )

    def _timed_step(self, loader: Loader) -> dict[str, Any]:
        start = time.perf_counter()
        row = self.step(loader)
        seconds = time.perf_counter() - start
        tokens = self.config.batch_size * self.config.grad_accum * self.model.config.context_length
        return {
            "step": self.state["step"], **row, "tokens_per_second": tokens / seconds,
            "mfu": self.model.flops_per_token() * tokens / seconds / self.peak,
        }  # fmt: skip

    def step(self, loader: Loader) -> dict[str, float]:
        """One optimizer step over grad_accum batches. What is not finite raises GptfastError before the weights
        change.
        """
        c, n = self.config, self.state["step"]
        rate = learning_rate(
            n, c.steps, c.lr, schedule=c.schedule, warmup=c.warmup_steps, floor=c.lr_floor, decay=c.wsd_decay
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.copy.clear_gradients()
        total, waited, position = 0.0, 0.0, loader.position
        for _ in range(c.grad_accum):
            idx, targets, cu_seqlens = next(loader)
            waited += loader.wait_seconds
            loss = self.forward(idx, targets, cu_seqlens) / c.grad_accum
            loss.backward()
            self.copy.collect_gradients()
            total += loss.item()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), c.grad_clip or float("inf")).item()
        if not np.isfinite([total, norm]).all():
            good = max(checkpoint.checkpoints(self.run).values(), default=None)
            advice = f"Go on from the last good checkpoint, {good}, with --resume" if good else "Start anew"
            rows = f"{position * c.batch_size} to {loader.position * c.batch_size - 1}"
            raise GptfastError(
                f"step {n + 1} gave loss {total} and gradient norm {norm} on batches {position} to "
                f"{loader.position - 1} (rows {rows} of the data); the weights were not changed. "
                f"{advice} and a lower --lr, or look at those rows: a loss of nan has no target in them"
            )
        self.optimizer.step()
        self.copy.refresh()
        self.state["step"], self.state["position"] = n + 1, loader.position
        return {"loss": total, "lr": rate, "grad_norm": norm, "data_wait_ms": waited * 1e3}

    def _after_step(self) -> None:
        c, step = self.config, self.state["step"]
        last = step == c.steps
        evaluate = last or step % c.eval_every == 0
        improved = self._evaluate() if evaluate else False
        if last or improved or step % c.checkpoint_every == 0:
            self._save()
        # After the checkpoint: a picture or a sample that cannot be written costs no training.
        if evaluate:
            self._plot()
        if last or step % c.sample_every == 0:
            self._sample()

    def _save(self) -> None:
        checkpoint.save(self.run, self.model, self.optimizer, self.state, self.config.keep)
        self.saved_step = self.state["step"]

    def _evaluate(self) -> bool:
        """Write and show the losses; True if the validation loss is the best so far."""
        losses = self.losses()
        step, best = self.state["step"], self.state["best"]
        row = {"step": step, **losses}
        self.metrics.write(row)
        self.display.evaluation(row)
        watched = losses.get("val_loss", losses["train_loss"])
        if step == 0 or (best is not None and watched >= best["loss"]):
            return False
        self.state["best"] = {"step": step, "loss": watched}
        return True

    def _plot(self) -> None:
        if not plot_losses(self.metrics.rows, self.run / "loss.png", self.run.name) and self.state["step"] == 0:
            self.display.note("no loss.png: matplotlib is not installed (pip install matplotlib)")

    @torch.no_grad()
    def losses(self) -> dict[str, float]:
        """The mean loss over the evaluation windows of each set, without dropout: {"train_loss": ..., "val_loss":
        ...}.
        """
        model, result = self.copy.model, {}
        model.eval()
        for name, sets in self.evaluation.items():
            if not sets:
                continue
            mean, shares = 0.0, sum(share for share, _, _ in sets)
            for share, windows, batches in sets:
                total = 0.0
                for rows in batches:
                    tokens = torch.from_numpy(np.stack([windows.row(int(n)).tokens for n in rows])).to(self.device)
                    total += model(tokens[:, :-1], tokens[:, 1:].contiguous()).item() * len(rows)
                mean += share / shares * total / sum(map(len, batches))
            result[f"{name}_loss"] = mean
        model.train()
        return result

    def _sample(self) -> None:
        c, step = self.config, self.state["step"]
        generator = torch.Generator(self.device).manual_seed(c.seed)
        pieces = stream_text(
            self.copy.model, self.encoding, c.sample_prompt, c.sample_tokens, temperature=0.8, generator=generator
        )
        text = c.sample_prompt + "".join(pieces)
        (self.run / "samples").mkdir(exist_ok=True)
        with atomic_write(self.run / "samples" / f"step-{step:06d}.txt", "w") as file:
            file.write(text + "\n")
        self.display.sample(step, text)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives the number of a SIGINT or SIGTERM; a second one ends the process as it would have."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

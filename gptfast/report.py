"""What a run leaves to be read and seen: metrics.jsonl, loss.png, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from .errors import GptfastError
from .files import atomic_path, atomic_write


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line cut short by a kill is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or "step" not in row:
                break
            rows.append(row)
    return rows


class Metrics:
    """Appends rows to metrics.jsonl and, if asked, to TensorBoard. `step` of a row is the number of finished steps."""

    def __init__(self, run: Path, start: int = 0, tensorboard: bool = False) -> None:
        self.path = run / "metrics.jsonl"
        # What an interrupted run wrote after the checkpoint that it goes on from will be written again.
        self.rows = [row for row in read_metrics(self.path) if row["step"] <= start and start > 0]
        with atomic_write(self.path, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
        self._file = open(self.path, "a", encoding="utf-8")
        self._board = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise GptfastError("--tensorboard needs tensorboard; install it: pip install tensorboard") from None
            self._board = SummaryWriter(run / "tensorboard", purge_step=start + 1)

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise GptfastError(
                f"cannot write {self.path}: {error.strerror}; free some space and go on with --resume"
            ) from error
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be written was said by `write`
            os.fsync(self._file.fileno())
            self._file.close()
        if self._board is not None:
            self._board.close()


def plot_losses(rows: list[dict[str, Any]], path: Path, title: str) -> bool:
    """Draw the losses of `rows` over steps as a PNG; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "train_loss" in row]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.plot(
        [r["step"] for r in steps], [r["loss"] for r in steps], color="0.8", linewidth=0.8, label="training batch"
    )
    for key, label, color in (("train_loss", "train", "C0"), ("val_loss", "validation", "C1")):
        points = [(r["step"], r[key]) for r in evaluations if r.get(key) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), color=color, marker="o", markersize=3, label=f"{label}: {points[-1][1]:.3f}"
            )
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return True

"""What a training run shows: a progress line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    def __init__(self) -> None:
        # Where there is no terminal, lines are not cut to a guessed width.
        self.console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
        self.progress = Progress(
            TextColumn("step"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(), console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip

        self._since: list[dict[str, Any]] = []  # steps since the last evaluation

    def start(self, step: int, steps: int) -> None:
        self.task = self.progress.add_task("", completed=step, total=steps)
        self.progress.start()

    def step(self, row: dict[str, Any]) -> None:
        text = f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s  MFU {row['mfu']:.0%}"
        self.progress.update(self.task, completed=row["step"], description=text)
        self._since.append(row)

    def evaluation(self, row: dict[str, Any]) -> None:
        losses = "  ".join(f"{k.removesuffix('_loss')} loss {v:.4f}" for k, v in row.items() if k != "step")
        speed = ""
        if self._since:
            tokens, mfu = (statistics.median(r[key] for r in self._since) for key in ("tokens_per_second", "mfu"))
            speed = f"  {tokens:,.0f} tokens/s  MFU {mfu:.0%}"
            self._since.clear()
        self.console.print(f"step {row['step']:>6}  {losses}{speed}")

    def sample(self, step: int, text: str) -> None:
        self.console.print(Panel(escape(text), title=f"sample after step {step}", title_align="left", width=100))

    def note(self, text: str) -> None:
        self.console.print(escape(text))

    def stop(self) -> None:
        self.progress.stop()

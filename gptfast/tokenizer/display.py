"""The progress of `gptfast tokenizer train` on a terminal; silent where standard error is none."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

STAGES = {"count": "reading text", "merge": "learning merges"}


class TrainDisplay:
    """A bar for each stage. A context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks = {stage: self._bar.add_task(text, total=None, visible=False) for stage, text in STAGES.items()}

    def __enter__(self) -> TrainDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_progress(self, stage: str, done: int, total: int | None) -> None:
        self._bar.update(self._tasks[stage], completed=done, total=total, visible=True)

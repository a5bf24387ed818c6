"""The progress of `gptfast data prepare` on a terminal; silent where standard error is none."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Display:
    """The bar follows the bytes of the input files, the figures the text that is written. A context manager."""

    def __init__(self, total_bytes: int) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("preparing"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total_bytes, figures="")
        self._began = time.perf_counter()
        self._bytes = self._tokens = 0

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_read(self, n_bytes: int) -> None:
        """So many bytes of input files were read; called from the reader's thread."""
        self._bar.advance(self._task, n_bytes)

    def on_written(self, text_bytes: int, tokens: int) -> None:
        self._bytes += text_bytes
        self._tokens += tokens
        rate = self._bytes / 1e6 / (time.perf_counter() - self._began)
        self._bar.update(
            self._task, figures=f"{self._bytes / 1e6:,.0f} MB, {rate:.1f} MB/s, {self._tokens / 1e6:,.1f} M tokens"
        )

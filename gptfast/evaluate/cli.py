"""`gptfast evaluate`: how good a model is, on texts, benchmarks, labelled texts, and in the eyes of a judge."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..errors import GptfastError

if TYPE_CHECKING:
    from .jobs import Job


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a model on what the flags name."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run of `gptfast pretrain` or `gptfast finetune-instruct`, a model folder, or any weights (gpt2)."""
    text: Path | None = None
    """Bits per byte and perplexity of a .txt, .jsonl or .parquet file."""
    stride: int | None = None
    """Of --text: tokens that the window moves; half the context by default."""
    hellaswag: Path | None = None
    """HellaSwag: its .jsonl, or text of six lines a task."""
    lambada: Path | None = None
    """LAMBADA, OpenAI's .jsonl."""

    labelled: Path | None = None
    """Labelled text (.csv, .tsv, .jsonl, .parquet), classified by the likeliest class name, without training."""
    shots: str = "0,4"
    """Of --labelled: examples in the prompt; one row of the table for each number."""
    classifier: Path | None = None
    """A run of `gptfast finetune-classifier` to set beside, on its own test texts; --labelled may be left out."""
    text_column: str | None = None
    """Of --labelled: the column of texts; found by usual names otherwise."""
    label_column: str | None = None
    """The same of the classes."""
    balance: Literal["none", "undersample"] = "none"
    """Of --labelled: as `gptfast finetune-classifier --balance`."""

    instructions: Path | None = None
    """Instructions (.json, .jsonl) with reference outputs; the model answers, a judge scores. Entries with a
    "model_response" are scored as they are.
    """
    judge_url: str | None = None
    """Where the judge is, up to and with /v1: any server that speaks OpenAI's chat completions."""
    judge_model: str | None = None
    """The judge's name there."""
    judge_key: str | None = None
    """The environment variable that holds the judge's key, OPENAI_API_KEY say; by default none is sent."""

    limit: int | None = None
    """At most so many tasks, passages, test texts and instructions, the first; not of --text."""
    seed: int = 123
    """Of the split of --labelled and of the examples in prompts."""
    json: Path | None = None
    """Write the results to a JSON file too."""
    checkpoint: str = "best"
    """Of a run: best (lowest validation loss), last, or a step."""
    encoding: str | None = None
    """The tokenizer (a name or a path), if the folder does not name it."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""

    def check(self) -> None:
        wanted = (self.text, self.hellaswag, self.lambada, self.labelled, self.classifier, self.instructions)
        if all(path is None for path in wanted):
            raise GptfastError(
                "nothing to evaluate on; give --text, --hellaswag, --lambada, --labelled, --instructions"
            )
        if self.limit is not None and self.limit < 1:
            raise GptfastError(f"--limit is {self.limit}; it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise GptfastError(f"--seed is {self.seed}; it must be at least 0 and below 2**63")
        judge = (self.instructions, self.judge_url, self.judge_model)
        if any(judge) and not all(judge):
            raise GptfastError("a judge needs --instructions, --judge-url and --judge-model together")
        if self.judge_key is not None and self.judge_key not in os.environ:
            raise GptfastError(f"--judge-key names the environment variable {self.judge_key!r}, which is not set")
        if self.json is not None and not self.json.absolute().parent.is_dir():
            raise GptfastError(f"--json {self.json}: there is no folder {self.json.absolute().parent}")

    def n_shots(self) -> list[int]:
        parts = [part.strip() for part in self.shots.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise GptfastError(f"--shots is {self.shots!r}; give numbers such as 0,4")
        return [int(part) for part in dict.fromkeys(parts)]


def run(config: EvaluateConfig) -> dict[str, Any]:
    """The results by task, as --json writes them. Raises GptfastError; all files are read before the model runs."""
    config.check()
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..assistant import load_assistant
    from ..files import write_json
    from .jobs import jobs

    assistant = load_assistant(config.run, config.checkpoint, config.encoding, config.device)
    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False)
    results: dict[str, Any] = {"run": str(config.run), "limit": config.limit}
    for job in jobs(config, assistant, _note):
        with _progress(job) as on_done, _notes():
            sheet = job.run(on_done)
        results[job.name] = sheet.results
        if config.json is not None:
            write_json(config.json, results)
        table = Table(*sheet.columns, title=escape(job.title), title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in sheet.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    return results


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


@contextmanager
def _notes() -> Iterator[None]:
    """Warnings of contexts that were cut, as notes."""
    from .loglikelihood import Truncated

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Truncated)
        yield
    for warning in caught:
        if issubclass(warning.category, Truncated):
            _note(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextmanager
def _progress(job: Job) -> Iterator[Callable[[float], Any]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(job.title, total=job.total or None)
        yield lambda n: bar.advance(task, n)


def main(argv: list[str]) -> None:
    run(tyro.cli(EvaluateConfig, args=argv, prog="gptfast evaluate"))

"""How much `gptfast data prepare` costs beyond the tokenizer: both on the same text, interleaved, in one process.

    python benchmarks/data_prepare.py TEXT [--encoding gpt2] [--rounds 3] [--json FILE]

"tokenizer alone" gives the same pieces, already in memory and in lists of the same size, to the same number of threads
and keeps nothing. CPU seconds count all threads: on a machine that others use too they are steadier than the clock.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from gptfast.data.prepare import PrepareConfig, prepare
from gptfast.data.readers import PIECE_CHARS, find_inputs, read_pieces
from gptfast.tokenizer import get_encoding


@dataclass(frozen=True)
class Config:
    """Measure data preparation against the tokenizer alone."""

    text: tyro.conf.Positional[str]
    """A text as for `gptfast data prepare`."""
    encoding: str = "gpt2"
    rounds: int = 3
    workers: int = os.cpu_count() or 1
    json: str | None = None
    """Write the figures to this file too."""


def main() -> None:
    config = tyro.cli(Config)
    encoding = get_encoding(config.encoding)
    pieces = [piece.text for piece in read_pieces(find_inputs([config.text]))]
    units, characters = [[]], 0
    for piece in pieces:
        if characters >= PIECE_CHARS:
            units.append([])
            characters = 0
        units[-1].append(piece)
        characters += len(piece)
    megabytes = sum(len(piece.encode()) for piece in pieces) / 1e6
    tokens = 0

    def tokenize() -> None:
        nonlocal tokens
        with ThreadPoolExecutor(config.workers) as pool:
            tokens = sum(pool.map(lambda unit: sum(map(encoding.count, unit)), units))

    def everything() -> None:
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder) / "out")
            prepare(PrepareConfig((config.text,), out, encoding=config.encoding, workers=config.workers))

    seconds: dict[str, list[float]] = {"tokenizer alone": [], "data prepare": []}
    cpu: dict[str, list[float]] = {"tokenizer alone": [], "data prepare": []}
    for _ in range(config.rounds):
        for name, job in (("tokenizer alone", tokenize), ("data prepare", everything)):
            clock, used = time.perf_counter(), time.process_time()
            job()
            seconds[name].append(time.perf_counter() - clock)
            cpu[name].append(time.process_time() - used)
    median, median_cpu = ({name: statistics.median(t) for name, t in taken.items()} for taken in (seconds, cpu))
    base, base_cpu = median["tokenizer alone"], median_cpu["tokenizer alone"]
    table = Table("", "seconds", "CPU seconds", "MB/s", "M tokens/s", "x seconds", "x CPU")
    for name, s in median.items():
        c = median_cpu[name]
        figures = (s, c, megabytes / s, tokens / s / 1e6, s / base, c / base_cpu)
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    console = Console()
    console.print(table)
    console.print(f"{megabytes:.1f} MB, {len(pieces):,} pieces, medians of {config.rounds} rounds")
    if config.json:
        record = {
            "config": asdict(config),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "megabytes": megabytes,
            "tokens": tokens,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "overhead": median["data prepare"] / base - 1,
            "overhead_cpu": median_cpu["data prepare"] / base_cpu - 1,
        }
        Path(config.json).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

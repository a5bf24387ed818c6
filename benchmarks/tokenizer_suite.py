"""The tokenizer against every other one that is installed: gigatoken, fastokens, tuetoken, tokenizers, tiktoken.

    python -m gptfast.benchmarks.tokenizer_suite [SECTION ...] [--quick] [--json FILE]

The sections: document (one large text to numpy), batch (2 KB documents to numpy), threads (two against one), unique
(random words, and by how much the process grows), list (to a Python list), decode, load, worst (texts without a place
to split) and memory. MB/s are of UTF-8 (1 MB = 1e6 bytes), medians over rounds in which all take turns. Every sample
has a process of its own, bound to one core except in "threads". First pass: vocabulary loaded, caches empty; second:
the same text again, in a new object; later: the passes after that. "!" marks ids that are not tiktoken's. The few rows
that `gptfast bench tokenizer` measures are in tokenizer.py.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gptfast.doctor import devices, versions
from gptfast.errors import GptfastError

from .machine import ROOT
from .tokenizer_peers import PEERS, Job, as_json, installed
from .tokenizer_texts import CORPORA, SHARED, WORST, write_texts

PEER = ("-m", "gptfast.benchmarks.tokenizer_peers")
ENCODINGS = ("r50k_base", "cl100k_base", "o200k_base")
ALL_ENCODINGS = ("gpt2", "p50k_base", "p50k_edit", *ENCODINGS)
MAIN_CORPORA = ("english", "code", "multilingual")
SECTIONS = ("document", "batch", "threads", "unique", "list", "decode", "load", "worst", "memory")
FAST = ("gptfast", "gigatoken", "fastokens")  # those that take part in every round
SLOW = {"tuetoken": 2, "tokenizers": 1, "tiktoken": 2}  # the most passes of the others
PASSES = ("first", "second", "later")
TIMEOUT = 300  # seconds for one sample
MEMORY = 64e6  # bytes that r50k_base may hold
console = Console(width=None if sys.stdout.isatty() else 140)


@dataclass
class Options:
    """Measure the tokenizer against the others that are installed."""

    sections: tyro.conf.Positional[tuple[str, ...]] = SECTIONS
    texts: Path = SHARED
    """The folder with data/ (texts) and tiktoken/ (vocabularies): GPTFAST_SHARED, or ../shared beside the checkout."""
    rounds: int = 5
    """Samples of each; of a tokenizer that is never the fastest, one."""
    quick: bool = False
    """2 MB of each text, 10 MB of random words, at most two rounds."""
    cpu: bool = False
    """Count CPU seconds where one thread is measured: steadier on a machine that others use too."""
    only: tuple[str, ...] = ()
    """Only these tokenizers, encodings and texts, such as `--only gptfast gigatoken r50k_base english`."""
    json: Path | None = None
    """Write the figures and all samples here."""


@dataclass(frozen=True)
class Case:
    """One comparison. `bars`: for the passes that count, what the ratio to the best of `rivals` should reach."""

    section: str
    encoding: str
    text: str
    call: str
    given: str
    passes: int
    bars: tuple[tuple[str, float], ...] = ()
    rivals: tuple[str, ...] = tuple(name for name in PEERS if name != "gptfast")
    threads: int = 1

    def job(self, peer: str, folder: Path) -> Job:
        ids = folder / f"{self.encoding}-{self.text}-{'batch' if self.call == 'batch' else 'whole'}.npy"
        text = folder / f"{self.text}.txt"
        names = (peer, self.encoding, self.call, str(text), self.given, str(ids), str(folder))
        return Job(*names, min(self.passes, SLOW.get(peer, self.passes)), self.threads)

    def peers(self, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            peer = PEERS[name]
            known = self.encoding in ENCODINGS or name in ("gptfast", "tiktoken")
            takes = {"bytes": peer.takes_bytes, "array": peer.takes_array}
            slow = name in ("tokenizers", "tuetoken") and self.section in ("threads", "unique", "worst")
            if known and takes.get(self.given, True) and not slow:
                yield name


def cases(section: str) -> Iterator[Case]:
    """What a section compares, with the bars of all its rows."""
    if section == "worst":
        for encoding in ALL_ENCODINGS:
            for text in WORST:
                yield Case(section, encoding, text, "encode", "str", 1)
    for encoding in (*ENCODINGS, "p50k_base") if section == "document" else ENCODINGS:
        if section == "unique":
            yield Case(section, encoding, "unique", "encode", "str", 1, (("first", 2.0),))
        for text in CORPORA:
            if section == "document":
                for given in ("str", "bytes") if encoding in ENCODINGS else ("str",):
                    yield Case(section, encoding, text, "encode", given, 5, (("first", 2.0), ("second", 1.25)))
            elif section == "batch":
                yield Case(section, encoding, text, "batch", "texts", 3, (("first", 1.5),))
            elif section == "threads" and text in MAIN_CORPORA:
                for call, given in (("encode", "str"), ("batch", "texts")):
                    yield Case(section, encoding, text, call, given, 3)
                    yield Case(section, encoding, text, call, given, 3, threads=2)
            elif section == "list" and text in MAIN_CORPORA:
                bars = (("first", 5.0), ("second", 5.0))
                yield Case(section, encoding, text, "to_list", "str", 3, bars, ("tiktoken",))
            elif section == "decode" and text in MAIN_CORPORA:
                for given in ("array", "list"):
                    yield Case(section, encoding, text, "decode", given, 4, (("second", 1.25),))


def shown(arguments: list[str]) -> str:
    """A process's arguments, short enough for a message."""
    try:
        job = json.loads(arguments[-1])
    except ValueError:
        return " ".join(arguments)[:80]
    return f"{job['peer']} {job['encoding']} {job['call']} {Path(job['text']).stem}"


def fresh(arguments: list[str], threads: int = 1) -> Any:
    """What a new Python process prints as JSON, or in a word or two why it does not."""
    env = os.environ | {"RAYON_NUM_THREADS": str(threads), "FASTOKENS_BPE_THREADS": str(threads)}
    command = [sys.executable, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=env)
    except subprocess.TimeoutExpired:
        return f"over {TIMEOUT} s"
    if done.returncode < 0:
        return f"signal {-done.returncode}"
    if done.returncode:
        console.print(f"{shown(arguments)}: {done.stderr.strip().splitlines()[-1]}", style="yellow", markup=False)
        return "error"
    return json.loads(done.stdout.splitlines()[-1])


@dataclass
class Row:
    """One line of a table: a figure and a note for each tokenizer, and the ratio that is judged."""

    labels: tuple[str, ...]
    figures: dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)
    ratio: float | None = None
    bar: float | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)

    def verdict(self) -> str:
        if "!" in self.notes.get("gptfast", ""):
            return "wrong"
        if self.bar is None or self.ratio is None:
            return ""
        return "pass" if self.ratio >= self.bar else "short"

    def cell(self, peer: str) -> str:
        figure = f"{self.figures[peer]:,.1f}" if peer in self.figures else ""
        return figure + self.notes.get(peer, "")


class Bench:
    def __init__(self, options: Options, folder: Path):
        self.options, self.folder = options, folder
        self.peers = {name: number for name, number in installed().items() if self.wanted(name, PEERS)}
        self.rounds = min(options.rounds, 2) if options.quick else options.rounds
        self.references: set[str] = set()

    def wanted(self, name: str, known: Iterable[str]) -> bool:
        named = set(self.options.only) & set(known)
        return not named or name in named

    def rows(self, section: str) -> list[Row]:
        encodings = [name for name in ALL_ENCODINGS if self.wanted(name, ALL_ENCODINGS)]
        if section == "load":
            return [row for name in encodings for row in self.load(name)]
        if section == "memory":
            return [row for name in encodings for row in self.memory(name)]
        known = (*CORPORA, *WORST, "unique")
        chosen = [case for case in cases(section) if case.encoding in encodings and self.wanted(case.text, known)]
        return list(self.compare(section, chosen))

    def compare(self, section: str, chosen: list[Case]) -> Iterator[Row]:
        """In each round every case, and in each case every tokenizer, take turns."""
        regular = (*FAST, "tuetoken", "tiktoken") if section in ("list", "decode") else FAST
        work = [
            (case, peer)
            for i in range(min(self.rounds, 2) if section in ("unique", "worst") else self.rounds)
            for case in chosen
            for peer in case.peers(self.peers)
            if i == 0 or peer in regular
        ]
        taken: dict[Case, dict[str, list[Any]]] = {case: {} for case in chosen}
        for case, peer in track(work, section, console=console, transient=True):
            taken[case].setdefault(peer, []).append(self.sample(case, peer))
        single: dict[tuple[Any, ...], float] = {}  # MB/s of one thread
        for case in chosen:
            for i in range(min(case.passes, len(PASSES))):
                row = self.row(case, i, taken[case])
                own = row.figures.get("gptfast")
                others = [figure for peer, figure in row.figures.items() if peer in case.rivals]
                if section == "worst":
                    row.ratio, row.bar = own, 5.0
                elif section == "threads" and own:
                    row.ratio = own / single.setdefault((case.encoding, case.text, case.given, i), own)
                    row.bar = 1.8 if case.threads > 1 else None
                elif own and others:
                    row.ratio = own / max(others)
                yield row

    def sample(self, case: Case, peer: str) -> Any:
        job = case.job(peer, self.folder)
        if job.ids not in self.references:  # what all ids are compared with, and decoders are given
            self.references.add(job.ids)
            call, given = ("batch", "texts") if case.call == "batch" else ("encode", "str")
            source = replace(job, peer="tiktoken", call=call, given=given, passes=1, save=True)
            fresh([*PEER, as_json(source)])
        return fresh([*PEER, as_json(job)], case.threads)

    def row(self, case: Case, i: int, taken: dict[str, list[Any]]) -> Row:
        which = PASSES[i] if case.section != "threads" else f"{PASSES[i]}, {case.threads}"
        row = Row((case.encoding, case.text, case.given, which), {}, bar=dict(case.bars).get(PASSES[i]))
        for peer, samples in taken.items():
            done = [one for one in samples if isinstance(one, dict)]
            row.samples[peer] = [rate for one in done if (rate := self.rate(case, one, i))]
            if row.samples[peer]:
                row.figures[peer] = statistics.median(row.samples[peer])
            elif not done:
                row.notes[peer] = samples[0]
            if any(one["right"] is False for one in done):
                row.notes[peer] = "!"
            if case.section == "unique" and done:
                grown = statistics.median(one["grown"] for one in done) / 1e6
                row.notes[peer] = row.notes.get(peer, "") + f" {grown:+,.0f} MB"
        return row

    def rate(self, case: Case, one: dict[str, Any], i: int) -> float | None:
        """MB/s of one sample in its first or its second pass, or the median of the later ones."""
        seconds = one["cpu" if self.options.cpu and case.section != "threads" else "seconds"]
        seconds = seconds[2:] if i == 2 else seconds[i : i + 1]
        return one["bytes"] / 1e6 / statistics.median(seconds) if seconds else None

    def load(self, encoding: str) -> Iterator[Row]:
        """Milliseconds to import the package, load an encoding and encode two words with it; and without the import."""
        code = (
            "import json, time; start = time.perf_counter(); import {0}; imported = time.perf_counter(); "
            "{0}.get_encoding({1!r}).encode_ordinary('hello world'); loaded = time.perf_counter(); "
            "print(json.dumps([loaded - start, loaded - imported]))"
        )
        peers = [peer for peer in self.peers if peer in ("gptfast", "tiktoken")]
        taken: dict[str, list[Any]] = {peer: [] for peer in peers}
        for i in range(2 * self.rounds + 1):
            for peer in peers:
                seconds = fresh(["-c", code.format(peer, encoding)])
                if i and isinstance(seconds, list):  # the first may read files that memory does not hold yet
                    taken[peer].append(seconds)
        for i, what in enumerate(("import and load, ms", "load, ms")):
            samples = {peer: [1e3 * one[i] for one in taken[peer]] for peer in peers if taken[peer]}
            figures = {peer: statistics.median(times) for peer, times in samples.items()}
            row = Row((encoding, "", "", what), figures, bar=4.0, samples=samples)
            if len(figures) == 2:
                row.ratio = figures["tiktoken"] / figures["gptfast"]
            yield row

    def memory(self, encoding: str) -> Iterator[Row]:
        """MB that gptfast holds after loading, after each text, and after each of two lots of random words."""
        files = [str(self.folder / f"{name}.txt") for name in (*CORPORA, "unique", "unique2")]
        steps = fresh([*PEER, "memory", encoding, *files]) if "gptfast" in self.peers else []
        for step, held, resident in steps if isinstance(steps, list) else []:
            row = Row((encoding, "", "", f"after {step}: held, MB"), {"gptfast": held / 1e6})
            row.notes["gptfast"] = f", {resident / 1e6:,.0f} resident"
            if encoding == "r50k_base":
                row.ratio, row.bar = MEMORY / held, 1.0
            yield row


def show(section: str, rows: list[Row]) -> None:
    peers = [name for name in PEERS if any(row.cell(name) for row in rows)]
    table = Table("encoding", "text", "given", "pass", title=section)
    for heading in (*peers, "ratio", "bar", ""):
        table.add_column(heading, justify="right")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        judged = ["" if x is None else f"{x:.2f}" for x in (row.ratio, row.bar)]
        verdict = row.verdict() and f"[{'green' if row.verdict() == 'pass' else 'bold red'}]{row.verdict()}[/]"
        last = following is None or following.labels[:2] != row.labels[:2]
        table.add_row(*row.labels, *map(row.cell, peers), *judged, verdict, end_section=last)
    console.print(table)


def copy_rate() -> float:
    """Bytes per second that one thread copies: a ceiling of whatever reads a text and writes its result."""
    source = np.ones(64 << 20, np.uint8)
    target, seconds = np.zeros_like(source), []
    for _ in range(9):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return source.size / statistics.median(seconds)


def as_text(record: dict[str, Any]) -> str:
    """JSON with each innermost list and object on one line, and no more digits than mean something."""
    text = json.dumps(
        json.loads(json.dumps(record), parse_float=lambda number: float(f"{float(number):.5g}")), indent=1
    )
    return re.sub(r"[\[{][^][{}]*[]}]", lambda found: " ".join(found[0].split()), text) + "\n"


def main(options: Options) -> None:
    unknown = [name for name in options.sections if name not in (*SECTIONS, "all")]
    if unknown:
        raise GptfastError(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if not (options.texts / "data").is_dir():
        raise GptfastError(
            f"no texts at {options.texts / 'data'}; name the folder that holds data/ by --texts or GPTFAST_SHARED"
        )
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str((options.texts / "tiktoken").resolve()))
    record: dict[str, Any] = {
        "machine": {finding.name: finding.value for finding in [*devices(), *versions()]},
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }
    short = []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options, Path(name))
        with console.status("texts"):
            record["bytes"] = write_texts(options.texts / "data", bench.folder, options.quick)
        record |= {"peers": bench.peers, "copy_bytes_per_second": copy_rate()}
        console.print(f"{record['machine']['cpu']}; one thread copies {record['copy_bytes_per_second'] / 1e9:.1f} GB/s")
        console.print(", ".join(f"{peer} {number}" for peer, number in bench.peers.items()))
        for section in SECTIONS if "all" in options.sections else options.sections:
            rows = bench.rows(section)
            show(section, rows)
            short += [f"{section}: {' '.join(row.labels)}" for row in rows if row.verdict() in ("short", "wrong")]
            record[section] = [vars(row) | {"verdict": row.verdict()} for row in rows]
            if options.json:
                options.json.write_text(as_text(record))
    console.print(f"[bold red]{len(short)} short or wrong[/]" if short else "[green]No bar is missed.[/]")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except GptfastError as error:
        sys.exit(f"error: {error}")

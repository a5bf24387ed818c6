"""`gptfast bench`: measure sections here, beside what this machine reaches at best; report and compare results.

With argparse, and without rich where that is missing, so that it runs on a bare machine with torch alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from gptfast.errors import GptfastError
from gptfast.files import atomic_path, make_folder

from . import machine
from .suite import Row, Setup, run

SECTIONS = {  # module, or module:function where it is not `cases`; the most important first
    "kernels": ("attention", "linear_cross_entropy", "rows", "dispatch", "attention:features"),
    "train": ("train",),
    "decode": ("decode",),
    "load": ("load",),
    "tokenizer": ("tokenizer",),
    "data": ("data",),
}
COMMANDS = {name: name.replace("-", "_") for name in ("breakdown", "convergence", "drop-in", "report", "compare")}
SCHEMA = 1


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="gptfast bench", description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="gptfast bench breakdown --help    where the time of a training step goes\n"
        "gptfast bench convergence --help  losses of gptfast's model and the plain one, in one plot\n"
        "gptfast bench drop-in --help      other models before and after gptfast.accelerate\n"
        "gptfast bench report --help       plots and docs/benchmarks.md from the files of benchmarks/results/\n"
        "gptfast bench compare --help      what became slower between two files, beyond the spread of its samples",
    )  # fmt: skip
    found.add_argument("sections", nargs="*", metavar="SECTION", help=f"all (default), {', '.join(SECTIONS)}")
    found.add_argument("--peers", action="store_true", help="measure all other implementations that are installed too")
    found.add_argument("--quick", action="store_true", help="fewer and smaller shapes: about a minute a section")
    found.add_argument("--dry", action="store_true", help="tiny shapes, each once: only whether everything runs")
    found.add_argument("--only", nargs="+", default=(), metavar="TEXT", help="only cases whose name has one of these")
    found.add_argument("--seconds", type=float, help="of timing a case (1; 0.3 with --quick); at least 5 rounds")
    found.add_argument("--budget", type=float, metavar="SECONDS", help="when preparing (compiling) the forms of a case "
                       "has taken this long, leave out its other forms")  # fmt: skip
    found.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N")
    found.add_argument("--json", type=Path, metavar="PATH", help="also write the rows to this file; in a folder, to "
                       "MACHINE/DATE-COMMIT.json")  # fmt: skip
    return found


def main(argv: list[str]) -> int:
    """Returns 1 when a form of gptfast failed or was wrong, else 0."""
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f".{COMMANDS[argv[0]]}", __package__).main(argv[1:])
    options = parser().parse_args(argv)
    sections = list(SECTIONS) if options.sections in ([], ["all"]) else options.sections
    if unknown := [name for name in sections if name not in SECTIONS]:
        raise GptfastError(f"no section {unknown[0]!r}; there are all, {', '.join((*SECTIONS, *COMMANDS))}")
    from gptfast.machine import choose_device

    device = choose_device(options.device)
    torch.manual_seed(0)
    described = machine.describe(device)
    print(f"{described.get('gpu') or described['cpu']}, torch {torch.__version__}", flush=True)
    reached = machine.ceilings(device, options.dry)
    print(reached_text(reached), flush=True)
    if described["load"] and described["load"] > described["cores"] / 2:
        print(f"This machine is busy (load average {described['load']:.1f}): times and ratios will be off.", flush=True)
    setup = Setup(
        device, reached, options.peers, options.quick, options.dry,
        seconds=options.seconds if options.seconds is not None else 0.3 if options.quick else 1.0,
        budget=options.budget,
    )  # fmt: skip
    figures: dict[str, Any] = {"schema": SCHEMA, "machine": described, "ceilings": reached}
    figures |= {"options": {key: value for key, value in vars(options).items() if key != "json"}, "rows": []}
    path = _path(options, described, sections)
    if path and not path.exists():
        write(path, figures)  # what cannot be written is known before anything is measured
    start = time.perf_counter()
    for section in sections:
        for name in SECTIONS[section]:
            module, _, function = name.partition(":")
            cases = getattr(importlib.import_module(f".{module}", __package__), function or "cases")(setup)
            for rows in run(cases, setup, section, options.only):
                show(rows)
                figures["rows"] += rows
                figures["seconds"] = time.perf_counter() - start
                if path:  # after each case, so that a run that is cut off keeps what it has
                    write(path, figures)
    return verdict(figures["rows"])


def reached_text(ceilings: dict[str, float]) -> str:
    """The ceilings of machine.py on one line."""

    def one(name: str, value: float) -> str:
        if name == "launch":
            return f"{1e6 * value:.1f} us"
        number, unit = (value / 1e12, "TFLOP/s") if name.startswith("matmul") else (value / 1e9, "GB/s")
        return f"{number:,.{0 if number >= 100 else 2}f} {unit}"

    return ", ".join(f"{name} {one(name, value)}" for name, value in ceilings.items())


def _path(options: argparse.Namespace, described: dict[str, Any], sections: list[str]) -> Path | None:
    given = options.json
    if given is None or not given.is_dir():
        return given
    if described["commit"] is None:
        raise GptfastError(
            f"files in the folder {given} are named by a commit, and none is known; name a file or set GPTFAST_COMMIT"
        )
    if options.dry or options.only:
        raise GptfastError(f"the folder {given} holds whole sections; with --dry or --only name a file")
    words = [described["date"][:10], described["commit"], *([] if sections == list(SECTIONS) else sections)]
    path = given / described["slug"] / f"{'-'.join([*words, *(['quick'] if options.quick else [])])}.json"
    if path.exists():
        raise GptfastError(f"{path} exists; delete it, or name another file")
    make_folder(path.parent)
    return path


def write(path: Path, figures: dict[str, Any]) -> None:
    """JSON, a row a line, with no more digits than mean something."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}") if math.isfinite(value) else None  # JSON has no infinity
        return {key: short(x) for key, x in value.items()} if isinstance(value, dict) else value

    head = json.dumps({key: short(value) for key, value in figures.items() if key != "rows"}, indent=1)
    rows = ",\n".join(f"  {json.dumps(short(row))}" for row in figures["rows"])
    with atomic_path(path) as temporary:
        temporary.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")


def show(rows: list[Row]) -> None:
    """The forms of one case, a line each."""
    title = " · ".join(rows[0][key] for key in ("section", "case", "shape", "dtype"))
    if all(row.get("samples", 1) == 1 for row in rows):  # dry: times mean nothing
        print(title, *(f"  {row['form']}: {row.get('failed', 'ran')}" for row in rows), sep="\n", flush=True)
        return
    lines = [("", "ms", "20 to 80 %", "rate", "of machine", "peak MB", "error", "gptfast is")]
    for row in rows:
        if "ms" not in row:
            lines.append((row["form"], row.get("failed") or row["left_out"], "", "", "", "", "", ""))
            continue
        share = "" if row["share"] is None else f"{row['share']:.1%} of {row['of']}"
        error = "" if row["error"] is None else f"{row['error']:.1e}{'' if row['right'] is not False else ' WRONG'}"
        peak = "" if row["peak_mb"] is None else f"{row['peak_mb']:,.0f}"
        ratio = "" if row["form"].startswith("gptfast") or row["ratio"] is None else f"{row['ratio']:.2f}x as fast"
        spread = f"{row['ms20']:.4g} to {row['ms80']:.4g}"
        lines.append(
            (row["form"], f"{row['ms']:.4g}", spread, f"{row['rate']:.4g} {row['unit']}", share, peak, error, ratio)
        )
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title, *("  ".join(line) for line in lines), sep="\n", flush=True)
        return
    console = Console(width=None if os.isatty(1) else 140)
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for line in lines[1:]:
        table.add_row(*line)
    console.print(table, markup=False)


def verdict(rows: list[Row]) -> int:
    ours = ("gptfast", "the check")
    bad = [row for row in rows if row.get("right") is False or ("failed" in row and row["form"].startswith(ours))]
    for row in bad:
        why = row.get("failed") or f"error {row.get('error')}, more than the rule allows"
        print(f"{row['section']}: {row['case']}, {row['shape']}, {row['dtype']}, {row['form']}: {why}")
    absent = [row for row in rows if "ms" not in row and row not in bad]
    missing = sorted({f"{row['form']}: {row.get('failed') or row['left_out']}" for row in absent})
    for line in missing:
        print(f"without {line}")
    print(f"{len(rows)} rows, {len(bad)} of gptfast failed or wrong, {len(absent)} others absent")
    return 1 if bad else 0

"""`gptfast bench compare A B`: what became slower or faster from A to B, beyond the spread of the samples.

Slower: the fastest fifth of B's samples ends above where the slowest fifth of A's begins (ms20 of B > ms80 of A), and
the median is more than 3 % above; faster likewise. Peers are the control: their code is the same in both, so the median
of their ratios is what the machine did.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptfast.errors import GptfastError

from .report import LABELS, load, ours
from .suite import Row

CHANGE = 1.03
BAD, GOOD = ("slower", "failed", "WRONG"), ("faster", "mended")
Key = tuple[str, ...]
Line = tuple[str, ...]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="gptfast bench compare", description=__doc__.splitlines()[0])
    found.add_argument("a", type=Path, metavar="A", help="a file of `gptfast bench --json`: before")
    found.add_argument("b", type=Path, metavar="B", help="another: after")
    return found


def main(argv: list[str]) -> int:
    """Returns 1 when a form of gptfast became slower, or fails or is wrong where it was not, else 0."""
    options = parser().parse_args(argv)
    a, b = load(options.a), load(options.b)
    for line in differences(a, b):
        print(f"warning: {line}")
    before, after = _rows(a, options.a), _rows(b, options.b)
    common = [key for key in after if key in before]
    if not common:
        raise GptfastError(f"{options.a} and {options.b} have no row in common; measure the same sections in both")
    verdicts = {key: verdict(before.get(key), row) for key, row in after.items() if ours(row)}
    for section in dict.fromkeys(key[0] for key in common):
        show(section, [key for key in common if key[0] == section], before, after, verdicts)
    for path, found, other in ((options.a, before, after), (options.b, after, before)):
        for key in found:
            if key not in other:
                print(f"only in {path}: {', '.join(key)}")
    return summary(before, after, verdicts)


def _rows(found: dict[str, Any], path: Path) -> dict[Key, Row]:
    rows: dict[Key, Row] = {}
    for row in found["rows"]:
        key = tuple(row[label] for label in LABELS)
        if key in rows:
            raise GptfastError(
                f"{path} has two rows of {', '.join(key)}, and which is meant cannot be told; measure again"
            )
        rows[key] = row
    return rows


def differences(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    """What makes two files hard to compare: the machine, how it was set up, the versions, how they were measured."""
    for name in ("gpu", "cpu", "cores", "threads", "driver", "cuda"):
        if a["machine"].get(name) != b["machine"].get(name):
            yield f"{name} differs: {a['machine'].get(name)}, then {b['machine'].get(name)}"
    old, new = (x["machine"].get("versions", {}) for x in (a, b))
    for name in dict.fromkeys([*old, *new]):
        if name != "gptfast" and old.get(name) != new.get(name):
            yield f"{name} differs: {old.get(name, 'none')}, then {new.get(name, 'none')}"
    for name in ("quick", "dry", "seconds"):
        if a["options"].get(name) != b["options"].get(name):
            yield f"--{name} differs: {a['options'].get(name)}, then {b['options'].get(name)}"


def verdict(a: Row | None, b: Row) -> str:
    """What became of a row: one of BAD or GOOD, or nothing; `a` is None where only B has it."""
    if "failed" in b:
        return "" if a and "failed" in a else "failed"
    if b.get("right") is False:
        return "" if a and a.get("right") is False else "WRONG"
    if a is None:
        return ""
    if "failed" in a or a.get("right") is False:
        return "mended"
    if b["ms20"] > a["ms80"] and b["ms"] > CHANGE * a["ms"]:
        return "slower"
    if b["ms80"] < a["ms20"] and a["ms"] > CHANGE * b["ms"]:
        return "faster"
    return ""


def show(section: str, keys: list[Key], a: dict[Key, Row], b: dict[Key, Row], verdicts: dict[Key, str]) -> None:
    """A line for each row that both files have; those of peers dimmed."""
    lines: list[Line] = [("case", "form", "A ms", "B ms", "B / A", "A error", "B error", "")]
    title = ""
    for key in keys:
        old, new = a[key], b[key]
        times = [f"{row['ms']:.4g}" if "ms" in row else "failed" for row in (old, new)]
        ratio = f"{new['ms'] / old['ms']:.2f}" if "ms" in old and "ms" in new else ""
        errors = ["" if row.get("error") is None else f"{row['error']:.1e}" for row in (old, new)]
        same, title = title, ", ".join(key[1:4])
        lines.append(("" if same == title else title, key[4], *times, ratio, *errors, verdicts.get(key, "")))
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        print(section, *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines), sep="\n")
        return
    console = Console(width=None if os.isatty(1) else 160)
    table = Table(title=section, title_justify="left")
    for i, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if 2 <= i < 7 else "left", overflow="fold")
    styles = dict.fromkeys(BAD, "bold red") | dict.fromkeys(GOOD, "green")
    for key, line in zip(keys, lines[1:], strict=True):
        style = styles.get(line[-1], "") if ours(b[key]) else "dim"
        table.add_row(*(Text(cell) for cell in line), style=style)
    console.print(table)


def summary(a: dict[Key, Row], b: dict[Key, Row], verdicts: dict[Key, str]) -> int:
    """What is worse, row by row; what the peers say of the machine; the counts. Returns the exit status."""
    worse = [key for key, became in verdicts.items() if became in BAD]
    for key in worse:
        print(f"{verdicts[key]}: {', '.join(key)}: {_why(a.get(key, {}), b[key])}")
    slower = [key for key in worse if verdicts[key] == "slower"]
    controls = [key for key in a if not ours(a[key]) and "ms" in a[key] and "ms" in b.get(key, {})]
    if controls:
        drift = statistics.median(b[key]["ms"] / a[key]["ms"] for key in controls)
        print(f"peers took {drift:.2f} of their time before (median of {len(controls)} rows): so much the machine did")
        same = sum(b[key]["ms"] <= CHANGE * drift * a[key]["ms"] for key in slower)
        if same:
            print(f"{same} of {len(slower)} slower rows are no slower than the peers: the machine was; measure again")
    else:
        print("no row of a peer is in both files: a slower machine cannot be told from slower code; use --peers")
    counts = [f"{list(verdicts.values()).count(name)} {name}" for name in (*BAD, *GOOD)]
    print(f"{', '.join(counts)}, of {len(verdicts)} rows of gptfast")
    return 1 if worse else 0


def _why(a: Row, b: Row) -> str:
    if "failed" in b:
        return str(b["failed"])
    if b.get("right") is False:
        return f"error {b.get('error')}, before {a.get('error')}"
    return f"{_ms(b)}, before {_ms(a)}"


def _ms(row: Row) -> str:
    return f"{row['ms']:.4g} ms ({row['ms20']:.4g} to {row['ms80']:.4g})"

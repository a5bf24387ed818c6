"""One screen of the results in a folder: what failed or was wrong, and the figures that matter most.

python -m gptfast.benchmarks.summary FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEADLINES = (
    "attention forward",
    "attention backward",
    "linear_cross_entropy",
    "train",
    "decode",
    "generate",
    "document",
)


def lines(figures: dict[str, Any]) -> list[str]:
    """A count of the rows of one file, and a line for each case that is a headline."""
    rows = figures["rows"]
    bad = [row for row in rows if row["form"].startswith("gptfast") and ("failed" in row or row.get("right") is False)]
    found = [f"{len(rows)} rows, {len(bad)} of gptfast failed or wrong"]
    found += [f"  {row['case']} {row['shape']} {row['form']}: {row.get('failed', 'wrong')}"[:160] for row in bad[:5]]
    cases: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["case"], row["shape"], row["dtype"]), []).append(row)
    for (case, shape, dtype), forms in cases.items():
        ours = next((row for row in forms if row["form"] == "gptfast" and "failed" not in row), None)
        # windows, documents and dropout are told from the plain case by a comma
        if ours is None or "," in case or not any(word in f"{ours['section']} {case}" for word in HEADLINES):
            continue
        peers = [row for row in forms if not row["form"].startswith("gptfast") and "failed" not in row]
        best = min(peers, key=lambda row: row["ms"], default=None)
        share = "" if ours["share"] is None else f", {ours['share']:.0%} of {ours['of']}"
        ratio = "" if best is None else f", {best['ratio']:.2f}x as fast as {best['form']}"
        found.append(f"  {case} {shape} {dtype}: {ours['rate']:,.4g} {ours['unit']}{share}{ratio}")
    return found


def main(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        figures = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(figures, dict) and figures.get("schema"):
            print(f"{path.name}:", *lines(figures), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

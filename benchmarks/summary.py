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
    ours = [row for row in rows if row["form"].startswith(("gptfast", "the check"))]
    bad = [row for row in ours if "failed" in row or row.get("right") is False]
    found = [f"{len(rows)} rows, {len(bad)} of gptfast failed or wrong"]
    found += [f"  {row['case']} {row['shape']} {row['form']}: {row.get('failed', 'wrong')}"[:160] for row in bad[:5]]
    cases: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["case"], row["shape"], row["dtype"]), []).append(row)
    for (case, shape, dtype), forms in cases.items():
        measured = [row for row in forms if "ms" in row]
        own = next((row for row in measured if row["form"] == "gptfast"), None)
        # windows, documents and dropout are told from the plain kernel by a comma
        if own is None or (own["section"] == "kernels" and "," in case):
            continue
        if not any(word in f"{own['section']} {case}" for word in HEADLINES):
            continue
        peers = [row for row in measured if not row["form"].startswith("gptfast")]
        peer = min(peers, key=lambda row: row["ms"], default=None)
        share = "" if own["share"] is None else f", {own['share']:.0%} of {own['of']}"
        ratio = "" if peer is None else f", {peer['ratio']:.2f}x as fast as {peer['form']}"
        rate = f"{own['rate']:,.0f}" if own["rate"] >= 1000 else f"{own['rate']:.4g}"
        found.append(f"  {case} {shape} {dtype}: {rate} {own['unit']}{share}{ratio}")
    return found


def main(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        figures = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(figures, dict) and figures.get("schema"):
            print(f"{path.name}:", *lines(figures), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

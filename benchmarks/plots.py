"""The plots of `gptfast bench report`, from rows of result files: matplotlib figures with their captions.

A roofline needs the FLOP and the bytes of a call: rows that tell their `intensity` are drawn under it. Every row that
has a ceiling is drawn as its share of that ceiling, which is the distance from the roof.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, PercentFormatter

from .suite import Row

# Okabe and Ito's colours, which the colour-blind tell apart
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#666666"
)  # fmt: skip
COLOURS = (ORANGE, GREEN, PURPLE, RED, SKY, GREY, "#A0A000", "black")
MARKERS = "sD^vPX<>"
OURS = {"gptfast": "-", "gptfast packed": "--", "gptfast one pass": ":"}
CEILINGS = {"matmul bf16": BLUE, "matmul fp32": SKY, "copy": ORANGE, "read": GREEN, "host copy": PURPLE}
PARTS = {
    "matmul": SKY, "attention": ORANGE, "norm": GREEN, "loss": RED, "embedding": PURPLE, "optimizer": "#F0E442",
    "other elementwise": "#AAAAAA", "gaps": "#E5E5E5",
}  # fmt: skip
Drawn = dict[str, tuple[str, Figure]]  # by the file's name; the caption and the figure


def draw(rows: list[Row], ceilings: dict[str, float], breakdowns: list[dict[str, Any]]) -> Drawn:
    """What the rows are enough for."""
    rows = [row for row in rows if "failed" not in row]
    found = {
        "roofline.png": (
            "Roofline: FLOP/s of each case under what memory and arithmetic allow.",
            roofline(rows, ceilings),
        ),
        "share.png": ("Share of the ceiling: gptfast as bars, the fastest peer as a line across.", shares(rows)),
        "lengths.png": ("Attention over the length of a sequence.", lengths(rows, ceilings)),
        "breakdown.png": ("A training step, by what the time goes into.", breakdown(breakdowns)),
    }
    return {name: (caption, figure) for name, (caption, figure) in found.items() if figure is not None}


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _flops(ceilings: dict[str, float]) -> tuple[str, float]:
    """The unit that suits the machine."""
    return ("TFLOP/s", 1e12) if ceilings.get("matmul bf16", 1e13) > 5e12 else ("GFLOP/s", 1e9)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def cases(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each case, in their order."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault((row["section"], row["case"], row["shape"], row["dtype"]), []).append(row)
    return list(found.values())


def _best(rows: list[Row]) -> tuple[Row | None, Row | None]:
    """Of a case gptfast's row, the one that is called so where it exists, and that of the fastest peer."""
    own = [row for row in rows if row["form"].startswith("gptfast")]
    peers = [row for row in rows if not row["form"].startswith("gptfast")]
    return (
        min(own, key=lambda row: (row["form"] != "gptfast", row["ms"]), default=None),
        min(peers, key=lambda row: row["ms"], default=None),
    )


def shares(rows: list[Row]) -> Figure | None:
    """A bar for each case that has a ceiling, gptfast's share of it; the fastest peer's as a line across."""
    bars = [(own, peer) for own, peer in map(_best, cases(rows)) if own is not None and own.get("share") is not None]
    if not bars:
        return None
    figure = _figure(9.5, 1.3 + 0.2 * len(bars) + 0.2 * len({own["section"] for own, _ in bars}))
    axes = figure.add_subplot(xlabel="share of what this machine reaches")
    colours = {of: colour for of, colour in CEILINGS.items() if any(own["of"] == of for own, _ in bars)}
    at, labels, section = 0.0, [], None
    for own, peer in bars:
        if own["section"] != section:
            at, section = at + 1.0, own["section"]
            labels.append((at - 0.05, section))
        at += 1
        axes.barh(at, own["share"], color=colours.get(own["of"], GREY), height=0.75)
        if peer is not None and peer.get("share") is not None:
            axes.plot([peer["share"]] * 2, [at - 0.42, at + 0.42], color="black", linewidth=2)
        labels.append((at, f"{own['case']}   {own['shape']}"))
    axes.axvline(1, color="0.4", linestyle="--", linewidth=1)
    axes.set_yticks([y for y, _ in labels], [text for _, text in labels], fontsize=8)
    for label, (_, text) in zip(axes.get_yticklabels(), labels, strict=True):
        label.set_fontweight("bold" if text in {own["section"] for own, _ in bars} else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(at + 0.7, 0.4), xlim=(0, None))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", alpha=0.3)
    _bare(axes)
    keys = [Line2D([], [], color=colour, linewidth=7, label=f"gptfast, of {of}") for of, colour in colours.items()]
    keys.append(Line2D([], [], color="black", linewidth=2, label="fastest peer"))
    figure.legend(handles=keys, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def roofline(rows: list[Row], ceilings: dict[str, float]) -> Figure | None:
    """FLOP/s over FLOP a byte, under the roofs of a copy and of matrix products; each case's fastest peer hollow."""
    found = [case for case in cases(rows) if case[0].get("intensity") and case[0].get("of") in ceilings]
    roofs = {name: ceilings[name] for name in ("matmul bf16", "matmul fp32") if name in ceilings}
    if not found or not roofs or "copy" not in ceilings:
        return None
    unit, scale = _flops(ceilings)
    figure = _figure(9.5, 5.5)
    axes = figure.add_subplot(xlabel="arithmetic intensity (FLOP per byte)", ylabel=unit, xscale="log", yscale="log")
    copy, top = ceilings["copy"] / scale, max(roofs.values()) / scale
    intensities = [case[0]["intensity"] for case in found]
    left, right = min(*intensities, 1.0) / 2, 2 * max(*intensities, top / copy)
    axes.plot([left, top / copy], [left * copy, top], color="0.3", linewidth=1.2)
    middle = math.sqrt(left * top / copy)
    axes.annotate(f"copy {ceilings['copy'] / 1e9:,.4g} GB/s", (middle, middle * copy), (-8, 4), ha="right",
                  textcoords="offset points", fontsize=8)  # fmt: skip
    for name, roof in roofs.items():
        axes.plot([roof / scale / copy, right], [roof / scale] * 2, color="0.3", linewidth=1.2)
        axes.annotate(f"{name} {roof / scale:,.4g} {unit}", (right, roof / scale), (-2, 3), ha="right",
                      textcoords="offset points", fontsize=8)  # fmt: skip
    names = list(dict.fromkeys(case[0]["case"] for case in found))
    style = {name: ((BLUE, *COLOURS)[i % 9], ("o" + MARKERS)[i % 9]) for i, name in enumerate(names)}
    for case, x in zip(found, intensities, strict=True):
        colour, marker = style[case[0]["case"]]
        for row, face in zip(_best(case), (colour, "none"), strict=True):
            if row is not None:
                reached = row["share"] * ceilings[row["of"]]  # FLOP/s, or bytes where the ceiling is of memory
                y = reached / scale if row["of"].startswith("matmul") else x * reached / scale
                axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=7)
    keys = [Line2D([], [], linestyle="none", color=c, marker=m, label=name) for name, (c, m) in style.items()]
    keys.append(Line2D([], [], linestyle="none", color="0.2", marker="o", markerfacecolor="none", label="fastest peer"))
    axes.set_xlim(left, right)
    axes.grid(alpha=0.3)
    _bare(axes)
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def lengths(rows: list[Row], ceilings: dict[str, float]) -> Figure | None:
    """TFLOP/s of attention over T, two panels for each shape of heads that was measured at two lengths or more."""
    panels: dict[tuple[int, int], dict[str, dict[str, dict[int, Row]]]] = {}
    for row in rows:
        size = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", row["shape"])}
        if row["case"] in ("attention forward", "attention backward") and {"T", "H", "D"} <= size.keys():
            forms = panels.setdefault((size["H"], size["D"]), {}).setdefault(row["case"].split()[1], {})
            forms.setdefault(row["form"], {})[size["T"]] = row
    panels = {
        shape: directions for shape, directions in panels.items()
        if any(len(points) > 1 for forms in directions.values() for points in forms.values())
    }  # fmt: skip
    if not panels:
        return None
    names = dict.fromkeys(form for directions in panels.values() for forms in directions.values() for form in forms)
    peers = [name for name in names if not name.startswith("gptfast")]
    style: dict[str, dict[str, Any]] = {
        name: {"color": COLOURS[i % 8], "marker": MARKERS[i % 8], "markersize": 5, "linewidth": 1.2}
        for i, name in enumerate(peers)
    }
    for name in names:
        if name not in style:
            style[name] = {
                "color": BLUE,
                "marker": "o",
                "markersize": 6,
                "linewidth": 2.2,
                "linestyle": OURS.get(name, "-."),
            }
    unit, scale = _flops(ceilings)
    figure = _figure(10, 0.7 + 3.2 * len(panels))
    grid = figure.subplots(len(panels), 2, squeeze=False, sharex="row")
    for row_of_axes, ((H, D), directions) in zip(grid, panels.items(), strict=True):
        for axes, direction in zip(row_of_axes, ("forward", "backward"), strict=True):
            forms = directions.get(direction, {})
            for name in sorted(forms, key=lambda name: name.startswith("gptfast")):  # ours on top
                points = sorted(forms[name].items())
                axes.plot([T for T, _ in points], [row["rate"] * 1e12 / scale for _, row in points], **style[name])
            row = next(row for points in forms.values() for row in points.values()) if forms else {}
            if row.get("of") in ceilings:
                axes.axhline(ceilings[row["of"]] / scale, color="0.4", linestyle="--", linewidth=1)
                axes.annotate(row["of"], (1, ceilings[row["of"]] / scale), (-2, -3), ha="right", va="top", fontsize=8,
                              xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
            axes.set(
                title=f"{direction}, {H} heads of {D}",
                xlabel="T (tokens in a sequence)",
                ylabel=unit,
                ylim=(0, None),
            )
            axes.set_xscale("log", base=2)
            lengths = sorted({T for points in forms.values() for T in points})
            axes.set_xticks(lengths, [f"{T:,}" for T in lengths])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3)
            _bare(axes)
    order = sorted(names, key=lambda name: not name.startswith("gptfast"))
    keys = [Line2D([], [], label=name, **style[name]) for name in order]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(6, len(keys)), frameon=False, fontsize=9)
    return figure


def breakdown(found: list[dict[str, Any]]) -> Figure | None:
    """A bar for each file of benchmarks/breakdown.py, the ms of a step put together from its categories."""
    if not found:
        return None
    figure = _figure(9.5, 1.5 + 0.7 * len(found))
    axes = figure.add_subplot(xlabel="ms of a training step")
    names = list(dict.fromkeys(part["category"] for file in found for part in file["categories"]))
    colours = {name: PARTS.get(name, GREY) for name in names}
    for at, file in enumerate(found):
        left, whole = 0.0, sum(max(0.0, part["ms"]) for part in file["categories"])
        for part in file["categories"]:
            ms = max(0.0, part["ms"])  # gaps are below 0 where kernels overlap
            axes.barh(at, ms, left=left, color=colours[part["category"]], edgecolor="white", height=0.6)
            if ms > 0.04 * whole:
                axes.text(left + ms / 2, at, f"{ms / whole:.0%}", ha="center", va="center", fontsize=8)
            left += ms
    axes.set_yticks(range(len(found)), [_step(file) for file in found], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(found) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.3)
    _bare(axes)
    keys = [Line2D([], [], color=colour, linewidth=7, label=name) for name, colour in colours.items()]
    figure.legend(handles=keys, loc="outside upper center", ncols=8, frameon=False, fontsize=9)
    return figure


def _step(found: dict[str, Any]) -> str:
    model, shape = found["model"], f"B={found['batch']} T={found['model']['context_length']}"
    return f"{model['n_layer']} layers, width {model['n_embd']}\n{shape} {found['dtype']}"

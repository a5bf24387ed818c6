"""How well a classifier classifies, from its probabilities p [N, K] and the classes y [N]; and pictures of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path

BINS = 10  # of the reliability diagram


def confusion_matrix(y: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 [K, K]: texts of class i (row) that were taken for class j (column)."""
    return np.bincount(y * classes + predicted, minlength=classes**2).reshape(classes, classes)


def precision_recall_f1(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class, float64 [K] each; 0 where a class was never predicted or does not occur."""
    hits = np.diag(confusion).astype(float)
    predicted, actual = confusion.sum(0), confusion.sum(1)
    return hits / predicted.clip(1), hits / actual.clip(1), 2 * hits / (predicted + actual).clip(1)


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    """The mean of -log p of the right class, in nats."""
    return float(-np.log(p[np.arange(len(y)), y].clip(np.finfo(p.dtype).tiny)).mean())


def reliability(p: np.ndarray, y: np.ndarray) -> list[dict[str, float]]:
    """Texts by the probability of their predicted class, in bins of equal width over 0 to 1: those that are not empty.

    Of each: "low" and "high", the number of texts "n", their mean "confidence", and their "accuracy".
    """
    confidence, right = p.max(1), p.argmax(1) == y
    edges = np.linspace(0, 1, BINS + 1)
    place = np.searchsorted(edges[1:-1], confidence, side="left")  # a bin has its upper edge
    bins = []
    for b in range(BINS):
        if (inside := place == b).any():
            bins.append({
                "low": float(edges[b]), "high": float(edges[b + 1]), "n": int(inside.sum()),
                "confidence": float(confidence[inside].mean()), "accuracy": float(right[inside].mean()),
            })  # fmt: skip
    return bins


def expected_calibration_error(bins: list[dict[str, float]]) -> float:
    """The mean distance of accuracy and confidence over bins, weighted by their texts (Guo et al. 2017, equation 3)."""
    return sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / sum(b["n"] for b in bins)


def scores(p: np.ndarray, y: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """All of the above, as JSON takes it. macro_f1 is the mean over classes; with two classes f1 is the second's."""
    confusion = confusion_matrix(y, p.argmax(1), len(names))
    precision, recall, f1 = precision_recall_f1(confusion)
    bins = reliability(p, y)
    result: dict[str, Any] = {
        "n": len(y), "loss": log_loss(p, y), "accuracy": float(np.diag(confusion).sum() / len(y)),
        "macro_f1": float(f1.mean()),
    }  # fmt: skip
    if len(names) == 2:
        result["f1"] = float(f1[1])
    return result | {
        "classes": {
            name: {"n": int(confusion[k].sum()), "precision": precision[k], "recall": recall[k], "f1": f1[k]}
            for k, name in enumerate(names)
        },
        "confusion": confusion.tolist(), "calibration_error": expected_calibration_error(bins), "reliability": bins,
    }  # fmt: skip


def _word(name: str) -> str:
    """A name as matplotlib may write it: short, on one line, and with dollar signs that begin no formula."""
    name = " ".join(name.split())
    return (f"{name[:29]}…" if len(name) > 30 else name).replace("$", r"\$")


def draw(run: Path, rows: list[dict[str, Any]], test: dict[str, Any], title: str) -> list[str]:
    """Write training.png (losses and accuracies over epochs, from the rows of metrics.jsonl), confusion.png and
    reliability.png (from the `scores` of the test split) into `run`; their names, none where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    title = _word(title)
    size: dict[str, Any] = {"dpi": 120, "layout": "constrained"}
    training = Figure(figsize=(10, 4), **size)
    for axes, kind, unit in zip(
        training.subplots(1, 2), ("loss", "accuracy"), ("loss (nats)", "accuracy"), strict=True
    ):
        if kind == "loss":
            steps = [(row["epoch"], row["loss"]) for row in rows if "loss" in row]
            axes.plot(*zip(*steps, strict=True), color="0.8", linewidth=0.8, label="training batch")
        for split, label in (("train", "train"), ("val", "validation")):
            points = [(row["epoch"], row[f"{split}_{kind}"]) for row in rows if f"{split}_{kind}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=f"{label}: {points[-1][1]:.3f}")
        axes.set(xlabel="epoch", ylabel=unit, title=title if kind == "loss" else "")
        axes.grid(alpha=0.3)
        axes.legend()

    names, counts = [_word(name) for name in test["classes"]], np.array(test["confusion"])
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = min(max(4.0, 0.5 * len(names) + 2), 32)
    confusion = Figure(figsize=(side + 1, side), **size)
    axes = confusion.add_subplot(
        xlabel="predicted", ylabel="actual", title=f"{title}: test accuracy {test['accuracy']:.2%}"
    )
    if len(names) <= 60:  # otherwise numbers, of some of the classes
        axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 4 else 0)
        axes.set_yticks(range(len(names)), names)
    confusion.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), label="share of the actual class")
    if len(names) <= 20:
        for (i, j), n in np.ndenumerate(counts):
            axes.text(j, i, f"{n:,}", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")

    diagram, bins = Figure(figsize=(5, 4.5), **size), test["reliability"]
    axes = diagram.add_subplot(
        xlabel="confidence", ylabel="accuracy", title=f"{title}: calibration error {test['calibration_error']:.3f}",
        xlim=(1 / len(names), 1), ylim=(0, 1.05),
    )  # fmt: skip
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="perfectly calibrated")
    axes.bar(
        [b["low"] for b in bins], [b["accuracy"] for b in bins], [b["high"] - b["low"] for b in bins], align="edge",
        edgecolor="white", label="test texts",
    )  # fmt: skip
    for b in bins:
        axes.text((b["low"] + b["high"]) / 2, 0.02, f"{b['n']}", ha="center", color="white", fontsize=8)
    axes.legend(loc="upper left")

    written = {"training.png": training, "confusion.png": confusion, "reliability.png": diagram}
    for name, figure in written.items():
        with atomic_path(run / name) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is a box in the picture
            figure.savefig(temporary, format="png")
    return list(written)

"""Metrics of a classifier: cases counted by hand, and torch's cross entropy."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gptfast.finetune.metrics import (
    confusion_matrix,
    draw,
    expected_calibration_error,
    log_loss,
    precision_recall_f1,
    reliability,
    scores,
)


def test_confusion_precision_recall_f1() -> None:
    y = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    predicted = np.array([0, 0, 1, 1, 0, 2, 2, 0])
    confusion = confusion_matrix(y, predicted, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    precision, recall, f1 = precision_recall_f1(confusion)
    assert precision == pytest.approx([2 / 4, 1 / 2, 2 / 2, 0])
    assert recall == pytest.approx([2 / 3, 1 / 2, 2 / 3, 0])
    assert f1 == pytest.approx([4 / 7, 1 / 2, 4 / 5, 0])  # 2 hits / (predicted + actual)


def test_log_loss_is_the_cross_entropy() -> None:
    logits = torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(50) % 5
    assert log_loss(logits.softmax(-1).numpy(), y.numpy()) == pytest.approx(F.cross_entropy(logits, y).item())
    assert np.isfinite(log_loss(np.array([[0.0, 1.0]]), np.array([0])))  # certain and wrong


def test_calibration() -> None:
    """Two texts at 0.75, one of them right; three at 0.95, all right: |1/2 - 0.75| 2/5 + |1 - 0.95| 3/5."""
    confidence = np.array([0.75, 0.75, 0.95, 0.95, 0.95])
    p = np.stack([confidence, 1 - confidence], 1)
    bins = reliability(p, np.array([0, 1, 0, 0, 0]))
    assert [(b["n"], b["accuracy"]) for b in bins] == [(2, 0.5), (3, 1.0)]
    assert [(b["low"], b["high"]) for b in bins] == [pytest.approx((0.7, 0.8)), pytest.approx((0.9, 1.0))]
    assert expected_calibration_error(bins) == pytest.approx(0.25 * 2 / 5 + 0.05 * 3 / 5)


def test_a_bin_has_its_upper_edge() -> None:
    """(0.7, 0.8], as Guo et al. 2017 have them."""
    p = np.array([[0.5, 0.5], [0.8, 0.2], [1.0, 0.0]])
    assert [b["high"] for b in reliability(p, np.zeros(3, int))] == pytest.approx([0.5, 0.8, 1.0])


def test_probabilities_that_are_right_as_often_as_they_say_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(3, 0.7), 100_000)
    y = (rng.random((len(p), 1)) > p.cumsum(1)).sum(1).clip(0, 2)
    assert expected_calibration_error(reliability(p, y)) < 0.01
    sharper = p**3 / (p**3).sum(1, keepdims=True)
    assert expected_calibration_error(reliability(sharper, y)) > 0.1


def test_scores_are_json_and_f1_is_the_second_class() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    result = json.loads(json.dumps(scores(p, np.array([0, 1, 0, 1]), ["ham", "spam"])))
    assert result["accuracy"] == 0.75 and result["confusion"] == [[1, 1], [0, 2]]
    assert result["f1"] == result["classes"]["spam"]["f1"] == pytest.approx(4 / 5)
    assert result["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert result["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.7]).mean())


@pytest.mark.parametrize(
    "names", [["$\\foo$", "日本語\n" + "x" * 3000], [f"{k}" for k in range(1000)]], ids=["odd", "many"]
)
def test_pictures_of_any_names(tmp_path: Path, names: list[str]) -> None:
    """No formula, no warning, and no picture of more than 4,000 pixels a side, however many classes there are."""
    y = np.arange(len(names))
    test = scores(np.eye(len(names))[y], y, names)
    rows = [{"epoch": 0.1, "loss": 1.0}, {"epoch": 1.0, "val_loss": 1.0, "val_accuracy": 0.5}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(tmp_path, rows, test, "a $\\run$") == ["training.png", "confusion.png", "reliability.png"]
    for picture in tmp_path.iterdir():
        header = picture.read_bytes()[:24]
        assert header[:4] == b"\x89PNG" and max(np.frombuffer(header[16:24], ">u4")) < 4000

"""A mean with its standard error, and a perplexity that may be infinite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Mean(NamedTuple):
    """error: the standard error s / sqrt(n), s with n - 1 in its denominator; None of a single value."""

    value: float
    error: float | None
    n: int


def mean(values: Sequence[float] | np.ndarray) -> Mean:
    x = np.asarray(values, dtype=np.float64)
    return Mean(float(x.mean()), float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else None, len(x))


def exp(x: float) -> float:
    """e^x, and infinity beyond fp64: the perplexity of a model may be there."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf

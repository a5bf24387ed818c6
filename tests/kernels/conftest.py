"""What the tests of kernels share: outputs that hold NaN before, and launches other than the usual."""

from __future__ import annotations

import math

import pytest
import torch


@pytest.fixture
def poisoned(monkeypatch):
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poison(x):
        return x.fill_(math.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **options: poison(new_empty(*args, **options)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **options: poison(empty_like(*args, **options)))


@pytest.fixture
def few_programs(monkeypatch):
    """Called with a number: so many programs share all rows, and each walks over several tiles."""
    from gptfast.kernels import rows

    def set_number(number):
        monkeypatch.setattr(rows, "PER_MULTIPROCESSOR", 1)
        monkeypatch.setattr(rows, "multiprocessors", lambda device: number)

    return set_number


@pytest.fixture
def one_row_a_tile(monkeypatch):
    """In the interpreter, which takes as long for rows past the end as for others."""
    from gptfast.kernels import launch

    monkeypatch.setattr(launch, "INTERPRETED_ROWS", launch.Launch(1, 64, 4, 1))

"""What the tests of kernels share: every tensor that a kernel should write holds NaN before."""

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

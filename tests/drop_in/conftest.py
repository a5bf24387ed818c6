"""Tests of accelerate run with the blocks of a CPU, their own, and with the fused ones, which a GPU has."""

from __future__ import annotations

import pytest

from gptfast.drop_in import fast


@pytest.fixture(autouse=True, params=["separate", "fused"])
def blocks(request, monkeypatch):
    if request.param == "fused":
        monkeypatch.setattr(fast, "SEPARATE", set())
    return request.param

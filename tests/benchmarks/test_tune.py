"""The tuning scripts, rehearsed in Triton's interpreter: every call they make on a GPU, and the rows they write."""

import itertools
import json
import shutil

import pytest
import torch
from gptfast.benchmarks import tune_attention, tune_rows
from gptfast.benchmarks.suite import Setup
from gptfast.kernels.launch import TABLE

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the scripts themselves run")
CPU = torch.device("cpu")


@pytest.fixture
def table(monkeypatch, tmp_path):
    """A copy of the launch table, and timers that only call: each thing takes as many ms as were timed before it."""
    count = itertools.count(1)

    def once(call, seconds):
        call()
        return float(next(count))

    def interleaved(variants, rounds, seconds):
        return {name: once(call, seconds) for name, call in variants.items()}

    for module in (tune_attention, tune_rows):
        monkeypatch.setattr(module, "once", once)
        monkeypatch.setattr(module, "interleaved", interleaved)
        monkeypatch.setattr(module, "architecture", lambda device: "sm90")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return shutil.copy(TABLE, tmp_path / "table.json")


def rows(path, kernel):
    found = json.loads(open(path, encoding="utf-8").read())["rows"]
    return [row for row in found if row["arch"] == "sm90" and row["kernel"].startswith(kernel)]


def test_rows(table, monkeypatch):
    monkeypatch.setattr(tune_rows, "Setup", lambda device: Setup(CPU, dry=True))
    monkeypatch.setattr(tune_rows, "CANDIDATES", {name: found[:2] for name, found in tune_rows.CANDIDATES.items()})
    tiny = {
        "norm": lambda setup: itertools.islice(tune_rows.norms(setup, 4, 48), 4),
        "gelu": lambda setup: tune_rows.gelus(setup, 4, 48),
        "embedding": lambda setup: tune_rows.embeddings(setup, 1, 4, 48, 64),
        "cross_entropy": lambda setup: tune_rows.losses(setup, 4, 64),
    }
    plans = [(name, single, width, tiny[name]) for name, single, width, _ in tune_rows.PLANS if width in (None, 1024)]
    monkeypatch.setattr(tune_rows, "PLANS", plans)
    monkeypatch.setattr("sys.argv", ["tune_rows", "--table", str(table)])
    assert tune_rows.main() == 0
    for kernel in tune_rows.CANDIDATES:
        assert any(row["measured"] for row in rows(table, kernel)), kernel


def test_attention(table, monkeypatch):
    def inputs(D, T):
        return [torch.randn(2, T, 2, D) for _ in range(4)]

    def sdpa_times(tensors, dropout):  # its backends are those of a GPU
        return 0.0, 0.0

    monkeypatch.setattr(tune_attention, "inputs", inputs)
    monkeypatch.setattr(tune_attention, "sdpa_times", sdpa_times)
    monkeypatch.setattr(tune_attention, "CANDIDATES", {name: [(16, 16, 4, 1)] for name in tune_attention.CANDIDATES})
    monkeypatch.setattr(tune_attention, "compile_all", lambda flags: compiled.extend(flags))
    compiled, before = [], table.read_bytes()
    flags = ["tune_attention", "--D", "16", "--T", "8", "16", "--table", str(table)]
    monkeypatch.setattr("sys.argv", [*flags, "--compile", "0", "1"])
    assert tune_attention.main() == 0 and table.read_bytes() == before
    monkeypatch.setattr("sys.argv", flags)
    assert tune_attention.main() == 0 and compiled == ["--D", "16", "--T", "8"]
    for kernel in tune_attention.CANDIDATES:
        found = [row for row in rows(table, kernel) if row["D"] == 16 and not row["dropout"]]
        assert {row["T"] for row in found} == {8, None}
        assert all(row["prefer"] == "torch" for row in found)  # which took no time

"""Durable files: whole or not there, whatever interrupts the write."""

from __future__ import annotations

import os

import pytest

import gptfast
from gptfast import files
from gptfast.report import read_metrics


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.atomic_write(path, "w") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_one_clear_error(tmp_path):
    with (
        pytest.raises(gptfast.GptfastError, match="cannot write .*file: No space left"),
        files.atomic_write(tmp_path / "file"),
    ):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_write_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    files.write_json(tmp_path / "a.json", {"x": 1})
    assert calls == ["fsync", "replace", "fsync"]  # file, rename, folder
    assert files.read_json(tmp_path / "a.json") == {"x": 1}


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(gptfast.GptfastError, match="a.json is not valid JSON"):
        files.read_json(tmp_path / "a.json")


def test_metrics_leave_out_a_line_cut_by_a_kill(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 1}, {"step": 2}]

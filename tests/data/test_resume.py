"""A run of `prepare` that was killed, or had no space left, goes on to the same bytes without redoing shards."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gptfast.files
from gptfast.data.prepare import PrepareConfig, prepare
from gptfast.errors import GptfastError

RUN = """
import sys, time
import gptfast.data.prepare as p
encode = p._encode
def slowly(*args):
    time.sleep(0.02)
    return encode(*args)
p._encode = slowly
p.prepare(p.PrepareConfig((sys.argv[1],), sys.argv[2], encoding="bytes", shard_tokens=300_000, workers=2))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    with open(path, "w") as file:
        for i in range(300):
            file.write(json.dumps({"text": f"{i} " * (300 * (i % 40))}) + "\n")
    return path


def config(source: Path, out: Path, **options) -> PrepareConfig:
    return PrepareConfig((str(source),), str(out), **({"encoding": "bytes", "shard_tokens": 300_000} | options))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def identity(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.npy")}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_killed_runs_go_on_to_the_same_bytes(tmp_path: Path, source: Path) -> None:
    prepare(config(source, tmp_path / "whole"))
    expected = content(tmp_path / "whole")
    assert sum(name.startswith("train") for name in expected) > 16 and "val-00001.npy" in expected
    out = tmp_path / "killed"
    kept: dict[str, tuple[int, int]] = {}
    for shards in (2, 6, 11):  # three kills, each later
        process = subprocess.Popen([sys.executable, "-c", RUN, str(source), str(out)])
        while process.poll() is None and len(list(out.glob("*-0????.npy"))) < shards:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
        finished = {
            shard[key]
            for split in json.loads((out / "progress.json").read_text())["shards"].values()
            for shard in split
            for key in ("file", "documents_file")
        }
        now = identity(out)
        assert len(finished) >= 2 * (shards - 1)
        assert {name: now[name] for name in kept} == kept, "a finished shard was written again"
        kept = {name: now[name] for name in finished}
        assert "manifest.json" not in content(out)
    prepare(config(source, out))
    assert content(out) == expected  # also: no temporary file is left
    assert {name: identity(out)[name] for name in kept} == kept, "a finished shard was written again"


def test_finished_units_are_not_tokenized_again(tmp_path: Path, source: Path, monkeypatch) -> None:
    import gptfast.data.prepare as module

    calls = []
    encode = module._encode
    monkeypatch.setattr(module, "_encode", lambda *args: (calls.append(1), encode(*args))[1])
    prepare(config(source, tmp_path / "whole"))
    in_all, calls[:] = len(calls), []
    limit_disk(monkeypatch, 8_000_000)
    with pytest.raises(GptfastError):
        prepare(config(source, tmp_path / "out"))
    calls.clear()
    limit_disk(monkeypatch, 10**9)
    finished = sum(json.loads((tmp_path / "out/progress.json").read_text())["units"].values())
    prepare(config(source, tmp_path / "out"))
    assert finished > 8 and len(calls) == in_all - finished


def limit_disk(monkeypatch, n_bytes: int) -> None:
    """Let binary files grow by so many bytes in all; the next write finds no space."""
    left = n_bytes

    class Limited(io.FileIO):
        def write(self, data) -> int:
            nonlocal left
            left -= len(data)
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def limited_open(path, mode, **options):
        return Limited(path, "w") if mode == "wb" else open(path, mode, **options)

    monkeypatch.setattr(gptfast.files, "open", limited_open, raising=False)


def test_no_space_left(tmp_path: Path, source: Path, monkeypatch) -> None:
    prepare(config(source, tmp_path / "whole"))
    out = tmp_path / "out"
    limit_disk(monkeypatch, 3_000_000)
    with pytest.raises(
        GptfastError, match=r"cannot write .*train-0000\d\.npy: No space left on device; free some space"
    ):
        prepare(config(source, out))
    assert len(list(out.glob("train-0000?.npy"))) >= 2
    assert not list(out.glob(".*"))  # the unfinished file was removed
    kept = identity(out)
    limit_disk(monkeypatch, 10**9)
    prepare(config(source, out))
    assert content(out) == content(tmp_path / "whole")
    assert {name: identity(out)[name] for name in kept} == kept


def test_other_settings_or_inputs_do_not_go_on(tmp_path: Path, source: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    limit_disk(monkeypatch, 3_000_000)
    with pytest.raises(GptfastError):
        prepare(config(source, out))
    limit_disk(monkeypatch, 10**9)
    before = content(out)
    for options, name in [
        ({"seed": 1}, "seed"),
        ({"encoding": "gpt2"}, "encoding"),
        ({"shard_tokens": 9}, "shard_tokens"),
    ]:
        with pytest.raises(GptfastError, match=f"unfinished run with other {name}; repeat its settings"):
            prepare(config(source, out, **options))
    os.utime(source, ns=(1, 1))
    with pytest.raises(GptfastError, match="unfinished run with other inputs"):
        prepare(config(source, out))
    assert content(out) == before

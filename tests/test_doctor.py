"""`gptfast doctor`: what it finds, and the command for each thing that is missing."""

from __future__ import annotations

import builtins
import json
import shlex
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from gptfast import doctor, extension


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert doctor.main(["--json"]) == 0
    return {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}


def test_reports_versions_devices_and_what_will_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(capsys)
    assert found["torch"]["value"] == metadata.version("torch") and found["torch"]["mend"] is None
    assert f"{torch.get_num_threads()} CPU threads" in found["device"]["value"]
    assert found["precision"]["value"].split(":")[0] in ("bf16", "fp32")
    assert "logical cores" in found["cpu"]["value"]


def test_the_table_says_the_same(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = findings(capsys)
    doctor.main([])
    printed = capsys.readouterr().out
    for finding in found.values():
        assert finding["name"] in printed and finding["value"] in printed
        assert finding["mend"] is None or finding["mend"] in printed


def test_vocabularies_are_found_where_tiktoken_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "absent"))
    assert "not in" in findings(capsys)["gpt2"]["value"]

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for file in doctor.VOCABULARIES["gpt2"]:  # any one of them will do
        (tmp_path / file).touch()
        found = findings(capsys)
        assert found["gpt2"] == {
            "group": "vocabularies",
            "name": "gpt2",
            "value": f"found in {tmp_path}",
            "mend": None,
        }
        assert "gptfast.get_encoding('cl100k_base')" in found["cl100k_base"]["mend"]
        (tmp_path / file).unlink()
    assert findings(capsys)["gpt2"]["mend"] is not None


def test_a_missing_extension_shows_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gptfast._core", None)  # importing it now raises
    extension.load.cache_clear()
    try:
        found = findings(capsys)["gptfast._core"]
        assert found["value"].startswith("not usable: it was not built")
        assert f"{shlex.quote(sys.executable)} -m pip install --no-deps" in found["mend"]

        monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
        assert findings(capsys)["gptfast._core"]["mend"].startswith("first a C++ compiler")
    finally:
        monkeypatch.undo()
        extension.load.cache_clear()


def test_an_extension_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stale:
        __version__ = "0.0.1"

    monkeypatch.setitem(sys.modules, "gptfast._core", Stale)  # type: ignore[arg-type]
    extension.load.cache_clear()
    try:
        module, reason = extension.load()
        assert module is None and "built for version 0.0.1" in reason
    finally:
        monkeypatch.undo()
        extension.load.cache_clear()


def test_a_missing_package_shows_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "matplotlib":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = findings(capsys)["matplotlib"]
    assert found["value"] == "missing (loss.png)"
    assert found["mend"] == f"{shlex.quote(sys.executable)} -m pip install matplotlib"


def test_broken_torch_is_the_one_failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert doctor.main(["--json"]) == 1
    report = [finding for finding in json.loads(capsys.readouterr().out) if finding["mend"]]
    assert any("libtorch.so" in finding["value"] and "reinstall torch" in finding["mend"] for finding in report)

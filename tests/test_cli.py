"""The command line and the demo."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gptfast
from gptfast import cli


def test_help_names_every_command(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help_for_every_flag(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([*command.split(), "--help"])
    assert left.value.code == 0
    assert "usage: gptfast " + command in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["pretrian"]) == 2
    assert "did you mean `gptfast pretrain`" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gptfast {gptfast.__version__}\n"


def test_every_public_name_is_there():
    for name in gptfast.__all__:
        assert getattr(gptfast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'GTP'"):
        gptfast.GTP  # noqa: B018


def test_demo_uses_pythons_own_documentation(tmp_path, capsys, monkeypatch):
    from gptfast import demo

    assert len(demo.python_documentation()) > 300_000
    monkeypatch.setattr(
        demo, "CPU_MODEL", {"n_layer": 1, "n_head": 1, "n_embd": 16, "context_length": 16, "batch_size": 2}
    )
    monkeypatch.setattr(demo, "GPU_MODEL", demo.CPU_MODEL)
    assert cli.main(["demo", "--out", str(tmp_path), "--minutes", "0"]) == 0
    out = capsys.readouterr().out
    run = next(p for p in tmp_path.iterdir() if (p / "loss.png").is_file())
    assert out.count("sample after step") == 4 and f"gptfast generate {run}" in out


def test_a_reader_that_leaves_early_gets_no_traceback():
    command = f"{sys.executable} -m gptfast.cli pretrain --help | head -1"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert ran.stdout.startswith("usage: gptfast pretrain") and ran.stderr == ""

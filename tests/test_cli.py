"""The command line and the demo."""

from __future__ import annotations

import shutil
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


@pytest.mark.parametrize("group", sorted({name.split()[0] for name in cli.COMMANDS if " " in name}))
def test_a_group_lists_its_commands(group, capsys):
    for asked in ([], ["--help"], ["help"]):
        assert cli.main([group, *asked]) == 0
        out = capsys.readouterr().out
        assert all((f"  {name} " in out) == name.startswith(f"{group} ") for name in cli.COMMANDS)
    assert cli.main([group, "nothing"]) == 2
    assert f"no command '{group} nothing'" in capsys.readouterr().err


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
    monkeypatch.setattr(demo, "learn_encoding", lambda source, folder: gptfast.get_encoding("bytes"))
    assert cli.main(["demo", "--out", str(tmp_path), "--minutes", "0"]) == 0
    out = capsys.readouterr().out
    run = next(p for p in tmp_path.iterdir() if (p / "loss.png").is_file())
    assert out.count("sample after step") == 4 and f"gptfast generate {run}" in out


def test_demo_learns_a_vocabulary(tmp_path, capsys, monkeypatch):
    """... which is found again by generate and by another run, wherever the folders are moved to."""
    from gptfast import demo, extension

    if not hasattr(extension.core(), "train_bpe"):
        pytest.skip("gptfast._core was built without training")

    tiny = {"n_layer": 1, "n_head": 1, "n_embd": 16, "context_length": 16, "batch_size": 2}
    monkeypatch.setattr(demo, "CPU_MODEL", tiny)
    monkeypatch.setattr(demo, "GPU_MODEL", tiny)
    assert cli.main(["demo", "--out", str(tmp_path / "runs"), "--minutes", "0"]) == 0
    assert "vocabulary of 4,096 tokens" in capsys.readouterr().out
    (tmp_path / "runs").rename(tmp_path / "moved")
    run = next(p for p in (tmp_path / "moved").iterdir() if (p / "loss.png").is_file())
    tokens = run.with_name(run.name + "-tokens")
    encoding = gptfast.get_encoding(run / "tokenizer.json")
    assert encoding.n_vocab == 4096 and encoding.hash == gptfast.get_encoding(tokens).hash
    assert cli.main(["generate", str(run), "--prompt", "The value", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("The value")
    checkpoint = next((run / "checkpoints").iterdir())
    assert cli.main(["generate", str(checkpoint), "--encoding", str(tokens), "--max-new-tokens", "3"]) == 0

    copy = shutil.copytree(tokens, tmp_path / "copy")
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in tiny.items()]
    train = ["pretrain", "--preset", "tiny", *flags, "--warmup-steps", "1", "--out", str(tmp_path / "run")]
    assert cli.main([*train, "--data", str(tokens), str(copy), "--steps", "2"]) == 0  # one vocabulary, in two places
    shutil.rmtree(tokens)
    assert cli.main([*train, "--data", str(copy), str(copy), "--steps", "3", "--resume"]) == 0


def test_a_reader_that_leaves_early_gets_no_traceback():
    command = f"{sys.executable} -m gptfast.cli pretrain --help | head -1"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert ran.stdout.startswith("usage: gptfast pretrain") and ran.stderr == ""

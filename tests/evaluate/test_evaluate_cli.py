"""`gptfast evaluate`, from files to tables and JSON, and what it says of bad input."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path

import pytest
from judge_server import Server, says

import gptfast
from gptfast.cli import main
from gptfast.evaluate.perplexity import perplexity


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    text = "First book.\nIts end.\n<|endoftext|>\nSecond é."
    (folder / "text.txt.xz").write_bytes(lzma.compress(text.encode()))
    (folder / "hellaswag.txt").write_text("A man. he\n1\nruns\nis\nsits\ngoes away\n" * 5)
    (folder / "lambada.jsonl").write_text(json.dumps({"text": "one two three"}) + "\n")
    (folder / "spam.tsv").write_text("".join(f"{x}\ta {i}\n" for i in range(20) for x in ("ham", "spam")))
    instructions = [{"instruction": "say", "input": "", "output": "hi"}] * 2
    instructions.append({"instruction": "say", "output": "hi", "model_response": "hello"})
    (folder / "instructions.json").write_text(json.dumps(instructions))
    (folder / "empty.txt").write_text("")
    return folder


def run(folder: Path, *flags: str | Path) -> int:
    return main(["evaluate", str(folder), "--encoding=bytes", "--device=cpu", *map(str, flags)])


def test_everything_at_once(folder, model, encoding, files, tmp_path, capsys) -> None:
    out = tmp_path / "results.json"
    flags = ["--text", files / "text.txt.xz", "--stride", "7", "--hellaswag", files / "hellaswag.txt"]
    flags += ["--lambada", files / "lambada.jsonl", "--labelled", files / "spam.tsv", "--shots", "0,1", "--json", out]
    assert run(folder, *flags, "--limit", "3") == 0
    results = json.loads(out.read_text())

    text = perplexity(model, encoding, ["First book.\nIts end.", "Second é."], 7)
    assert results["text"]["nats"] == pytest.approx(text.nats) and results["text"]["tokens"] == 20 + 10
    assert results["text"]["bits_per_byte"] == pytest.approx(text.nats / math.log(2) / 30)
    assert results["hellaswag"]["acc"]["n"] == 3 and results["lambada"]["acc"]["n"] == 1
    rows = results["labelled"]
    assert list(rows) == ["the commonest class", "pretrained only, zero-shot", "pretrained only, few-shot, 1 example"]
    assert rows["the commonest class"]["accuracy"]["n"] == 3

    said = capsys.readouterr()
    for words in ("text.txt.xz", "bits per byte", "HellaSwag", "acc_norm", "LAMBADA", "macro F1", "standard error"):
        assert words in said.out
    assert f"{text.bits_per_byte:.4f}" in said.out
    assert "spam.tsv has no header" in said.err and "note: 6 of 6 contexts are too long" not in said.err


def test_contexts_that_are_cut_are_said(folder, tmp_path, capsys) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "long " * 20 + "word"}) + "\n")
    assert run(folder, "--lambada", tmp_path / "a.jsonl") == 0
    assert "note: 1 of 1 contexts are too long for the model's 48 tokens" in capsys.readouterr().err


def test_a_classifier_beside_it(folder, files, tmp_path, capsys) -> None:
    flags = ["--n-layer=1", "--n-head=1", "--n-embd=8", "--context-length=24", "--encoding=bytes", "--epochs=0.1"]
    run_folder = tmp_path / "spam"
    assert main(["finetune-classifier", str(files / "spam.tsv"), "--out", str(run_folder), *flags, "--device=cpu"]) == 0
    test = json.loads((run_folder / "results.json").read_text())["test"]
    assert run(folder, "--classifier", run_folder, "--shots", "0", "--json", tmp_path / "a.json") == 0
    rows = json.loads((tmp_path / "a.json").read_text())["labelled"]
    assert list(rows) == ["the commonest class", "pretrained only, zero-shot", "fine-tuned"]
    assert rows["fine-tuned"]["accuracy"]["value"] == test["accuracy"]
    assert rows["fine-tuned"]["macro_f1"] == pytest.approx(test["macro_f1"])
    capsys.readouterr()

    assert run(run_folder, "--lambada", files / "lambada.jsonl") == 2  # a classifier where a language model belongs
    assert "holds a classifier" in capsys.readouterr().err
    assert run(folder, "--classifier", folder) == 2  # and the other way around
    assert "is no finished run of `gptfast finetune-classifier`" in capsys.readouterr().err


def test_names_are_no_markup(folder, tmp_path, monkeypatch, capsys) -> None:
    """Neither in the table nor in the progress bar of a terminal."""
    path = tmp_path / "{data}.tsv"
    path.write_text("".join(f"{x}\ta {i}\n" for i in range(10) for x in ("[/b]", "{x}")))
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes what it writes to for a terminal
    assert run(folder, "--labelled", path, "--shots", "0") == 0
    said = capsys.readouterr()
    assert "4 test texts of [/b], {x}" in said.out and "4 test texts of [/b], {x}" in said.err


def test_a_judge(folder, files, tmp_path, monkeypatch, capsys, server: Server) -> None:
    server.replies = [says("50"), says("no idea"), says("70")]
    monkeypatch.setenv("A_KEY", "secret\n")
    monkeypatch.setattr("gptfast.evaluate.judge.AT_ONCE", 1)
    flags = ["--instructions", files / "instructions.json", "--judge-url", server.url, "--judge-model", "m"]
    assert run(folder, *flags, "--judge-key", "A_KEY", "--json", tmp_path / "a.json") == 0
    judged = json.loads((tmp_path / "a.json").read_text())["judged"]
    assert judged["score"] == {"value": 60.0, "error": pytest.approx(10.0), "n": 2}
    assert [entry["score"] for entry in judged["responses"]] == [50, None, 70]
    assert judged["responses"][2]["response"] == "hello"
    assert server.requests[0][1]["Authorization"] == "Bearer secret"
    said = capsys.readouterr()
    assert "1 of 3 replies of the judge hold no score" in said.err and "60.0" in said.out
    assert "secret" not in said.out + said.err + (tmp_path / "a.json").read_text()

    server.replies = [says("?")]
    assert run(folder, *flags) == 2
    assert "none of the 3 replies of m is an integer from 0 to 100" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to evaluate on"),
        (["--text", "absent.txt"], "no such file or folder: absent.txt"),
        (["--text", "{files}/empty.txt"], "there is no text to score"),
        (["--text", "{files}/text.txt.xz", "--stride", "49"], "the stride is 49"),
        (["--hellaswag", "absent.txt"], "cannot read absent.txt"),
        (["--lambada", "absent.jsonl"], "cannot read absent.jsonl"),
        (["--labelled", "absent.tsv"], "absent.tsv"),
        (["--labelled", "{files}/spam.tsv", "--shots", "0,x"], "--shots is '0,x'; give numbers such as 0,4"),
        (
            ["--lambada", "{files}/lambada.jsonl", "--labelled", "{files}/spam.tsv", "--shots", "1000"],
            "1000 shots: the training texts allow from 0 to 28",
        ),
        (["--lambada", "{files}/lambada.jsonl", "--limit", "0"], "--limit is 0"),
        (["--lambada", "{files}/lambada.jsonl", "--seed", "-1"], "--seed is -1"),
        (["--lambada", "{files}/lambada.jsonl", "--json", "absent/a.json"], "there is no folder"),
        (["--judge-url", "http://127.0.0.1:1/v1"], "nothing to evaluate on"),
        (
            ["--instructions", "{files}/instructions.json"],
            "a judge needs --instructions, --judge-url and --judge-model",
        ),
        (
            ["--instructions", "x", "--judge-url", "y", "--judge-model", "z", "--judge-key", "GPTFAST_NO_SUCH"],
            "--judge-key names the environment variable 'GPTFAST_NO_SUCH', which is not set",
        ),
        (["--instructions", "{files}/instructions.json", "--judge-url", "y", "--judge-model", "z"], "is no address"),
    ],
)
def test_bad_input_is_one_line(folder, files, capsys, flags: list[str], message: str) -> None:
    assert run(folder, *(flag.format(files=files) for flag in flags)) == 2
    said = capsys.readouterr()
    error = said.err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error and not said.out  # before anything has run


def test_the_command_is_known_and_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, gptfast.evaluate.cli; print([m for m in ('torch', 'numpy', 'fastapi') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert gptfast.cli.COMMANDS["evaluate"][0] == "gptfast.evaluate.cli"

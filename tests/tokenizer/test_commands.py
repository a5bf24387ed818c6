"""`gptfast tokenizer train|encode|decode|count|bench`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from tokenizers import Tokenizer

from gptfast import cli, extension
from gptfast.tokenizer import END_OF_TEXT, get_encoding

TEXT = f"The first line,\nand 東京 — naïve.\r\n\n{END_OF_TEXT}no line break at the end"

pytestmark = pytest.mark.usefixtures("gpt2_vocabulary")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    return path


def run(*arguments: object) -> int:
    return cli.main(["tokenizer", *map(str, arguments)])


def test_encode_prints_the_ids_of_each_line(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = tiktoken.get_encoding("cl100k_base")
    assert run("encode", text, "--encoding", "cl100k_base") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [list(map(int, line.split())) for line in lines] == [
        theirs.encode(line, allowed_special="all") for line in TEXT.splitlines(keepends=True)
    ]
    assert run("encode", text, "--plain") == 0
    assert "50256" not in capsys.readouterr().out.split()


def test_encode_and_decode_files(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids, back = tmp_path / "ids.npy", tmp_path / "back.txt"
    assert run("encode", text, "--out", ids) == 0
    expected = tiktoken.get_encoding("gpt2").encode(TEXT, allowed_special="all")
    assert np.load(ids).tolist() == expected
    assert capsys.readouterr().out == f"{ids}: {len(expected)} tokens, uint16\n"
    assert run("decode", ids, "--out", back) == 0
    assert back.read_bytes() == TEXT.encode()


def test_a_pipe_gives_back_the_text() -> None:
    command = f"{sys.executable} -m gptfast.cli tokenizer"
    pipe = f"{command} encode | {command} decode"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", pipe], input=TEXT.encode(), capture_output=True)
    assert ran.stdout == TEXT.encode() and ran.stderr == b""


def test_count(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": "hello world"}) + "\n")
    assert run("count", tmp_path, "--encoding", "gpt2", "bytes") == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    parts = TEXT.split(END_OF_TEXT)
    size = sum(len(part.rstrip("\n").encode()) + part.endswith("\n\n") for part in parts)
    tokens = sum(
        len(tiktoken.get_encoding("gpt2").encode(part[: -1 if part.endswith("\n") else None])) for part in parts
    )
    assert printed[0] == ["bytes", "gpt2", "bytes"]
    assert printed[1][1:] == [f"{size}", f"{tokens}", f"{size}"] and printed[2][1:] == ["11", "2", "11"]


def test_bench_measures_peers_too(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", text, "--rounds", 2, "--threads", 2) == 0
    printed = capsys.readouterr().out
    tokens = f"{len(tiktoken.get_encoding('gpt2').encode_ordinary(TEXT)):,}"
    for name in ("gptfast, 1 thread", "gptfast, 2 threads", "gptfast, to a list", "gptfast, decode", "tiktoken"):
        assert next(line for line in printed.splitlines() if name in line).split()[-2] == tokens
    assert "2 rounds in turns" in printed


@pytest.mark.parametrize("suffix", ["json", "tiktoken"])
def test_train(text: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not hasattr(extension.core(), "train_bpe"):
        pytest.skip("gptfast._core was built without training")
    (tmp_path / "train.txt").write_text("the cat sat on the mat and the dog sat on the log\n" * 20)
    out = tmp_path / f"own.{suffix}"
    assert (
        run(
            "train",
            tmp_path / "train.txt",
            "--out",
            out,
            "--vocab-size",
            270,
            "--pattern",
            "cl100k",
            "--special",
            "<s>",
        )
        == 0
    )
    assert capsys.readouterr().out.startswith(f"{out}: 270 tokens, ")
    encoding = get_encoding(out)
    sample = "the cat and the dog<s>"
    ids = encoding.encode(sample, allowed_special="all")
    assert encoding.n_vocab == 270 and ids[-1] == 269 and len(ids) < len(sample) // 2
    if suffix == "json":
        assert Tokenizer.from_file(str(out)).encode(sample).ids == ids
    else:
        ranks = tiktoken.load.load_tiktoken_bpe(str(out))
        theirs = tiktoken.Encoding("own", pat_str=encoding._pat_str, mergeable_ranks=ranks, special_tokens={"<s>": 269})
        assert theirs.encode(sample, allowed_special="all") == ids


def test_mistakes_are_one_line(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.txt").write_bytes(b"good\n\xff bad")
    (tmp_path / "ids.txt").write_text("15 16\n17 x\n")
    (tmp_path / "large.txt").write_text("15 50257\n")
    (tmp_path / "negative.txt").write_text("-1\n")
    np.save(tmp_path / "floats.npy", np.zeros(3))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty.npy").touch()
    (tmp_path / "folder.json").mkdir()
    with open(tmp_path / "archive.npy", "wb") as file:
        np.savez(file, np.zeros(3))
    for arguments, message in [
        (["encode", tmp_path / "absent.txt"], "cannot read"),
        (["encode", tmp_path / "bad.txt"], "bad.txt is not UTF-8 at byte 5 "),
        (["count", tmp_path / "bad.txt"], "invalid start byte; convert it to UTF-8\n"),
        (["decode", tmp_path / "empty.npy"], "cannot read"),
        (["decode", tmp_path / "archive.npy"], "is an archive of arrays"),
        (["train", text, "--out", tmp_path / "absent/x.json"], "there is no folder"),
        (["train", text, "--out", tmp_path / "folder.json"], "it is a folder"),
        (["train", text, "--out", tmp_path / "x.json", "--pattern", "^a|."], "cannot save"),
        (["train", text, "--out", tmp_path / "x.json", "--pattern", "("], "cannot be used"),
        (["train", text, "--out", tmp_path / "x.json", "--vocab-size", "9" * 23], "it must be at most"),
        (["encode", tmp_path / "bad.txt", "--out", tmp_path / "x.npy"], "bad.txt is not UTF-8 at byte 5"),
        (["encode", "--out", tmp_path / "x.npy"], "--out needs a file to read"),
        (["encode", text, "--encoding", "gpt3"], "did you mean 'gpt2'"),
        (["encode", text, "--threads", 0], "num_threads is 0; it must be at least 1"),
        (["decode", tmp_path / "ids.txt"], "ids.txt, line 2 holds something that is no id"),
        (["decode", tmp_path / "large.txt"], "large.txt holds an id that 'gpt2' does not have"),
        (["decode", tmp_path / "negative.txt"], "negative.txt holds an id that 'gpt2' does not have"),
        (["decode", tmp_path / "floats.npy"], "holds float64 (3,), not one row of ids"),
        (["count", tmp_path / "absent.txt"], "no such file or folder"),
        (["train", text, "--out", "x.bin"], "--out x.bin must end in .json or .tiktoken"),
        (["bench", tmp_path / "absent.txt"], "cannot read"),
        (["bench", tmp_path / "empty.txt"], "nothing to measure"),
    ]:
        assert run(*arguments) == 2, arguments
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1, printed.err
    assert not (tmp_path / "x.npy").exists()


def test_a_byte_order_mark_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfhello\n")
    expected = tiktoken.get_encoding("gpt2").encode("\ufeffhello\n")
    assert get_encoding("gpt2").encode_file(path).tolist() == expected
    assert run("encode", path) == 0
    assert capsys.readouterr().out.split() == [str(i) for i in expected]
    assert run("count", path) == 0
    assert capsys.readouterr().out.split()[-3:-1] == ["9", str(len(expected))]


def test_training_does_not_begin_where_it_could_not_be_saved(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptfast.tokenizer.cli.Encoding.train", lambda *a, **k: pytest.fail("learnt"))
    assert run("train", text, "--out", tmp_path / "absent/x.json") == 2
    assert run("train", text, "--out", tmp_path / "x.json", "--pattern", "a$|.") == 2

"""`gptfast data prepare`: what is written, the validation split, and what bad input says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from gptfast import cli
from gptfast.data import open_tokens, readers
from gptfast.data.prepare import PrepareConfig, prepare
from gptfast.errors import GptfastError
from gptfast.tokenizer import Encoding, get_encoding


def run(out: Path, *inputs: Path, **options) -> dict:
    return prepare(PrepareConfig(tuple(map(str, inputs)), str(out), **options))


def tokens_of(out: Path, split: str = "train") -> list[int]:
    tokens = open_tokens(out, split)
    return tokens.read(0, len(tokens)).tolist()


def documents_of(out: Path, split: str = "train") -> list[str]:
    """Decoded with tiktoken or as bytes, cut at the recorded starts."""
    tokens = open_tokens(out, split)
    bounds = [*tokens.documents.tolist(), len(tokens)]
    texts = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        ids = tokens.read(start, end - start).tolist()
        if tokens.encoding_name == "bytes":
            texts.append(bytes(i for i in ids if i < 256).decode() + "<|endoftext|>" * ids.count(256))
        else:
            texts.append(tiktoken.get_encoding(tokens.encoding_name).decode(ids))
    return texts


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_tinyshakespeare_is_split_as_published(tmp_path: Path, shared_data, gpt2_vocabulary) -> None:
    manifest = run(tmp_path / "out", shared_data / "shakespeare/tinyshakespeare.txt")
    totals = {split: total["tokens"] for split, total in manifest["splits"].items()}
    assert totals == {"train": 301_966, "val": 36_059 + 1}  # the text ends with an end-of-text
    text = (shared_data / "shakespeare/tinyshakespeare.txt").read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    gpt2 = tiktoken.get_encoding("gpt2")
    assert tokens_of(tmp_path / "out") == gpt2.encode_ordinary(text[:cut])
    assert tokens_of(tmp_path / "out", "val") == [*gpt2.encode_ordinary(text[cut:]), 50256]


def test_novels_are_counted_as_published(tmp_path: Path, shared_data, gpt2_vocabulary) -> None:
    path = shared_data / "novels/novels_val.txt.xz"
    manifest = run(tmp_path / "out", path, val_fraction=0)
    assert list(manifest["splits"]) == ["train"]
    assert manifest["splits"]["train"]["tokens"] == 609_980  # each separator is one token, with its line breaks
    assert manifest["splits"]["train"]["documents"] == 6
    whole = readers.lzma.open(path, "rt", encoding="utf-8", newline="").read()
    expected = tiktoken.get_encoding("gpt2").encode(
        whole.replace("\n<|endoftext|>\n", "<|endoftext|>"), allowed_special="all"
    )
    assert tokens_of(tmp_path / "out") == expected


@pytest.mark.parametrize("name, dtype", [("gpt2", np.uint16), ("cl100k_base", np.uint32), ("bytes", np.uint16)])
def test_what_is_on_disk(tmp_path: Path, gpt2_vocabulary, name: str, dtype: type) -> None:
    texts = [f"document {i} 東京\n" * (i % 7 + 1) for i in range(40_000)]
    out = tmp_path / "out"
    manifest = run(out, write_jsonl(tmp_path / "in.jsonl", texts), encoding=name, shard_tokens=150_000)
    assert manifest == json.loads((out / "manifest.json").read_text())
    named = {"manifest.json"}
    for split, total in manifest["splits"].items():
        assert len(total["shards"]) > 1 or split == "val"
        for shard in total["shards"]:
            tokens = np.load(out / shard["file"], mmap_mode="r")
            starts = np.load(out / shard["documents_file"])
            assert tokens.dtype == dtype and tokens.shape == (shard["tokens"],)
            assert starts.dtype == np.int64 and starts.shape == (shard["documents"],)
            assert starts[0] == 0 and (np.diff(starts) > 0).all()
            for file, digest in (("file", "sha256"), ("documents_file", "documents_sha256")):
                assert hashlib.sha256((out / shard[file]).read_bytes()).hexdigest() == shard[digest]
                named.add(shard[file])
        assert total["tokens"] == len(open_tokens(out, split)) == sum(s["tokens"] for s in total["shards"])
        assert total["documents"] == len(open_tokens(out, split).documents)
    assert {path.name for path in out.iterdir()} == named
    assert sum(total["text_bytes"] for total in manifest["splits"].values()) == sum(len(t.encode()) for t in texts)
    train, val = documents_of(out), documents_of(out, "val")
    assert [len(train), len(val)] == [36_000, 4_000]
    ended = [text + "<|endoftext|>" for text in texts]
    chosen = iter(val)
    groups = [ended[i : i + 10] for i in range(0, len(ended), 10)]
    assert train == [text for group in groups for text in _without(group, next(chosen))]
    encoding = manifest["encoding"]
    if name != "bytes":
        theirs = tiktoken.get_encoding(name)
        assert (encoding["n_vocab"], encoding["eot_token"]) == (theirs.n_vocab, theirs.eot_token)
        assert tokens_of(out, "val")[:200] == theirs.encode("".join(val), allowed_special="all")[:200]


def _without(group: list[str], one: str) -> list[str]:
    rest = list(group)
    rest.remove(one)  # exactly one of the group, else ValueError
    return rest


def test_the_seed_chooses_the_validation_documents(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [f"number {i}" for i in range(200)])
    for name, options in {
        "a": {"seed": 1},
        "b": {"seed": 1, "workers": 1},
        "c": {"seed": 2},
        "d": {"val_fraction": 0.5},
    }.items():
        run(tmp_path / name, source, encoding="bytes", **options)
    a, b, c, d = (documents_of(tmp_path / name, "val") for name in "abcd")
    assert a == b != c and len(a) == len(c) == 20 and len(d) == 100
    places = {int(text.split()[1].removesuffix("<|endoftext|>")) % 10 for text in a}
    assert len(places) > 3  # not always the same place in a group


def test_few_documents_are_each_cut(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(readers, "PIECE_CHARS", 7)
    monkeypatch.setattr(readers, "LONGEST_PIECE_CHARS", 7)
    texts = ["0123456789" * 3, "é東" * 10, "z"]
    run(tmp_path / "out", write_jsonl(tmp_path / "in.jsonl", texts), encoding="bytes", val_fraction=0.25)
    assert documents_of(tmp_path / "out") == [texts[0][:22], texts[1][:15]]
    assert documents_of(tmp_path / "out", "val") == [
        text + "<|endoftext|>" for text in (texts[0][22:], texts[1][15:], "z")
    ]


def test_validation_input_of_its_own(tmp_path: Path) -> None:
    a, b = write_jsonl(tmp_path / "a.jsonl", ["one", "two"]), write_jsonl(tmp_path / "b.jsonl", ["three"])
    run(tmp_path / "out", a, val_input=(str(b),), encoding="bytes")
    assert documents_of(tmp_path / "out") == ["one<|endoftext|>", "two<|endoftext|>"]
    assert documents_of(tmp_path / "out", "val") == ["three<|endoftext|>"]
    with pytest.raises(GptfastError, match="a.jsonl is both a training and a validation input"):
        run(tmp_path / "other", a, val_input=(str(tmp_path),))


def test_a_large_text_is_that_of_the_tokenizer(tmp_path: Path, shared_data, gpt2_vocabulary) -> None:
    """One document over many units and shards, in cl100k_base."""
    text = readers.lzma.open(shared_data / "text/multilingual.txt.xz", "rt", encoding="utf-8", newline="").read()
    (tmp_path / "in.txt").write_bytes(text.encode())
    manifest = run(tmp_path / "out", tmp_path / "in.txt", encoding="cl100k_base", val_fraction=0, shard_tokens=300_000)
    assert manifest["splits"]["train"]["documents"] == 1
    expected = tiktoken.get_encoding("cl100k_base").encode_ordinary(text)
    assert tokens_of(tmp_path / "out") == [*expected, 100257]
    assert len(list((tmp_path / "out").glob("train-*.docs.npy"))) > 2
    assert open_tokens(tmp_path / "out").documents.tolist() == [0]


def test_invalid_utf8_is_refused_or_replaced(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"good \xff bad")
    with pytest.raises(GptfastError, match="in.txt is not UTF-8 at byte 5"):
        run(tmp_path / "out", tmp_path / "in.txt", encoding="bytes", val_fraction=0)
    assert not (tmp_path / "out").exists()
    run(tmp_path / "out", tmp_path / "in.txt", encoding="bytes", val_fraction=0, invalid_utf8="replace")
    assert documents_of(tmp_path / "out") == ["good \ufffd bad<|endoftext|>"]


def test_bad_settings_and_empty_input_leave_no_folder(tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "good.jsonl", ["text"] * 20)
    empty = [tmp_path / "empty.txt", tmp_path / "blank.txt", write_jsonl(tmp_path / "blank.jsonl", ["", " "])]
    empty[0].touch()
    empty[1].write_text(" \n<|endoftext|>\n")
    (tmp_path / "a.txt").write_text("a")
    out = tmp_path / "out"
    for inputs, options, message in [
        (empty[:1], {}, "no text in .*empty.txt"),
        (empty, {}, "no text in .*empty.txt and 2 more"),
        ([good], {"val_input": (str(empty[1]),)}, "no text in .*blank.txt"),
        ([tmp_path / "absent.txt"], {}, "no such file or folder"),
        ([good], {"encoding": "gpt3"}, "unknown tokenizer 'gpt3'; did you mean 'gpt2'"),
        ([good], {"val_fraction": 0.7}, "--val-fraction 0.7 must be between 0 and 0.5"),
        ([good], {"val_fraction": float("nan")}, "--val-fraction nan"),
        ([good], {"shard_tokens": 0}, "--shard-tokens must be at least 1"),
        ([good], {"workers": 0}, "--workers must be at least 1"),
        ([tmp_path / "a.txt"], {}, "too short to give 0.1 of it to validation"),
    ]:
        with pytest.raises(GptfastError, match=message):
            run(out, *inputs, **({"encoding": "bytes"} | options))
        assert not out.exists()


def test_a_vocabulary_of_ones_own_travels_with_its_tokens(tmp_path: Path) -> None:
    ranks = {bytes([i]): i for i in range(256)} | {b"te": 256, b"tex": 257, b"text": 258}
    settings = {"pat_str": r"\p{L}+|[^\p{L}]", "mergeable_ranks": ranks}
    Encoding("own", special_tokens={"<|endoftext|>": 259}, **settings).save(tmp_path / "own.json")
    source = write_jsonl(tmp_path / "in.jsonl", ["text, text"] * 20)
    manifest = run(tmp_path / "out", source, encoding=str(tmp_path / "own.json"), val_fraction=0)
    assert manifest["encoding"]["name"] == "tokenizer.json" and manifest["encoding"]["n_vocab"] == 260
    (tmp_path / "own.json").unlink()
    (tmp_path / "out").rename(tmp_path / "moved")
    tokens = open_tokens(tmp_path / "moved")
    assert tokens.read(0, len(tokens)).tolist() == [258, 44, 32, 258, 259] * 20
    assert get_encoding(tokens.encoding_name).decode([258]) == "text"

    Encoding("own", special_tokens={}, **settings).save(tmp_path / "no-end.json")
    with pytest.raises(GptfastError, match="has no special token <|endoftext|> to end documents with"):
        run(tmp_path / "new", source, encoding=str(tmp_path / "no-end.json"))
    with pytest.raises(GptfastError, match="no vocabulary at"):
        run(tmp_path / "new", source, encoding=str(tmp_path / "absent.json"))
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ["text"] * 20)
    out = tmp_path / "out"
    run(out, source, encoding="bytes")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(GptfastError, match="out is not empty"):
        run(out, source, encoding="bytes")
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.doc").touch()
    with pytest.raises(GptfastError, match="foreign is not empty"):
        run(tmp_path / "foreign", source, encoding="bytes")
    with pytest.raises(GptfastError, match="in.jsonl is a file"):
        run(source, source, encoding="bytes")


def test_the_command_prints_what_it_made(tmp_path: Path, capsys) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ["text"] * 20)
    command = ["data", "prepare", str(source), "--out", str(tmp_path / "out"), "--encoding", "bytes"]
    assert cli.main([*command, "--val-fraction", "0.2"]) == 0
    printed = capsys.readouterr().out
    assert "train: 80 tokens in 16 documents" in printed and "val: 20 tokens in 4 documents" in printed
    assert cli.main(command) == 2  # again: the folder is full now
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'out'} is not empty; name a new folder, or remove this one first\n"
    )


def test_a_pattern_without_places_to_cut_gets_whole_documents(tmp_path: Path, capsys) -> None:
    text = "a b c. " * 60_000
    pattern = r"[\s\S]{1,7}"
    trained = Encoding.train(["a b c a b c a b. a b c" * 50], 290, pattern=pattern)
    trained.save(tmp_path / "m.tiktoken")
    (tmp_path / "a.txt").write_text(text)
    ranks = tiktoken.load.load_tiktoken_bpe(str(tmp_path / "m.tiktoken"))
    theirs = tiktoken.Encoding("m", pat_str=pattern, mergeable_ranks=ranks, special_tokens=trained._special_tokens)
    expected = theirs.encode_ordinary(text)
    run(tmp_path / "out", tmp_path / "a.txt", encoding=str(tmp_path / "m.tiktoken"), val_fraction=0)
    assert tokens_of(tmp_path / "out") == [*expected, trained.eot_token]
    assert cli.main(["tokenizer", "count", str(tmp_path / "a.txt"), "--encoding", str(tmp_path / "m.tiktoken")]) == 0
    assert f" {len(expected):,} " in capsys.readouterr().out


def test_text_that_is_not_utf8_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(GptfastError, match="a.txt is not UTF-8 at byte 0: .*, or pass --invalid-utf8 replace"):
        run(tmp_path / "out", tmp_path / "a.txt", encoding="bytes")

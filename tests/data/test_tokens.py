"""Opening tokens: prepared folders, nanoGPT's and llm.c's files written here by numpy, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gptfast.data import TokenSet, open_tokens
from gptfast.data.prepare import PrepareConfig, prepare
from gptfast.errors import GptfastError

EOT = 50256
IDS = np.array([11, 12, EOT, 21, EOT, 31, 32, 33, EOT, 41], dtype=np.uint16)


def write_llmc(path: Path, ids: np.ndarray, magic: int = 20240520, version: int = 1, count: int | None = None) -> None:
    header = np.zeros(256, dtype=np.int32)
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + ids.astype(np.uint16).tobytes())


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Three documents in several shards: some continue a document, one begins where a document does."""
    source, out = tmp_path / "in.txt", tmp_path / "out"
    texts = ["x" * 400 + " y" * 150_000, "middle", "z " * 300_000]
    source.write_text("<|endoftext|>".join(texts))
    prepare(PrepareConfig((str(source),), str(out), encoding="bytes", val_fraction=0, shard_tokens=200_000))
    return out


def test_reads_across_shards(prepared: Path) -> None:
    tokens = open_tokens(prepared)
    whole = np.concatenate([np.load(file) for file in sorted(prepared.glob("train-0000?.npy"))]).astype(np.int64)
    assert len(list(prepared.glob("train-0000?.npy"))) >= 3
    assert len(tokens) == len(whole) and tokens.encoding_name == "bytes" and tokens.n_vocab == 257
    n = len(whole)
    for start, length in [(0, n), (0, 0), (n, 0), (5, 1), (262_000, 5_000), (100_000, 500_000), (n - 1, 1)]:
        part = tokens.read(start, length)
        assert part.dtype == np.int64 and np.array_equal(part, whole[start : start + length])
    for start, length in [(-1, 5), (n, 1), (n - 3, 4), (3, -1)]:
        with pytest.raises(IndexError):
            tokens.read(start, length)
    assert tokens.documents.tolist() == [0, *(np.flatnonzero(whole == 256)[:-1] + 1)]
    assert len(tokens.documents) == 3 and tokens.documents.dtype == np.int64


def test_damage_is_found_and_named(prepared: Path) -> None:
    for name in ("train-00001.npy", "train-00001.docs.npy"):
        file = prepared / name
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(GptfastError, match=rf"{name} is damaged: its sha256.*prepare the folder again"):
            open_tokens(prepared)
        open_tokens(prepared, verify=False)  # lengths are right
        file.write_bytes(good[:-8])
        with pytest.raises(GptfastError, match=rf"{name} is damaged"):
            open_tokens(prepared, verify=False)
        with open(file, "wb") as stream:
            np.save(stream, np.load(prepared / "train-00000.npy")[:77])
        with pytest.raises(GptfastError, match=rf"{name} holds uint16 \(77,\), but the manifest says"):
            open_tokens(prepared, verify=False)
        file.unlink()
        with pytest.raises(GptfastError, match=rf"{name} is missing"):
            open_tokens(prepared, verify=False)
        file.write_bytes(good)
    open_tokens(prepared)


def test_a_folder_of_another_format_or_unfinished(prepared: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    with pytest.raises(GptfastError, match=r"no 'val' split, only \['train'\]"):
        open_tokens(prepared, "val")
    (prepared / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(GptfastError, match="format version 99"):
        open_tokens(prepared)
    (prepared / "manifest.json").write_text("{")
    with pytest.raises(GptfastError, match="manifest.json is not valid JSON"):
        open_tokens(prepared)
    (prepared / "manifest.json").rename(prepared / "progress.json")
    with pytest.raises(GptfastError, match="left unfinished; repeat its"):
        open_tokens(prepared)


def test_fingerprint_follows_the_tokens(tmp_path: Path) -> None:
    prints = []
    for text, encoding in [("one two", "bytes"), ("one two", "bytes"), ("one twо", "bytes"), ("one two", "gpt2")]:
        source, out = tmp_path / "in.txt", tmp_path / f"out{len(prints)}"
        source.write_text(text)
        prepare(PrepareConfig((str(source),), str(out), encoding=encoding, val_fraction=0))
        prints.append(open_tokens(out).fingerprint)
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_nanogpt_files(tmp_path: Path) -> None:
    IDS.tofile(tmp_path / "train.bin")
    IDS[:3].tofile(tmp_path / "val.bin")
    for tokens in (open_tokens(tmp_path), open_tokens(tmp_path / "train.bin")):
        assert tokens.read(0, len(tokens)).tolist() == IDS.tolist()
        assert tokens.documents.tolist() == [0, 3, 5, 9]  # nanoGPT ends documents with end-of-text
        assert (tokens.encoding_name, tokens.n_vocab) == ("gpt2", 50257)
    assert len(open_tokens(tmp_path, "val")) == len(open_tokens(tmp_path / "val.bin", "val")) == 3
    assert open_tokens(tmp_path, "val").documents.tolist() == [0]
    assert open_tokens(tmp_path, "val").fingerprint != open_tokens(tmp_path).fingerprint
    for path, split in ((tmp_path / "train.bin", "val"), (tmp_path / "val.bin", "train")):
        with pytest.raises(GptfastError, match=f"asked for as the '{split}' split"):
            open_tokens(path, split)


def test_llmc_files(tmp_path: Path) -> None:
    starting = np.roll(IDS, 1)  # 41 11 12 EOT 21 ...
    starting[:2] = EOT, 11
    write_llmc(tmp_path / "tiny_train_000001.bin", starting[:6])
    write_llmc(tmp_path / "tiny_train_000002.bin", starting[6:])
    write_llmc(tmp_path / "tiny_val_000000.bin", IDS)
    for tokens in (open_tokens(tmp_path), open_tokens(tmp_path / "tiny_train_*.bin")):
        assert tokens.read(0, 10).tolist() == starting.tolist()
        assert tokens.documents.tolist() == [0, 3, 5, 9]  # llm.c begins documents with end-of-text
    assert open_tokens(tmp_path / "tiny_train_000001.bin").read(0, 6).tolist() == starting[:6].tolist()
    assert open_tokens(tmp_path, "val").read(0, 10).tolist() == IDS.tolist()


def test_llmc_files_that_are_damaged_or_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "x_train_0.bin"
    for options, message in [
        ({"count": 11}, "its header says 11 tokens"),
        ({"count": 9}, "its header says 9 tokens"),
        ({"version": 7}, "no llm.c shard of version 1"),
    ]:
        write_llmc(path, IDS, **options)
        with pytest.raises(GptfastError, match=rf"x_train_0\.bin.*{message}"):
            open_tokens(path)
    write_llmc(path, IDS)
    IDS.tofile(tmp_path / "x_train_1.bin")
    with pytest.raises(GptfastError, match=r"x_train_1\.bin is no llm.c shard"):
        open_tokens(tmp_path)


def test_paths_that_hold_no_tokens(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    (tmp_path / "empty.bin").touch()
    (tmp_path / "letters").mkdir()
    IDS.tofile(tmp_path / "letters/train.bin")
    (tmp_path / "letters/meta.pkl").touch()
    for path, message in [
        (tmp_path, r"has no manifest.json, train.bin or \*_train_\*.bin; make it with"),
        (tmp_path / "absent", "no such file or folder: .*absent"),
        (tmp_path / "text.txt", "text.txt is not prepared data"),
        (tmp_path / "odd.bin", "odd.bin has 3 bytes"),
        (tmp_path / "empty.bin", "empty.bin has 0 bytes"),
        (tmp_path / "letters", "character-level"),
    ]:
        with pytest.raises(GptfastError, match=message):
            open_tokens(path)


def test_a_token_set_in_memory() -> None:
    tokens = TokenSet.from_array(IDS, [0, 3])
    assert tokens.read(2, 3).tolist() == IDS[2:5].tolist() and tokens.documents.tolist() == [0, 3]
    assert tokens.fingerprint != TokenSet.from_array(IDS, [0, 4]).fingerprint

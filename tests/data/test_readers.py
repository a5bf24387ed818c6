"""Files to documents: formats, compressions, where text is cut, and what bad files say."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import lzma
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import tiktoken
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptfast.data import readers
from gptfast.data.readers import find_inputs, read_pieces
from gptfast.errors import GptfastError

COMPRESS = {
    ".bz2": bz2.compress,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def documents(*paths: Path, **options) -> list[str]:
    texts = [""]
    for piece in read_pieces(paths, **options):
        texts[-1] += piece.text
        if piece.ends:
            texts.append("")
    assert texts.pop() == "", "the last document did not end"
    return texts


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("format", ["txt", "jsonl", "parquet"])
def test_every_format_in_every_compression(tmp_path: Path, format: str, suffix: str) -> None:
    texts = ["first 東京\t", "\nsecond\r\n\r\n", "third " * 100_000 + "\n"]
    plain = tmp_path / f"plain.{format}"
    if format == "txt":
        plain.write_bytes("\n<|endoftext|>\n".join(texts).encode())
    elif format == "jsonl":
        plain.write_text("\n\n".join(json.dumps({"id": 1, "body": text}) for text in texts))
    else:
        pa.parquet.write_table(pa.table({"id": [1, 2, 3], "body": texts}), plain)
    path = tmp_path / f"data.{format}{suffix}"
    path.write_bytes(COMPRESS.get(suffix, bytes)(plain.read_bytes()))
    told = []
    assert documents(path, field="body", on_read=told.append) == texts
    assert sum(told) == path.stat().st_size


def test_lines_of_jsonl_are_parsed_each_for_itself(tmp_path: Path) -> None:
    """Though a block of them is parsed at once: lines that are whole only together are not."""
    path = tmp_path / "data.jsonl"
    good = '{"text": "a"}\n \n\t{"text": "b"} \r\n{"text": "\\ud83d\\ude00"}\n'
    path.write_bytes(good.encode())
    assert documents(path) == ["a", "b", "\U0001f600"]
    for lines, message in [
        (['{"text": "a"},{"text": "b"}'], "line 5 is not JSON"),
        (['{"text": "a", "x": [{"y": 1}', '{"y": 2}]}'], "line 5 is not JSON"),
        (['{"text": "a"},{"text": "b"}', '{"text": "a", "x": [{"y": 1}', '{"y": 2}]}'], "line 5 is not JSON"),
        (['{"text": "c"}', "[1]"], "line 6 has no text field 'text' \\(it is no object\\)"),
        (['{"text": "c"}', '{"txt": 1}'], "line 6 has no text field 'text' \\(it has 'txt'\\)"),
        (['{"text": "\\ud83d"}'], "not UTF-8 in line 5"),
    ]:
        path.write_bytes((good + "\n".join(lines)).encode())
        with pytest.raises(GptfastError, match=message):
            documents(path)


def test_several_zstd_and_gzip_frames(tmp_path: Path) -> None:
    for suffix in (".zst", ".gz", ".xz"):
        path = tmp_path / f"data.txt{suffix}"
        path.write_bytes(COMPRESS[suffix](b"one ") + COMPRESS[suffix](b"two"))
        assert documents(path) == ["one two"]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_compressed_file_cut_short_is_no_end_of_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"".join(b"%d " % i for i in range(200_000)))[:-20])
    with pytest.raises(GptfastError, match=rf"data\.txt{suffix}.*damaged or cut short"):
        documents(path)
    path.write_bytes(b"not compressed at all")
    with pytest.raises(GptfastError, match=rf"cannot read .*data\.txt{suffix}"):
        documents(path)


def test_inputs_are_files_folders_and_globs_in_order(tmp_path: Path) -> None:
    names = ["b.txt", "a.jsonl", "sub/c.parquet", "sub/d.txt.gz", "sub/readme.md", ".hidden.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in find_inputs([str(tmp_path)])] == [
        "a.jsonl", "b.txt", "sub/c.parquet", "sub/d.txt.gz",
    ]  # fmt: skip
    assert [p.name for p in find_inputs([f"{tmp_path}/**/*.txt*", f"{tmp_path}/b.txt"])] == ["b.txt", "d.txt.gz"]


def test_inputs_that_do_not_exist_or_fit(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    for bad, message in [
        ([], "no input"),
        ([str(tmp_path / "absent.txt")], "no such file or folder: .*absent.txt"),
        ([str(tmp_path / "notes.md")], r"notes.md does not end in .txt, .jsonl, .parquet"),
        ([str(tmp_path)], "matches no file"),
        ([str(tmp_path / "*.txt")], "matches no file"),
    ]:
        with pytest.raises(GptfastError, match=message):
            find_inputs(bad)


@settings(deadline=None)
@given(st.lists(st.text(alphabet="a \n\r<|endoftxé東", max_size=30), max_size=5), st.integers(1, 7))
@example(["a", "\r\nb"], 1)
def test_separators_are_found_however_the_file_is_read(tmp_path_factory, texts: list[str], block: int) -> None:
    path = tmp_path_factory.mktemp("separators") / "data.txt"
    whole = "<|endoftext|>".join(texts)
    path.write_bytes(whole.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK_BYTES", block)
        patch.setattr(readers, "PIECE_CHARS", 4)
        patch.setattr(readers, "LONGEST_PIECE_CHARS", 8)
        found = documents(path)
        assert all(len(piece.text) <= 8 + 1 for piece in read_pieces([path]))
    expected = re.split(r"(?:\r?\n)?<\|endoftext\|>(?:\r?\n)?", whole)
    assert [text for text in found if text.strip()] == [text for text in expected if text.strip()]


def test_pieces_do_not_depend_on_how_the_file_is_read(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "data.txt"
    path.write_text("".join(f"word{i}{' ' * (i % 3)}{chr(10) * (i % 5 == 0)}" for i in range(3000)))
    monkeypatch.setattr(readers, "PIECE_CHARS", 100)
    expected = list(read_pieces([path]))
    assert len(expected) > 50
    monkeypatch.setattr(readers, "BLOCK_BYTES", 37)
    assert list(read_pieces([path])) == expected


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base"])
@pytest.mark.parametrize("kind", ["novels", "text/code", "text/multilingual", "text/html"])
def test_tokens_of_pieces_are_those_of_the_whole_text(shared_data, gpt2_vocabulary, monkeypatch, name, kind) -> None:
    path = shared_data / ("novels/novels_val.txt.xz" if kind == "novels" else f"{kind}.txt.xz")
    monkeypatch.setattr(readers, "PIECE_CHARS", 300)
    encoding = tiktoken.get_encoding(name)
    pieces = []
    for piece in itertools.islice(read_pieces([path]), 1500):
        pieces.append(piece.text)
        if piece.ends:
            break
    assert len(pieces) > 500
    whole = encoding.encode_ordinary("".join(pieces))
    assert [token for piece in pieces for token in encoding.encode_ordinary(piece)] == whole


@settings(deadline=None, max_examples=500)
@given(st.text(alphabet="ab1.,'/ \n\r\t\u00a0\u3000\x1c東é\u0301🙂", max_size=60))
def test_no_safe_cut_changes_tokens(gpt2_vocabulary, text: str) -> None:
    for name in ("gpt2", "cl100k_base", "o200k_base"):
        encoding = tiktoken.get_encoding(name)
        whole = encoding.encode_ordinary(text)
        for cut in readers.SAFE_CUT.finditer(text):
            left, right = text[: cut.start()], text[cut.start() :]
            assert encoding.encode_ordinary(left) + encoding.encode_ordinary(right) == whole, (name, left, right)


def test_a_document_may_end_in_blanks_after_a_cut(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(readers, "PIECE_CHARS", 4)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1)
    (tmp_path / "a.txt").write_text("abcd" + " " * 20 + "<|endoftext|>next")
    assert documents(tmp_path / "a.txt") == ["abcd" + " " * 20, "next"]


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfmark")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "mark"}')
    assert documents(tmp_path / "a.txt", tmp_path / "b.jsonl") == ["mark", "mark"]


@pytest.mark.parametrize("prefix", [10, readers.BLOCK_BYTES - 1, readers.BLOCK_BYTES + 5])
def test_bytes_that_are_not_utf8(tmp_path: Path, prefix: int) -> None:
    path = tmp_path / "data.txt.gz"
    bad = b"x" * prefix + b"\xe6\x9d"  # a character without its last byte ...
    path.write_bytes(gzip.compress(bad + b"!"))
    with pytest.raises(GptfastError, match=rf"data\.txt\.gz is not UTF-8 at byte {prefix:,}: .*convert it to UTF-8$"):
        documents(path)
    assert documents(path, replace_invalid=True) == ["x" * prefix + "\ufffd!"]
    path.write_bytes(gzip.compress(bad))  # ... also at the very end
    with pytest.raises(GptfastError, match=rf"at byte {prefix:,}"):
        documents(path)


def test_jsonl_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = b'{"text": "good"}\n'
    for line, message in [
        (b'{"text": "cut', "line 3 is not JSON"),
        (b'{"body": "x"}', r"line 3 has no text field 'text' \(it has 'body'\); name it with --field"),
        (b'{"text": 5}', "line 3 has no text field 'text'"),
        (b'["text"]', "line 3 has no text field .*no object"),
        (b'{"text": "\xff"}', "not UTF-8 in line 3, byte 10 of it"),
        (b'{"text": "\\ud800"}', "not UTF-8 in line 3"),
    ]:
        path.write_bytes(good + b"\n" + line + b"\n")
        with pytest.raises(GptfastError, match=message):
            documents(path)
    assert documents(path, replace_invalid=True) == ["good", "\ufffd"]


def test_parquet_errors_name_the_column_and_row(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pa.parquet.write_table(pa.table({"text": ["a", None], "number": [1, 2]}), path)
    with pytest.raises(GptfastError, match="row 2 has no text in column 'text'"):
        documents(path)
    with pytest.raises(GptfastError, match="no column 'body', only 'text', 'number'; name it with --field"):
        documents(path, field="body")
    with pytest.raises(GptfastError, match="column 'number'"):
        documents(path, field="number")
    pa.parquet.write_table(pa.table({"text": [b"a", b"\xff"]}), path)
    with pytest.raises(GptfastError, match="not UTF-8 in row 2"):
        documents(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(GptfastError, match="cannot read .*data.parquet"):
        documents(path)


def test_text_without_a_safe_place_is_cut_anyway(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(readers, "PIECE_CHARS", 100)
    monkeypatch.setattr(readers, "LONGEST_PIECE_CHARS", 1000)
    path = tmp_path / "data.txt"
    path.write_text("東" * 2500)
    assert [len(piece.text) for piece in read_pieces([path])] == [1000, 1000, 500]


def test_documents_that_must_not_be_cut_come_whole(tmp_path: Path) -> None:
    texts = ["a b c. " * 60_000, "x", "d e f, " * 60_000]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(texts))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    for name in ("a.txt", "b.jsonl"):
        assert len(list(read_pieces([tmp_path / name]))) > 3
        assert list(read_pieces([tmp_path / name], can_cut=False)) == [(text, True) for text in texts]


def test_a_byte_order_mark_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello\n")
    assert documents(tmp_path / "a.txt") == ["hello\n"]
    assert documents(tmp_path / "a.txt", keep_bom=True) == ["\ufeffhello\n"]

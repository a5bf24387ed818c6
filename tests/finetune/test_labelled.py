"""Labelled text from tables, against csv, json and pyarrow as writers; balancing and splitting."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfast.errors import GptfastError
from gptfast.finetune.labelled import Labelled, read_labelled, read_texts

ROWS = [("ham", 'He said "hi", then left'), ("spam", "WIN £100\nnow"), ("ham", "tab\there")]


def write(path: Path, rows: list[tuple[Any, ...]], names: tuple[str, ...] | None = ("label", "text")) -> Path:
    if path.suffix == ".parquet":
        assert names is not None
        columns = list(zip(*rows, strict=True)) or [()] * len(names)
        pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, map(list, columns), strict=True))), path)
    elif path.suffix == ".jsonl":
        assert names is not None
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows), "utf-8")
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            quoting: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
            csv.writer(file, **quoting).writerows([*([names] if names else []), *rows])
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    said: list[str] = []
    data = read_labelled(write(tmp_path / f"data{suffix}", ROWS), say=said.append)
    assert data.texts == [text for _, text in ROWS]
    assert data.names == ["ham", "spam"] and data.labels.tolist() == [0, 1, 0]
    assert said == [f"data{suffix}: the text is in column 'text', the label in 'label'"]
    assert data.describe() == "3 texts (2 ham, 1 spam)"


def test_tsv_has_no_quotes_and_needs_no_header(tmp_path: Path) -> None:
    path = tmp_path / "sms.tsv.gz"
    path.write_bytes(gzip.compress(b'ham\t"Hi, she said\nspam\tWIN "now" or\nham\tbye\n'))
    said: list[str] = []
    data = read_labelled(path, say=said.append)
    assert data.texts == ['"Hi, she said', 'WIN "now" or', "bye"] and data.labels.tolist() == [0, 1, 0]
    assert "quotes are part of the text" in said[0] and "column 1 is the label, column 2 the text" in said[1]


def test_the_sms_collection(shared_data: Path) -> None:
    data = read_labelled(shared_data / "sms_spam" / "SMSSpamCollection.tsv")
    assert len(data) == 5574 and data.names == ["ham", "spam"] and data.counts.tolist() == [4827, 747]
    balanced = data.undersampled(123)
    assert balanced.counts.tolist() == [747, 747]
    assert [len(part) for part in balanced.split((0.7, 0.1, 0.2), 123)] == [1046, 150, 298]


def test_columns_by_name_and_number(tmp_path: Path) -> None:
    rows = [("1", "yes", "first"), ("2", "no", "second")]
    named = write(tmp_path / "named.csv", rows, ("id", "spam?", "words"))
    bare = write(tmp_path / "bare.csv", rows, None)
    for path, text, label in ((named, "words", "spam?"), (named, "words", "2"), (bare, "3", "2")):
        data = read_labelled(path, text, label)
        assert data.texts == ["first", "second"] and data.names == ["no", "yes"]
    # The other column of two, by one name; and a number that is also a value of the first row is a number.
    two = write(tmp_path / "two.csv", [("1", "a"), ("0", "b")], ("mark", "words"))
    assert read_labelled(two, text="words").names == ["0", "1"]
    assert read_labelled(write(tmp_path / "ones.csv", [("1", "a"), ("0", "b")], None), label="1").texts == ["a", "b"]


def test_numbers_that_are_alike_or_huge_have_one_order(tmp_path: Path) -> None:
    """Whatever order a set has in this process, and beyond the digits that Python makes an int of."""
    names = ["0" * n + "1" for n in range(7, -1, -1)]
    rows = [(name, "text") for name in [*reversed(names), "9" * 5000, "2"]]
    assert read_labelled(write(tmp_path / "data.jsonl", rows)).names == [*names, "2", "9" * 5000]


@pytest.mark.parametrize(
    ("values", "names"),
    [([10, 9, 9], ["9", "10"]), ([True, False, True], ["false", "true"]), (["b", "a", "c"], ["a", "b", "c"])],
)
def test_kinds_of_labels(tmp_path: Path, values: list[Any], names: list[str]) -> None:
    for suffix in (".jsonl", ".parquet"):
        rows = [(value, f"text {n}") for n, value in enumerate(values)]
        data = read_labelled(write(tmp_path / f"data{suffix}", rows))
        assert data.names == names
        assert [data.names[k] for k in data.labels] == [str(v).lower() for v in values]


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda x: x.strip()), min_size=2, max_size=8))
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back_from_csv(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    write(path, [(n % 2, text) for n, text in enumerate(texts)])
    assert read_labelled(path).texts == texts


BAD: list[tuple[str, list[tuple[Any, ...]], str]] = [
    ("one class", [("a", "x"), ("a", "y")], "every label is 'a'"),
    ("empty texts", [("a", "x"), ("b", " "), ("a", "")], r"(lines 3, 4|lines 2, 3|rows 2, 3): the text is empty"),
    ("missing labels", [("a", "x"), ("", "y"), ("b", "z")], r"(lines 3|lines 2|rows 2): the label is missing"),
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(("rows", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_rows(tmp_path: Path, suffix: str, rows: list[tuple[Any, ...]], message: str) -> None:
    with pytest.raises(GptfastError, match=message):
        read_labelled(write(tmp_path / f"data{suffix}", rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x"), (None, "y"), ("b", "z")], "lines 2: the label is missing"),
        ([("a", "x"), ("b", None), ("b", 7)], "lines 2, 3: the text is missing, or no text"),
        ([(1.5, "x"), (2.5, "y")], "lines 1, 2: a label must be"),
        ([(1, "x"), ("b", "y")], "some labels are int and some str"),
        ([(True, "x"), (0, "y")], "some labels are bool and some int"),
        ([], "has no rows"),
        ([("a", "x"), ("b", "y\ud83d"), ("c\ude00", "z")], "lines 2, 3: half of a surrogate pair"),
    ],
)
def test_bad_values(tmp_path: Path, rows: list[tuple[Any, ...]], message: str) -> None:
    with pytest.raises(GptfastError, match=message):
        read_labelled(write(tmp_path / "data.jsonl", rows))


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.csv", "label,text\na,x\nb,y\n", ("words", None), "no column 'words': its columns are 'label', 'text'"),
        ("a.csv", "a,x\nb,y\n", ("text", "label"), "no column 'text': it has no header, and columns 1 to 2"),
        ("a.csv", "a,x\nb,y\n", ("3", "1"), "no column '3'"),
        ("a.csv", "id,mark,words\n1,a,x\n", (None, None), "cannot tell the text from the label"),
        ("a.csv", "label,text\na,x\n", ("text", "text"), "cannot tell the text from the label"),
        ("a.csv", "label,text\na,x\nb,y,z\n", (None, None), "lines 3: not 2 columns"),
        ("a.csv", 'label,text\na,"x\nb,y\n', (None, None), "line 2: "),
        ("a.csv", "", (None, None), "no rows"),
        ("a.csv", "label,text\n", (None, None), "no rows"),
        ("a.csv", "label,text\na,\udcff\n", (None, None), "is not UTF-8"),
        ("a.jsonl", "{}\n[1]\n", (None, None), "lines 2: not a JSON object"),
        ("a.jsonl", '{"text": \n', (None, None), "line 1 is not JSON"),
        ("a.parquet", "PAR", (None, None), "cannot read"),
        ("a.txt", "a\n", (None, None), "does not end in .csv"),
    ],
)
def test_bad_files(
    tmp_path: Path, name: str, content: str, columns: tuple[str | None, str | None], message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(GptfastError, match=message):
        read_labelled(path, *columns)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(GptfastError, match="there is no file"):
        read_labelled(tmp_path / "absent.csv")


def labelled(*counts: int) -> Labelled:
    labels = np.repeat(np.arange(len(counts)), counts)
    return Labelled([f"{n}" for n in range(len(labels))], labels, [f"class {k}" for k in range(len(counts))])


def test_split_is_a_partition_in_proportion(tmp_path: Path) -> None:
    data = labelled(100, 30)
    parts = data.split((0.7, 0.1, 0.2), 5)
    assert [part.counts.tolist() for part in parts] == [[70, 21], [10, 3], [20, 6]]
    assert sorted(int(text) for part in parts for text in part.texts) == list(range(130))
    for part in parts:
        assert part.labels.tolist() == [data.labels[int(text)] for text in part.texts]
    assert [p.texts for p in parts] == [p.texts for p in data.split((0.7, 0.1, 0.2), 5)]
    assert parts[0].texts != data.split((0.7, 0.1, 0.2), 6)[0].texts
    assert len(set(parts[0].labels[:20])) == 2  # shuffled, not class by class


def test_a_split_needs_every_class_in_every_part() -> None:
    with pytest.raises(GptfastError, match="70% / 10% / 20%: one part would have no 'class 1', of which there are 3"):
        labelled(50, 3).split((0.7, 0.1, 0.2), 0)
    for shares in ((0.5, 0.2, 0.2), (1.2, -0.1, -0.1), (0.0, 0.5, 0.5)):
        with pytest.raises(GptfastError, match="shares must be at least 0"):
            labelled(50, 50).split(shares, 0)


def test_balance() -> None:
    data = labelled(40, 7, 13)
    balanced = data.undersampled(1)
    assert balanced.counts.tolist() == [7, 7, 7] and len(set(balanced.texts)) == 21
    assert balanced.labels.tolist() == [data.labels[int(text)] for text in balanced.texts]
    assert balanced.texts != data.undersampled(2).texts
    weights = data.class_weights()
    assert weights * data.counts == pytest.approx([20, 20, 20])  # every class weighs the same, a text 1 on average


@pytest.mark.parametrize(
    "make",
    [
        lambda p: write(p / "a.csv", [("one",), ("two",)], ("text",)),
        lambda p: write(p / "a.csv", [("one",), ("two",)], None),
        lambda p: write(p / "a.jsonl", [(1, "one"), (2, "two")], ("id", "text")),
        lambda p: write(p / "a.tsv", [("x", "one"), ("x", "two")], None),
    ],
)
def test_texts_without_labels(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    assert read_texts(make(tmp_path)) == ["one", "two"]


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\n")
    assert read_texts(tmp_path / "a.txt") == ["one", "two"]
    (tmp_path / "b.txt").write_text("\n")
    with pytest.raises(GptfastError, match="holds no text"):
        read_texts(tmp_path / "b.txt")

"""Tables of text on disk: .csv, .tsv, .jsonl and .parquet as rows of columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.readers import COMPRESSIONS, read_json_lines, read_text
from ..errors import GptfastError

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
TEXT_COLUMNS = ("text", "sentence", "message", "sms", "content", "review", "comment", "body", "document", "question")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic")
Say = Callable[[str], None]  # told, in a line, what was found and not asked for


class Table(NamedTuple):
    """names: of the columns, None for a file without a header. numbers: of each row in the file, in `unit`, from 1."""

    path: Path
    names: list[str] | None
    rows: list[Sequence[Any]]
    numbers: list[int]
    unit: str  # lines or rows

    @property
    def width(self) -> int:
        return len(self.names if self.names is not None else self.rows[0])

    def find(self, name: str | None, usual: Sequence[str]) -> int | None:
        """The place of the column `name`, or number `name` from 1; without a name, of the one with a `usual` name, or
        None. Raises GptfastError where there is none of that name.
        """
        names = self.names or []
        if name is None:
            places = [i for i, column in enumerate(names) if column.lower() in usual]
            return places[0] if len(places) == 1 else None
        if name in names:
            return names.index(name)
        if name.isdecimal() and 1 <= int(name) <= self.width:
            return int(name) - 1
        raise GptfastError(f"{self.path} has no column {name!r}: {self.describe()}")

    def describe(self) -> str:
        if self.names is not None:
            return f"its columns are {listed(map(repr, self.names), 10)}"
        first = listed((repr(str(value)[:30]) for value in self.rows[0]), 10)
        return f"it has no header, and columns 1 to {self.width} (the first row: {first})"

    def refuse(self, bad: Iterable[bool], what: str) -> None:
        """Raise GptfastError that names the rows that are `bad`, if any is."""
        found = [f"{number:,}" for number, is_bad in zip(self.numbers, bad, strict=True) if is_bad]
        if found:
            raise GptfastError(f"{self.path}, {self.unit} {listed(found, 5)}: {what}; mend or remove them")


def format_of(path: Path, formats: Sequence[str] = FORMATS) -> str:
    suffix = (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix.lower()
    if suffix not in formats:
        raise GptfastError(f"{path} does not end in {', '.join(formats)} (or those with {'/'.join(COMPRESSIONS)})")
    return suffix


def read_table(path: Path, wanted: Sequence[str | None], say: Say) -> Table:
    """The whole table; `wanted` are the columns that were asked for. Raises GptfastError for one without rows."""
    suffix = format_of(path)
    if not path.is_file():
        raise GptfastError(f"there is no file {path}; check the path")
    if suffix == ".jsonl":
        table = _read_jsonl(path)
    elif suffix == ".parquet":
        table = _read_parquet(path)
    else:
        table = _read_csv(path, suffix == ".tsv", [name for name in wanted if name and not name.isdecimal()], say)
    if not table.rows:
        raise GptfastError(f"{path} has no rows")
    return table


def _read_csv(path: Path, is_tsv: bool, wanted: list[str], say: Say) -> Table:
    """The first row is a header where it has one of the `wanted` names or usual names for text and label."""
    text = read_text(path)
    format: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {"strict": True}
    rows: list[Sequence[str]] = []
    numbers = []
    begin = 1
    limit = csv.field_size_limit((1 << 31) - 1)  # the default refuses a text of more than 128 KiB
    try:
        reader = csv.reader(io.StringIO(text, newline=""), **format)
        for row in reader:
            if row:
                rows.append(row)
                numbers.append(begin)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise GptfastError(f"{path}, line {begin}: {error}; quote its fields, or save the table as .tsv") from None
    finally:
        csv.field_size_limit(limit)
    if is_tsv and '"' in text:
        say(f"{path.name}: quotes are part of the text, as usual in .tsv")
    table = Table(path, None, rows, numbers, "lines")
    if rows:
        table.refuse((len(row) != len(rows[0]) for row in rows), f"not {len(rows[0])} columns, as the first row has")
        first = [name.strip() for name in rows[0]]
        lower = {name.lower() for name in first}
        has_usual = bool(lower & set(TEXT_COLUMNS)) and (bool(lower & set(LABEL_COLUMNS)) or len(first) == 1)
        if has_usual or set(wanted) & set(first):
            return Table(path, first, rows[1:], numbers[1:], "lines")
    return table


def _read_jsonl(path: Path) -> Table:
    records = list(read_json_lines(path))
    numbers = [number for number, _ in records]
    Table(path, [], [], numbers, "lines").refuse((not isinstance(r, dict) for _, r in records), "not a JSON object")
    names = list(dict.fromkeys(name for _, record in records for name in record))
    return Table(path, names, [[record.get(name) for name in names] for _, record in records], numbers, "lines")


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise GptfastError(f"reading {path} needs the package pyarrow: pip install pyarrow") from None
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise GptfastError(f"cannot read {path}: {error}") from error
    rows: list[Sequence[Any]] = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return Table(path, table.column_names, rows, list(range(1, len(rows) + 1)), "rows")


def is_unicode(text: str) -> bool:
    """Whether a text is made of characters: in JSON, an escape may spell half of a surrogate pair, which is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def listed(values: Iterable[Any], n: int) -> str:
    """The first `n` of them, and how many more there are."""
    values = [str(value) for value in values]
    return ", ".join(values[:n]) + (f" and {len(values) - n:,} more" if len(values) > n else "")

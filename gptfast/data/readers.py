"""Files to documents: find the inputs, decompress, decode, and hand over text in pieces of bounded size."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import functools
import glob
import gzip
import itertools
import json
import lzma
import re
import secrets
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import GptfastError
from ..tokenizer import END_OF_TEXT
from ..tokenizer.streaming import SAFE_CUT

FORMATS = (".txt", ".jsonl", ".parquet")
OPENERS: dict[str, Any] = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}
COMPRESSIONS = (*OPENERS, ".zst")
BLOCK_BYTES = 1 << 18  # read at a time, after decompression
BOM = "\ufeff"
PIECE_CHARS = 1 << 18  # a piece ends at the first safe place from here on ...
LONGEST_PIECE_CHARS = 1 << 20  # ... or, in text without any, here

OnRead = Callable[[int], None]  # told the number of bytes just read from the file as it lies on disk
Reader = Callable[[Path, str, bool, OnRead], Iterator["Piece"]]


class NotUtf8(GptfastError):
    """Names the file and the place in it."""


class Piece(NamedTuple):
    """A stretch of one document, in order; `ends` on the document's last piece."""

    text: str
    ends: bool


def find_inputs(inputs: Sequence[str]) -> list[Path]:
    """The files that `inputs` (files, folders, globs) name, in a fixed order, each once. Raises GptfastError."""
    found: dict[Path, None] = {}
    for name in inputs:
        path = Path(name)
        if path.is_file():
            _format(path)
            matches = [path]
        elif path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.is_file() and _known(p))
        else:
            matches = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file() and _known(p))
            if not matches and not glob.has_magic(name):
                reason = " (it is something else)" if path.exists() else ""
                raise GptfastError(f"no such file or folder: {name}{reason}")
        if not matches:
            ends = f"{', '.join(FORMATS)} (or those with {'/'.join(COMPRESSIONS)})"
            raise GptfastError(f"{name} matches no file that ends in {ends}")
        found.update((match.resolve(), None) for match in matches)
    if not found:
        raise GptfastError("no input: name at least one file, folder or glob")
    return list(found)


def read_pieces(
    paths: Sequence[Path],
    field: str = "text",
    replace_invalid: bool = False,
    on_read: OnRead = lambda n: None,
    *,
    can_cut: bool = True,
    keep_bom: bool = False,
) -> Iterator[Piece]:
    """Every document that is not blank, of every file, in order, in pieces.

    Memory is bounded for .txt of any size; a record of .jsonl or .parquet must fit in memory. Not `can_cut`: every
    piece is a whole document, for a split pattern that may look across the places where text is cut otherwise.
    `keep_bom`: a byte order mark at the beginning of .txt is text. Raises GptfastError that names the file and the
    place in it.
    """
    for path in paths:
        read_txt = functools.partial(_read_txt, keep_bom=keep_bom)
        readers: dict[str, Reader] = {".txt": read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
        reader = readers[_format(path)]
        try:
            pieces = reader(path, field, replace_invalid, on_read)
            yield from pieces if can_cut else _joined(pieces)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise GptfastError(f"cannot read {path}: {error}; the file may be damaged or cut short") from error


def _known(path: Path) -> bool:
    try:
        _format(path)
    except GptfastError:
        return False
    return not path.name.startswith(".")


def _format(path: Path) -> str:
    name = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    if name.suffix not in FORMATS:
        raise GptfastError(f"{path} does not end in {', '.join(FORMATS)} (or those with {'/'.join(COMPRESSIONS)})")
    return name.suffix


def _blocks(path: Path, on_read: OnRead) -> Iterator[bytes]:
    """The file's content, decompressed."""
    if path.suffix == ".zst":
        yield from _zstd_blocks(path, on_read)
        return
    with open(path, "rb") as raw:
        opened: Any = OPENERS[path.suffix](raw) if path.suffix in OPENERS else raw
        told = 0
        while block := opened.read(BLOCK_BYTES):
            on_read(raw.tell() - told)
            told = raw.tell()
            yield block


def _zstd_blocks(path: Path, on_read: OnRead) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise GptfastError(f"reading {path} needs the package zstandard: pip install zstandard") from None
    # zstandard's stream reader takes a file that is cut short for one that has ended, so frames are followed here.
    frame = None
    try:
        with open(path, "rb") as raw:
            while data := raw.read(1 << 14):
                on_read(len(data))
                while data:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    if text := frame.decompress(data):
                        yield text
                    data = b""
                    if frame.eof:
                        data, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise GptfastError(f"cannot read {path}: {error}; the file may be damaged") from error
    if frame is not None:
        raise EOFError("the compressed file ended before its end marker")


def _decoded(path: Path, replace_invalid: bool, on_read: OnRead, keep_bom: bool) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace" if replace_invalid else "strict")
    offset = 0  # of the block at hand, in the decompressed stream
    begun = False
    for block in itertools.chain(_blocks(path, on_read), (b"",)):
        held = len(decoder.getstate()[0])  # bytes of an unfinished character, from earlier blocks
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error, f"at byte {offset - held + error.start:,}") from None
        offset += len(block)
        if text and not begun:
            begun, text = True, text if keep_bom else text.removeprefix(BOM)
        yield text


def _not_utf8(path: Path, error: UnicodeError, where: str) -> NotUtf8:
    return NotUtf8(f"{path} is not UTF-8 {where}: {getattr(error, 'reason', error)}; convert it to UTF-8")


def _decode_record(path: Path, record: bytes, replace_invalid: bool, where: str) -> str:
    try:
        return record.decode("utf-8", "replace" if replace_invalid else "strict")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error, f"{where}, byte {error.start:,} of it") from None


def _read_txt(path: Path, field: str, replace_invalid: bool, on_read: OnRead, keep_bom: bool) -> Iterator[Piece]:
    yield from _cut(_split_documents(_decoded(path, replace_invalid, on_read, keep_bom)))


def _read_jsonl(path: Path, field: str, replace_invalid: bool, on_read: OnRead) -> Iterator[Piece]:
    before = 0  # lines in earlier blocks
    for block in _whole_lines(_blocks(path, on_read)):
        try:
            text = block.decode("utf-8", "replace" if replace_invalid else "strict")
        except UnicodeDecodeError as error:
            number = before + block.count(b"\n", 0, error.start) + 1
            at = error.start - block.rfind(b"\n", 0, error.start) - 1
            raise _not_utf8(path, error, f"in line {number:,}, byte {at:,} of it") from None
        lines = (text if before else text.removeprefix(BOM)).split("\n")
        numbers = [number for number, line in enumerate(lines, before + 1) if line and not line.isspace()]
        records = _parse(path, [lines[number - before - 1] for number in numbers], numbers)
        before += len(lines) - 1
        # Only as an escape can JSON spell half of a surrogate pair, which is no character.
        may_have_surrogates = "\\u" in text
        for number, record in zip(numbers, records, strict=True):
            value = record.get(field) if isinstance(record, dict) else None
            if not isinstance(value, str):
                has = f"it has {', '.join(map(repr, record))}" if isinstance(record, dict) else "it is no object"
                raise GptfastError(f"{path}, line {number:,} has no text field {field!r} ({has}); name it with --field")
            if may_have_surrogates and not value.isascii():
                value = _without_surrogates(path, value, replace_invalid, number)
            if len(value) > PIECE_CHARS:
                yield from _cut([(value, True)])
            elif value and not value.isspace():
                yield Piece(value, True)


def _parse(path: Path, lines: list[str], numbers: list[int]) -> list[Any]:
    """The value of each line. Parsed all at once, several times as fast; one by one where that fails.

    What stands between the lines is random, so that no lines can be whole only when joined.
    """
    between = secrets.token_hex(8)
    with contextlib.suppress(ValueError):
        values = json.loads("[" + f',"{between}",'.join(lines) + "]")
        if len(values) == max(2 * len(lines) - 1, 0) and values[1::2] == [between] * (len(lines) - 1):
            return values[::2]
    values = []
    for number, line in zip(numbers, lines, strict=True):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise GptfastError(f"{path}, line {number:,} is not JSON: {error}; every line must be one object") from None
    return values


def _without_surrogates(path: Path, value: str, replace_invalid: bool, number: int) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        if not replace_invalid:
            raise _not_utf8(path, error, f"in line {number:,}") from None
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _read_parquet(path: Path, field: str, replace_invalid: bool, on_read: OnRead) -> Iterator[Piece]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise GptfastError(f"reading {path} needs the package pyarrow: pip install pyarrow") from None
    with contextlib.ExitStack() as stack:
        source: Any = path
        if path.suffix in COMPRESSIONS:  # Parquet is read from its end, which a compressed stream cannot do
            source = stack.enter_context(tempfile.TemporaryFile())
            for block in _blocks(path, lambda n: None):
                source.write(block)
        try:
            file = stack.enter_context(pyarrow.parquet.ParquetFile(source))
            if field not in file.schema_arrow.names:
                names = ", ".join(map(repr, file.schema_arrow.names))
                raise GptfastError(f"{path} has no column {field!r}, only {names}; name it with --field")
            row, told, size = 0, 0, path.stat().st_size
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                for value in batch.column(0).cast(pyarrow.large_binary()):
                    row += 1
                    if (record := value.as_py()) is None:
                        raise GptfastError(f"{path}, row {row:,} has no text in column {field!r}; remove such rows")
                    yield from _cut([(_decode_record(path, record, replace_invalid, f"in row {row:,}"), True)])
                on_read(size * row // file.metadata.num_rows - told)
                told = size * row // file.metadata.num_rows
        except pyarrow.ArrowException as error:
            raise GptfastError(f"cannot read {path}, column {field!r}: {error}") from error


def _whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that end with a line, but for the last, which is empty if all lines are ended."""
    parts: list[bytes] = []
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join([*parts, block[:end]])
            parts = []
        parts.append(block[end:])
    yield b"".join(parts)


def _split_documents(blocks: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """Fragments of documents, True on a document's last: <|endoftext|> in a text separates documents.

    A line break directly before and after it belongs to the separator, which often stands on a line of its own.
    """
    keep = len(END_OF_TEXT) + 1  # a separator and the line break before it may lie across two blocks
    held, fresh = "", False  # fresh: held begins right after a separator
    for block in blocks:
        *documents, rest = (held + block).split(END_OF_TEXT)
        for document in documents:
            yield re.sub(r"\r?\n\Z", "", re.sub(r"\A\r?\n", "", document) if fresh else document), True
            fresh = True
        if fresh and len(rest) >= 2:
            rest, fresh = re.sub(r"\A\r?\n", "", rest), False
        ready = 0 if fresh else max(len(rest) - keep, 0)
        yield rest[:ready], False
        held = rest[ready:]
    yield re.sub(r"\A\r?\n", "", held) if fresh else held, True


def _cut(fragments: Iterable[tuple[str, bool]]) -> Iterator[Piece]:
    """Pieces that depend only on the text, not on how it came in fragments; none for a blank document."""
    text, at, begun = "", 0, False
    for fragment, ends in fragments:
        text, at = text[at:] + fragment, 0
        while len(text) > at + PIECE_CHARS:
            found = SAFE_CUT.search(text, at + PIECE_CHARS, at + LONGEST_PIECE_CHARS)
            if found is None and len(text) <= at + LONGEST_PIECE_CHARS:
                break
            cut = found.start() if found else at + LONGEST_PIECE_CHARS
            yield Piece(text[at:cut], False)
            at, begun = cut, True
        if ends:
            if begun or text.strip():  # a blank document is only what lies around separators
                yield Piece(text[at:], True)
            text, at, begun = "", 0, False


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same documents, each in one piece."""
    texts: list[str] = []
    for text, ends in pieces:
        texts.append(text)
        if ends:
            yield Piece("".join(texts), True)
            texts.clear()


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file, decompressed by its last suffix. Raises GptfastError that names the file."""
    try:
        return "".join(_decoded(path, False, lambda n: None, False))
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GptfastError(f"cannot read {path}: {reason}; check the path, or whether the file is damaged") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line of a .jsonl file that is not blank. Raises GptfastError."""
    lines = read_text(path).split("\n")
    numbers = [number for number, line in enumerate(lines, 1) if line and not line.isspace()]
    return zip(numbers, _parse(path, [lines[number - 1] for number in numbers], numbers), strict=True)

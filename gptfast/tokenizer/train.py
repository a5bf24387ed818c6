"""Training of byte-pair encodings: texts are split and counted as they come, then merges are learned from that."""

from __future__ import annotations

import codecs
import mmap
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .. import extension
from ..errors import GptfastError
from . import core
from .encoding import Encoding, _without_surrogates
from .patterns import Splitter, known_pattern
from .published import END_OF_TEXT, PAT_STR
from .special import special_regex
from .threads import thread_count

BATCH_CHARS = 1 << 24  # documents counted in one call
LARGEST_VOCAB = (1 << 21) - 1  # what the core can encode with
WORDS_BYTES = 1 << 30  # memory for distinct words; learning merges from them takes two to three times as much again

Progress = Callable[[str, int, int | None], object]


def train(
    texts_or_files: Path | Iterable[str | Path],
    vocab_size: int,
    *,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    name: str = "trained",
    threads: int | None = None,
    progress: Progress | None = None,
    words_bytes: int = WORDS_BYTES,
) -> Encoding:
    """A byte-level BPE encoding of `vocab_size` tokens, learned from documents (str) and files (Path).

    .txt files are mapped, other formats read as `gptfast data prepare` reads them. `pattern` is "gpt2", "cl100k",
    "o200k" or any `pat_str`. The text of a special token separates documents and is not learned from.

    Ids: 256 single bytes in GPT-2's order, then one token a merge, then the special tokens. Each merge joins the pair
    of neighbours that is the most frequent in all documents; of several the one with the smallest left id, then the
    smallest right id. This is what Hugging Face's BpeTrainer does, and the merges are the same.

    Memory does not grow with the text: when the distinct pre-tokens need more than about `words_bytes`, the rarest are
    forgotten (all seen once, then all seen twice, until half is free) and a warning says so. The result never depends
    on `threads`. `progress(stage, done, total)` is called a few times a second: ("count", bytes, bytes of all files or
    None), then ("merge", merges, merges).

    Warns when the text allows fewer merges than asked for: the encoding is then smaller. Raises GptfastError for a
    `vocab_size` without room for the bytes and the special tokens, for no text, and for files that are not UTF-8.
    """
    special = _checked_special(special_tokens)
    n_merges = vocab_size - 256 - len(special)
    if n_merges < 0:
        raise GptfastError(
            f"vocab_size is {vocab_size}; it must be at least {256 + len(special)}: 256 bytes and the special tokens"
        )
    if vocab_size > LARGEST_VOCAB:
        raise GptfastError(f"vocab_size is {vocab_size}; it must be at most {LARGEST_VOCAB}")
    if isinstance(texts_or_files, str):
        raise GptfastError("got one str to train on; pass [text] for a document, or Path(name) for a file")
    sources = [texts_or_files] if isinstance(texts_or_files, Path) else texts_or_files
    reader = _Reader(split_pattern(pattern), special, thread_count(threads), progress, words_bytes)
    reader.read(sources)
    counter = reader.counter
    if counter.total == 0:
        raise GptfastError("there is no text to train on: every document is empty")
    if counter.pruned:
        warnings.warn(
            f"{counter.pruned:,} rare pre-tokens did not fit into {words_bytes:,} bytes and were forgotten; what is "
            "learned from the rarest ones is approximate (raise words_bytes to keep them)",
            stacklevel=2,
        )
    report = None if progress is None else lambda done: progress("merge", done, n_merges)
    tokens, _ = extension.core().train_bpe(counter, n_merges, report)  # type: ignore[union-attr]
    if progress is not None:
        progress("merge", len(tokens) - 256, n_merges)
    if len(tokens) < 256 + n_merges:
        warnings.warn(
            f"the text allows only {len(tokens) - 256:,} merges: the encoding has {len(tokens) + len(special):,} "
            f"tokens instead of {vocab_size:,}",
            stacklevel=2,
        )
    ids = {token: len(tokens) + i for i, token in enumerate(special)}
    pat_str = split_pattern(pattern)
    bpe = core.build(tokens, range(len(tokens)), ids, pat_str, known_pattern(pat_str))
    return Encoding._from_core(name, pat_str, bpe, ids, len(tokens) + len(special) - 1)


def _checked_special(special_tokens: Sequence[str]) -> list[str]:
    if isinstance(special_tokens, str):
        raise GptfastError(f"special_tokens is one str, {special_tokens!r}; pass a list: [{special_tokens!r}]")
    special = list(special_tokens)
    for token in special:
        if not isinstance(token, str) or not token or _without_surrogates(token) != token:
            raise GptfastError(f"{token!r} cannot be a special token; it must be text of at least one character")
        if len(token.encode()) == 1:
            raise GptfastError(f"{token!r} cannot be a special token: single bytes are tokens already")
        if special.count(token) > 1:
            raise GptfastError(f"the special token {token!r} is given twice; give it once")
    return special


def split_pattern(pattern: str) -> str:
    """The `pat_str` that `pattern` names or is. Raises GptfastError."""
    if re.fullmatch(r"\w*", pattern) and pattern not in PAT_STR:
        raise GptfastError(f"unknown pattern {pattern!r}; known: {', '.join(PAT_STR)}, or give a regular expression")
    return PAT_STR.get(pattern, pattern)


class _Reader:
    """Reads documents into a `gptfast._core.WordCounter`."""

    def __init__(
        self, pat_str: str, special: list[str], threads: int, progress: Progress | None, words_bytes: int
    ) -> None:
        module, reason = extension.load()
        if module is None or not hasattr(module, "WordCounter"):
            why = reason if module is None else "it was built before there was training in it"
            raise GptfastError(f"training needs the compiled core, gptfast._core, which is not usable ({why})")
        known = known_pattern(pat_str)
        self.splitter = None if known else Splitter(pat_str)
        self.special = special_regex(frozenset(special)) if special else None
        self.counter = module.WordCounter(known or "", words_bytes, special)
        self.threads = threads
        self.progress = progress
        self.done, self.total = 0, None  # bytes
        self.batch: list[str] = []
        self.batch_chars = 0

    def read(self, sources: Iterable[str | Path]) -> None:
        if isinstance(sources, Sequence) and all(isinstance(source, Path) for source in sources):
            self.total = sum(source.stat().st_size for source in sources if source.is_file())
        for source in sources:
            if isinstance(source, str):
                self.add(source)
                self.report(len(source))
            elif isinstance(source, Path):
                self.flush()
                self.add_file(source)
            else:
                raise GptfastError(
                    f"cannot train on {type(source).__name__}; pass documents as str and files as pathlib.Path"
                )
        self.flush()

    def add(self, document: str) -> None:
        self.batch.append(document)
        self.batch_chars += len(document)
        if self.batch_chars >= BATCH_CHARS:
            self.flush()

    def flush(self) -> None:
        batch, self.batch, self.batch_chars = self.batch, [], 0
        if self.splitter is not None:
            for document in batch:
                for part in self.special.split(document) if self.special else [document]:
                    self.counter.add_pieces(*self.splitter.pieces(_without_surrogates(part)))
            return
        try:
            self.counter.add_documents(batch, self.threads)
        except UnicodeEncodeError:
            self.counter.add_documents([_without_surrogates(document) for document in batch], self.threads)

    def add_file(self, path: Path) -> None:
        if path.suffix == ".txt" and self.splitter is None:
            self.add_mapped(path)
            return
        from ..data.readers import find_inputs, read_pieces

        # Documents are cut where the known patterns allow it.
        for text, _ in read_pieces(find_inputs([str(path)]), on_read=self.report, can_cut=self.splitter is None):
            self.add(text)
        self.flush()

    def add_mapped(self, path: Path) -> None:
        try:
            with open(path, "rb") as file:
                # What has no size (a pipe, a file of /proc) may have content all the same.
                size = os.fstat(file.fileno()).st_size
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else file.read()
        except OSError as error:
            raise GptfastError(f"cannot read {path}: {error.strerror}") from error
        with memoryview(mapped) as data:
            mark = len(codecs.BOM_UTF8) if bytes(data[:3]) == codecs.BOM_UTF8 else 0
            before = self.done

            def report(done: int) -> None:
                self.report(before + done - self.done)

            with data[mark:] as text:
                try:
                    self.counter.add_text(text, self.threads, report if self.progress else None)
                except ValueError as error:
                    invalid = re.fullmatch(r"invalid UTF-8 at byte (\d+)", str(error))
                    if invalid is None:
                        raise
                    raise GptfastError(
                        f"{path} is not UTF-8 at byte {mark + int(invalid[1]):,}; convert it to UTF-8"
                    ) from error
            report(size)

    def report(self, more: int) -> None:
        self.done += more
        if self.progress:
            self.progress("count", self.done, self.total)

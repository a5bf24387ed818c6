"""Labelled text: the text and label columns of a table, balanced and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.readers import read_text
from ..errors import GptfastError
from .table import FORMATS, LABEL_COLUMNS, TEXT_COLUMNS, Say, Table, format_of, is_unicode, listed, read_table

NO_CHARACTER = "half of a surrogate pair (\\ud800 to \\udfff) is no character"


@dataclass(frozen=True)
class Labelled:
    """N texts, each of one class: labels int64 [N] are indices of `names`."""

    texts: list[str]
    labels: np.ndarray
    names: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def counts(self) -> np.ndarray:
        """Texts of each class, int64 [K]."""
        return np.bincount(self.labels, minlength=len(self.names))

    def class_weights(self) -> np.ndarray:
        """float64 [K]: N / (K n_k), so that every class counts the same, and a text 1 on average."""
        return len(self) / (len(self.names) * self.counts)

    def take(self, indices: np.ndarray) -> Labelled:
        """The texts at `indices`, in that order."""
        return Labelled([self.texts[i] for i in indices], self.labels[indices], self.names)

    def undersampled(self, seed: int) -> Labelled:
        """As many of each class as of the rarest, chosen by `seed`."""
        rng, smallest = np.random.default_rng(seed), self.counts.min()
        kept = [rng.permutation(np.flatnonzero(self.labels == k))[:smallest] for k in range(len(self.names))]
        return self.take(np.sort(np.concatenate(kept)))

    def split(self, shares: Sequence[float], seed: int) -> list[Labelled]:
        """One part for each of `shares`, which add up to 1, shuffled by `seed`; each class is divided in these shares.

        Raises GptfastError for shares that are none, and where a part would have no text of some class.
        """
        of = "a split of " + " / ".join(f"{100 * share:g}%" for share in shares)
        if not all(0 <= share <= 1 for share in shares) or not shares[0] or abs(sum(shares) - 1) > 1e-6:
            raise GptfastError(f"{of}: shares must be at least 0, the first above, and 100% together")
        rng, bounds = np.random.default_rng(seed), np.cumsum([0.0, *shares])
        parts: list[list[np.ndarray]] = [[] for _ in shares]
        for k, name in enumerate(self.names):
            members = rng.permutation(np.flatnonzero(self.labels == k))
            cuts = np.rint(bounds * len(members)).astype(int)
            for i, share in enumerate(shares):
                parts[i].append(members[cuts[i] : cuts[i + 1]])
                if share > 0 and not len(parts[i][-1]):
                    raise GptfastError(
                        f"{of}: one part would have no {name!r}, of which there are {len(members)}. Add texts of that "
                        "class, remove it, or choose other shares"
                    )
        return [self.take(rng.permutation(np.concatenate(part))) for part in parts]

    def describe(self) -> str:
        """`1,494 texts (747 ham, 747 spam)`."""
        classes = (f"{n:,} {name}" for n, name in zip(self.counts, self.names, strict=True))
        return f"{len(self):,} texts ({listed(classes, 8)})"


def read_labelled(
    path: Path, text: str | None = None, label: str | None = None, say: Say = lambda line: None
) -> Labelled:
    """The texts and classes in a .csv, .tsv, .jsonl or .parquet file, in its order.

    text, label: the names of the columns, or their numbers from 1. Otherwise they are found by usual names, and in a
    table of two columns without a header by which has fewer values; `say` is told. Classes are names, whole numbers or
    booleans, and sorted. Raises GptfastError for what cannot be read, unknown columns, texts that are empty or no text,
    labels that are missing or of mixed kinds, and a single class.
    """
    table = read_table(path, (text, label), say)
    t, c = _columns(table, text, label, say)
    texts, values = [row[t] for row in table.rows], [row[c] for row in table.rows]
    table.refuse((not isinstance(x, str) for x in texts), "the text is missing, or no text")
    table.refuse((not x.strip() for x in texts), "the text is empty")
    table.refuse((not is_unicode(f"{row[t]}{row[c]}") for row in table.rows), NO_CHARACTER)
    table.refuse((x is None or str(x).strip() == "" for x in values), "the label is missing")
    table.refuse((not isinstance(x, (str, int)) for x in values), "a label must be a name, a whole number or a boolean")
    kinds = sorted({type(x).__name__ for x in values})
    if len(kinds) > 1:
        raise GptfastError(f"{path}: some labels are {' and some '.join(kinds)}; write all of them the same way")
    classes = [str(x).lower() if isinstance(x, bool) else str(x).strip() for x in values]
    names = sorted(set(classes), key=lambda name: (0, int(name), name) if _is_int(name) else (1, 0, name))
    if len(names) < 2:
        raise GptfastError(f"{path}: every label is {names[0]!r}; a classifier needs two classes or more")
    return Labelled(texts, np.array([names.index(x) for x in classes], dtype=np.int64), names)


def read_texts(path: Path, text: str | None = None, say: Say = lambda line: None) -> list[str]:
    """The texts of a table as `read_labelled` finds them, with or without labels; or the lines of a .txt file."""
    if format_of(path, (*FORMATS, ".txt")) == ".txt":
        texts = [line for line in read_text(path).splitlines() if line.strip()]
        if not texts:
            raise GptfastError(f"{path} holds no text")
        return texts
    table = read_table(path, (text,), say)
    place = 0 if table.width == 1 else table.find(text, TEXT_COLUMNS)
    if place is None and table.width == 2:
        place = _columns(table, None, None, say)[0]
    if place is None:
        raise GptfastError(f"{path}: cannot tell which column is the text: {table.describe()}; name it: --text-column")
    texts = [row[place] for row in table.rows]
    table.refuse((not isinstance(x, str) or not x.strip() for x in texts), "there is no text")
    table.refuse((not is_unicode(x) for x in texts), NO_CHARACTER)
    return texts


def _columns(table: Table, text: str | None, label: str | None, say: Say) -> tuple[int, int]:
    """The places of the text and of the label."""
    places = [table.find(text, TEXT_COLUMNS), table.find(label, LABEL_COLUMNS)]
    if table.width == 2 and None in places:
        known = next((place for place in places if place is not None), None)
        if known is not None:
            places = [1 - known if place is None else place for place in places]
        elif table.names is None:
            distinct = [len({row[i] for row in table.rows}) for i in range(2)]
            places = [int(np.argmax(distinct)), int(np.argmin(distinct))] if distinct[0] != distinct[1] else places
    t, c = places
    if t is None or c is None or t == c:
        raise GptfastError(
            f"{table.path}: cannot tell the text from the label: {table.describe()}; "
            "name them: --text-column, --label-column"
        )
    if table.names is None:
        say(f"{table.path.name} has no header: column {c + 1} is the label, column {t + 1} the text")
    else:
        say(f"{table.path.name}: the text is in column {table.names[t]!r}, the label in {table.names[c]!r}")
    return t, c


def _is_int(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and len(name) < 100  # Python reads no number of thousands of digits

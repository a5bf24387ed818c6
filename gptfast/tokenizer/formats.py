"""Vocabulary files: what lies at a path, .tiktoken, GPT-2's pair of files; tokenizer.json is in huggingface.py."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GptfastError
from ..files import atomic_write, read_json, write_json
from . import core
from .byte_level import ALPHABET, unspell, unspell_all
from .encoding import Encoding
from .published import PAT_STR, PUBLISHED

PAIRS = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))  # OpenAI's names, Hugging Face's names
FORMATS = "a tokenizer.json, a .tiktoken file, encoder.json and vocab.bpe, or vocab.json and merges.txt"


@dataclass(frozen=True)
class Vocabulary:
    """What a file says: tokens in order of merge rank with their ids, special tokens, and the split pattern."""

    tokens: Sequence[bytes]
    ids: Sequence[int]
    special_tokens: dict[str, int]
    pat_str: str

    def encoding(self, path: Path) -> Encoding:
        try:
            bpe = core.build(self.tokens, self.ids, self.special_tokens, self.pat_str)
        except GptfastError as error:
            raise GptfastError(f"{path} is no usable vocabulary: {error}") from None
        largest = max(*self.ids, *self.special_tokens.values())
        return Encoding._from_core(str(path), self.pat_str, bpe, self.special_tokens, largest)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that make up the vocabulary at `path`, a file or a folder. Raises GptfastError where there is none."""
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return (path / "tokenizer.json",)
        pairs = [tuple(path / name for name in pair) for pair in PAIRS]
        found = [pair for pair in pairs if all(file.is_file() for file in pair)] or [tuple(path.glob("*.tiktoken"))]
        if len(found[0]) in (1, 2):
            return found[0]
        raise GptfastError(f"{path} holds no vocabulary: it needs {FORMATS}")
    for pair in PAIRS:
        if path.name in pair:
            files = tuple(path.with_name(name) for name in pair)
            missing = [file for file in files if not file.is_file()]
            if missing:
                raise GptfastError(f"{missing[0]} is missing: {pair[0]} and {pair[1]} belong together, in one folder")
            return files
    if not path.is_file():
        raise GptfastError(f"no vocabulary at {path}: there is no such file or folder")
    return (path,)


def load(path: Path) -> Encoding:
    """The encoding at `path`. Raises GptfastError that names the file and what is wrong in it."""
    files = files_of(path)
    if len(files) == 2:
        return _read_pair(*files).encoding(path)
    if files[0].suffix == ".json":
        from . import huggingface

        return huggingface.load(files[0])
    return load_tiktoken(files[0])


def save(encoding: Encoding, path: str | os.PathLike[str]) -> None:
    """Write `encoding` as .tiktoken or, for any name that ends in .json, as a tokenizer.json."""
    path = Path(path)
    if path.suffix == ".json":
        from . import huggingface

        huggingface.save(encoding, path)
    elif path.suffix == ".tiktoken":
        _save_tiktoken(encoding, path)
    else:
        raise GptfastError(f"cannot save a vocabulary as {path}: its name must end in .tiktoken or .json")


def check_pattern(path: Path, pat_str: str) -> None:
    """Raises GptfastError where an encoding that splits by `pat_str` could not be saved as `path`."""
    if path.suffix == ".json":
        from . import huggingface

        huggingface.pre_tokenizer(pat_str, path)


# .tiktoken


def settings_path(path: Path) -> Path:
    """Beside x.tiktoken, which has room for tokens only: x.tiktoken.json, with the split pattern and special tokens."""
    return path.with_name(path.name + ".json")


def load_tiktoken(
    path: str | os.PathLike[str], pat_str: str | None = None, special_tokens: Mapping[str, int] | None = None
) -> Encoding:
    """A .tiktoken file. `pat_str` is a pattern, or "gpt2", "cl100k" or "o200k".

    Both may be left out where the file is one of OpenAI's, or has its settings beside it (`Encoding.save`).
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise GptfastError(f"cannot read {path}: {error.strerror}") from None
    if pat_str is None:
        pat_str, special_tokens = _settings(path, data)
    pat_str, special = PAT_STR.get(pat_str, pat_str), dict(special_tokens or {})
    try:
        bpe = core.from_tiktoken(data, special, pat_str)
    except GptfastError as error:
        raise GptfastError(f"{path} is no usable vocabulary: {error}") from None
    ranks = bpe.mergeable_ranks()
    largest = max(ranks.values())
    missing = largest + 1 - len(ranks) and set(range(largest)).difference(ranks.values(), special.values())
    if missing:
        raise GptfastError(f"{path} has gaps: no token has the rank {min(missing)}; lines are missing, copy it again")
    return Encoding._from_core(str(path), pat_str, bpe, special, max(largest, *special.values(), 0))


def _settings(path: Path, data: bytes) -> tuple[str, dict[str, int]]:
    if settings_path(path).is_file():
        settings = read_json(settings_path(path), "pat_str", "special_tokens")
        pat_str, special = settings["pat_str"], settings["special_tokens"]
        if not isinstance(pat_str, str) or not isinstance(special, dict):
            raise GptfastError(f"{settings_path(path)} is damaged: pat_str is no text, or special_tokens no object")
        split_ids(special, (), settings_path(path))
        return pat_str, special
    digest = hashlib.sha256(data).hexdigest()
    for published in PUBLISHED.values():
        if published.sources[0].sha256 == digest:
            return PAT_STR[published.pattern], published.special_tokens
    raise GptfastError(
        f"{path} holds tokens, but not how text is split: keep {settings_path(path).name} beside it, "
        "load it with gptfast.tokenizer.load_tiktoken(path, pat_str, special_tokens), or use a tokenizer.json"
    )


def _save_tiktoken(encoding: Encoding, path: Path) -> None:
    ranks = encoding._mergeable_ranks
    merged = [rank for token, rank in ranks.items() if len(token) > 1]
    if merged != sorted(merged):
        raise GptfastError(f"{encoding} numbers its tokens in another order than it merges them; save it as a .json")
    with atomic_write(path) as file:
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            file.write(b"%s %d\n" % (base64.b64encode(token), rank))
    write_json(settings_path(path), {"pat_str": encoding._pat_str, "special_tokens": encoding._special_tokens})


# encoder.json and vocab.bpe


def tokens_of_merges(text: str, where: str) -> list[str]:
    """The 256 bytes and then the token that each line of a vocab.bpe or merges.txt makes, spelt as there."""
    lines = text.splitlines()
    first = 1 if lines and lines[0].startswith("#version") else 0
    merges = [(number, line.split(" ")) for number, line in enumerate(lines[first:], first + 1) if line]
    known = set(ALPHABET)
    for number, parts in merges:
        if len(parts) != 2 or not known.issuperset(parts):
            unknown = [part for part in parts if part not in known]
            problem = f"{unknown[0]!r} is no token at that place" if len(parts) == 2 else "not two tokens"
            raise GptfastError(f"{where} is damaged in line {number}: {problem}; copy it again")
        known.add("".join(parts))
    return [*ALPHABET, *("".join(parts) for _, parts in merges)]


def _read_pair(encoder: Path, merges: Path) -> Vocabulary:
    try:
        text = merges.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GptfastError(f"cannot read {merges}: {error}; copy it again") from None
    tokens = tokens_of_merges(text, str(merges))
    ids, special = split_ids(read_json(encoder), tokens, encoder)
    odd = [name for name in special if not (name[0] in "<[" and name[-1] in ">]")]
    if odd:
        raise GptfastError(
            f"{encoder} has the token {odd[0]!r}, which {merges} does not make; they belong not together"
        )
    return Vocabulary(unspelt(tokens, merges), ids, special, PAT_STR["gpt2"])


def split_ids(vocab: dict[str, Any], tokens: Sequence[str], path: Path) -> tuple[list[int], dict[str, int]]:
    """The ids of `tokens` (spelt) in `vocab`, and what is left of it. Raises GptfastError."""
    for text, i in vocab.items():
        if type(i) is not int or not 0 <= i < 1 << 32:
            raise GptfastError(f"{path} gives the token {text!r} the id {json.dumps(i)}, which is none; copy it again")
    rest = dict(vocab)
    try:
        return [rest.pop(token) for token in tokens], rest
    except KeyError as error:
        raise GptfastError(f"{path} has no id for the token {error.args[0]!r}; it is damaged, copy it again") from None


def unspelt(tokens: Sequence[str], path: Path) -> list[bytes]:
    """The bytes of spelt tokens. Raises GptfastError where one spells none."""
    data = unspell_all(tokens)
    if data is None:
        odd = next(token for token in tokens if unspell(token) is None)
        raise GptfastError(f"{path} has the token {odd!r}, which spells no bytes: it is no byte-level vocabulary")
    return data

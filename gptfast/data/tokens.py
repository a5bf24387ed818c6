"""Open tokens on disk: folders made by `gptfast data prepare`, nanoGPT's .bin files, llm.c's .bin shards."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GptfastError
from ..files import read_json, sha256

MANIFEST = "manifest.json"
VOCABULARY = "tokenizer.json"  # beside the manifest, which names it, where the encoding is not a published one
PROGRESS = "progress.json"  # stands there until the manifest does
FORMAT_VERSION = 1
GPT2_VOCAB, GPT2_EOT = 50257, 50256
LLMC_MAGIC, LLMC_VERSION, LLMC_HEADER_BYTES = 20240520, 1, 256 * 4


class NoSuchSplit(GptfastError):
    """The data is sound, but has no such split."""


class TokenSet:
    """The tokens of one split, across its shards, memory-mapped: opening costs no memory.

    `encoding_name` names the vocabulary and `n_vocab` is its size; `fingerprint` (hex) changes when the tokens do, so
    a resumed run can tell that its data is the same.
    """

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        find_documents: Callable[[Sequence[np.ndarray]], np.ndarray],
        *,
        name: str,
        encoding_name: str,
        n_vocab: int,
        fingerprint: str,
    ) -> None:
        self._shards = [np.asarray(shard) for shard in shards]  # a plain view: np.memmap is slow to slice
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)
        self._find_documents = find_documents
        self.name, self.encoding_name, self.n_vocab, self.fingerprint = name, encoding_name, n_vocab, fingerprint

    @classmethod
    def from_array(
        cls, tokens: np.ndarray, documents: Sequence[int] = (0,), encoding_name: str = "gpt2", n_vocab: int = GPT2_VOCAB
    ) -> TokenSet:
        """A token set in memory: `tokens` any integers [N], `documents` the sorted start of each document."""
        starts = np.asarray(documents, dtype=np.int64)
        fingerprint = hashlib.sha256(np.asarray(tokens, dtype=np.int64).tobytes() + starts.tobytes()).hexdigest()
        return cls(
            [tokens],
            lambda _: starts,
            name="the array",
            encoding_name=encoding_name,
            n_vocab=n_vocab,
            fingerprint=fingerprint,
        )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def documents(self) -> np.ndarray:
        """int64 [D]: where each document starts in the whole set, sorted."""
        return self._find_documents(self._shards)

    def read(self, start: int, n: int) -> np.ndarray:
        """Tokens start .. start + n as int64 [n]. Raises IndexError outside the set."""
        if start < 0 or n < 0 or start + n > len(self):
            raise IndexError(f"tokens {start}..{start + n} of {len(self)} in {self.name}")
        parts: list[np.ndarray] = []
        shard = int(np.searchsorted(self._ends, start, side="right"))
        while n > 0:
            offset = start - (int(self._ends[shard - 1]) if shard else 0)
            part = self._shards[shard][offset : offset + n].astype(np.int64)
            if len(part) == n and not parts:
                return part
            parts.append(part)
            start, n, shard = start + len(part), n - len(part), shard + 1
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def open_tokens(path: str | Path, split: str = "train", verify: bool = True) -> TokenSet:
    """Open one split ("train" or "val").

    `path` is a folder made by `gptfast data prepare`; a nanoGPT `train.bin` / `val.bin` (raw uint16) or the folder of
    both; or llm.c shards: a file, a glob, or a folder of `*_train_*.bin` and `*_val_*.bin`. The .bin formats do not
    name their vocabulary: it is taken to be GPT-2's. `verify` reads every prepared shard once to check its sha256
    (lengths are always checked). Raises GptfastError that names the file.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return _open_prepared(path, split, verify)
    if (path / PROGRESS).is_file():
        raise GptfastError(f"{path} was left unfinished; repeat its `gptfast data prepare` command to go on")
    files = _bin_files(path, split)
    with open(files[0], "rb") as file:
        is_llmc = file.read(4) == LLMC_MAGIC.to_bytes(4, "little")
    return _open_llmc(files) if is_llmc else _open_nanogpt(files)


def _open_prepared(folder: Path, split: str, verify: bool) -> TokenSet:
    manifest = read_json(folder / MANIFEST)
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise GptfastError(
            f"{folder / MANIFEST} has format version {version}, but this gptfast reads {FORMAT_VERSION}; prepare again"
        )
    if split not in manifest["splits"]:
        raise NoSuchSplit(
            f"{folder} has no {split!r} split, only {sorted(manifest['splits'])}; "
            "prepare again with --val-fraction or --val-input"
        )
    shards = manifest["splits"][split]["shards"]
    arrays = [load_npy(folder / s["file"], np.dtype(manifest["dtype"]), s["tokens"]) for s in shards]
    starts = [load_npy(folder / s["documents_file"], np.dtype(np.int64), s["documents"]) for s in shards]
    if verify:
        wanted = [(folder / s[f], s[h]) for s in shards for f, h in _CHECKED]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
            for (file, expected), found in zip(wanted, pool.map(lambda item: sha256(item[0]), wanted), strict=True):
                if found != expected:
                    raise GptfastError(
                        f"{file} is damaged: its sha256 is {found[:12]}..., the manifest says {expected[:12]}...; "
                        "copy it again or prepare the folder again"
                    )

    def documents(arrays: Sequence[np.ndarray]) -> np.ndarray:
        base, found = 0, []
        for shard, array, inside in zip(shards, arrays, starts, strict=True):
            found.append(base + inside[1 if shard["continues"] else 0 :])
            base += len(array)
        return np.concatenate(found)

    name = manifest["encoding"]["name"]
    key = repr((manifest["encoding"]["hash"], [(s["sha256"], s["documents_sha256"]) for s in shards]))
    return TokenSet(
        arrays,
        documents,
        name=f"{folder} ({split})",
        encoding_name=str(folder / VOCABULARY) if name == VOCABULARY else name,
        n_vocab=manifest["encoding"]["n_vocab"],
        fingerprint=hashlib.sha256(key.encode()).hexdigest(),
    )


_CHECKED = (("file", "sha256"), ("documents_file", "documents_sha256"))


def load_npy(path: Path, dtype: np.dtype[Any], length: int) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False) if length else np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise GptfastError(f"{path} is missing; copy it again or prepare the folder again") from None
    except (ValueError, EOFError, OSError) as error:
        raise GptfastError(f"{path} is damaged ({error}); copy it again or prepare the folder again") from error
    if array.dtype != dtype or array.shape != (length,):
        raise GptfastError(
            f"{path} holds {array.dtype} {array.shape}, but the manifest says {dtype} ({length},); "
            "copy it again or prepare the folder again"
        )
    return array


def _bin_files(path: Path, split: str) -> list[Path]:
    """The .bin files of one split: never the other split's, which would evaluate on what was trained on."""
    if path.is_dir():
        files = [path / f"{split}.bin"] if (path / f"{split}.bin").is_file() else sorted(path.glob(f"*_{split}_*.bin"))
        if not files:
            raise NoSuchSplit(
                f"{path} has no {MANIFEST}, {split}.bin or *_{split}_*.bin; make it with `gptfast data prepare`"
            )
        return files
    files = [path] if path.is_file() else sorted(Path(p) for p in glob.glob(str(path)))
    if not files:
        raise GptfastError(f"no such file or folder: {path}; make it with `gptfast data prepare`")
    for file in files:
        if file.suffix != ".bin":
            raise GptfastError(f"{file} is not prepared data: give a folder that holds {MANIFEST}, or .bin files")
        if ("val" in file.name) != (split == "val"):
            raise NoSuchSplit(f"{file} was asked for as the {split!r} split; give the folder that holds both splits")
    return files


def _open_nanogpt(files: list[Path]) -> TokenSet:
    for file in files:
        if file.stat().st_size % 2 or not file.stat().st_size:
            raise GptfastError(f"{file} has {file.stat().st_size} bytes, which is no list of 2-byte tokens")
        if (file.parent / "meta.pkl").exists():
            raise GptfastError(
                f"{file.parent} holds a character-level data set (meta.pkl), whose ids are no encoding of ours; "
                "prepare its text with `gptfast data prepare --encoding bytes`"
            )
    return _gpt2_set(files, [np.memmap(file, dtype="<u2", mode="r") for file in files], eot_first=False)


def _open_llmc(files: list[Path]) -> TokenSet:
    arrays = []
    for file in files:
        size = file.stat().st_size
        header = np.fromfile(file, dtype="<i4", count=256)
        if len(header) < 256 or header[0] != LLMC_MAGIC or header[1] != LLMC_VERSION:
            raise GptfastError(f"{file} is no llm.c shard of version {LLMC_VERSION}: header {header[:3].tolist()}")
        tokens = int(header[2])
        if tokens < 1 or size != LLMC_HEADER_BYTES + 2 * tokens:
            raise GptfastError(
                f"{file} is damaged: its header says {tokens:,} tokens, but {size:,} bytes hold "
                f"{(size - LLMC_HEADER_BYTES) / 2:,.1f}; copy it again"
            )
        arrays.append(np.memmap(file, dtype="<u2", mode="r", offset=LLMC_HEADER_BYTES, shape=(tokens,)))
    return _gpt2_set(files, arrays, eot_first=True)


def _gpt2_set(files: list[Path], arrays: Sequence[np.ndarray], eot_first: bool) -> TokenSet:
    """llm.c writes end-of-text before each document, nanoGPT after it."""

    def documents(arrays: Sequence[np.ndarray]) -> np.ndarray:
        base, found = 0, [np.zeros(1, dtype=np.int64)]
        for array in arrays:
            found.append(base + np.flatnonzero(array == GPT2_EOT) + (0 if eot_first else 1))
            base += len(array)
        starts = np.unique(np.concatenate(found))
        return starts[starts < base]

    digest = hashlib.sha256()
    for file, array in zip(files, arrays, strict=True):
        if (largest := int(array.max())) >= GPT2_VOCAB:
            raise GptfastError(f"{file} holds the id {largest}, which is no GPT-2 token; it has another vocabulary")
        # Hashing all of a large set at every start would take minutes: its length and both ends tell sets apart.
        digest.update(f"{file.name} {len(array)}".encode() + array[: 1 << 19].tobytes() + array[-(1 << 19) :].tobytes())
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return TokenSet(
        arrays,
        documents,
        name=name,
        encoding_name="gpt2",
        n_vocab=GPT2_VOCAB,
        fingerprint=digest.hexdigest(),
    )

"""Write tokens as .npy shards that survive a kill: a shard is whole or absent, and what is finished is on record."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from ..errors import GptfastError
from ..files import atomic_write, read_json, sha256, write_json
from .tokens import MANIFEST, PROGRESS, load_npy

SPLITS = ("train", "val")


class Progress:
    """What a run of `prepare` has finished, in `progress.json` until the manifest takes its place."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Start in an empty or new folder, or go on in one that was left unfinished with the same settings."""
        self.folder, self.settings = folder, settings
        self.units = dict.fromkeys(SPLITS, 0)  # units of work that the finished shards hold
        self.shards: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        if folder.exists() and not folder.is_dir():
            raise GptfastError(f"{folder} is a file; name a folder to write to")
        if (folder / PROGRESS).is_file() and not (folder / MANIFEST).exists():
            self._resume()
        elif folder.exists() and any(folder.iterdir()):
            raise GptfastError(f"{folder} is not empty; name a new folder, or remove this one first")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.save()

    def _resume(self) -> None:
        saved = read_json(self.folder / PROGRESS)
        differing = sorted(key for key in self.settings if saved["settings"].get(key) != self.settings[key])
        if differing:
            raise GptfastError(
                f"{self.folder} holds an unfinished run with other {', '.join(differing)}; "
                "repeat its settings and inputs to go on, or remove the folder"
            )
        self.units, self.shards = saved["units"], saved["shards"]
        for shard in (shard for split in SPLITS for shard in self.shards[split]):
            load_npy(self.folder / shard["file"], np.dtype(self.settings["dtype"]), shard["tokens"])
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()

    def save(self) -> None:
        record = {"settings": self.settings, "units": self.units, "shards": self.shards}
        write_json(self.folder / PROGRESS, record)

    def finish(self, manifest: dict[str, Any]) -> None:
        write_json(self.folder / MANIFEST, manifest)
        (self.folder / PROGRESS).unlink()


class ShardWriter:
    """Appends the tokens of one split; begins a new shard once `shard_tokens` is reached. A context manager."""

    def __init__(self, progress: Progress, split: str, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self._progress, self._split, self._dtype, self._shard_tokens = progress, split, dtype, shard_tokens
        self._units = progress.units[split]
        self._close: contextlib.ExitStack | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._close is not None:
            if error is None:
                self._finish()
            else:
                self._close.__exit__(kind, error, trace)  # removes the unfinished file

    def write(self, ids: np.ndarray, starts: Sequence[int], text_bytes: int) -> None:
        """Append one unit of work: `ids` [n] of the shard's dtype, `starts` where in them documents begin."""
        if self._close is None:
            self._begin(continues=not starts or starts[0] != 0)
        self._file.write(ids.data.cast("B"))
        self._starts.extend(self._tokens + start for start in starts)
        self._tokens += len(ids)
        self._text_bytes += text_bytes
        self._units += 1
        if self._tokens >= self._shard_tokens:
            self._finish()

    def _begin(self, continues: bool) -> None:
        self._name = f"{self._split}-{len(self._progress.shards[self._split]):05d}"
        self._continues, self._tokens, self._text_bytes = continues, 0, 0
        self._starts = [0] if continues else []
        self._close = contextlib.ExitStack()
        self._file: IO[bytes] = self._close.enter_context(atomic_write(self._progress.folder / f"{self._name}.npy"))
        self._header_bytes = self._write_header()

    def _write_header(self) -> int:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._tokens,)}
        np.lib.format.write_array_header_1_0(self._file, header)  # leaves room for the length to grow in place
        return self._file.tell()

    def _finish(self) -> None:
        assert self._close is not None
        with self._close:
            self._file.seek(0)
            if self._write_header() != self._header_bytes:
                raise AssertionError("numpy wrote a header of another size for another length")
        self._close = None
        tokens_file = self._progress.folder / f"{self._name}.npy"
        documents_file = self._progress.folder / f"{self._name}.docs.npy"
        with atomic_write(documents_file) as file:
            np.save(file, np.array(self._starts, dtype=np.int64))
        self._progress.shards[self._split].append(
            {
                "file": tokens_file.name,
                "tokens": self._tokens,
                "sha256": sha256(tokens_file),
                "documents_file": documents_file.name,
                "documents": len(self._starts),
                "documents_sha256": sha256(documents_file),
                "continues": self._continues,
                "text_bytes": self._text_bytes,
            }
        )
        self._progress.units[self._split] = self._units
        self._progress.save()

"""Durable files: what is under its final name is whole, whatever killed the writer."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import GptfastError


def fsync_folder(folder: str | Path) -> None:
    """Make renames inside `folder` survive a power cut. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there is synced and renamed to `path`, on any error removed.

    The file gets the mode that the umask gives, also where a library would make it readable by its owner alone. Raises
    GptfastError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # a name too long, say
            temporary.unlink(missing_ok=True)
        raise GptfastError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # What torch and safetensors make of a disk that is full is no OSError.
        if type(error).__name__ == "SafetensorError" or "inline_container" in str(error):
            raise GptfastError(f"cannot write {path}: {error}; free some space or choose another folder") from error
        raise


def make_folder(path: Path) -> None:
    """With the folders above it. Raises GptfastError where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GptfastError(f"cannot make the folder {path}: {error.strerror}") from None


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """As `atomic_path`, but opened: text is UTF-8."""
    with atomic_path(path) as temporary, open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


def write_json(path: str | Path, value: Any) -> None:
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def read_json(path: str | Path, *required: str) -> dict[str, Any]:
    """The object in a JSON file, which must have the keys `required`. Raises GptfastError that names the file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise GptfastError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise GptfastError(f"{path} is not valid JSON ({error}); restore it or make it again") from error
    missing = [key for key in required if not isinstance(value, dict) or key not in value]
    if missing or not isinstance(value, dict):
        raise GptfastError(f"{path} is damaged: it has no {missing[0] if missing else 'keys'!r}; restore it")
    return value


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

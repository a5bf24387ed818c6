"""Which tokens make each token of a published vocabulary, kept on disk: finding them is most of the time of loading.

A file is named after the sha256 of the vocabulary and begins with the sha256 of the rest. One that is missing, damaged
or not to be written only costs that time, and the core checks every pair it is given: no file can change an id.
"""

from __future__ import annotations

import hashlib
import os
import sys

from ..errors import GptfastError

VARIABLE = "GPTFAST_CACHE_DIR"


def folder() -> str:
    """GPTFAST_CACHE_DIR, or the system's place for caches; "" where there is none or it is switched off."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return chosen
    if os.name == "nt":
        base = os.environ.get("LOCALAPPDATA", "")
    else:
        usual = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser(usual)
    return os.path.join(base, "gptfast") if os.path.isabs(base) else ""


def _path(vocabulary: str) -> str:
    return os.path.join(folder(), f"{vocabulary}.parts")


def read(vocabulary: str) -> bytes:
    """The parts kept for the vocabulary with this sha256; empty where there are none."""
    if not folder():
        return b""
    try:
        with open(_path(vocabulary), "rb") as file:
            digest, parts = file.read(32), file.read()
    except OSError:
        return b""
    return parts if hashlib.sha256(parts).digest() == digest else b""


def write(vocabulary: str, parts: bytes) -> None:
    """Keeps `parts`, if there is a folder that can be written."""
    if not folder():
        return
    from ..files import atomic_write

    try:
        os.makedirs(folder(), exist_ok=True)
        with atomic_write(_path(vocabulary)) as file:
            file.write(hashlib.sha256(parts).digest() + parts)
    except (OSError, GptfastError):
        pass

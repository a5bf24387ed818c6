"""The compiled core `gptfast._core`, where it was built. What is needed everywhere has a twin in plain Python here."""

from __future__ import annotations

import codecs
import functools
import importlib
from types import ModuleType
from typing import Any

from . import __version__


@functools.lru_cache
def load() -> tuple[ModuleType | None, str]:
    """The module gptfast._core and how it was built, or None and the reason why it cannot be used."""
    try:
        module = importlib.import_module("gptfast._core")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        return None, "it was not built" if missing else f"it does not load: {error}"
    if module.__version__ != __version__:
        return None, f"it was built for version {module.__version__} and this is {__version__}"
    return module, "{compiler}, C++{cxx_standard}, {build_type}".format(**module.build_info)


def core() -> ModuleType | None:
    """The module gptfast._core, or None where it cannot be used (`load` says why)."""
    return load()[0]


class PythonUtf8Validator:
    """The twin of gptfast._core.Utf8Validator, with Python's own decoder.

    Offsets are absolute (in bytes, from the first byte fed) and name the start of the first ill-formed sequence.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._seen = 0
        self._invalid: int | None = None

    def feed(self, data: Any, final: bool = False) -> int | None:
        """Read the next bytes (any contiguous buffer). Returns None, or the offset of the first ill-formed sequence."""
        if self._invalid is not None:
            return self._invalid
        chunk = bytes(memoryview(data).cast("B"))
        pending = len(self._decoder.getstate()[0])  # bytes of a sequence that an earlier chunk cut off
        try:
            self._decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            self._invalid = self._seen - pending + error.start
        self._seen += len(chunk)
        return self._invalid

    def finish(self) -> int | None:
        """Say that the stream ends here. Returns None, or the offset of the first ill-formed or unfinished sequence."""
        return self.feed(b"", final=True)


_core = core()
Utf8Validator = _core.Utf8Validator if _core else PythonUtf8Validator

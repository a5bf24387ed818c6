"""`get_encoding`: from a name or a path to an `Encoding`, loaded once a process.

A named vocabulary is looked for where tiktoken keeps it (TIKTOKEN_CACHE_DIR, DATA_GYM_CACHE_DIR, or a folder among the
temporary files), and downloaded by tiktoken where it is not there. Its sha256 is checked each time.
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING

from ..errors import GptfastError
from . import cache, core
from .encoding import Encoding
from .models import encoding_name_for_model
from .published import END_OF_TEXT, PAT_STR, PUBLISHED, Published, Source

if TYPE_CHECKING:
    from pathlib import Path

TIKTOKEN_NAMES = tuple(PUBLISHED)
ENCODING_NAMES = (*TIKTOKEN_NAMES, "bytes")
ENCODINGS: dict[str, Encoding] = {}  # those loaded by name
_by_path: dict[tuple[object, ...], Encoding] = {}
_lock = threading.RLock()


def get_encoding(name: str | os.PathLike[str]) -> Encoding:
    """The encoding called `name`: one of ENCODING_NAMES, or a vocabulary's path (see formats.py).

    Raises GptfastError for an unknown name, or when the vocabulary is damaged, or neither cached nor reachable.
    """
    if isinstance(name, str) and name in ENCODINGS:
        return ENCODINGS[name]
    if not isinstance(name, (str, os.PathLike)):
        raise GptfastError(f"an encoding's name must be a str or a path, not {type(name).__name__}")
    with _lock:
        if name in ENCODINGS:
            return ENCODINGS[str(name)]
        if name == "bytes":
            ENCODINGS["bytes"] = _bytes_encoding()
        elif name in PUBLISHED:
            ENCODINGS[str(name)] = _published(str(name), PUBLISHED[str(name)])
        else:
            return _at_path(name)
        return ENCODINGS[str(name)]


def list_encoding_names() -> list[str]:
    """The names that tiktoken knows too; besides them there is "bytes"."""
    return list(TIKTOKEN_NAMES)


def encoding_for_model(model_name: str) -> Encoding:
    """The encoding of one of OpenAI's models. Raises KeyError for an unknown model."""
    return get_encoding(encoding_name_for_model(model_name))


def _bytes_encoding() -> Encoding:
    """ "bytes": ids 0-255 are the UTF-8 bytes, 256 is <|endoftext|>. Nothing merges, so any pattern serves."""
    special = {END_OF_TEXT: 256}
    bpe = core.build([bytes([value]) for value in range(256)], range(256), special, PAT_STR["gpt2"], "gpt2")
    return Encoding._from_core("bytes", "bytes", bpe, special, 256)


def _at_path(name: str | os.PathLike[str]) -> Encoding:
    import difflib
    from pathlib import Path

    path = Path(name)
    is_path = path.suffix in (".json", ".tiktoken", ".bpe", ".txt") or os.path.dirname(name) or path.exists()
    if isinstance(name, str) and not is_path:
        near = difflib.get_close_matches(name, ENCODING_NAMES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise GptfastError(f"unknown tokenizer {name!r}; {hint}known: {', '.join(ENCODING_NAMES)}")
    from . import formats

    path = path.resolve()
    files = formats.files_of(path)
    key = (path, *((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))
    if key not in _by_path:
        _by_path[key] = formats.load(path)
    return _by_path[key]


def cache_folder() -> str | None:
    """Where tiktoken keeps vocabularies; None where its cache is switched off."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder is not None:
        return folder or None
    import tempfile

    return os.path.join(tempfile.gettempdir(), "data-gym-cache")


def cached_file(name: str) -> Path | None:
    """The file in tiktoken's cache that holds the vocabulary called `name`, or None."""
    from pathlib import Path

    folder = cache_folder()
    paths = [Path(folder, source.cache_name) for source in PUBLISHED[name].sources] if folder else []
    return next((path for path in paths if path.is_file()), None)


def _published(name: str, published: Published) -> Encoding:
    source, data = _find(name, published)
    pat_str, special = PAT_STR[published.pattern], published.special_tokens
    if source.path.endswith(".tiktoken"):
        kept = cache.read(source.sha256)
        bpe = core.from_tiktoken(data, special, pat_str, published.pattern, kept)
        parts = bpe.parts()
        if parts and parts != kept:
            cache.write(source.sha256, parts)
    else:
        from pathlib import Path

        from .formats import tokens_of_merges, unspelt

        where = Path(source.path)
        tokens = unspelt(tokens_of_merges(data.decode(), str(where)), where)
        bpe = core.build(tokens, range(len(tokens)), special, pat_str, published.pattern)
    return Encoding._from_core(name, pat_str, bpe, special, published.n_vocab - 1)


def _find(name: str, published: Published) -> tuple[Source, bytes]:
    """The content of one of the files that hold a vocabulary: the first that is cached and whole, or a download."""
    folder, damaged = cache_folder(), ""
    for source in published.sources if folder else ():
        path = os.path.join(folder or "", source.cache_name)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            continue
        if hashlib.sha256(data).hexdigest() == source.sha256:
            return source, data
        damaged = f"{path} is damaged: its sha256 is not {source.sha256[:12]}...; "
    source = published.sources[0]
    try:
        from tiktoken.load import read_file_cached

        return source, read_file_cached(source.url, source.sha256)
    except (OSError, ValueError, ImportError) as error:  # no network, say, or what came is not what should have come
        reason = str(error).split(" (Caused")[0].splitlines()[0][:200]
        raise GptfastError(
            f"the vocabulary of {name!r} could not be loaded ({damaged}{reason}); set TIKTOKEN_CACHE_DIR to a folder "
            "that holds it, connect once so that it can be downloaded, or use the encoding 'bytes', which needs none"
        ) from error

"""OpenAI's checkpoints, downloaded by size from where OpenAI publishes them, or from a mirror.

A file grows as `<name>.part` and gets its name when it is whole, so that a download that was cut goes on where it
stopped. How long a file is, the server says; of the tensors' data it is also known beforehand (four bytes a parameter),
and each tensor is checked against its CRC-32C in the index when it is read. OpenAI publishes no other checksums.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from ..errors import GptfastError
from ..files import fsync_folder

URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
MIRROR_VARIABLE = "GPTFAST_OPENAI_MIRROR"
DATA = "model.ckpt.data-00000-of-00001"
FILES = ("hparams.json", "encoder.json", "vocab.bpe", "model.ckpt.index", DATA, "checkpoint")
# Bytes of DATA: 4 times the parameters of GPTConfig.preset("gpt2" ... "gpt2-xl").
SIZES = {"124M": 497_759_232, "355M": 1_419_292_672, "774M": 3_096_120_320, "1558M": 6_230_444_800}

_BLOCK = 1 << 20
_TRIES = 5  # a connection that breaks is opened again so often without a byte gained
_TIMEOUT = 60  # seconds without a byte

OnProgress = Callable[[str, int, int], None]  # file, bytes it has, bytes it will have


def cached(size: str) -> Path:
    """The folder in gptfast's cache that holds the checkpoint of a size, downloaded where it is not there yet."""
    from ..tokenizer import cache

    if not cache.folder():
        raise GptfastError(
            f"{cache.VARIABLE} is empty, so there is no cache to download to; run `gptfast weights download "
            f"{size} FOLDER` and give that folder"
        )
    return download(size, Path(cache.folder()) / "openai" / size)


def download(
    size: str,
    folder: Path,
    *,
    mirror: str | None = None,
    progress: OnProgress = lambda name, have, total: None,
) -> Path:
    """Make `folder` hold the files of OpenAI's checkpoint of a size ("124M", "355M", "774M", "1558M"); returns it.

    mirror: an address to take the place of URL, below which files lie as <size>/<file>; GPTFAST_OPENAI_MIRROR does the
    same. Files that are there are kept. Raises GptfastError; a file cut short is then kept and continued next time.
    """
    if size not in SIZES:
        raise GptfastError(f"there is no GPT-2 of size {size!r}; OpenAI published {', '.join(SIZES)}")
    base = (mirror or os.environ.get(MIRROR_VARIABLE) or URL).rstrip("/")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            path = folder / name
            wanted = SIZES[size] if name == DATA else None
            if not path.is_file():
                _fetch(f"{base}/{size}/{name}", path, wanted, progress)
            elif wanted not in (None, path.stat().st_size):
                raise GptfastError(f"{path} has {path.stat().st_size:,} bytes, not {wanted:,}; delete it and try again")
    except OSError as error:
        raise GptfastError(f"cannot write to {folder}: {error.strerror or error}; free some space") from None
    return folder


def _fetch(url: str, path: Path, wanted: int | None, progress: OnProgress) -> None:
    """Download to `path`; `wanted` is the size it must have."""
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        reason = _continue(url, part, wanted, progress)
        if reason is None:
            break
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures == _TRIES:
            kept = f"; {after:,} bytes are kept and the same command goes on from there" if after else ""
            raise GptfastError(
                f"cannot download {url} ({reason}){kept}. Offline? Copy the files from another machine, or name a "
                f"mirror in {MIRROR_VARIABLE}"
            )
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    fsync_folder(path.parent)


def _continue(url: str, part: Path, wanted: int | None, progress: OnProgress) -> str | None:
    """One connection's worth of a download; None when the file is whole, or what broke it. Raises GptfastError for what
    another try cannot mend.
    """
    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            if response.status != 206:  # a server that knows no ranges sends the whole
                have = 0
            elif not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
                part.unlink()
                return "the server continued at another place"
            length = response.headers.get("Content-Length")
            total = have + int(length) if length and length.isdigit() else wanted
            if wanted is not None and total != wanted:
                part.unlink(missing_ok=True)
                raise GptfastError(f"{url} has {total:,} bytes, not {wanted:,}; it is not OpenAI's file")
            if total is None:
                raise GptfastError(f"{url}: the server does not say how long the file is; use another mirror")
            with open(part, "ab" if have else "wb") as file:
                while have < total and (block := response.read(min(_BLOCK, total - have))):
                    file.write(block)
                    have += len(block)
                    progress(part.name.removesuffix(".part"), have, total)
            return None if have == total else f"the connection ended after {have:,} of {total:,} bytes"
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is not the start of what is there
            part.unlink(missing_ok=True)
            return "the server has fewer bytes than were kept"
        if error.code < 500:
            raise GptfastError(f"{url}: the server says {error.code} {error.reason}") from None
        return f"the server says {error.code} {error.reason}"
    except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    except ValueError as error:  # an address that is none
        raise GptfastError(f"{url} is no address: {error}") from None

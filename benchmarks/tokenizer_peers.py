"""The tokenizers that tokenizer.py and tokenizer_suite.py compare, each by the fastest way in its documentation.

    python -m gptfast.benchmarks.tokenizer_peers JOB

is how each runs in a fresh process: JOB is a `Job` as JSON, and one line of JSON comes back. Before the first pass the
vocabulary is loaded, and a call with one letter has paid for imports and threads.
"""

from __future__ import annotations

import base64
import ctypes
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gptfast import __version__
from gptfast.errors import GptfastError
from gptfast.tokenizer.published import PAT_STR
from gptfast.tokenizer.vocabularies import cached_file

DOCUMENT_BYTES = 2048
CL100K = (  # tiktoken's own is possessive and has `$`, which mean something else to other engines
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Job:
    """One tokenizer, one encoding, one text: `passes` timed calls of the method `call`."""

    peer: str
    encoding: str
    """A name of tiktoken's, or the path of a tokenizer.json that gptfast has trained and saved beside a .tiktoken."""
    call: str
    text: str
    """A file of UTF-8."""
    given: str
    """What the call is given: str, bytes, texts (2 KB each); array, list (of ids)."""
    ids: str
    """A .npy with tiktoken's ids: given to decoders, compared with what encoders return, written by `save`."""
    folder: str
    """Where `tokenizer_json` has put its files."""
    passes: int = 1
    threads: int = 1
    save: bool = False


class Peer:
    """A tokenizer with one encoding loaded. What a peer cannot do it has no method for; `ids` and `text` undo what a
    method returns, untimed.
    """

    takes_bytes = takes_array = False

    def __init__(self, job: Job):
        self.threads = job.threads

    def ids(self, result: Any) -> np.ndarray:
        return np.asarray(result)


class Gptfast(Peer):
    takes_bytes = takes_array = True

    def __init__(self, job: Job):
        from gptfast import get_encoding

        super().__init__(job)
        self.encoding = get_encoding(job.encoding)
        self.to_list = self.encoding.encode_ordinary
        self.decode = self.encoding.decode_bytes

    def encode(self, text: str | bytes) -> np.ndarray:
        if isinstance(text, bytes):  # as encode_file does with the memory map of a file
            return self.encoding._bpe.encode_buffer(text, [], self.threads)
        return self.encoding.encode_to_numpy(text, disallowed_special=(), num_threads=self.threads)

    def batch(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return self.encoding.encode_batch_to_numpy(texts, disallowed_special=(), num_threads=self.threads)

    def ids(self, result: Any) -> np.ndarray:
        return result[0] if isinstance(result, tuple) else np.asarray(result)

    def memory(self) -> dict[str, int]:
        return self.encoding._bpe.memory()


class Gigatoken(Peer):
    takes_bytes = takes_array = True

    def __init__(self, job: Job):
        import gigatoken

        super().__init__(job)
        scheme = {"cl100k_base": "gpt4", "o200k_base": "o200k"}.get(job.encoding, "gpt2")
        self.tokenizer = gigatoken.Tokenizer.from_tiktoken(ranks_file(job), scheme, {})
        self.decode = self.tokenizer.decode
        if job.threads == 1:
            self.encode = self.tokenizer.encode  # type: ignore[method-assign]

    def batch(self, texts: list[Any]) -> Any:
        return self.tokenizer.encode_batch(texts, parallel=self.threads > 1)

    def encode(self, text: str | bytes) -> Any:
        return self.batch([text])

    def to_list(self, text: str) -> list[int]:
        return self.tokenizer.encode_batch_list([text], parallel=False)[0]

    def ids(self, result: Any) -> np.ndarray:
        import awkward

        return np.asarray(awkward.flatten(result, axis=None))


class Fastokens(Peer):
    """Patterns that it knows are several times faster than others: its own presets, and GPT-2's in tokenizer.json."""

    def __init__(self, job: Job):
        from fastokens import Tokenizer

        super().__init__(job)
        if job.encoding in ("cl100k_base", "o200k_base"):
            self.tokenizer = Tokenizer.from_tiktoken(
                str(cached_file(job.encoding)), encoding=job.encoding, special_tokens={}
            )
        else:
            self.tokenizer = Tokenizer.from_file(tokenizer_json(job))
        self.batch = self.tokenizer.encode_batch_flat
        self.decode = self.tokenizer.decode

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(self.batch([text])[0], np.uint32)

    def to_list(self, text: str) -> list[int]:
        return self.tokenizer.encode_ordinary(text).ids

    def ids(self, result: Any) -> np.ndarray:
        return np.frombuffer(result[0], np.uint32) if isinstance(result, tuple) else np.asarray(result)


class Tuetoken(Peer):
    takes_array = True

    def __init__(self, job: Job):
        from tuetoken import Tokenizer

        super().__init__(job)
        self.tokenizer = Tokenizer(tokenizer_json(job))
        self.to_list = self.tokenizer.encode_ordinary

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(self.tokenizer.encode_to_bytes(text), np.uint32)

    def batch(self, texts: list[str]) -> np.ndarray:
        return self.tokenizer.encode_ordinary_to_buffer(texts, self.threads)["data"]

    def decode(self, ids: Any) -> str:
        return self.tokenizer.decode(ids) if isinstance(ids, list) else self.tokenizer.decode_array(ids)


class Tokenizers(Peer):
    def __init__(self, job: Job):
        from tokenizers import Tokenizer

        super().__init__(job)
        self.tokenizer = Tokenizer.from_file(tokenizer_json(job))
        self.decode = self.tokenizer.decode

    def to_list(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    encode = to_list  # it has no way to numpy

    def batch(self, texts: list[str]) -> Any:
        return self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    def ids(self, result: Any) -> np.ndarray:
        return np.asarray(result) if isinstance(result[0], int) else np.concatenate([row.ids for row in result])


class Tiktoken(Peer):
    def __init__(self, job: Job):
        import tiktoken

        super().__init__(job)
        if job.encoding.endswith(".json"):
            from tiktoken.load import load_tiktoken_bpe

            how: dict[str, Any] = {"pat_str": PAT_STR["gpt2"], "special_tokens": {}}
            self.encoding = tiktoken.Encoding("t", mergeable_ranks=load_tiktoken_bpe(str(ranks_file(job))), **how)
        else:
            self.encoding = tiktoken.get_encoding(job.encoding)
        self.to_list = self.encoding.encode_ordinary
        self.decode = self.encoding.decode_bytes

    def encode(self, text: str) -> np.ndarray:
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    def batch(self, texts: list[str]) -> list[list[int]]:
        return self.encoding.encode_ordinary_batch(texts, num_threads=self.threads)

    def ids(self, result: Any) -> np.ndarray:
        return np.concatenate(result) if isinstance(result[0], list) else np.asarray(result)


PEERS: dict[str, type[Peer]] = {
    "gptfast": Gptfast,
    "gigatoken": Gigatoken,
    "fastokens": Fastokens,
    "tuetoken": Tuetoken,
    "tokenizers": Tokenizers,
    "tiktoken": Tiktoken,
}


def installed() -> dict[str, str]:
    """The tokenizers that can be imported, with their versions."""
    found = {name: importlib.metadata.version(name) for name in PEERS if name != "gptfast" and find_spec(name)}
    return {"gptfast": __version__} | found


def ranks_file(job: Job) -> Path:
    """The vocabulary as tiktoken's file of ranks."""
    path = Path(job.encoding).with_suffix(".tiktoken") if job.encoding.endswith(".json") else cached_file(job.encoding)
    if path is None:
        raise GptfastError(f"no file of {job.encoding} in TIKTOKEN_CACHE_DIR")
    return path


def tokenizer_json(job: Job) -> str:
    """The vocabulary as a tokenizer.json, which is what tokenizers and tuetoken load; made once a run."""
    path = Path(job.folder, f"{job.encoding.removesuffix('.json')}.json")  # a trained one's own path
    if path.exists():
        return str(path)
    lines = ranks_file(job).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = (byte for byte in range(256) if byte not in plain)
    chars = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(other)}
    spell = "".join
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:  # the merges before its own
            best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], 1 << 32))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append([spell(chars[byte] for byte in part) for part in parts])
    split: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    if job.encoding in ("cl100k_base", "o200k_base"):
        import tiktoken

        pattern = CL100K if job.encoding == "cl100k_base" else tiktoken.get_encoding(job.encoding)._pat_str
        first = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        split = {"type": "Sequence", "pretokenizers": [first, split | {"use_regex": False}]}
    model = {"type": "BPE", "vocab": {spell(chars[b] for b in t): r for t, r in ranks.items()}, "merges": merges}
    decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "decoder": decoder, "model": model}
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def documents(raw: bytes) -> list[bytes]:
    """`raw` in pieces of about 2 KB, cut between characters."""
    cuts, start = [], 0
    while start < len(raw):
        end = min(start + DOCUMENT_BYTES, len(raw))
        while end < len(raw) and raw[end] & 0xC0 == 0x80:
            end -= 1
        cuts.append(raw[start:end])
        start = end
    return cuts


def resident() -> int:
    """This process's resident bytes (Linux), after the C library has given back what it can."""
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS")


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def run(job: Job) -> dict[str, Any]:
    """Seconds, CPU seconds and growth of memory of each pass, whether the result is right, and by how much the process
    has grown in the end.
    """
    if job.threads == 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    raw = Path(job.text).read_bytes()
    # Each pass gets a new object, so that nothing (such as the UTF-8 that a str remembers) is left from the last.
    fresh: dict[str, Callable[[], Any]] = {
        "str": lambda: raw.decode(),
        "bytes": lambda: bytes(bytearray(raw)),
        "texts": lambda: [piece.decode() for piece in documents(raw)],
        "array": lambda: np.load(job.ids).astype(np.uint32),
        "list": lambda: np.load(job.ids).tolist(),
    }
    one = {"str": "a", "bytes": b"a", "texts": ["a"], "array": np.array([64], np.uint32), "list": [64]}
    peer = PEERS[job.peer](job)
    call = getattr(peer, job.call)
    call(one[job.given])
    seconds, cpu, peaks, before = [], [], [], resident()
    for _ in range(job.passes):
        data, result = fresh[job.given](), None
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
        held = status("VmRSS")
        start, used = time.perf_counter(), time.process_time()
        result = call(data)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
        peaks.append(max(0, status("VmHWM") - held))
    if job.call == "decode":
        right = (result.encode() if isinstance(result, str) else result) == raw
    else:
        ids = peer.ids(result).astype(np.uint32)
        if job.save:
            np.save(job.ids, ids)
        right = np.array_equal(ids, np.load(job.ids)) if Path(job.ids).exists() else None
        del ids
    del data, result
    figures = {"seconds": seconds, "cpu": cpu, "peaks": peaks, "right": right}
    return figures | {"grown": resident() - before, "bytes": len(raw)}


def memory(encoding: str, files: list[str]) -> list[tuple[str, int, int]]:
    """After loading and after each file, read by the megabyte: the bytes that gptfast says it holds, and resident."""
    peer = Gptfast(Job("gptfast", encoding, "", "", "", "", ""))
    steps = [("loading", sum(peer.memory().values()), resident())]
    for file in files:
        text = Path(file).read_bytes().decode()
        for start in range(0, len(text), 1 << 20):
            peer.encode(text[start : start + (1 << 20)])
        del text
        steps.append((Path(file).stem, sum(peer.memory().values()), resident()))
    return steps


def as_json(job: Job) -> str:
    return json.dumps(asdict(job))


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        print(json.dumps(memory(sys.argv[2], sys.argv[3:])))
    else:
        print(json.dumps(run(Job(**json.loads(sys.argv[1])))))

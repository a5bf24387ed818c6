"""Training a vocabulary: gptfast against the trainers that are installed (gigabpe, rustbpe, tokenizers).

    python -m gptfast.benchmarks.tokenizer_train TEXT [--megabytes 32] [--vocab-size 32768] [--rounds 5] [--json FILE]

All take turns, each sample in a fresh process, timed from the name of the file to the finished vocabulary. Documents
end at <|endoftext|>, except for gigabpe, which reads files itself and takes every line for a document. "as tokenizers"
is the share of the tokens that tokenizers learned too.
"""

from __future__ import annotations

import json
import lzma
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gptfast.doctor import devices

END_OF_TEXT = "<|endoftext|>"
Tokens = list[bytes]  # in the order in which they were learned
Job = Callable[[], Callable[[], Tokens]]  # what is timed; it returns what tells the tokens afterwards

# The characters that stand for bytes in the files of GPT-2, in order of the bytes' ids.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
BYTE_OF |= {chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(_PRINTABLE)))}


@dataclass(frozen=True)
class Config:
    """Measure the training of a vocabulary."""

    text: tyro.conf.Positional[Path]
    """A UTF-8 text, or one packed as .xz."""
    megabytes: float = 32.0
    """How much of it, from its beginning (1 MB = 1e6 bytes)."""
    vocab_size: int = 32768
    threads: int = 2
    rounds: int = 5
    json: Path | None = None
    """Write the figures to this file too."""


def gptfast(path: Path, vocab_size: int, threads: int) -> Job:
    from gptfast.tokenizer.train import train

    def job() -> Callable[[], Tokens]:
        encoding = train([path], vocab_size, threads=threads)
        return lambda: [encoding.decode_single_token_bytes(i) for i in range(256, vocab_size - 1)]

    return job


def gigabpe(path: Path, vocab_size: int, threads: int) -> Job:
    import gigabpe

    # Its alphabet is the bytes that occur, and not all 256: as many merges as the others learn.
    n_bytes = len(set(path.read_bytes()))

    def job() -> Callable[[], Tokens]:
        _, merges = gigabpe.train_bpe(
            [str(path)],
            vocab_size - 256 + n_bytes,
            special_tokens=[END_OF_TEXT],
            pretokenizer="bytelevel",
            threads=threads,
        )
        return lambda: in_bytes(merges)

    return job


def rustbpe(path: Path, vocab_size: int, threads: int) -> Job:
    import rustbpe

    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

    def job() -> Callable[[], Tokens]:
        tokenizer = rustbpe.Tokenizer()
        documents = path.read_text(encoding="utf-8").split(END_OF_TEXT)
        tokenizer.train_from_iterator(iter(documents), vocab_size - 1, pattern=pattern)
        return lambda: [bytes(token) for token, _ in tokenizer.get_mergeable_ranks()[256:]]

    return job


def tokenizers(path: Path, vocab_size: int, threads: int) -> Job:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    def job() -> Callable[[], Tokens]:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        documents = path.read_text(encoding="utf-8").split(END_OF_TEXT)
        tokenizer.train_from_iterator(documents, trainer)
        return lambda: in_bytes(json.loads(tokenizer.to_str())["model"]["merges"])

    return job


TRAINERS = {trainer.__name__: trainer for trainer in (gptfast, gigabpe, rustbpe, tokenizers)}


def in_bytes(merges: Any) -> Tokens:
    return [bytes(BYTE_OF[char] for char in left + right) for left, right in merges]


def sample(name: str, path: Path, vocab_size: int, threads: int, tokens_file: Path) -> None:
    """Trains once and prints one line of JSON: the work of a fresh process."""
    job = TRAINERS[name](path, vocab_size, threads)
    start = time.perf_counter()
    finish = job()
    seconds = time.perf_counter() - start
    tokens_file.write_text(json.dumps([token.hex() for token in finish()]))
    print(json.dumps({"seconds": seconds, "memory": peak_memory()}))


def peak_memory() -> float | None:
    """Bytes. Not from getrusage, which on Linux counts what this process was before exec too: its parent."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


def run(config: Config, name: str, path: Path, tokens_file: Path) -> dict[str, Any]:
    arguments = [name, path, config.vocab_size, config.threads, tokens_file]
    environment = os.environ | {"RAYON_NUM_THREADS": str(config.threads), "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, "-m", "gptfast.benchmarks.tokenizer_train", "--sample", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def memory(samples: list[dict[str, Any]]) -> str:
    peaks = [sample["memory"] for sample in samples if sample["memory"]]
    return f"{max(peaks) / 1e6:.0f}" if peaks else ""


def agreement(tokens: list[str], reference: list[str]) -> str:
    if tokens == reference:
        return "all, in order"
    return f"{len(set(tokens) & set(reference)) / len(reference):.2%}"


def main() -> None:
    config = tyro.cli(Config)
    with (lzma.open if config.text.suffix == ".xz" else open)(config.text, "rb") as file:
        data = file.read(int(config.megabytes * 1e6)).decode("utf-8", errors="ignore").encode()
    names = [name for name in TRAINERS if find_spec(name)]
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    tokens: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(data)
        for _ in track(range(config.rounds), transient=True):
            for name in names:
                tokens_file = Path(folder) / f"{name}.json"
                samples[name].append(run(config, name, path, tokens_file))
                tokens[name] = json.loads(tokens_file.read_text())

    seconds = {name: statistics.median(s["seconds"] for s in samples[name]) for name in names}
    table = Table("", "version", "seconds", "fastest", "MB/s", "x gptfast", "memory, MB", "as tokenizers")
    for name in names:
        table.add_row(
            name,
            version("gptfast-kernels" if name == "gptfast" else name),
            f"{seconds[name]:.3f}",
            f"{min(s['seconds'] for s in samples[name]):.3f}",
            f"{len(data) / 1e6 / seconds[name]:.0f}",
            f"{seconds[name] / seconds['gptfast']:.2f}",
            memory(samples[name]),
            agreement(tokens[name], tokens["tokenizers"]) if "tokenizers" in names else "",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{len(data) / 1e6:.1f} MB, {config.vocab_size:,} tokens, {config.threads} threads, medians of {config.rounds}"
    )
    if config.json:
        record = {
            "config": asdict(config) | {"text": config.text.name, "json": None},
            "machine": next(devices()).value,
            "python": platform.python_version(),
            "versions": {name: version("gptfast-kernels" if name == "gptfast" else name) for name in names},
            "samples": samples,
            "median_seconds": seconds,
            "times_gptfast": {name: seconds[name] / seconds["gptfast"] for name in names},
        }
        config.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sample"]:
        sample(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), Path(sys.argv[6]))
    else:
        main()

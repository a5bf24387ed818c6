"""How fast weights load, and how much memory that takes at its peak.

    python benchmarks/load_weights.py [--size gpt2-xl] [--dtype bf16] [--format safetensors] [--json FILE]

Makes a random checkpoint in a temporary folder, loads it in child processes, and prints the median seconds, GB/s beside
those of only reading the file, and the largest growth of the process's resident memory, mapped files included, over the
bytes of the weights. The file is in the page cache: the disk is not what is timed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

import gptfast
from gptfast.doctor import devices, versions
from gptfast.weights.huggingface import config_values
from gptfast.weights.layout import MATRICES, parameters

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

CHILD = """
import json, sys, time
import torch, gptfast
from gptfast.weights import load_weights  # what is imported is no part of the load
from safetensors import safe_open
def memory():
    lines = [line.split() for line in open("/proc/self/status") if line.startswith("Vm")]
    return {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in lines}

resident = memory()["VmRSS"]
began = time.perf_counter()
model = load_weights(sys.argv[1])
seconds = time.perf_counter() - began
print(json.dumps([seconds, memory()["VmHWM"] - resident, sum(p.nbytes for p in model.parameters())]))
"""


@dataclass
class Options:
    size: str = "gpt2-xl"
    """A preset of GPTConfig."""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """The type of the weights."""
    format: Literal["safetensors", "bin", "nanogpt"] = "safetensors"
    """Hugging Face's model.safetensors or pytorch_model.bin, or nanoGPT's ckpt.pt."""
    rounds: int = 3
    """Loads, each in a process of its own."""
    json: Path | None = None
    """Also write the figures here."""


def write_checkpoint(folder: Path, options: Options) -> Path:
    """A checkpoint of random numbers; returns its one large file."""
    config = gptfast.GPTConfig.preset(options.size)
    numbers = torch.randn(1 << 20, dtype=torch.float32).to(DTYPES[options.dtype])
    state = {}
    for name, shape in parameters(config).items():
        shape = shape[::-1] if options.format != "nanogpt" and name.endswith(MATRICES) else shape
        count = torch.Size(shape).numel()
        state[f"transformer.{name}"] = numbers.repeat(-(-count // len(numbers)))[:count].clone().view(shape)
    del state["transformer.lm_head.weight"]
    if options.format == "nanogpt":
        args = {"vocab_size": 50257, "block_size": 1024, "n_layer": config.n_layer, "n_head": config.n_head}
        value = {"model": state, "model_args": args | {"n_embd": config.n_embd}}
        torch.save(value, folder / "ckpt.pt")
        return folder / "ckpt.pt"
    (folder / "config.json").write_text(json.dumps(config_values(config)))
    if options.format == "bin":
        torch.save(state, folder / "pytorch_model.bin")
        return folder / "pytorch_model.bin"
    from safetensors.torch import save_file

    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def read_rate(path: Path) -> float:
    """Bytes a second of reading a file into one buffer, the best of three."""
    buffer = bytearray(64 << 20)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        best = min(best, time.perf_counter() - began)
    return path.stat().st_size / best


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory(prefix="gptfast-weights-") as folder:
        path = write_checkpoint(Path(folder), options)
        rate = read_rate(path)
        runs = []
        for _ in range(options.rounds):
            result = subprocess.run([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, check=True)
            runs.append(json.loads(result.stdout))
    seconds = statistics.median(run[0] for run in runs)
    growth, size = max(run[1] for run in runs), runs[0][2]
    figures = {
        "size": options.size, "dtype": options.dtype, "format": options.format, "bytes": size, "seconds": seconds,
        "gb_per_second": size / seconds / 1e9, "read_gb_per_second": rate / 1e9, "peak_over_weights": growth / size,
        "machine": {finding.name: finding.value for finding in [*devices(), *versions()]},
    }  # fmt: skip
    print(
        f"{options.size} {options.dtype} {options.format}: {size / 1e9:.2f} GB in {seconds:.2f} s, "
        f"{figures['gb_per_second']:.2f} GB/s (reading alone: {figures['read_gb_per_second']:.2f}), "
        f"peak memory {figures['peak_over_weights']:.3f} x the weights"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

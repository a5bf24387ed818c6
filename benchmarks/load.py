"""Loading a checkpoint: seconds, and the most memory that it takes, in a process of its own each time.

Random weights in Hugging Face's model.safetensors, and without --quick also in pytorch_model.bin and nanoGPT's ckpt.pt.
The file is in the page cache: the disk is not what is timed, nor are imports. `read file` only reads it into one
buffer; `safetensors` is load_file, which maps the file, and a copy of each tensor; `transformers`, which leaves it
mapped, reads a number of each page. The sum of all numbers is checked.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptfast import GPTConfig

from .machine import Peak
from .suite import Call, Case, Setup, Timed

FILES = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin", "nanogpt": "ckpt.pt"}


def cases(setup: Setup) -> Iterator[Case]:
    """Preset, dtype, format; the large one is left out on a quick run, which writes 0.5 GB."""
    chosen = [("gpt2", torch.float32, "safetensors")]
    if not setup.quick:
        chosen += [("gpt2", torch.float32, "bin"), ("gpt2", torch.float32, "nanogpt")]
        chosen += [("gpt2-xl", torch.bfloat16, "safetensors")]
    if setup.dry:
        chosen = [("tiny", torch.float32, name) for name in FILES]
    for preset, dtype, kind in chosen:
        with tempfile.TemporaryDirectory(prefix="gptfast-bench-") as folder:
            yield _case(setup, preset, dtype, kind, Path(folder) / FILES[kind])


def _case(setup: Setup, preset: str, dtype: torch.dtype, kind: str, path: Path) -> Case:
    size, total = write_checkpoint(path, preset, dtype, kind)
    names = ["gptfast", "read file", "safetensors"] if kind == "safetensors" else ["gptfast", "torch.load"]
    if setup.peers and kind != "nanogpt" and importlib.util.find_spec("transformers"):
        names += ["transformers"]
    job = measured if setup.dry else fresh

    def form(name: str) -> Callable[..., Call]:
        return lambda: lambda: job(name, path)

    return Case(
        "load", f"load {FILES[kind]}", f"{preset}, {size / 1e9:.3g} GB", str(dtype).removeprefix("torch."), tuple,
        {name: form(name) for name in names}, work=size, unit="GB/s", of=None if setup.on_gpu else "host copy",
        need=2 * size, reference=lambda: torch.tensor(total, dtype=torch.float64),
    )  # fmt: skip


def write_checkpoint(path: Path, preset: str, dtype: torch.dtype, kind: str) -> tuple[int, float]:
    """A checkpoint of random numbers; returns the bytes of its tensors, and the sum of all numbers."""
    from gptfast.weights.huggingface import config_values
    from gptfast.weights.layout import MATRICES, parameters

    config = GPTConfig.preset(preset)
    numbers = torch.randn(1 << 20).to(dtype)
    state = {}
    for name, shape in parameters(config).items():
        shape = shape[::-1] if kind != "nanogpt" and name.endswith(MATRICES) else shape
        count = torch.Size(shape).numel()
        state[f"transformer.{name}"] = numbers.repeat(-(-count // len(numbers)))[:count].clone().view(shape)
    del state["transformer.lm_head.weight"]
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path, {"format": "pt"})
    elif kind == "bin":
        torch.save(state, path)
    else:
        args = {"vocab_size": config.vocab_size, "block_size": config.context_length, "n_layer": config.n_layer}
        torch.save({"model": state, "model_args": args | {"n_head": config.n_head, "n_embd": config.n_embd}}, path)
    if kind != "nanogpt":
        path.with_name("config.json").write_text(json.dumps(config_values(config)), encoding="utf-8")
    return sum(tensor.nbytes for tensor in state.values()), added(state.values())


def added(tensors: Iterable[Tensor]) -> float:
    return sum(tensor.sum(dtype=torch.float64).item() for tensor in tensors)


def prepared(name: str, path: Path) -> tuple[Callable[[], Any], Callable[[Any], Iterable[Tensor]]]:
    """What loads a checkpoint, all of it imported, and what then gives the tensors."""
    if name == "gptfast":
        from gptfast.weights import load_weights

        return lambda: load_weights(path), lambda model: model.parameters()
    if name == "transformers":
        from transformers import GPT2LMHeadModel

        def from_pretrained() -> Any:
            model: Any = GPT2LMHeadModel.from_pretrained(path.parent, dtype="auto")
            for weight in model.parameters():  # it only maps the file: read a number of each page of 4 KB
                weight.detach().flatten()[:: 4096 // weight.itemsize].sum()
            return model

        return from_pretrained, lambda model: model.parameters()
    if name == "torch.load":
        return lambda: torch.load(path, weights_only=True), lambda state: state.get("model", state).values()
    from safetensors.torch import load_file, safe_open

    if name == "safetensors":
        return lambda: {key: tensor.clone() for key, tensor in load_file(path).items()}, lambda state: state.values()
    with safe_open(path, framework="pt") as file:
        dtype = file.get_tensor(next(iter(file.keys()))).dtype

    def read() -> bytearray:
        buffer = bytearray(path.stat().st_size)
        with open(path, "rb", buffering=0) as file:
            view = memoryview(buffer)
            while view and (count := file.readinto(view)):  # Linux reads at most 2 GB at a time
                view = view[count:]
        return buffer

    def contents(buffer: bytearray) -> Iterable[Tensor]:
        return [torch.frombuffer(buffer, dtype=dtype, offset=8 + int.from_bytes(buffer[:8], "little"))]

    return read, contents


def measured(name: str, path: Path) -> Timed:
    """Seconds, the sum of all numbers, and the most that this process's memory grew by, mapped files included."""
    load, tensors = prepared(name, path)
    with Peak(torch.device("cpu")) as peak:
        start = time.perf_counter()
        loaded = load()
        seconds = time.perf_counter() - start
    return Timed(seconds, torch.tensor(added(tensors(loaded)), dtype=torch.float64), peak.bytes)


def fresh(name: str, path: Path) -> Timed:
    """`measured` in a new process."""
    command = [sys.executable, "-m", "gptfast.benchmarks.load", name, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1])
    seconds, total, peak = json.loads(done.stdout.splitlines()[-1])
    return Timed(seconds, torch.tensor(total, dtype=torch.float64), peak)


if __name__ == "__main__":
    found = measured(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps([found.seconds, found.outputs.item(), found.peak_bytes]))

"""gptfast and a plain PyTorch GPT-2 trained side by side: same weights, same batches, same optimizer; losses overlaid.

    gptfast bench convergence [--steps N] [--data SHARDS_OR_TEXT] [--out FOLDER] [--dry]

In bf16 where the device multiplies it: gptfast on its bf16 copy, the plain model under autocast. Without --data the
text is made by a rule (an order-2 Markov chain), whose entropy is the loss that no model can beat. Steps take turns,
and each is timed; OUT gets losses.json and losses.png.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gptfast
from gptfast.data import RandomOffsets, TokenSet, open_tokens
from gptfast.errors import GptfastError
from gptfast.files import atomic_path, make_folder, write_json
from gptfast.machine import choose_device, synchronize
from gptfast.optim import learning_rate
from gptfast.precision import choose

from . import machine, models

OURS, PLAIN = "gptfast", "plain PyTorch"
SYMBOLS, SUCCESSORS = 48, 4


@dataclass(frozen=True)
class Text:
    """Tokens to train on, and the loss that no model can beat, where it is known."""

    tokens: TokenSet
    floor: float | None = None


def markov(length: int = 1 << 20, symbols: int = SYMBOLS, seed: int = 0) -> Text:
    """Tokens of a source in which a symbol has SUCCESSORS next ones, as likely as the two symbols before say: the first
    is learned in some dozens of steps, the second in hundreds.
    """
    generator = np.random.default_rng(seed)
    following = np.stack([generator.choice(symbols, SUCCESSORS, replace=False) for _ in range(symbols)])
    weights = generator.dirichlet(np.ones(SUCCESSORS), size=(symbols, symbols))
    chains = min(256, max(1, length // 64))  # side by side, one after the other in the text
    a, b = generator.integers(symbols, size=(2, chains))
    out, entropy = np.empty((chains, -(-length // chains)), dtype=np.uint16), 0.0
    for i in range(out.shape[1]):
        p = weights[a, b]
        choice = (generator.random((chains, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
        entropy -= float((p * np.log(p)).sum()) / out.size
        a, b = b, following[b, choice]
        out[:, i] = b
    return Text(TokenSet.from_array(out.ravel(), encoding_name="markov", n_vocab=symbols), entropy)


def read(data: Path, tokenizer: str) -> Text:
    """Prepared tokens, or a UTF-8 text in bytes or GPT-2's tokens. Raises GptfastError."""
    if data.is_dir() or data.suffix == ".bin":
        return Text(open_tokens(data))
    from gptfast.data.readers import read_text

    text = read_text(data)
    if tokenizer == "gpt2":
        return Text(TokenSet.from_array(gptfast.get_encoding("gpt2").encode_to_numpy(text, allowed_special="all")))
    numbers = np.frombuffer(text.encode(), dtype=np.uint8)
    return Text(TokenSet.from_array(numbers, encoding_name="bytes", n_vocab=256))


def run(
    config: gptfast.GPTConfig, tokens: TokenSet, B: int, steps: int, lr: float, device: torch.device, dtype: torch.dtype
) -> Iterator[dict[str, tuple[float, float]]]:
    """Train both from the same weights; after each step, by name, the loss and the seconds."""
    ours = models.ours(config, device, dtype, lr)
    plain = models.plain(config, device, lr)
    plain.model.load_state_dict(ours.model.state_dict())
    assert ours.copy is not None
    each = {
        OURS: (ours, models.our_step(ours, ours.copy.model)),
        PLAIN: (plain, models.plain_step(plain, plain.model, dtype == torch.bfloat16)),
    }
    sampler = RandomOffsets(tokens, config.context_length)
    for n in range(steps):
        rows = torch.from_numpy(np.stack([sampler.row(n * B + i).tokens for i in range(B)])).to(device)  # [B, T + 1]
        idx, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        rate = learning_rate(n, steps, lr, warmup=max(1, steps // 20))
        found = {}
        for name, (training, step) in each.items():
            for group in training.optimizer.param_groups:
                group["lr"] = rate
            found[name] = _timed(step, idx, targets)
        yield found


def _timed(step: models.Step, idx: Tensor, targets: Tensor) -> tuple[float, float]:
    synchronize(idx.device)
    start = time.perf_counter()
    loss = step(idx, targets).item()
    synchronize(idx.device)
    seconds = time.perf_counter() - start
    if not math.isfinite(loss):
        raise GptfastError(f"the loss became {loss}")
    return loss, seconds


def smoothed(values: list[float], width: int) -> np.ndarray:
    """The mean of each `width` successive values."""
    return np.convolve(values, np.full(width, 1 / width), mode="valid")


def summary(rows: list[dict[str, tuple[float, float]]], tokens_a_step: int) -> dict[str, Any]:
    """Losses and tokens/s of both, and the largest difference of the means over a twentieth of the steps."""
    losses = {name: [row[name][0] for row in rows] for name in (OURS, PLAIN)}
    steady = rows[len(rows) // 10 :]  # kernels are compiled in the first
    speed = {name: tokens_a_step / statistics.median(row[name][1] for row in steady) for name in losses}
    width = max(1, len(rows) // 20)
    ours, plain = (smoothed(x, width) for x in losses.values())
    return {
        "steps": len(rows), "tokens_per_second": speed, "final_loss": {n: float(smoothed(x, width)[-1])
        for n, x in losses.items()}, "smoothed_over": width, "largest_difference": float(np.abs(ours - plain).max()),
        "losses": losses,
    }  # fmt: skip


def plot(found: dict[str, Any], path: Path) -> None:
    """The losses over each other, and their difference below, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps, width = np.arange(1, found["steps"] + 1), found["smoothed_over"]
    for name, color, style in ((PLAIN, "C1", "-"), (OURS, "C0", "--")):
        label = f"{name}: {found['final_loss'][name]:.4f}, {found['tokens_per_second'][name]:,.0f} tokens/s"
        above.plot(steps, found["losses"][name], color=color, linestyle=style, linewidth=1.2, label=label)
    if found["floor"] is not None:
        above.axhline(found["floor"], color="0.5", linewidth=0.8, label=f"entropy of the source: {found['floor']:.4f}")
    above.set(ylabel="loss (nats per token)", title=f"the same run twice: {found['model']}, {found['dtype']}")
    above.grid(alpha=0.3)
    above.legend()
    difference = np.subtract(found["losses"][OURS], found["losses"][PLAIN])
    below.plot(steps, difference, color="0.7", linewidth=0.8, label="each step")
    below.plot(steps[width - 1 :], smoothed(list(difference), width), color="C0", label=f"mean of {width}")
    below.set(xlabel="step", ylabel="difference")
    below.grid(alpha=0.3)
    below.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gptfast bench convergence", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, help="300 on a GPU, 200 on a CPU")
    parser.add_argument("--data", type=Path, help="a folder of prepared tokens, or a UTF-8 text; else a text is made")
    parser.add_argument("--tokenizer", choices=("bytes", "gpt2"), default="bytes", help="of a text (default: bytes)")
    parser.add_argument("--out", type=Path, default=Path("convergence"), help="folder of losses.json and losses.png")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N")
    parser.add_argument("--dry", action="store_true", help="a few steps of a tiny model, to see whether it runs")
    options = parser.parse_args(argv)
    device = choose_device(options.device)
    steps = options.steps or (10 if options.dry else 300 if device.type == "cuda" else 200)
    if steps < 1:
        raise GptfastError(f"--steps is {steps}; it must be at least 1")
    make_folder(options.out)
    text = read(options.data, options.tokenizer) if options.data else markov(1 << 12 if options.dry else 1 << 20)
    vocab = -(-text.tokens.n_vocab // 64) * 64
    if options.dry:
        config, B = gptfast.GPTConfig(vocab, 16, 2, 2, 32, activation="gelu"), 2
    elif device.type == "cuda":
        config, B = gptfast.GPTConfig(vocab, 256, 6, 6, 384, activation="gelu"), 32  # nanoGPT's GELU is the exact one
    else:
        config, B = gptfast.GPTConfig(vocab, 64, 4, 4, 128, activation="gelu"), 12
    dtype = torch.float32 if options.dry else choose(device).dtype
    torch.manual_seed(0)
    rows = []
    for row in run(config, text.tokens, B, steps, 1e-3, device, dtype):
        rows.append(row)
        if len(rows) % max(1, steps // 10) == 0:
            print(f"step {len(rows)}: " + ", ".join(f"{n} {loss:.4f}" for n, (loss, _) in row.items()), flush=True)
    found = summary(rows, B * config.context_length)
    c = config
    found = {
        "machine": machine.describe(device), "config": c.to_dict(), "batch": B, "data": str(options.data or "markov"),
        "dtype": str(dtype).removeprefix("torch."), "floor": text.floor,
        "model": f"{c.n_layer} layers, width {c.n_embd}, B={B}, T={c.context_length}, V={c.vocab_size}", **found,
    }  # fmt: skip
    write_json(options.out / "losses.json", found)
    for name in (OURS, PLAIN):
        print(f"{name}: loss {found['final_loss'][name]:.4f}, {found['tokens_per_second'][name]:,.0f} tokens/s")
    print(f"largest difference of the means of {found['smoothed_over']} steps: {found['largest_difference']:.2g}")
    if importlib.util.find_spec("matplotlib") is None:
        raise GptfastError(f"the losses are in {options.out}; their plot needs matplotlib: pip install matplotlib")
    plot(found, options.out / "losses.png")
    return 0

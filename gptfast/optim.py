"""AdamW with weight decay on matrices only, and the learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from .errors import GptfastError


def adamw(
    model: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.1
) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov & Hutter 2019) over `model`; biases and LayerNorm weights do not decay (GPT-3, appendix
    B).
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


def learning_rate(
    step: int,
    steps: int,
    peak: float,
    *,
    schedule: str = "cosine",
    warmup: int = 0,
    floor: float = 0.1,
    decay: float = 0.2,
) -> float:
    """The rate for step 0..steps-1: linear warm-up to `peak`, then the schedule down to `floor * peak`.

    "cosine": half a cosine over the rest (GPT-3, appendix B). "wsd": constant, then linear over the last `decay` of all
    steps (Hu et al. 2024, MiniCPM). "constant": no decay.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    start = warmup if schedule == "cosine" else max(warmup, int(steps * (1 - decay)))
    done = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    if schedule == "cosine":
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
    if schedule == "wsd":
        return peak * (1 - (1 - floor) * done)
    raise GptfastError(f'unknown schedule {schedule!r}; choose "cosine", "wsd" or "constant"')

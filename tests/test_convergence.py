"""A model trained on real text with gptfast's operations, with plain PyTorch's, and with the reference in fp64.

Losses, gradients and parameters obey the error rule all along.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gptfast.kernels import launch, reference
from torch.nn import functional as F

import gptfast.model
from gptfast import GPT, GPTConfig, ops
from gptfast.precision import ComputeCopy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXT = Path(__file__).parents[1] / "LICENSE"  # a text that does not change
CONFIG = GPTConfig(vocab_size=256, context_length=32, n_layer=4, n_head=2, n_embd=32, window=(None, 9))


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors are small; on a busy machine two threads wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plain_attention(qkv, *, dropout_p, window, cu_seqlens):
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    seen = reference.attention_mask(*2 * [q.shape[2]], window=window, device=qkv.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)


PLAIN = SimpleNamespace(
    causal_attention_qkvpacked=plain_attention,
    layer_norm=lambda x, w, b, eps: F.layer_norm(x, x.shape[-1:], w, b, eps),
    add_layer_norm=lambda x, r, w, b, eps, p: (F.layer_norm(r + x, x.shape[-1:], w, b, eps), r + x),
    linear_gelu=lambda x, w, b, how: F.gelu(F.linear(x, w, b), approximate=how),
    embedding=lambda idx, wte, wpe, p, start: F.embedding(idx, wte) + wpe[: idx.shape[1]],
    linear_cross_entropy=lambda x, w, t: F.cross_entropy((x @ w.T).float(), t),
)
REFERENCE = SimpleNamespace(
    **{name: getattr(reference, name) for name in vars(PLAIN) if name != "linear_gelu"},
    linear_gelu=lambda x, w, b, how: reference.bias_gelu(F.linear(x, w), b, how),
)


class Run:
    """Stochastic gradient descent with momentum: Adam would blow up the rounding of gradients that are zero."""

    def __init__(self, operations, dtype):
        torch.manual_seed(0)
        self.operations = operations
        self.model = GPT(CONFIG).to(DEVICE, torch.float64 if dtype == torch.float64 else torch.float32)
        self.copy = ComputeCopy(self.model, dtype if dtype == torch.bfloat16 else torch.float32)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def step(self, idx, targets, monkeypatch):
        monkeypatch.setattr(gptfast.model, "ops", self.operations)
        self.copy.clear_gradients()
        self.optimizer.zero_grad()
        loss = self.copy.model(idx, targets)
        loss.backward()
        self.copy.collect_gradients()
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters()]).double()
        self.optimizer.step()
        self.copy.refresh()
        parameters = torch.cat([p.detach().flatten() for p in self.model.parameters()]).double()
        return {"loss": loss.detach().double(), "gradient": gradient, "parameters": parameters}


def batch(n, B=4):
    tokens = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
    starts = torch.randint(len(tokens) - 33, (B,), generator=torch.Generator().manual_seed(n))
    rows = torch.stack([tokens[s : s + 33] for s in starts]).to(DEVICE)
    return rows[:, :-1], rows[:, 1:].contiguous()


def train(steps, dtype, monkeypatch, B=4):
    """The losses, and by name the errors of "loss", "gradient" and "parameters" at each step, relative in the norm."""
    runs = {"ours": Run(ops, dtype), "torch": Run(PLAIN, dtype), "reference": Run(REFERENCE, torch.float64)}
    errors = {name: {"loss": [], "gradient": [], "parameters": []} for name in ("ours", "torch")}
    losses = []
    for n in range(steps):
        found = {name: run.step(*batch(n, B), monkeypatch) for name, run in runs.items()}
        losses.append(found["ours"]["loss"].item())
        for what, ref in found["reference"].items():
            for name in errors:
                errors[name][what].append(((found[name][what] - ref).norm() / ref.norm()).item())
    return losses, errors


def assert_rule(errors):
    """Twice PyTorch's error, and what fp32, the dtype of the parameters and the loss, resolves.

    Parameters at every step, and they hold every gradient before; losses and gradients over all steps, for the error of
    one number, or of one gradient of parameters that have drifted apart, is luck.
    """

    def mean(values):
        return [math.sqrt(sum(x * x for x in values) / len(values))]

    for what in ("loss", "gradient", "parameters"):
        ours, torchs = (x[what] if what == "parameters" else mean(x[what]) for x in errors.values())
        for n, (error, allowed) in enumerate(zip(ours, torchs, strict=True)):
            assert error <= 2 * allowed + 2 * torch.finfo(torch.float32).eps, (what, n, error, allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_200_steps(dtype, monkeypatch):
    losses, errors = train(200, dtype, monkeypatch)
    assert losses[0] == pytest.approx(math.log(256), rel=0.02) and sum(losses[-10:]) / 10 < 3.3
    assert_rule(errors)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the test above runs the kernels")
def test_the_kernels_in_the_interpreter(monkeypatch):
    rows = {
        key: [(T, dataclasses.replace(row, prefer="triton")) for T, row in rows] for key, rows in launch.table().items()
    }
    monkeypatch.setattr(launch, "table", lambda: rows)
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(ops, "TRITON_DEVICES", {"cpu"})
    launch.choose.cache_clear()
    _, errors = train(6, torch.float32, monkeypatch, B=1)
    launch.choose.cache_clear()
    assert_rule(errors)

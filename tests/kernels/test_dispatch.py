"""gptfast.ops: what runs in Triton, and that a model gives the same with it. A CPU is taken for a GPU."""

from __future__ import annotations

import collections
import dataclasses

import pytest
import torch
from gptfast.kernels import checks, launch
from torch.utils._python_dispatch import TorchDispatchMode

from gptfast import GPT, GPTConfig, ops

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU every test of the model takes this path")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(ops, "TRITON_DEVICES", {"cpu"})
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")
    yield
    launch.choose.cache_clear()


@pytest.fixture
def calls(monkeypatch):
    """The names of the forms that run."""
    from gptfast.kernels import attention

    from gptfast import aten

    seen = []
    for module, name in (
        (attention, "causal_attention"),
        (attention, "causal_attention_qkvpacked"),
        (aten, "causal_attention"),
    ):
        original, label = getattr(module, name), f"{module.__name__.split('.')[-1]}.{name}"

        def call(*args, original=original, label=label, **kwargs):
            seen.append(label)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)
    return seen


def measured(monkeypatch, prefer):
    """Every row of the table as if a GPU had measured it so."""
    rows = {
        key: [(T, dataclasses.replace(row, prefer=prefer)) for T, row in rows] for key, rows in launch.table().items()
    }
    monkeypatch.setattr(launch, "table", lambda: rows)
    launch.choose.cache_clear()


def test_what_runs_where(calls, monkeypatch):
    q, k, v = torch.randn(1, 20, 3, 2, 16).unbind(2)
    ops.causal_attention(q, k, v)
    assert calls.pop() == "aten.causal_attention"  # not measured: PyTorch's own
    ops.causal_attention(q, k, v, window=4)
    assert calls.pop() == "attention.causal_attention"
    ops.causal_attention(q, k, v, cu_seqlens=torch.tensor([0, 3, 20], dtype=torch.int32))
    assert calls.pop() == "attention.causal_attention"
    measured(monkeypatch, "triton")
    ops.causal_attention(q, k, v)
    assert calls.pop() == "attention.causal_attention"
    ops.causal_attention_qkvpacked(torch.randn(1, 20, 3, 2, 16))
    assert calls.pop() == "attention.causal_attention_qkvpacked"
    for wrong in (
        (q[..., :12], k[..., :12], v[..., :12]),
        (q.double(), k.double(), v.double()),
        (q.mT.contiguous().mT, k, v),
    ):
        ops.causal_attention(*wrong)
        assert calls.pop() == "aten.causal_attention"
    measured(monkeypatch, "torch")
    ops.causal_attention(q, k, v)
    assert calls.pop() == "aten.causal_attention"
    monkeypatch.setattr(ops, "TRITON_DEVICES", {"cuda"})
    ops.causal_attention(q, k, v, window=4)
    assert calls.pop() == "aten.causal_attention"


def loss_and_gradients(model, idx, targets, cu_seqlens, run=None):
    model.zero_grad()
    loss = (model if run is None else run)(idx, targets, cu_seqlens)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_with_windows_and_documents(compiled, calls, monkeypatch):
    measured(monkeypatch, "triton")
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=64, context_length=64, n_layer=2, n_head=2, n_embd=32, window=[None, 9])
    model = GPT(config)
    idx, targets = torch.randint(64, (2, 2, 50))
    cuts = torch.tensor([0, 20, 50, 93, 100], dtype=torch.int32)
    torch._dynamo.reset()
    run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else None
    with_kernels = loss_and_gradients(model, idx, targets, cuts, run)
    assert compiled or set(calls) == {"attention.causal_attention_qkvpacked"}
    monkeypatch.setattr(ops, "TRITON_DEVICES", set())
    for a, b in zip(with_kernels, loss_and_gradients(model, idx, targets, cuts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_compiled_for_any_shape(monkeypatch):
    measured(monkeypatch, "triton")
    torch._dynamo.reset()
    compiled = torch.compile(ops.causal_attention_qkvpacked, fullgraph=True, backend="aot_eager", dynamic=True)
    for T in (20, 33):
        qkv = torch.randn(1, T, 3, 2, 16)
        torch.testing.assert_close(compiled(qkv), ops.causal_attention_qkvpacked(qkv))


def test_decode_attention_takes_what_it_takes_on_a_cpu():
    q, k, v = torch.randn(2, 1, 2, 16, requires_grad=True), *torch.randn(2, 2, 20, 2, 16).unbind(0)
    lengths = torch.tensor([3, 20])  # int64
    with_gradient = ops.decode_attention(q, k, v, lengths)
    assert with_gradient.requires_grad
    torch.testing.assert_close(ops.decode_attention(q.detach(), k, v, lengths), with_gradient.detach())


def test_documents_that_do_not_fit_are_refused():
    model = GPT(GPTConfig(vocab_size=64, context_length=64, n_layer=1, n_head=2, n_embd=32))
    for cuts in ([0, 30], [0, 30, 20, 40]):
        with pytest.raises(ValueError, match=r"it must rise from 0 to B \* T = 40 and never decrease"):
            model(torch.zeros(1, 40, dtype=torch.long), cu_seqlens=torch.tensor(cuts, dtype=torch.int32))


class Launches(TorchDispatchMode):
    """How often each operator that is no view was called."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        schema = function._schema
        if "view" not in schema.name and not any(a.alias_info and not a.alias_info.is_write for a in schema.arguments):
            self.count[schema.name.removeprefix("aten::").replace("gptfast::", "gptfast.")] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_one_step_launches(dropout, monkeypatch):
    """Between the matrix products of the forward stands one kernel each. 2 layers."""
    measured(monkeypatch, "triton")
    monkeypatch.setattr(checks, "_check_range", lambda *_: None)  # as on a GPU
    model = GPT(GPTConfig(vocab_size=64, context_length=32, n_layer=2, n_head=2, n_embd=32, dropout=dropout))
    idx, targets = torch.randint(64, (2, 2, 20))
    with Launches() as forward:
        loss = model(idx, targets)
    with Launches() as backward:
        loss.backward()
    seeds = {"randint": 7} if dropout else {}  # one for each dropout, of a single number
    mean = {
        "ne": 1,
        "sum": 1,
        "clamp": 1,
        "div": 1,
        "gt": 1,
        "scalar_tensor": 1,
        "where": 1,
    }  # of single numbers but ne
    assert forward.count == seeds | mean | {
        "gptfast.embedding": 1, "gptfast.layer_norm": 1, "addmm": 6, "mm": 2, "gptfast.causal_attention_qkvpacked": 2,
        "gptfast.add_layer_norm": 4, "gptfast.gelu": 2, "gptfast.linear_cross_entropy": 1,
    }  # fmt: skip
    mean = {"ones_like": 1, "scalar_tensor": 1, "where": 1, "div": 1}
    head = {"mul": 2, "copy_": 2, "empty_like": 2}  # the head's two gradients, by the one that comes in
    assert backward.count == mean | head | {
        "gptfast.norm_backward": 5, "mm": 16, "gptfast.gelu_backward": 2, "gptfast.embedding_backward": 1,
        "gptfast.causal_attention_qkvpacked_backward": 2,
        "sum": 6,  # the biases of c_attn and c_proj
        "add": 2,  # of the tied embedding's gradients, and of the residual stream's before the first LayerNorm
    }  # fmt: skip


def test_rows_run_in_triton_unless_they_were_measured_to_be_slower(monkeypatch):
    x, residual, w, idx = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8), torch.tensor([[1, 0]])

    def launched():
        with Launches() as seen:
            ops.layer_norm(x, w)
            ops.add_layer_norm(x, residual, w)
            ops.gelu(x)
            ops.bias_gelu(x, w)
            ops.embedding(idx, x, residual)
            ops.cross_entropy(x, idx[0].new_tensor([1, 2, 3]))
            ops.linear_cross_entropy(x, residual, idx[0].new_tensor([1, 2, 0]))
        return {name: n for name, n in seen.count.items() if name.startswith("gptfast.")}

    fused = {"gptfast.add_layer_norm": 1, "gptfast.gelu": 1, "gptfast.embedding": 1, "gptfast.cross_entropy": 1}
    fused["gptfast.linear_cross_entropy_losses"] = 1
    assert launched() == fused
    measured(monkeypatch, "triton")
    assert launched() == fused | {"gptfast.layer_norm": 1, "gptfast.gelu": 2}
    measured(monkeypatch, "torch")
    assert launched() == {"gptfast.chunked_cross_entropy_losses": 1}
    measured(monkeypatch, "")
    with Launches() as seen:
        ops.add_layer_norm(torch.randn(2, 16385), torch.randn(2, 16385), torch.randn(16385))
        ops.bias_gelu(x.double(), w.double())
    assert not any(name.startswith("gptfast.") for name in seen.count)


def test_a_layer_that_is_wrapped_or_watched_is_called():
    model = GPT(GPTConfig(vocab_size=64, context_length=32, n_layer=1, n_head=2, n_embd=32))
    idx = torch.randint(64, (1, 8))
    want = model(idx)
    seen = []
    model.h[0].mlp.c_fc.register_forward_hook(lambda *_: seen.append("hook"))
    torch.testing.assert_close(model(idx), want)
    assert seen == ["hook"]

    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

        def forward(self, x):
            return 2 * self.inner(x)

    model.h[0].mlp.c_fc = Doubled(model.h[0].mlp.c_fc)
    assert not torch.equal(model(idx), want)

"""gptfast.ops: when attention runs in Triton, and that a model gives the same with it. A CPU is taken for a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gptfast.kernels import launch

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

"""causal_attention as a citizen of PyTorch: operator checks, compile, checkpoints, autocast, repeats, bad input."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch._inductor.config
from gptfast.kernels import causal_attention, causal_attention_qkvpacked, reference
from torch.utils.checkpoint import checkpoint

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def tensors(B=1, T=40, H=2, D=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, T, H, D, generator=generator).to(DEVICE, dtype).requires_grad_() for _ in "qkv"]


FEATURES = [
    {},
    {"window": 7},
    {"cu_seqlens": torch.tensor([0, 9, 30, 40], dtype=torch.int32, device=DEVICE)},
    {"dropout_p": 0.3},
    {"deterministic": False},
]


def operator_arguments(features):
    bounds = seed = None
    if "cu_seqlens" in features:
        bounds = reference.document_bounds(features["cu_seqlens"], 1, 40)
    if "dropout_p" in features:
        seed = torch.tensor([5], device=DEVICE)
    return (
        bounds, seed, 0.25, features.get("dropout_p", 0.0), features.get("window"), features.get("deterministic", True)
    )  # fmt: skip


def test_opcheck():
    everything = operator_arguments({**FEATURES[1], **FEATURES[2], **FEATURES[3]})
    inputs = tensors(H=1)
    torch.library.opcheck(torch.ops.gptfast.causal_attention, (*inputs, *operator_arguments({})))
    torch.library.opcheck(torch.ops.gptfast.causal_attention, (*inputs, *everything))
    qkv = torch.stack(inputs, 2).detach().requires_grad_()
    torch.library.opcheck(torch.ops.gptfast.causal_attention_qkvpacked, (qkv, *everything))


@pytest.mark.skipif(CUDA, reason="fp64 runs in the interpreter only")
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_gradcheck(features):
    """Of the output and the log-sum-exp, in fp64."""
    arguments = operator_arguments(features)
    inputs = [x.detach().double().requires_grad_() for x in tensors(H=1)]
    function = torch.ops.gptfast.causal_attention
    assert torch.autograd.gradcheck(lambda *x: function(*x, *arguments), inputs, fast_mode=True)


def run(function, inputs, **features):
    torch.manual_seed(0)
    out = function(*inputs, **features)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs)]


@pytest.mark.parametrize("features", FEATURES, ids=str)
@torch._inductor.config.patch(fallback_random=True)  # the seed of dropout from the same generator as eager's
def test_compiled_without_a_graph_break_it_is_the_same(features):
    torch._dynamo.reset()
    # Eager code behind the traced graph: what is tested is the tracing, and inductor compiles C++ for half a minute.
    backend = "inductor" if CUDA else "aot_eager"
    compiled = torch.compile(causal_attention, fullgraph=True, backend=backend)
    packed = torch.compile(causal_attention_qkvpacked, fullgraph=True, backend=backend)
    inputs = tensors()
    want = run(causal_attention, inputs, **features)
    if CUDA and features.get("deterministic") is False:
        return
    assert all(map(torch.equal, run(compiled, inputs, **features), want))
    qkv = [torch.stack(inputs, 2).detach().requires_grad_()]
    o, dqkv = run(packed, qkv, **features)
    assert torch.equal(o, want[0]) and torch.equal(dqkv, torch.stack(want[1:], 2))


def test_compiled_for_any_length():
    torch._dynamo.reset()
    compiled = torch.compile(causal_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for T in (40, 41, 7):
        inputs = tensors(T=T)
        assert all(map(torch.equal, run(compiled, inputs, window=5), run(causal_attention, inputs, window=5)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_repeats_the_dropout(reentrant):
    def checkpointed(*x):
        return checkpoint(lambda *x: causal_attention(*x, dropout_p=0.4), *x, use_reentrant=reentrant)

    inputs = tensors()
    want = run(causal_attention, inputs, dropout_p=0.4)
    torch.manual_seed(0)
    out = checkpointed(*inputs)
    out.square().sum().backward()
    assert all(map(torch.equal, [out, *(x.grad for x in inputs)], want))


def test_autocast():
    inputs = tensors()
    half = torch.bfloat16 if CUDA else torch.float16
    want = causal_attention(*(x.to(half) for x in inputs))
    with torch.autocast(DEVICE, dtype=half):
        for function in (causal_attention, torch.compile(causal_attention, fullgraph=True, backend="aot_eager")):
            got = function(*inputs)
            assert got.dtype == half and torch.equal(got, want)
        packed = causal_attention_qkvpacked(torch.stack(inputs, 2))
        assert torch.equal(packed, want)
    gradients = torch.autograd.grad(got.sum(), inputs)
    assert all(g.dtype == torch.float32 for g in gradients)


@pytest.mark.parametrize("features", [{}, {"dropout_p": 0.2, "window": 90}], ids=str)
def test_repeats_are_equal_bit_for_bit(features):
    inputs = tensors(B=2, T=1000 if CUDA else 100, dtype=torch.float16)
    want = run(causal_attention, inputs, **features)
    for _ in range(20 if CUDA else 2):
        assert all(map(torch.equal, run(causal_attention, inputs, **features), want))


def test_a_second_derivative_is_refused():
    inputs = tensors()
    out = causal_attention(*inputs)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.sum(), inputs[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="do not go through gptfast's operators"):
        torch.func.grad(lambda q: causal_attention(q, *(x.detach() for x in inputs[1:])).sum())(inputs[0].detach())


@pytest.mark.skipif(not CUDA, reason="CUDA graphs need a GPU")
def test_captured_in_a_cuda_graph_it_is_the_same_and_dropout_moves_on():
    inputs = [x.detach() for x in tensors(dtype=torch.bfloat16)]
    cu = torch.tensor([0, 9, 30, 40], dtype=torch.int32, device=DEVICE)
    bounds = reference.document_bounds(cu, 1, 40)
    want = causal_attention(*inputs, cu_seqlens=bounds)
    causal_attention(*inputs, dropout_p=0.5)  # compiled and loaded before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = causal_attention(*inputs, cu_seqlens=bounds)
        dropped = causal_attention(*inputs, dropout_p=0.5)
    graph.replay()
    first = dropped.clone()
    graph.replay()
    assert torch.equal(got, want) and not torch.equal(first, dropped)


# Bad input

q, k, v = (x.detach() for x in tensors())
cu = torch.tensor([0, 40], dtype=torch.int32, device=DEVICE)
BAD = [
    ((q[0], k, v), {}, ValueError, r"q is \[40, 2, 16\]; it must be \[B, T, H, D\]"),
    ((q, [1], v), {}, TypeError, "k is a list; it must be a tensor"),
    ((q.int(), k, v), {}, TypeError, "q is int32; it must be float16, bfloat16 or float32"),
    ((q, k.half(), v), {}, TypeError, "k is float16 and q is float32; they must be of one dtype"),
    ((q, k, v.to("meta")), {}, ValueError, "v is on meta and q on"),
    ((q, k, v[:, 1:]), {}, ValueError, r"k is \[1, 40, 2, 16\] and v is \[1, 39, 2, 16\]"),
    ((q, k[:, 1:], v[:, 1:]), {}, ValueError, "q has 40 positions and k has 39"),
    ((q, k[..., :8], v[..., :8]), {}, ValueError, "B and D must agree"),
    ((q[..., :8], k[..., :8], v[..., :8]), {}, ValueError, "D is 8; it must be a multiple of 8 from 16 to 256"),
    (tuple(x.repeat(1, 1, 1, 17)[..., :264] for x in (q, k, v)), {}, ValueError, "D is 264"),
    ((q, torch.cat((k, k, k), 2), torch.cat((v, v, v), 2)), {}, ValueError, "q has 2 heads and k has 6"),
    (
        tuple(x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)),
        {},
        ValueError,
        "q has a last stride of 2",
    ),
    ((q, k, v), {"dropout_p": 1.0}, ValueError, "dropout_p is 1.0; it must be at least 0 and below 1"),
    ((q, k, v), {"dropout_p": -0.1}, ValueError, "dropout_p is -0.1"),
    ((q, k, v), {"dropout_p": float("nan")}, ValueError, "dropout_p is nan"),
    ((q, k, v), {"window": 0}, ValueError, "window is 0; it must be at least 1"),
    ((q, k, v), {"window": 2.5}, TypeError, "window is 2.5"),
    ((q, k, v), {"scale": 0.0}, ValueError, "scale is 0.0; it must be a finite number above 0"),
    ((q, k, v), {"scale": float("inf")}, ValueError, "scale is inf"),
    ((q[:, 1:], k, v), {"cu_seqlens": cu}, ValueError, "cu_seqlens needs as many queries as keys, not 39 and 40"),
    ((q, k, v), {"cu_seqlens": [0, 40]}, TypeError, "cu_seqlens is a list"),
    ((q, k, v), {"cu_seqlens": cu.float()}, TypeError, "cu_seqlens is float32; it must be int32"),
    ((q, k, v), {"cu_seqlens": cu[:1]}, ValueError, r"cu_seqlens is \[1\]; it must be \[documents \+ 1\]"),
    ((q, k, v), {"cu_seqlens": torch.zeros(2, 1, 39, dtype=torch.int32, device=DEVICE)}, ValueError, "document_bounds"),
]
VALUES = [[0, 39], [1, 40], [0, 30, 20, 40], [0, 41]]


@pytest.mark.parametrize("case", range(len(BAD)), ids=lambda i: BAD[i][3][:40])
def test_bad_input(case):
    arguments, features, error, message = BAD[case]
    with pytest.raises(error, match=message):
        causal_attention(*arguments, **features)


@pytest.mark.skipif(CUDA, reason="on a GPU the values are asserted there, without waiting for it")
@pytest.mark.parametrize("values", VALUES, ids=str)
def test_documents_that_do_not_fit(values):
    with pytest.raises(
        ValueError, match=r"cu_seqlens is \[.*\]; it must rise from 0 to B \* T = 40 and never decrease"
    ):
        causal_attention(q, k, v, cu_seqlens=torch.tensor(values, dtype=torch.int32))


def test_bad_packed_input():
    with pytest.raises(ValueError, match=r"qkv is \[1, 40, 2, 16\]; it must be \[B, T, 3, H, D\]"):
        causal_attention_qkvpacked(q)


@pytest.mark.skipif(CUDA, reason="bfloat16 is right on a GPU")
def test_bfloat16_is_refused_in_the_interpreter():
    with pytest.raises(TypeError, match="q is bfloat16, which Triton's interpreter computes wrongly"):
        causal_attention(*(x.bfloat16() for x in (q, k, v)))


def test_without_the_interpreter_a_tensor_of_the_cpu_is_refused():
    code = (
        "import torch; from gptfast.kernels import causal_attention\n"
        "x = torch.randn(1, 4, 1, 16)\n"
        "try: causal_attention(x, x, x)\n"
        "except ValueError as error: print(error)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert out.stdout.startswith("q is on cpu, where Triton does not run; move it to a GPU, set TRITON_INTERPRET=1")

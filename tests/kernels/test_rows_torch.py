"""The kernels on rows as citizens of PyTorch: operator checks, compile, checkpoints, autocast, repeats, bad input."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch._inductor.config
from compare import CUDA, DEVICE, integers, numbers, results
from gptfast.kernels import add_layer_norm, bias_gelu, cross_entropy, embedding, gelu, layer_norm, linear_cross_entropy
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gptfast import kernels

pytestmark = [
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton"),  # rows that are ignored, in the interpreter's numpy
]
BACKEND = "inductor" if CUDA else "aot_eager"  # as in test_attention_torch.py
HALF = torch.bfloat16 if CUDA else torch.float16


def row(N, V):
    targets = integers(V, N, seed=9)
    targets[0] = -100
    return targets


TARGETS, TOKENS = row(200, 70), integers(9, 2, 200)

# name -> how it is called with tensors that want gradients, and their shapes for N rows
CASES = {
    "layer_norm": (layer_norm, lambda N: [(N, 12), (12,), (12,)]),
    "layer_norm without bias": (lambda x, w: layer_norm(x, w, eps=1e-3), lambda N: [(N, 12), (12,)]),
    "add_layer_norm": (add_layer_norm, lambda N: [(N, 12), (N, 12), (12,), (12,)]),
    "add_layer_norm with dropout": (
        lambda *x: add_layer_norm(*x, dropout_p=0.4), lambda N: [(N, 12), (N, 12), (12,), (12,)]
    ),
    "gelu": (gelu, lambda N: [(N, 12)]),
    "gelu of erf": (lambda x: gelu(x, "none"), lambda N: [(N, 12)]),
    "bias_gelu": (bias_gelu, lambda N: [(N, 12), (12,)]),
    "embedding": (lambda e, p: embedding(TOKENS[:, : p.shape[0] - 3], e, p), lambda N: [(9, 12), (N, 12)]),
    "embedding with dropout": (
        lambda e, p: embedding(TOKENS[:, : p.shape[0] - 3], e, p, 0.4, 2), lambda N: [(9, 12), (N, 12)]
    ),
    "cross_entropy": (
        lambda x: cross_entropy(x, TARGETS[: x.shape[0]], label_smoothing=0.1, z_loss=1e-2), lambda N: [(N, 70)]
    ),
    "cross_entropy of each": (lambda x: cross_entropy(x, TARGETS[: x.shape[0]], reduction="none"), lambda N: [(N, 70)]),
    "linear_cross_entropy": (
        lambda x, w: linear_cross_entropy(x, w, TARGETS[: x.shape[0]], label_smoothing=0.1), lambda N: [(N, 8), (70, 8)]
    ),
    "linear_cross_entropy that recomputes": (
        lambda x, w: linear_cross_entropy(x, w, TARGETS[: x.shape[0]], recompute=True), lambda N: [(N, 8), (70, 8)]
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)


def inputs_of(case, N=5, dtype=torch.float32):
    return [numbers(*shape, dtype=dtype, seed=i) for i, shape in enumerate(CASES[case][1](N))]


def operators(dtype):
    """name of a registered operator -> its arguments."""
    x, residual, w, b = (numbers(*s, dtype=dtype, seed=i) for i, s in enumerate([(5, 12), (5, 12), (12,), (12,)]))
    seed, targets, idx = torch.tensor([5], device=DEVICE), row(5, 12), integers(5, 2, 3)
    yield "layer_norm", (x, w, b, 1e-5)
    yield "layer_norm", (x, w, None, 1e-5)
    yield "add_layer_norm", (x, residual, w, b, None, 1e-5, 0.0)
    yield "add_layer_norm", (x, residual, w, None, seed, 1e-5, 0.3)
    yield "gelu", (x, None, False)
    yield "gelu", (x, b, True)
    yield "embedding", (idx, x, residual, None, 0.0, 0)
    yield "embedding", (idx, x, residual, seed, 0.3, 2)
    yield "cross_entropy", (x, targets, -100, 0.1, 1e-2)
    yield "linear_cross_entropy", (x, residual, row(5, 5), -100, 0.1, 1e-2, True, True)
    yield "linear_cross_entropy_losses", (x, residual, row(5, 5), -100, 0.1, 1e-2)


OPERATORS = [name for name, _ in operators(torch.float32)]


@pytest.mark.parametrize("i", range(len(OPERATORS)), ids=OPERATORS)
def test_opcheck(i):
    name, arguments = list(operators(torch.float32))[i]
    torch.library.opcheck(getattr(torch.ops.gptfast, name).default, arguments)


def test_opcheck_of_mixed_dtypes():
    x, residual, w = numbers(5, 12, dtype=HALF), numbers(5, 12), numbers(12)
    seed = torch.tensor([5], device=DEVICE)
    torch.library.opcheck(torch.ops.gptfast.add_layer_norm.default, (x, residual, w, w, seed, 1e-5, 0.3))
    torch.library.opcheck(torch.ops.gptfast.add_layer_norm.default, (residual, x, w, w, None, 1e-5, 0.0))
    torch.library.opcheck(torch.ops.gptfast.gelu.default, (x, w, True))


@pytest.mark.skipif(CUDA, reason="fp64 runs in the interpreter only")
@pytest.mark.parametrize("i", range(len(OPERATORS)), ids=OPERATORS)
def test_gradcheck(i):
    name, arguments = list(operators(torch.float64))[i]
    wanted = [j for j, x in enumerate(arguments) if isinstance(x, torch.Tensor) and x.requires_grad]

    def call(*tensors):
        out = getattr(torch.ops.gptfast, name)(*(tensors[wanted.index(j)] if j in wanted else x for j, x in
                                                enumerate(arguments)))  # fmt: skip
        out = out if isinstance(out, tuple) else (out,)
        return out[: 2 if name == "add_layer_norm" else 1]

    assert torch.autograd.gradcheck(call, [arguments[j] for j in wanted], fast_mode=True)


@pytest.mark.parametrize("dynamic", [False, True], ids=["one shape", "any shape"])
@every_case
@torch._inductor.config.patch(fallback_random=True)  # the seed of dropout from the same generator as eager's
def test_compiled_without_a_graph_break_it_is_the_same(case, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(
        CASES[case][0], fullgraph=True, backend="aot_eager" if dynamic else BACKEND, dynamic=dynamic
    )
    for N in (5, 7, 11) if dynamic else (5,):
        inputs = inputs_of(case, N)
        # By the third size it is known that it changes, and nothing is compiled anew.
        with torch._dynamo.config.patch(error_on_recompile=N == 11):
            found = results(compiled, inputs)
        for got, want in zip(found, results(CASES[case][0], inputs), strict=True):
            assert torch.equal(got, want) if not CUDA else torch.testing.assert_close(got, want) is None


@pytest.mark.parametrize("reentrant", [False, True])
@every_case
def test_checkpointing_repeats_it(case, reentrant):
    inputs = inputs_of(case)
    want = results(CASES[case][0], inputs)
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    torch.manual_seed(3)
    out = checkpoint(CASES[case][0], *leaves, use_reentrant=reentrant)
    outputs = out if isinstance(out, tuple) else (out,)
    assert all(map(torch.equal, outputs, want))
    sum((o * o).sum() for o in outputs).backward()
    torch.manual_seed(3)
    out = CASES[case][0](*inputs)
    gradients = torch.autograd.grad(sum((o * o).sum() for o in (out if isinstance(out, tuple) else (out,))), inputs)
    assert all(torch.equal(x.grad, g) for x, g in zip(leaves, gradients, strict=True))


@every_case
def test_autocast(case):
    function, inputs = CASES[case][0], inputs_of(case)
    with torch.autocast(DEVICE, HALF):
        got = results(function, inputs)
    if case.startswith("linear"):  # as torch.nn.functional.linear
        cast = [x.detach().to(HALF).requires_grad_() for x in inputs]
        assert got[0].dtype == torch.float32 and torch.equal(got[0], results(function, cast)[0])
        assert not torch.equal(got[0], results(function, inputs)[0])
    else:
        assert all(map(torch.equal, got, results(function, inputs)))
    assert all(g.dtype == x.dtype for g, x in zip(got[-len(inputs) :], inputs, strict=True))


def test_autocast_of_what_a_linear_layer_gives():
    x, weight, norm, bias = numbers(5, 12), numbers(12, 12, seed=1), numbers(12, seed=2), numbers(12, seed=3)
    with torch.autocast(DEVICE, HALF):
        h = F.linear(x, weight)
        y, s = add_layer_norm(h, x, norm, bias)
        assert h.dtype == y.dtype == layer_norm(h, norm).dtype == bias_gelu(h, bias).dtype == gelu(h).dtype == HALF
        assert s.dtype == cross_entropy(h, row(5, 12)).dtype == torch.float32
        compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, weight, row(5, 12)), linear_cross_entropy(x, weight, row(5, 12)))
        assert torch.equal(
            linear_cross_entropy(h, weight, row(5, 12)), linear_cross_entropy(x @ weight.T, weight, row(5, 12))
        )
    gradients = torch.autograd.grad(y.float().sum() + s.sum(), [x, weight, norm, bias])
    assert all(g.dtype == torch.float32 for g in gradients)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@every_case
def test_a_second_derivative_is_refused(case):
    inputs = inputs_of(case)

    def second():
        out = CASES[case][0](*inputs)
        out = out[0] if isinstance(out, tuple) else out
        torch.autograd.grad(out.sum(), inputs[0], create_graph=True)

    with pytest.raises(RuntimeError, match="second derivative"):
        second()
    with Mode(), pytest.raises(RuntimeError, match="second derivative"):
        second()
    with Mode():
        watched = results(CASES[case][0], inputs)
    assert all(map(torch.equal, watched, results(CASES[case][0], inputs)))


@every_case
def test_derivatives_that_it_does_not_have_are_refused(case):
    """Forward-mode ones and those of torch.func, which would be zero."""
    inputs = [x.detach() for x in inputs_of(case)]

    def of_first(x):
        out = CASES[case][0](x, *inputs[1:])
        return out[0] if isinstance(out, tuple) else out

    with pytest.raises(NotImplementedError, match="do not go through gptfast's operators"):
        torch.func.jvp(of_first, (inputs[0],), (torch.ones_like(inputs[0]),))
    with pytest.raises(NotImplementedError, match="do not go through gptfast's operators"):
        torch.func.grad(lambda x: of_first(x).sum())(inputs[0])
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="gptfast's operators"):
        of_first(torch.autograd.forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0])))


@every_case
def test_its_outputs_can_be_changed_in_place(case):
    out = CASES[case][0](*inputs_of(case))
    for x in out if isinstance(out, tuple) else (out,):
        x.add_(1)


@every_case
def test_repeats_are_equal_bit_for_bit(case):
    inputs = inputs_of(case, 200 if CUDA else 5, dtype=HALF)
    want = results(CASES[case][0], inputs)
    for _ in range(20 if CUDA else 2):
        assert all(map(torch.equal, results(CASES[case][0], inputs), want))


@every_case
def test_without_a_gradient_it_is_the_same(case):
    inputs = inputs_of(case)
    want = results(CASES[case][0], inputs)
    torch.manual_seed(3)
    with torch.no_grad():
        out = CASES[case][0](*inputs)
    for got, o in zip(out if isinstance(out, tuple) else (out,), want, strict=False):
        assert not got.requires_grad and torch.equal(got, o)
    frozen = [x.detach() for x in inputs]
    torch.manual_seed(3)
    out = CASES[case][0](*frozen)
    assert not any(o.requires_grad for o in (out if isinstance(out, tuple) else (out,)))


@every_case
def test_the_backward_may_run_twice(case):
    inputs = inputs_of(case)
    out = CASES[case][0](*inputs)
    outputs = out if isinstance(out, tuple) else (out,)
    first, second = (
        torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs], retain_graph=True) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


@every_case
def test_a_parameter_is_taken_as_a_tensor(case):
    inputs = inputs_of(case)
    got = results(CASES[case][0], [torch.nn.Parameter(x.detach()) for x in inputs])
    assert all(map(torch.equal, got, results(CASES[case][0], inputs)))


@pytest.mark.skipif(not CUDA, reason="CUDA graphs need a GPU")
@every_case
def test_captured_in_a_cuda_graph_it_is_the_same_and_dropout_moves_on(case):
    function, inputs = CASES[case][0], [x.detach() for x in inputs_of(case, dtype=HALF)]
    want = function(*inputs)  # compiled and loaded before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function(*inputs)
    outputs = out if isinstance(out, tuple) else (out,)
    graph.replay()
    first = [o.clone() for o in outputs]
    graph.replay()
    if "dropout" in case:
        assert not torch.equal(first[-1], outputs[-1])
    else:
        assert all(map(torch.equal, outputs, want if isinstance(want, tuple) else (want,)))


# Bad input

x, w, t, i = numbers(5, 12).detach(), numbers(12).detach(), row(5, 12), integers(5, 2, 3)
BAD = [
    (layer_norm, ([1.0], w), {}, TypeError, "x is a list; it must be a tensor"),
    (layer_norm, (x.long(), w), {}, TypeError, "x is int64; it must be float16, bfloat16 or float32"),
    (layer_norm, (x[0, 0], w), {}, ValueError, r"x is \[\]; it must be \[..., C\] with C from 1 to 16384"),
    (layer_norm, (x[:, :0], w[:0]), {}, ValueError, r"x is \[5, 0\]; it must be \[..., C\] with C from 1 to 16384"),
    (layer_norm, (x[:1, :1].expand(1, 16385), w), {}, ValueError, r"x is \[1, 16385\]"),
    (layer_norm, (x, w[1:]), {}, ValueError, r"weight is \[11\] and x is \[5, 12\]; weight must be \[12\]"),
    (layer_norm, (x, w[None]), {}, ValueError, r"weight is \[1, 12\]"),
    (layer_norm, (x, w.to("meta")), {}, ValueError, "weight is on meta and x on"),
    (layer_norm, (x, None), {}, TypeError, "weight is a NoneType; it must be a tensor"),
    (layer_norm, (x, w, x), {}, ValueError, r"bias is \[5, 12\] and x is \[5, 12\]; bias must be \[12\]"),
    (layer_norm, (x, w, w.half()), {}, TypeError, "bias is float16 and weight is float32; they must be of one dtype"),
    (layer_norm, (x, w), {"eps": -1e-5}, ValueError, "eps is -1e-05; it must be a finite number, at least 0"),
    (layer_norm, (x, w), {"eps": float("inf")}, ValueError, "eps is inf"),
    (layer_norm, (x, w), {"eps": float("nan")}, ValueError, "eps is nan"),
    (
        add_layer_norm,
        (x, x[1:], w),
        {},
        ValueError,
        r"residual is \[4, 12\] and x is \[5, 12\]; they must have one shape",
    ),
    (add_layer_norm, (x, x.int(), w), {}, TypeError, "residual is int32"),
    (add_layer_norm, (x, x.to("meta"), w), {}, ValueError, "residual is on meta and x on"),
    (add_layer_norm, (x, x, w), {"dropout_p": 1.0}, ValueError, "dropout_p is 1.0; it must be at least 0 and below 1"),
    (add_layer_norm, (x, x, w), {"dropout_p": -0.1}, ValueError, "dropout_p is -0.1"),
    (gelu, (3.0,), {}, TypeError, "x is a float; it must be a tensor"),
    (gelu, (x > 0,), {}, TypeError, "x is bool; it must be float16"),
    (gelu, (x, "erf"), {}, ValueError, """approximate is 'erf'; it must be "tanh" or "none\""""),
    (bias_gelu, (x[0, 0], w), {}, ValueError, r"x is a scalar; it must be \[..., C\]"),
    (bias_gelu, (x, w[1:]), {}, ValueError, r"bias is \[11\] and x is \[5, 12\]; bias must be \[12\]"),
    (bias_gelu, (x, w.to("meta")), {}, ValueError, "bias is on meta and x on"),
    (bias_gelu, (x, w, True), {}, ValueError, "approximate is True"),
    (embedding, ([1], x, x), {}, TypeError, "idx is a list; it must be an int64 tensor"),
    (embedding, (i.int(), x, x), {}, TypeError, "idx is int32; it must be int64"),
    (embedding, (i[0], x, x), {}, ValueError, r"idx is \[3\]; it must be \[B, T\]"),
    (embedding, (i.to("meta"), x, x), {}, ValueError, "idx is on meta and the rest on"),
    (embedding, (i, x[0], x), {}, ValueError, r"wte is \[12\]; it must be \[rows, C\]"),
    (embedding, (i, x, x[None]), {}, ValueError, r"wpe is \[1, 5, 12\]; it must be \[rows, C\]"),
    (embedding, (i, x, x[:, 1:]), {}, ValueError, r"wpe is float32 \[5, 11\]; they must have one width and dtype"),
    (embedding, (i, x, x.half()), {}, ValueError, r"wpe is float16 \[5, 12\]; they must have one width and dtype"),
    (embedding, (i, x, x, 0.0, 3), {}, ValueError, "positions 3 to 5 are not all in wpe, which has 5 rows"),
    (embedding, (i, x, x, 0.0, -1), {}, ValueError, "positions -1 to 1 are not all in wpe"),
    (embedding, (i, x, x, 1.5), {}, ValueError, "dropout_p is 1.5"),
    (cross_entropy, (x.long(), t), {}, TypeError, "logits is int64"),
    (cross_entropy, (x[0], t), {}, ValueError, r"logits is \[12\]; it must be \[N, V\]"),
    (cross_entropy, (x[:, :0], t), {}, ValueError, r"logits is \[5, 0\]; it must be \[N, V\]"),
    (cross_entropy, (x, [1]), {}, TypeError, "targets is a list; it must be an int64 tensor"),
    (cross_entropy, (x, x), {}, TypeError, "targets is float32; it must be int64"),
    (cross_entropy, (x, t[None]), {}, ValueError, r"targets is \[1, 5\]; it must be \[5\]"),
    (cross_entropy, (x, t[1:]), {}, ValueError, r"targets is \[4\]; it must be \[5\], one for each row"),
    (cross_entropy, (x, t.to("meta")), {}, ValueError, "targets is on meta and the rest on"),
    (
        cross_entropy,
        (x, t),
        {"reduction": "avg"},
        ValueError,
        """reduction is 'avg'; it must be "mean", "sum" or "none""",
    ),
    (cross_entropy, (x, t), {"label_smoothing": 1.1}, ValueError, "label_smoothing is 1.1; it must be from 0 to 1"),
    (cross_entropy, (x, t), {"label_smoothing": float("nan")}, ValueError, "label_smoothing is nan"),
    (cross_entropy, (x, t), {"z_loss": -1.0}, ValueError, "z_loss is -1.0; it must be a finite number, at least 0"),
    (cross_entropy, (x, t), {"z_loss": float("inf")}, ValueError, "z_loss is inf"),
    (linear_cross_entropy, (x, [1.0], t), {}, TypeError, "weight is a list; it must be a tensor"),
    (
        linear_cross_entropy,
        (x, x[:, 1:], t),
        {},
        ValueError,
        r"x is \[5, 12\] and weight is \[5, 11\]; they must be \[N",
    ),
    (linear_cross_entropy, (x, w, t), {}, ValueError, r"x is \[5, 12\] and weight is \[12\]"),
    (linear_cross_entropy, (x[None], x, t), {}, ValueError, r"x is \[1, 5, 12\] and weight is"),
    (linear_cross_entropy, (x, x[:0], t), {}, ValueError, r"x is \[5, 12\] and weight is \[0, 12\]"),
    (linear_cross_entropy, (x, x.half(), t), {}, TypeError, "x is float32 and weight is float16; they must be of one"),
    (linear_cross_entropy, (x, x, t[1:]), {}, ValueError, r"targets is \[4\]; it must be \[5\]"),
    (linear_cross_entropy, (x, x, row(5, 5)), {"reduction": "avg"}, ValueError, "reduction is 'avg'"),
    (linear_cross_entropy, (x, x, row(5, 5)), {"label_smoothing": -1}, ValueError, "label_smoothing is -1"),
    (linear_cross_entropy, (x, x, row(5, 5)), {"z_loss": float("nan")}, ValueError, "z_loss is nan"),
]


@pytest.mark.parametrize("case", range(len(BAD)), ids=lambda i: f"{BAD[i][0].__name__}: {BAD[i][4][:40]}")
def test_bad_input(case):
    function, arguments, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        function(*arguments, **options)


@pytest.mark.skipif(CUDA, reason="bfloat16 is right on a GPU")
@every_case
def test_bfloat16_is_refused_in_the_interpreter(case):
    name = {"add": "x", "emb": "wte", "cro": "logits"}.get(case[:3], "x")
    with pytest.raises(TypeError, match=f"{name} is bfloat16, which Triton's interpreter computes wrongly"):
        CASES[case][0](*(x.bfloat16() for x in inputs_of(case)))


@pytest.mark.skipif(CUDA, reason="bfloat16 is right on a GPU")
def test_a_residual_in_bfloat16_is_refused_too():
    with pytest.raises(TypeError, match="residual is bfloat16, which Triton's interpreter computes wrongly"):
        add_layer_norm(x, x.bfloat16(), w)


def test_without_the_interpreter_a_tensor_of_the_cpu_is_refused():
    code = (
        "import torch; from gptfast.kernels import *\n"
        "x, t = torch.randn(4, 4), torch.zeros(4, dtype=torch.long)\n"
        "for name, f in {'x': lambda: layer_norm(x, x[0]), 'x ': lambda: gelu(x), 'x  ': lambda: bias_gelu(x, x[0]),\n"
        "    'x   ': lambda: add_layer_norm(x, x, x[0]), 'wte': lambda: embedding(t[None], x, x),\n"
        "    'logits': lambda: cross_entropy(x, t), 'x    ': lambda: linear_cross_entropy(x, x, t)}.items():\n"
        "    try: f()\n"
        "    except ValueError as e: assert str(e).startswith(name.strip() + ' is on cpu, where Triton does not'), e\n"
        "    else: raise AssertionError(name)\n"
        "print('all')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert out.stdout == "all\n", out.stderr


def test_every_name_is_there():
    assert set(kernels.__all__) <= set(dir(kernels))
    assert all(callable(getattr(kernels, name)) for name in kernels.__all__ if name != "reference")
    for name in {function.__name__ for function, *_ in BAD}:
        assert callable(getattr(kernels.reference, name))

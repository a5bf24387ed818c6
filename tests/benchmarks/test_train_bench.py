"""The training benchmarks: the models, each way to train, where a step's time goes, and the run beside a plain one."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gptfast.benchmarks import breakdown, convergence, models, suite, train

import gptfast
from gptfast import ops
from gptfast.data import RandomOffsets, batch
from gptfast.errors import GptfastError
from gptfast.optim import learning_rate

CPU = torch.device("cpu")
CONFIG = gptfast.GPTConfig(64, 16, 2, 2, 32, activation="gelu")
KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors are small; on a busy machine two threads wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    train.default_memory(CPU)


def tokens(seed=0, B=4):
    size = (2, B, CONFIG.context_length)
    return torch.randint(CONFIG.vocab_size, size, generator=torch.Generator().manual_seed(seed)).unbind()


def test_the_plain_model_is_gpt2(tmp_path):
    """Its loss is that of transformers' model with the same weights."""
    transformers = pytest.importorskip("transformers")
    ours = gptfast.GPT(CONFIG)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain = models.PlainGPT(CONFIG)
    plain.load_state_dict(ours.state_dict())
    ours.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    idx, targets = tokens()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(theirs(idx).logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(plain(idx, targets), loss)


def test_plain_initialisation():
    """That of Radford et al. 2019, section 2.3."""
    model = models.PlainGPT(gptfast.GPTConfig(512, 64, 8, 2, 128))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 2:
            std = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name


def test_bytes_that_training_holds():
    """fp32 weights and two moments; gptfast's fp32 gradients and bf16 copy beside them."""
    N = sum(p.numel() for p in models.PlainGPT(CONFIG).parameters())
    plain = models.plain(CONFIG, CPU, 1e-3)
    models.plain_step(plain, plain.model, False)(*tokens())
    ours = models.ours(CONFIG, CPU, torch.bfloat16, 1e-3)
    models.our_step(ours, ours.copy.model)(*tokens())
    counters = 4 * len(list(plain.model.parameters()))  # AdamW's number of steps, an fp32 scalar a parameter
    assert plain.held() == 12 * N + counters
    assert ours.held() == (12 + 4 + 2) * N + counters


def test_a_step_that_fails_leaves_no_gradients():
    plain = models.plain(CONFIG, CPU, 1e-3)

    def loss(idx, targets):
        plain.model(idx, targets).backward()
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        models.plain_step(plain, loss, False)(*tokens())
    assert all(p.grad is None for p in plain.model.parameters())


class NoPeak(contextlib.nullcontext):
    """Stands for machine.Peak, of calls that take no memory."""

    bytes = 0.0

    def __enter__(self):
        return self


def test_every_form_runs(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, backend: module)  # tracing takes long,
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # and so does the interpreter: test_in_triton
    monkeypatch.setattr(suite, "Peak", NoPeak)
    setup = suite.Setup(CPU, {"matmul fp32": 1e9}, peers=True, dry=True)
    plain, compiled = (suite.measure(case, setup) for case in train.cases(setup))
    rows = plain + compiled
    assert not [row for row in rows if "ms" not in row]
    assert {"gptfast", "eager", "eager fp32"} <= {row["form"] for row in plain}
    assert {"gptfast", "gptfast + compile", "nanoGPT compiled"} <= {row["form"] for row in compiled}
    B = int(rows[0]["shape"].split()[0].removeprefix("B="))
    for row in rows:
        assert row["rate"] * row["ms"] / 1e3 == pytest.approx(B * 16)  # tokens
        assert row["peak_mb"] > 12 * 15_000 / 1e6  # weights and moments, although no call took any memory


def test_triton_has_a_form_where_it_runs(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dry = suite.Setup(CPU, dry=True)
    assert "gptfast Triton" not in train.Forms(dry, CONFIG).steps()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "gptfast Triton" in train.Forms(dry, CONFIG).steps()
    assert "gptfast Triton" not in train.Forms(suite.Setup(CPU), CONFIG).steps()  # bf16, wrong in the interpreter
    assert "gptfast Triton" in train.Forms(suite.Setup(torch.device("cuda")), CONFIG).steps()


def test_what_is_compiled_is_a_case_of_its_own_after_the_others():
    """A run that is cut off while it compiles keeps the others."""
    forms = train.Forms(suite.Setup(CPU, peers=True), CONFIG)
    assert not [name for name in forms.steps() if "compile" in name]
    first, *others = forms.compiled_steps()
    assert first == "gptfast" and others and all("compile" in name for name in others)
    assert len(list(train.cases(suite.Setup(CPU, dry=True)))) == 2


@pytest.mark.parametrize("loss", [math.nan, math.inf, math.log(64) + 1.5, 0.0])
def test_a_wrong_loss_is_an_error(loss):
    step = train.Turn(lambda idx, targets: torch.tensor(loss), None, *tokens(), vocab=64)
    with pytest.raises(GptfastError, match="random tokens"):
        step()


def test_the_best_batch_leaves_out_what_does_not_fit(monkeypatch):
    forms = train.Forms(suite.Setup(CPU, dry=True), CONFIG)
    sizes = []

    def our_step(training, loss_of):
        def step(idx, targets):
            sizes.append(len(idx))
            if len(idx) > 4:
                raise torch.OutOfMemoryError
            return torch.tensor(0.0)

        return step

    monkeypatch.setattr(models, "our_step", our_step)
    assert forms.best_batch((8, 4)) == 4 and set(sizes) == {8, 4}
    assert forms.best_batch((16, 8)) == 8  # none runs: `measure` says why


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")
def test_in_triton(monkeypatch):
    """Kernels run in the step, whatever the table says, and nowhere after it; the loss is that of ATen's."""
    from gptfast.kernels import attention, linear_loss, norm

    called = []
    for module, name in ((attention, "causal_attention_qkvpacked"), (norm, "layer_norm"), (norm, "add_layer_norm"),
                         (linear_loss, "linear_cross_entropy")):  # fmt: skip
        kernel = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, k=kernel, n=name, **o: (called.append(n), k(*a, **o))[1])
    before = ops.TRITON_DEVICES, ops._preferred, ops._rows_preferred
    model = gptfast.GPT(CONFIG)
    expected = model(*tokens()).detach()
    assert not called
    loss = train.in_triton(lambda idx, targets: model(idx, targets).detach(), CPU)(*tokens())
    assert set(called) == {"causal_attention_qkvpacked", "layer_norm", "add_layer_norm", "linear_cross_entropy"}
    torch.testing.assert_close(loss, expected)
    assert (ops.TRITON_DEVICES, ops._preferred, ops._rows_preferred) == before


def test_mfu():
    """Of GPT-2 124M by hand: 12 L C^2 + 13 L C in the blocks, V C tokens, 2 C in the last LayerNorm."""
    L, C, T, V = 12, 768, 1024, 50257
    config = gptfast.GPTConfig.preset("gpt2")
    flops = 6 * (12 * L * C * C + 13 * L * C + V * C + 2 * C) + 12 * L * C * T
    full, half = train.mfu(config, 1e5, 312e12)
    assert full == pytest.approx(flops * 1e5 / 312e12, rel=1e-12)
    assert half == pytest.approx((flops - 6 * L * C * T) * 1e5 / 312e12, rel=1e-12)


TRITON = {
    "attention_forward": "attention", "attention_backward_kv": "attention", "attention_backward_q": "attention",
    "attention_delta": "attention", "decode_split": "attention", "decode_combine": "attention",
    "norm_forward": "norm", "norm_backward": "norm", "cross_entropy_rows": "loss", "embedding_forward": "embedding",
    "token_sums": "embedding", "position_sums": "embedding", "gelu_forward": breakdown.OTHER,
    "gelu_backward": breakdown.OTHER, "sum_partials": breakdown.OTHER,
}  # fmt: skip


def test_every_triton_kernel_has_a_category():
    launched = set()
    for path in KERNELS.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        launched |= {f.value.id for f in calls if isinstance(f, ast.Subscript) and isinstance(f.value, ast.Name)}
    jitted = {
        node.name
        for path in KERNELS.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list)
    }
    assert launched & jitted == set(TRITON)
    assert {name: breakdown.category(name) for name in TRITON} == TRITON


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn", "matmul"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nn_align8>", "matmul"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float>", "matmul"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>>", "attention"),
        ("void pytorch_flash::flash_bwd_dot_do_o_kernel<true, Flash_bwd_kernel_traits<64, 128, 128>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x64x64_4x1x1", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)", "attention"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>", "norm"),
        ("void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<c10::BFloat16>", "norm"),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, float, float>", "loss"),
        ("void at::native::(anonymous namespace)::nll_loss_forward_reduce_cuda_kernel_2d<float>", "loss"),
        ("void at::native::(anonymous namespace)::embedding_backward_feature_kernel<float>", "embedding"),
        ("void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<...>", "embedding"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer"),
        ("void at::native::multi_tensor_apply_kernel<LpNormFunctor<float, NormType::L2>>", "optimizer"),
        ("void at::native::reduce_kernel<512, 1, ReduceOp<float, at::native::NormTwoOps<float>>>", "optimizer"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<c10::BFloat16>>", breakdown.OTHER),
        ("Memset (Device)", breakdown.OTHER),
        ("aten::mm", "matmul"), ("aten::addmm", "matmul"), ("aten::bmm", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::native_layer_norm_backward", "norm"), ("aten::embedding_dense_backward", "embedding"),
        ("aten::_fused_adamw_", "optimizer"), ("aten::linalg_vector_norm", "optimizer"),
        ("aten::gelu", breakdown.OTHER),
    ],
)  # fmt: skip
def test_category(name, kind):
    assert breakdown.category(name) == kind


def test_a_trace_of_a_gpu():
    """Kernels, copies and fills count; what the CPU did, and the spans that annotations leave on the GPU, do not."""
    trace = {
        "traceEvents": [
            {"ph": "M", "name": "process_name", "args": {"name": "python"}},
            {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 50},
            {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1, "dur": 5},
            {"ph": "X", "cat": "gpu_user_annotation", "name": "Optimizer.step#AdamW.step", "ts": 9, "dur": 900},
            {"ph": "X", "cat": "kernel", "name": "nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "ts": 10, "dur": 300.5},
            {"ph": "X", "cat": "kernel", "name": "norm_forward", "ts": 400, "dur": 99.5},
            {"ph": "X", "cat": "gpu_memset", "name": "Memset (Device)", "ts": 500, "dur": 100},
            {"ph": "f", "cat": "ac2g", "name": "ac2g", "ts": 500},
        ]
    }
    used = breakdown.kernels(trace)
    assert [kind for _, kind, _ in used] == ["matmul", "norm", breakdown.OTHER]
    rows = {row["category"]: row for row in breakdown.totals(used, step_seconds=400e-6, steps=2)}
    assert rows["matmul"]["ms"] == pytest.approx(0.15025) and rows["matmul"]["count"] == 0.5
    assert rows[breakdown.GAPS]["ms"] == pytest.approx(0.4 - 0.25) and sum(r["share"] for r in rows.values()) == 1.0
    assert breakdown.largest(used, 2, most=1) == [
        {"name": "nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "category": "matmul", "ms": 0.15025, "count": 0.5}
    ]


def test_operators_belong_to_their_caller():
    def event(name, parent=None):
        return SimpleNamespace(name=name, cpu_parent=parent, self_cpu_time_total=1.0)

    loss, attention = event("chunked_cross_entropy"), event("_ShortAttention")
    events = [event("aten::_softmax", loss), event("aten::_softmax", attention), event("aten::mm", loss)]
    events += [event("aten::copy_", events[0]), event("aten::add")]
    kinds = [kind for _, kind, _ in breakdown.operators(events)]
    assert kinds == ["loss", "attention", "matmul", "loss", breakdown.OTHER]


def test_a_dry_breakdown(tmp_path, capsys):
    assert breakdown.main(["--dry", "--device", "cpu", "--json", str(tmp_path / "b.json")]) == 0
    found = json.loads((tmp_path / "b.json").read_text())
    parts = {row["category"]: row["ms"] for row in found["categories"]}
    assert sum(parts.values()) == pytest.approx(found["profiled_step_ms"])
    assert all(parts[name] > 0 for name in breakdown.CATEGORIES)
    assert "attention halved" in capsys.readouterr().out
    with pytest.raises(GptfastError, match="--batch"):
        breakdown.main(["--dry", "--batch", "0"])


def test_the_source_has_the_entropy_that_is_said():
    """The empirical entropy of a symbol after the two before."""
    text = convergence.markov(1 << 18)
    x = text.tokens.read(0, len(text.tokens)).astype(np.int64).reshape(256, -1)
    assert x.min() == 0 and x.max() == convergence.SYMBOLS - 1
    n = convergence.SYMBOLS
    triples = np.bincount((x[:, :-2] * n * n + x[:, 1:-1] * n + x[:, 2:]).ravel(), minlength=n**3).reshape(n * n, n)
    assert (triples.reshape(n, n, n).sum(axis=0) > 0).sum(axis=1).max() <= convergence.SUCCESSORS
    pairs = triples.sum(axis=1, keepdims=True)
    p = triples / np.maximum(pairs, 1)
    entropy = -(triples * np.log(np.where(p > 0, p, 1))).sum() / triples.sum()
    assert entropy == pytest.approx(text.floor, rel=0.01)


def test_losses_agree_with_the_plain_run():
    """The error rule, with the plain model in fp64 as the reference: gptfast is at most twice as far from it as the
    plain one in fp32, and the rounding of the loss itself.
    """
    text, B, steps, lr = convergence.markov(1 << 12), 4, 40, 1e-3
    torch.manual_seed(0)
    rows = list(convergence.run(CONFIG, text.tokens, B, steps, lr, CPU, torch.float32))
    exact = models.PlainGPT(CONFIG)
    torch.manual_seed(0)
    exact.load_state_dict(gptfast.GPT(CONFIG).state_dict())  # as `run` begins
    exact.double()
    training = models.Training(exact, models.plain_optimizer(exact, lr))
    step, sampler, expected = models.plain_step(training, exact, False), RandomOffsets(text.tokens, 16), []
    for n in range(steps):
        for group in training.optimizer.param_groups:
            group["lr"] = learning_rate(n, steps, lr, warmup=2)
        data = batch(sampler, n, B)
        expected.append(step(torch.from_numpy(data.idx), torch.from_numpy(data.targets)).item())
    assert expected[-1] < expected[0] - 0.3  # it learns

    def error(name):
        return math.sqrt(sum((row[name][0] - x) ** 2 for row, x in zip(rows, expected, strict=True)) / steps)

    rounding = torch.finfo(torch.float32).eps / 2 * expected[0]
    assert error(convergence.OURS) <= 2 * error(convergence.PLAIN) + rounding


def test_a_dry_convergence(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 20, encoding="utf-8")
    for more in ([], ["--data", str(text)]):
        out = tmp_path / f"run{len(more)}"
        assert convergence.main(["--dry", "--device", "cpu", "--steps", "3", "--out", str(out), *more]) == 0
        found = json.loads((out / "losses.json").read_text())
        assert len(found["losses"][convergence.OURS]) == 3 and (found["floor"] is None) == bool(more)
        assert (out / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert "largest difference" in capsys.readouterr().out
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(GptfastError, match="UTF-8"):
        convergence.main(["--dry", "--data", str(text), "--out", str(tmp_path / "none")])


def test_summary():
    """The first steps are not timed; a peak of one step counts half over two."""
    rows = [{convergence.OURS: (3.0 - (n == 20), 0.5), convergence.PLAIN: (3.0, 1.0)} for n in range(40)]
    rows[0] = {name: (loss, 100.0) for name, (loss, _) in rows[0].items()}
    found = convergence.summary(rows, tokens_a_step=64)
    assert found["tokens_per_second"] == {convergence.OURS: 128.0, convergence.PLAIN: 64.0}
    assert found["largest_difference"] == pytest.approx(0.5) and found["smoothed_over"] == 2

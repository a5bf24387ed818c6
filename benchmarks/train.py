"""A whole training step (forward, backward, clipping, AdamW) of GPT-2 on random tokens, gptfast beside its peers.

The share is that of 6 N + 12 L C T FLOP a token (`mfu`) of this machine's bf16 matrix product. Peak memory is all that
training takes: weights, moments and gradients too. Steps with the same model take turns on the same weights.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import gptfast
from gptfast import ops
from gptfast.errors import GptfastError
from gptfast.machine import synchronize
from gptfast.precision import keep_memory

from . import models
from .models import VOCAB, Loss, Step, Training
from .suite import Call, Case, Setup

Steps = dict[str, Callable[[], tuple[Training, Step]]]
LR = 1e-6  # a step costs the same at any rate; at this one random tokens stay unlearned, so that losses can be checked
# Dense bf16 FLOP/s of the data sheets, by the name that the driver gives.
NOMINAL = {
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H200": 989.4e12,
}  # fmt: skip


def cases(setup: Setup) -> Iterator[Case]:
    try:
        for name, config, batches in sizes(setup):
            forms = Forms(setup, config)
            B = forms.best_batch(batches)
            yield forms.case(f"{name} step", B, forms.steps())
            # A case of its own: where time runs out while these compile, a minute each, the others are measured.
            yield forms.case(f"{name} step, compiled", B, forms.compiled_steps())
            forms.clear()
    finally:
        default_memory(setup.device)


def sizes(setup: Setup) -> list[tuple[str, gptfast.GPTConfig, tuple[int, ...]]]:
    """Name, shape, and the batches to choose from."""
    batches = (64, 32, 16, 8)
    gpu = [(f"GPT-2 {n}", gptfast.GPTConfig.preset(preset, vocab_size=VOCAB), batches) for n, preset in
           (("124M", "gpt2"), ("355M", "gpt2-medium"))]  # fmt: skip
    cpu = [
        ("GPT 6 layers", gptfast.GPTConfig(VOCAB, 256, 6, 6, 384), (4,) if setup.quick else (16,)),
        ("GPT-2 124M", gptfast.GPTConfig.preset("gpt2", vocab_size=VOCAB, context_length=256), (4,)),
    ]
    found = setup.size(gpu, cpu, [("GPT tiny", gptfast.GPTConfig(64, 16, 1, 2, 32), (2, 1))])
    return found[:1] if setup.quick else found


def flops_per_token(config: gptfast.GPTConfig, causal: bool = False) -> int:
    """Of a forward and a backward: 6 N + 12 L C T, N the parameters without the position table, whose rows are not
    multiplied (Chowdhery et al. 2022, appendix B); `causal` leaves out the half of attention that is masked.
    """
    with torch.device("meta"):
        model = gptfast.GPT(config)
    return model.flops_per_token() - (6 * config.n_layer * config.n_embd * config.context_length if causal else 0)


def mfu(config: gptfast.GPTConfig, tokens_per_second: float, peak: float) -> tuple[float, float]:
    """Model FLOP utilisation: the share of `peak` FLOP/s that the model's arithmetic comes to in rows of
    context_length tokens, in both conventions: with all scores of attention, as PaLM (Chowdhery et al. 2022, appendix
    B) and nanoGPT count, and with the half that a causal model needs, as FlashAttention-2 (Dao 2023) counts.
    """
    full, half = (flops_per_token(config, causal) * tokens_per_second / peak for causal in (False, True))
    return full, half


@dataclass(frozen=True)
class Turn:
    """One call: a step, whose loss is looked at."""

    step: Step
    training: Training
    idx: Tensor
    targets: Tensor
    vocab: int

    def __call__(self) -> float:
        loss = self.step(self.idx, self.targets).item()  # after the whole step, so that nothing waits for it
        if not abs(loss - math.log(self.vocab)) < 1:
            raise GptfastError(f"the loss of random tokens is {loss:.3f}; it should be near {math.log(self.vocab):.3f}")
        return loss

    @property
    def held(self) -> int:
        """Bytes that stay between calls; suite.measure adds them to the peak."""
        return self.training.held()


class Forms:
    """The ways to train one model. Models and compiled steps are made when first needed, and kept until `clear`."""

    def __init__(self, setup: Setup, config: gptfast.GPTConfig) -> None:
        self.setup, self.config = setup, config
        self.kept: dict[str, Any] = {}
        self.bf16 = setup.dtype == torch.bfloat16

    def clear(self) -> None:
        if any(key.endswith(" compiled") for key in self.kept):
            torch.compiler.reset()
        self.kept.clear()
        gc.collect()
        if self.setup.on_gpu:
            torch.cuda.empty_cache()

    def case(self, name: str, B: int, steps: Steps) -> Case:
        c, T = self.config, self.config.context_length
        return Case(
            "train", name, f"B={B} T={T} L={c.n_layer} C={c.n_embd} V={c.vocab_size}",
            str(self.setup.dtype).removeprefix("torch."), lambda: self.tokens(B),
            {name: self._form(make) for name, make in steps.items()}, work=B * T, unit="tokens/s",
            of=self.setup.matmul, need=flops_per_token(c) * B * T, yardstick="eager",
        )  # fmt: skip

    def tokens(self, B: int) -> tuple[Tensor, ...]:
        """idx and targets, int64 [B, T]."""
        size = (2, B, self.config.context_length)
        return torch.randint(self.config.vocab_size, size, device=self.setup.device).unbind()

    @property
    def transformers(self) -> bool:
        return self.setup.peers and importlib.util.find_spec("transformers") is not None

    def steps(self) -> Steps:
        setup = self.setup
        found: Steps = {"gptfast": self._ours, "eager": self._plain}
        if setup.on_gpu or (setup.dry and setup.triton):
            found["gptfast Triton"] = self._ours_in_triton
        if setup.peers and not setup.on_gpu:
            found["eager fp32"] = lambda: self._plain(bf16=False)
        if self.transformers:
            found["transformers eager"] = lambda: self._hugging_face("eager")
            found["transformers sdpa"] = lambda: self._hugging_face("sdpa")
            found["gptfast.accelerate(transformers)"] = self._accelerated
            if setup.on_gpu and importlib.util.find_spec("liger_kernel"):
                found["transformers + Liger"] = self._liger
        return found

    def compiled_steps(self) -> Steps:
        """The most important first: a budget may leave out the last."""
        found: Steps = {"gptfast": self._ours}
        if self.setup.peers:
            found["nanoGPT compiled"] = lambda: self._plain(compiled=True)
        found["gptfast + compile"] = lambda: self._ours(compiled=True)
        if self.transformers:
            found["transformers compiled"] = lambda: self._hugging_face("sdpa", compiled=True)
        return found

    def _form(self, make: Callable[[], tuple[Training, Step]]) -> Callable[..., Call]:
        def prepare(idx: Tensor, targets: Tensor) -> Call:
            training, step = make()
            turn = Turn(step, training, idx, targets, self.config.vocab_size)
            if self.setup.device.type == "cpu":
                # gptfast's trainer keeps memory; others run in the allocator that users have, and not in that memory.
                # After a step the allocator is as this way of training leaves it.
                keep_memory() if training.copy is not None else default_memory(self.setup.device)
                turn()
            return turn

        return prepare

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def _compiled(self, key: str, module: Any) -> Any:
        backend = "eager" if self.setup.dry else "inductor"  # dry: only whether it can be traced
        return self._once(f"{key} compiled", lambda: torch.compile(module, backend=backend))

    def _ours(self, compiled: bool = False) -> tuple[Training, Step]:
        training = self._once("ours", lambda: models.ours(self.config, self.setup.device, self.setup.dtype, LR))
        model = training.copy.model
        return training, models.our_step(training, self._compiled("ours", model) if compiled else model)

    def _ours_in_triton(self) -> tuple[Training, Step]:
        training, step = self._ours()
        return training, in_triton(step, self.setup.device)

    def _plain(self, bf16: bool = True, compiled: bool = False) -> tuple[Training, Step]:
        training = self._once("plain", lambda: models.plain(self.config, self.setup.device, LR))
        loss_of: Loss = self._compiled("plain", training.model) if compiled else training.model
        return training, models.plain_step(training, loss_of, bf16 and self.bf16)

    def _hugging_face(self, attention: str, compiled: bool = False) -> tuple[Training, Step]:
        training = self._once("hugging face", lambda: models.hugging_face(self.config, self.setup.device, LR))
        training.model.set_attn_implementation(attention)
        model = self._compiled("hugging face", training.model) if compiled else training.model
        return training, models.plain_step(training, models.hugging_face_loss(model), self.bf16)

    def _accelerated(self) -> tuple[Training, Step]:
        def make() -> Training:
            training = models.hugging_face(self.config, self.setup.device, LR)
            gptfast.accelerate(training.model)
            return training

        training = self._once("accelerated", make)
        return training, models.plain_step(training, models.hugging_face_loss(training.model), self.bf16)

    def _liger(self) -> tuple[Training, Step]:
        training, loss_of = self._once("liger", lambda: models.liger(self.config, self.setup.device, LR))
        return training, models.plain_step(training, loss_of, self.bf16)

    def best_batch(self, batches: tuple[int, ...]) -> int:
        """Of `batches` the one with most tokens/s of gptfast's step, among those for which the memory suffices, also
        the yardstick's, and beside the models of the other forms. The last where none runs: `measure` says why.
        """
        if len(batches) == 1:
            return batches[0]
        others = 3 if self.setup.peers else 0  # transformers', accelerated, with Liger: weights, moments
        with torch.device("meta"):
            size = others * 12 * gptfast.GPT(self.config).num_parameters()
        rates: dict[int, float] = {}
        for B in batches:
            try:
                rates[B] = self._rate(B, size)
            except Exception as error:  # out of memory; anything else happens again in `measure`, which reports it
                print(f"batch {B}: {type(error).__name__}", flush=True)
            gc.collect()
            if self.setup.on_gpu:
                torch.cuda.empty_cache()
        return max(rates, key=lambda B: rates[B]) if rates else batches[-1]

    def _rate(self, B: int, reserve: int) -> float:
        """tokens/s of gptfast's step, after one of the yardstick's, with `reserve` bytes in use by nobody."""
        reserved = torch.empty(reserve, dtype=torch.int8, device=self.setup.device)
        idx, targets = self.tokens(B)
        for _, step in (self._plain(), self._ours()):
            step(idx, targets)
        seconds = []
        for _ in range(3):
            synchronize(self.setup.device)
            start = time.perf_counter()
            step(idx, targets)
            synchronize(self.setup.device)
            seconds.append(time.perf_counter() - start)
        del reserved
        return idx.numel() / min(seconds)


def in_triton(step: Step, device: torch.device) -> Step:
    """`step` as if every row of the launch table said that Triton is faster."""

    def always(*_: object) -> bool:
        return True

    def run(idx: Tensor, targets: Tensor) -> Tensor:
        with mock.patch.multiple(ops, TRITON_DEVICES={device.type}, _preferred=always, _rows_preferred=always):
            return step(idx, targets)

    return run


def default_memory(device: torch.device) -> None:
    """Undo `keep_memory`: the limits at which glibc's own rule ends when blocks of 32 MB and more are freed, as a
    training step's are. What is free goes back to the system. Does nothing where the C library is not glibc.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)

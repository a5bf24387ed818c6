"""The models whose training is measured, each with its optimizer, and a training step of each.

`PlainGPT` does what nanoGPT's `GPT` does, operation for operation: separate matrix products, SDPA, `nn.GELU`, the
logits of the whole batch in one tensor, `F.cross_entropy` on them. Its parameters have the names of gptfast.GPT's. A
step is forward, backward, `clip_grad_norm_` at 1 and AdamW; all but gptfast's run under bf16 autocast, as people do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gptfast
from gptfast.optim import adamw
from gptfast.precision import ComputeCopy

VOCAB = 50304  # GPT-2's, up to a multiple of 64
Loss = Callable[[Tensor, Tensor], Tensor]  # of idx and targets [B, T], a scalar
Step = Callable[[Tensor, Tensor], Tensor]  # the same, and the weights are others afterwards


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (z.view(B, T, self.heads, -1).transpose(1, 2) for z in self.c_attn(x).split(C, dim=2))  # [B, H, T, D]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.gelu, self.c_proj = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.ln_2, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PlainGPT(nn.Module):
    def __init__(self, config: gptfast.GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.wte, self.wpe = nn.Embedding(config.vocab_size, C), nn.Embedding(config.context_length, C)
        self.h = nn.ModuleList(Block(C, config.n_head) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(C)
        self.lm_head = nn.Linear(C, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer) if into_residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)


def plain_optimizer(model: nn.Module, lr: float) -> torch.optim.AdamW:
    """nanoGPT's: weight decay on matrices, fused on a GPU."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=matrices[0].is_cuda)


@dataclass
class Training:
    """A model and its optimizer. Steps that are made of the same one take its memory once."""

    model: Any
    optimizer: torch.optim.AdamW
    copy: ComputeCopy[Any] | None = None  # gptfast's, in bf16

    def held(self) -> int:
        """Bytes kept between steps: weights, moments, the bf16 copy, gradients that are not freed."""
        tensors = [*self.model.parameters(), *(p.grad for p in self.model.parameters() if p.grad is not None)]
        for state in self.optimizer.state.values():
            tensors += [x for x in state.values() if isinstance(x, Tensor)]
        if self.copy is not None and self.copy.model is not self.model:
            tensors += self.copy.model.parameters()
        return sum(x.nbytes for x in tensors)


def plain(config: gptfast.GPTConfig, device: torch.device, lr: float) -> Training:
    with device:
        model = PlainGPT(config)
    return Training(model, plain_optimizer(model, lr))


def ours(config: gptfast.GPTConfig, device: torch.device, dtype: torch.dtype, lr: float) -> Training:
    with device:
        model = gptfast.GPT(config)
    return Training(model, adamw(model, lr), ComputeCopy(model, dtype))


def hugging_face(config: gptfast.GPTConfig, device: torch.device, lr: float) -> Training:
    """transformers' GPT-2 of the same shape."""
    import transformers

    shape = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context_length, n_embd=config.n_embd, n_layer=config.n_layer,
        n_head=config.n_head, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with device:
        model = transformers.GPT2LMHeadModel(shape)
    return Training(model, plain_optimizer(model, lr))


def hugging_face_loss(model: Any) -> Loss:
    """As its users take it: the model moves the labels by one itself."""
    return lambda idx, _: model(idx, labels=idx, use_cache=False).loss


def liger(config: gptfast.GPTConfig, device: torch.device, lr: float) -> tuple[Training, Loss]:
    """transformers' GPT-2 with Liger's LayerNorm and its linear cross entropy put in by hand: Liger (0.8.5) patches
    many models, and not this one.
    """
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss, LigerLayerNorm

    training = hugging_face(config, device, lr)
    for module in training.model.modules():
        if isinstance(module, nn.LayerNorm):
            norm = LigerLayerNorm(config.n_embd, eps=module.eps)
            norm.weight, norm.bias = module.weight, module.bias  # the optimizer has them
            module.forward = norm.forward  # type: ignore[method-assign]
    cross_entropy = LigerFusedLinearCrossEntropyLoss()

    def loss(idx: Tensor, targets: Tensor) -> Tensor:
        x = training.model.transformer(idx, use_cache=False).last_hidden_state
        return cross_entropy(training.model.lm_head.weight, x.flatten(0, 1), targets.flatten())

    return training, loss


def plain_step(training: Training, loss_of: Loss, bf16: bool) -> Step:
    """A step of a model with fp32 weights."""
    model, optimizer = training.model, training.optimizer

    def step(idx: Tensor, targets: Tensor) -> Tensor:
        try:
            with torch.autocast(idx.device.type, torch.bfloat16) if bf16 else nullcontext():
                loss = loss_of(idx, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        finally:  # also when memory ran out: others step this model too
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def our_step(training: Training, loss_of: Loss) -> Step:
    """gptfast's step, as gptfast.train has it: `loss_of` runs the bf16 copy."""
    copy, optimizer = training.copy, training.optimizer
    assert copy is not None

    def step(idx: Tensor, targets: Tensor) -> Tensor:
        copy.clear_gradients()
        loss = loss_of(idx, targets)
        loss.backward()
        copy.collect_gradients()
        nn.utils.clip_grad_norm_(copy.master.parameters(), 1.0)
        optimizer.step()
        copy.refresh()
        return loss.detach()

    return step

"""GPT-2 in one file: token and position embedding, pre-LayerNorm blocks, a head tied to the embedding.

Radford et al. 2019, with the initialisation of section 2.3. Parameter names are those of Hugging Face's GPT-2 and of
nanoGPT; matrices are [out, in] as in `nn.Linear`. All arithmetic goes through `gptfast.ops`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import ops
from .config import GPTConfig, require_config
from .errors import GptfastError
from .modules import untouched


@dataclass
class KVCache:
    """Keys and values of the positions so far: k and v [L, B, context, H, D], of which `length` are filled."""

    k: Tensor
    v: Tensor
    length: int = 0

    @classmethod
    def empty(cls, model: GPT, batch: int) -> KVCache:
        c = model.config
        shape = (c.n_layer, batch, c.context_length, c.n_head, c.n_embd // c.n_head)
        k = model.wte.weight.new_empty(shape)
        return cls(k, torch.empty_like(k))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """Store k and v [B, T, H, D] behind the filled positions; attention of q to all keys, [B, T, H, D]."""
        end = self.length + k.shape[1]
        self.k[layer, :, self.length : end] = k
        self.v[layer, :, self.length : end] = v
        return ops.causal_attention(q, self.k[layer, :, :end], self.v[layer, :, :end], window=window)


@dataclass
class RowCache:
    """Keys and values of rows that differ in length: k and v [L, B, context, H, D].

    position int64 [B] is where each row's next token goes; what lies there and behind it is not seen.
    """

    k: Tensor
    v: Tensor
    position: Tensor

    def __post_init__(self) -> None:
        self.rows = torch.arange(len(self.position), device=self.position.device)
        self.lengths = torch.empty(0)  # int32 [B], the new token included; GPT.step sets it

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """Store k and v [B, 1, H, D] at each row's position; attention of q to the keys up to it, [B, 1, H, D]."""
        self.k[layer].index_put_((self.rows, self.position), k[:, 0].to(self.k.dtype))
        self.v[layer].index_put_((self.rows, self.position), v[:, 0].to(self.v.dtype))
        return ops.decode_attention(q, self.k[layer], self.v[layer], self.lengths, window=window)


class LayerNorm(nn.Module):
    """LayerNorm, and before it the addition of a branch to the residual stream, which one kernel does in one pass."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None
        self.eps, self.dropout = config.layer_norm_eps, config.dropout

    def forward(self, branch: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """norm(s) and s = residual + dropout(branch), each [B, T, C]; without a branch s is residual."""
        if branch is None:
            return ops.layer_norm(residual, self.weight, self.bias, self.eps), residual
        dropout = self.dropout if self.training else 0.0
        return ops.add_layer_norm(branch, residual, self.weight, self.bias, self.eps, dropout)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        C = config.n_embd
        self.layer, self.heads, self.window, self.dropout = layer, config.n_head, config.windows[layer], config.dropout
        self.c_attn = nn.Linear(C, 3 * C, bias=config.bias and config.qkv_bias)
        self.c_proj = nn.Linear(C, C, bias=config.bias)

    def forward(self, x: Tensor, cu_seqlens: Tensor | None = None, cache: KVCache | RowCache | None = None) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.heads, C // self.heads)
        if cache is None:
            dropout = self.dropout if self.training else 0.0
            y = ops.causal_attention_qkvpacked(qkv, dropout_p=dropout, window=self.window, cu_seqlens=cu_seqlens)
        else:
            q, k, v = qkv.unbind(2)  # [B, T, H, D], in place
            y = cache.attend(self.layer, q, k, v, self.window)
        return self.c_proj(y.reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.c_fc = nn.Linear(C, 4 * C, bias=config.bias)
        self.c_proj = nn.Linear(4 * C, C, bias=config.bias)
        self.approximate = "none" if config.activation == "gelu" else "tanh"

    def forward(self, x: Tensor) -> Tensor:
        if type(self.c_fc) is not nn.Linear or not untouched(self.c_fc):
            return self.c_proj(ops.gelu(self.c_fc(x), self.approximate))  # a layer that was wrapped or is watched
        return self.c_proj(ops.linear_gelu(x, self.c_fc.weight, self.c_fc.bias, self.approximate))


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = LayerNorm(config), LayerNorm(config)
        self.attn, self.mlp = Attention(config, layer), MLP(config)

    def forward(
        self, branch: Tensor | None, residual: Tensor, cu_seqlens: Tensor | None = None,
        cache: KVCache | RowCache | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The output of the MLP and the residual stream that it is to be added to, given those of the block before."""
        x, residual = self.ln_1(branch, residual)
        x, residual = self.ln_2(self.attn(x, cu_seqlens, cache), residual)
        return self.mlp(x), residual


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        require_config(config)
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context_length, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02), the embeddings' std as configured, biases zero, and the projections into the residual stream
        smaller by sqrt(2 n_layer).
        """
        stds = {"wte": self.config.embd_std, "wpe": self.config.embd_std}
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                std = stds.get(name.split(".")[0], 0.02)
                into_residual = name.endswith("c_proj.weight")
                nn.init.normal_(parameter, std=std / math.sqrt(2 * self.config.n_layer) if into_residual else std)

    def num_parameters(self) -> int:
        """Parameters, a tied head counted once."""
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self) -> int:
        """Of one forward and backward: 6 N + 12 L C T (Chowdhery et al. 2022, appendix B), N without the position
        table.
        """
        c = self.config
        return 6 * (self.num_parameters() - self.wpe.weight.numel()) + 12 * c.n_layer * c.n_embd * c.context_length

    def embed(self, idx: Tensor, start: int = 0, positions: Tensor | None = None) -> Tensor:
        """Token and position embedding [B, T, C] of idx [B, T], at `positions` [B, T] or from `start` on."""
        dropout = self.config.dropout if self.training else 0.0
        if positions is None:
            return ops.embedding(idx, self.wte.weight, self.wpe.weight, dropout, start)
        return F.dropout(self.wte(idx) + self.wpe(positions), dropout)

    def hidden(
        self, idx: Tensor, cu_seqlens: Tensor | None = None, cache: KVCache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The final LayerNorm's output [B, T, C] for idx int64 [B, T], which follows what `cache` already holds."""
        start = cache.length if cache is not None else 0
        if start + idx.shape[1] > self.config.context_length and positions is None:
            raise GptfastError(
                f"{start + idx.shape[1]} tokens do not fit the model's context of {self.config.context_length}; "
                "pass fewer, or a model with a larger context_length"
            )
        if cu_seqlens is not None:
            if cache is not None:
                raise GptfastError("a cache holds one document a row; pass cu_seqlens or cache")
            cu_seqlens = ops.document_bounds(cu_seqlens, *idx.shape)  # once for all layers
        branch, residual = None, self.embed(idx, start, positions)
        for block in self.h:
            branch, residual = block(branch, residual, cu_seqlens, cache)
        if cache is not None:
            cache.length += idx.shape[1]
        return self.ln_f(branch, residual)[0]

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cu_seqlens: Tensor | None = None,
        cache: KVCache | None = None, positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits [B, T, V] for idx int64 [B, T], or with `targets` [B, T] the mean loss, an fp32 scalar.

        targets are already shifted: targets[:, t] is the token after idx[:, t]; -100 is ignored. cu_seqlens int32 holds
        document boundaries over the flattened [B * T] positions: attention stays inside a document. positions int64
        [B, T] names the row of wpe that each token takes, by default its place in its row of idx; documents packed into
        a row longer than the context need it.
        """
        x = self.hidden(idx, cu_seqlens, cache, positions)
        if targets is None:
            return self.lm_head(x)
        return ops.linear_cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets.flatten())

    def step(self, tokens: Tensor, cache: RowCache) -> Tensor:
        """Logits [B, V] after one more token int64 [B] a row, at cache.position, which moves on. No number leaves the
        device, so that a CUDA graph can hold it.
        """
        cache.lengths = (cache.position + 1).to(torch.int32)
        branch, residual = None, self.embed(tokens[:, None], positions=cache.position[:, None])
        for block in self.h:
            branch, residual = block(branch, residual, None, cache)
        cache.position += 1
        return self.lm_head(self.ln_f(branch, residual)[0][:, 0])

    @torch.no_grad()
    def generate(
        self,
        idx: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_id: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue idx int64 [B, T] by sampling, up to max_new_tokens: [B, T + new].

        temperature 0 takes the likeliest token; top_k keeps the k likeliest, top_p the fewest whose probabilities reach
        p (Holtzman et al. 2020). After `eos_id` a row is filled with it, and all stop when every row has ended. Past
        the context the window slides: each further token sees the last context_length tokens.
        """
        from .sampling import stream

        new = list(stream(self, idx, max_new_tokens, temperature, top_k, top_p, eos_id, generator))
        return torch.cat([idx, *(token[:, None] for token in new)], dim=1)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> GPT:
        """A model from any weights that `gptfast.load_weights` reads: a folder that `save_pretrained` wrote, say."""
        from .weights import load_weights

        return load_weights(source)

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and model.safetensors as transformers' GPT2LMHeadModel reads them, each whole or not at
        all.
        """
        from .weights import save

        save(self, path)

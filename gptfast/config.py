"""The shape of a GPT, and the published sizes of the GPT-2 and GPT-3 families."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal

from .errors import GptfastError

# GPT-3 alternates dense and locally banded layers (Brown et al. 2020, section 2.1) and does not publish the band's
# width; 128 is the width that Child et al. 2019 use for text.
GPT3_WINDOWS = (None, 128)

_GPT3 = {"context_length": 2048, "window": GPT3_WINDOWS}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"n_layer": 4, "n_head": 4, "n_embd": 128, "context_length": 64},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},  # Radford et al. 2019; 124M
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},  # 355M
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},  # 774M
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},  # 1558M
    # Brown et al. 2020, table 2.1. Two of its rows do not multiply out; XL here has 16 heads of 128 (the table: 24),
    # 13B is 5120 wide (5140).
    "gpt3-small": {"n_layer": 12, "n_head": 12, "n_embd": 768, **_GPT3},
    "gpt3-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, **_GPT3},
    "gpt3-large": {"n_layer": 24, "n_head": 16, "n_embd": 1536, **_GPT3},
    "gpt3-xl": {"n_layer": 24, "n_head": 16, "n_embd": 2048, **_GPT3},
    "gpt3-2.7b": {"n_layer": 32, "n_head": 32, "n_embd": 2560, **_GPT3},
    "gpt3-6.7b": {"n_layer": 32, "n_head": 32, "n_embd": 4096, **_GPT3},
    "gpt3-13b": {"n_layer": 40, "n_head": 40, "n_embd": 5120, **_GPT3},
    "gpt3-175b": {"n_layer": 96, "n_head": 96, "n_embd": 12288, **_GPT3},
}


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_from_0(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(0 <= value < math.inf)  # type: ignore[operator]


@dataclass(frozen=True)
class GPTConfig:
    """GPT-2 small by default.

    window: how many keys a query sees, itself included; None is all before it. A sequence gives one entry a layer and
    is repeated over the layers: (None, 128) alternates dense and banded. bias: biases in every Linear and LayerNorm;
    qkv_bias: in the query/key/value projection (the book's GPTModel has none). activation: Hugging Face's names;
    "gelu_new" is GPT-2's tanh form, "gelu" the exact one, which nanoGPT has. Raises GptfastError for what no model has.
    """

    vocab_size: int = 50257
    context_length: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    qkv_bias: bool = True
    tie_weights: bool = True
    layer_norm_eps: float = 1e-5
    window: int | Sequence[int | None] | None = None
    embd_std: float = 0.02
    activation: Literal["gelu_new", "gelu"] = "gelu_new"

    def __post_init__(self) -> None:
        """Every field is looked at: what comes out of a file may be anything."""
        if isinstance(self.window, Sequence) and not isinstance(self.window, str):  # a list, from JSON
            object.__setattr__(self, "window", tuple(self.window))
        windows = self.window if isinstance(self.window, tuple) else (self.window,)
        for name in ("vocab_size", "context_length", "n_layer", "n_head", "n_embd"):
            self._require(name, _is_whole(getattr(self, name)), "a whole number of at least 1")
            object.__setattr__(self, name, int(getattr(self, name)))  # numpy's integers are no JSON
        self._require("dropout", _is_from_0(self.dropout) and self.dropout < 1, "at least 0 and less than 1")
        for name in ("layer_norm_eps", "embd_std"):
            self._require(name, _is_from_0(getattr(self, name)), "a number of at least 0")
        for name in ("bias", "qkv_bias", "tie_weights"):
            self._require(name, isinstance(getattr(self, name), bool), "True or False")
        self._require("activation", self.activation in ("gelu_new", "gelu"), "'gelu_new' or 'gelu'")
        good = windows != () and all(w is None or (isinstance(w, int) and _is_whole(w)) for w in windows)
        self._require("window", good, "None or at least 1 key wide, or a sequence of such")
        if self.n_embd % self.n_head:
            raise GptfastError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise GptfastError(f"{name} is {reprlib.repr(getattr(self, name))}; it must be {what}")

    @property
    def windows(self) -> list[int | None]:
        """The window of each layer."""
        if self.window is None or isinstance(self.window, int):
            return [self.window] * self.n_layer
        return [self.window[i % len(self.window)] for i in range(self.n_layer)]

    @classmethod
    def preset(cls, name: str, **changes: Any) -> GPTConfig:
        """A published size by name, with any field changed: `GPTConfig.preset("gpt2", dropout=0.1)`."""
        if name not in PRESETS:
            near = difflib.get_close_matches(name, PRESETS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise GptfastError(f"unknown preset {name!r}{hint} Known: {', '.join(PRESETS)}")
        return replace(cls(**PRESETS[name]), **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPTConfig:
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise GptfastError(f"unknown model setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return cls(**values)


def require_config(config: Any) -> None:
    """Raises GptfastError for what is no GPTConfig, such as a preset's name."""
    if not isinstance(config, GPTConfig):
        near = f"GPTConfig.preset({config!r})" if isinstance(config, str) and config in PRESETS else "a GPTConfig"
        raise GptfastError(f"config is {reprlib.repr(config)}, a {type(config).__name__}; pass {near}")

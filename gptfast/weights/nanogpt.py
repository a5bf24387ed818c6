"""nanoGPT's ckpt.pt: the state dict under "model", the shape under "model_args". Matrices are [out, in], as here.

nanoGPT's MLP has the exact GELU, GPT-2 its tanh form, which is up to 5e-4 away. Its checkpoints do not say which.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..config import GPTConfig
from ..errors import GptfastError
from ..model import GPT
from .huggingface import LAYOUT as HUGGING_FACE
from .layout import Layout, checked_config, export

LAYOUT = Layout("nanoGPT", lambda name: (name,), False, HUGGING_FACE.ignored, "gelu")
OURS = LAYOUT._replace(name="gptfast", activation="gelu_new")  # a state dict of gptfast.GPT

_ARGS = {
    "vocab_size": "vocab_size", "block_size": "context_length", "n_layer": "n_layer", "n_head": "n_head",
    "n_embd": "n_embd", "dropout": "dropout", "bias": "bias",
}  # fmt: skip


def config_of(model_args: Mapping[str, Any], where: str) -> GPTConfig:
    """The configuration that a checkpoint's "model_args" describe."""
    missing = [name for name in _ARGS if name not in model_args and name not in ("dropout", "bias")]
    if missing:
        raise GptfastError(f"{where}: its model_args do not say {', '.join(missing)}")
    values = {ours: model_args[name] for name, ours in _ARGS.items() if name in model_args}
    return checked_config(where, **values, activation=LAYOUT.activation)


def to_nanogpt(model: GPT) -> dict[str, Any]:
    """The checkpoint that nanoGPT's train.py and sample.py read: {"model": state dict, "model_args": shape}.

    Warns where nanoGPT would compute another GELU, as it does with OpenAI's weights too.
    """
    config = model.config
    if not config.tie_weights:
        raise GptfastError("nanoGPT ties its head to the embedding, this model does not; it cannot be written for it")
    check_alike(config, "nanoGPT", LAYOUT.activation)
    state: dict[str, Tensor] = {}
    for name, tensor in export(model, LAYOUT, biases=config.bias).items():
        state[name if name == "lm_head.weight" else "transformer." + name] = tensor
    return {"model": state, "model_args": {name: getattr(config, ours) for name, ours in _ARGS.items()}}


def check_alike(config: GPTConfig, whose: str, activation: str) -> None:
    """Raises GptfastError for a model that other implementations would compute differently; warns where they differ by
    the form of GELU only.
    """
    if any(config.windows):
        raise GptfastError(f"{whose} has no banded attention, this model has; it cannot be written for it")
    if config.layer_norm_eps != 1e-5:
        raise GptfastError(f"{whose}'s LayerNorm has an epsilon of 1e-5, this model {config.layer_norm_eps:g}")
    if config.activation != activation:
        forms = {"gelu": "the exact GELU", "gelu_new": "the tanh form of GELU"}
        warnings.warn(
            f"{whose} computes {forms[activation]}, this model was made with {forms[config.activation]}: activations "
            "will differ by up to 5e-4",
            stacklevel=3,
        )

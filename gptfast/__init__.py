"""gptfast: the GPT-2 path in PyTorch, from raw text to a fine-tuned model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import data, kernels, ops
    from .config import GPTConfig
    from .drop_in import accelerate, explain, restore
    from .errors import GptfastError
    from .model import GPT
    from .tokenizer import (
        Encoding,
        encoding_for_model,
        encoding_name_for_model,
        get_encoding,
        list_encoding_names,
    )
    from .weights import load_weights

# Names load on first use, so that `import gptfast` and the command line start at once.
_HOME = {
    "GPT": "model",
    "GPTConfig": "config",
    "GptfastError": "errors",
    "accelerate": "drop_in",
    "explain": "drop_in",
    "restore": "drop_in",
    "Encoding": "tokenizer",
    "encoding_for_model": "tokenizer",
    "encoding_name_for_model": "tokenizer",
    "get_encoding": "tokenizer",
    "list_encoding_names": "tokenizer",
    "load_weights": "weights",
}
_MODULES = ("data", "kernels", "ops")

__all__ = [
    "GPT",
    "Encoding",
    "GPTConfig",
    "GptfastError",
    "accelerate",
    "data",
    "encoding_for_model",
    "encoding_name_for_model",
    "explain",
    "get_encoding",
    "kernels",
    "list_encoding_names",
    "load_weights",
    "ops",
    "restore",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _install_hf_attention() -> None:
    from . import hf_hook  # attn_implementation="gptfast" in Hugging Face models, when they are imported

    hf_hook.install()


_install_hf_attention()

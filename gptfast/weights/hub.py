"""Models on the Hugging Face hub, through huggingface_hub: its cache, its HF_HUB_OFFLINE, its tokens."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import GptfastError

_SAFETENSORS = ["config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
_PICKLES = ["config.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"]


def is_name(source: str) -> bool:
    """Whether `source` can be the name of a model on the hub: name or owner/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source) is not None and not re.search(
        r"\.(safetensors|bin|pt|pth|json|index|ckpt)$", source
    )


def download(name: str) -> Path:
    """The folder in the hub's cache that holds the model, downloaded where it is not there yet."""
    try:
        import huggingface_hub
    except ImportError:
        raise GptfastError(
            f"there is no file or folder {name!r}; to look for it on the Hugging Face hub, "
            "run: pip install huggingface_hub"
        ) from None
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=_SAFETENSORS))
        if not any(folder.glob("*.safetensors")):
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=_PICKLES))
    except Exception as error:  # of many kinds: no network, no such model, no access
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise GptfastError(
            f"{name!r} is neither a file nor a folder, and the Hugging Face hub gave no model of that name: {reason}"
        ) from error
    return folder

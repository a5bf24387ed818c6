"""A model written in a chosen layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import GptfastError
from ..files import atomic_path, make_folder
from ..model import GPT
from .book import to_book
from .huggingface import save
from .nanogpt import to_nanogpt
from .tensors import write_safetensors

LAYOUTS = ("hf", "nanogpt", "book")


def write(model: GPT, path: Path, layout: str) -> Path:
    """Write "hf" as a folder, "nanogpt" as a .pt file (or ckpt.pt in a folder), "book" as a .pth, .pt or .safetensors
    file; returns what was written. Files are whole or not there.
    """
    if layout == "hf":
        if path.is_file() or path.suffix in (".safetensors", ".pt", ".pth", ".bin"):
            raise GptfastError(f"{path} is the name of a file; Hugging Face's layout is a folder, name one")
        save(model, path)
        return path
    if layout == "nanogpt":
        if path.suffix != ".pt":
            make_folder(path)
            path = path / "ckpt.pt"
        value: Any = to_nanogpt(model)
    else:
        if path.suffix not in (".pth", ".pt", ".safetensors"):
            raise GptfastError(f"{path} must end in .pth, .pt or .safetensors")
        value = to_book(model)
    make_folder(path.parent)
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            write_safetensors(temporary, value)
        else:
            torch.save(value, temporary)
    return path

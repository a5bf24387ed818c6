"""Stage 1: text to tokens to batches. `prepare` writes token sets; the rest reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .samplers import Batch, Mixture, PackedDocuments, RandomOffsets, Row, Sampler, SlidingWindow, batch
from .tokens import NoSuchSplit, TokenSet, open_tokens

if TYPE_CHECKING:
    from .loader import DeviceBatch, Loader

__all__ = [
    "Batch",
    "DeviceBatch",
    "Loader",
    "Mixture",
    "NoSuchSplit",
    "PackedDocuments",
    "RandomOffsets",
    "Row",
    "Sampler",
    "SlidingWindow",
    "TokenSet",
    "batch",
    "open_tokens",
]


def __getattr__(name: str) -> Any:
    if name in ("Loader", "DeviceBatch"):  # they import torch, which preparing data does without
        from . import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

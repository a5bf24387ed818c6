"""Text to token ids and back: tiktoken's encodings and interface, vocabularies of your own, and "bytes"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .encoding import Encoding
from .models import encoding_name_for_model
from .published import END_OF_TEXT
from .special import Special
from .vocabularies import (
    ENCODING_NAMES,
    TIKTOKEN_NAMES,
    encoding_for_model,
    get_encoding,
    list_encoding_names,
)

if TYPE_CHECKING:
    from .formats import load_tiktoken

__all__ = [
    "ENCODING_NAMES",
    "END_OF_TEXT",
    "TIKTOKEN_NAMES",
    "Encoding",
    "Special",
    "encoding_for_model",
    "encoding_name_for_model",
    "get_encoding",
    "list_encoding_names",
    "load_tiktoken",
]


def __getattr__(name: str) -> Any:
    if name == "load_tiktoken":  # reading files other than OpenAI's needs more modules
        from .formats import load_tiktoken

        return load_tiktoken
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

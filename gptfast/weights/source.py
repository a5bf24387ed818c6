"""`load_weights`: finds out what a source is, and makes a model of it."""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..config import GPTConfig, require_config
from ..errors import GptfastError
from ..model import GPT
from . import book, huggingface, nanogpt, tensorflow
from .build import build
from .layout import Layout, arrange, infer_config
from .tensors import Pickle, Tensors, of_safetensors, of_shards, of_state_dict, unwrap

_KNOWN = (
    "gptfast reads Hugging Face folders and files, OpenAI's TensorFlow checkpoints, nanoGPT's ckpt.pt, state dicts of "
    "the book's GPTModel, names on the Hugging Face hub, and openai:124M, openai:355M, openai:774M, openai:1558M"
)


class Checkpoint(NamedTuple):
    """Weights that were found but not read. `config` is what the files say; None where they do not."""

    where: str
    layout: Layout
    tensors: Tensors
    config: GPTConfig | None
    path: Path | None

    @property
    def weights(self) -> Tensors:
        """The tensors without those that are no weights, such as masks."""
        return {name: t for name, t in self.tensors.items() if not self.layout.ignored.search(name)}

    def check_size(self) -> None:
        """Raise GptfastError where the tensors are larger than the file: a view may claim any shape."""
        size = sum(torch.Size(t.shape).numel() * t.dtype.itemsize for t in self.weights.values())
        if self.path and size > 2 * _size(self.path):  # twice: a tied head may be there under both names
            raise GptfastError(f"{self.where} claims tensors of {size:,} bytes, more than the file has; copy it again")

    def load(self, config: GPTConfig | None = None) -> GPT:
        if "score.weight" in self.tensors:
            raise GptfastError(f"{self.where} is a classifier and writes no text; `gptfast classify` reads it")
        config = config or self.config or infer_config(self.tensors, self.layout, self.where)
        return build(arrange(self.tensors, self.layout, config, self.where), config, self.where)


def load_weights(
    source: str | os.PathLike[str] | Mapping[str, Any], *, config: GPTConfig | Mapping[str, Any] | None = None
) -> GPT:
    """A GPT with the weights of `source`, in the types in which they are kept there.

    source: a folder or file in Hugging Face's layout, OpenAI's TensorFlow checkpoint (its folder or .index file),
    nanoGPT's ckpt.pt, a state dict of one of these or of the book's GPTModel (in memory or a .pth, .pt or .safetensors
    file), a name on the Hugging Face hub, or "openai:124M", which is downloaded. config: the model's shape where the
    files do not say it, or the book's cfg dictionary; otherwise heads are taken to be 64 wide. The head is tied to the
    embedding where the files tie it, have none, or have one that equals it.

    Raises GptfastError for what is none of these, is damaged, or does not fit the configuration.
    """
    if isinstance(config, Mapping):
        config = book.config_of(config)
    elif config is not None:
        require_config(config)
    return find(source).load(config)


def find(source: str | os.PathLike[str] | Mapping[str, Any]) -> Checkpoint:
    """What `source` is, with the names and shapes of its tensors."""
    if isinstance(source, Mapping):
        state, extras = unwrap(source)
        return _of_names(of_state_dict(state, "the state dict"), extras, "the state dict", None)
    if not isinstance(source, (str, os.PathLike)):
        raise GptfastError(f"weights cannot be loaded from a {type(source).__name__}; {_KNOWN}")
    if not os.fspath(source):
        raise GptfastError(f"weights cannot be loaded from an empty name; {_KNOWN}")
    try:
        found = _at(source, Path(source).expanduser())
        found.check_size()
    except (OSError, RuntimeError) as error:  # no permission, a name too long; ~ of nobody
        reason = getattr(error, "strerror", None) or error
        raise GptfastError(f"cannot read {reprlib.repr(os.fspath(source))}: {reason}") from error
    return found


def _at(source: str | os.PathLike[str], path: Path) -> Checkpoint:
    if isinstance(source, str) and source.startswith("openai:"):
        from .openai import cached

        path = cached(source.removeprefix("openai:"))
    elif tensorflow_prefix(path):
        pass
    elif not path.exists():
        from .hub import download, is_name

        if not isinstance(source, str) or not is_name(source):
            raise GptfastError(f"there is no file or folder {source}; {_KNOWN}")
        path = download(source)
    return _in_folder(path) if path.is_dir() else _in_file(path)


def tensorflow_prefix(path: Path) -> bool:
    """Whether TensorFlow would know `path` as a checkpoint: model.ckpt, of which only model.ckpt.index is a file."""
    return Path(f"{path}.index").is_file()


def _in_folder(folder: Path) -> Checkpoint:
    found: dict[str, Path] = {}
    for name in huggingface.WEIGHT_FILES:
        if (folder / name).is_file():
            found.setdefault("Hugging Face", folder / name)
    if any(folder.glob("*.index")):
        found["TensorFlow"] = Path(f"{tensorflow.prefix_of(folder)}.index")
    if (folder / "ckpt.pt").is_file():
        found["nanoGPT"] = folder / "ckpt.pt"
    if len(found) > 1:
        what = ", ".join(f"{kind} ({path.name})" for kind, path in found.items())
        raise GptfastError(f"{folder} holds several models: {what}; give the file of the one you mean")
    if not found:
        files = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".pt", ".pth", ".bin"))
        hint = f"; give one of its files: {', '.join(files[:5])}" if files else ""
        if (folder / "adapter_config.json").is_file():
            hint = "; it holds a LoRA adapter alone, which gptfast.lora.load_lora puts on its model"
        for part, which in (("checkpoints", "one of its checkpoints/step-*"), ("best", "its best/")):
            if (folder / part).is_dir():
                hint = f"; it is a run: give {which}"
        raise GptfastError(
            f"{folder} has no model.safetensors or pytorch_model.bin, no TensorFlow checkpoint and no ckpt.pt{hint}"
        )
    return _in_file(next(iter(found.values())))


def _in_file(path: Path) -> Checkpoint:
    if tensorflow_prefix(path) or path.name == "checkpoint" or re.search(r"\.index$|\.data-\d+-of-\d+$", path.name):
        tensors = tensorflow.read(path)
        prefix = tensorflow.prefix_of(path)
        return Checkpoint(str(prefix), tensorflow.LAYOUT, tensors, tensorflow.config_beside(path), prefix)
    if path.name.endswith(".index.json"):
        return _of_names(of_shards(path), {}, str(path), path)
    if not path.is_file():  # a pipe, which cannot be mapped, and would be waited for
        raise GptfastError(f"{path} is no regular file; give a file or a folder")
    with open_readable(path) as file:
        start = file.read(16)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _of_names(of_safetensors(path), {}, str(path), path)
    pickle = Pickle(path)
    return _of_names(pickle.tensors, pickle.extras, str(path), path)


def open_readable(path: Path) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise GptfastError(f"cannot read {path}: {error.strerror}") from None


def _of_names(tensors: Tensors, extras: Mapping[str, Any], where: str, path: Path | None) -> Checkpoint:
    """Hugging Face's, nanoGPT's and gptfast's tensors share their names; the shape of the first c_attn tells which, and
    the prefix of nanoGPT's.
    """
    ours = any(name.startswith("gptfast.") for name in tensors)
    named = {huggingface.plain(name): stored for name, stored in tensors.items()}
    if len(named) < len(tensors):
        raise GptfastError(f"{where} holds a tensor under two names that differ only in a prefix")
    if "tok_emb.weight" in named:
        return Checkpoint(where, book.LAYOUT, named, None, path)
    c_attn = named.get("h.0.attn.c_attn.weight")
    is_linear = c_attn is not None and len(c_attn.shape) == 2 and c_attn.shape[0] == 3 * c_attn.shape[1]
    if is_linear:
        args = extras.get("model_args")
        if isinstance(args, Mapping):
            return Checkpoint(where, nanogpt.LAYOUT, named, nanogpt.config_of(args, where), path)
        theirs = any(name.removeprefix("_orig_mod.").startswith("transformer.") for name in tensors)
        return Checkpoint(where, nanogpt.LAYOUT if theirs else nanogpt.OURS, named, _beside(path), path)
    config = _beside(path)
    if ours and config is None:
        raise GptfastError(f"{where} is a model with banded attention; its config.json must lie beside it")
    return Checkpoint(where, huggingface.LAYOUT, named, config, path)


def _beside(path: Path | None) -> GPTConfig | None:
    """What config.json beside the file says."""
    config = path.with_name("config.json") if path else None
    return huggingface.read_config(config) if config and config.is_file() else None


def _size(path: Path) -> int:
    """Bytes of a file and of those that belong to it."""
    if path.name.endswith(".index.json"):
        kind = ".safetensors" if ".safetensors." in path.name else ".bin"
        return sum(file.stat().st_size for file in path.parent.glob(f"*{kind}"))
    if not path.is_file():
        return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}.data-*"))
    return path.stat().st_size

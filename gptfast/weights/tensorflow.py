"""OpenAI's original checkpoints, read without TensorFlow.

    checkpoint                        text that names the newest checkpoint
    model.ckpt.index                  a table (sstable.py): name -> BundleEntryProto; "" -> BundleHeaderProto
    model.ckpt.data-00000-of-00001    the tensors' bytes
    hparams.json                      n_vocab, n_ctx, n_embd, n_head, n_layer

The protocol buffers are those of TensorFlow's tensor_bundle.proto and tensor_shape.proto. Matrices are [1, in, out].
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import GPTConfig
from ..errors import GptfastError
from ..files import read_json
from .crc32c import crc32c, masked
from .layout import Layout, checked_config
from .sstable import Damaged, read_table, varint
from .tensors import Stored, Tensors, mapped

_DTYPES = {1: torch.float32, 2: torch.float64, 3: torch.int32, 9: torch.int64, 14: torch.bfloat16, 19: torch.float16}
_MAX_DIMS = 8


def _parts(name: str) -> tuple[str, ...]:
    name = re.sub(r"^h\.", "h", name)
    if not name.startswith(("wte.", "wpe.")):
        norm = ".ln_" in name or name.startswith("ln_")
        name = name.replace("weight", "g" if norm else "w").replace("bias", "b")
    return ("model/" + name.removesuffix(".weight").replace(".", "/"),)


# The state of optimizers, which fine-tuned checkpoints hold beside the model, is no weight.
LAYOUT = Layout("OpenAI's TensorFlow checkpoint", _parts, True, re.compile(r"^(?!model/)|/(Adam|Adam_1|Momentum)$"))


class Entry(NamedTuple):
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: number, and the value of a varint or fixed32, or the bytes of the rest."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = varint(data, at)
            yield tag >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = varint(data, at)
        if size is None or size > len(data) - at:
            raise Damaged("an entry is no protocol buffer, or is cut short")
        piece = data[at : at + size]
        at += size
        yield tag >> 3, piece if kind == 2 else int.from_bytes(piece, "little")


def _numbers(data: bytes) -> dict[int, int]:
    return {number: value for number, value in _fields(data) if isinstance(value, int)}


def _entry(data: bytes) -> Entry:
    """A BundleEntryProto: 1 dtype, 2 shape {2 dim {1 size}}, 3 shard_id, 4 offset, 5 size, 6 crc32c, 7 slices."""
    shape: list[int] = []
    for number, value in _fields(data):
        if number == 7:
            raise Damaged("a tensor is kept in slices, which OpenAI's are not")
        if number == 2 and isinstance(value, bytes):
            dims = [dim for n, dim in _fields(value) if n == 2 and isinstance(dim, bytes)]
            shape += [_numbers(dim).get(1, 0) for dim in dims[: _MAX_DIMS + 1]]
            if len(shape) > _MAX_DIMS:
                raise Damaged(f"a tensor has more than {_MAX_DIMS} dimensions")
    n = _numbers(data)
    return Entry(n.get(1, 0), tuple(shape), n.get(3, 0), n.get(4, 0), n.get(5, 0), n.get(6, 0))


def prefix_of(path: Path) -> Path:
    """The path of a checkpoint's files without `.index`, from a folder or any of its files, or itself."""
    if not path.is_dir():
        if path.name != "checkpoint":
            return path.with_name(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path.name))
        path = path.parent
    try:
        text = (path / "checkpoint").read_text("utf-8", errors="replace")[:4096]
    except OSError:
        text = ""
    said = re.search(r'^model_checkpoint_path: "([^"]*)"', text, re.M)
    if said:
        name = re.split(r"[/\\]", said[1])[-1]  # often an absolute path of another machine
        if (path / f"{name}.index").is_file():
            return path / name
    found = sorted(path.glob("*.index"))
    if len(found) != 1:
        what = f"has no {said[1]}.index" if said else f"has {len(found)} files that end in .index"
        raise GptfastError(f"{path} {what}, and no `checkpoint` that names one of them; give the .index file itself")
    return found[0].with_suffix("")


def read(path: Path) -> Tensors:
    """The tensors of a checkpoint, by TensorFlow's names, a leading dimension of 1 taken off matrices.

    A tensor's bytes are checked against its CRC-32C when it is read. Raises GptfastError for damaged files.
    """
    prefix = prefix_of(path)
    index = prefix.with_name(prefix.name + ".index")
    table = read_table(index)
    try:
        if "" not in table:
            raise Damaged("it has no header")
        header = _numbers(table.pop(""))
        shards = header.get(1, 0)
        if header.get(2, 0) != 0:
            raise Damaged("its tensors are big-endian, which OpenAI's are not")
        if not 1 <= shards <= 1024:
            raise Damaged(f"it says {shards} data files")
        entries = {name: _entry(data) for name, data in table.items()}
    except Damaged as error:
        raise GptfastError(f"{index} is no index of a TensorFlow checkpoint, or is damaged ({error})") from None
    files: dict[int, tuple[Path, int]] = {}
    tensors: Tensors = {}
    for name, entry in entries.items():
        if LAYOUT.ignored.search(name):
            continue
        if entry.shard not in files:
            file = prefix.with_name(f"{prefix.name}.data-{entry.shard:05d}-of-{shards:05d}")
            if entry.shard >= shards or not file.is_file():
                raise GptfastError(f"{prefix.name}: {name} is in {file.name}, which is not in {file.parent}")
            files[entry.shard] = file, file.stat().st_size
        tensors[name] = _stored(name, entry, *files[entry.shard])
    return tensors


def _stored(name: str, entry: Entry, file: Path, file_size: int) -> Stored:
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise GptfastError(f"{file}: {name} is of TensorFlow's type {entry.dtype}, which gptfast does not read")
    size = dtype.itemsize
    for length in entry.shape:
        size *= length
    if size != entry.size:
        raise GptfastError(f"{file}: the index is damaged: {name} has {entry.size} bytes, its shape needs {size}")
    if entry.offset + entry.size > file_size:
        raise GptfastError(f"{file} is cut short: {name} ends at {entry.offset + entry.size:,} of {file_size:,} bytes")
    shape = entry.shape[1:] if len(entry.shape) == 3 and entry.shape[0] == 1 else entry.shape

    def content() -> Tensor:
        try:
            tensor = mapped(file, entry.offset, shape, dtype)
        except (OSError, ValueError) as error:
            raise GptfastError(f"cannot read {file}: {error}") from None
        data = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
        if masked(crc32c(data)) != entry.crc:
            raise GptfastError(f"{file} is damaged: the CRC-32C of {name} does not fit its bytes; download it again")
        return tensor

    return Stored(shape, dtype, content)


def config_beside(path: Path) -> GPTConfig | None:
    """The configuration in the hparams.json of a checkpoint; None where there is none."""
    file = prefix_of(path).with_name("hparams.json")
    if not file.is_file():
        return None
    values: dict[str, Any] = read_json(file, "n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
    return checked_config(
        str(file), vocab_size=values["n_vocab"], context_length=values["n_ctx"], n_layer=values["n_layer"],
        n_head=values["n_head"], n_embd=values["n_embd"],
    )  # fmt: skip

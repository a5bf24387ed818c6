"""Tensors in files, read and written one at a time: what they are called and look like is known before any is read.

A file is mapped into memory only while one tensor of it is copied. Pages of a mapping count as the process's memory
once they were touched, so a mapping kept open would be a second copy of the weights; and a file that another program
writes again under a live mapping ends the process.
"""

from __future__ import annotations

import json
import mmap
import reprlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..errors import GptfastError
from ..files import read_json


class Stored(NamedTuple):
    """One tensor of a file. `read` gives its content, which is to be dropped before the next one is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


Tensors = dict[str, Stored]

_REMAP_BYTES = 64 << 20


def of_state_dict(state: Mapping[str, Any], where: str) -> Tensors:
    """Tensors that are in memory. Raises GptfastError where a value is none, or does not hold its numbers densely."""
    for name, value in state.items():
        if not isinstance(name, str):
            raise GptfastError(f"{where} is no state dict: one of its names is {reprlib.repr(name)}")
        if not isinstance(value, Tensor):
            raise GptfastError(f"{where} is no state dict: {name!r} is a {type(value).__name__}, not a tensor")
        kind = _unusual(value)
        if kind:
            raise GptfastError(f"{where} holds {name!r} as {kind}; gptfast reads dense tensors that hold numbers")
    return {name: Stored(tuple(t.shape), t.dtype, lambda t=t: t.detach()) for name, t in state.items()}  # type: ignore[misc]


def _unusual(tensor: Tensor) -> str | None:
    """What a tensor is whose numbers do not lie in memory one beside the other; None for a plain one."""
    if is_lazy(tensor):
        return "a parameter that has no shape yet"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout is not torch.strided:
        return f"a sparse tensor ({str(tensor.layout).removeprefix('torch.')}: use .to_dense())"
    if tensor.is_meta or isinstance(tensor, torch._subclasses.FakeTensor):
        return "a tensor without content (device meta)"
    if hasattr(tensor, "full_tensor"):  # torch.distributed's DTensor
        return "the part of a tensor that is distributed over processes (use .full_tensor())"
    return None


def mapped(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor at byte `offset` of a file, mapped; the mapping goes with the tensor."""
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as file:  # a private mapping: torch asks for memory that may be written
        pages = mmap.mmap(file.fileno(), offset - start + count * dtype.itemsize, access=mmap.ACCESS_COPY, offset=start)
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=offset - start).view(shape)


def of_safetensors(path: Path) -> Tensors:
    """The tensors of a .safetensors file; the library checks its header against the file's size."""
    from safetensors import safe_open

    def read(name: str) -> Tensor:
        with open_file() as file:
            return file.get_tensor(name)

    def open_file() -> Any:
        try:
            return safe_open(str(path), "pt")
        except Exception as error:  # safetensors has its own error class for a damaged file
            raise GptfastError(f"{path} cannot be read ({error}); copy it again") from error

    with open_file() as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
        unknown = [f"{name} ({s.get_dtype()})" for name, s in slices.items() if s.get_dtype() not in _SAFETENSORS]
        if unknown:
            raise GptfastError(f"{path} holds a type that gptfast does not read: {unknown[0]}")
        return {
            name: Stored(shapes[name], _SAFETENSORS[s.get_dtype()], lambda name=name: read(name))  # type: ignore[misc]
            for name, s in slices.items()
        }


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file, one tensor after the other: tensors may be views, transposed ones say, and may share
    memory; no more than one of them is copied at a time. The library's own writer takes contiguous tensors only, all at
    once, and its files are readable by their owner alone, whatever the umask says.

    The format: https://github.com/huggingface/safetensors#format. Raises OSError; see `gptfast.files.atomic_path`.
    """
    kinds = {dtype: kind for kind, dtype in _SAFETENSORS.items()}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps all of them aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in names:
        t = tensors[name]
        header[name] = {"dtype": kinds[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


_SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool,
    "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def load_pickle(path: Path) -> tuple[Any, bool]:
    """What torch.save wrote, and whether its tensors are mapped: those of PyTorch before 1.6 cannot be. Only plain
    tensors and containers are accepted, so no code of the file is ever run.
    """
    import pickle

    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), True
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True), False
    except pickle.UnpicklingError as error:
        raise GptfastError(
            f"{path} is refused: it is no file of torch.save, or holds more than plain weights, which could run code "
            "when it is read. Save its state dict alone, or as safetensors; if that is what it was, copy it again"
        ) from error
    except Exception as error:  # the zip reader and the unpickler raise many kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise GptfastError(f"{path} cannot be read ({reason}); it is damaged or cut short, copy it again") from error


def refuse_packed(path: Path) -> None:
    """Raise GptfastError for a file of torch.save that was zipped again: what torch maps of it would be the compressed
    bytes, and a small file could be of any size when it is read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist())
    except Exception:  # no archive, or a damaged one: torch.load says what it is
        packed = False
    if packed:
        raise GptfastError(
            f"{path} is compressed, as torch.save writes no file; load it with torch.load and save it with torch.save"
        )


class Pickle:
    """The state dict in a file of torch.save, and what was saved beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.extras: dict[str, Any] = {}
        refuse_packed(path)
        self._load()
        self.tensors = of_state_dict(self._state, str(path))
        for name, stored in self.tensors.items():
            self.tensors[name] = stored._replace(read=lambda name=name: self._read(name))  # type: ignore[misc]

    def _load(self) -> None:
        value, self._mapped = load_pickle(self.path)
        if not isinstance(value, dict):
            raise GptfastError(f"{self.path} holds a {type(value).__name__}; gptfast reads state dicts")
        self._state, self.extras = unwrap(value)
        self._touched = 0

    def _read(self, name: str) -> Tensor:
        if name not in self._state or self._touched > _REMAP_BYTES:
            self._state = {}  # let go of the pages that were touched before the file is mapped anew
            self._load()
        tensor = self._state[name].detach()
        if self._mapped:
            self._touched += tensor.nbytes
        else:
            del self._state[name]  # in memory: each goes as soon as it was used
        return tensor


def unwrap(value: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state dict in a checkpoint, or the whole of it where it is one, and the other things in it."""
    for key in ("model", "model_state_dict", "state_dict"):
        if isinstance(value.get(key), Mapping):
            return dict(value[key]), {k: v for k, v in value.items() if k != key}
    return dict(value), {}


def of_shards(index: Path) -> Tensors:
    """The tensors of Hugging Face's sharded files, by their index (.index.json)."""
    weight_map = read_json(index, "weight_map")["weight_map"]
    names: list[str] = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and name and Path(name).name == name for name in names):
        raise GptfastError(f"{index} is damaged: its weight_map must name files beside it; restore it")
    shards: dict[str, Tensors] = {}
    for name in sorted(set(names)):
        path = index.with_name(name)
        if not path.is_file():
            raise GptfastError(f"{index} names {name}, which is not beside it; copy it there")
        shards[name] = of_safetensors(path) if path.suffix == ".safetensors" else Pickle(path).tensors
    lost = [key for key, name in weight_map.items() if key not in shards[name]]
    if lost:
        raise GptfastError(f"{index} says that {weight_map[lost[0]]} has {lost[0]!r}, but it has not; copy both again")
    return {key: shards[name][key] for key, name in weight_map.items()}

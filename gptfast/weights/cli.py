"""`gptfast weights convert|inspect|download`."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ..files import read_json

if TYPE_CHECKING:
    from .source import Checkpoint
    from .tensors import Tensors


@dataclass(frozen=True)
class Convert:
    """Write weights in another layout."""

    src: Annotated[str, tyro.conf.Positional]
    """What `gptfast.load_weights` reads: a folder, a file, a name on the Hugging Face hub, or openai:124M."""
    dst: Annotated[Path, tyro.conf.Positional]
    """A folder for hf, a .pt file or a folder for nanogpt, a .pth, .pt or .safetensors file for book."""
    to: Literal["hf", "nanogpt", "book"]
    """The layout: Hugging Face's, nanoGPT's ckpt.pt, or a state dict of the book's GPTModel."""
    n_head: int | None = None
    """Attention heads, where the files do not say it; 64 wide by default."""


@dataclass(frozen=True)
class Inspect:
    """What weights are: format, shape of the model, tokenizer, and every tensor."""

    src: Annotated[str, tyro.conf.Positional]
    """What `gptfast.load_weights` reads."""


@dataclass(frozen=True)
class Download:
    """Download OpenAI's GPT-2. What was cut short goes on where it stopped."""

    size: Annotated[Literal["124M", "355M", "774M", "1558M"], tyro.conf.Positional]
    """Parameters of the model."""
    dst: Annotated[Path, tyro.conf.Positional]
    """The folder for its files."""
    mirror: str | None = None
    """An address in place of OpenAI's, as is GPTFAST_OPENAI_MIRROR."""


def convert(argv: list[str]) -> None:
    options = tyro.cli(Convert, args=argv, prog="gptfast weights convert")
    from ..errors import GptfastError
    from .convert import write
    from .layout import infer_config
    from .source import find

    found = find(options.src)
    config = found.config
    if config is None:
        config = infer_config(found.tensors, found.layout, found.where, options.n_head)
    elif options.n_head not in (None, config.n_head):
        raise GptfastError(f"{found.where} says that it has {config.n_head} heads, --n-head {options.n_head}")
    model = found.load(config)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        path = write(model, options.dst, options.to)
    for note in notes:
        print(f"note: {note.message}", file=sys.stderr)
    print(f"{path}: {model.num_parameters():,} parameters, {str(model.wte.weight.dtype).removeprefix('torch.')}")


def inspect(argv: list[str]) -> None:
    options = tyro.cli(Inspect, args=argv, prog="gptfast weights inspect")
    from rich.console import Console
    from rich.table import Table

    from ..errors import GptfastError
    from .layout import infer_config
    from .source import find

    found = find(options.src)
    tensors = found.weights
    table = Table("tensor", "shape", "type", box=None, pad_edge=False)
    for name, stored in tensors.items():
        table.add_row(name, " x ".join(map(str, stored.shape)), str(stored.dtype).removeprefix("torch."))
    heads = ""
    try:
        config = found.config or infer_config(found.tensors, found.layout, found.where)
        heads = "" if found.config else " (by the usual width of 64; the files do not say)"
    except GptfastError as error:
        config, heads = None, str(error)
    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False)
    console.print(f"{found.where}: {found.layout.name}")
    if config:
        console.print(
            f"{config.n_layer} layers, {config.n_head} heads{heads}, width {config.n_embd}, context "
            f"{config.context_length:,}, vocabulary {config.vocab_size:,}"
        )
    else:
        console.print(heads)
    console.print(f"tokenizer: {tokenizer(found, config.vocab_size if config else 0)}")
    console.print(f"{parameters(found):,} parameters in {len(tensors)} tensors, {types(tensors)}", end="\n\n")
    console.print(table)


def parameters(found: Checkpoint) -> int:
    """Of the model: a head that is kept beside the embedding that it equals counts once."""
    import torch

    from .build import equal

    names = found.weights
    total = sum(torch.Size(t.shape).numel() for t in names.values())
    (wte,), (head,) = (found.layout.parts(name) for name in ("wte.weight", "lm_head.weight"))
    if wte in names and head in names and equal(names[wte], names[head]):
        total -= torch.Size(names[wte].shape).numel()
    return total


def types(tensors: Tensors) -> str:
    """Those of the tensors, and the one in which a model of several is loaded."""
    from .build import common_dtype
    from .layout import DTYPES

    kinds = {stored.dtype for stored in tensors.values()}
    names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    if len(kinds) < 2 or not kinds <= set(DTYPES):
        return names
    return f"{names} (loads as {str(common_dtype(tensors)).removeprefix('torch.')})"


def tokenizer(found: Checkpoint, vocab_size: int) -> str:
    """What is known about the tokenizer: files beside the weights, or the size of the vocabulary."""
    if found.path is not None:
        folder = found.path.parent
        if (folder / "state.json").is_file():  # a checkpoint of `gptfast pretrain`
            return str(read_json(folder / "state.json").get("encoding", "unknown"))
        for names in (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
            if all((folder / name).is_file() for name in names):
                return f"{' and '.join(names)} beside the weights"
    padded = {50257: "gpt2", 50304: "gpt2, padded to 50,304"}
    return f"{padded[vocab_size]} (by the size of the vocabulary)" if vocab_size in padded else "unknown"


def download(argv: list[str]) -> None:
    options = tyro.cli(Download, args=argv, prog="gptfast weights download")
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from . import openai

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        tasks = {name: bar.add_task(name, total=None, visible=False) for name in openai.FILES}
        openai.download(
            options.size, options.dst, mirror=options.mirror,
            progress=lambda name, have, total: bar.update(tasks[name], completed=have, total=total, visible=True),
        )  # fmt: skip
    print(f"{options.dst}: GPT-2 {options.size}; load it with gptfast.load_weights({str(options.dst)!r})")

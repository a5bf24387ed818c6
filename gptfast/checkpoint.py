"""Checkpoints: `checkpoints/step-000500/` holds a model folder in Hugging Face's layout and what training needs to go
on.

    config.json, model.safetensors   the model, as `GPT.save_pretrained` writes it
    optimizer.safetensors            AdamW's moments by parameter name, and the random states
    state.json                       step, tokenizer, position in the data, best validation loss

A checkpoint is written to a hidden folder, synced, and renamed: under its own name it is whole.
"""

from __future__ import annotations

import os
import re
import reprlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import GptfastError
from .files import fsync_folder, read_json, write_json
from .model import GPT
from .weights.tensors import write_safetensors

BEST = "best"  # the folder of a fine-tuning run with its best model


def checkpoints(run: Path) -> dict[int, Path]:
    """The whole checkpoints of a run by step, in order; none for what is no run."""
    folders = ((re.fullmatch(r"step-(\d+)", p.name), p) for p in (run / "checkpoints").glob("step-*"))
    return dict(sorted((int(m[1]), p) for m, p in folders if m and (p / "state.json").is_file()))


def find_checkpoint(path: Path, which: str = "best") -> Path:
    """What `path` means to `load_weights`: of a run of `pretrain` its checkpoint "best", "last" or of a step; of a
    fine-tuning run best/; else itself, which may be any file or folder of weights, or a name on the Hugging Face hub.
    """
    try:
        found = {} if (path / "model.safetensors").is_file() else checkpoints(path)
    except OSError as error:
        raise GptfastError(f"cannot read {reprlib.repr(str(path))}: {error.strerror}") from None
    if not found:
        if which != "best":
            raise GptfastError(f"{path} is no run with checkpoints, so there is no {which!r} to choose")
        return path / BEST if (path / BEST / "config.json").is_file() else path
    last = found[max(found)]
    if which == "best" and (state := read_state(last)) and state["best"] and state["best"]["step"] in found:
        return found[state["best"]["step"]]
    if which in ("best", "last"):
        return last
    if not which.isdigit() or int(which) not in found:
        raise GptfastError(f"{path} has no checkpoint {which!r}; it has best, last, {', '.join(map(str, found))}")
    return found[int(which)]


def read_state(folder: Path) -> dict[str, Any] | None:
    """What the state.json of a checkpoint, or beside a file of one, says; None for a model that is no checkpoint."""
    folder = folder.parent if folder.is_file() else folder
    if not (folder / "state.json").is_file():
        return None
    return read_json(folder / "state.json", "step", "position", "best", "encoding", "encoding_hash", "data", "order")


def save(run: Path, model: GPT, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of state["step"]; delete all but the last `keep` and the best (state["best"])."""
    root = run / "checkpoints"
    final = root / f"step-{state['step']:06d}"
    hidden = root / f".{final.name}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob(".*.tmp"):
            shutil.rmtree(stale)
        hidden.mkdir()
        model.save_pretrained(hidden)
        write_safetensors(hidden / "optimizer.safetensors", _training_tensors(model, optimizer))
        with open(hidden / "optimizer.safetensors", "rb") as file:
            os.fsync(file.fileno())
        write_json(hidden / "state.json", state)
        os.replace(hidden, final)
        fsync_folder(root)
        best = state["best"]["step"] if state["best"] else None
        for step, folder in list(checkpoints(run).items())[:-keep]:
            if step != best:
                # Renamed first, so that a kill while deleting leaves no half checkpoint under a checkpoint's name.
                doomed = folder.with_name(f".{folder.name}.tmp")
                os.replace(folder, doomed)
                shutil.rmtree(doomed)
    except (OSError, GptfastError) as error:
        shutil.rmtree(hidden, ignore_errors=True)
        last = max(checkpoints(run).values(), default=None)
        raise GptfastError(
            f"the checkpoint of step {state['step']} could not be written ({error}); "
            f"the last whole one: {last}. Free some space and go on with --resume"
        ) from error
    return final


def _training_tensors(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():  # step, exp_avg, exp_avg_sq
            tensors[f"{key}.{name}"] = value
    return tensors


def restore(folder: Path, model: GPT, optimizer: torch.optim.Optimizer) -> None:
    """Set the model's parameters, the optimizer's moments and the random states to those of a checkpoint, bit for
    bit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    advice = f"delete {folder} to go on from the checkpoint before it"
    try:
        tensors = load_file(folder / "optimizer.safetensors")
        trained = GPT.from_pretrained(folder).state_dict()
    except (OSError, SafetensorError, GptfastError) as error:
        raise GptfastError(f"{folder} is damaged ({error}); {advice}") from error
    names = dict(model.named_parameters())
    moments = [f"{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name in names]
    has_moments = any(key in tensors for key in moments)  # none before the first step
    missing = [key for key in ("rng.cpu", *(moments if has_moments else ())) if key not in tensors]
    if missing:
        raise GptfastError(f"{folder / 'optimizer.safetensors'} has no {missing[0]!r}; {advice}")
    model.load_state_dict(trained)
    for name, parameter in names.items() if has_moments else ():
        optimizer.state[parameter] = {
            key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("step", "exp_avg", "exp_avg_sq")
        }
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])

"""The fine-tuning loop, on a linear model whose steps torch can do by hand."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptfast.errors import GptfastError
from gptfast.finetune.fit import FitConfig, atomic_folder, fit
from gptfast.report import read_metrics

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]])


def loss(model: nn.Module, rows: Tensor) -> tuple[Tensor, int]:
    predicted = model(X[rows].to(next(model.parameters()).dtype)).float()
    return (predicted - Y[rows]).square().sum(), len(rows)


def evaluate(model: nn.Module) -> dict[str, float]:
    return {"val_loss": loss(model, torch.arange(20))[0].item() / 20}


def run_fit(model: nn.Module, run: Path, sizes: tuple[int, ...] = (5, 2, 3, 10), **changes: Any) -> dict[str, Any]:
    """`fit` on rows 0 to 19 in batches of `sizes`, saved with torch.save."""
    given: dict[str, Any] = {
        "epoch": lambda n: torch.arange(20).split(list(sizes)), "loss": loss, "evaluate": evaluate,
        "monitor": "val_loss", "higher_is_better": False,
        "save": lambda folder: torch.save(model.state_dict(), folder / "weights.pt"),
    }  # fmt: skip
    given |= {name: changes.pop(name) for name in list(changes) if name in given}
    config = FitConfig(**{"precision": "fp32", "lr": 0.05, "epochs": 2, "device": "cpu"} | changes)
    return fit(model, config, run, steps_per_epoch=-(-len(sizes) // max(1, config.grad_accum)), **given)


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


@pytest.mark.parametrize("clip", [4.4, 0])
def test_accumulated_batches_weight_every_target_equally(tmp_path: Path, clip: float) -> None:
    """Steps of 5 + 2 + 3 rows, then of the 4 that are left of the epoch, are AdamW's on the means over their rows."""
    model, by_hand = linear(), linear()
    run_fit(
        model, tmp_path, (5, 2, 3, 4), grad_accum=3, epochs=2, warmup=0, schedule="constant", weight_decay=0.3,
        grad_clip=clip, epoch=lambda n: torch.arange(14).split([5, 2, 3, 4]),
    )  # fmt: skip
    groups = [{"params": [by_hand.weight], "weight_decay": 0.3}, {"params": [by_hand.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95))
    losses, norms = [], []
    for rows in (torch.arange(10), torch.arange(10, 14)) * 2:
        optimizer.zero_grad()
        mean = nn.functional.mse_loss(by_hand(X[rows]), Y[rows])
        mean.backward()
        losses.append(mean.item())
        norms.append(nn.utils.clip_grad_norm_(by_hand.parameters(), clip or 1e9).item())
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict())
    steps = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert [row["loss"] for row in steps] == pytest.approx(losses, rel=1e-5)
    assert [row["grad_norm"] for row in steps] == pytest.approx(norms, rel=1e-5)
    assert min(norms) < 4.4 < max(norms)  # clipped and not


def test_cosine_with_warmup_and_evaluations(tmp_path: Path) -> None:
    result = run_fit(linear(), tmp_path, epochs=2.5, warmup=0.2, eval_every=3)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    rates = [row["lr"] for row in rows if "lr" in row]
    assert len(rates) == 10 and rates[:2] == pytest.approx([0.025, 0.05])
    assert rates[2:] == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)])
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 3, 6, 9, 10]
    assert result["steps"] == 10 and result["epochs"] == 2.5 and result["stopped"] is None
    first, last = (row["val_loss"] for row in rows if row["step"] in (0, 10) and "val_loss" in row)
    assert last < first


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_is_kept_and_patience_stops(tmp_path: Path, higher: bool) -> None:
    """The untrained model does not count, a tie is not better, and two evaluations in a row without a better stop."""
    script = iter([9.0, 1.0, 0.5, 3.0, 3.0, 2.0, 5.0, 6.0])
    seen: list[dict[str, Tensor]] = []

    def scripted(model: nn.Module) -> dict[str, float]:
        seen.append(copy.deepcopy(model.state_dict()))
        return {"score": next(script) * (1 if higher else -1)}

    result = run_fit(
        linear(), tmp_path, epochs=6, patience=2, evaluate=scripted, monitor="score", higher_is_better=higher
    )
    assert result["stopped"] == "patience" and len(seen) == 6
    assert result["best"]["step"] == 12 and abs(result["best"]["score"]) == 3 and result["last"]["step"] == 20
    torch.testing.assert_close(torch.load(tmp_path / "best" / "weights.pt"), seen[3], rtol=0, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "metrics.jsonl"]


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    def train(seed: int, name: str) -> Tensor:
        model = nn.Sequential(nn.Dropout(0.3), linear())
        torch.rand(seed + len(name))  # what was drawn before does not matter
        run_fit(model, tmp_path / name, seed=seed)
        return model[1].weight

    assert torch.equal(train(1, "a"), train(1, "again"))
    assert not torch.equal(train(1, "b"), train(2, "c"))


def test_only_what_requires_gradients_trains(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), linear())
    model[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    run_fit(model, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("0.")


def test_bf16_trains_a_copy_and_fp32_is_saved(tmp_path: Path) -> None:
    types = set()

    def seen(model: nn.Module) -> dict[str, float]:
        types.add(next(model.parameters()).dtype)
        assert not model.training and not torch.is_grad_enabled()
        return evaluate(model)

    model = nn.Sequential(nn.Linear(3, 3), linear())
    model[0].requires_grad_(False)
    result = run_fit(model, tmp_path, precision="bf16", evaluate=seen, epochs=4)
    assert types == {torch.bfloat16}
    assert {t.dtype for t in torch.load(tmp_path / "best" / "weights.pt").values()} == {torch.float32}
    assert result["last"]["val_loss"] < read_metrics(tmp_path / "metrics.jsonl")[0]["val_loss"]


@pytest.mark.parametrize("where", ["loss", "gradient", "evaluation"])
def test_what_is_not_finite_stops_before_the_weights_change(tmp_path: Path, where: str) -> None:
    model = linear()
    steps = []

    def bad(model: nn.Module, rows: Tensor) -> tuple[Tensor, int]:
        value, n = loss(model, rows)
        steps.append(copy.deepcopy(model.state_dict()))
        if len(steps) == 6 and where != "evaluation":
            value = value * float("nan") if where == "loss" else (model.bias - model.bias.detach()).abs().sqrt().sum()
        return value, n

    def after(model: nn.Module) -> dict[str, float]:
        return {"val_loss": float("nan") if where == "evaluation" and len(steps) == 8 else evaluate(model)["val_loss"]}

    with pytest.raises(GptfastError, match="lower --lr"):
        run_fit(model, tmp_path, loss=bad, evaluate=after)
    if where != "evaluation":
        torch.testing.assert_close(model.state_dict(), steps[-1], rtol=0, atol=0)
    assert (tmp_path / "best" / "weights.pt").is_file()  # of the first epoch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_after_the_step(tmp_path: Path, number: signal.Signals) -> None:
    steps = []

    def interrupted(model: nn.Module, rows: Tensor) -> tuple[Tensor, int]:
        steps.append(rows)
        if len(steps) == 2:
            os.kill(os.getpid(), number)
        return loss(model, rows)

    result = run_fit(linear(), tmp_path, loss=interrupted)
    assert len(steps) == 2 and result["stopped"] == number.name
    assert result["best"]["step"] == result["last"]["step"] == 2
    assert (tmp_path / "best" / "weights.pt").is_file()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_save_that_fails_leaves_the_best_before_it(tmp_path: Path) -> None:
    saved = []

    def save(folder: Path) -> None:
        saved.append(folder)
        (folder / "weights.pt").write_text(f"save {len(saved)}")
        if len(saved) == 2:
            raise OSError(28, "No space left on device")

    with pytest.raises(GptfastError, match="No space left"):
        run_fit(linear(), tmp_path, save=save)
    assert (tmp_path / "best" / "weights.pt").read_text() == "save 1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "metrics.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 8


def test_a_kill_at_any_rename_leaves_a_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill does, an exception ends the renames: before the first, between two, after the last."""
    replace, allowed = os.replace, [9]

    def killed(source: Path, target: Path) -> None:
        if not allowed[0]:
            raise KeyboardInterrupt
        allowed[0] -= 1
        replace(source, target)

    def save(content: str) -> None:
        with atomic_folder(tmp_path / "best") as folder:
            (folder / "config.json").write_text("the same")
            (folder / "weights").write_text(content)

    save("first")
    monkeypatch.setattr(os, "replace", killed)
    for renames in range(4):
        allowed[0] = renames
        with contextlib.suppress(KeyboardInterrupt):
            save(f"after {renames}")
        whole = {file.name: file.read_text() for file in (tmp_path / "best").iterdir()}
        assert whole.keys() == {"config.json", "weights"} and whole["config.json"] == "the same"
    assert whole["weights"] == "after 3"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(GptfastError, match="no batches"):
        run_fit(linear(), tmp_path, epoch=lambda n: [])
    with pytest.raises(GptfastError, match="no target"):
        run_fit(linear(), tmp_path, loss=lambda model, rows: (loss(model, rows)[0] * 0, 0))


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("lr", float("nan")), ("lr", -1), ("batch_size", 0), ("grad_accum", 0), ("warmup", 1.5),
     ("patience", -1), ("seed", -1), ("grad_clip", float("nan")), ("precision", "fp8")],
)  # fmt: skip
def test_impossible_settings(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(GptfastError, match=field.replace("_", "-")):
        run_fit(linear(), tmp_path, **{field: value})

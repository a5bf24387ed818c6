"""`gptfast finetune-classifier` and `gptfast classify`, from files to answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptfast
from gptfast.cli import main
from gptfast.finetune.classifier import Classifier
from gptfast.finetune.labelled import read_labelled
from gptfast.lora import LoRAConfig
from gptfast.report import read_metrics

SMALL = ("--n-layer=1", "--n-head=2", "--n-embd=32", "--context-length=48", "--encoding=bytes")
FLAGS = (*SMALL, "--lr=1e-2", "--epochs=3", "--device=cpu", "--precision=fp32")


def write(path: Path, classes: dict[str, str], n: int = 40) -> Path:
    """n texts a class: random letters, and last the word of the class."""
    rng = np.random.default_rng(0)
    rows = [
        {"label": label, "text": "".join(rng.choice(list("abcde "), rng.integers(1, 20))) + " " + word}
        for label, word in classes.items()
        for _ in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "toy.jsonl", {"up": "vv", "down": "xx", "still": "zz"})


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "toy"
    assert main(["finetune-classifier", str(data), "--out", str(out), *FLAGS, "--split", "0.6", "0.2", "0.2"]) == 0
    return out


def test_it_learns_and_leaves_a_run(trained: Path, data: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["test"]["n"] == 24 and results["test"]["accuracy"] > 0.9
    assert results["fit"]["best"]["val_f1"] == max(
        row["val_f1"] for row in read_metrics(trained / "metrics.jsonl") if row.get("step") and "val_f1" in row
    )
    assert results["majority_accuracy"] == pytest.approx(1 / 3)
    for name in ("training.png", "confusion.png", "reliability.png"):
        assert (trained / name).read_bytes()[:4] == b"\x89PNG"
    lines = [json.loads(line) for line in (trained / "test.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == read_labelled(data).split((0.6, 0.2, 0.2), 123)[2].texts
    assert results["fit"]["last"]["train_accuracy"] > 0.9
    assert np.mean([line["label"] == line["predicted"] for line in lines]) == results["test"]["accuracy"]
    assert json.loads((trained / "config.json").read_text())["seed"] == 123


def test_transformers_reads_the_run(trained: Path) -> None:
    import torch
    from transformers import GPT2ForSequenceClassification

    model = GPT2ForSequenceClassification.from_pretrained(trained / "best").eval()
    for line in (trained / "test.jsonl").read_text().splitlines()[:5]:
        record = json.loads(line)
        with torch.no_grad():
            p = model(torch.tensor([list(record["text"].encode())])).logits[0].softmax(-1)
        expected = [record["probabilities"][model.config.id2label[k]] for k in range(3)]
        assert p.tolist() == pytest.approx(expected, abs=2e-6)


def test_classify(trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(trained), "abc vv", "e d xx", "zz", "--device=cpu"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["up", "down", "still"]
    assert "3 texts, 14 tokens in" in err and "texts/s" in err

    assert main(["classify", str(trained / "best"), "--file", str(data), "--json", "--device=cpu"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["text"] for r in records] == [json.loads(line)["text"] for line in data.read_text().splitlines()]
    assert all(sum(r["probabilities"].values()) == pytest.approx(1, abs=1e-5) for r in records)
    assert all(r["label"] == max(r["probabilities"], key=r["probabilities"].get) for r in records)

    (tmp_path / "lines.txt").write_text("a vv\n" + "b" * 60 + "\n")
    assert main(["classify", str(trained), "--file", str(tmp_path / "lines.txt"), "--device=cpu"]) == 0
    assert "1 texts are longer than 48 tokens; their beginning was classified" in capsys.readouterr().err


def test_from_a_pretrained_model(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the head and LoRA move, packed, with class weights, and patience ends it; the base is a model folder."""
    asked: list[Any] = []
    train_only = Classifier.train_only
    monkeypatch.setattr(Classifier, "train_only", lambda *args: (asked.append(args[1:]), train_only(*args)))
    gptfast.GPT(gptfast.GPTConfig(257, 48, 1, 2, 32)).save_pretrained(tmp_path / "base")
    argv = ["finetune-classifier", str(data), f"--out={tmp_path / 'run'}", f"--init={tmp_path / 'base'}"]
    argv += [
        "--layers=lora",
        "--lora-rank=2",
        "--lora-alpha=3",
        "--lora-dropout=0.25",
        "--batching=pack",
        "--balance=weights",
        "--dropout=0.1",
        "--patience=1",
    ]
    argv += ["--max-length=16", "--epochs=6", "--lr=1e-9", "--encoding=bytes", "--device=cpu", "--precision=fp32"]
    assert main(argv) == 0
    assert asked == [("lora", LoRAConfig(2, 3, 0.25, ("c_attn",)))]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["trained_parameters"] == 2 * (32 + 96) + 3 * 32
    assert results["fit"]["stopped"] == "patience" and results["fit"]["epochs"] < 6
    assert results["truncated"] > 0 and set(results["padding"]) == {"pad", "pack"}
    assert "texts are longer than 16 tokens; their beginning is read" in capsys.readouterr().out
    saved = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert saved["resid_pdrop"] == 0.1


def test_dropout_of_a_pretrained_model_can_be_set(data: Path, tmp_path: Path) -> None:
    base = gptfast.GPT(gptfast.GPTConfig(257, 48, 1, 2, 32, dropout=0.1))
    base.save_pretrained(tmp_path / "with")
    plain = gptfast.GPT(gptfast.GPTConfig(257, 48, 1, 2, 32))
    plain.load_state_dict(base.state_dict())
    plain.save_pretrained(tmp_path / "without")
    losses = []
    for n, (init, flags) in enumerate([("with", ["--dropout=0"]), ("without", []), ("with", [])]):
        argv = ["finetune-classifier", str(data), f"--out={tmp_path / str(n)}", f"--init={tmp_path / init}", *flags]
        assert main([*argv, "--epochs=0.1", "--encoding=bytes", "--device=cpu", "--precision=fp32"]) == 0
        losses.append(next(row["loss"] for row in read_metrics(tmp_path / str(n) / "metrics.jsonl") if "loss" in row))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(("balance", "weights"), [("none", [1, 1]), ("weights", [32 / 48, 32 / 16])])
def test_class_weights_are_in_the_loss(tmp_path: Path, balance: str, weights: list[float]) -> None:
    """One step that moves next to nothing, on all of 24 no and 8 yes."""
    path = write(tmp_path / "two.jsonl", {"no": "xx", "yes": "vv"}, 40)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:30], *lines[40:50]]))
    argv = ["finetune-classifier", str(path), f"--out={tmp_path / 'run'}", *FLAGS, "--epochs=1", "--lr=1e-9"]
    assert main([*argv, f"--balance={balance}", "--batch-size=32", "--split", "0.8", "0.1", "0.1"]) == 0
    (loss,) = (row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row)
    train = read_labelled(path).split((0.8, 0.1, 0.1), 123)[0]
    assert train.counts.tolist() == [24, 8]
    model, encoding = Classifier.load(tmp_path / "run")
    p = model.probabilities(model.encode(encoding, train.texts)[0])
    expected = -np.array(weights)[train.labels] * np.log(p[np.arange(32), train.labels])
    assert loss == pytest.approx(expected.mean(), rel=1e-5)


def test_a_vocabulary_of_its_own_and_undersampling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "two.jsonl", {"no": "xx", "yes": "vv"}, 20)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:35]))  # 20 no, 15 yes
    argv = ["finetune-classifier", str(path), f"--out={tmp_path / 'run'}", *SMALL[:-1], "--vocab-size=270"]
    argv += ["--balance=undersample", "--position=end", "--epochs=0.5", "--device=cpu", "--layers=head"]
    assert main(argv) == 0
    assert "undersampled to 30 texts (15 no, 15 yes)" in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert config["vocab_size"] == 270 and config["pad_token_id"] is None
    assert config["gptfast_classifier"]["length"] < 48  # of the longest training text
    assert main(["classify", str(tmp_path / "run"), "ab vv"]) == 0


def test_names_are_no_markup_and_texts_in_two_splits_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "two.jsonl", {"[/b]": "xx", "[red]no": "vv"}, 20)
    argv = ["finetune-classifier", str(path), f"--out={tmp_path / 'run'}", *FLAGS, "--epochs=0.1"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "F1 of [red]no" in said and said.count("[/b]") > 3 and "twice" not in said
    path.write_text(path.read_text() * 2)
    assert main([*argv[:2], f"--out={tmp_path / 'again'}", *argv[3:]]) == 0
    train, _, test = read_labelled(path).split((0.7, 0.1, 0.2), 123)
    n = sum(text in train.texts for text in test.texts)
    assert n > 0 and f"{n} test texts are in the training split too" in capsys.readouterr().out


def test_the_seed_decides(data: Path, tmp_path: Path) -> None:
    def losses(name: str, seed: int) -> list[float]:
        argv = ["finetune-classifier", str(data), f"--out={tmp_path / name}", *FLAGS, "--epochs=1", "--dropout=0.2"]
        assert main([*argv, f"--seed={seed}"]) == 0
        return [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row]

    assert losses("a", 1) == losses("b", 1) != losses("c", 2)
    assert (tmp_path / "a/best/model.safetensors").read_bytes() == (tmp_path / "b/best/model.safetensors").read_bytes()


def test_the_lowest_loss_can_be_the_best(data: Path, tmp_path: Path) -> None:
    """Where the macro F1 is as high before: a classifier that becomes surer of what it knows."""
    argv = ["finetune-classifier", str(data), f"--out={tmp_path / 'run'}", *FLAGS, "--epochs=6", "--monitor=loss"]
    assert main(argv) == 0
    best = json.loads((tmp_path / "run" / "results.json").read_text())["fit"]["best"]
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["step"] and "val_f1" in row]
    assert best == min(rows, key=lambda row: row["val_loss"]) != max(rows, key=lambda row: row["val_f1"])


def test_each_epoch_has_an_order_of_its_own(data: Path, tmp_path: Path) -> None:
    """On a model that hardly moves, the same batches would have the same losses."""
    argv = ["finetune-classifier", str(data), f"--out={tmp_path / 'run'}", *FLAGS, "--epochs=2", "--lr=1e-12"]
    assert main([*argv, "--batch-size=42"]) == 0  # of 84
    a, b, c, d = (row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row)
    assert {a, b} != {c, d}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "0.8", "0.2", "0"], "--split is (0.8, 0.2, 0.0)"),
        (["--split", "0.8", "0.1", "0.2"], "100% together"),
        (["--max-length=49"], "--max-length is 49, beyond the model's context of 48"),
        (["--batching=pack", "--position=end"], "packed texts have no padding"),
        (["--vocab-size=300"], "give one of them"),
        (["--init=base", "--n-layer=2"], "--n-layer is of a new model"),
        (["--layers=lora", "--lora-rank=0"], "the LoRA rank is 0"),
        (["--layers=lora", "--lora-targets=x"], "is called 'x'"),
        (["--text-column=words"], "no column 'words'"),
        (["--dropout=1.5"], "dropout is 1.5"),
        (["--epochs=0"], "--epochs is 0.0"),
    ],
)
def test_one_clear_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["finetune-classifier", str(data), f"--out={tmp_path / 'run'}", *FLAGS, *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()  # nothing is left that has to be removed first


def test_a_run_of_the_wrong_kind(trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gptfast.GPT(gptfast.GPTConfig(257, 48, 1, 2, 32)).save_pretrained(tmp_path / "gpt")
    wrong: list[tuple[list[Any], str]] = [
        (["classify", tmp_path / "gpt", "text"], "holds no classifier"),
        (["classify", data.parent, "text"], "holds no classifier"),
        (["classify", trained], "give texts to classify"),
        (["generate", trained / "best"], "is a classifier and writes no text"),
        (["finetune-classifier", data, "--out", tmp_path / "x", "--init", trained / "best"], "is a classifier"),
        (["finetune-classifier", data, "--out", trained], "is not empty; choose another --out"),
    ]
    for argv, message in wrong:
        assert main(list(map(str, argv))) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1

"""Classification by the likeliest class name: the prompt, the examples in it, the numbers, and the splits."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import gptfast
from gptfast.evaluate.comparison import Splits, compare, make_splits, splits_of
from gptfast.evaluate.few_shot import accuracy_and_f1, choose_examples, predict, prompt
from gptfast.evaluate.loglikelihood import Truncated
from gptfast.finetune.classifier import Classifier
from gptfast.finetune.labelled import Labelled

TRAIN = Labelled([f"t{i}" for i in range(12)], np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]), ["no", "yes", "who"])


def test_the_prompt() -> None:
    assert prompt("hi") == "Text: hi\nLabel:"
    assert prompt("hi", [("a", "ham"), ("b\nc", "spam")]) == (
        "Text: a\nLabel: ham\n\nText: b\nc\nLabel: spam\n\nText: hi\nLabel:"
    )


def test_examples_are_of_all_classes_alike_and_once_each() -> None:
    seen, doubled = set(), set()
    for seed in range(200):
        examples = choose_examples(TRAIN, 4, np.random.default_rng(seed))
        assert len(set(examples)) == 4
        counts = [sum(name == k for _, name in examples) for k in TRAIN.names]
        assert sorted(counts) == [1, 1, 2]
        doubled.add(counts.index(2))
        assert all(TRAIN.names[TRAIN.labels[TRAIN.texts.index(text)]] == name for text, name in examples)
        seen |= {(place, name) for place, (_, name) in enumerate(examples)}
    assert len(seen) == 4 * 3 and doubled == {0, 1, 2}  # every class in every place, and twice
    assert choose_examples(TRAIN, 0, np.random.default_rng(0)) == []
    assert len(choose_examples(TRAIN, 9, np.random.default_rng(0))) == 9


@torch.no_grad()
@pytest.mark.parametrize("shots", [0, 2])
def test_predictions_are_the_likeliest_names(model, theirs, encoding, shots: int) -> None:
    texts = [chr(97 + i) * (2 * i + 1) for i in range(12)]
    names = [*"abcdefg", "yes"]
    short = Labelled(list("pqrstuvw"), np.arange(8), names)
    want = []
    for number, text in enumerate(texts):
        examples = choose_examples(short, shots, np.random.default_rng([5, number]))
        context = prompt(text, examples).encode()
        logp = []
        for name in (f" {name}".encode() for name in names):
            ids = (context + name)[-49:]
            all_logp = theirs(torch.tensor([list(ids[:-1])])).logits[0].log_softmax(-1)
            logp.append(sum(float(all_logp[len(ids) - len(name) - 1 + i, t]) for i, t in enumerate(name)))
        want.append(int(np.argmax(logp)))
    with pytest.warns(Truncated) if shots else contextlib.nullcontext():
        got = predict(model, encoding, short, texts, shots, seed=5)
    assert got.tolist() == want
    assert shots or len(set(want)) > 1  # or any constant would do


def test_each_text_has_examples_of_its_own_and_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def contexts(seed: int) -> list[str]:
        asked: list[tuple[str, str]] = []

        def stand_in(model: object, encoding: object, pairs: list[tuple[str, str]], on_done: object) -> list:
            asked.extend(pairs)
            return [(-float(name == " who"), False, 1) for _, name in pairs]

        monkeypatch.setattr("gptfast.evaluate.few_shot.loglikelihoods", stand_in)
        assert predict(None, None, TRAIN, ["same", "same"], 3, seed).tolist() == [0, 0]  # type: ignore[arg-type]
        assert [name for _, name in asked] == [" no", " yes", " who"] * 2
        return [context for context, _ in asked[::3]]

    first, second = contexts(1)
    assert first != second and first.count("Label: ") == 3 and first.endswith("\n\nText: same\nLabel:")
    assert contexts(1) == [first, second] != contexts(2)


@pytest.mark.parametrize("shots", [-1, 10])
def test_more_examples_than_there_are(model, encoding, shots: int) -> None:
    with pytest.raises(gptfast.GptfastError, match=f"{shots} shots: the training texts allow from 0 to 9"):
        predict(model, encoding, TRAIN, ["x"], shots, seed=0)


def test_accuracy_and_f1_by_hand() -> None:
    accuracy, f1 = accuracy_and_f1(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 2)
    assert accuracy.value == 0.75 and accuracy.n == 4
    assert f1 == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_a_table_of_all(model, encoding, tmp_path: Path) -> None:
    """The rows, and that the commonest class is that of training and not of the test."""
    test = Labelled(["a", "b", "c", "d"], np.array([0, 1, 1, 2]), TRAIN.names)
    torch.manual_seed(0)
    tuned = Classifier(gptfast.GPT.from_pretrained(_save(model, tmp_path)), TRAIN.names, encoding.eot_token)
    tuned.save(tmp_path / "best", encoding)
    with pytest.warns(Truncated):
        rows = compare(model, encoding, Splits(TRAIN, test), [0, 1, 3], tmp_path, seed=1)
    assert [row.name for row in rows] == [
        "the commonest class", "pretrained only, zero-shot", "pretrained only, few-shot, 1 example",
        "pretrained only, few-shot, 3 examples", "fine-tuned",
    ]  # fmt: skip
    assert rows[0].accuracy.value == 0.25 and rows[0].macro_f1 == pytest.approx(0.4 / 3)
    best = Classifier.load(tmp_path)[0].probabilities([list(t.encode()) for t in test.texts]).argmax(1)
    assert rows[-1].accuracy.value == (best == test.labels).mean()
    with pytest.raises(gptfast.GptfastError, match="knows the classes"):
        compare(model, encoding, Splits(TRAIN, Labelled(["a"], np.array([0]), ["x", "y"])), [], tmp_path)


def _save(model: gptfast.GPT, folder: Path) -> Path:
    model.save_pretrained(folder / "body")
    return folder / "body"


def test_the_splits_of_a_run(tmp_path: Path) -> None:
    """What `finetune-classifier` held back, also where its table has moved; another table is refused."""
    from gptfast.cli import main

    table = tmp_path / "a.tsv"
    table.write_text("".join(f"{label}\ttext {i} {label}\n" for i in range(20) for label in ("ham", "spam", "ham")))
    flags = ["--n-layer=1", "--n-head=1", "--n-embd=8", "--context-length=24", "--encoding=bytes", "--epochs=0.1"]
    more = ["--balance=undersample", "--seed=7", "--device=cpu"]
    assert main(["finetune-classifier", str(table), "--out", str(tmp_path / "run"), *flags, *more]) == 0
    moved = table.rename(tmp_path / "moved.tsv")
    train, test = splits_of(tmp_path / "run", moved)
    held_back = [json.loads(line)["text"] for line in (tmp_path / "run/test.jsonl").read_text().splitlines()]
    assert test.texts == held_back and len(test) == 8 and not set(train.texts) & set(test.texts)
    from gptfast.finetune.labelled import read_labelled

    assert make_splits(read_labelled(moved), True, (0.7, 0.1, 0.2), 7).test.texts == held_back

    moved.write_text(moved.read_text() + "ham\tone more\n")
    with pytest.raises(gptfast.GptfastError, match="does not give the test texts that .* held back"):
        splits_of(tmp_path / "run", moved)
    for no_run in (tmp_path / "run/best", tmp_path, tmp_path / "absent"):
        with pytest.raises(gptfast.GptfastError, match="is no finished run of `gptfast finetune-classifier`"):
            splits_of(no_run)

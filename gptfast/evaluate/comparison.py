"""Pretrained only and fine-tuned, side by side on the same test texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.readers import read_json_lines
from ..errors import GptfastError
from ..files import read_json
from ..finetune.classifier import Classifier
from ..finetune.labelled import Labelled, read_labelled
from ..model import GPT
from .few_shot import accuracy_and_f1, predict
from .loglikelihood import OnDone
from .statistics import Mean

SHARES = (0.7, 0.1, 0.2)  # of training, validation and test: the default of `gptfast finetune-classifier`


class Row(NamedTuple):
    name: str
    accuracy: Mean
    macro_f1: float


class Splits(NamedTuple):
    """Examples come from `train`; `test` is what no classifier was trained on."""

    train: Labelled
    test: Labelled


def make_splits(data: Labelled, undersample: bool, shares: Sequence[float], seed: int) -> Splits:
    """As `gptfast finetune-classifier` splits with the same settings."""
    train, _, test = (data.undersampled(seed) if undersample else data).split(shares, seed)
    return Splits(train, test)


def splits_of(run: Path, data: Path | None = None) -> Splits:
    """Those of a run of `gptfast finetune-classifier`, whose table may have moved to `data`.

    Raises GptfastError for what is no such run, and where the table is not the one of the run: then texts that the
    classifier was trained on would be among those it is tested on.
    """
    values = read_json(run / "config.json") if (run / "config.json").is_file() else {}
    if values.get("command") != "finetune-classifier" or not (run / "test.jsonl").is_file():
        raise GptfastError(f"{run} is no finished run of `gptfast finetune-classifier`; --classifier takes one")
    names = ("data", "text_column", "label_column", "balance", "split", "seed")
    settings = read_json(run / "config.json", *names)
    path = Path(settings["data"]) if data is None else data
    table = read_labelled(path, settings["text_column"], settings["label_column"])
    splits = make_splits(table, settings["balance"] == "undersample", settings["split"], settings["seed"])
    held_back = [(r["text"], r["label"]) for _, r in read_json_lines(run / "test.jsonl")]
    if held_back != [(text, table.names[k]) for text, k in zip(splits.test.texts, splits.test.labels, strict=True)]:
        raise GptfastError(
            f"{path} does not give the test texts that {run} held back (test.jsonl), so the classifier may have seen "
            "them; pass the table that it was trained on"
        )
    return splits


def compare(
    model: GPT, encoding: Any, splits: Splits, shots: Sequence[int], classifier: Path | None = None, seed: int = 123,
    on_done: OnDone = lambda n: None,
) -> list[Row]:  # fmt: skip
    """Accuracy and macro F1 on the test texts: of the commonest class of the training texts, of `model` given so many
    examples in its prompt, and of the run `classifier`. `on_done` is told label words, and texts classified.
    """
    train, test = splits
    predicted = {"the commonest class": np.full(len(test), train.counts.argmax())}
    for n in shots:
        name = "pretrained only, " + ("zero-shot" if n == 0 else f"few-shot, {n} example{'s' * (n > 1)}")
        predicted[name] = predict(model, encoding, train, test.texts, n, seed, on_done)
    if classifier is not None:
        tuned, its_encoding = Classifier.load(classifier)
        if tuned.names != test.names:
            raise GptfastError(f"{classifier} knows the classes {tuned.names}, the table has {test.names}")
        tuned.to(next(model.parameters()).device)
        predicted["fine-tuned"] = tuned.probabilities(tuned.encode(its_encoding, test.texts)[0]).argmax(1)
        on_done(len(test))
    return [Row(name, *accuracy_and_f1(test.labels, p, len(test.names))) for name, p in predicted.items()]

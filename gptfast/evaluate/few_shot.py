"""Classification without training: the class whose name is the likeliest continuation of a prompt (Brown et al. 2020).

Text: {an example's text}
Label: {its class}

Text: {the text}
Label:
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import GptfastError
from ..finetune.labelled import Labelled
from ..finetune.metrics import confusion_matrix, precision_recall_f1
from ..model import GPT
from .loglikelihood import OnDone, loglikelihoods
from .statistics import Mean, mean


def prompt(text: str, examples: Sequence[tuple[str, str]] = ()) -> str:
    """All up to where the class of `text` is to be named; examples are (text, class)."""
    solved = "".join(f"Text: {example}\nLabel: {name}\n\n" for example, name in examples)
    return f"{solved}Text: {text}\nLabel:"


def check_shots(train: Labelled, shots: int) -> None:
    """Raise GptfastError for more shots than there are examples for."""
    most = int(train.counts.min()) * len(train.names)
    if not 0 <= shots <= most:
        raise GptfastError(f"{shots} shots: the training texts allow from 0 to {most:,}, of each class as many")


def choose_examples(train: Labelled, shots: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """`shots` random examples in random order, of each class as many, or one more, as of another."""
    K = len(train.names)
    wanted = shots // K + (rng.permutation(K) < shots % K)  # [K]
    chosen = [rng.choice(np.flatnonzero(train.labels == k), wanted[k], replace=False) for k in range(K)]
    return [(train.texts[i], train.names[train.labels[i]]) for i in rng.permutation(np.concatenate(chosen))]


def predict(
    model: GPT, encoding: Any, train: Labelled, texts: Sequence[str], shots: int, seed: int,
    on_done: OnDone = lambda n: None,
) -> np.ndarray:  # fmt: skip
    """The class of each text, int64 [N]: argmax_k log p(" " + names[k] | prompt).

    Each text has its own examples from `train`, drawn by `seed` and its place: what is measured is not the luck of one
    draw. The log likelihoods are sums over the tokens of a name. Raises GptfastError for more shots than there are.
    """
    check_shots(train, shots)
    pairs = []
    for number, text in enumerate(texts):
        examples = choose_examples(train, shots, np.random.default_rng([seed, number]))
        pairs += [(prompt(text, examples), " " + name) for name in train.names]
    logp = np.array([p for p, _, _ in loglikelihoods(model, encoding, pairs, on_done)])
    return logp.reshape(len(texts), -1).argmax(1)


def accuracy_and_f1(labels: np.ndarray, predicted: np.ndarray, classes: int) -> tuple[Mean, float]:
    """The accuracy, and the mean over classes of F1."""
    _, _, f1 = precision_recall_f1(confusion_matrix(labels, predicted, classes))
    return mean(labels == predicted), float(f1.mean())

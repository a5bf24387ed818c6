"""HellaSwag (Zellers et al. 2019), completion style: which of four endings does the model find likeliest?

The text of a task and its metrics are those of lm-evaluation-harness:

    context      activity_label + ": " + ctx_a + " " + ctx_b.capitalize(), without WikiHow's [artefacts]
    acc          right is the ending with the largest log p(" " + ending | context)
    acc_norm     ... divided by the characters of the ending; of a text in ASCII, its bytes
    acc_bytes    ... divided by its bytes in UTF-8
    acc_tokens   ... divided by the tokens of " " + ending, which llm.c's evaluation calls acc_norm
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.readers import read_json_lines, read_text
from ..errors import GptfastError
from ..model import GPT
from .loglikelihood import OnDone, loglikelihoods
from .statistics import Mean, mean

LABELS = ("0", "1", "2", "3")


class Task(NamedTuple):
    context: str
    endings: list[str]
    label: int  # of the right ending


def read_hellaswag(path: Path) -> list[Task]:
    """The tasks in the official .jsonl, or in a text of six lines a task: context, label, four endings, as llama.cpp
    reads it. Either may be compressed. Raises GptfastError that names the line.
    """
    return _read_jsonl(path) if ".jsonl" in path.suffixes[-2:] else _read_lines(path)


def _read_jsonl(path: Path) -> list[Task]:
    tasks = []
    for number, record in read_json_lines(path):
        where = f"{path}, line {number:,}"
        record = record if isinstance(record, dict) else {}
        endings = record.get("endings")
        texts = {name: record.get(name) for name in ("activity_label", "ctx_a", "ctx_b")}
        texts |= {f"endings[{i}]": e for i, e in enumerate(endings)} if isinstance(endings, list) else {"endings": None}
        bad = [name for name, text in texts.items() if not isinstance(text, str)]
        if bad:
            raise GptfastError(f"{where}: {bad[0]!r} is missing or no text; this is not HellaSwag's .jsonl")
        if str(record.get("label")) not in LABELS or len(record["endings"]) != 4:
            raise GptfastError(
                f"{where} lacks a label from 0 to 3 or four endings; the official test split has no labels"
            )
        context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
        tasks.append(Task(_clean(context), [_clean(e) for e in record["endings"]], int(record["label"])))
    if not tasks:
        raise GptfastError(f"{path} holds no tasks")
    return tasks


def _clean(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _read_lines(path: Path) -> list[Task]:
    lines = [line.rstrip("\r") for line in read_text(path).rstrip("\r\n").split("\n")]
    tasks = []
    for i in range(0, len(lines), 6):
        six = lines[i : i + 6]
        if len(six) < 6 or not all(six) or six[1] not in LABELS:
            raise GptfastError(
                f"{path}, line {i + 1:,}: a task is six lines: its context, its label from 0 to 3, and four endings"
            )
        tasks.append(Task(six[0], six[2:], int(six[1])))
    return tasks


def hellaswag(model: GPT, encoding: Any, tasks: Sequence[Task], on_done: OnDone = lambda n: None) -> dict[str, Mean]:
    """acc, acc_norm, acc_bytes and acc_tokens of `tasks`; by chance each is 0.25. `on_done` is told endings."""
    pairs = [(task.context, " " + ending) for task in tasks for ending in task.endings]
    scores = loglikelihoods(model, encoding, pairs, on_done)
    logp = np.array([p for p, _, _ in scores]).reshape(-1, 4)  # [tasks, endings]
    lengths = {
        "acc": np.ones_like(logp),
        "acc_norm": np.array([[len(e) for e in task.endings] for task in tasks]),
        "acc_bytes": np.array([[len(e.encode()) for e in task.endings] for task in tasks]),
        "acc_tokens": np.array([n for _, _, n in scores]).reshape(-1, 4),
    }
    labels = np.array([task.label for task in tasks])
    return {name: mean((logp / length).argmax(1) == labels) for name, length in lengths.items()}

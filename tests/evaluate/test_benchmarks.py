"""HellaSwag and LAMBADA: their files, and accuracies by hand and by a plain loop."""

from __future__ import annotations

import bz2
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import gptfast
import gptfast.evaluate.hellaswag
import gptfast.evaluate.lambada
from gptfast.evaluate.hellaswag import Task, hellaswag, read_hellaswag
from gptfast.evaluate.lambada import lambada, read_lambada
from gptfast.evaluate.statistics import exp, mean

OFFICIAL = {
    "ind": 24, "activity_label": "Roof [x] repair", "ctx_a": "A man is on a roof. [title] Work", "ctx_b": "he STARTS",
    "endings": ["wraps  skis.", " is [substeps] up", "ö", "d"], "label": 3, "split": "val", "source_id": "y",
}  # fmt: skip


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_the_official_file_becomes_the_harness_s_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(OFFICIAL, OFFICIAL | {"label": "0"}))
    tasks = read_hellaswag(tmp_path / "a.jsonl")
    # capitalize() lowers the rest, brackets go with what is in them, double spaces become one
    assert tasks[0].context == "Roof repair: A man is on a roof.. Work He starts"
    assert [task.label for task in tasks] == [3, 0]
    assert tasks[0].endings == ["wraps skis.", "is up", "ö", "d"]


def test_six_lines_a_task(tmp_path: Path) -> None:
    text = "A roof. he\n3\nw\nis\u2028up\nö\nd\nB\n0\na\nb\nc\nd\n"  # a separator of Unicode's ends no line
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.bz2").write_bytes(bz2.compress(text.replace("\n", "\r\n").encode()))
    want = [Task("A roof. he", ["w", "is\u2028up", "ö", "d"], 3), Task("B", ["a", "b", "c", "d"], 0)]
    assert read_hellaswag(tmp_path / "a.txt") == read_hellaswag(tmp_path / "b.txt.bz2") == want


def test_the_real_files(shared_data: Path) -> None:
    tasks = read_hellaswag(shared_data / "hellaswag/hellaswag_val_full.txt.bz2")
    assert len(tasks) == 10_042
    assert tasks[0].context == "Roof shingle removal: A man is sitting on a roof. he"
    assert tasks[0].endings[tasks[0].label] == "starts pulling up roofing on a roof."
    passages = read_lambada(shared_data / "lambada/lambada_openai.jsonl")
    assert len(passages) == 5153 and passages[0][1] == "signs" and passages[0][0].endswith("I don't care about")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "c\n1\na\nb\nc\n", "line 1: a task is six lines"),
        ("a.txt", "c\n1\na\nb\nc\nd\nc\n4\na\nb\nc\nd\n", "line 7: a task is six lines"),
        ("a.txt", "c\n1\na\n\nc\nd\n", "line 1: a task is six lines"),
        ("a.txt", "", "line 1: a task is six lines"),
        ("a.jsonl", "", "holds no tasks"),
        ("a.jsonl", lines({"text": "x"}), "line 1: 'activity_label' is missing"),
        ("a.jsonl", lines(OFFICIAL, 7), "line 2: 'activity_label' is missing"),
        ("a.jsonl", lines(OFFICIAL | {"label": ""}), "line 1 lacks a label"),
        ("a.jsonl", lines(OFFICIAL | {"endings": ["a"]}), "line 1 lacks a label"),
        ("a.jsonl", lines(OFFICIAL | {"endings": [1, 2, 3, 4]}), r"line 1: 'endings\[0\]' is missing or no text"),
        ("a.jsonl", lines(OFFICIAL | {"endings": "abcd"}), "line 1: 'endings' is missing or no text"),
        ("a.jsonl", lines(OFFICIAL | {"ctx_b": None}), "line 1: 'ctx_b' is missing or no text"),
        ("a.jsonl", "{", "line 1 is not JSON"),
    ],
)
def test_bad_hellaswag_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(gptfast.GptfastError, match=message):
        read_hellaswag(tmp_path / name)
    with pytest.raises(gptfast.GptfastError, match="cannot read"):
        read_hellaswag(tmp_path / "absent.txt")


def scores_by_hand(monkeypatch: pytest.MonkeyPatch, where: object, table: list[tuple[float, bool, int]]) -> list:
    """`loglikelihoods` answers from `table`; the pairs that it was asked for are returned."""
    asked: list = []

    def stand_in(model: object, encoding: object, pairs: list, on_done: Callable) -> list:
        asked.extend(pairs)
        return table

    monkeypatch.setattr(where, "loglikelihoods", stand_in)
    return asked


def test_each_accuracy_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task("c", ["aaaa", "öö", "b", "cccccccc"], 0)
    #       log p      a character   a byte   a token
    table = [
        (-8.0, False, 2),  #  -2         -2       -4
        (-5.0, False, 1),  #  -2.5       -1.25    -5
        (-3.0, False, 1),  #  -3         -3       -3     the largest log p, and the largest a token
        (-15.0, False, 2),  # -1.875     -1.875   -7.5   the largest a character
    ]
    for label, right in {0: set(), 1: {"acc_bytes"}, 2: {"acc", "acc_tokens"}, 3: {"acc_norm"}}.items():
        asked = scores_by_hand(monkeypatch, gptfast.evaluate.hellaswag, table)
        result = hellaswag(None, None, [task._replace(label=label)])  # type: ignore[arg-type]
        assert {name for name, accuracy in result.items() if accuracy.value == 1} == right
        assert asked == [("c", " aaaa"), ("c", " öö"), ("c", " b"), ("c", " cccccccc")]


@torch.no_grad()
def test_hellaswag_equals_a_plain_loop(model, theirs, encoding) -> None:
    rng = np.random.default_rng(1)

    def word(n: int) -> str:
        return "".join(rng.choice(list("abcdef gh"), n)).strip() or "a"

    tasks = [Task(word(12), [word(rng.integers(1, 20)) for _ in range(4)], int(rng.integers(4))) for _ in range(25)]
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    for task in tasks:
        logp = []
        for ending in task.endings:
            a, b = task.context.encode(), (" " + ending).encode()
            all_logp = theirs(torch.tensor([list(a + b)])).logits[0].log_softmax(-1)
            logp.append(sum(float(all_logp[len(a) - 1 + i, token]) for i, token in enumerate(b)))
        right["acc"].append(np.argmax(logp) == task.label)
        right["acc_norm"].append(np.argmax(logp / np.array([len(e) for e in task.endings])) == task.label)
    result = hellaswag(model, encoding, tasks)
    for name, values in right.items():
        assert result[name].value == pytest.approx(np.mean(values)) and result[name].n == 25
        assert result[name].error == pytest.approx(np.std(values, ddof=1) / math.sqrt(25))
    assert result["acc"].value != result["acc_norm"].value  # or this data could not tell them apart


def test_lambada_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines({"text": "One two\nthree four"}, {"context": "a b", "continuation": " c"}))
    assert read_lambada(tmp_path / "a.jsonl") == [("One two\nthree", "four"), ("a b", "c")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines({"text": "one"}), "line 1 has neither"),
        (lines({"text": "a b"}, {"context": "a"}), "line 2 has neither"),
        (lines({"context": "a", "continuation": ""}), "line 1 has neither"),
        (lines(["a"]), "line 1 has neither"),
        ("", "holds no passages"),
    ],
)
def test_bad_lambada_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(gptfast.GptfastError, match=message):
        read_lambada(tmp_path / "a.jsonl")


def test_lambada_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [(math.log(0.5), True, 1), (math.log(0.125), False, 3)]
    asked = scores_by_hand(monkeypatch, gptfast.evaluate.lambada, table)
    acc, perplexity = lambada(None, None, [("a b", "c"), ("d", "efg")])  # type: ignore[arg-type]
    assert asked == [("a b", " c"), ("d", " efg")]
    assert acc.value == 0.5 and acc.n == 2 and perplexity == pytest.approx(4)  # (1/2 * 1/8) ** (-1/2), of words


def test_statistics() -> None:
    assert mean([1, 0, 0, 1]) == (0.5, pytest.approx(math.sqrt(0.25 / 3)), 4)
    assert mean([True]) == (1.0, None, 1)
    assert exp(800) == math.inf and exp(1) == math.e

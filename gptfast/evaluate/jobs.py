"""What `gptfast evaluate` runs: each flag's files, read and checked, and the table that comes of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..assistant import Assistant
from ..data.readers import find_inputs, read_pieces
from ..errors import GptfastError
from ..finetune.labelled import read_labelled
from .comparison import SHARES, Splits, compare, make_splits, splits_of
from .few_shot import check_shots
from .hellaswag import hellaswag, read_hellaswag
from .judge import Judge
from .lambada import lambada, read_lambada
from .loglikelihood import OnDone
from .perplexity import perplexity
from .responses import answers, read_instructions
from .statistics import Mean, mean

if TYPE_CHECKING:
    from .cli import EvaluateConfig

Say = Callable[[str], None]


class Sheet(NamedTuple):
    """results: for JSON. columns, rows: the same to be read."""

    results: Any
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Job(NamedTuple):
    """total: what `run` tells its argument in all."""

    name: str
    title: str
    total: float
    run: Callable[[OnDone], Sheet]


def jobs(config: EvaluateConfig, assistant: Assistant, say: Say) -> list[Job]:
    """Those that `config` asks for. Raises GptfastError for files that cannot be evaluated on."""
    return [job for make in (_text, _hellaswag, _lambada, _labelled, _judged) if (job := make(config, assistant, say))]


def _text(config: EvaluateConfig, assistant: Assistant, say: Say) -> Job | None:
    if config.text is None:
        return None
    documents = [piece.text for piece in read_pieces(find_inputs([str(config.text)]), can_cut=False)]

    def run(on_done: OnDone) -> Sheet:
        score = perplexity(assistant.model, assistant.encoding, documents, config.stride, on_done)
        values = {
            "bits_per_byte": score.bits_per_byte, "perplexity": _finite(score.perplexity),
            "nats_per_token": score.nats_per_token,
        }  # fmt: skip
        row = (
            f"{score.bits_per_byte:.4f}", f"{score.perplexity:,.3f}", f"{score.nats_per_token:.4f}",
            f"{score.tokens:,}", f"{score.bytes:,}", f"{score.documents:,}",
        )  # fmt: skip
        columns = ("bits per byte", "perplexity", "nats per token", "tokens", "bytes", "documents")
        return Sheet({"file": str(config.text)} | values | asdict(score), columns, [row])

    return Job("text", config.text.name, sum(len(text.encode()) for text in documents), run)


def _hellaswag(config: EvaluateConfig, assistant: Assistant, say: Say) -> Job | None:
    if config.hellaswag is None:
        return None
    tasks = read_hellaswag(config.hellaswag)[: config.limit]

    def run(on_done: OnDone) -> Sheet:
        scores = hellaswag(assistant.model, assistant.encoding, tasks, on_done)
        rows = [(name, f"{m.value:.2%}", _error(m), f"{m.n:,}") for name, m in scores.items()]
        results = {name: m._asdict() for name, m in scores.items()}
        return Sheet(results, ("metric", "accuracy", "standard error", "tasks"), rows)

    return Job("hellaswag", "HellaSwag", 4 * len(tasks), run)


def _lambada(config: EvaluateConfig, assistant: Assistant, say: Say) -> Job | None:
    if config.lambada is None:
        return None
    passages = read_lambada(config.lambada)[: config.limit]

    def run(on_done: OnDone) -> Sheet:
        acc, word_perplexity = lambada(assistant.model, assistant.encoding, passages, on_done)
        row = (f"{acc.value:.2%}", _error(acc), f"{word_perplexity:,.2f}", f"{acc.n:,}")
        results = {"acc": acc._asdict(), "perplexity": _finite(word_perplexity)}
        return Sheet(results, ("accuracy", "standard error", "perplexity of the word", "passages"), [row])

    return Job("lambada", "LAMBADA", len(passages), run)


def _labelled(config: EvaluateConfig, assistant: Assistant, say: Say) -> Job | None:
    shots = config.n_shots()
    if config.classifier is not None:
        splits = splits_of(config.classifier, config.labelled)
    elif config.labelled is not None:
        data = read_labelled(config.labelled, config.text_column, config.label_column, say)
        splits = make_splits(data, config.balance == "undersample", SHARES, config.seed)
    else:
        return None
    if config.limit is not None:
        splits = Splits(splits.train, splits.test.take(np.arange(min(config.limit, len(splits.test)))))
    for n in shots:
        check_shots(splits.train, n)
    n, K = len(splits.test), len(splits.test.names)

    def run(on_done: OnDone) -> Sheet:
        found = compare(assistant.model, assistant.encoding, splits, shots, config.classifier, config.seed, on_done)
        rows = [(r.name, f"{r.accuracy.value:.2%}", _error(r.accuracy), f"{r.macro_f1:.4f}") for r in found]
        results = {row.name: {"accuracy": row.accuracy._asdict(), "macro_f1": row.macro_f1} for row in found}
        return Sheet(results, ("", "accuracy", "standard error", "macro F1"), rows)

    title = f"{n:,} test texts of {', '.join(splits.test.names[:8])}{' ...' if K > 8 else ''}"
    return Job("labelled", title, n * (K * len(shots) + (config.classifier is not None)), run)


def _judged(config: EvaluateConfig, assistant: Assistant, say: Say) -> Job | None:
    if config.instructions is None or config.judge_url is None or config.judge_model is None:
        return None
    judge = Judge(
        config.judge_url, config.judge_model, os.environ[config.judge_key].strip() if config.judge_key else None
    )
    examples = read_instructions(config.instructions)[: config.limit]

    def run(on_done: OnDone) -> Sheet:
        given = answers(assistant.model, assistant.encoding, assistant.template, examples, on_done)
        scores = judge.scores(given, on_done)
        scored = [score for score in scores if score is not None]
        if not scored:
            raise GptfastError(f"none of the {len(scores):,} replies of {judge.model} is an integer from 0 to 100")
        if len(scored) < len(scores):
            say(f"{len(scores) - len(scored):,} of {len(scores):,} replies of the judge hold no score; left out")
        score = mean(scored)
        entries = [{**answer._asdict(), "score": x} for answer, x in zip(given, scores, strict=True)]
        results = {"judge": judge.model, "score": score._asdict(), "responses": entries}
        row = (judge.model, f"{score.value:.1f}", _error(score, ".1f"), f"{score.n:,}")
        return Sheet(results, ("judge", "mean score, 0 to 100", "standard error", "responses"), [row])

    return Job("judged", config.instructions.name, 2 * len(examples), run)


def _error(mean: Mean, form: str = ".2%") -> str:
    return "" if mean.error is None else format(mean.error, form)


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None  # JSON has no infinity

"""LAMBADA (Paperno et al. 2016) as OpenAI evaluated GPT-2 on it: the last word of a passage.

A word is right if greedy decoding spells it: each token is the likeliest after those before. Perplexity is that of the
word, exp(-mean log p(word | passage)), as in lm-evaluation-harness's `lambada_openai`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.readers import read_json_lines
from ..errors import GptfastError
from ..model import GPT
from .loglikelihood import OnDone, loglikelihoods
from .statistics import Mean, exp, mean


class LambadaScore(NamedTuple):
    acc: Mean
    perplexity: float


def read_lambada(path: Path) -> list[tuple[str, str]]:
    """(passage, last word) of each line of a .jsonl with "text", as OpenAI published it, or "context" and
    "continuation". Raises GptfastError that names the line.
    """
    passages = []
    for number, record in read_json_lines(path):
        record = record if isinstance(record, dict) else {}
        context, word = record.get("context"), record.get("continuation")
        if isinstance(record.get("text"), str):
            context, _, word = record["text"].rpartition(" ")
        if not isinstance(context, str) or not isinstance(word, str) or not context.strip() or not word.strip():
            raise GptfastError(
                f'{path}, line {number:,} has neither a "text" of two words or more, nor "context" and "continuation"'
            )
        passages.append((context, word.removeprefix(" ")))
    if not passages:
        raise GptfastError(f"{path} holds no passages")
    return passages


def lambada(
    model: GPT, encoding: Any, passages: Sequence[tuple[str, str]], on_done: OnDone = lambda n: None
) -> LambadaScore:
    """Greedy accuracy and perplexity of the last words; see `read_lambada`."""
    scores = loglikelihoods(model, encoding, [(context, " " + word) for context, word in passages], on_done)
    return LambadaScore(mean([greedy for _, greedy, _ in scores]), exp(-sum(p for p, _, _ in scores) / len(scores)))

"""What a model answers to instructions, for a judge to score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import GptfastError
from ..finetune.instruct_data import every, read_examples
from ..finetune.templates import Template, conversation
from ..model import GPT
from ..sampling import stream_text
from .judge import Answer
from .loglikelihood import OnDone

MAX_NEW_TOKENS = 256


def read_instructions(path: Path) -> list[dict[str, Any]]:
    """{"instruction", "input", "output"} in a .json or .jsonl, the output being the reference; a "model_response" is
    what somebody has answered already. Raises GptfastError that names the example.
    """
    examples = read_examples(path)
    every(examples, path, _check)
    return examples


def _check(example: dict[str, Any]) -> None:
    conversation(example)
    for name in ("instruction", "output", *(["model_response"] if "model_response" in example else [])):
        text = example.get(name)
        if not isinstance(text, str) or not (text.strip() or name == "model_response"):
            raise GptfastError(f"its {name!r} is {text!r}, not a text")


def answers(
    model: GPT, encoding: Any, template: Template, examples: Sequence[dict[str, Any]], on_done: OnDone = lambda n: None
) -> list[Answer]:
    """The model's greedy answer to each example, or its "model_response" where it has one."""
    result = []
    for example in examples:
        question = example["instruction"] + (f"\n{example['input']}" if example.get("input") else "")
        response = example.get("model_response")
        if response is None:
            response = respond(model, encoding, template, example)
        result.append(Answer(question, example["output"], response.strip()))
        on_done(1)
    return result


def respond(model: GPT, encoding: Any, template: Template, example: dict[str, Any]) -> str:
    """The greedy answer, up to end-of-text, what ends the template's responses, or the end of the context.

    Raises GptfastError for a prompt that leaves no room for an answer.
    """
    prompt = template.prompt(example)
    ids = encoding.encode_ordinary(prompt)
    room = model.config.context_length - len(ids)
    if room < 1:
        raise GptfastError(
            f"the prompt {prompt[:40]!r}... fills the model's context of {model.config.context_length} tokens; leave "
            "such examples out"
        )
    return "".join(stream_text(model, encoding, ids, min(MAX_NEW_TOKENS, room), template.stops(), temperature=0))

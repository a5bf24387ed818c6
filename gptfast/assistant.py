"""A model with its tokenizer and the template it was fine-tuned with: what `gptfast chat` and `serve` talk to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import find_checkpoint
from .errors import GptfastError
from .files import read_json
from .finetune.templates import Template
from .generate import load_for_generation
from .model import GPT

# For a base model, which has learned no template: the roles by their names. It will often go on in other ways.
PLAIN = Template("plain", "user: {instruction}\nassistant:{output}", system="system: {system}\n", separator="\n")

Message = Mapping[str, str]


@dataclass(frozen=True)
class Assistant:
    model: GPT
    encoding: Any
    template: Template = PLAIN
    name: str = "gptfast"

    @property
    def context(self) -> int:
        return self.model.config.context_length

    def encode(self, text: str) -> list[int]:
        """Token ids, in which special tokens are plain text; end-of-text for an empty text."""
        return self.encoding.encode_ordinary(text) or [self.encoding.eot_token]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the assistant answers the last of `messages`. Raises GptfastError where that is not
        the user's, or the others do not alternate.
        """
        if messages and messages[-1].get("role") != "user":
            raise GptfastError(f"the last message is of the role {messages[-1].get('role')!r}; it must be the user's")
        return self.encode(self.template.prompt(messages))


def load_assistant(
    run: Path, checkpoint: str = "best", encoding: str | None = None, device: str = "auto", name: str | None = None
) -> Assistant:
    """From a run of `gptfast pretrain` or `gptfast finetune-instruct`, or a model folder. Raises GptfastError for a
    classifier.
    """
    folder = find_checkpoint(run, checkpoint)
    values = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    kinds = values.get("architectures") or []
    if "gptfast_classifier" in values or any("Classification" in str(kind) for kind in kinds):
        raise GptfastError(
            f"{run} holds a classifier, which writes no text; use `gptfast classify`, or give a run of "
            "`gptfast finetune-instruct` or `gptfast pretrain`"
        )
    model, tokenizer = load_for_generation(folder, encoding=encoding, device=device)
    return Assistant(model, tokenizer, Template.load(folder) or PLAIN, name or run.absolute().name or "gptfast")

"""Prompt templates: how an instruction or a conversation is written for the model, and where its answers stand.

A template is the text of one turn with the fields {instruction}, {input} (optional) and {output}. What precedes
{output} is the prompt; {output} and what follows it is the response, after which the model is to say end-of-text. A
conversation is the system message, if there is one, and its turns one after the other.

Examples are Alpaca's {"instruction", "input", "output"} (Taori et al. 2023) or chats, {"messages": [{"role",
"content"}]}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter
from typing import Any, NamedTuple

from ..data.readers import read_text
from ..errors import GptfastError
from ..files import read_json, write_json

FILE = "template.json"  # in a model folder
FIELDS = ("instruction", "input", "output")
ROLES = ("system", "user", "assistant")
_INSTRUCTION, _INPUT, _OUTPUT = "\1", "\2", "\3"  # stand for the fields in a template's text

Messages = Sequence[Mapping[str, str]]
Example = Mapping[str, Any]


class Turn(NamedTuple):
    instruction: str
    input: str
    output: str | None  # None: to be answered


@dataclass(frozen=True)
class Template:
    """turn: as the head of this file says. system: how a system message is written, with the field {system}.
    default_system: the system message of a conversation that brings none; "" is none. separator: between turns. name:
    for people.

    Where an example has no input, the line of {input} is left out, with its whole paragraph (between empty lines) if
    that has no other field. A turn without {input} takes the input behind the instruction, on a line of its own.
    Braces that are no fields are doubled. Raises GptfastError for a missing or unknown field.
    """

    name: str
    turn: str
    system: str = "{system}\n\n"
    default_system: str = ""
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if not isinstance(value, str):
                raise GptfastError(f"template {self.name!r}: {key} is {value!r}; it must be a text")
        fields = self._fields(self.turn, FIELDS)
        for field in ("instruction", "output"):
            if field not in fields:
                why = {"instruction": "the question", "output": "the response"}[field]
                raise GptfastError(f"template {self.name!r} has no {{{field}}}: it does not say where {why} stands")
        if fields[-1] != "output":
            raise GptfastError(f"template {self.name!r} has {{{fields[-1]}}} behind {{output}}; a prompt comes first")
        if self._fields(self.system, ("system",)) != ["system"]:
            raise GptfastError(f"template {self.name!r}: its system text has no {{system}}")

    def _fields(self, text: str, known: Sequence[str]) -> list[str]:
        try:
            parsed = [(field, spec, how) for _, field, spec, how in Formatter().parse(text) if field is not None]
        except ValueError as error:
            raise GptfastError(f"template {self.name!r}: {error}; write {{{{ and }}}} for braces") from None
        fields = [field for field, _, _ in parsed]
        for field, spec, how in parsed:
            if field not in known or spec or how:
                names = ", ".join(f"{{{name}}}" for name in known)
                written = f"{field}{'!' + how if how else ''}{':' + spec if spec else ''}"
                raise GptfastError(
                    f"template {self.name!r} has an unknown field {{{written}}}; the fields are {names}. Write {{{{ "
                    "and }} for braces"
                )
            if fields.count(field) > 1:
                raise GptfastError(f"template {self.name!r} has {{{field}}} twice")
        return fields

    def render(self, example: Example | Messages) -> list[tuple[str, bool]]:
        """The texts of an example in order, each with whether it is a response. End-of-text belongs behind each
        response; it is a token, and no text.
        """
        system, turns = conversation(example)
        segments: list[tuple[str, bool]] = []
        lead = self._opening(system)
        for turn in turns:
            if turn.output is None:
                raise GptfastError("it has no response to learn from: the last answer is missing or empty")
            segments += [(lead + self._ask(turn), False), (turn.output + self._halves()[1], True)]
            lead = self.separator
        return segments

    def prompt(self, example: Example | Messages) -> str:
        """All up to where the assistant answers the last message of the user. What it answered there is left out."""
        system, turns = conversation(example)
        text = self._opening(system)
        for turn in turns[:-1]:
            text += self._ask(turn) + (turn.output or "") + self._halves()[1] + self.separator
        return text + self._ask(turns[-1])

    def stops(self) -> list[str]:
        """Texts that end an answer, should the model not say end-of-text: what follows every response, and what begins
        the user's next turn; what may be part of an answer, a word or a bare sign, only at the start of a line.
        """
        before, after = self._halves()
        head = before.split(_INSTRUCTION)[0].strip().rsplit("\n", 1)[-1]
        may_be_text = head[:1].isalnum() or not any(map(str.isalnum, head))
        return [text for text in (after.strip(), "\n" + head if head and may_be_text else head) if text]

    def _opening(self, system: str | None) -> str:
        system = self.default_system if system is None else system
        return self.system.format(system=system) if system else ""

    def _halves(self) -> tuple[str, str]:
        """The text of a turn before and after {output}, with marks for the other fields and without doubled braces."""
        before, _, after = self.turn.format(instruction=_INSTRUCTION, input=_INPUT, output=_OUTPUT).partition(_OUTPUT)
        return before, after

    def _ask(self, turn: Turn) -> str:
        before, instruction = self._halves()[0], turn.instruction
        if _INPUT not in before:
            instruction += f"\n{turn.input}" if turn.input else ""
        elif not turn.input:
            before = _without_input(before)
        return before.translate({ord(_INSTRUCTION): instruction, ord(_INPUT): turn.input})

    def save(self, folder: str | Path) -> None:
        """Write template.json into a model folder."""
        write_json(Path(folder) / FILE, asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> Template | None:
        """The template that the model in a folder, or the best model of a run, was fine-tuned with; None for a base
        model.
        """
        for path in (Path(folder) / FILE, Path(folder) / "best" / FILE):
            if path.is_file():
                return cls.read(path)
        return None

    @classmethod
    def read(cls, path: Path) -> Template:
        """From a file: .json with the fields of this class, of which only `turn` must be there; else the text of a
        turn.
        """
        if path.suffix == ".json":
            values = {"name": path.stem} | read_json(path, "turn")
            unknown = set(values) - set(cls.__dataclass_fields__)
            if unknown:
                known = ", ".join(cls.__dataclass_fields__)
                raise GptfastError(f"{path} sets {', '.join(sorted(unknown))}, which no template has; known: {known}")
            return cls(**values)
        return cls(path.stem, read_text(path).rstrip("\n"))

    @classmethod
    def of(cls, source: str) -> Template:
        """The template called "alpaca" or "phi3", in a file, or written out with its fields."""
        if source in TEMPLATES:
            return TEMPLATES[source]
        if "{" in source:
            return cls("custom", source.rstrip("\n"))
        if not Path(source).is_file():
            raise GptfastError(
                f"there is no template {source!r}; choose {' or '.join(TEMPLATES)}, a file, or a text with "
                "{instruction} and {output}"
            )
        return cls.read(Path(source))


def render(example: Example | Messages, template: Template) -> list[tuple[str, bool]]:
    """`template.render(example)`."""
    return template.render(example)


def conversation(example: Example | Messages) -> tuple[str | None, list[Turn]]:
    """The system message, if there is one, and the turns of an example. Raises GptfastError for what is neither of the
    two kinds, is empty where a text belongs, or has messages in another order than user, assistant, user ...
    """
    messages = example.get("messages") if isinstance(example, Mapping) else example
    if isinstance(example, Mapping) and "messages" not in example:
        if "instruction" not in example:
            keys = ", ".join(map(repr, example)) or "nothing"
            raise GptfastError(f"it has neither 'instruction' nor 'messages', but {keys}")
        texts = {key: example.get(key, "") for key in FIELDS}
        for key, text in texts.items():
            if not isinstance(text, str):
                raise GptfastError(f"its {key!r} is {text!r}, not a text")
        if not texts["instruction"].strip():
            raise GptfastError("its 'instruction' is empty")
        return None, [Turn(texts["instruction"], texts["input"], texts["output"] if texts["output"].strip() else None)]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise GptfastError("its messages are not a list of {'role', 'content'}")
    system: str | None = None
    turns: list[Turn] = []
    for number, message in enumerate(messages, 1):
        role, text = (message.get(k) for k in ("role", "content")) if isinstance(message, Mapping) else (None, None)
        if role not in ROLES or not isinstance(text, str) or not text.strip():
            raise GptfastError(
                f"message {number} is no {{'role': {' | '.join(ROLES)}, 'content': a text that is not empty}}"
            )
        waiting = bool(turns) and turns[-1].output is None
        if role == "system" and number == 1:
            system = text
        elif role == "user" and not waiting:
            turns.append(Turn(text, "", None))
        elif role == "assistant" and waiting:
            turns[-1] = turns[-1]._replace(output=text)
        else:
            raise GptfastError(
                f"message {number} is out of turn ({role}): after a system message, user and assistant alternate"
            )
    if not turns:
        raise GptfastError("its messages hold no question of the user")
    return system, turns


def _without_input(before: str) -> str:
    paragraphs = []
    for paragraph in before.split("\n\n"):
        if _INPUT in paragraph and _INSTRUCTION not in paragraph:
            continue
        paragraphs.append("\n".join(line for line in paragraph.split("\n") if line.strip() != _INPUT))
    return "\n\n".join(paragraphs)


# Alpaca's in the form of "Build a Large Language Model (From Scratch)", chapter 7: one preamble with and without an
# input. Phi-3's is that of its model card (Abdin et al. 2024).
TEMPLATES = {
    "alpaca": Template(
        "alpaca",
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}",
        default_system="Below is an instruction that describes a task. Write a response that appropriately completes "
        "the request.",
    ),
    "phi3": Template(
        "phi3",
        "<|user|>\n{instruction}<|end|>\n<|assistant|>\n{output}<|end|>",
        system="<|system|>\n{system}<|end|>\n",
        separator="\n",
    ),
}  # fmt: skip

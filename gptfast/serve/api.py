"""What requests may hold and what answers look like: OpenAI's Completions and Chat Completions."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Container, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from .engine import Sampling

MAX_CHOICES = 16  # texts that one request may ask for
SEED = 2**63

# Parameters of OpenAI's that are taken with the values that change nothing, and refused with others.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (0,),
    "logit_bias": ({},), "frequency_penalty": (0,), "presence_penalty": (0,), "response_format": ({"type": "text"},),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "modalities": (["text"],), "store": (False,), "parallel_tool_calls": (True, False),
}  # fmt: skip
IGNORED = {"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"}  # say nothing about the text


def whole(text: str) -> str:
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise PydanticCustomError("surrogate", "half of a surrogate pair is no character")
    return text


String = Annotated[str, AfterValidator(whole)]
Stop = Annotated[String, Field(min_length=1, max_length=256)]


def refusal(param: str, why: str) -> PydanticCustomError:
    param = param[:100].encode("utf-8", "backslashreplace").decode()  # a client's own name, whatever it holds
    return PydanticCustomError("refused", "{param} {why}", {"param": param, "why": why})


class Strict(BaseModel):
    """Refuses by the first thing that is wrong: a megabyte of wrong things would make a gigabyte of messages."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def known(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields and name not in cls.others:
                raise refusal(name, "is no parameter here")
        return values

    others: ClassVar[Container[str]] = ()


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False  # there is none


class TextPart(Strict):
    type: Literal["text"]
    text: String


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: String | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None
    refusal: None = None

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Request(Strict):
    others: ClassVar[Container[str]] = NEUTRAL.keys() | IGNORED

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, description="Sample among the k likeliest tokens only; not OpenAI's.")
    max_tokens: int | None = Field(None, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=4, fail_fast=True)] | None = None
    seed: int | None = Field(None, ge=-SEED, lt=SEED)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def without_neutral(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, good in NEUTRAL.items():
            value = values.get(name)
            if value is not None and not any(value == x and (type(value) is bool) == (type(x) is bool) for x in good):
                raise refusal(name, "is not supported here; leave it out")
        return {key: value for key, value in values.items() if key not in NEUTRAL and key not in IGNORED}

    @model_validator(mode="after")
    def with_stream(self) -> Request:
        if self.stream_options is not None and not self.stream:
            raise refusal("stream_options", "is only for stream = true")
        return self

    @property
    def sampling(self) -> Sampling:
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(temperature, self.top_k, self.top_p)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Request):
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: int | None = Field(None, ge=1)

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


class CompletionRequest(Request):
    prompt: String | Ids | Annotated[list[String | Ids], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]

    @property
    def prompts(self) -> list[str | list[int]]:
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return self.prompt if several else [self.prompt]  # type: ignore[list-item, return-value]

    @property
    def limit(self) -> int | None:
        return self.max_tokens or 16  # OpenAI's default


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    error: ErrorObject


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def explain(errors: Sequence[Any]) -> tuple[str, str | None]:
    """A message and the parameter, from pydantic's errors: of the first field that is wrong, and where it may be of
    several types the one that was meant, what was said about its innermost part.
    """
    field = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    error = max(field, key=lambda error: (not error["type"].endswith("_type"), len(error["loc"])))
    if error["type"] == "json_invalid":
        return f"the body is not valid JSON: {error['ctx']['error']}", None
    path = ""
    for part in error["loc"][1:]:  # behind "body"
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int"):  # not the name of a union's branch
            path += f".{part}"
    if error["type"] == "refused":
        path = f"{path}.{error['ctx']['param']}".lstrip(".")
        return f"{path} {error['ctx']['why']}", path
    path = path.lstrip(".")
    return f"{path or 'the body'}: {error['msg']}", path or None


class Writer:
    """OpenAI's objects for one request."""

    def __init__(self, model: str, chat: bool) -> None:
        self.chat = chat
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def choice(self, index: int, text: str | None, finish: str | None, streamed: bool) -> dict[str, Any]:
        if not self.chat:
            return {"index": index, "text": text or "", "logprobs": None, "finish_reason": finish}
        message: dict[str, Any] = {} if text is None else {"content": text}
        if not streamed:
            message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "delta" if streamed else "message": message, "logprobs": None, "finish_reason": finish}

    def role(self, index: int) -> dict[str, Any]:
        """What begins a streamed answer of a chat."""
        choice = self.choice(index, "", None, True)
        choice["delta"]["role"] = "assistant"
        return choice

    def body(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None, streamed: bool) -> dict[str, Any]:
        name = "text_completion" if not self.chat else "chat.completion.chunk" if streamed else "chat.completion"
        return {**self.head, "object": name, "choices": choices, "usage": usage}


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    """Counts of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

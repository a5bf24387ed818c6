"""Responses scored by a language model, through any endpoint that speaks OpenAI's chat completions.

Zheng et al. 2023 ("Judging LLM-as-a-Judge"), reference-guided single-answer grading, with an integer from 0 to 100 as
in "Build a Large Language Model (From Scratch)", chapter 7.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import GptfastError
from .loglikelihood import OnDone

PROMPT = """\
You grade the answer that a language model gave to an instruction.

Instruction:
{instruction}

Reference answer:
{reference}

Answer to grade:
{response}

How well does the answer do what the instruction asks, measured by the reference? Reply with one integer from 0 \
(useless) to 100 (as good as the reference or better), and with nothing else."""

AT_ONCE = 4  # requests
SCORE = re.compile(r"\W*(?:score\W+)?(?<![-.])(\d{1,3})(?:\s*/\s*100)?\W*", re.IGNORECASE)
MOST_BYTES = 1 << 20  # of a reply


class Answer(NamedTuple):
    """instruction: with its input, if it has one. reference: what a good answer says. response: what is graded."""

    instruction: str
    reference: str
    response: str


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected request would take the key to another host."""

    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass(frozen=True)
class Judge:
    """url: up to and with /v1. key: sent as a bearer token; None sends none. timeout: seconds of silence. retries: how
    often a request is repeated after a timeout, a broken connection or the status 429 or 5xx, `pause` seconds later and
    each time twice as many.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 3
    pause: float = 1.0

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and self.url.isprintable()
            good = good and " " not in self.url and parts.port != 0
        except ValueError:  # a port that is no number
            good = False
        if not good:
            raise GptfastError(f"the judge's URL {self.url!r} is no address that begins with http:// or https://")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise GptfastError("the judge's key has characters that no HTTP header may have; check how it was set")

    def scores(self, answers: Iterable[Answer], on_done: OnDone = lambda n: None) -> list[int | None]:
        """0 to 100 for each answer, None where the reply holds no such number. Raises GptfastError where the judge
        cannot be reached or refuses.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            results = []
            try:
                for score in pool.map(self._score, answers):
                    results.append(score)
                    on_done(1)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return results

    def _score(self, answer: Answer) -> int | None:
        found = SCORE.fullmatch(self.ask(PROMPT.format(**answer._asdict())))
        return int(found[1]) if found and int(found[1]) <= 100 else None

    def ask(self, prompt: str) -> str:
        """The reply to one message of the user, at temperature 0. Raises GptfastError."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        url = self.url.rstrip("/") + "/chat/completions"
        text = self._send(urllib.request.Request(url, json.dumps(body).encode(), headers))
        try:
            reply = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            reply = None
        if not isinstance(reply, str):
            raise GptfastError(f"the judge {url} sent no chat completion but {text[:80]!r}; is it OpenAI-compatible?")
        return reply

    def _send(self, request: urllib.request.Request) -> str:
        opener = urllib.request.build_opener(_NoRedirects)
        for attempt in range(self.retries + 1):
            pause = self.pause * 2**attempt
            try:
                with opener.open(request, timeout=self.timeout) as response:
                    return response.read(MOST_BYTES).decode("utf-8", "replace")
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.reason}: {_message(error)}"
                if error.code != 429 and error.code < 500:
                    raise GptfastError(f"the judge {request.full_url} refuses: {reason}") from None
                asked = error.headers.get("Retry-After", "")
                pause = max(pause, min(float(asked), 60.0)) if asked.isdecimal() else pause
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt < self.retries:
                time.sleep(pause)
        raise GptfastError(
            f"the judge {request.full_url} failed {self.retries + 1} times in a row: {reason}; is it running?"
        )


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says, as OpenAI's format has it or as it comes."""
    try:
        text = error.read(MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    try:
        return str(json.loads(text)["error"]["message"])[:300]
    except (ValueError, LookupError, TypeError):
        return " ".join(text.split())[:120]

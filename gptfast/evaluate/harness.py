"""EleutherAI's lm-evaluation-harness on our models: its model "gptfast" (the extra `lm-eval`).

    python -m gptfast.evaluate.harness --model gptfast --model_args run=RUN --tasks hellaswag,lambada_openai

is the harness's own command line. In Python, importing this module is enough for lm_eval.simple_evaluate to know it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..assistant import load_assistant
from ..errors import GptfastError
from ..sampling import stream_text
from .loglikelihood import loglikelihoods, score

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    raise GptfastError(f"lm-evaluation-harness is not here ({error}); install it: pip install lm-eval") from None


@register_model("gptfast")
class GptfastLM(LM):
    """run, checkpoint, encoding, device: as of `gptfast evaluate`. batch_size is ignored: length makes batches."""

    def __init__(
        self, run: str, checkpoint: str = "best", encoding: str | None = None, device: str | None = None,
        batch_size: Any = None, max_batch_size: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if device == "cuda:0" and not torch.cuda.is_available():
            device = None  # the harness's command line says so when nobody has said anything
        assistant = load_assistant(Path(run), str(checkpoint), encoding, device or "auto")
        self.model, self.encoding = assistant.model, assistant.encoding
        self._device = next(self.model.parameters()).device

    @property
    def tokenizer_name(self) -> str:
        return self.encoding.hash

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with _progress(requests, disable_tqdm) as done:
            scores = loglikelihoods(self.model, self.encoding, [request.args for request in requests], done)
        return [(logp, greedy) for logp, greedy, _ in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts; windows as the harness cuts them, each token with as much before it as fits."""
        result = []
        with _progress(requests, disable_tqdm) as done:
            for (text,) in (request.args for request in requests):
                windows = get_rolling_token_windows(
                    self.encoding.encode_ordinary(text), self.encoding.eot_token, self.model.config.context_length, 1
                )
                scores = score(self.model, [make_disjoint_window(window) for window in windows])
                result.append(sum(logp for logp, _, _ in scores))
                done(1)
        return result

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Of the arguments: until, max_gen_toks, do_sample and temperature. A long prompt loses its beginning."""
        result = []
        with _progress(requests, disable_tqdm) as done:
            for prompt, wanted in (request.args for request in requests):
                until = wanted.get("until") or []
                most = min(int(wanted.get("max_gen_toks", 256)), self.model.config.context_length - 1)
                ids = self.encoding.encode_ordinary(prompt)[-(self.model.config.context_length - most) :]
                temperature = float(wanted.get("temperature", 1.0)) if wanted.get("do_sample") else 0.0
                stops = [until] if isinstance(until, str) else until
                result.append(
                    "".join(stream_text(self.model, self.encoding, ids, most, stops, temperature=temperature))
                )
                done(1)
        return result


@contextmanager
def _progress(requests: Sequence[Any], disable: bool) -> Iterator[Callable[[float], Any]]:
    with tqdm(total=len(requests), disable=disable) as bar:
        yield bar.update


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()

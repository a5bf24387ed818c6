"""`gptfast classify`: texts to classes, with a run of `gptfast finetune-classifier`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..errors import GptfastError


@dataclass(frozen=True)
class ClassifyConfig:
    """Classify texts; each gets a line with its class and the probability of it."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run of `gptfast finetune-classifier`, or its best/."""
    texts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Texts to classify."""
    file: Path | None = None
    """Classify the texts of a .csv, .tsv, .jsonl or .parquet file, or the lines of a .txt."""
    text_column: str | None = None
    """Name or number of the file's column of texts."""
    json: bool = False
    """Print JSON lines: text, label, and the probability of each class."""
    batch_size: int = 32
    """Texts in a batch."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


def main(argv: list[str]) -> None:
    config = tyro.cli(ClassifyConfig, args=argv, prog="gptfast classify")
    if bool(config.texts) == (config.file is not None):
        raise GptfastError('give texts to classify or --file FILE: `gptfast classify RUN "text"`')
    if config.batch_size < 1:
        raise GptfastError(f"--batch-size is {config.batch_size}; it must be at least 1")
    from ..machine import choose_device, synchronize
    from .classifier import Classifier
    from .labelled import read_texts

    device = choose_device(config.device)
    model, encoding = Classifier.load(config.run)
    model.to(device)

    def note(line: str) -> None:
        print(f"note: {line}", file=sys.stderr)

    texts = list(config.texts) if config.file is None else read_texts(config.file, config.text_column, note)
    start = time.perf_counter()
    ids, cut = model.encode(encoding, texts)
    p = model.probabilities(ids, config.batch_size)
    synchronize(device)
    seconds = time.perf_counter() - start
    if cut:
        note(f"{cut:,} texts are longer than {model.length} tokens; their beginning was classified")
    width = max(map(len, model.names))
    for text, row in zip(texts, p, strict=True):
        label = model.names[row.argmax()]
        if config.json:
            probabilities = {name: round(float(x), 6) for name, x in zip(model.names, row, strict=True)}
            print(json.dumps({"text": text, "label": label, "probabilities": probabilities}, ensure_ascii=False))
        else:
            print(f"{label:<{width}}  {row.max():6.2%}  {' '.join(text.split())}")
    tokens = sum(map(len, ids))
    note(
        f"{len(texts):,} texts, {tokens:,} tokens in {seconds:.2f} s: {len(texts) / seconds:,.0f} texts/s, "
        f"{tokens / seconds:,.0f} tokens/s on {device}"
    )

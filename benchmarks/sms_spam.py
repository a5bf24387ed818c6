"""A recipe of `gptfast finetune-classifier` over several seeds: its test accuracy, F1, loss and time.

    python benchmarks/sms_spam.py SMSSpamCollection.tsv --out RUNS [--seeds 123 124 125] [--lr 3e-4 1e-3]
        [--train-texts N] [--against OTHER_RUNS] [flags of finetune-classifier]

Each seed draws its own undersampling, split, weights and order, and of several learning rates takes the one with the
lowest validation loss. The recipes: docs/classifier.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from gptfast.finetune import classifier_cli
from gptfast.settings import parse


def keep_training_texts(n: int) -> None:
    """Training texts are the first n of each seed's, classes in their shares; validation and test stay what they are.
    A smaller n is a subset of a larger one.
    """
    whole = classifier_cli._splits

    def fewer(*args: Any) -> dict[str, Any]:
        splits = whole(*args)
        train, share = splits["train"], n / len(splits["train"])
        if share < 1:
            splits["train"], _ = train.split((share, 1 - share), args[0].seed)
        return splits

    classifier_cli._splits = fewer  # type: ignore[assignment]


def best(folder: Path) -> dict[str, float]:
    """Of the runs of one seed, the values of that with the lowest validation loss."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*/results.json"))]
    if not runs:
        sys.exit(f"{folder} holds no run; give the --out of a recipe that ran with this seed")
    results = min(runs, key=lambda results: results["val"]["loss"])
    test = results["test"]
    return {
        "test accuracy": test["accuracy"], "test F1": test["f1"], "test loss": test["loss"],
        "seconds": results["fit"]["seconds"],
    }  # fmt: skip


def table(rows: list[dict[str, float]], others: list[dict[str, float]]) -> str:
    """Mean and standard deviation over the seeds; of the paired difference to `others` mean and standard error."""
    lines = []
    for name in rows[0]:
        each = [row[name] for row in rows]
        spread = statistics.stdev(each) if len(each) > 1 else 0.0
        line = f"{name:<14} {statistics.mean(each):8.4f} +- {spread:.4f}   ({', '.join(f'{x:.4f}' for x in each)})"
        if len(others) > 1:
            difference = [row[name] - other[name] for row, other in zip(rows, others, strict=True)]
            error = statistics.stdev(difference) / math.sqrt(len(difference))
            line += f"   difference {statistics.mean(difference):+.4f}, standard error {error:.4f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[123, 124, 125])
    parser.add_argument("--lr", nargs="+", default=[str(classifier_cli.ClassifierConfig.lr)])
    parser.add_argument("--train-texts", type=int, help="of each seed's training texts use so many")
    parser.add_argument("--against", type=Path, help="the --out of another recipe with these seeds: paired differences")
    options, flags = parser.parse_known_args()
    if options.train_texts:
        keep_training_texts(options.train_texts)
    others = [best(options.against / str(seed)) for seed in options.seeds] if options.against else []
    for seed in options.seeds:
        for lr in options.lr:
            argv = [options.data, f"--out={options.out}/{seed}/{lr}", f"--seed={seed}", f"--lr={lr}", *flags]
            classifier_cli.run(parse(classifier_cli.ClassifierConfig, argv, "sms_spam"))
    rows = [best(options.out / str(seed)) for seed in options.seeds]
    print(f"\n--lr {' '.join(options.lr)} {' '.join(flags)}", file=sys.stderr)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    print(table(rows, others), file=sys.stderr)


if __name__ == "__main__":
    main()

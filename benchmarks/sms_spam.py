"""A recipe of `gptfast finetune-classifier` over several seeds: its test accuracy, F1 and time.

    python benchmarks/sms_spam.py SMSSpamCollection.tsv --out RUNS [--seeds 123 124 125] [flags of finetune-classifier]

Each seed draws its own undersampling, split, weights and order. The recipes: docs/classifier.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path

from gptfast.finetune.classifier_cli import ClassifierConfig, run
from gptfast.settings import parse


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[123, 124, 125])
    options, flags = parser.parse_known_args()
    rows = []
    for seed in options.seeds:
        argv = [options.data, f"--out={options.out}/{seed}", f"--seed={seed}", *flags]
        results = run(parse(ClassifierConfig, argv, "sms_spam"))
        test = results["test"]
        rows.append((test["accuracy"], test["f1"], test["loss"], results["fit"]["seconds"]))
    print(f"\n{' '.join(flags)}\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", file=sys.stderr)
    names = ("test accuracy", "test F1", "test loss", "seconds")
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        each = ", ".join(f"{value:.4f}" for value in values)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:<14} {statistics.mean(values):8.4f} +- {spread:.4f}   ({each})", file=sys.stderr)


if __name__ == "__main__":
    main()

"""The cases of `gptfast bench` that a CPU runs, each form as a pytest-benchmark:

    pytest benchmarks/test_cpu.py --benchmark-only -k "decode and not transformers"

with everything that --benchmark-compare, --benchmark-json and its other options do. Sizes are those of --quick;
GPTFAST_BENCH=dry takes tiny ones. A form that keeps its own time (of a process that it starts) has it as `seconds` in
the extra information: what pytest-benchmark times is all of the call. The output of gptfast's forms is checked.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gptfast.benchmarks import suite
from gptfast.benchmarks.suite import Case, Setup, Timed

SECTIONS = [name for name in ("dispatch", "decode", "train", "tokenizer", "data")
            if importlib.util.find_spec(f"gptfast.benchmarks.{name}")]  # fmt: skip
SETUP = Setup(torch.device("cpu"), peers=True, quick=True, dry=os.environ.get("GPTFAST_BENCH") == "dry")


class Cases:
    """The cases of a section in their order, one at a time: making one may take a model's memory."""

    def __init__(self) -> None:
        self.section, self.index = "", -1
        self.left: Iterator[Case] = iter(())
        self.case: Any = None

    def at(self, section: str, index: int) -> Case:
        if section != self.section or index < self.index:
            self.section, self.index, self.left = section, -1, _cases(section)
        while self.index < index:
            self.case = None
            self.index, self.case = self.index + 1, next(self.left)
        return self.case


def _cases(section: str) -> Iterator[Case]:
    return importlib.import_module(f"gptfast.benchmarks.{section}").cases(SETUP)


CURRENT = Cases()


def pytest_generate_tests(metafunc: Any) -> None:
    found, names = [], []
    for section in SECTIONS:
        for index, case in enumerate(_cases(section)):
            for form in case.forms:
                found.append((section, index, form))
                names.append(f"{section}: {case.name}, {case.shape}, {case.dtype}: {form}")
    metafunc.parametrize(("section", "index", "form"), found, ids=names)


def test_form(benchmark: Any, section: str, index: int, form: str) -> None:
    case = CURRENT.at(section, index)
    values = case.inputs()
    try:
        call = case.forms[form](*values)
        call()  # compiled, and its libraries' own memory allocated
    except Exception as error:
        if form.startswith("gptfast"):
            raise
        pytest.skip(f"{type(error).__name__}: {error}".splitlines()[0])
    benchmark.group = f"{section}: {case.name}, {case.shape}, {case.dtype}"
    out = benchmark(call)
    if isinstance(out, Timed):
        benchmark.extra_info["seconds"] = out.seconds
        out = out.outputs
    if case.reference is not None and form.startswith("gptfast"):
        outputs = {form: out}
        if case.yardstick:
            plain = case.forms[case.yardstick](*values)()
            outputs[case.yardstick] = plain.outputs if isinstance(plain, Timed) else plain
        rows: list[suite.Row] = [{"form": name} for name in outputs]
        suite._check(rows, outputs, case.reference(*values), case.yardstick)
        assert rows[0]["right"], f"error {rows[0]['error']:.2e}, more than the rule of suite.py allows"

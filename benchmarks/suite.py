"""A case: forms of the same work that take turns on fresh random inputs, and are checked after the timing.

A section is a module with `cases(setup)`, which yields them one by one so that no two hold memory at once. `measure`
gives a row (a dict, as it is written to JSON) for each form:

    section, case, shape, dtype, form     what was measured; forms whose name begins with "gptfast" are ours
    ms, ms20, ms80, samples               median and the 20 % and 80 % quantiles of the timed calls
    rate, unit                            work in a second: TFLOP/s, GB/s, tokens/s, MB/s
    share, of                             of what this machine reaches in the ceiling `of` (machine.py), by the FLOP or
                                          bytes that the case cannot do without
    intensity                             FLOP a byte of what it cannot do without, where both are known (roofline)
    peak_mb                               most memory in use above what the inputs hold, during one call, and what the
                                          call keeps from one to the next (its attribute `held`, bytes)
    error, right                          max |out - reference| / max |reference|; for ours, by the rule below
    ratio                                 its ms over gptfast's ms of the same case
    failed                                instead of all figures: why there are none
    left_out                              likewise, where there was no time to prepare it

The rule, for each output (a loss, each gradient): error <= 2 * error of the form named `yardstick` (PyTorch's own, same
dtype) + atol, where atol is twice the largest |reference + 0.3 - 0.3 - reference| over max |reference|. Where the
yardstick itself fails nothing can be said, and `right` is None.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptfast.errors import GptfastError
from gptfast.machine import synchronize

from .machine import Peak

Row = dict[str, Any]
Call = Callable[[], Any]
SAMPLE_S = 2e-3  # on a CPU a sample is as many calls as take this long: reading the clock is no part of what is timed
LONG_S = 0.1  # a call of this length needs no untimed one before it
SCALES = {"TFLOP/s": 1e12, "GB/s": 1e9, "MB/s": 1e6, "tokens/s": 1.0, "calls/s": 1.0}


class Timed(NamedTuple):
    """What a call returns that keeps its own time, such as that of a process it starts."""

    seconds: float
    outputs: Any = None
    peak_bytes: float | None = None


@dataclass(frozen=True)
class Setup:
    """How to run: `dry` asks for sizes so small that a CPU runs every form in moments; its times mean nothing."""

    device: torch.device
    ceilings: dict[str, float] = field(default_factory=dict)
    peers: bool = False  # else gptfast and PyTorch's own form alone
    quick: bool = False
    dry: bool = False
    seconds: float = 1.0  # of timing a case; never fewer than `rounds`
    rounds: int = 5
    budget: float | None = None  # seconds: a case whose preparation has taken this long leaves its other forms out

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def triton(self) -> bool:
        """Whether gptfast.kernels runs here: on a GPU, or in Triton's interpreter."""
        return self.on_gpu or os.environ.get("TRITON_INTERPRET") == "1"

    @property
    def dtype(self) -> torch.dtype:
        """bf16; fp32 where the interpreter may run, which gets bf16 wrong."""
        return torch.float32 if self.dry and not self.on_gpu else torch.bfloat16

    @property
    def matmul(self) -> str:
        """The ceiling of matrix multiplications in `dtype`."""
        return "matmul fp32" if self.dtype == torch.float32 else "matmul bf16"

    def size(self, gpu: Any, cpu: Any, dry: Any) -> Any:
        """The size that suits where this runs."""
        return dry if self.dry else gpu if self.on_gpu else cpu


@dataclass(frozen=True)
class Case:
    """`forms[name](*inputs)` prepares, untimed; the call it returns is timed and returns what is checked."""

    section: str
    name: str
    shape: str
    dtype: str
    inputs: Callable[[], tuple[Any, ...]]
    forms: dict[str, Callable[..., Call]]
    work: float  # of a call, in the base of `unit`: FLOP, bytes, tokens
    unit: str
    of: str | None = None  # a ceiling of machine.py
    need: float = 0.0  # FLOP or bytes that a call cannot do without, for the share
    intensity: float | None = None  # FLOP a byte
    reference: Callable[..., Any] | None = None  # fp32 outputs of the inputs
    yardstick: str | None = None


def forward(function: Callable[..., Any]) -> Callable[..., Call]:
    """The form that times function(*inputs) without gradients; the last input, an upstream gradient, is left out."""

    def prepare(*inputs: Any) -> Call:
        @torch.no_grad()
        def call() -> Any:
            return function(*inputs[:-1])

        return call

    return prepare


def backward(function: Callable[..., Any]) -> Callable[..., Call]:
    """The form that times the gradients of every floating input; the last one is the upstream gradient."""

    def prepare(*inputs: Any) -> Call:
        given = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs[:-1]]
        leaves = [x for x in given if x.requires_grad]
        out = function(*given)
        out = out if isinstance(out, tuple) else (out,)
        upstream = inputs[-1] if isinstance(inputs[-1], tuple) else (inputs[-1],)
        return lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True)

    return prepare


def measure(case: Case, setup: Setup) -> list[Row]:
    """Time a case's forms; one that raises gives a row with `failed` and costs the others nothing. Raises what its
    inputs raise.
    """
    labels = _labels(case)
    clock = _Clock(setup.device)
    samples: dict[str, list[float]] = {}
    missing: dict[str, dict[str, str]] = {}
    peaks: dict[str, float | None] = {}
    plans: dict[str, tuple[int, bool]] = {}
    outputs: dict[str, Any] = {}
    call: Call | None = None
    values: Any = case.inputs()
    start = time.perf_counter()
    for name, form in case.forms.items():
        if setup.budget is not None and time.perf_counter() - start > setup.budget:
            missing[name] = {"left_out": f"preparing the others took {setup.budget:g} s"}
            continue
        out = call = None  # what the form before holds
        try:
            call = form(*values)
            call()  # compiled, and its libraries' own memory allocated
            with Peak(setup.device) as peak:
                out = call()
            held = getattr(call, "held", 0)  # bytes that it keeps from call to call, as weights and moments
            above = None if peak.bytes is None else peak.bytes + held
            peaks[name] = out.peak_bytes if isinstance(out, Timed) else above
            plans[name] = (1, False) if isinstance(out, Timed) else clock.plan(call)
            samples[name] = []
        except Exception as error:
            missing[name] = {"failed": _line(error)}
    rounds, start = 0, time.perf_counter()
    while samples and (rounds < setup.rounds or time.perf_counter() - start < setup.seconds):
        values = out = call = None  # before the next inputs take memory
        outputs.clear()
        values = case.inputs()
        for name in list(samples):
            call = None
            try:
                call = case.forms[name](*values)
                seconds, outputs[name] = clock.time(call, *plans[name])
                samples[name].append(seconds)
            except Exception as error:
                missing[name] = {"failed": _line(error)}
                del samples[name]
        rounds += 1
        if setup.dry:
            break
    call = None
    rows = [labels | _figures(case, setup, name, times, peaks[name]) for name, times in samples.items()]
    if case.reference is not None and rows:
        try:
            _check(rows, outputs, case.reference(*values), case.yardstick)
        except Exception as error:
            missing["the check"] = {"failed": _line(error)}
    ours = next((row["ms"] for row in rows if row["form"] == "gptfast"), None)
    for row in rows:
        row["ratio"] = row["ms"] / ours if ours else None
    return rows + [labels | {"form": name} | why for name, why in missing.items()]


def _labels(case: Case) -> Row:
    return {"section": case.section, "case": case.name, "shape": case.shape, "dtype": case.dtype}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def run(cases: Iterator[Case], setup: Setup, section: str, only: Sequence[str] = ()) -> Iterator[list[Row]]:
    """The rows of each case, or of those whose name has a text of `only`; memory of one is given back before the next.
    What cannot make a case ends its section. Raises GptfastError where a case leaves a GPU that no longer works.
    """
    while True:
        try:
            case = next(cases)
        except StopIteration:
            return
        except Exception as error:
            yield [{"section": section, "case": "the next one", "shape": "", "dtype": "", "form": "gptfast",
                    "failed": _line(error)}]  # fmt: skip
            return
        name = case.name
        if not only or any(text in name for text in only):
            try:
                rows = measure(case, setup)
            except Exception as error:  # what is not a form's own, such as no memory for fresh inputs
                rows = [_labels(case) | {"form": "gptfast", "failed": _line(error)}]
            yield rows
        del case
        gc.collect()
        if setup.on_gpu:
            try:
                torch.cuda.synchronize(setup.device)
                torch.cuda.empty_cache()
            except RuntimeError as error:  # as after an illegal access: nothing runs any more in this process
                raise GptfastError(f"the GPU no longer answers after {name!r}: {_line(error)}") from None


class _Clock:
    """Times calls: by events on a GPU, with its L2 cache cleared before each; by the wall clock elsewhere."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type == "cuda":
            # 1 GiB takes some 0.3 ms to clear: Python gets ahead of the GPU, so that launches are no part of the time.
            self.flush = torch.empty(1 << 30, dtype=torch.int8, device=device)
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def plan(self, call: Call) -> tuple[int, bool]:
        """How many calls make a sample, and whether an untimed one goes before them."""
        synchronize(self.device)
        start = time.perf_counter()
        call()
        synchronize(self.device)
        seconds = max(time.perf_counter() - start, 1e-7)
        return 1 if self.device.type == "cuda" else max(1, int(SAMPLE_S / seconds)), seconds < LONG_S

    def time(self, call: Call, calls: int, warm: bool) -> tuple[float, Any]:
        """Seconds of a call, and its outputs."""
        if warm:
            call()
        if self.device.type == "cuda":
            self.flush.zero_()
            self.events[0].record()
            out = call()
            self.events[1].record()
            torch.cuda.synchronize(self.device)
            seconds = self.events[0].elapsed_time(self.events[1]) / 1e3
        else:
            start = time.perf_counter()
            for _ in range(calls):
                out = call()
            seconds = (time.perf_counter() - start) / calls
        return (out.seconds, out.outputs) if isinstance(out, Timed) else (seconds, out)


def _figures(case: Case, setup: Setup, name: str, times: list[float], peak: float | None) -> Row:
    seconds = statistics.median(times)
    low, high = (statistics.quantiles(times, n=5, method="inclusive")[i] if len(times) > 1 else seconds for i in (0, 3))
    ceiling = setup.ceilings.get(case.of or "")
    return {
        "form": name, "ms": 1e3 * seconds, "ms20": 1e3 * low, "ms80": 1e3 * high, "samples": len(times),
        "rate": case.work / seconds / SCALES[case.unit], "unit": case.unit,
        "share": case.need / seconds / ceiling if ceiling else None, "of": case.of,
        "intensity": case.intensity, "peak_mb": None if peak is None else peak / 1e6, "error": None, "right": None,
    }  # fmt: skip


def _check(rows: list[Row], outputs: dict[str, Any], reference: Any, yardstick: str | None) -> None:
    expected = _tensors(reference)
    errors = {row["form"]: _errors(_tensors(outputs[row["form"]]), expected) for row in rows}
    scales = [0.0] * len(expected) if yardstick is None else errors.get(yardstick)
    for row in rows:
        own = errors[row["form"]]
        row["error"] = max(own, default=0.0)
        if row["form"].startswith("gptfast") and scales is not None:
            row["right"] = all(e <= 2 * s + _rounding(x) for e, s, x in zip(own, scales, expected, strict=True))


def _errors(out: list[Tensor], expected: list[Tensor]) -> list[float]:
    if len(out) != len(expected):
        return [math.inf] * len(expected)
    return [_error(*pair) for pair in zip(out, expected, strict=True)]


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out.detach()]
    if isinstance(out, (tuple, list)) and all(isinstance(x, (Tensor, tuple, list)) for x in out):
        return [x for part in out for x in _tensors(part)]
    return [torch.as_tensor(out)]


def _error(out: Tensor, expected: Tensor) -> float:
    """Of numbers the largest error over the largest magnitude; of ids and the like the share that differs."""
    if out.shape != expected.shape:
        return math.inf
    if not expected.is_floating_point():
        return (out != expected).double().mean().item() if expected.numel() else 0.0
    off = (out.double() - expected.double()).abs().max().item()
    return off / max(expected.abs().max().item(), 1e-30) if math.isfinite(off) else math.inf


def _rounding(expected: Tensor) -> float:
    if not expected.is_floating_point():
        return 0.0
    e = expected.float()
    return 2 * (e + 0.3 - 0.3 - e).abs().max().item() / max(e.abs().max().item(), 1e-30)

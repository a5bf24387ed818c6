"""How many threads: an argument, else the environment variable GPTFAST_NUM_THREADS, else all cores."""

from __future__ import annotations

import operator
import os

from ..errors import GptfastError

VARIABLE = "GPTFAST_NUM_THREADS"


def available_cores() -> int:
    """The cores this process may run on, which a container or `taskset` makes fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(num_threads: int | None = None) -> int:
    """The number of threads to use: no more than there are cores, or eight where there are fewer.

    Raises GptfastError for fewer than one, and for what is no whole number.
    """
    most = max(8, available_cores())  # more would only cost memory
    if num_threads is not None:
        try:
            wanted = operator.index(num_threads)
        except TypeError:
            raise GptfastError(f"num_threads is {num_threads!r}; it must be a whole number, at least 1") from None
        if wanted < 1:
            raise GptfastError(f"num_threads is {num_threads}; it must be at least 1")
        return min(wanted, most)
    value = os.environ.get(VARIABLE)
    if not value:
        return available_cores()
    digits = value.lstrip("0")
    if not value.isascii() or not value.isdigit() or not digits:
        raise GptfastError(f"{VARIABLE} is {value[:40]!r}; set it to a number of threads, at least 1, or unset it")
    return min(int(digits[:9]), most)

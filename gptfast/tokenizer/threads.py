"""How many threads: an argument, else the environment variable GPTFAST_NUM_THREADS, else all cores."""

from __future__ import annotations

import os

from ..errors import GptfastError

VARIABLE = "GPTFAST_NUM_THREADS"


def available_cores() -> int:
    """The cores this process may run on, which a container or `taskset` makes fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_count(num_threads: int | None = None) -> int:
    """The number of threads to use. Raises GptfastError for fewer than one, or a variable that is no number."""
    if num_threads is not None:
        if num_threads < 1:
            raise GptfastError(f"num_threads is {num_threads}; it must be at least 1")
        return num_threads
    value = os.environ.get(VARIABLE)
    if not value:
        return available_cores()
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise GptfastError(f"{VARIABLE} is {value!r}; set it to a number of threads, at least 1, or unset it")
    return int(value)

"""Fixtures for every test. Data outside the project is optional: its tests skip, and say so."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
import torch

SHARED = Path(os.environ.get("GPTFAST_SHARED", Path(__file__).parents[2] / "shared"))

if not torch.cuda.is_available():  # before Triton is imported: kernels run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")
if "TIKTOKEN_CACHE_DIR" not in os.environ and (SHARED / "tiktoken").is_dir():
    os.environ["TIKTOKEN_CACHE_DIR"] = str(SHARED / "tiktoken")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to a job in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
_cache = tempfile.TemporaryDirectory(prefix="gptfast-cache-")  # not the user's; removed when the process ends
os.environ["GPTFAST_CACHE_DIR"] = _cache.name


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real texts; set GPTFAST_SHARED to the folder that holds `data` and `tiktoken`."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real texts not found at {SHARED / 'data'}; set GPTFAST_SHARED to run this test")
    return SHARED / "data"


@pytest.fixture(scope="session")
def gpt2_vocabulary() -> None:
    """Skips where GPT-2's vocabulary is neither cached nor shared (a fresh machine without a network)."""
    if not (SHARED / "tiktoken").is_dir() and "TIKTOKEN_CACHE_DIR" not in os.environ:
        pytest.skip("GPT-2's vocabulary is not on this machine; set TIKTOKEN_CACHE_DIR to run this test")

"""The ahead-of-time gate: the launch table must fit its architectures, and the gate must see what does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from gptfast.kernels import aot

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=ENVIRONMENT)


@pytest.mark.parametrize("arch", list(aot.SHARED))
def test_rows_that_are_not_left_to_pytorch_compile_and_fit(arch):
    result = python("-m", "gptfast.kernels.aot", "--arch", arch)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{arch} forward D=64 16 bit " in result.stdout


def test_a_row_that_spills_or_loses_its_instruction_is_an_error():
    case = aot.Case("sm_90", "forward", False, 64, 2, 0, False)
    fine = aot.Report(128, 0, 65536, ("wgmma", "tma"))
    assert not list(aot.complaints(case, fine, ["wgmma", "tma"]))
    spills = aot.Report(255, 8, 65536, ("wgmma", "tma"))
    assert list(aot.complaints(case, spills, ["wgmma"])) == ["spills 8 bytes"]
    wide = aot.Report(64, 0, 0, ("mma",), 2048)
    assert "has 2048 threads, and a block 1,024 at most" in list(aot.complaints(case, wide, []))
    big = aot.Report(128, 0, 232449, ("wgmma",))
    assert list(aot.complaints(case, big, ["wgmma"])) == ["takes 232449 bytes of shared memory of 232448"]
    assert list(aot.complaints(case, fine, ["tma", "cp.async"])) == ["no longer uses cp.async"]
    none = aot.Report(4, 0, 65536, ())  # what a kernel that takes too much tensor memory becomes
    assert "uses no matrix instruction" in list(aot.complaints(case, none, []))
    assert "is not in aot_bounds.json" in next(aot.complaints(case, fine, None))


def test_spills_are_seen():
    """Tiles of 256 keys do not fit in the registers of a warpgroup."""
    code = (
        "from gptfast.kernels import aot, attention_launch as run, launch\n"
        "run.launch_for = lambda *_: launch.Launch(128, 256, 4, 2, tma=True)\n"
        "print(aot.examine(aot.Case('sm_90', 'forward', False, 128, 2, 0, False)).spills)"
    )
    assert int(python("-c", code).stdout) > 100

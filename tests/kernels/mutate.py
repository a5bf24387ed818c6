"""Deliberate faults in the kernels, each of which the tests must catch.

    python tests/kernels/mutate.py [--only NAME ...]

A fault is a replacement in a copy of kernels/; the tests of that kernel run against the copy until one fails. Run it
after a change in a kernel or its tests. The exit status is 1 where a fault is not noticed or no longer applies.
"""
# ruff: noqa: E501 - a table

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORWARD, BACKWARD, TILES = "attention_forward.py", "attention_backward.py", "attention_tiles.py"
ATTENTION = ("test_attention.py",)
DECODE = ("test_decode_attention.py",)

# name -> (file, what is there, what takes its place, the tests that must notice)
FAULTS = {
    "mask off by one": (FORWARD, "seen = columns[None, :] <= position", "seen = columns[None, :] < position", ATTENTION),
    "mask of the backward off by one": (BACKWARD, "<= rows[None, :] + shift", "< rows[None, :] + shift", ATTENTION),
    "diagonal one tile late": (TILES, "(start + shift + 1) // BN * BN", "(start + shift + BM) // BN * BN", ATTENTION),
    "aligned at the top": (FORWARD, "position = rows + shift", "position = rows", ATTENTION),
    "scale dropped": (BACKWARD, "store_tile(dk, dk_acc * scale", "store_tile(dk, dk_acc", ATTENTION),
    "scale dropped from dq": (BACKWARD, "store_tile(dq, acc * scale", "store_tile(dq, acc", ATTENTION),
    "stride of another tensor": (FORWARD, "stride_vb, stride_vt, stride_vh, Tk", "stride_kb, stride_kt, stride_kh, Tk", ATTENTION),
    "stride of the gradient": (BACKWARD, "h, stride_gb, stride_gt, stride_gh, Tq, D, BM, BD, TMA", "h, stride_qb, stride_qt, stride_qh, Tq, D, BM, BD, TMA", ATTENTION),
    "output not rescaled": (FORWARD, "acc = acc * alpha[:, None]", "acc = acc", ATTENTION),
    "sum not rescaled": (FORWARD, "l = l * alpha + tl.sum(p, 1)", "l = l + tl.sum(p, 1)", ATTENTION),
    "nothing seen yet": (FORWARD, 'base = tl.where(m_new == -float("inf"), 0.0, m_new)', "base = m_new", ATTENTION),
    "dropout not repeated for dq": (BACKWARD, "keep(seed, pair, row, start, threshold, BM, BN), dp * rescale, 0.0)", "keep(seed, pair, row, start, threshold, BM, BN), dp * rescale, dp * rescale)", ATTENTION),
    "dropout not repeated for dv": (BACKWARD, "dropped = tl.where(kept, pt * rescale, 0.0)", "dropped = pt * rescale", ATTENTION),
    "dropout of another head": (TILES, "zero + pair, zero, 7)", "zero, zero, 7)", ATTENTION),
    "survivors not scaled": (FORWARD, "acc = acc * (rescale / l)", "acc = acc * (1 / l)", ATTENTION),
    "window off by one": (TILES, "tl.maximum(position - WINDOW + 1, 0)", "tl.maximum(position - WINDOW, 0)", ATTENTION),
    "window of the backward off by one": (TILES, "tl.minimum(position + WINDOW, T)", "tl.minimum(position + WINDOW - 1, T)", ATTENTION),
    "documents leak": (TILES, "first = tl.maximum(first, tl.load(low", "first = tl.minimum(first, tl.load(low", ATTENTION),
    "documents leak backward": (TILES, "last = tl.minimum(last, tl.load(high", "last = tl.maximum(last, tl.load(high", ATTENTION),
    "first tile of a window skipped": (TILES, "BN) * BN\n        whole = tl.minimum(whole, diagonal)", "BN) * BN\n        whole = tl.minimum(whole, diagonal)\n        begin = whole", ATTENTION),
    "delta left out": (BACKWARD, "ds = p * (dp - delta[:, None])", "ds = p * dp", ATTENTION),
    "heads of another group": (FORWARD, "h // G, stride_vb", "h % (1 if G == 1 else 2) * 0, stride_vb", ATTENTION),
    "log-sum-exp in base 2": (FORWARD, "total = m + tl.log(l) if WIDE", "total = m + tl.log2(l) if WIDE", ATTENTION),
    "32-bit offsets": (TILES, "tl.cast(row, tl.int64) * stride_t", "tl.cast(row, tl.int32) * stride_t", ATTENTION),
    "dq of keys past the end": (BACKWARD, "tl.cdiv(tl.maximum(start + BN - 1 - shift, 0), BM) * BM", "tl.cdiv(tl.maximum(tl.minimum(start + BN, Tk) - 1 - shift, 0), BM) * BM", ATTENTION),
    "one pass without its last rows": (BACKWARD, "mask=(rows < Tq)[:, None] & (width < D)[None, :]", "mask=(rows < Tq - 1)[:, None] & (width < D)[None, :]", ATTENTION),
    "values past the length": ("decode.py", "stride_vh, end, D", "stride_vh, S, D", DECODE),
    "parts nobody wrote": ("decode.py", "live = tl.cdiv(length - first, tl.maximum(step, 1))", "live = splits", DECODE),
    "parts not rescaled": ("decode.py", "l = l * alpha + tl.sum(w * l_s, 0)", "l = l + tl.sum(w * l_s, 0)", DECODE),
    "a position too far": ("decode.py", "position = length - Tq + rows // G", "position = length - Tq + 1 + rows // G", DECODE),
    "window of decoding off by one": ("decode.py", "j > position[:, None] - WINDOW", "j >= position[:, None] - WINDOW", DECODE),
}  # fmt: skip


def noticed(fault: tuple[str, str, str, tuple[str, ...]]) -> str | None:
    """The test that fails, or None; raises ValueError where the fault does not apply."""
    file, old, new, tests = fault
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "gptfast")  # before the installed one on the path
        package.mkdir()
        for entry in (ROOT / "gptfast").iterdir():
            if entry.name != "kernels":
                (package / entry.name).symlink_to(entry)
        shutil.copytree(ROOT / "kernels", package / "kernels")
        text = (package / "kernels" / file).read_text(encoding="utf-8")
        if old not in text:
            raise ValueError(f"{file} no longer holds {old!r}")
        (package / "kernels" / file).write_text(text.replace(old, new), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
        command += [str(ROOT / "tests/kernels" / test) for test in tests]
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    failed = [line for line in result.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if failed:
        return failed[0].split("::")[-1].split(" - ")[0]
    return "the process died" if result.returncode < 0 else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(FAULTS), choices=list(FAULTS), metavar="NAME")
    missed = 0
    for name in parser.parse_args().only:
        start = time.perf_counter()
        try:
            test = noticed(FAULTS[name])
        except ValueError as error:
            test, name = None, f"{name} ({error})"
        missed += test is None
        print(f"{name:34} {test or 'NOT NOTICED'}  {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{missed} not noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

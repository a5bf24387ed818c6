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
NORM, GELU, EMBED, LOSS = ("test_norm.py",), ("test_activation.py",), ("test_embed.py",), ("test_loss.py",)
TORCH = ("test_rows_torch.py",)

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
    "mean over the padded width": ("norm.py", "mu = tl.sum(v, 1) / C", "mu = tl.sum(v, 1) / BN", NORM),
    "variance of the padding": ("norm.py", "d = tl.where(inside, v - mu[:, None], 0.0)", "d = v - mu[:, None]", NORM),
    "mean of the gradient left out": ("norm.py", "(g - (c1 / C)[:, None] - n", "(g - n", NORM),
    "residual's own gradient left out": ("norm.py", "ds + _offsets(rows, columns, stride_ds), mask=mask", "ds + _offsets(rows, columns, stride_ds), mask=rows[:, None] < 0", NORM),
    "y's gradient not zeros": ("norm.py", "torch.zeros_like(s, dtype=ctx.dtype)", "torch.ones_like(s, dtype=ctx.dtype)", NORM),
    "dw and db swapped": ("norm.py", "total(partials[:, 0], dw)\n            total(partials[:, 1], db)", "total(partials[:, 1], dw)\n            total(partials[:, 0], db)", NORM),
    "rounding of s not seen": ("norm.py", "v = rounded.to(ACC)", "v = v.to(ACC)", NORM),
    "survivors of x not scaled": ("norm.py", "v * rescale, 0.0)", "v, 0.0)", NORM),
    "dropout not repeated for dx": ("norm.py", "out = tl.where(keep(seed_value, rows, 0, threshold, BM, BN), out * rescale, 0.0)", "out = out * rescale", NORM),
    "dropout of the residual's gradient": ("norm.py", "tl.store(dresidual + _offsets(rows, columns, C), out.to", "out = tl.where(keep(seed_value, rows, 0, threshold, BM, BN), out, 0.0) if seed is not None else out\n        tl.store(dresidual + _offsets(rows, columns, C), out.to", NORM),
    "residual by the stride of x": ("norm.py", "_offsets(rows, columns, stride_r)", "_offsets(rows, columns, stride_x)", NORM),
    "dy by the stride of s": ("norm.py", "_offsets(rows, columns, stride_dy)", "_offsets(rows, columns, stride_s)", NORM),
    "only the first tile of a program": ("norm.py", "tl.range(tl.program_id(0) * BM, N, ", "tl.range(tl.program_id(0) * BM, tl.program_id(0) * BM + 1, ", NORM),
    "sums in memory overwritten": ("norm.py", "tl.load(partials, mask=columns < C, other=0.0) + row", "row", NORM),
    "sums in memory of db overwritten": ("norm.py", "tl.load(partials + C, mask=columns < C, other=0.0) + row", "row", NORM),
    "partials of the last program": ("rows.py", "mask = (rows < P)[:, None]", "mask = (rows < tl.maximum(P - 1, 1))[:, None]", NORM),
    "partials past the first tile": ("rows.py", "tl.range(0, P, BM)", "tl.range(0, tl.minimum(P, BM), BM)", GELU),
    "dropout of another row": ("rows.py", "zero + rows[:, None], zero, zero, 7)", "zero + rows[:, None] + 1, zero, zero, 7)", NORM),
    "dropout of the first columns": ("rows.py", "octets = column // 8 + tl.arange(0, BN // 8)[None, :]", "octets = tl.arange(0, BN // 8)[None, :]", EMBED),
    "words of dropout swapped": ("rows.py", "tl.join(w0 & 0xFFFF, w0 >> 16), tl.join(w1", "tl.join(w0 >> 16, w0 & 0xFFFF), tl.join(w1", NORM),
    "32-bit offsets of a norm": ("norm.py", "rows.to(tl.int64)[:, None] * stride", "rows[:, None] * stride", NORM),
    "32-bit offsets of logits": ("loss.py", "row = tl.program_id(0).to(tl.int64)", "row = tl.program_id(0)", LOSS),
    "derivative of sigma": ("activation.py", "u * (e * q * q)", "u * (e * q)", GELU),
    "derivative of the cube": ("activation.py", "0.134145", "0.044715", GELU),
    "sigma of negative numbers": ("activation.py", "p = tl.where(z < 0, e * q, q)", "p = q", GELU),
    "erf's slope not halved": ("activation.py", "tl.exp(-0.5 * u * u)", "tl.exp(-u * u)", GELU),
    "the tanh form for both": ("activation.py", "if TANH:", "if True:", GELU),
    "dbias of rows past the end": ("activation.py", "g = tl.load(dy + rows * stride_dy + columns[None, :], mask=mask, other=0.0)", "g = tl.load(dy + rows * stride_dy + columns[None, :], mask=mask, other=1.0)", GELU),
    "bias of the first columns": ("activation.py", "tl.load(bias + columns", "tl.load(bias + tl.arange(0, BN)", GELU),
    "dx by the stride of x": ("activation.py", "dy + rows * stride_dy", "dy + rows * stride_x", GELU),
    "only the first tile of dbias": ("activation.py", "tl.range(first * BM, N, programs * BM)", "tl.range(first * BM, first * BM + 1, programs * BM)", GELU),
    "stretch stops after one tile": ("embed.py", "more = tl.min(same.to(tl.int32), 0) > 0", "more = False", EMBED),
    "first of all tokens forgotten": ("embed.py", "((place == 0) | (before != token))", "(before != token)", EMBED),
    "last of a kind, not first": ("embed.py", "tl.load(tokens + tl.maximum(place - 1, 0))", "tl.load(tokens + tl.minimum(place + 1, N - 1))", EMBED),
    "start of the positions dropped": ("embed.py", "position = (start + rows % T)", "position = (rows % T)", EMBED),
    "positions by batch row": ("embed.py", "rows % T", "rows // T", EMBED),
    "dropout not repeated for tables": ("embed.py", "g = tl.where(keep(tl.load(seed), rows, column, threshold, BM, BN), g * rescale, 0.0)", "g = g * rescale", EMBED),
    "survivors of embedding not scaled": ("embed.py", "BM, BN), out * rescale, 0.0)", "BM, BN), out, 0.0)", EMBED),
    "a token that does not exist": ("embed.py", "exists[:, None], out, float(\"nan\")", "exists[:, None], out, 0.0", EMBED),
    "gradient of a token before the table": ("embed.py", "& (token >= 0) & (token < V):", "& (token < V):", EMBED),
    "ignored targets counted": ("chunked.py", "count = (targets != ignore_index).sum()", "count = (targets == targets).sum()", LOSS),
    "nothing left is infinite": ("chunked.py", "count.clamp(min=1)", "count", LOSS),
    "smoothing over the padded width": ("loss.py", "(m - plain_sum / V)", "(m - plain_sum / (tl.cdiv(V, BN) * BN))", LOSS),
    "smoothing of the padding's gradient": ("loss.py", "out -= smoothing / V * scale", "out -= smoothing / (tl.cdiv(V, BN) * BN) * scale", LOSS),
    "target not smoothed": ("loss.py", "tl.where(columns == target, (1 - smoothing) * scale, 0.0)", "tl.where(columns == target, scale, 0.0)", LOSS),
    "half of z-loss": ("loss.py", "(1 + 2 * z_loss * ", "(1 + z_loss * ", LOSS),
    "logits seen not rescaled": ("loss.py", "l = l * tl.exp(m - base)", "l = l", LOSS),
    "no class seen yet": ("loss.py", "base = tl.where(m_new == -float(\"inf\"), 0.0, m_new)", "base = m_new", LOSS),
    "gradient of ignored rows": ("loss.py", "out = tl.where(tl.where(used, columns < V, False), out, 0.0)", "out = tl.where(columns < V, out, 0.0)", LOSS),
    "a target that does not exist": ("loss.py", "loss = tl.where(exists, loss, float(\"nan\"))", "loss = loss", LOSS),
    "upstream of the first row": ("loss.py", "upstream + row * stride_u", "upstream", LOSS),
    "last chunk left out": ("chunked.py", "for start in range(0, N, rows):", "for start in range(0, max(N - rows, 1), rows):", LOSS),
    "dW in 16 bits": ("chunked.py", "if needs_w else 0, dtype=torch.promote_types(x.dtype, torch.float32))", "if needs_w else 0, dtype=x.dtype)", LOSS),
    "upstream of the first chunk": ("chunked.py", "upstream=None if upstream is None else upstream[part]", "upstream=upstream", LOSS),
    "loss scale in 16 bits": ("chunked.py", "target.copy_(source * scale)", "target.copy_(source.to(dtype) * scale.to(dtype))", LOSS),
    "autocast not followed": ("linear_loss.py", "x, weight = autocast(x, weight)", "autocast(x, weight)", TORCH),
    "a seed of its own when repeated": ("norm.py", "ctx.save_for_backward(*output[1:], weight, seed)", "ctx.save_for_backward(*output[1:], weight, seed if seed is None else seed + 1)", TORCH),
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

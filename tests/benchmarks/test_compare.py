"""`gptfast bench compare` on small result files made here: what counts as slower, and what the peers say of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from gptfast.benchmarks import compare

from gptfast.errors import GptfastError

Row = dict[str, Any]


def row(form: str = "gptfast", ms: float = 10.0, spread: float = 0.01, **changed: Any) -> Row:
    return {
        "section": "kernels", "case": "gelu forward", "shape": "N=64 C=32", "dtype": "bfloat16", "form": form,
        "ms": ms, "ms20": (1 - spread) * ms, "ms80": (1 + spread) * ms, "samples": 5, "rate": 100 / ms, "unit": "GB/s",
        "share": None, "of": None, "peak_mb": None, "error": 0.001, "right": True if form == "gptfast" else None,
        "ratio": 1.0,
    } | changed  # fmt: skip


def failed(form: str = "gptfast") -> Row:
    labels = {key: row()[key] for key in ("section", "case", "shape", "dtype")}
    return labels | {"form": form, "failed": "RuntimeError: out of order"}


def run(tmp_path: Path, a: list[Row], b: list[Row], **machine: Any) -> int:
    """The exit status; `machine` is what the second file says of its machine."""
    about = {"cpu": "A Processor", "cores": 4, "threads": 2, "versions": {"torch": "2.11.0", "gptfast": "0.1.0"}}
    for name, rows, says in (("a", a, about), ("b", b, about | machine)):
        found = {"schema": 1, "machine": says, "ceilings": {}, "options": {"quick": False}, "rows": rows}
        (tmp_path / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    return compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")])


@pytest.mark.parametrize(
    ("a", "b", "status", "counts"),
    [
        (row(ms=10.0), row(ms=11.0), 1, "1 slower"),
        (row(ms=11.0), row(ms=10.0), 0, "1 faster"),
        (row(ms=10.0), row(ms=10.25), 0, "0 slower"),  # beyond the spread, but under 3 %
        (row(ms=10.0), row(ms=11.0, spread=0.2), 0, "0 slower"),  # over 3 %, but within the spread of B
        (row(ms=10.0, spread=0.2), row(ms=11.0), 0, "0 slower"),  # and of A
        (row(ms=11.0), row(ms=10.0, spread=0.2), 0, "0 faster"),
        (row(), row(right=False, error=0.5), 1, "1 WRONG"),
        (row(right=False), row(right=False, ms=30.0), 0, "0 WRONG"),  # it was wrong before
        (row(), failed(), 1, "1 failed"),
        (failed(), failed(), 0, "0 failed"),
        (failed(), row(), 0, "1 mended"),
        (row(right=False), row(), 0, "1 mended"),
    ],
)
def test_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str], a: Row, b: Row, status: int, counts: str) -> None:
    assert run(tmp_path, [a], [b]) == status
    assert counts in capsys.readouterr().out.splitlines()[-1]


def test_a_new_row_that_is_wrong_or_fails_counts(tmp_path: Path) -> None:
    other = row(case="other")
    assert run(tmp_path, [other], [other, row()]) == 0
    assert run(tmp_path, [other], [other, failed()]) == 1
    assert run(tmp_path, [other], [other, row(right=False)]) == 1


def test_peers_are_no_regression_but_tell_what_the_machine_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peers = [row(f"peer {i}", ms) for i, ms in enumerate((1.0, 2.0, 3.0))]
    slowed = [row(f"peer {i}", ms) for i, ms in enumerate((0.9, 2.4, 30.0))]
    assert run(tmp_path, [row(), *peers], [row(), *slowed]) == 0
    assert "peers took 1.20 of their time before (median of 3 rows)" in capsys.readouterr().out

    assert run(tmp_path, [row(), *peers], [row(ms=12.0), *slowed]) == 1
    assert "1 of 1 slower rows are no slower than the peers" in capsys.readouterr().out
    assert run(tmp_path, [row(), *peers], [row(ms=15.0), *slowed]) == 1
    assert "no slower than the peers" not in capsys.readouterr().out
    assert run(tmp_path, [row()], [row()]) == 0
    assert "no row of a peer is in both files" in capsys.readouterr().out


def test_rows_of_one_file_alone_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, [row(), row(shape="N=1")], [row(), row("new form")]) == 0
    out = capsys.readouterr().out
    assert f"only in {tmp_path / 'a.json'}: kernels, gelu forward, N=1, bfloat16, gptfast\n" in out
    assert f"only in {tmp_path / 'b.json'}: kernels, gelu forward, N=64 C=32, bfloat16, new form\n" in out


def test_another_machine_or_other_versions_are_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, [row()], [row()])
    assert "warning" not in capsys.readouterr().out
    run(tmp_path, [row()], [row()], cpu="Another", threads=8, versions={"torch": "2.12.0", "gptfast": "0.2.0"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "warning: cpu differs: A Processor, then Another",
        "warning: threads differs: 2, then 8",
        "warning: torch differs: 2.11.0, then 2.12.0",
    ]


def test_without_rich_the_same_figures_in_plain_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert run(tmp_path, [row(), row("eager", 5.0)], [row(ms=20.0), row("eager", 5.0)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert ["gptfast", "10", "20", "2.00", "1.0e-03", "1.0e-03", "slower"] in [line.split()[-7:] for line in lines]
    assert not any("│" in line for line in lines)


def test_files_that_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(GptfastError, match="no row in common"):
        run(tmp_path, [row()], [row(case="other")])
    with pytest.raises(GptfastError, match="a.json has two rows of kernels, gelu forward"):
        run(tmp_path, [row(), row()], [row()])
    (tmp_path / "a.json").write_text('{"rows": []}', encoding="utf-8")
    with pytest.raises(GptfastError, match="a.json has schema None"):
        compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    with pytest.raises(GptfastError, match="cannot read .*missing.json"):
        compare.main([str(tmp_path / "missing.json"), str(tmp_path / "b.json")])

"""`gptfast bench report` on small result files made here: what it says, what it draws, what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from gptfast.benchmarks import report

from gptfast.errors import GptfastError

pytest.importorskip("matplotlib")
Row = dict[str, Any]


def row(form: str = "gptfast", ms: float = 2.0, **changed: Any) -> Row:
    """A row of the schema in benchmarks/suite.py."""
    return {
        "section": "kernels", "case": "gelu forward", "shape": "N=64 C=32", "dtype": "bfloat16", "form": form,
        "ms": ms, "ms20": 0.9 * ms, "ms80": 1.2 * ms, "samples": 5, "rate": 100 / ms, "unit": "GB/s",
        "share": 0.5 / ms, "of": "copy", "peak_mb": 1.0, "error": 0.001, "right": True if form == "gptfast" else None,
        "ratio": 1.0,
    } | changed  # fmt: skip


def write(folder: Path, name: str, rows: list[Row], date: str = "2026-03-01", **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "slug": folder.name, "cpu": "A Processor", "cores": 4, "units": ["AVX2"], "threads": 2, "load": 0.25,
        "date": date, "commit": name, "changed": False, "versions": {"torch": "2.11.0"},
    }  # fmt: skip
    found = {
        "schema": 1, "machine": about, "ceilings": {"copy": 1e11, "matmul bf16": 6e12, "launch": 1e-6},
        "options": {"peers": True, "quick": False, "dry": False, "only": []} | options, "rows": rows,
    }  # fmt: skip
    path = folder / f"{date}-{name}.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def run(tmp_path: Path) -> str:
    (tmp_path / "docs").mkdir(exist_ok=True)
    assert report.main(["--results", str(tmp_path / "results"), "--out", str(tmp_path / "docs")]) == 0
    return (tmp_path / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def cells(text: str, start: str) -> list[str]:
    """The cells of the one line of a table that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_line_has_the_figures_of_the_file_and_how_often_as_fast_each_peer(tmp_path: Path) -> None:
    write(tmp_path / "results/m", "abc", [row(ms=2.0), row("eager", 5.0), row("compiled", 1.0)])
    text = run(tmp_path)
    assert cells(text, "gelu forward") == [
        "gelu forward", "N=64 C=32", "bfloat16", "2 (1.8 to 2.4)", "50 GB/s", "25% of copy", "1.0e-03",
        "eager 2.50, compiled 0.50",
    ]  # fmt: skip
    write(
        tmp_path / "results/m", "abc", [row("gptfast packed", 1234.5, rate=34567.8, share=0.0123), row("eager", 2469.0)]
    )
    assert cells(run(tmp_path), "gelu forward (packed)")[3:] == [
        "1,234 (1,111 to 1,481)", "34,568 GB/s", "1.2% of copy", "1.0e-03", "eager 2.00",
    ]  # fmt: skip
    assert "## A Processor, 4 cores" in text
    (about,) = [line for line in text.splitlines() if line.startswith("- [2026-03-01-abc.json]")]
    for fact in ("2026-03-01", "commit abc", "AVX2", "2 threads", "load average 0.25", "copy 100 GB/s", "torch 2.11.0"):
        assert fact in about


def test_every_link_leads_to_a_file(tmp_path: Path) -> None:
    write(tmp_path / "results/m", "abc", [row(), row("eager", 5.0)])
    links = re.findall(r"\]\(([^)]+)\)", run(tmp_path))
    assert sorted(Path(link).name for link in links) == ["2026-03-01-abc.json", "share.png"]
    for link in links:
        assert (tmp_path / "docs" / link).is_file()


def test_a_section_of_a_newer_file_replaces_that_of_an_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "results/m"
    write(folder, "aaa", [row(ms=7.0), row(ms=3.0, section="train", case="step")], "2026-03-02")
    write(folder, "zzz", [row(ms=9.0), row(ms=4.0, case="gone")], "2026-03-01")  # later by name, older by date
    text = run(tmp_path)
    assert cells(text, "gelu forward")[3].startswith("7 ")
    assert cells(text, "step")[3].startswith("3 ")
    assert "gone" not in text and "zzz" not in text


def test_a_file_of_some_cases_alone_replaces_those(tmp_path: Path) -> None:
    folder = tmp_path / "results/m"
    write(folder, "aaa", [row(ms=7.0), row(ms=3.0, case="kept")], "2026-03-01")
    write(folder, "bbb", [row(ms=6.0)], "2026-03-02", only=["gelu"])
    text = run(tmp_path)
    assert (cells(text, "gelu forward")[3][0], cells(text, "kept")[3][0]) == ("6", "3")
    assert "Measured 2026-03-01 at aaa, then 2026-03-02 at bbb." in text


def test_what_failed_or_was_wrong_is_named(tmp_path: Path) -> None:
    labels = {"section": "kernels", "case": "gelu forward", "shape": "N=1", "dtype": "float32"}
    rows = [
        row(right=False, error=0.7), row(case="broken", form="eager"),
        {**labels, "case": "broken", "form": "gptfast", "failed": "RuntimeError: a | b"},
        {**labels, "form": "flash-attn", "failed": "ImportError: none\nhere"},
    ]  # fmt: skip
    write(tmp_path / "results/m", "abc", rows)
    text = run(tmp_path)
    assert cells(text, "gelu forward")[6] == "7.0e-01 **WRONG**"
    assert cells(text, "broken")[3] == "**failed**"
    assert "- `gptfast`: RuntimeError: a \\| b (broken, N=1)" in text
    assert "- `flash-attn`: ImportError: none here (gelu forward, N=1)" in text


def test_only_what_lies_between_the_markers_is_rewritten(tmp_path: Path) -> None:
    write(tmp_path / "results/m", "abc", [row()])
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs/benchmarks.md"
    page.write_text(f"# By hand\n\nabove\n{report.BEGIN}\nold\n{report.END}\nbelow\n", encoding="utf-8")
    text = run(tmp_path)
    assert text.startswith(f"# By hand\n\nabove\n{report.BEGIN}\n") and text.endswith(f"\n{report.END}\nbelow\n")
    assert "old" not in text and "gelu forward" in text


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    rows = attention() + [row("eager", 5.0), row()]
    write(tmp_path / "results/m", "abc", rows)
    seen = []
    for _ in range(2):
        run(tmp_path)
        seen.append({path.name: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()})
    assert seen[0] == seen[1]
    assert {"share.png", "lengths.png", "roofline.png", "benchmarks.md"} <= seen[0].keys()
    assert len(list(tmp_path.rglob("*"))) == len(seen[0]) + 3  # three folders, and nothing temporary


def attention() -> list[Row]:
    """Two lengths of two forms, on a machine that reaches 6 TFLOP/s."""
    sizes = [(T, 2.0 * T * T * 64) for T in (256, 512)]
    return [
        row(form, ms, case="attention forward", shape=f"B=1 T={T} H=2 D=32", unit="TFLOP/s", rate=flops / ms / 1e9,
            of="matmul bf16", share=flops / ms / 6e9, intensity=T / 4)
        for T, flops in sizes for form, ms in (("gptfast", 1.0 + T / 512), ("sdpa", 3.0))
    ]  # fmt: skip


def test_the_plots_show_the_rows() -> None:
    from gptfast.benchmarks import plots

    memory = [row(share=0.25, intensity=2.0), row("eager", 5.0, share=0.125, intensity=2.0)]
    rows = [*attention(), *memory]
    ceilings = {"copy": 1e11, "matmul bf16": 6e12}
    figure = plots.lengths(rows, ceilings)
    assert figure is not None
    lines = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in figure.axes[0].lines[:2]}
    own = [r["rate"] for r in rows if r["form"] == "gptfast" and r["case"] == "attention forward"]
    assert list(figure.axes[0].lines[1].get_ydata()) == own and set(lines) == {(256, 512)}
    assert figure.axes[0].get_xlabel().startswith("T") and figure.axes[0].get_ylabel() == "TFLOP/s"

    figure = plots.shares(rows)
    assert figure is not None
    assert [bar.get_width() for bar in figure.axes[0].patches] == [
        r["share"] for r in rows if r["form"] == "gptfast"
    ]  # fmt: skip
    assert 0.125 in [line.get_xdata()[0] for line in figure.axes[0].lines]

    figure = plots.roofline(rows, ceilings)
    assert figure is not None
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[0].lines if len(line.get_xdata()) == 1}
    expected = {(r["intensity"], r["rate"]) for r in attention()}
    expected |= {(2.0, 2.0 * 0.25 * 0.1), (2.0, 2.0 * 0.125 * 0.1)}  # FLOP a byte, of 0.1 TB/s
    assert {(x, round(y, 9)) for x, y in points} == {(x, round(y, 9)) for x, y in expected}


def step(**changed: Any) -> dict[str, Any]:
    """A file of benchmarks/breakdown.py, of the fields that are read."""
    model = {"n_layer": 2, "n_embd": 64, "context_length": 32}
    parts = [{"category": name, "ms": ms} for name, ms in (("matmul", 6.0), ("attention", 3.0), ("gaps", -0.5))]
    machine = {"cpu": "A Processor", "cores": 4, "date": "2026-03-05", "commit": "fff"}
    return {
        "machine": machine, "model": model, "batch": 4, "dtype": "bfloat16", "step_ms": 8.5, "categories": parts
    } | changed  # fmt: skip


def test_a_step_is_put_together_from_its_parts(tmp_path: Path) -> None:
    from gptfast.benchmarks import plots

    figure = plots.breakdown([step()])
    assert figure is not None
    bars = [(bar.get_x(), bar.get_width()) for bar in figure.axes[0].patches]
    assert bars == [(0.0, 6.0), (6.0, 3.0), (9.0, 0.0)]
    assert "ms" in figure.axes[0].get_xlabel()

    write(tmp_path / "results/m", "abc", [row()])
    (tmp_path / "results/m/step.json").write_text(json.dumps(step()), encoding="utf-8")
    text = run(tmp_path)
    assert "- [step.json](../results/m/step.json): a training step. 2026-03-05, commit fff" in text
    assert "(../results/m/breakdown.png)" in text and (tmp_path / "results/m/breakdown.png").is_file()


def test_plots_that_the_rows_are_not_enough_for_are_left_out() -> None:
    from gptfast.benchmarks import plots

    one = [r for r in attention() if "T=256" in r["shape"]]
    assert plots.lengths(one, {}) is None  # a single length
    assert plots.roofline([row()], {"copy": 1e11, "matmul bf16": 6e12}) is None  # no intensity
    assert plots.shares([row(share=None)]) is None


def test_files_of_another_form_and_dry_runs_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results/m"
    write(folder, "abc", [row()])
    write(folder, "dry", [row(case="meaningless")], "2026-03-09", dry=True)
    (folder / "old.json").write_text('{"rows": {}, "machine": "x"}', encoding="utf-8")
    assert "meaningless" not in run(tmp_path)
    assert "2 files have another form" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda found: "{", "bad.json is not valid JSON"),
        (lambda found: json.dumps(found | {"schema": 7}), "bad.json has schema 7"),
        (lambda found: json.dumps(found | {"rows": None}), "bad.json is damaged: it has no 'rows'"),
        (
            lambda found: json.dumps(found | {"rows": [{"section": "x"}]}),
            "bad.json is damaged: row 1 has no usable 'case'",
        ),
        (lambda found: json.dumps(found | {"rows": [row(), row(ms20=None)]}), "row 2 has no usable 'ms20'"),
        (lambda found: json.dumps(found | {"rows": [row() | {"ms": 0}]}), "row 1 has no usable 'ms'"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any, says: str) -> None:
    good = write(tmp_path / "results/m", "abc", [row()])
    bad = good.with_name("bad.json")
    bad.write_text(damage(json.loads(good.read_text(encoding="utf-8"))), encoding="utf-8")
    with pytest.raises(GptfastError, match=re.escape(says)):
        run(tmp_path)
    assert not (tmp_path / "docs/benchmarks.md").exists()


def test_no_folder_no_results_no_markers(tmp_path: Path) -> None:
    with pytest.raises(GptfastError, match="no folder .*results"):
        run(tmp_path)
    (tmp_path / "results/m").mkdir(parents=True)
    with pytest.raises(GptfastError, match="has results; make some: gptfast bench"):
        run(tmp_path)
    write(tmp_path / "results/m", "abc", [row()])
    page = tmp_path / "docs/benchmarks.md"
    for text in ("# By hand\n", f"{report.END}\n{report.BEGIN}\n", f"{report.BEGIN}\n{report.BEGIN}\n{report.END}\n"):
        page.write_text(text, encoding="utf-8")
        with pytest.raises(GptfastError, match="needs the line"):
            run(tmp_path)
        assert page.read_text(encoding="utf-8") == text
    with pytest.raises(GptfastError, match="no folder .*nowhere"):
        report.main(["--results", str(tmp_path / "results"), "--out", str(tmp_path / "nowhere")])


def test_without_matplotlib_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "results/m", "abc", [row()])
    (tmp_path / "docs").mkdir()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.delitem(sys.modules, "gptfast.benchmarks.plots", raising=False)
    monkeypatch.delattr("gptfast.benchmarks.plots", raising=False)
    with pytest.raises(GptfastError, match="matplotlib, which is not installed"):
        run(tmp_path)
    assert not list(tmp_path.rglob("*.png")) and not list((tmp_path / "docs").iterdir())

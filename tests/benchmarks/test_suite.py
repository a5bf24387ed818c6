"""The suite measures what it says: turns, fresh inputs, quantiles, ratios, the rule of errors, and forms that fail."""

import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gptfast.benchmarks import command, machine, suite, summary
from gptfast.benchmarks.suite import Case, Setup, Timed, backward, forward, measure

from gptfast.errors import GptfastError

CPU = torch.device("cpu")
RUN = Path(__file__).parents[2] / "benchmarks" / "gpu_run.sh"


def case(forms, inputs=lambda: (torch.randn(8),), **options):
    return Case("kernels", "name", "N=8", "float32", inputs, forms, work=2e6, unit="MB/s", **options)


def by_form(rows):
    return {row["form"]: row for row in rows}


def test_median_and_quantiles_of_all_rounds_and_the_ratio_to_ours():
    seconds = iter([9, 9, 0.010, 0.020, 0.030, 0.040, 0.050])  # two calls before the timing

    forms = {
        "gptfast": lambda x: lambda: Timed(next(seconds)),
        "peer": lambda x: lambda: Timed(0.060),
    }
    rows = by_form(measure(case(forms, of="copy", need=3e6), Setup(CPU, {"copy": 1e9}, seconds=0)))
    ours = rows["gptfast"]
    assert ours["ms"] == pytest.approx(30) and ours["samples"] == 5
    expected = statistics.quantiles([10, 20, 30, 40, 50], n=5, method="inclusive")
    assert (ours["ms20"], ours["ms80"]) == (pytest.approx(expected[0]), pytest.approx(expected[3]))
    assert ours["rate"] == pytest.approx(2 / 0.030) and ours["unit"] == "MB/s"
    assert ours["share"] == pytest.approx(3e6 / 0.030 / 1e9) and ours["of"] == "copy"
    assert ours["ratio"] == 1 and rows["peer"]["ratio"] == pytest.approx(2)


def test_forms_take_turns_on_the_same_fresh_inputs():
    seen = []

    def form(name):
        def prepare(x):
            seen.append((name, x))
            return lambda: Timed(1.0)

        return prepare

    measure(case({"gptfast": form("a"), "peer": form("b")}), Setup(CPU, seconds=0, rounds=3))
    assert [name for name, _ in seen] == ["a", "b"] * 4  # once before the timing
    values = [x for _, x in seen]
    assert all(torch.equal(values[i], values[i + 1]) for i in range(0, 8, 2))
    assert not any(torch.equal(values[i], values[i + 2]) for i in range(0, 6, 2))


def test_a_call_is_timed_and_its_preparation_is_not():
    import time

    def prepare(x):
        time.sleep(0.05)
        return lambda: time.sleep(0.01)

    (row,) = measure(case({"gptfast": prepare}), Setup(CPU, seconds=0))
    assert 10 <= row["ms20"] <= row["ms"] < 50


@pytest.mark.parametrize(
    ("off", "yardstick", "right"),
    [(0.0, 0.0, True), (1e-3, 0.0, False), (1e-3, 0.9e-3, True), (1e-3, 0.4e-3, False), (math.nan, 1.0, False)],
)
def test_ours_may_be_off_by_twice_what_the_yardstick_is(off, yardstick, right):
    x = torch.linspace(-1, 1, 8)

    def plus(error):
        return forward(lambda x: x + error)

    forms = {"gptfast": plus(off), "eager": plus(yardstick), "peer": plus(5.0)}
    rows = by_form(
        measure(case(forms, lambda: (x, x), reference=lambda x, _: x, yardstick="eager"), Setup(CPU, seconds=0))
    )
    assert rows["gptfast"]["right"] is right
    assert rows["peer"]["right"] is None and rows["peer"]["error"] == pytest.approx(5.0)
    if off == off:
        assert rows["gptfast"]["error"] == pytest.approx(off, abs=1e-6)


def test_an_output_of_another_shape_or_other_ids_is_wrong():
    ids = torch.arange(10)
    forms = {"gptfast": lambda x: lambda: ids + (ids == 3), "eager": lambda x: lambda: ids[:9]}
    rows = by_form(measure(case(forms, reference=lambda x: ids, yardstick="eager"), Setup(CPU, seconds=0)))
    assert rows["gptfast"]["error"] == pytest.approx(0.1) and rows["eager"]["error"] == math.inf
    forms["eager"] = lambda x: lambda: ids
    rows = by_form(measure(case(forms, reference=lambda x: ids, yardstick="eager"), Setup(CPU, seconds=0)))
    assert rows["gptfast"]["right"] is False


def test_the_rule_holds_for_each_output_and_all_are_there():
    x = torch.ones(8)
    wrong = {"gptfast": lambda x: lambda: (x + 0.1, x), "eager": lambda x: lambda: (x, x + 0.2)}
    short = {"gptfast": lambda x: lambda: (x,), "eager": lambda x: lambda: (x, x)}
    for forms in (wrong, short):
        made = case(forms, lambda: (x,), reference=lambda x: (x, x), yardstick="eager")
        assert by_form(measure(made, Setup(CPU, seconds=0)))["gptfast"]["right"] is False


def test_without_its_yardstick_nothing_is_said():
    forms = {"gptfast": lambda x: lambda: x + 1, "eager": lambda x: 1 / 0}
    rows = by_form(measure(case(forms, reference=lambda x: x, yardstick="eager"), Setup(CPU, seconds=0)))
    assert rows["gptfast"]["right"] is None and rows["gptfast"]["error"] > 0


def test_inputs_references_and_cases_that_cannot_be_made_are_rows(cases, capsys):
    good = {"gptfast": lambda x: lambda: Timed(1.0)}
    ((row,),) = suite.run(iter([case(good, inputs=lambda: 1 / 0)]), Setup(CPU, seconds=0), "kernels")
    assert "ZeroDivisionError" in row["failed"]
    rows = by_form(measure(case(good, reference=lambda x: 1 / 0), Setup(CPU, seconds=0)))
    assert rows["gptfast"]["ms"] and "ZeroDivisionError" in rows["the check"]["failed"]

    def broken():
        yield case(good)
        raise ImportError("no module")

    rows = [row for found in suite.run(broken(), Setup(CPU, seconds=0), "kernels") for row in found]
    assert rows[0]["ms"] and rows[1]["failed"] == "ImportError: no module"
    assert command.verdict(rows) == 1


def test_inputs_that_cannot_be_made_anew_cost_the_next_case_nothing():
    made = iter([(torch.ones(1),)])
    once = case({"gptfast": lambda x: lambda: Timed(1.0)}, inputs=lambda: next(made))
    good = case({"gptfast": lambda x: lambda: Timed(1.0)})
    (first,), (second,) = suite.run(iter([once, good]), Setup(CPU, seconds=0), "kernels")
    assert first["failed"].startswith("StopIteration") and second["ms"] == 1000


def test_a_gpu_that_no_longer_answers_ends_the_run_and_what_was_measured_is_kept(monkeypatch):
    def broken(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")

    monkeypatch.setattr(Setup, "on_gpu", True)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    rows = suite.run(iter([case({"gptfast": lambda x: lambda: Timed(1.0)})] * 2), Setup(CPU, seconds=0), "kernels")
    assert next(rows)[0]["ms"] == 1000
    with pytest.raises(GptfastError, match="no longer answers after 'name': RuntimeError: CUDA error: an illegal"):
        next(rows)


def test_a_form_that_fails_costs_the_others_nothing():
    calls = iter(range(100))

    def breaks_later(x):
        return lambda: Timed(1.0) if next(calls) < 3 else 1 / 0

    def breaks(x):
        raise RuntimeError("no such\nthing")

    rows = by_form(
        measure(case({"gptfast": lambda x: lambda: Timed(1.0), "a": breaks, "b": breaks_later}), Setup(CPU, seconds=0))
    )
    assert rows["gptfast"]["samples"] == 5
    assert rows["a"]["failed"] == "RuntimeError: no such" and "ZeroDivisionError" in rows["b"]["failed"]


def test_what_there_is_no_time_to_prepare_is_left_out_and_said():
    import time

    def slow(x):
        time.sleep(0.02)
        return lambda: Timed(1.0)

    rows = by_form(measure(case({"gptfast": slow, "peer": slow}), Setup(CPU, seconds=0, budget=0.01)))
    assert "ms" in rows["gptfast"] and rows["peer"]["left_out"] == "preparing the others took 0.01 s"


def test_forward_and_backward_are_autograds():
    x, w, upstream = torch.randn(4, 3), torch.randn(3), torch.randn(4, 3)
    idx = torch.tensor([1, 0])  # no gradient of ids

    def function(x, w, idx):
        return x.sin() * w + idx[0], x[:, 0]

    given = (x, w, idx, (upstream, torch.ones(4)))
    assert torch.equal(forward(function)(*given)()[0], x.sin() * w + 1)
    dx, dw = backward(function)(*given)()
    expected = upstream * x.cos() * w
    expected[:, 0] += 1
    torch.testing.assert_close(dx, expected)
    torch.testing.assert_close(dw, (upstream * x.sin()).sum(0))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of memory is Linux's count of pages")
def test_peak_memory_is_that_of_the_call():
    (row,) = measure(case({"gptfast": lambda x: lambda: torch.ones(25_000_000).sum()}), Setup(CPU, seconds=0, rounds=1))
    assert 90 < row["peak_mb"] < 120


def test_ceilings_are_of_this_machine():
    found = machine.ceilings(CPU, dry=True)
    assert set(found) == {"copy", "read", "host copy", "matmul bf16", "matmul fp32", "launch"}
    assert all(value > 0 for value in found.values())


def test_the_machine_is_described(monkeypatch):
    monkeypatch.setenv("GPTFAST_COMMIT", "abc1234")
    found = machine.describe(CPU)
    assert found["versions"]["torch"] == torch.__version__ and found["commit"] == "abc1234"
    assert re.fullmatch(r"[a-z0-9-]+", found["slug"]) and str(os.cpu_count()) in found["slug"]


@pytest.fixture
def cases(monkeypatch):
    """`gptfast bench kernels` measures these instead."""
    import types

    found = []
    module = types.SimpleNamespace(cases=lambda setup: iter(found))
    monkeypatch.setattr(command, "SECTIONS", {"kernels": ("fake",)})
    monkeypatch.setitem(sys.modules, "gptfast.benchmarks.fake", module)
    return found


def test_rows_are_written_after_each_case_with_the_machine(cases, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.json"

    def second(x):
        written.append(json.loads(path.read_text(encoding="utf-8"))["rows"])
        return lambda: Timed(2.0)

    written = []
    cases += [case({"gptfast": lambda x: lambda: Timed(1.23456789)}), case({"gptfast": second})]
    assert command.main(["kernels", "--dry", "--json", str(path)]) == 0
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert figures["schema"] == command.SCHEMA and figures["machine"]["slug"] and figures["ceilings"]["copy"] > 0
    assert [row["ms"] for row in figures["rows"]] == [1234.6, 2000.0]  # five digits
    assert len(written[0]) == 1
    assert "2 rows, 0 of gptfast failed or wrong" in capsys.readouterr().out


def test_a_folder_gets_a_file_named_by_machine_date_and_commit(cases, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFAST_COMMIT", "abc1234")
    monkeypatch.setattr(machine, "ceilings", lambda device, dry: {})
    cases.append(case({"gptfast": lambda x: lambda: Timed(1.0)}))
    assert command.main(["--json", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*/*.json")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-abc1234\.json", path.name)
    whole = path.read_bytes()
    with pytest.raises(GptfastError, match="exists"):
        command.main(["--json", str(tmp_path)])
    with pytest.raises(GptfastError, match="name a file"):
        command.main(["--json", str(tmp_path), "--dry"])
    assert path.read_bytes() == whole and command.main(["--json", str(tmp_path), "--quick"]) == 0
    assert {found.name for found in path.parent.iterdir()} == {path.name, f"{path.stem}-quick.json"}
    assert path.parent.name == machine.describe(CPU)["slug"]


@pytest.mark.parametrize("form", [lambda x: lambda: 1 / 0, lambda x: lambda: torch.ones(8)])
def test_the_exit_status_tells_of_ours_that_fail_or_are_wrong(cases, form, capsys):
    cases.append(case({"gptfast": form}, reference=lambda x: torch.zeros(8)))
    assert command.main(["--dry"]) == 1
    assert "1 of gptfast failed or wrong" in capsys.readouterr().out


def test_only_cases_that_are_named_are_measured_and_nothing_replaces_no_file(cases, tmp_path):
    cases.append(case({"gptfast": lambda x: lambda: 1 / 0}))
    path = tmp_path / "rows.json"
    path.write_text("kept", encoding="utf-8")
    assert command.main(["--dry", "--only", "other", "--json", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == "kept"


def test_errors_of_use(cases, tmp_path, monkeypatch):
    with pytest.raises(GptfastError, match="no section 'nothing'"):
        command.main(["nothing"])
    cases.append(case({"gptfast": lambda x: pytest.fail("measured before the file was known to be writable")}))
    with pytest.raises(GptfastError, match="cannot write"):
        command.main(["--dry", "--json", str(tmp_path / "missing" / "rows.json")])


def test_a_table_has_every_form(cases, capsys):
    cases.append(case({"gptfast": lambda x: lambda: Timed(0.001), "peer": lambda x: lambda: Timed(0.002)}))
    command.main(["--seconds", "0"])
    out = capsys.readouterr().out
    assert "2.00x as fast" in out and "2000 MB/s" in out


def test_the_summary_of_a_folder_names_what_is_wrong_and_needs_no_figure_of_what_was_left_out(tmp_path, capsys):
    about = {"section": "train", "case": "GPT-2 124M step, compiled", "shape": "B=32", "dtype": "bfloat16"}
    figures = {"ms": 10.0, "rate": 1e5, "unit": "tokens/s", "share": 0.4, "of": "matmul bf16", "ratio": 1.0}
    rows = [about | {"form": "gptfast"} | figures, about | {"form": "peer"} | figures | {"ms": 15.0, "ratio": 1.5}]
    rows += [about | {"form": "slow peer", "left_out": "no time"}, about | {"form": "the check", "failed": "no memory"}]
    (tmp_path / "train.json").write_text(json.dumps({"schema": 1, "rows": rows}), encoding="utf-8")
    (tmp_path / "breakdown.json").write_text("{}", encoding="utf-8")
    summary.main(tmp_path)
    out = capsys.readouterr().out
    assert "4 rows, 1 of gptfast failed or wrong" in out and "the check: no memory" in out
    assert "100,000 tokens/s, 40% of matmul bf16, 1.50x as fast as peer" in out


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_a_section_of_the_gpu_run_that_fails_does_not_stop_the_next(tmp_path):
    names = ("breakdown", "convergence")
    only = [word for name in names for word in ("--only", name)]
    environment = os.environ | {"PYTHON": "false"}
    done = subprocess.run(
        [str(RUN), "--dry", "--out", str(tmp_path / "out"), *only], capture_output=True, text=True, env=environment
    )
    said = (tmp_path / "out" / "summary.txt").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name} +exit 1", said, re.M) for name in names), done.stdout + done.stderr
    assert (tmp_path / "out" / "gpu_run.tar.gz").exists()
    late = [str(RUN), "--dry", "--seconds", "0", "--out", str(tmp_path / "late"), *only]
    subprocess.run(late, capture_output=True, env=environment)
    said = (tmp_path / "late" / "summary.txt").read_text(encoding="utf-8")
    assert all(re.search(rf"^{name} +no time was left", said, re.M) for name in names)
    refused = subprocess.run([str(RUN), "--out", str(tmp_path), "--only", "nothing"], capture_output=True, text=True)
    assert refused.returncode == 2 and "no section is named" in refused.stderr

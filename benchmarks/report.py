"""`gptfast bench report`: the tables of docs/benchmarks.md and its plots, from the files of benchmarks/results alone.

Of each machine, a folder there, the newest file that has a section gives that section's rows; a file of a run that was
told `--only` some cases replaces those alone. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptfast.errors import GptfastError
from gptfast.files import atomic_path, atomic_write, read_json

from .command import SCHEMA, reached_text
from .suite import Row

BEGIN = "<!-- made by gptfast bench report: begin -->"
END = "<!-- made by gptfast bench report: end -->"
LABELS = ("section", "case", "shape", "dtype", "form")
FIGURES = ("ms", "ms20", "ms80", "rate")
STEP = {"machine", "model", "batch", "dtype", "step_ms", "categories"}  # what a file of breakdown.py has


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="gptfast bench report", description=__doc__.splitlines()[0])
    found.add_argument("--results", type=Path, default=Path("benchmarks/results"), metavar="FOLDER",
                       help="of MACHINE/DATE-COMMIT.json; plots go beside them (default: %(default)s)")  # fmt: skip
    found.add_argument("--out", type=Path, default=Path("docs"), metavar="FOLDER",
                       help="of benchmarks.md, of which only what is between the markers is rewritten (default: "
                       "%(default)s)")  # fmt: skip
    return found


def main(argv: list[str]) -> int:
    options = parser().parse_args(argv)
    machines, ignored = collect(options.results)
    page = options.out / "benchmarks.md"
    before, after = _around(page)
    try:
        from .plots import draw
    except ImportError:
        raise GptfastError("the plots need matplotlib, which is not installed; run: pip install matplotlib") from None
    text, count = [], 0
    for machine in machines:
        drawn = draw(list(machine.rows()), machine.ceilings, [machine.files[name] for name in machine.steps.values()])
        for name, (_, figure) in drawn.items():
            with atomic_path(machine.folder / name) as temporary:  # its bytes tell no version and no date
                figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
        link = Path(os.path.relpath(machine.folder, options.out)).as_posix()
        text += [*describe(machine, {name: caption for name, (caption, _) in drawn.items()}, link), ""]
        count += len(drawn)
    with atomic_write(page, "w") as file:
        file.write("\n".join([*before, BEGIN, "", *text, END, *after]) + "\n")
    print(f"{page}: {sum(len(m.files) for m in machines)} files of {len(machines)} machines, {count} plots")
    if ignored:
        print(f"{len(ignored)} files have another form, or are of dry runs, and were left out")
    return 0


@dataclass
class Machine:
    """What is known of a machine: `sections[section][case, shape, dtype]` are rows, `sources[section]` their files."""

    folder: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # by name, the newest last
    sections: dict[str, dict[tuple[str, str, str], list[Row]]] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)  # by what was trained, the file of its breakdown
    ceilings: dict[str, float] = field(default_factory=dict)  # of the newest file that has them

    def rows(self) -> Iterator[Row]:
        for cases in self.sections.values():
            for rows in cases.values():
                yield from rows

    def add(self, name: str, found: dict[str, Any]) -> None:
        """A file that is newer than all before."""
        self.files[name] = found
        if "categories" in found:
            self.steps[str((found["model"], found["batch"], found["dtype"]))] = name
            return
        self.ceilings = found["ceilings"]
        sections: dict[str, dict[tuple[str, str, str], list[Row]]] = {}
        for row in found["rows"]:
            cases = sections.setdefault(row["section"], {})
            cases.setdefault((row["case"], row["shape"], row["dtype"]), []).append(row)
        for section, cases in sections.items():
            if not found["options"].get("only"):
                self.sections[section], self.sources[section] = {}, []
            self.sections.setdefault(section, {}).update(cases)
            self.sources.setdefault(section, []).append(name)


def load(path: Path) -> dict[str, Any]:
    """A file that `gptfast bench --json` wrote. Raises GptfastError that names the file and what is wrong with it."""
    return _checked(path, read_json(path))


def _checked(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    if found.get("schema") != SCHEMA:
        raise GptfastError(
            f"{path} has schema {found.get('schema')!r}, and this gptfast reads {SCHEMA}; measure again with "
            "`gptfast bench --json`, or read it with the version that wrote it"
        )
    kinds = {"machine": dict, "ceilings": dict, "options": dict, "rows": list}
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind):
            raise GptfastError(f"{path} is damaged: it has no {key!r}; measure again with `gptfast bench --json`")
    found["rows"] = [row for row in found["rows"] if not (isinstance(row, dict) and "left_out" in row)]
    for i, row in enumerate(found["rows"]):
        wrong = next(_missing(row), None)
        if wrong is not None:
            raise GptfastError(f"{path} is damaged: row {i + 1} has no usable {wrong!r}; measure again")
    return found


def _missing(row: Any) -> Iterator[str]:
    """What a row needs and lacks."""
    row = row if isinstance(row, dict) else {}
    yield from (key for key in LABELS if not isinstance(row.get(key), str))
    if "failed" not in row:
        yield from (key for key in FIGURES if not isinstance(row.get(key), (int, float)) or row[key] <= 0)
        yield from (key for key in ("unit",) if not isinstance(row.get(key), str))


def collect(folder: Path) -> tuple[list[Machine], list[Path]]:
    """The machines of a folder of results, and the files that were left out: of another form, or of dry runs."""
    if not folder.is_dir():
        raise GptfastError(f"no folder {folder}; run this in the checkout, or name the folder with --results")
    machines, ignored = [], []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        machine, found = Machine(place), []
        for path in sorted(place.glob("*.json")):
            value = read_json(path)
            if not STEP <= value.keys() and ("schema" not in value or _checked(path, value)["options"].get("dry")):
                ignored.append(path)
            else:
                found.append((str(value["machine"].get("date")), path.name, value))
        for _, name, value in sorted(found, key=lambda x: x[:2]):
            machine.add(name, value)
        if machine.sections or machine.steps:
            machines.append(machine)
    if not machines:
        raise GptfastError(f"no file in {folder} has results; make some: gptfast bench all --peers --json {folder}")
    return machines, ignored


def _around(page: Path) -> tuple[list[str], list[str]]:
    """The lines before and after what is made, which stay as they are."""
    if not page.exists():
        if not page.parent.is_dir():
            raise GptfastError(f"no folder {page.parent}; run this in the checkout, or name it with --out")
        return ["# Benchmarks", ""], []
    try:
        lines = page.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise GptfastError(f"cannot read {page}: {error}") from None
    if (lines.count(BEGIN), lines.count(END)) != (1, 1) or lines.index(BEGIN) > lines.index(END):
        raise GptfastError(f"{page} needs the line {BEGIN!r} once and, below it, {END!r}: what is between is rewritten")
    return lines[: lines.index(BEGIN)], lines[lines.index(END) + 1 :]


def describe(machine: Machine, plots: dict[str, str], link: str) -> Iterator[str]:
    """The lines of one machine: its files, its plots (captions by name), its tables; `link` leads to its folder."""
    used: dict[str, list[str]] = {}
    for section, names in machine.sources.items():
        for name in names:
            used.setdefault(name, []).append(section)
    used |= {name: ["a training step"] for name in machine.steps.values()}
    newest = [found for name, found in machine.files.items() if name in used][-1]
    yield from (f"## {_title(newest['machine'])}", "")
    yield from (f"- [{name}]({link}/{name}): {', '.join(of)}. {_run(machine.files[name])}" for name, of in used.items())
    for name, caption in plots.items():
        yield from ("", caption, "", f"![{caption.split(':')[0]}]({link}/{name})")
    for section, cases in machine.sections.items():
        files = [machine.files[name] for name in machine.sources[section]]
        when = ", then ".join(f"{f['machine'].get('date')} at {f['machine'].get('commit')}" for f in files)
        yield from ("", f"### {section}", "", f"Measured {when}.", "")
        yield from _table(list(cases.values()))


def _title(about: dict[str, Any]) -> str:
    return _cell(str(about.get("gpu") or f"{about.get('cpu')}, {about.get('cores')} cores"))


def _run(found: dict[str, Any]) -> str:
    """How a file was measured: the commit, the state of the machine, what it reached, the versions."""
    about, flags = found["machine"], " ".join(_flags(found.get("options", {})))
    reached = reached_text(found.get("ceilings", {}))
    said = [
        str(about.get("date"))[:10], f"commit {about.get('commit')}{' with changes' if about.get('changed') else ''}",
        " ".join([about.get("cpu") or "", *(about.get("units") or [])]),
        about.get("driver") and f"driver {about['driver']}", about.get("cuda") and f"CUDA {about['cuda']}",
        about.get("clocks.sm") and f"clocks {about['clocks.sm']} and {about.get('clocks.mem')}",
        about.get("threads") and f"{about['threads']} threads",
        about.get("load") is not None and f"load average {about['load']:.2f} at the start", flags and f"`{flags}`",
    ]  # fmt: skip
    lines = [", ".join(str(x).strip() for x in said if x), reached and f"Reaches: {reached}"]
    lines += ["Versions: " + ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())]
    return _cell(". ".join(line for line in lines if line) + ".")


def _flags(options: dict[str, Any]) -> Iterator[str]:
    for name in ("peers", "quick"):
        if options.get(name):
            yield f"--{name}"
    if options.get("seconds") is not None:
        yield f"--seconds {options['seconds']}"
    if options.get("only"):
        yield f"--only {' '.join(options['only'])}"


def _table(cases: list[list[Row]]) -> Iterator[str]:
    """A line for each form of gptfast, with how many times as fast as each peer it is; below, what failed."""
    yield "| case | shape | dtype | ms (20 to 80 %) | rate | of machine | error | times as fast as |"
    yield "|---|---|---|---|---|---|---|---|"
    failed: dict[str, list[str]] = {}
    for rows in cases:
        peers = [row for row in rows if not ours(row) and "failed" not in row]
        for row in rows:
            if "failed" in row:
                failed.setdefault(f"`{row['form']}`: {_cell(row['failed'])}", []).append(
                    f"{row['case']}, {row['shape']}"
                )
            if not ours(row):
                continue
            variant = row["form"].removeprefix("gptfast ")
            labels = [row["case"] + (f" ({variant})" if variant != "gptfast" else ""), row["shape"], row["dtype"]]
            cells = ["**failed**", "", "", "", ""] if "failed" in row else _figures(row, peers)
            yield f"| {' | '.join(map(_cell, labels + cells))} |"
    if failed:
        yield from ("", "Failed:", "")
        for what, where in failed.items():
            yield f"- {what} ({len(where)} cases)" if len(where) > 3 else f"- {what} ({'; '.join(map(_cell, where))})"


def _figures(row: Row, peers: list[Row]) -> list[str]:
    share = "" if row.get("share") is None else f"{row['share']:.{0 if row['share'] >= 0.1 else 1}%} of {row['of']}"
    error = "" if row.get("error") is None else f"{row['error']:.1e}"
    error += " **WRONG**" if row.get("right") is False else ""
    than = ", ".join(f"{peer['form']} {peer['ms'] / row['ms']:.2f}" for peer in peers)
    spread = f"{_number(row['ms'])} ({_number(row['ms20'])} to {_number(row['ms80'])})"
    rate, unit = row["rate"], row["unit"]
    if unit == "TFLOP/s" and rate < 1:
        rate, unit = 1e3 * rate, "GFLOP/s"
    return [spread, f"{_number(rate)} {unit}", share, error, than]


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 1000 else f"{x:.4g}"


def ours(row: Row) -> bool:
    return bool(row["form"].startswith("gptfast"))


def _cell(text: str) -> str:
    """Text that is one cell of a table, on one line, and no markup that it does not mean."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")

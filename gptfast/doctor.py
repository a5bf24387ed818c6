"""`gptfast doctor`: what this machine and this installation have, what will be used, and what mends what is missing."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import __version__, extension
from .tokenizer.published import PUBLISHED
from .tokenizer.vocabularies import cache_folder, cached_file

# Vocabulary -> the files of tiktoken's cache, named by the SHA-1 of their address; any one of them holds all of it.
VOCABULARIES = {
    name: tuple(source.cache_name for source in reversed(published.sources)) for name, published in PUBLISHED.items()
}
REQUIRED = ("torch", "numpy", "safetensors", "tiktoken", "rich", "tyro", "pyyaml")
OPTIONAL = {  # package -> what it is for
    "triton": "Triton kernels on a GPU",
    "matplotlib": "loss.png",
    "pyarrow": ".parquet input",
    "zstandard": ".zst input",
    "tensorboard": "TensorBoard logs",
    "transformers": "comparison with Hugging Face in tests",
}
CPU_UNITS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}
PYTHON = shlex.quote(sys.executable)


@dataclass(frozen=True)
class Finding:
    """One line of the report. `mend` is the command that supplies what is missing; None when all is well."""

    group: str
    name: str
    value: str
    mend: str | None = None


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices, what will be used, and for each thing missing the command that mends it."""

    json: bool = False
    """Print the findings as JSON."""


def examine() -> Iterator[Finding]:
    yield from versions()
    yield from devices()
    yield compiled_core()
    yield from vocabularies()


def versions() -> Iterator[Finding]:
    yield Finding("versions", "gptfast", __version__)
    yield Finding("versions", "python", f"{platform.python_version()} on {platform.platform()}")
    for name in REQUIRED:
        yield Finding("versions", name, *_version(name))
    for name, purpose in OPTIONAL.items():
        version, mend = _version(name)
        if name == "triton" and not sys.platform.startswith("linux"):
            mend = None  # there is no package for other systems
        yield Finding("optional", name, version if version != "missing" else f"missing ({purpose})", mend)


def _version(name: str) -> tuple[str, str | None]:
    try:
        return importlib.metadata.version(name), None
    except importlib.metadata.PackageNotFoundError:
        return "missing", f"{PYTHON} -m pip install {name}"


def devices() -> Iterator[Finding]:
    """The processor and the GPUs, and what gptfast will run on the best of them."""
    model, units = cpu()
    memory = ""
    if hasattr(os, "sysconf"):
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    yield Finding("devices", "cpu", f"{model}, {os.cpu_count()} logical cores{memory}, {' '.join(units) or 'no AVX2'}")
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of torch's is missing
        yield Finding("devices", "torch", f"broken: {error}", f"{PYTHON} -m pip install --force-reinstall torch")
        return

    from . import precision

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(gpus):
        gpu = torch.cuda.get_device_properties(i)
        yield Finding("devices", f"cuda:{i}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    if not gpus and shutil.which("nvidia-smi"):
        if torch.version.cuda is None:
            value, mend = "an NVIDIA driver, but torch is a CPU build", "--force-reinstall torch"
        else:
            value = f"torch is built for CUDA {torch.version.cuda} but finds no GPU; `nvidia-smi` shows the driver"
            mend = None
        yield Finding("devices", "cuda", value, mend and f"{PYTHON} -m pip install {mend}")
    device = torch.device("cuda" if gpus else "cpu")
    chosen = precision.choose(device)
    yield Finding("will use", "device", f"{device.type}, {torch.get_num_threads()} CPU threads")
    yield Finding("will use", "precision", f"{chosen.name}: {chosen.reason}")
    yield Finding("will use", "kernels", _kernels(gpus > 0))


def _kernels(gpu: bool) -> str:
    """What gptfast.ops runs on the best device."""
    import torch

    if not gpu:
        return "ATen: Triton's kernels need a GPU"
    from . import ops

    if not ops.TRITON:
        return "ATen: Triton is not installed"
    from .kernels import launch

    arch = launch.architecture(torch.device("cuda", 0))
    measured = any(row.measured for key, rows in launch.table().items() if key[0] == arch for _, row in rows)
    where = "as its launch table says" if measured else "for windows, packed documents and decoding"
    return f"Triton on {arch} {where}; ATen for the rest"


def cpu() -> tuple[str, list[str]]:
    """The processor's name and those of its units that matter here."""
    fields: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", "").split()
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, [label for flag, label in CPU_UNITS.items() if flag in flags]


def compiled_core() -> Finding:
    module, detail = extension.load()
    if module is not None:
        return Finding("extensions", "gptfast._core", f"built ({detail})")
    root = Path(__file__).parents[1]
    source = f"-e {shlex.quote(str(root))}" if (root / "setup.py").exists() else "--force-reinstall gptfast-kernels"
    mend = f"{PYTHON} -m pip install --no-deps {source}"
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
        mend = f"first a C++ compiler (Debian, Ubuntu: apt install g++), then {mend}"
    return Finding("extensions", "gptfast._core", f"not usable: {detail}; the tokenizer needs it", mend)


def vocabularies() -> Iterator[Finding]:
    """Looks where tiktoken would; downloads nothing."""
    folder = cache_folder()
    yield Finding("vocabularies", "bytes", "built in")
    for name in VOCABULARIES:
        if path := cached_file(name):
            yield Finding("vocabularies", name, f"found in {path.parent}")
        else:
            mend = f"{PYTHON} -c \"import gptfast; gptfast.get_encoding('{name}')\""
            where = f"not in {folder} (TIKTOKEN_CACHE_DIR names another)" if folder else "its cache is switched off"
            yield Finding("vocabularies", name, where, mend)


def show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", "found", box=None, pad_edge=False)
    group = ""
    for finding in findings:
        style = "yellow" if finding.mend else ""
        heading = Text(finding.group if finding.group != group else "", style="bold")
        table.add_row(heading, finding.name, Text(finding.value, style=style))
        group = finding.group
    console = Console()
    console.print(table)
    missing = [finding for finding in findings if finding.mend]
    console.print("\nNothing is missing." if not missing else "\nTo mend what is missing:")
    for finding in missing:  # soft wrap: a command must survive copy and paste
        console.print(Text(f"  {finding.name}: "), Text(finding.mend or "", style="bold"), soft_wrap=True)


def main(argv: list[str]) -> int:
    """Exits with 0, whatever is missing, unless torch is missing or broken."""
    import tyro

    options = tyro.cli(Doctor, args=argv, prog="gptfast doctor")
    findings = list(examine())
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        show(findings)
    return int(any(finding.name == "torch" and finding.mend for finding in findings))

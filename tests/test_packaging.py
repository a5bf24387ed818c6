"""The package as users get it: what importing it loads, where kernels/ lies, what a build without its tools says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "triton",
    "transformers",
    "pyarrow",
    "matplotlib",
    "tiktoken",
    "zstandard",
    "tensorboard",
    "tyro",
    "rich",
    "yaml",
)


def run_python(code: str, **env: str) -> str:
    """What `code` prints in a fresh interpreter."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | env)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_loads_no_heavy_module() -> None:
    # The model's own module may load torch; torch itself decides what else comes with it, so that is subtracted.
    code = f"""
import sys, torch
before = set(sys.modules)
import gptfast, gptfast.ops
gptfast.GPT, gptfast.GPTConfig
print([name for name in {HEAVY!r} if name in sys.modules and name not in before])
"""
    assert run_python(code) == "[]"


def test_import_alone_does_not_load_torch() -> None:
    assert run_python("import sys, gptfast; print('torch' in sys.modules)") == "False"


def test_works_with_triton_blocked() -> None:
    code = """
import sys
sys.modules["triton"] = None  # every `import triton` now raises ImportError
import torch, gptfast, gptfast.kernels
model = gptfast.GPT(gptfast.GPTConfig(vocab_size=16, context_length=8, n_layer=1, n_head=1, n_embd=8))
print(tuple(model(torch.zeros(2, 4, dtype=torch.int64)).shape))
"""
    assert run_python(code) == "(2, 4, 16)"


def test_every_public_name_resolves() -> None:
    import gptfast

    for name in gptfast.__all__:
        assert getattr(gptfast, name) is not None


def test_kernels_folder_is_imported_as_gptfast_kernels() -> None:
    import gptfast.kernels

    assert gptfast.kernels.__name__ == "gptfast.kernels"
    assert (Path(gptfast.kernels.__file__).parent / "reference.py").exists()
    # The top-level name belongs to another package: an install must not put ours there.
    assert "kernels" not in (metadata.distribution("gptfast-kernels").read_text("top_level.txt") or "").split()


def test_version_is_said_once() -> None:
    import gptfast
    from gptfast import extension

    assert metadata.version("gptfast-kernels") == gptfast.__version__
    core = extension.core()
    assert core is None or core.__version__ == gptfast.__version__


def test_constraints_pin_every_dependency() -> None:
    """Each package that the metadata names, extras included, has an exact version."""
    pinned = re.findall(r"^([\w.-]+)==\S+$", re.sub(r";.*", "", (ROOT / "constraints.txt").read_text()), re.M)
    named = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in metadata.requires("gptfast-kernels")}
    assert named - {"gptfast-kernels"} <= set(pinned)


def build(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Asks setup.py for a build, in an environment that lacks something."""
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env})


@pytest.mark.skipif(os.name == "nt", reason="on Windows CMake finds the compiler, not setup.py")
def test_a_missing_compiler_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("pybind11", reason="building needs pybind11 (make test installs it)")
    result = build(tmp_path, CXX="/nonexistent/c++")
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "the compiler named by CXX=/nonexistent/c++ is missing; unset CXX" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="on Windows CMake finds the compiler, not setup.py")
def test_no_compiler_at_all_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("pybind11", reason="building needs pybind11 (make test installs it)")
    if not all((Path(sys.executable).parent / tool).exists() for tool in ("cmake", "ninja")):
        pytest.skip("cmake and ninja are not beside this Python (make test installs them)")
    result = build(tmp_path, PATH=str(tmp_path), CXX="")
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "no C++ compiler; install one (Debian, Ubuntu: apt install g++" in result.stderr

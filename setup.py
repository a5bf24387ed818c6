"""Builds csrc/ into gptfast/_core with CMake, Ninja and pybind11. All metadata is in pyproject.toml.

The CMake folder is build/core-<Python>: it outlives one `pip install`, so the next one compiles only what changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def stop(what: str, mend: str) -> SystemExit:
    """What is missing and what mends it, in one line; pip and the shell show it without a traceback."""
    return SystemExit(f"gptfast: cannot build the C++ core: {what}; {mend}")


def require_tools() -> tuple[str, str, str]:
    """Check all that the build needs from the machine: the paths of cmake, ninja and pybind11's CMake files."""
    tools = []
    for name in ("cmake", "ninja"):
        path = shutil.which(name, path=os.path.dirname(sys.executable)) or shutil.which(name)
        if path is None:
            raise stop(f"{name} is missing", f"run: {sys.executable} -m pip install {name}")
        tools.append(path)
    try:
        import pybind11
    except ImportError:
        raise stop("pybind11 is missing", f"run: {sys.executable} -m pip install pybind11") from None
    if os.name != "nt":  # Visual Studio's compiler is found by CMake, not on PATH
        wanted = os.environ.get("CXX", "")
        if wanted and shutil.which(wanted.split()[0]) is None:
            raise stop(f"the compiler named by CXX={wanted} is missing", "unset CXX or name a C++17 compiler")
        if not wanted and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise stop(
                "no C++ compiler", "install one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)"
            )
        if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
            raise stop("Python.h is missing", "install Python's headers (Debian, Ubuntu: apt install python3-dev)")
    return tools[0], tools[1], pybind11.get_cmake_dir()


def first_error(log: str) -> str:
    """The first message of a failed CMake run, on one line."""
    lines = log.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("CMake Error")), None)
    if start is None:
        return "CMake failed"
    message = [line.strip() for line in lines[start + 1 : start + 8] if line.strip()]
    return f"CMake says '{' '.join(message[:3]) or lines[start]}'"


class CMakeBuild(build_ext):
    """Compiles the one extension; setuptools decides where it goes (a wheel, or gptfast/ for an editable install)."""

    def build_extension(self, ext: Extension) -> None:
        cmake, ninja, pybind11 = require_tools()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = ROOT / "build" / f"core-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        folder.mkdir(parents=True, exist_ok=True)
        configure = [
            *(cmake, "-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja"),
            *(f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}"),
            *("-DGPTFAST_BINDINGS=ON", f"-DGPTFAST_VERSION={self.distribution.get_version()}"),
        ]
        self.call(configure, folder, "install what it names, then try again")
        self.call([ninja, "-C", str(folder), "_core"], folder, "see the compiler's messages above")
        built = folder / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built, target)

    def call(self, command: list[str], folder: Path, mend: str) -> None:
        """Run one step of the build; keep its output in build.log, and show it only when the compiler complains."""
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        log = folder / "build.log"
        log.write_text(result.stdout, encoding="utf-8")
        if result.returncode == 0:
            return
        if "CMake Error" in result.stdout:
            raise stop(f"{first_error(result.stdout)} (all of it: {log})", mend)
        print(result.stdout)
        raise stop("a file does not compile", mend)


# Before setuptools prints anything, so that the one line stands alone. Metadata and source archives need no compiler.
if {"bdist_wheel", "build", "build_ext", "editable_wheel"} & set(sys.argv):
    require_tools()

setup(
    license="Apache-2.0",
    # The folder kernels/ is imported as gptfast.kernels: a top-level module named `kernels` would collide with
    # the package of that name which transformers looks for. benchmarks/ is imported as gptfast.benchmarks likewise.
    packages=[
        *find_packages(include=["gptfast", "gptfast.*"]),
        "gptfast.benchmarks",
        "gptfast.kernels",
        *(f"gptfast.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"gptfast.benchmarks": "benchmarks", "gptfast.kernels": "kernels"},
    ext_modules=[Extension("gptfast._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

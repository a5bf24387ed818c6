"""Settings from typed dataclasses: defaults, then a recipe file (YAML or TOML), then flags."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from .errors import GptfastError

T = TypeVar("T")


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings in a .yaml, .yml or .toml file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise GptfastError(f"cannot read the recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise GptfastError(f"the recipe {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if path.suffix == ".toml":
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise GptfastError(f"{path} is not valid TOML: {error}") from None
    if path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            values = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise GptfastError(f"{path} is not valid YAML: {error}") from None
        if not isinstance(values, dict):
            raise GptfastError(f"{path} must hold `name: value` lines")
        return values
    raise GptfastError(f"{path} is no recipe: its name must end in .yaml, .yml or .toml")


def to_flags(cls: type, values: dict[str, Any], where: str) -> list[str]:
    """The command-line flags that set `values` in dataclass `cls`; unknown names are refused with the nearest known
    one.
    """
    types = get_type_hints(cls)
    flags = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(types)}"
            raise GptfastError(f"{where} sets {key!r}, which does not exist{hint}")
        flag = name.replace("_", "-")
        if types[name] is bool and isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            # One value is joined to its flag, so that it may begin with a hyphen.
            flags += [f"--{flag}", *map(str, value)] if isinstance(value, (list, tuple)) else [f"--{flag}={value}"]
    return flags


def parse(cls: type[T], argv: Sequence[str], prog: str, earlier: Sequence[str] = ()) -> T:
    """An instance of dataclass `cls` from flags; `--config FILE` names a recipe, which flags overrule. `earlier` flags
    come first.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=Path)
    found, rest = early.parse_known_args(list(argv))
    recipe = []
    if found.config is not None:
        recipe = to_flags(cls, read_recipe(found.config), f"the recipe {found.config}")
    return tyro.cli(cls, args=[*earlier, *recipe, *rest], prog=prog)

"""Settings: defaults, recipes and flags, and what is said of a bad one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import gptfast
from gptfast.settings import parse, read_recipe, to_flags


@dataclass(frozen=True)
class Settings:
    name: str
    rate: float = 1.0
    fast: bool = False
    sizes: tuple[int, ...] = ()
    bias: bool | None = None


def test_flags_overrule_the_recipe_which_overrules_defaults(tmp_path):
    (tmp_path / "r.toml").write_text('name = "-a b"\nrate = 2\nfast = true\nsizes = [1, 2]\nbias = false\n')
    recipe = ["--config", str(tmp_path / "r.toml")]
    assert parse(Settings, recipe, "x") == Settings("-a b", 2.0, True, (1, 2), False)
    assert parse(Settings, [*recipe, "--rate", "3", "--no-fast", "--sizes", "5"], "x") == Settings(
        "-a b", 3.0, False, (5,), False
    )


def test_to_flags_round_trips_every_field():
    settings = Settings("\n", 0.5, True, (3, 4), True)
    assert parse(Settings, to_flags(Settings, vars(settings), "here"), "x") == settings


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("r.ini", "", "must end in .yaml"),
        ("r.yaml", "a: [", "not valid YAML"),
        ("r.yaml", "- a", "`name: value` lines"),
        ("r.toml", "a =", "not valid TOML"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(gptfast.GptfastError, match=said):
        read_recipe(tmp_path / name)


def test_an_absent_recipe_is_named(tmp_path):
    with pytest.raises(gptfast.GptfastError, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.yaml")


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(gptfast.GptfastError, match="sets 'rat', which does not exist; did you mean 'rate'"):
        to_flags(Settings, {"rat": 1}, "the recipe")

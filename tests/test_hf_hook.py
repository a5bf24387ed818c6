"""`import gptfast` makes its attention known to transformers, whichever is imported first, and costs nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="4.57.1")

ORDERS = """
import importlib.util, sys
import gptfast
assert not {"torch", "transformers"} & set(sys.modules)

import transformers
assert importlib.util.find_spec("transformers.modeling_utils")  # a look is not an import
from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
mappings = AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping
assert [m.pop("gptfast").__module__ for m in mappings] == ["gptfast.hf_attention"] * 2
assert not any(type(finder).__module__.startswith("gptfast") for finder in sys.meta_path)
assert "exec_module" not in vars(sys.modules["transformers.modeling_utils"].__loader__)

for name in [x for x in sys.modules if x.partition(".")[0] == "gptfast"]:
    del sys.modules[name]
import gptfast
assert all("gptfast" in m for m in mappings)
assert not any(type(finder).__module__.startswith("gptfast") for finder in sys.meta_path)
assert not {"gptfast.ops", "gptfast.kernels"} & set(sys.modules)

import torch
model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, attn_implementation="gptfast"))
model(torch.zeros(1, 4, dtype=torch.int64))
assert "gptfast.ops" in sys.modules
"""
UNKNOWN = """
import sys, warnings
import gptfast
sys.modules["gptfast.hf_attention"] = None  # importing it fails, as where transformers lacks what it needs
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import transformers.modeling_utils
assert transformers.modeling_utils.RAN == 1
assert [str(x.message).partition(" is not")[0] for x in said] == ['attn_implementation="gptfast"'], said
"""


def python(code: str, *path: Path) -> None:
    paths = os.pathsep.join([*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert result.returncode == 0, result.stderr


def test_registers_after_an_import_of_transformers_and_before_one() -> None:
    python(ORDERS)


def test_a_transformers_that_gptfast_does_not_know_is_imported_all_the_same(tmp_path: Path) -> None:
    package = tmp_path / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "99"')
    (package / "modeling_utils.py").write_text("RAN = 1")
    python(UNKNOWN, tmp_path)

"""Model folders in Hugging Face's layout: there and back, and read by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptfast


@pytest.mark.parametrize(
    "changes", [{}, {"bias": False}, {"qkv_bias": False, "tie_weights": False}, {"window": (None, 3)}]
)
def test_save_and_load_give_the_same_model(tmp_path, changes):
    model = gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    again = gptfast.GPT.from_pretrained(tmp_path)
    assert again.config == model.config
    assert model.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert (again.lm_head.weight is again.wte.weight) == model.config.tie_weights


def test_transformers_computes_the_same_from_a_model_without_biases(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, bias=False)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    idx = torch.randint(97, (1, 16))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(theirs(idx).logits, model(idx), rtol=1e-4, atol=1e-4)


def test_a_banded_model_does_not_pass_for_a_gpt2(tmp_path):
    transformers = pytest.importorskip("transformers")
    gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, window=4)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gptfast"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = set(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=97, n_positions=16, n_embd=8, n_layer=2, n_head=2)
        ).state_dict()
    )
    assert not theirs & set(load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"tie_weights": False}])
def test_saved_tensors_are_exactly_those_of_transformers(tmp_path, changes):
    transformers = pytest.importorskip("transformers")
    model = gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, **changes))
    model.save_pretrained(tmp_path)
    saved = {name: tensor.shape for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=97, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    ).state_dict()
    want = {name: tensor.shape for name, tensor in theirs.items() if name != "lm_head.weight"}
    assert saved == want | ({} if model.config.tie_weights else {"lm_head.weight": torch.Size([97, 8])})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: (p / "model.safetensors").write_bytes(b"no"), "model.safetensors cannot be read"),
        (lambda p: (p / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda p: drop(p, "transformer.ln_f.weight"), "have no 'ln_f.weight'"),
        (lambda p: change(p, n_embd=16, gptfast=None), "but the configuration needs"),
        (lambda p: change(p, model_type="llama", gptfast=None), "describes a 'llama' model"),
        (lambda p: (p / "config.json").write_text("[]"), "has no 'model_type'"),
        (lambda p: (p / "config.json").write_text('{"model_type": "gpt2"}'), "does not say n_embd, n_head"),
        (lambda p: change(p, activation_function="relu", gptfast=None), "activation 'relu'"),
    ],
)
def test_a_damaged_model_folder_is_named(tmp_path, damage, said):
    gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8)).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(gptfast.GptfastError, match=said):
        gptfast.GPT.from_pretrained(tmp_path)


def drop(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def change(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

"""Hugging Face's layout: there and back, as transformers writes and reads it, in every form such files have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from other_models import randomize, same
from safetensors.torch import load_file, save_file

import gptfast
from gptfast.files import atomic_path
from gptfast.weights import convert, from_hf, to_hf
from gptfast.weights.tensors import write_safetensors


@pytest.mark.parametrize(
    "changes",
    [{}, {"bias": False}, {"qkv_bias": False, "tie_weights": False}, {"window": (None, 3)}, {"activation": "gelu"}],
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


def theirs_and_folder(folder: Path, dtype: torch.dtype = torch.float32, **changes):
    """A random GPT2LMHeadModel, saved as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 97, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    model = randomize(transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape | changes))).to(dtype)
    model.save_pretrained(folder)
    return model


def fits(ours: gptfast.GPT, theirs) -> bool:
    """Whether both hold the same tensors, bit for bit."""
    want = {name: value for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    head = to_hf(ours).pop("lm_head.weight", ours.wte.weight)
    mine = {name: value for name, value in to_hf(ours).items() if name != "lm_head.weight"}
    return same(mine, want) and torch.equal(head, theirs.lm_head.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_of_transformers_and_back_bit_for_bit(tmp_path, dtype):
    theirs = theirs_and_folder(tmp_path / "theirs", dtype)
    ours = gptfast.load_weights(tmp_path / "theirs")
    assert ours.wte.weight.dtype == dtype and ours.lm_head.weight is ours.wte.weight and fits(ours, theirs)
    ours.save_pretrained(tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours", dtype=dtype)
    assert same(again.state_dict(), theirs.state_dict())
    idx = torch.randint(97, (2, 16))
    if dtype == torch.float32:
        torch.testing.assert_close(ours.eval()(idx), theirs(idx).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_either_gelu(tmp_path, activation):
    """In fp64, where one would not pass for the other; read from transformers' folder, and read back by it."""
    theirs = theirs_and_folder(tmp_path / "theirs", torch.float64, activation_function=activation)
    ours = gptfast.load_weights(tmp_path / "theirs").eval()
    assert ours.config.activation == activation
    idx = torch.randint(97, (2, 16))
    torch.testing.assert_close(ours(idx), theirs(idx).logits, rtol=1e-9, atol=1e-9)
    ours.save_pretrained(tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours", dtype=torch.float64)
    torch.testing.assert_close(again(idx).logits, theirs(idx).logits, rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{}, {"tie_weights": False, "bias": False}, {"window": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_is_the_one_that_the_library_would_write(tmp_path, changes, dtype):
    """Byte for byte, although no more than one tensor is copied at a time."""
    model = randomize(gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, **changes))).to(dtype)
    model.save_pretrained(tmp_path)
    save_file(to_hf(model), tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_of_any_type_and_size(tmp_path):
    """Those of an optimizer, too: numbers, empty ones, views, and types of different widths."""
    tensors = {
        "a": torch.randint(255, (3,)).to(torch.uint8), "step": torch.tensor(5.0), "none": torch.empty(0, 3),
        "seen": torch.tensor([True, False]), "long": torch.arange(4)[::2], "half": torch.randn(3, 5).half().T,
        "wide": torch.randn(3).double(), "ü": torch.randn(2, requires_grad=True),
    }  # fmt: skip
    write_safetensors(tmp_path / "x.safetensors", tensors)
    assert same(load_file(tmp_path / "x.safetensors"), {name: tensor.detach() for name, tensor in tensors.items()})


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peak memory from Linux's /proc")
def test_saving_takes_little_more_memory_than_the_model(tmp_path):
    code = f"""
import gptfast
def memory(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024
gptfast.GPT(gptfast.GPTConfig(97, 16, 1, 2, 8)).save_pretrained({str(tmp_path)!r})  # what is imported on the way
model = gptfast.GPT(gptfast.GPTConfig(97, 16, 6, 8, 512))
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
model.save_pretrained({str(tmp_path)!r})
print(memory("VmHWM") - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 24  # MB: of 72 in matrices that are transposed, 4 each


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_files_are_readable_by_whom_the_umask_says(tmp_path):
    model = gptfast.GPT(gptfast.GPTConfig(97, 16, 1, 2, 8, activation="gelu"))
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path)
        convert.write(model, tmp_path / "ckpt.pt", "nanogpt")
        with atomic_path(tmp_path / "theirs.safetensors") as temporary:
            save_file({"a": torch.ones(1)}, temporary)  # the library gives 0600
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_an_untied_folder(tmp_path):
    theirs = theirs_and_folder(tmp_path, tie_word_embeddings=False)
    ours = gptfast.load_weights(tmp_path)
    assert not ours.config.tie_weights and fits(ours, theirs)


def test_shards(tmp_path):
    theirs = theirs_and_folder(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="3KB")
    index = tmp_path / "parts" / "model.safetensors.index.json"
    for source in (tmp_path / "parts", index):
        assert fits(gptfast.load_weights(source), theirs)
    first = sorted((tmp_path / "parts").glob("*.safetensors"))[0]
    first.rename(tmp_path / "elsewhere")
    with pytest.raises(gptfast.GptfastError, match=f"names {first.name}, which is not beside it"):
        gptfast.load_weights(index)
    for value in ({"wte.weight": "../../secret"}, {"wte.weight": ""}, {"wte.weight": None}, {}, "", [], None):
        index.write_text(json.dumps({"weight_map": value}))
        with pytest.raises(gptfast.GptfastError, match="must name files beside it"):
            gptfast.load_weights(index)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_whole_and_in_shards(tmp_path, monkeypatch, legacy):
    from gptfast.weights import tensors

    monkeypatch.setattr(tensors, "_REMAP_BYTES", 500)  # map anew after a few tensors, as large files do
    theirs = theirs_and_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = theirs.state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert fits(gptfast.load_weights(tmp_path), theirs)
    (tmp_path / "pytorch_model.bin").unlink()
    names = sorted(state)
    for number, part in enumerate((names[:9], names[9:])):
        torch.save({name: state[name] for name in part}, tmp_path / f"pytorch_model-{number}.bin")
    weight_map = {name: f"pytorch_model-{int(i >= 9)}.bin" for i, name in enumerate(names)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert fits(gptfast.load_weights(tmp_path), theirs)


def test_old_names_and_mask_buffers(tmp_path):
    theirs = theirs_and_folder(tmp_path)
    state = {name.removeprefix("transformer."): t.clone() for name, t in theirs.state_dict().items()}
    del state["lm_head.weight"]
    for i in range(2):
        state[f"h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril()
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, tmp_path / "model.safetensors")
    assert fits(gptfast.load_weights(tmp_path), theirs)
    assert fits(gptfast.load_weights(tmp_path / "model.safetensors"), theirs)


def test_a_head_that_differs_from_the_embedding_is_not_tied(tmp_path):
    """As transformers 5 does it: the file counts, not the configuration."""
    theirs = theirs_and_folder(tmp_path, tie_word_embeddings=False)
    change(tmp_path, tie_word_embeddings=True)
    ours = gptfast.load_weights(tmp_path)
    assert not ours.config.tie_weights and fits(ours, theirs)


def test_state_dicts_in_memory(tmp_path):
    theirs = theirs_and_folder(tmp_path)
    config = gptfast.GPTConfig(97, 16, 2, 2, 8)
    ours = gptfast.load_weights(theirs.state_dict(), config=config)
    assert fits(ours, theirs)
    assert same(from_hf(theirs.state_dict(), config), ours.state_dict())
    again = gptfast.load_weights(ours.state_dict(), config=config)  # gptfast's own
    assert same(again.state_dict(), ours.state_dict())
    assert again.wte.weight.data_ptr() != ours.wte.weight.data_ptr()


def test_biases_that_the_configuration_has_not_must_be_zero(tmp_path):
    theirs = theirs_and_folder(tmp_path)
    with pytest.raises(gptfast.GptfastError, match="unexpected: h.0.attn.c_attn.bias"):
        gptfast.load_weights(tmp_path, config=gptfast.GPTConfig(97, 16, 2, 2, 8, bias=False))
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    theirs.save_pretrained(tmp_path)
    assert fits(gptfast.load_weights(tmp_path, config=gptfast.GPTConfig(97, 16, 2, 2, 8, bias=False)), theirs)


def test_a_half_matching_state_dict_lists_what_is_wrong():
    state = gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8)).state_dict()
    del state["h.1.mlp.c_fc.weight"]
    state["extra.weight"] = torch.zeros(2, 8)
    state["h.0.ln_1.bias"] = torch.zeros(9)
    with pytest.raises(gptfast.GptfastError) as caught:
        gptfast.load_weights(state, config=gptfast.GPTConfig(97, 16, 2, 2, 8))
    said = str(caught.value)
    assert "missing: h.1.mlp.c_fc.weight;" in said
    assert "unexpected: extra.weight;" in said
    assert "of the wrong shape: h.0.ln_1.bias is [9], should be [8]" in said
    with pytest.raises(gptfast.GptfastError, match="and [0-9]+ more"):
        gptfast.load_weights(state, config=gptfast.GPTConfig(97, 16, 9, 2, 8))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: (p / "model.safetensors").write_bytes(b"no"), "model.safetensors cannot be read"),
        (lambda p: (p / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda p: drop(p, "transformer.ln_f.weight"), "missing: ln_f.weight"),
        (lambda p: change(p, n_embd=16, gptfast=None), r"wrong shape: wte.weight is \[97, 8\], should be \[97, 16\]"),
        (lambda p: change(p, model_type="llama", gptfast=None), "describes a 'llama' model"),
        (lambda p: (p / "config.json").write_text("[]"), "has no 'model_type'"),
        (lambda p: (p / "config.json").write_text('{"model_type": "gpt2"}'), "does not say n_embd, n_head"),
        (lambda p: change(p, activation_function="relu", gptfast=None), "activation 'relu'"),
        (lambda p: change(p, scale_attn_by_inverse_layer_idx=True, gptfast=None), "scale_attn_by_inverse_layer_idx"),
        (lambda p: change(p, n_layer="2", gptfast=None), "n_layer = '2'"),
        (lambda p: change(p, gptfast={"speed": 1}), "describes no model"),
        (lambda p: change(p, gptfast={"where": 1}), "describes no model"),
        (lambda p: change(p, gptfast="damage"), "its 'gptfast' is 'damage'"),
        (lambda p: change(p, gptfast={"bias": "no"}), "bias is 'no'; it must be True or False"),
        (lambda p: change(p, gptfast={"window": "all"}), "window is 'all'"),
        (lambda p: write(p, n_embd=None), "n_embd = None"),
        (lambda p: write(p, n_embd=[8]), r"n_embd = \[8\]"),
        (lambda p: write(p, n_positions=-1), "context_length = -1"),
        (lambda p: write(p, n_head=True), "n_head = True"),
        (lambda p: write(p, vocab_size=97.0), "vocab_size = 97.0"),
        (lambda p: write(p, n_inner="32"), "n_inner = '32'"),
        (lambda p: write(p, layer_norm_epsilon="1e-5"), "layer_norm_eps is '1e-5'; it must be a number"),
        (lambda p: write(p, layer_norm_epsilon=float("nan")), "layer_norm_eps is nan"),
        (lambda p: write(p, resid_pdrop=None), "dropout is None"),
        (lambda p: write(p, tie_word_embeddings="yes"), "tie_weights is 'yes'"),
        (lambda p: write(p, activation_function=["gelu"]), r"the activation \['gelu'\]"),
        (lambda p: write(p, model_type={}), "describes a {} model"),
        (lambda p: change(p, vocab_size=98, gptfast=None), "vocabulary of 97 tokens, the configuration says 98"),
        (lambda p: cut(p / "model.safetensors"), "model.safetensors cannot be read"),
    ],
)
def test_a_damaged_model_folder_is_named(tmp_path, damage, said):
    gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8)).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(gptfast.GptfastError, match=said):
        gptfast.GPT.from_pretrained(tmp_path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def drop(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


def write(folder: Path, **values) -> None:
    """Into config.json, a null too."""
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def change(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_what_transformers_changed_since_counts(tmp_path):
    """Its own fields in config.json, not those that we wrote beside them."""
    transformers = pytest.importorskip("transformers")
    config = gptfast.GPTConfig(vocab_size=101, context_length=16, n_layer=1, n_head=2, n_embd=16, qkv_bias=False)
    gptfast.GPT(config).save_pretrained(tmp_path / "ours")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    theirs.resize_token_embeddings(105)
    theirs.config.layer_norm_epsilon = 1e-3
    theirs.save_pretrained(tmp_path / "theirs")
    again = gptfast.load_weights(tmp_path / "theirs").config
    assert (again.vocab_size, again.layer_norm_eps, again.qkv_bias) == (105, 1e-3, False)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    model = gptfast.GPT(gptfast.GPTConfig(vocab_size=11, context_length=8, n_layer=1, n_head=1, n_embd=8))
    with pytest.raises(gptfast.GptfastError, match="cannot make the folder"):
        model.save_pretrained(tmp_path / "file" / "below")

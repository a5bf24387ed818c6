"""What a source is, and the one error for what is none: hub names, folders of several formats, foreign pickles."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from other_models import randomize, same

import gptfast
from gptfast.cli import main
from gptfast.weights import convert

CONFIG = gptfast.GPTConfig(97, 16, 2, 2, 8)


@pytest.fixture
def model() -> gptfast.GPT:
    return randomize(gptfast.GPT(CONFIG))


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("evil-was-here",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: torch.save({"wte.weight": Evil()}, p / "x.pt"), "x.pt is refused: .* more than plain weights"),
        (lambda p: (p / "x.pt").write_bytes(pickle.dumps(Evil())), "x.pt is refused"),
        (lambda p: torch.save([1], p / "x.pt"), "holds a list"),
        (lambda p: torch.save({"epoch": 3}, p / "x.pt"), "'epoch' is a int, not a tensor"),
        (lambda p: torch.save({"fc.weight": torch.ones(2)}, p / "x.pt"), "holds no GPT-2: .* tensors are fc.weight"),
        (lambda p: (p / "x.pt").write_bytes(b""), "x.pt cannot be read|x.pt is refused"),
        (lambda p: (p / "x.pt").write_bytes(b"plain text"), "x.pt cannot be read|x.pt is refused"),
        (lambda p: (p / "x.pt").write_bytes(b"PK\x03\x04" * 99), "x.pt cannot be read"),
        (lambda p: torch.save({"wte.weight": torch.ones(1).expand(1 << 20, 1 << 20)}, p / "x.pt"), "holds no GPT-2"),
    ],
)
def test_files_that_hold_no_plain_weights(tmp_path, monkeypatch, make, said):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    with pytest.raises(gptfast.GptfastError, match=said) as caught:
        gptfast.load_weights(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil-was-here").exists()


def test_a_truncated_checkpoint(tmp_path, model):
    path = convert.write(model, tmp_path, "nanogpt")
    data = path.read_bytes()
    for size in range(0, len(data), len(data) // 50):
        path.write_bytes(data[:size])
        with pytest.raises(gptfast.GptfastError, match="ckpt.pt"):
            gptfast.load_weights(path)


def test_a_small_file_that_claims_a_large_model(tmp_path):
    state = {name: torch.zeros(1).expand(t.shape) for name, t in gptfast.GPT(CONFIG).state_dict().items()}
    state["wte.weight"] = state["lm_head.weight"] = torch.zeros(1).expand(1 << 22, 8)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(gptfast.GptfastError, match="more than the file has"):
        gptfast.load_weights(tmp_path / "x.pt", config=gptfast.GPTConfig(1 << 22, 16, 2, 2, 8))


def test_quantised_weights_are_refused(tmp_path, model):
    state = {name: tensor.to(torch.int8) for name, tensor in model.state_dict().items()}
    with pytest.raises(gptfast.GptfastError, match="as int8, not as weights"):
        gptfast.load_weights(state, config=CONFIG)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (3, "cannot be loaded from a int; gptfast reads"),
        ("./nowhere", "there is no file or folder ./nowhere; gptfast reads"),
        ("nowhere.safetensors", "there is no file or folder nowhere.safetensors"),
        ("openai:125M", "no GPT-2 of size '125M'; OpenAI published 124M, 355M, 774M, 1558M"),
        ({"a": 1}, "the state dict is no state dict|'a' is a int"),
        ({}, "holds no GPT-2"),
    ],
)
def test_unknown_things(source, said):
    with pytest.raises(gptfast.GptfastError, match=said):
        gptfast.load_weights(source)


def test_folders(tmp_path, model, monkeypatch):
    with pytest.raises(gptfast.GptfastError, match="has no model.safetensors or pytorch_model.bin, no TensorFlow"):
        gptfast.load_weights(tmp_path)
    convert.write(model, tmp_path / "model.pth", "book")
    with pytest.raises(gptfast.GptfastError, match="give one of its files: model.pth"):
        gptfast.load_weights(tmp_path)
    convert.write(model, tmp_path, "hf")
    monkeypatch.chdir(tmp_path)
    assert same(gptfast.load_weights(".").state_dict(), model.state_dict())
    convert.write(model, tmp_path, "nanogpt")
    with pytest.raises(gptfast.GptfastError, match=r"models: Hugging Face \(model.safetensors\), nanoGPT \(ckpt.pt\)"):
        gptfast.load_weights(tmp_path)
    for name in ("model.safetensors", "ckpt.pt"):
        assert same(gptfast.load_weights(tmp_path / name).state_dict(), model.state_dict())
    with pytest.raises(gptfast.GptfastError, match="give one of its checkpoints"):
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        gptfast.load_weights(tmp_path / "run")


def test_a_banded_model_needs_its_config(tmp_path):
    gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, window=4)).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(gptfast.GptfastError, match="banded attention; its config.json"):
        gptfast.load_weights(tmp_path)


def hub(cache: Path, code: str, **env: str) -> str:
    """What `code` prints in a process that has this cache for the hub, and no network."""
    env = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", **env}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_names_on_the_hub_come_from_its_cache_when_offline(tmp_path, model):
    pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--someone--small-gpt2"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    model.save_pretrained(repo / "snapshots" / commit)
    code = """
import gptfast
for name in ("someone/small-gpt2", "someone/other"):
    try:
        print(sum(p.sum().item() for p in gptfast.GPT.from_pretrained(name).parameters()))
    except gptfast.GptfastError as error:
        print(error)
"""
    found, missing = hub(tmp_path, code).splitlines()
    assert float(found) == pytest.approx(sum(p.sum().item() for p in model.parameters()))
    assert missing.startswith("'someone/other' is neither a file nor a folder, and the Hugging Face hub gave no model")


def test_without_huggingface_hub_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(gptfast.GptfastError, match="pip install huggingface_hub"):
        gptfast.load_weights("someone/small-gpt2")


def test_convert_and_inspect(tmp_path, model, capsys):
    model.save_pretrained(tmp_path / "a")
    for source, target, layout in (("a", "b", "nanogpt"), ("b", "c", "hf"), ("c", "d.pt", "nanogpt")):
        assert main(["weights", "convert", str(tmp_path / source), str(tmp_path / target), "--to", layout]) == 0
        assert same(gptfast.load_weights(tmp_path / target).state_dict(), model.state_dict())
    assert main(["weights", "convert", str(tmp_path / "a"), str(tmp_path / "e.pth"), "--to", "book"]) == 0
    capsys.readouterr()
    said = {}
    for name in ("a", "b", "e.pth"):
        assert main(["weights", "inspect", str(tmp_path / name)]) == 0
        said[name] = capsys.readouterr().out
    count = f"{model.num_parameters():,} parameters in"
    assert all(count in text for text in said.values())
    assert "model.safetensors: Hugging Face\n2 layers, 2 heads, width 8, context 16, vocabulary 97" in said["a"]
    assert "h.1.mlp.c_fc.weight" in said["b"] and "8 x 32" in said["a"] and "32 x 8" in said["b"]
    assert "how many heads" in said["e.pth"] and "trf_blocks.0.att.W_query.weight" in said["e.pth"]


@pytest.mark.parametrize(
    ("target", "layout", "said"),
    [("x.pth", "hf", "is a folder, name one"), ("x", "book", "must end in"), ("file/x", "nanogpt", "cannot make")],
)
def test_targets_that_do_not_fit_the_layout(tmp_path, model, capsys, target, layout, said):
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "file").touch()
    assert main(["weights", "convert", str(tmp_path / "a"), str(tmp_path / target), "--to", layout]) == 2
    assert said in capsys.readouterr().err


def test_the_tokenizer_is_named_where_it_is_known(tmp_path, model, capsys):
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    assert main(["weights", "inspect", str(tmp_path)]) == 0
    assert "tokenizer: tokenizer.json beside the weights" in capsys.readouterr().out

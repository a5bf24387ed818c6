"""What a source is, and the one error for what is none: hub names, folders of several formats, foreign pickles."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from other_models import randomize, same
from safetensors.torch import load_file, save_file

import gptfast
from gptfast.cli import main
from gptfast.weights import convert, to_book

CONFIG = gptfast.GPTConfig(97, 16, 2, 2, 8)
GOLDEN = Path(__file__).parents[1] / "golden" / "tensorflow"

# What is written for nanoGPT here is read again by gptfast alone.
pytestmark = pytest.mark.filterwarnings("ignore:nanoGPT computes the exact GELU")


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
        (
            lambda p: torch.save({"wte.weight": torch.ones(1).expand(1 << 20, 1 << 20)}, p / "x.pt"),
            "more than the file",
        ),
        (lambda p: torch.save({"wte.weight": torch.eye(4).to_sparse()}, p / "x.pt"), "a sparse tensor"),
        (lambda p: torch.save({"wte.weight": torch.ones(4, 4, device="meta")}, p / "x.pt"), "without content"),
        (lambda p: os.mkfifo(p / "x.pt"), "is no regular file"),
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


def test_a_file_that_was_zipped_again_is_refused(tmp_path, model):
    """torch would map the compressed bytes and take them for weights, without a word."""
    path = convert.write(model, tmp_path, "nanogpt")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(gptfast.GptfastError, match="x.pt is compressed"):
        gptfast.load_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_numbers_that_are_not_weights_are_refused(tmp_path, model, dtype, capsys):
    """Eight bits mean nothing without their scales; `inspect` shows them."""
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(gptfast.GptfastError, match=f"as {kind}, not as weights: gptfast reads fp32, bf16, fp16 and"):
        gptfast.load_weights(state, config=CONFIG)
    state["h.0.attn.bias"] = torch.ones(16, 16, dtype=torch.bool)  # a mask is no weight
    torch.save(state, tmp_path / "x.pt")
    assert main(["weights", "inspect", str(tmp_path / "x.pt")]) == 0
    assert f"tensors, {kind}\n" in capsys.readouterr().out
    if dtype is not torch.complex64:
        save_file(state, tmp_path / "x.safetensors")
        with pytest.raises(gptfast.GptfastError, match=f"as {kind}, not as weights"):
            gptfast.load_weights(tmp_path / "x.safetensors", config=CONFIG)


@pytest.mark.parametrize(
    ("norms", "rest", "loaded"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float64, torch.float16, torch.float64),
    ],
)
def test_types_that_differ_become_the_one_that_holds_them_all(tmp_path, model, norms, rest, loaded, capsys):
    state = {name: t.to(norms if "ln_" in name else rest) for name, t in model.state_dict().items()}
    state["lm_head.weight"] = state["lm_head.weight"].to(loaded)  # still the embedding's numbers
    save_file(state, tmp_path / "model.safetensors")
    ours = gptfast.load_weights(tmp_path / "model.safetensors", config=CONFIG)
    assert ours.config.tie_weights
    assert same(ours.state_dict(), {name: tensor.to(loaded) for name, tensor in state.items()})
    assert main(["weights", "inspect", str(tmp_path / "model.safetensors")]) == 0
    assert f"(loads as {str(loaded).removeprefix('torch.')})" in capsys.readouterr().out
    book = to_book(model)  # three matrices become one
    book["trf_blocks.0.att.W_value.weight"] = book["trf_blocks.0.att.W_value.weight"].double()
    assert same(gptfast.load_weights(book, config=CONFIG).double().state_dict(), model.double().state_dict())


def unusual(model):
    state = model.state_dict()
    wte = state["wte.weight"]
    yield "a sparse tensor .sparse_coo", state | {"wte.weight": wte.to_sparse()}
    yield "a sparse tensor .sparse_csr", state | {"wte.weight": wte.to_sparse_csr()}
    yield "without content", {name: tensor.to("meta") for name, tensor in state.items()}
    yield "nested", state | {"wte.weight": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}
    yield "no shape yet", state | {"wte.weight": torch.nn.LazyLinear(3).weight}
    yield "one of its names is 1", {1: wte}
    with torch._subclasses.FakeTensorMode():
        yield "without content", {name: torch.empty(tensor.shape) for name, tensor in state.items()}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR", "ignore:Lazy modules")
def test_tensors_that_hold_no_plain_numbers(model):
    for said, state in unusual(model):
        with pytest.raises(gptfast.GptfastError, match=said):
            gptfast.load_weights(state, config=CONFIG)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("gpt2", r"pass GPTConfig.preset\('gpt2'\)"),
        (12, "a int; pass a GPTConfig"),
        ([CONFIG], "a list; pass a GPTConfig"),
    ],
)
def test_what_is_no_configuration(model, config, said):
    with pytest.raises(gptfast.GptfastError, match=said):
        gptfast.load_weights(model.state_dict(), config=config)
    with pytest.raises(gptfast.GptfastError, match=said):
        gptfast.GPT(config)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (3, "cannot be loaded from a int; gptfast reads"),
        ("", "from an empty name; gptfast reads"),
        ("./nowhere", "there is no file or folder ./nowhere; gptfast reads"),
        ("no\0where", "there is no file or folder"),
        ("~nouser/model", "cannot read '~nouser/model': Could not determine home directory"),
        ("a" * 300, "cannot read 'a.*a': File name too long"),
        (Path("a" * 300), "cannot read 'a.*a': File name too long"),
        (b"gpt2", "cannot be loaded from a bytes"),
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


def test_names_on_the_hub_come_from_its_cache_when_offline(tmp_path):
    pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--someone--small-gpt2"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    model = gptfast.GPT(gptfast.GPTConfig(257, 16, 1, 2, 8))  # a token for each byte
    model.save_pretrained(repo / "snapshots" / commit)
    code = """
import gptfast
from gptfast.cli import main
for name in ("someone/small-gpt2", "someone/other"):
    try:
        print(sum(p.sum().item() for p in gptfast.GPT.from_pretrained(name).parameters()))
    except gptfast.GptfastError as error:
        print(error)
assert main(["generate", "someone/small-gpt2", "--prompt", "Th", *"--encoding bytes --max-new-tokens 3".split()]) == 0
"""
    found, missing, text = hub(tmp_path, code).splitlines()
    assert float(found) == pytest.approx(sum(p.sum().item() for p in model.parameters()))
    assert missing.startswith("'someone/other' is neither a file nor a folder, and the Hugging Face hub gave no model")
    assert text.startswith("Th")


def test_generate_takes_what_load_weights_reads(tmp_path, capsys):
    """Each gives the text that the model itself gives: a folder of any family, and any file."""
    small = gptfast.GPT(gptfast.GPTConfig(257, 16, 2, 1, 64, activation="gelu"))
    model = randomize(small)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "shards").mkdir()
    for name in ("bin", "shards"):
        (tmp_path / name).mkdir(exist_ok=True)
        shutil.copy(tmp_path / "hf" / "config.json", tmp_path / name)
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    torch.save(tensors, tmp_path / "bin" / "pytorch_model.bin")
    save_file(tensors, tmp_path / "shards" / "a.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors")}
    (tmp_path / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    convert.write(model, tmp_path / "nano", "nanogpt")
    texts = set()
    sources = ("hf", "hf/model.safetensors", "bin", "shards", "nano", "nano/ckpt.pt")
    for source in sources:
        flags = ["--encoding", "bytes", "--max-new-tokens", "5", "--temperature", "0", "--prompt", "The"]
        assert main(["generate", str(tmp_path / source), *flags]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1 and texts.pop().startswith("The")
    for source, said in (("hf", "no run with checkpoints"), ("a" * 300, "File name too long")):
        assert main(["generate", str(tmp_path / source), "--checkpoint", "last"]) == 2
        assert said in capsys.readouterr().err


def test_generate_reads_openais_checkpoint(tmp_path, capsys):
    flags = ["--encoding", "bytes", "--max-new-tokens", "2"]
    assert main(["generate", str(GOLDEN), *flags]) == 2  # its vocabulary is too small for any tokenizer of ours
    assert "has 257 tokens, the model" in capsys.readouterr().err


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


def test_convert_with_heads_that_the_file_does_not_say(tmp_path, model, capsys):
    convert.write(model, tmp_path / "book.pth", "book")
    command = ["weights", "convert", str(tmp_path / "book.pth"), str(tmp_path / "hf"), "--to", "hf"]
    for more, said in (([], "--n-head"), (["--n-head", "3"], "multiple of n_head"), (["--n-head", "0"], "n_head = 0")):
        assert main([*command, *more]) == 2
        assert said in capsys.readouterr().err
    assert main([*command, "--n-head", "2"]) == 0
    again = gptfast.load_weights(tmp_path / "hf")
    assert same(again.state_dict(), model.state_dict()) and again.config == model.config
    command[2] = str(tmp_path / "hf")
    assert main([*command, "--n-head", "4"]) == 2
    assert "says that it has 2 heads" in capsys.readouterr().err


def test_convert_says_where_the_other_computes_another_gelu(tmp_path, model, capsys):
    model.save_pretrained(tmp_path / "hf")
    assert main(["weights", "convert", str(tmp_path / "hf"), str(tmp_path / "nano"), "--to", "nanogpt"]) == 0
    assert "note: nanoGPT computes the exact GELU" in capsys.readouterr().err


def test_inspect_of_a_file_that_promises_more_than_it_has(tmp_path, model, capsys):
    state = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in model.state_dict().items()}
    torch.save(state | {"wpe.weight": torch.zeros(1).expand(1 << 22, 8)}, tmp_path / "x.pt")
    model.save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    for name, said in (("x.pt", "claims tensors of"), ("model.safetensors", "cannot be read")):
        assert main(["weights", "inspect", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err


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

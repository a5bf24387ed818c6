"""Files, settings, weights, precision, schedules and the command line: the parts that everything stands on."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptfast
from gptfast import cli, files, machine, precision
from gptfast.optim import adamw, learning_rate
from gptfast.precision import ComputeCopy
from gptfast.report import read_metrics
from gptfast.settings import parse, read_recipe, to_flags

# Files


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.atomic_write(path, "w") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_one_clear_error(tmp_path):
    with (
        pytest.raises(gptfast.GptfastError, match="cannot write .*file: No space left"),
        files.atomic_write(tmp_path / "file"),
    ):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_write_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    files.write_json(tmp_path / "a.json", {"x": 1})
    assert calls == ["fsync", "replace", "fsync"]  # file, rename, folder
    assert files.read_json(tmp_path / "a.json") == {"x": 1}


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(gptfast.GptfastError, match="a.json is not valid JSON"):
        files.read_json(tmp_path / "a.json")


def test_metrics_leave_out_a_line_cut_by_a_kill(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 1}, {"step": 2}]


# Settings


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


# Weights


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
    gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, window=4)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] != "gpt2"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: (p / "model.safetensors").write_bytes(b"no"), "model.safetensors cannot be read"),
        (lambda p: (p / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda p: drop(p, "transformer.ln_f.weight"), "have no 'ln_f.weight'"),
        (lambda p: change(p, n_embd=16, gptfast=None), "but the configuration needs"),
        (lambda p: change(p, model_type="llama", gptfast=None), "describes a 'llama' model"),
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


# Precision and optimizer


def test_the_bf16_copy_is_the_rounded_master_and_its_gradients_arrive_in_fp32():
    torch.manual_seed(0)
    model = gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8))
    copy = ComputeCopy(model, torch.bfloat16)
    assert copy.model.lm_head.weight is copy.model.wte.weight  # still tied, so counted once
    with torch.no_grad():
        model.wte.weight.add_(1.0)
    copy.refresh()
    for master, copied in zip(model.parameters(), copy.model.parameters(), strict=True):
        assert torch.equal(master.bfloat16(), copied)
    idx = torch.randint(97, (2, 16))
    copy.clear_gradients()
    single = []
    for _ in range(2):
        copy.model(idx, idx).backward()
        single.append([p.grad.float() for p in copy.model.parameters()])
        copy.collect_gradients()
    for parameter, a, b in zip(model.parameters(), *single, strict=True):
        assert parameter.grad.dtype == torch.float32 and torch.equal(parameter.grad, a + b)
    copy.clear_gradients()
    copy.model(idx, idx).backward()
    copy.collect_gradients()
    assert torch.equal(model.wte.weight.grad, single[0][0])


def test_fp32_trains_the_model_itself():
    model = gptfast.GPT(gptfast.GPTConfig(97, 16, 1, 2, 8))
    assert ComputeCopy(model, torch.float32).model is model


def test_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert precision.choose("cpu").name == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert precision.choose("cpu").name == "bf16" and "AVX512-BF16" in precision.choose("cpu").reason
    assert precision.choose("cpu", "fp32").name == "fp32"
    with pytest.raises(gptfast.GptfastError, match="unknown precision"):
        precision.choose("cpu", "fp8")


def test_an_absent_device_is_refused():
    with pytest.raises(gptfast.GptfastError, match="unknown device 'gpu'"):
        machine.choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(gptfast.GptfastError, match="not on this machine"):
            machine.choose_device("cuda")


def test_only_matrices_decay():
    model = gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8))
    decayed, free = adamw(model, 1e-3).param_groups
    assert decayed["weight_decay"] == 0.1 and all(p.dim() == 2 for p in decayed["params"])
    assert free["weight_decay"] == 0.0 and all(p.dim() == 1 for p in free["params"])
    assert sum(p.numel() for g in (decayed, free) for p in g["params"]) == model.num_parameters()


def test_cosine_schedule_is_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 90, eta_min=0.1)
    for step in range(10, 101):
        assert learning_rate(step, 100, 1.0, warmup=10) == pytest.approx(theirs.get_last_lr()[0])
        theirs.step()


def test_warmup_and_wsd():
    rates = [learning_rate(s, 100, 2.0, schedule="wsd", warmup=4, decay=0.2, floor=0.1) for s in range(101)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and set(rates[4:81]) == {2.0}
    assert rates[90] == pytest.approx(1.1) and rates[100] == pytest.approx(0.2)
    assert learning_rate(99, 100, 2.0, schedule="constant") == 2.0
    with pytest.raises(gptfast.GptfastError, match="unknown schedule"):
        learning_rate(1, 2, 1.0, schedule="linear")


def test_flops_per_token_of_gpt2():
    with torch.device("meta"):
        model = gptfast.GPT(gptfast.GPTConfig.preset("gpt2"))
    assert model.flops_per_token() == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024


# The command line


def test_help_names_every_command(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help_for_every_flag(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([*command.split(), "--help"])
    assert left.value.code == 0
    assert "usage: gptfast " + command in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["pretrian"]) == 2
    assert "did you mean `gptfast pretrain`" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gptfast {gptfast.__version__}\n"


def test_every_public_name_is_there():
    for name in gptfast.__all__:
        assert getattr(gptfast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'GTP'"):
        gptfast.GTP  # noqa: B018
    assert math.isclose(gptfast.GPTConfig().layer_norm_eps, 1e-5)


def test_demo_uses_pythons_own_documentation(tmp_path, capsys, monkeypatch):
    from gptfast import demo

    assert len(demo.python_documentation()) > 300_000
    monkeypatch.setattr(
        demo, "CPU_MODEL", {"n_layer": 1, "n_head": 1, "n_embd": 16, "context_length": 16, "batch_size": 2}
    )
    monkeypatch.setattr(demo, "GPU_MODEL", demo.CPU_MODEL)
    assert cli.main(["demo", "--out", str(tmp_path), "--minutes", "0"]) == 0
    out = capsys.readouterr().out
    run = next(p for p in tmp_path.iterdir() if (p / "loss.png").is_file())
    assert out.count("sample after step") == 4 and f"gptfast generate {run}" in out

"""Precision, the bf16 copy, devices, the optimizer and its schedules."""

from __future__ import annotations

import pytest
import torch

import gptfast
from gptfast import machine, precision
from gptfast.optim import adamw, learning_rate
from gptfast.precision import ComputeCopy


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
        optimizer.step()
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

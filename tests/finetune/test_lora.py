"""LoRA: the gradients of the paper's formulas, nothing else trained, merging, and PEFT's files both ways."""

from __future__ import annotations

import json

import pytest
import torch
from rule import assert_as_good_as_torch
from torch.nn import functional as F

import gptfast
from gptfast.lora import (
    LoRAConfig,
    LoRALinear,
    add_lora,
    load_lora,
    lora_parameters,
    merge_lora,
    remove_lora,
    save_lora,
    unmerge_lora,
)  # fmt: skip
from gptfast.optim import adamw
from gptfast.precision import ComputeCopy

CONFIG = gptfast.GPTConfig(vocab_size=97, context_length=32, n_layer=2, n_head=2, n_embd=32)
EVERY = ("c_attn", "c_proj", "c_fc")


def new_model(seed=0):
    torch.manual_seed(seed)
    model = gptfast.GPT(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def trained(targets=EVERY, rank=4, seed=0):
    """A model whose adapters are not zero."""
    model = new_model(seed)
    add_lora(model, LoRAConfig(rank, 8, targets=targets))
    for parameter in lora_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    return model


IDX = torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_the_model_is_the_base_bit_for_bit_and_keeps_its_parameters(dtype):
    model = new_model().to(dtype)
    before, state = model(IDX), model.state_dict()
    add_lora(model, LoRAConfig(4, targets=EVERY))
    assert torch.equal(model(IDX), before)
    after = model.state_dict()
    assert all(after[name].data_ptr() == tensor.data_ptr() for name, tensor in state.items())
    extra = set(after) - set(state)
    A = model.h[0].attn.c_attn.lora_A  # uniform, as PEFT's
    assert 0.8 * 32**-0.5 < A.abs().max() <= 32**-0.5
    assert len(extra) == 2 * 2 * 4 and all(name.endswith(("lora_A", "lora_B")) for name in extra)


def test_output_and_gradients_are_the_formulas_of_the_header():
    torch.manual_seed(0)
    model = new_model().double()
    add_lora(model, LoRAConfig(3, 7.0))
    layer = model.h[0].attn.c_attn
    A, B, W, b = (layer.lora_A, layer.lora_B, layer.weight, layer.bias)
    torch.nn.init.normal_(B)
    x = torch.randn(5, 32, dtype=torch.float64, requires_grad=True)
    g = torch.randn(5, 96, dtype=torch.float64)
    y = layer(x)
    y.backward(g)
    s = 7.0 / 3
    torch.testing.assert_close(y, x @ (W + s * B @ A).T + b)
    torch.testing.assert_close(B.grad, s * g.T @ x @ A.T)
    torch.testing.assert_close(A.grad, s * (g @ B).T @ x)
    torch.testing.assert_close(x.grad, g @ (W + s * B @ A))
    assert W.grad is None and b.grad is None


def test_only_the_adapters_have_gradients_and_optimizer_state():
    """rank (in + out) a layer; for GPT-2 124M at rank 16 the number of docs/lora.md."""
    model = new_model()
    frozen = {name: p.clone() for name, p in model.named_parameters()}
    add_lora(model, LoRAConfig(16, targets=("c_attn",)))
    optimizer = adamw(model, 1e-2)
    model(IDX, IDX).backward()
    optimizer.step()
    own = {id(p) for p in lora_parameters(model)}
    assert {id(p) for p in model.parameters() if p.grad is not None} == own
    assert {id(p) for p in optimizer.state} == own
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert sum(p.numel() for p in lora_parameters(model)) == 2 * 16 * (32 + 96)
    for targets, number in ((("c_attn",), 589_824), (EVERY, 2_359_296)):
        block = gptfast.GPT(gptfast.GPTConfig(vocab_size=2, context_length=2, n_layer=1))  # of GPT-2, which has 12
        add_lora(block, LoRAConfig(16, targets=targets))
        assert 12 * sum(p.numel() for p in block.parameters() if p.requires_grad) == number


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_equals_unmerged_within_the_rule_and_unmerging_is_exact(dtype):
    model = trained()
    reference = trained().double()
    model.to(dtype)
    reference.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    layer, wide = model.h[1].mlp.c_fc, reference.h[1].mlp.c_fc
    expected, unmerged = wide(x.double()), layer(x)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(IDX)
    merge_lora(model)
    merge_lora(model)  # once is enough
    plain = F.linear(x, (wide.weight + wide.scale * wide.lora_B @ wide.lora_A).to(dtype), layer.bias)
    assert_as_good_as_torch(layer(x), plain, expected, "merged")
    assert_as_good_as_torch(unmerged, plain, expected, "unmerged")
    assert not torch.equal(layer.weight, weights["h.1.mlp.c_fc.weight"])
    unmerge_lora(model)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(IDX), logits)


def test_a_merged_model_is_saved_as_a_plain_one_and_a_plain_one_is_left_when_lora_is_removed(tmp_path):
    model = trained()
    merge_lora(model)
    model.save_pretrained(tmp_path)
    saved, merged = gptfast.GPT.from_pretrained(tmp_path), model.state_dict()
    assert set(saved.state_dict()) == set(merged)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in saved.state_dict().items())
    remove_lora(model)
    assert torch.equal(model(IDX), saved(IDX)) and all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    assert set(model.state_dict()) == set(new_model().state_dict())


def test_dropout_is_of_the_update_in_training_only():
    model = trained()
    plain = model(IDX)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.dropout = 0.5
    assert not torch.equal(model(IDX), plain)
    assert torch.equal(model.eval()(IDX), plain)


def test_the_bf16_copy_trains_the_adapters():
    model = new_model()
    add_lora(model, LoRAConfig(4))
    copy, optimizer = ComputeCopy(model, torch.bfloat16), adamw(model, 1e-2)
    losses = []
    for _ in range(8):
        copy.clear_gradients()
        loss = copy.model(IDX, IDX)
        loss.backward()
        copy.collect_gradients()
        optimizer.step()
        copy.refresh()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and all(p.grad is None for n, p in model.named_parameters() if "lora" not in n)


@pytest.mark.parametrize("targets", [("c_attn",), EVERY, ("attn.c_proj",), ("h.1.mlp.c_fc",)])
def test_peft_loads_what_we_saved_with_equal_logits(tmp_path, targets):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = new_model()
    base.save_pretrained(tmp_path / "base")
    model = trained(targets)
    save_lora(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    torch.testing.assert_close(model(IDX), theirs(IDX).logits, atol=2e-5, rtol=1e-5)
    assert (model(IDX) - base(IDX)).abs().max() > 0.02
    merged = theirs.merge_and_unload()
    merge_lora(model)
    torch.testing.assert_close(model(IDX), merged(IDX).logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj"], r".*h\.1\..*c_fc"])
def test_an_adapter_that_peft_trained_gives_equal_logits_here(tmp_path, targets):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = new_model()
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=3, lora_alpha=5, lora_dropout=0.25, target_modules=targets, fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base"), config)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        theirs(IDX, labels=IDX).loss.backward()
        optimizer.step()
    theirs.eval().save_pretrained(tmp_path / "adapter")
    loaded = load_lora(base, tmp_path / "adapter")
    assert (loaded.rank, loaded.alpha, loaded.dropout) == (3, 5, 0.25)
    torch.testing.assert_close(base.eval()(IDX), theirs(IDX).logits, atol=2e-5, rtol=1e-5)
    assert not any(p.requires_grad for n, p in base.named_parameters() if "lora" not in n)


class Wrapped(torch.nn.Module):
    """As the classifier is: a GPT inside, and a layer of its own."""

    def __init__(self):
        super().__init__()
        self.body, self.c_attn = new_model(), torch.nn.Linear(32, 2)


def test_names_are_those_of_the_gpt_inside(tmp_path):
    model = Wrapped()
    add_lora(model, LoRAConfig(4))
    assert type(model.c_attn) is torch.nn.Linear and not model.c_attn.weight.requires_grad
    save_lora(model, tmp_path)
    other = new_model()
    load_lora(other, tmp_path)
    assert torch.equal(other.h[1].attn.c_attn.lora_A, model.body.h[1].attn.c_attn.lora_A)


def test_targets_that_cannot_be_are_refused():
    model = new_model()
    for bad, message in [
        (LoRAConfig(0), "rank is 0"),
        (LoRAConfig(33), "rank is 33; that of h.0.attn.c_attn is 32 at most"),
        (LoRAConfig(4, 0), "alpha is 0"),
        (LoRAConfig(4, dropout=1.0), "dropout is 1.0"),
        (LoRAConfig(targets=()), "no targets; choose among attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj"),
        (LoRAConfig(targets=("q_proj",)), "'q_proj'; choose among attn.c_attn"),
        (LoRAConfig(targets=("ln_1",)), "'ln_1'"),
        (LoRAConfig(targets=("lm_head",)), "'lm_head'"),
    ]:
        with pytest.raises(gptfast.GptfastError, match=message):
            add_lora(model, bad)
        assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(gptfast.GptfastError, match="no LoRA layers to save"):
        save_lora(model, "never-written")
    add_lora(model, LoRAConfig())
    with pytest.raises(gptfast.GptfastError, match="already"):
        add_lora(model, LoRAConfig())
    with pytest.raises(gptfast.GptfastError, match="not for a Linear"):
        add_lora(torch.nn.Linear(2, 2), LoRAConfig())


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    save_lora(trained(), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())

    def refused(message, model=None, **changes):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        model = model or new_model()
        with pytest.raises(gptfast.GptfastError, match=message):
            load_lora(model, tmp_path)
        assert not any(isinstance(m, LoRALinear) for m in model.modules())

    refused("asks for use_dora", use_dora=True)
    refused("asks for rank_pattern", rank_pattern={"c_attn": 2})
    refused("asks for init_lora_weights = 'pissa'", init_lora_weights="pissa")  # it would change the base's weights too
    refused("not plain LoRA", peft_type="LOHA")
    refused("not plain LoRA", bias="all")
    refused("does not fit this model: h.0.attn.c_attn.lora_A", r=5)
    refused("not numbers", lora_alpha="many")
    refused("does not fit", gptfast.GPT(gptfast.GPTConfig(97, 32, 2, 2, 16)))
    refused("does not fit", gptfast.GPT(gptfast.GPTConfig(97, 32, 1, 2, 32)))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"12345678 nonsense")
    refused("cannot read")
    (tmp_path / "adapter_model.safetensors").unlink()
    refused("cannot read")
    with pytest.raises(gptfast.GptfastError, match="adapter_config.json"):
        load_lora(new_model(), tmp_path / "nowhere")


def test_a_model_with_adapters_is_not_saved_as_a_plain_one(tmp_path):
    model = gptfast.GPT(gptfast.GPTConfig(vocab_size=31, context_length=8, n_layer=1, n_head=1, n_embd=16))
    add_lora(model, LoRAConfig(rank=2))
    with pytest.raises(gptfast.GptfastError, match="merge_lora"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    merge_lora(model)
    model.save_pretrained(tmp_path)
    assert gptfast.GPT.from_pretrained(tmp_path).num_parameters()

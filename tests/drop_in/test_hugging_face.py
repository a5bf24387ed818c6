"""gptfast.accelerate on transformers' GPT-2: every class, generation, and what people do with their models."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import T, V, assert_close, hugging_face
from torch import nn

import gptfast
from gptfast.drop_in.lazy import LazyLogits

transformers = pytest.importorskip("transformers")


def pair(cls="GPT2LMHeadModel", **settings):
    """The same model twice, the second accelerated."""
    torch.manual_seed(0)
    model = hugging_face(cls, **settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model, gptfast.accelerate(copy.deepcopy(model))


def both(models, *args, **kwargs):
    """The outputs of both, and all gradients of what they add up to."""
    found = []
    for model in models:
        model.zero_grad()
        output = model(*args, **kwargs)
        tensors = [x for x in output.to_tuple() if isinstance(x, torch.Tensor)]
        sum(x.float().square().mean() for x in tensors).backward()
        found.append([x.detach() for x in tensors])
        found[-1] += [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return found


IDS = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(1))
LABELS = {"labels": IDS}
CALLS = {
    "GPT2Model": {},
    "GPT2LMHeadModel": LABELS,
    "GPT2ForSequenceClassification": {"labels": torch.tensor([0, 1])},
    "GPT2ForTokenClassification": {"labels": IDS % 2},
    "GPT2DoubleHeadsModel": {
        "mc_token_ids": torch.tensor([[3, 7]]),
        "mc_labels": torch.tensor([1]),
        "labels": IDS[None],
    },
}


@pytest.mark.parametrize("cls", CALLS)
def test_every_class(cls):
    ids = IDS[None] if cls == "GPT2DoubleHeadsModel" else IDS
    assert_close(*reversed(both(pair(cls), ids, **CALLS[cls])))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("cls", ["GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2ForTokenClassification"])
def test_padded_batches(cls, side):
    mask = torch.ones_like(IDS)
    mask[0, slice(-5, None) if side == "right" else slice(5)] = 0
    ids = IDS.clamp(min=1).masked_fill(mask == 0, 0)  # 0 is the padding token
    labels = CALLS[cls]["labels"]
    if labels.dim() == 2:  # what follows padding is no label, nor is what padding predicts
        labels = labels.masked_fill(mask * mask.roll(1, 1) == 0, -100)
    want, got = (model(ids, attention_mask=mask, labels=labels).loss for model in pair(cls))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


GENERATION = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 20, "temperature": 0.8},
    "beams": {"do_sample": False, "num_beams": 3},
    "without a cache": {"do_sample": False, "use_cache": False},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("how", GENERATION)
def test_generate_is_the_same_token_by_token(how, padded):
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, : 3 * padded] = 0
    found = []
    for model in pair():
        torch.manual_seed(0)
        found.append(model.generate(IDS[:, :6], attention_mask=mask, max_new_tokens=10, **GENERATION[how]))
    assert torch.equal(*found)


def test_assisted_generation_is_the_same():
    plain, fast = pair()
    draft = gptfast.accelerate(hugging_face(n_layer=1).eval())
    want = plain.generate(IDS[:1, :6], max_new_tokens=10, do_sample=False)
    assert torch.equal(fast.generate(IDS[:1, :6], max_new_tokens=10, do_sample=False, assistant_model=draft), want)


def test_what_the_fast_path_cannot_do_runs_the_models_own():
    for settings, told in (
        ({"scale_attn_by_inverse_layer_idx": True}, "fast: attention"),
        ({"attn_implementation": "eager"}, "output_attentions may be asked"),
        ({"reorder_and_upcast_attn": True, "attn_implementation": "eager"}, "reorder_and_upcast_attn"),
        ({"activation_function": "relu"}, "is no GELU"),
        ({"scale_attn_weights": False}, "fast: attention"),
    ):
        models = pair(**settings)
        assert told in gptfast.explain(models[1])
        assert_close(*reversed(both(models, IDS, **LABELS)))


def test_cross_attention_and_attentions():
    settings = {"add_cross_attention": True, "attn_implementation": "eager"}
    models = pair(**settings)
    assert "it has cross attention" in gptfast.explain(models[1])
    encoder = torch.randn(2, 7, 32)
    assert_close(*reversed(both(models, IDS, encoder_hidden_states=encoder, **LABELS)))
    plain, _ = pair(attn_implementation="eager")
    plain.config.output_attentions = True
    gptfast.accelerate(plain)
    assert "output_attentions" in gptfast.explain(plain)
    assert len(plain(IDS).attentions) == 2


def test_hidden_states():
    plain, fast = (model(IDS, output_hidden_states=True).hidden_states for model in pair())
    assert len(plain) == len(fast) == 3
    assert_close(fast, plain)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    models = pair()
    want = both(models, IDS, **LABELS)[0]
    fast = models[1].train()
    fast.gradient_checkpointing_enable({"use_reentrant": reentrant})
    fast.zero_grad()
    output = fast(IDS, use_cache=False, **LABELS)
    (output.loss.square() + output.logits.square().mean()).backward()
    assert_close([p.grad for p in fast.parameters()], want[2:] if len(want) > len(list(fast.parameters())) else want)


def test_embeddings_of_another_size():
    models = pair()
    for model in models:
        torch.manual_seed(0)
        model.resize_token_embeddings(V + 7)
    assert_close(*reversed(both(models, IDS, **LABELS)))


def test_saved_and_loaded(tmp_path):
    plain, fast = pair()
    fast.save_pretrained(tmp_path)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert again.config._attn_implementation != "gptfast"
    fast.load_state_dict(plain.state_dict())


def test_a_model_in_ddp(tmp_path):
    models = pair()
    want = both(models, IDS, **LABELS)[0]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(models[1])
        models[1].zero_grad()
        output = wrapped(IDS, **LABELS)
        assert isinstance(output.logits, LazyLogits)
        (output.loss.square() + output.logits.square().mean()).backward()
    finally:
        torch.distributed.destroy_process_group()
    gradients = [p.grad for p in models[1].parameters()]
    assert_close(gradients, want[-len(gradients) :])


def test_lora():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    results = []
    for order in ("before", "after", "never"):
        torch.manual_seed(0)
        model = hugging_face().eval()
        if order == "before":
            gptfast.accelerate(model)
        config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
        model = peft.get_peft_model(model, config)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                nn.init.normal_(parameter, std=0.3)
        if order == "after":
            gptfast.accelerate(model)
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for n, p in model.named_parameters() if "lora" in n)])
    assert_close(results[0], results[2])
    assert_close(results[1], results[2])


def test_labels_with_a_number_of_items():
    """As the Trainer gives them under gradient accumulation."""
    plain, fast = (model(IDS, labels=IDS, num_items_in_batch=torch.tensor(57)).loss for model in pair())
    torch.testing.assert_close(fast, plain)

"""The model against transformers' GPT-2, the published sizes, and its own definition."""

from __future__ import annotations

import math

import pytest
import torch

import gptfast
from gptfast.config import PRESETS

SMALL = gptfast.GPTConfig(vocab_size=97, context_length=32, n_layer=3, n_head=4, n_embd=32)


def parameters(config: gptfast.GPTConfig) -> int:
    with torch.device("meta"):
        return gptfast.GPT(config).num_parameters()


def test_gpt2_family_has_the_published_parameter_counts():
    counts = {name: parameters(gptfast.GPTConfig.preset(name)) for name in PRESETS if name.startswith("gpt2")}
    assert counts == {
        "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    }  # fmt: skip


def test_the_books_untied_124m():
    config = gptfast.GPTConfig.preset("gpt2", tie_weights=False, qkv_bias=False)
    # 163,009,536 is the book's count; its positions are 1024 and its output head has no bias, as here.
    assert parameters(config) == 163_009_536


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("small", 125e6), ("medium", 350e6), ("large", 760e6), ("xl", 1.3e9),
        ("2.7b", 2.7e9), ("6.7b", 6.7e9), ("13b", 13.0e9), ("175b", 175e9),
    ],
)  # fmt: skip
def test_gpt3_family_has_the_published_sizes(name, published):
    # The paper gives two or three digits; 3 % covers its rounding.
    assert parameters(gptfast.GPTConfig.preset(f"gpt3-{name}")) == pytest.approx(published, rel=0.03)


def test_gpt3_alternates_dense_and_banded_layers():
    windows = gptfast.GPTConfig.preset("gpt3-small").windows
    assert windows[0::2] == [None] * 6 and all(isinstance(w, int) for w in windows[1::2])


def transformers_model(config: gptfast.GPTConfig):
    transformers = pytest.importorskip("transformers")
    hf = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context_length, n_layer=config.n_layer, n_head=config.n_head,
        n_embd=config.n_embd, tie_word_embeddings=config.tie_weights, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(hf).eval()
    for parameter in model.parameters():  # LayerNorms and biases too: ones and zeros would hide a mistake
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_transformers(tmp_path, tied):
    config = gptfast.GPTConfig(97, 32, 3, 4, 32, tie_weights=tied)
    theirs = transformers_model(config)
    theirs.save_pretrained(tmp_path)
    ours = gptfast.GPT.from_pretrained(tmp_path).eval()
    idx = torch.randint(97, (2, 32))
    torch.testing.assert_close(ours(idx), theirs(idx).logits, rtol=1e-4, atol=1e-4)


def test_loss_and_gradients_equal_transformers(tmp_path):
    theirs = transformers_model(SMALL)
    theirs.save_pretrained(tmp_path)
    ours = gptfast.GPT.from_pretrained(tmp_path)
    theirs.eval(), ours.eval()
    idx = torch.randint(97, (3, 33))
    labels = idx.clone()
    labels[0, 5:9] = -100
    want = theirs(idx[:, :32], labels=None).logits
    want = torch.nn.functional.cross_entropy(want.flatten(0, 1), labels[:, 1:].flatten())
    got = ours(idx[:, :32], labels[:, 1:])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    want.backward()
    got.backward()
    torch.testing.assert_close(ours.wte.weight.grad, theirs.transformer.wte.weight.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        ours.h[1].attn.c_attn.weight.grad, theirs.transformer.h[1].attn.c_attn.weight.grad.T, rtol=1e-3, atol=1e-5
    )


def test_initialisation_is_gpt2s():
    torch.manual_seed(0)
    model = gptfast.GPT(gptfast.GPTConfig(1000, 64, 8, 4, 128))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.h[3].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    for projection in (model.h[3].attn.c_proj, model.h[3].mlp.c_proj):
        assert projection.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.03)
        assert not projection.bias.any()
    assert model.lm_head.weight is model.wte.weight


def test_a_query_sees_only_its_window():
    config = gptfast.GPTConfig(97, 32, 2, 4, 32, window=(None, 3))
    torch.manual_seed(0)
    model = gptfast.GPT(config).double().eval()
    model.h[0].attn.window = 3  # both layers banded: position 31 reaches back 2 + 2 positions
    idx = torch.randint(97, (1, 32))
    changed = idx.clone()
    changed[0, 26] = (idx[0, 26] + 1) % 97
    before, after = model(idx), model(changed)
    assert torch.equal(before[0, 31], after[0, 31])
    assert not torch.equal(before[0, 30], after[0, 30])
    assert torch.equal(before[0, :26], after[0, :26])


def test_documents_do_not_see_each_other():
    torch.manual_seed(0)
    model = gptfast.GPT(SMALL).double().eval()
    idx = torch.randint(97, (2, 32))
    cuts = torch.tensor([0, 10, 32, 52, 64], dtype=torch.int32)
    together = model(idx, cu_seqlens=cuts)
    changed = idx.clone()
    changed[:, :10] = torch.randint(97, (2, 10))
    again = model(changed, cu_seqlens=cuts)
    assert torch.equal(together[0, 10:], again[0, 10:])
    assert not torch.equal(together[1, 10:20], again[1, 10:20])
    assert torch.equal(together[1, 20:], again[1, 20:])


def test_dropout_is_on_in_training_only():
    torch.manual_seed(0)
    model = gptfast.GPT(gptfast.GPTConfig(97, 32, 2, 4, 32, dropout=0.5))
    idx = torch.randint(97, (1, 16))
    assert not torch.equal(model(idx), model(idx))
    model.eval()
    assert torch.equal(model(idx), model(idx))


def test_compiled_without_graph_breaks():
    torch.manual_seed(0)
    model = gptfast.GPT(SMALL)
    idx = torch.randint(97, (2, 2, 32))
    want = model(*idx)
    got = torch.compile(model, fullgraph=True, backend="aot_eager")(*idx)
    torch.testing.assert_close(got, want)
    got.backward()
    assert model.wte.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_head": 5}, "multiple of n_head"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"window": (None, 0)}, "at least 1 key"),
        ({"n_layer": 0}, "n_layer is 0"),
    ],
)
def test_impossible_shapes_are_refused(changes, said):
    with pytest.raises(gptfast.GptfastError, match=said):
        gptfast.GPTConfig(**changes)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(gptfast.GptfastError, match="did you mean 'gpt2-large'"):
        gptfast.GPTConfig.preset("gpt2-lage")


def test_too_long_a_sequence_is_refused():
    with pytest.raises(gptfast.GptfastError, match="33 tokens do not fit"):
        gptfast.GPT(SMALL)(torch.zeros(1, 33, dtype=torch.long))

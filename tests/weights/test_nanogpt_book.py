"""nanoGPT's and the book's layouts, against models of those interfaces: what is loaded computes the same, and what is
written loads strictly, bit for bit.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from other_models import BOOK, BookGPT, NanoConfig, NanoGPT, randomize, same
from safetensors.torch import save_file
from torch.nn import functional as F

import gptfast
from gptfast.weights import convert, to_book, to_nanogpt

IDX = torch.arange(16)[None] * 5 % 97
BOOK_CFG = BOOK | {"vocab_size": 97, "context_length": 16, "emb_dim": 8}


def nanogpt(**changes):
    return NanoGPT(NanoConfig(**({"block_size": 16, "vocab_size": 97, "n_embd": 8} | changes)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_nanogpt_checkpoint(tmp_path, bias, compiled):
    theirs = randomize(nanogpt(bias=bias))
    state = theirs.state_dict()
    if compiled:
        state = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    optimizer = torch.optim.AdamW(theirs.parameters())
    checkpoint = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": asdict(theirs.config),
        "iter_num": 7,
        "best_val_loss": torch.tensor(3.5),
        "config": {"dataset": "x"},
    }
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    for source in (tmp_path, tmp_path / "ckpt.pt", checkpoint):
        ours = gptfast.load_weights(source)
        assert ours.config == gptfast.GPTConfig(97, 16, 2, 2, 8, bias=bias, activation="gelu")
        assert ours.lm_head.weight is ours.wte.weight
        assert same(to_nanogpt(ours)["model"], theirs.state_dict())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("said", [True, False])
def test_nanogpt_computes_the_same(bias, said):
    """In fp64, where the tanh form of GELU would show; known by its model_args, or by its names where the heads are 64
    wide.
    """
    theirs = randomize(nanogpt(bias=bias, **({} if said else {"n_embd": 128}))).double()
    args = {"model_args": asdict(theirs.config)} if said else {}
    ours = gptfast.load_weights({"model": theirs.state_dict()} | args).eval()
    assert ours.config.activation == "gelu" and ours.wte.weight.dtype == torch.float64
    torch.testing.assert_close(ours(IDX), theirs(IDX, IDX)[0], rtol=1e-9, atol=1e-9)
    handle = ours.h[0].mlp.c_fc.register_forward_hook(lambda *_: None)  # the MLP's other way
    torch.testing.assert_close(ours(IDX), theirs(IDX, IDX)[0], rtol=1e-9, atol=1e-9)
    handle.remove()


def test_a_state_dict_of_gptfast_is_not_taken_for_nanogpts():
    ours = gptfast.GPT(gptfast.GPTConfig(97, 16, 1, 2, 128))
    assert gptfast.load_weights(ours.state_dict()).config.activation == "gelu_new"


@pytest.mark.parametrize(("to", "activation"), [(to_nanogpt, "gelu_new"), (to_book, "gelu")])
def test_another_gelu_is_said(to, activation):
    with pytest.warns(UserWarning, match="activations will differ by up to 5e-4"):
        to(gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, activation=activation)))


def test_a_padded_vocabulary_is_kept(tmp_path):
    theirs = randomize(nanogpt(vocab_size=128))
    checkpoint = {"model": theirs.state_dict(), "model_args": asdict(theirs.config)}
    assert gptfast.load_weights(checkpoint).config.vocab_size == 128
    with pytest.raises(gptfast.GptfastError, match="vocabulary of 128 tokens, the configuration says 97"):
        gptfast.load_weights(checkpoint, config=gptfast.GPTConfig(97, 16, 2, 2, 8))


@pytest.mark.parametrize("bias", [True, False])
def test_written_for_nanogpt(tmp_path, bias):
    ours = randomize(gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, bias=bias, activation="gelu")))
    path = convert.write(ours, tmp_path, "nanogpt")
    saved = torch.load(path, weights_only=True)
    theirs = NanoGPT(NanoConfig(**saved["model_args"]))
    theirs.load_state_dict(saved["model"])  # strictly
    again = gptfast.load_weights(path)
    assert same(again.state_dict(), ours.state_dict()) and again.config == ours.config


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("suffix", ["", ".pth", ".pt", ".safetensors"])
def test_book_state_dict(tmp_path, qkv_bias, suffix):
    cfg = BOOK_CFG | {"qkv_bias": qkv_bias}
    theirs = randomize(BookGPT(cfg))
    source = theirs.state_dict()
    if suffix == ".safetensors":
        save_file(source, tmp_path / "model.safetensors")
    elif suffix:
        torch.save(source if suffix == ".pth" else {"model_state_dict": source}, tmp_path / f"model{suffix}")
    ours = gptfast.load_weights(tmp_path / f"model{suffix}" if suffix else source, config=cfg).eval()
    assert ours.config == gptfast.GPTConfig(97, 16, 2, 2, 8, qkv_bias=qkv_bias, tie_weights=False)
    assert same(to_book(ours), source)
    torch.testing.assert_close(ours(IDX), theirs(IDX), rtol=1e-4, atol=1e-4)


def test_a_book_model_whose_head_equals_its_embedding_is_tied():
    theirs = randomize(BookGPT(BOOK_CFG))
    theirs.out_head.weight = theirs.tok_emb.weight
    ours = gptfast.load_weights(theirs.state_dict(), config=BOOK_CFG)
    assert ours.config.tie_weights and ours.lm_head.weight is ours.wte.weight


def test_heads_are_64_wide_where_nobody_says_it():
    theirs = BookGPT(BOOK_CFG | {"emb_dim": 192, "n_heads": 3})
    assert gptfast.load_weights(theirs.state_dict()).config.n_head == 3
    with pytest.raises(gptfast.GptfastError, match="how many heads .* width of 8"):
        gptfast.load_weights(BookGPT(BOOK_CFG).state_dict())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"bias": False}, {"tie_weights": False}])
def test_written_for_the_book(tmp_path, suffix, changes):
    ours = randomize(gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, **changes)))
    path = convert.write(ours, tmp_path / f"model{suffix}", "book")
    if suffix == ".pth":
        theirs = BookGPT(BOOK_CFG | {"qkv_bias": ours.config.bias and ours.config.qkv_bias}).eval()
        theirs.load_state_dict(torch.load(path, weights_only=True))  # strictly
        torch.testing.assert_close(theirs(IDX), ours(IDX), rtol=1e-4, atol=1e-4)
    assert same(gptfast.load_weights(path, config=ours.config).state_dict(), ours.state_dict())


def test_the_books_cfg_may_be_incomplete():
    with pytest.raises(gptfast.GptfastError, match="cfg does not say n_heads"):
        gptfast.load_weights(
            BookGPT(BOOK_CFG).state_dict(), config={k: v for k, v in BOOK_CFG.items() if k != "n_heads"}
        )


@pytest.mark.parametrize(
    ("changes", "function", "said"),
    [
        ({"window": 4}, to_nanogpt, "no banded attention"),
        ({"window": 4}, to_book, "no banded attention"),
        ({"layer_norm_eps": 1e-6}, to_book, "epsilon"),
        ({"tie_weights": False}, to_nanogpt, "ties its head"),
    ],
)
def test_models_that_others_would_compute_differently_are_not_written(changes, function, said):
    with pytest.raises(gptfast.GptfastError, match=said):
        function(gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, **changes)))


def test_loaded_weights_train(tmp_path):
    """The parameters are memory of the model's own: no page of a file."""
    ours = randomize(gptfast.GPT(gptfast.GPTConfig(97, 16, 2, 2, 8, activation="gelu")))
    path = convert.write(ours, tmp_path, "nanogpt")
    before = path.read_bytes()
    model = gptfast.load_weights(path)
    F.cross_entropy(model(IDX).flatten(0, 1), IDX.flatten()).backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert path.read_bytes() == before
    assert same(gptfast.load_weights(path).state_dict(), ours.state_dict())

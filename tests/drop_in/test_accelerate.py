"""gptfast.accelerate: the same numbers from the same model, and everything that is done with a model still works."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from cases import MAKERS, T, V, assert_close, hugging_face, loss_of, make, replaced, results
from other_models import BOOK, BookGPT, NanoConfig, NanoGPT
from torch import nn
from torch.nn import functional as F

import gptfast
from gptfast.drop_in.fast import Fast
from gptfast.drop_in.lazy import LazyLogits


@pytest.mark.parametrize("name", MAKERS)
def test_loss_and_gradients_are_those_of_the_model(name):
    model, idx = make(name), torch.randint(V, (3, T))
    want, logits = results(model, idx)
    parameters = dict(model.named_parameters())
    keys, cls = list(model.state_dict()), type(model)
    assert gptfast.accelerate(model) is model
    got, lazy = results(model, idx)
    assert_close(got, want)
    assert isinstance(lazy, LazyLogits) and lazy.untouched  # nobody asked
    assert_close([lazy.detach()], [logits.detach()])
    assert type(model) is cls and list(model.state_dict()) == keys
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert "own" not in gptfast.explain(model)
    model.eval()
    with torch.no_grad():
        assert type(loss_of(model, idx)[1]) is torch.Tensor


@pytest.mark.parametrize("name", MAKERS)
def test_restore_undoes_it_exactly(name):
    model = make(name)
    before = {n: dict(module.__dict__) for n, module in model.named_modules()}
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    gptfast.accelerate(gptfast.accelerate(model))
    assert any(isinstance(module.__dict__.get("forward"), Fast) for module in model.modules())
    assert gptfast.restore(model) is model
    for n, module in model.named_modules():
        assert module.__dict__.keys() == before[n].keys()
        assert all(module.__dict__[key] is value for key, value in before[n].items())
    assert getattr(getattr(model, "config", None), "_attn_implementation", None) == attention


@pytest.mark.parametrize("name", MAKERS)
def test_dropout_is_on_in_training_only(name):
    torch.manual_seed(0)
    if name == "hugging face":
        model = hugging_face(resid_pdrop=0.5, embd_pdrop=0.0, attn_pdrop=0.5)
    elif name.startswith("nanogpt"):
        model = NanoGPT(NanoConfig(dropout=0.5))
    else:
        model = BookGPT(BOOK | {"drop_rate": 0.5}, fast="fast" in name)
    gptfast.accelerate(model)
    idx = torch.randint(V, (2, T))
    a, b = (results(model, idx)[0] for _ in range(2))
    assert not torch.equal(a[0], b[0])
    model.eval()
    a, b = (results(model, idx)[0] for _ in range(2))
    assert torch.equal(a[0], b[0])
    gptfast.restore(model)
    assert_close(results(model, idx)[0], a)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("way", ["deepcopy", "torch.save"])
def test_copies_are_accelerated_and_their_own(name, way):
    model, idx = make(name), torch.randint(V, (2, T))
    gptfast.accelerate(model)
    want = results(model, idx)[0]
    if way == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    for module in other.modules():
        if "forward" in module.__dict__:
            assert module.__dict__["forward"].module is module
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_close(results(other, idx)[0], want)


@pytest.mark.parametrize("name", MAKERS)
def test_logits_that_somebody_asks_for(name):
    """Arithmetic, indexing, a loss of one's own, and in place; with gradients as of any logits."""

    def run(model, idx):
        model.zero_grad()
        loss, logits = loss_of(model, idx)
        (loss + logits[:, -1].square().mean() + logits.float().log_softmax(-1)[..., 3].mean()).backward()
        return [p.grad.clone() for p in model.parameters()]

    model, idx = make(name), torch.randint(V, (2, T))
    want = run(model, idx)
    gptfast.accelerate(model)
    assert_close(run(model, idx), want)
    logits = loss_of(model, idx)[1]
    assert logits.shape == (2, T, V) and logits.requires_grad and logits.dtype == torch.float32
    assert logits.argmax(-1).shape == (2, T) and repr(logits).startswith("LazyLogits") and len(logits) == 2
    assert logits.detach().numpy().shape == (2, T, V)
    changed = logits * 1
    logits.data[..., 0] = 5.0  # what was made is what stays
    assert not torch.equal(changed, logits)


def test_a_loss_that_is_not_the_fused_one_is_torchs():
    model, idx = make("book"), torch.randint(V, (2, T))
    gptfast.accelerate(model)
    logits, targets = model(idx).flatten(0, 1), idx.flatten()
    weight = torch.rand(V)
    got = F.cross_entropy(logits, targets, weight=weight)
    want = F.cross_entropy(logits.detach().clone(), targets, weight=weight)
    torch.testing.assert_close(got, want)
    each = F.cross_entropy(model(idx).flatten(0, 1), targets, reduction="none", label_smoothing=0.1)
    want = F.cross_entropy(logits.detach().clone(), targets, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(each, want)
    soft = torch.softmax(torch.randn(2 * T, V), 1)
    torch.testing.assert_close(
        F.cross_entropy(model(idx).flatten(0, 1), soft), F.cross_entropy(logits.detach().clone(), soft)
    )


@pytest.mark.parametrize("name", ["hugging face", "nanogpt", "book"])
def test_what_is_hooked_or_replaced_is_called(name):
    model, idx = make(name), torch.randint(V, (2, T))
    gptfast.accelerate(model)
    want, _ = results(model, idx)
    seen = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_: seen.append(module))
    assert_close(results(model, idx)[0], want)
    leaves = [module for module in model.modules() if not list(module.children())]
    wanted = {module for module in leaves if not isinstance(module, nn.Dropout)}
    assert wanted <= set(seen)
    assert "own forward" in gptfast.explain(model)


@pytest.mark.parametrize("name", ["hugging face", "nanogpt", "book"])
def test_a_layer_replaced_after_acceleration_counts(name):
    plain, fast = make(name), make(name)
    gptfast.accelerate(fast)
    for model in (plain, fast):
        replaced(model, ("c_fc", "c_attn", "W_query", "0", "lm_head", "out_head"))
    idx = torch.randint(V, (2, T))
    assert_close(results(fast, idx)[0], results(plain, idx)[0])


@pytest.mark.parametrize("name", MAKERS)
def test_an_optimizer_made_before_still_holds(name):
    plain, fast = make(name), make(name)
    idx = torch.randint(V, (2, T))
    losses = []
    for model in (plain, fast):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        if model is fast:
            gptfast.accelerate(model)
        for _ in range(4):
            optimizer.zero_grad()
            loss = loss_of(model, idx)[0]
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("name", ["hugging face", "nanogpt", "book"])
def test_autocast(name):
    model, idx = make(name), torch.randint(V, (2, T))
    with torch.autocast("cpu", torch.bfloat16):
        want, logits = results(model, idx)
        gptfast.accelerate(model)
        got, lazy = results(model, idx)
    assert lazy.dtype == logits.dtype and got[0].dtype == want[0].dtype
    assert got[0].item() == pytest.approx(want[0].item(), rel=2e-2)
    assert lazy.float().sub(logits.float()).abs().max() < 0.05 * logits.abs().max()


@pytest.mark.parametrize("name", ["hugging face", "nanogpt", "book"])
def test_compiled(name):
    model, idx = make(name), torch.randint(V, (2, T))
    want = results(model, idx)[0]
    gptfast.accelerate(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    model.zero_grad()
    if name == "book":
        loss = F.cross_entropy(compiled(idx).flatten(0, 1), idx.flatten().index_fill(0, torch.arange(3), -100))
    else:
        targets = idx.clone()
        targets[0, :3] = -1 if name == "nanogpt" else -100
        loss = compiled(idx, targets)[1] if name == "nanogpt" else compiled(idx, labels=targets).loss
    loss.backward()
    assert_close([loss.detach(), *(p.grad for p in model.parameters())], want)


def test_logits_are_refused_once_the_weights_have_changed():
    """They would be those of the new weights."""
    model, idx = make("book"), torch.randint(V, (2, T))
    gptfast.accelerate(model)
    optimizer = torch.optim.AdamW(model.parameters())
    loss, logits = loss_of(model, idx)
    loss.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="the weights have changed since"):
        logits.sum()


def test_views_of_logits_are_not_changed_in_place_unnoticed():
    model, idx = make("book"), torch.randint(V, (2, T))
    gptfast.accelerate(model)
    logits = model(idx)
    view = logits.view(-1, V)
    for changed in (view, logits):
        with pytest.raises(RuntimeError, match="clone them first"):
            changed.mul_(0.5)
    del view, changed
    logits.mul_(0.5)
    got = F.cross_entropy(logits.view(-1, V), idx.flatten())
    gptfast.restore(model)
    torch.testing.assert_close(got, F.cross_entropy(model(idx).mul(0.5).view(-1, V), idx.flatten()))


def test_hooks_on_logits_see_their_gradient():
    def run(model):
        logits = model(idx)
        logits.retain_grad()
        logits.register_hook(lambda g: 2 * g)
        F.cross_entropy(logits.flatten(0, 1), idx.flatten()).backward()
        return [logits.grad, model.out_head.weight.grad]

    model, idx = make("book"), torch.randint(V, (2, T))
    want = run(model)
    model.zero_grad()
    assert_close(run(gptfast.accelerate(model)), want)


def test_lists_and_pickles_of_logits():
    model, idx = make("book"), torch.randint(V, (2, T))
    want = model(idx).detach()
    gptfast.accelerate(model)
    torch.testing.assert_close(torch.tensor(model(idx).tolist()), want)
    file = io.BytesIO()
    torch.save(model(idx).detach(), file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file), want)


def test_a_dropout_of_its_own_mode():
    """Dropout that was switched off, or on, by itself; and one that was taken out."""
    torch.manual_seed(0)
    model = gptfast.accelerate(BookGPT(BOOK | {"drop_rate": 0.5}))
    idx = torch.randint(V, (2, T))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    assert torch.equal(model(idx), model(idx))
    model.eval()
    model.trf_blocks[0].att.dropout.train()
    assert not torch.equal(model(idx), model(idx))
    model.trf_blocks[0].att.dropout = nn.Identity()
    assert torch.equal(model(idx), model(idx))


def changes():
    """Models that are nearly GPT-2: what their forward does is not in their names."""

    class Doubled(nn.GELU):
        def __init__(self):
            super().__init__(approximate="tanh")
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * super().forward(x)

    def patched(part, forward):
        cls = type("Other" + type(part).__name__, (type(part),), {"forward": forward})
        part.__class__ = cls

    def nano():
        return make("nanogpt")

    def book():
        return make("book")

    model = nano()
    attend = type(model.transformer.h[0].attn).forward
    patched(model.transformer.h[0].attn, lambda self, x: attend(self, x.flip(1)).flip(1))
    yield "attention to the future", model
    model = book()
    for layer in model.trf_blocks:
        layer.att.mask.copy_(torch.ones(64, 64).triu(1) + torch.ones(64, 64).tril(-5))
    yield "attention with a window", model
    model = book()
    patched(model.trf_blocks[1].ff, lambda self, x: 0.5 * self.layers(x))
    yield "an MLP that is halved", model
    model = nano()
    patched(model.transformer.h[0], lambda self, x: x + self.attn(self.ln_1(x)) + self.mlp(self.ln_2(x)))
    yield "a parallel block", model
    model = nano()
    model.transformer.h[0].attn.q_norm = nn.LayerNorm(16)
    patched(model.transformer.h[0].attn, lambda self, x: attend(self, x) + self.q_norm(x[..., :16]).mean())
    yield "a child that nobody knows", model
    model = book()
    model.trf_blocks[0].ff.layers[1] = Doubled()
    yield "an activation that learns", model
    model = nano()
    del model.transformer.h[0].attn.dropout
    patched(model.transformer.h[0].attn, lambda self, x: self.c_proj(self.c_attn(x)[..., :32]))
    yield "no attention at all", model
    model = make("hugging face")
    patched(model.transformer.h[0].mlp, lambda self, x: 0.5 * self.c_proj(self.act(self.c_fc(x))))
    yield "transformers' MLP, derived", model
    model = make("hugging face")
    block = type(model.transformer.h[0]).forward
    patched(model.transformer.h[0], lambda self, x, *args, **kwargs: block(self, 0.5 * x, *args, **kwargs))
    yield "transformers' block, derived", model


@pytest.mark.parametrize("name", [name for name, _ in changes()])
def test_what_only_looks_like_gpt2_keeps_its_own_forward(name):
    model, idx = dict(changes())[name], torch.randint(V, (2, T))
    want = results(model, idx)[0]
    gptfast.accelerate(model)
    assert_close(results(model, idx)[0], want)
    assert "own forward" in gptfast.explain(model)


def test_dropout_of_attention_may_be_changed_since():
    torch.manual_seed(0)
    model, idx = gptfast.accelerate(NanoGPT(NanoConfig(dropout=0.0))), torch.randint(V, (2, T))
    assert torch.equal(model(idx)[0], model(idx)[0])
    for block in model.transformer["h"]:
        block.attn.dropout = 0.5
    assert not torch.equal(model(idx)[0], model(idx)[0])


def test_what_is_no_gpt2_is_refused():
    for model in (nn.Linear(2, 2), nn.Sequential(nn.Embedding(3, 3), nn.LayerNorm(3))):
        with pytest.raises(gptfast.GptfastError, match="is no GPT-2 that gptfast knows"):
            gptfast.accelerate(model)
        assert gptfast.restore(model) is model
        assert "no GPT-2" in gptfast.explain(model)

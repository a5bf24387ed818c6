"""A step of generation gives the logits of the whole model, whichever way it runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gptfast
from gptfast import decode
from gptfast.decode import Decoder, decoder_for
from gptfast.sampling import stream

pytestmark = pytest.mark.skipif(decode.extension.core() is None, reason="the compiled core was not built")


def make(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = gptfast.GPTConfig(
        **{"vocab_size": 97, "context_length": 16, "n_layer": 3, "n_head": 3, "n_embd": 48, **changes}
    )
    model = gptfast.GPT(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


SHAPES = {
    "gpt2": {},
    "exact-gelu": {"activation": "gelu"},
    "no-bias": {"bias": False},
    "no-qkv-bias-untied": {"qkv_bias": False, "tie_weights": False},
    "window": {"window": (None, 3)},
    "odd": {"n_embd": 39, "vocab_size": 101},
    "eps": {"layer_norm_eps": 0.5},
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_on_a_cpu_equals_the_whole_model(shape, dtype):
    model = make(dtype, **SHAPES[shape])
    exact = make(torch.float64, **SHAPES[shape])
    exact.load_state_dict(model.state_dict())  # the same rounded weights
    idx = torch.randint(97, (3, 16))
    want = exact(idx)
    decoder = Decoder(model, 3)
    assert decoder.cpu_step is not None
    got = [decoder.prefill(idx[:, :5])] + [decoder.step(idx[:, t]) for t in range(5, 16)]
    plain = model(idx).double()[:, 4:]
    error, theirs = ((x.double() - want[:, 4:]).abs().max() for x in (torch.stack(got, 1), plain))
    assert error <= 2 * theirs + 1e-6  # the rule of docs/decisions.md, PyTorch being the model in the same dtype


@torch.no_grad()
@pytest.mark.parametrize("extreme", ["scores", "mean"])
def test_extreme_values(extreme):
    """Scores of hundreds, which exp alone does not survive; a residual stream whose mean is far above its spread."""
    model, exact = make(), make(torch.float64)
    if extreme == "scores":
        model.h[0].attn.c_attn.weight *= 20
    else:
        model.wpe.weight += 300
    exact.load_state_dict(model.state_dict())
    idx = torch.randint(97, (2, 12))
    want, plain = exact(idx), model(idx).double()
    decoder = Decoder(model, 2)
    decoder.prefill(idx[:, :1])
    got = torch.stack([decoder.step(idx[:, t]) for t in range(1, 12)], 1)
    error, theirs = ((x.double() - want[:, 1:]).abs().max() for x in (got, plain[:, 1:]))
    assert error <= 2 * theirs + 1e-6


@torch.no_grad()
def test_keys_and_values_are_rounded_to_the_nearest():
    model = make(torch.bfloat16, n_layer=1, n_embd=96)
    decoder = Decoder(model, 1)
    idx = torch.randint(97, (1, 16))
    decoder.prefill(idx[:, :1])
    for t in range(1, 16):
        decoder.step(idx[:, t])
    wide = make(torch.float64, n_layer=1, n_embd=96)
    wide.load_state_dict(model.state_dict())
    x, _ = wide.h[0].ln_1(None, wide.embed(idx))
    _, k, v = wide.h[0].attn.c_attn(x).view(16, 3, 3, 32).unbind(1)
    got = torch.stack([decoder.cache.k[0, 0, 1:], decoder.cache.v[0, 0, 1:]])
    want = torch.stack([k[1:], v[1:]]).to(torch.bfloat16)
    # fp32 sums fall on the other side of a bf16 boundary once in some thousand numbers; truncation would for a half.
    assert (got != want).double().mean() < 0.01


@torch.no_grad()
@pytest.mark.parametrize("threads", [2, 5])
def test_a_step_of_several_threads_equals_that_of_one(threads):
    model, before = make(), torch.get_num_threads()
    results = []
    try:
        for n in (1, threads):
            torch.set_num_threads(n)
            decoder = Decoder(model, 2)
            decoder.prefill(torch.zeros(2, 1, dtype=torch.long))
            results.append(torch.stack([decoder.step(torch.tensor([t, 96 - t])) for t in range(15)]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)  # each number is computed by one thread, in one order


@torch.no_grad()
@pytest.mark.parametrize("native", [True, False])
def test_rows_grow_apart(native):
    """Rows begun at different times, grown in any subsets, begun anew: each is as if it were alone."""
    model = make(window=(None, 5))
    decoder = Decoder(model, 4)
    if not native:
        decoder.cpu_step = None
    texts: list[list[int]] = [[], [], [], []]
    generator = torch.Generator().manual_seed(3)
    draw = lambda n: torch.randint(97, (n,), generator=generator)  # noqa: E731

    def check(logits, rows):
        for got, row in zip(logits, rows, strict=True):
            torch.testing.assert_close(got, model(torch.tensor([texts[row]]))[0, -1], atol=2e-5, rtol=1e-4)

    for row, length in ((2, 3), (0, 7), (1, 1), (3, 14)):
        texts[row] = draw(length).tolist()
        check(decoder.prefill(torch.tensor([texts[row]]), row), [row])
    for rows in ([2], [0, 3], [3, 1, 2], None, [1, 0], [0, 2, 1]):
        chosen = rows if rows is not None else []
        if rows is None:  # row 3 is full now, and begins anew; then all grow
            texts[3] = draw(2).tolist()
            check(decoder.prefill(torch.tensor([texts[3]]), 3), [3])
            chosen = [0, 1, 2, 3]
        tokens = draw(len(chosen))
        for row, token in zip(chosen, tokens.tolist(), strict=True):
            texts[row].append(token)
        check(decoder.step(tokens, rows), chosen)
    assert decoder.lengths == [len(text) for text in texts]


def test_a_prompt_in_parts_is_the_whole_prompt():
    model = make()
    decoder = Decoder(model, 3)
    a, b = (torch.randint(97, (1, n), generator=torch.Generator().manual_seed(n)) for n in (11, 5))
    decoder.prefill(a[:, :4], 1)
    torch.testing.assert_close(decoder.prefill(b, 2), model(b)[:, -1], atol=2e-5, rtol=1e-4)  # another one between
    decoder.prefill(a[:, 4:5], 1, 4)
    torch.testing.assert_close(decoder.prefill(a[:, 5:], 1, 5), model(a)[:, -1], atol=2e-5, rtol=1e-4)
    assert decoder.lengths == [0, 11, 5]
    more = torch.cat([a, torch.tensor([[3]])], dim=1)
    torch.testing.assert_close(decoder.step(torch.tensor([3]), [1]), model(more)[:, -1], atol=2e-5, rtol=1e-4)
    with pytest.raises(gptfast.GptfastError, match="do not all hold 6 tokens"):
        decoder.prefill(b, 2, 6)


def test_a_full_row_is_refused():
    decoder = Decoder(make(), 2)
    decoder.prefill(torch.zeros(1, 16, dtype=torch.long), 1)
    decoder.prefill(torch.zeros(1, 3, dtype=torch.long), 0)
    decoder.step(torch.zeros(1, dtype=torch.long), [0])
    with pytest.raises(gptfast.GptfastError, match="row 1 is full"):
        decoder.step(torch.zeros(2, dtype=torch.long))
    assert decoder.lengths == [4, 16]


def hooked(model):
    model.h[1].mlp.register_forward_hook(lambda *_: None)


def replaced(model):
    model.h[0].attn.c_proj = nn.Sequential(model.h[0].attn.c_proj)


def half(model):
    model.half()


def mixed(model):
    model.ln_f.double()


@pytest.mark.parametrize("change", [hooked, replaced, half, mixed])
def test_what_the_step_does_not_know_runs_the_model(change):
    model = make()
    change(model)
    assert Decoder(model, 1).cpu_step is None


def test_autocast_runs_the_model():
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        assert Decoder(model, 1).cpu_step is None
        assert model.generate(torch.zeros(1, 2, dtype=torch.long), 5).shape == (1, 7)


def narrower(model):
    model.h[1].mlp.c_fc, model.h[1].mlp.c_proj = nn.Linear(48, 96), nn.Linear(96, 48)


def shorter(model):
    del model.h[0]


def longer(model):
    model.h.append(model.h[0])


def fewer_positions(model):
    model.wpe = nn.Embedding(8, 48)


def another_window(model):
    model.h[1].attn.window = 3


def another_eps(model):
    model.ln_f.eps = 0.3


@pytest.mark.parametrize("change", [narrower, shorter, longer, fewer_positions, another_window, another_eps])
def test_a_model_that_is_no_longer_its_config_runs_itself(change):
    model = make()
    change(model.eval())
    assert Decoder(model, 1).cpu_step is None


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_does_not_matter(default):
    model = make()
    want = model.generate(torch.zeros(2, 2, dtype=torch.long), 8, temperature=0)
    try:
        torch.set_default_dtype(default)
        got = model.generate(torch.zeros(2, 2, dtype=torch.long), 8, temperature=0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, want)


def moved(model):
    model.to(torch.bfloat16)


def assigned(model):
    model.h[0].ln_1.weight.data = torch.ones(48)


@pytest.mark.parametrize("change", [moved, assigned])
def test_weights_that_move_while_a_text_is_made_are_refused(change):
    model = make()
    text = stream(model, torch.zeros(1, 2, dtype=torch.long), 8)
    next(text), next(text)
    change(model)
    with pytest.raises(gptfast.GptfastError, match="moved"):
        next(text)


def test_rows_that_cannot_be_are_refused():
    decoder = Decoder(make(), 2)
    decoder.prefill(torch.zeros(2, 3, dtype=torch.long))
    for row in (-1, 2):
        with pytest.raises(gptfast.GptfastError, match="not all among"):
            decoder.prefill(torch.zeros(1, 3, dtype=torch.long), row)
    for rows in ([0, 0], [0], [0, 1, 1]):
        with pytest.raises(gptfast.GptfastError, match="each once"):
            decoder.step(torch.zeros(2, dtype=torch.long), rows)
    decoder.cpu_step = None
    assert decoder.step(torch.zeros(0, dtype=torch.long), []).shape == (0, 97)


@torch.no_grad()
def test_a_row_begun_between_steps_of_all_rows():
    model = make()
    decoder = Decoder(model, 2)
    decoder.cpu_step = None
    decoder.prefill(torch.tensor([[1, 2], [3, 4]]))
    decoder.step(torch.tensor([5, 6]))
    decoder.prefill(torch.tensor([[7, 8, 9, 10, 11]]), 0)
    got = decoder.step(torch.tensor([12, 13]))
    for row, text in ((0, [7, 8, 9, 10, 11, 12]), (1, [3, 4, 6, 13])):
        torch.testing.assert_close(got[row], model(torch.tensor([text]))[0, -1], atol=2e-5, rtol=1e-4)


def test_a_hook_is_heard_while_text_is_generated():
    model, heard = make(), []
    model.h[1].attn.register_forward_hook(lambda *_: heard.append(1))
    model.generate(torch.zeros(1, 2, dtype=torch.long), 5)
    assert len(heard) == 5


def test_two_streams_of_one_model_do_not_meet():
    model = make()
    prompts = [torch.tensor([[1, 2, 3]]), torch.tensor([[9, 8, 7, 6]])]
    alone = [[int(t) for t in stream(model, p, 10, 0)] for p in prompts]
    together = zip(*(stream(model, p, 10, 0) for p in prompts), strict=True)
    assert [list(x) for x in zip(*([int(a), int(b)] for a, b in together), strict=True)] == alone


def test_training_mode_is_refused():
    with pytest.raises(gptfast.GptfastError, match="eval"):
        Decoder(make().train(), 1)


def test_the_core_checks_what_it_is_given():
    model = make()
    decoder = Decoder(model, 2)
    run = decoder.cpu_step.run
    k, v, out = decoder.cache.k.data_ptr(), decoder.cache.v.data_ptr(), torch.empty(2, 97)
    for tokens, rows, positions in (
        ([97], [0], [0]),
        ([-1], [0], [0]),
        ([0], [2], [0]),
        ([0], [0], [16]),
        ([0, 1], [0], [0]),
    ):
        with pytest.raises(ValueError):
            run(k, v, 2, tokens, rows, positions, out.data_ptr())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_graph_gives_what_the_model_gives(dtype):
    model = make(dtype, n_embd=96).cuda()
    idx = torch.randint(97, (2, 4), device="cuda")
    want = idx
    with torch.no_grad():
        for _ in range(12):
            want = torch.cat([want, model(want)[:, -1:].float().argmax(-1)], dim=1)
    for _ in range(2):  # recorded, and used again
        got = model.generate(idx, 12, temperature=0)
        if dtype is torch.float32:
            assert torch.equal(got, want)
    with decoder_for(model, 2) as one, decoder_for(model, 2) as other:
        assert one is not other and one.graph is not None and other.graph is None
    with torch.no_grad():
        decoder = Decoder(model, 3)
        decoder.prefill(idx[:1], 1)
        decoder.prefill(idx[1:, :2], 0)
        got = decoder.step(torch.tensor([5, 6], device="cuda"), [1, 0])
        for row, text in ((0, [*idx[0].tolist(), 5]), (1, [*idx[1, :2].tolist(), 6])):
            whole = model(torch.tensor([text], device="cuda"))[0, -1]
            torch.testing.assert_close(got[row], whole, atol=2e-2 if dtype is not torch.float32 else 1e-4, rtol=2e-2)

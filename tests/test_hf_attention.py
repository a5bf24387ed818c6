"""`attn_implementation="gptfast"` in Hugging Face models, against their "eager" and "sdpa"."""

from __future__ import annotations

import inspect
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from gptfast import ops

transformers = pytest.importorskip("transformers", minversion="4.57.1")

from transformers import masking_utils  # noqa: E402

from gptfast import hf_attention  # noqa: E402

# What depends on the version: whether the prompt of a static cache may do without a dense mask, and a compiled graph.
STATIC = tuple(int(x) for x in transformers.__version__.split(".")[:2]) >= (5, 20)
OFFSETS = "cache_position" not in inspect.signature(masking_utils.sdpa_mask).parameters
V, T, WINDOW = 61, 12, 5
SIZES = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.3}
GPT2 = SIZES | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = SIZES | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
KINDS = {
    "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel, GPT2),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, LLAMA),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, LLAMA | {"sliding_window": WINDOW}),
}
PADDING = {  # how many tokens of padding each row has on its left and on its right
    "none": ((0, 0), (0, 0), (0, 0)),
    "left": ((0, 0), (3, 0), (7, 0)),
    "right": ((0, 0), (0, 2), (0, 8)),
    "both": ((2, 3), (4, 0), (0, 5)),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small only wait for each other's threads
    yield
    torch.set_num_threads(threads)


def make(kind, **changes):
    torch.manual_seed(0)
    config, model, settings = KINDS[kind]
    return model(config(**settings | changes, attn_implementation="gptfast")).eval()


@pytest.fixture(scope="module")
def models():
    return {kind: make(kind) for kind in KINDS}


def batch(padding):
    """Token ids and their attention mask [3, T]."""
    ids = torch.randint(1, V, (3, T), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, T, dtype=torch.long)
    for row, (left, right) in zip(mask, PADDING[padding], strict=True):
        row[:left] = 0
        row[T - right :] = 0
    return ids * mask, mask


def run(model, implementation, *args, **kwargs):
    model.set_attn_implementation(implementation)
    return model(*args, **kwargs)


@pytest.fixture
def calls(monkeypatch):
    """How often attention was computed, by "ours" and by "sdpa", and how often ours had each feature."""
    counts = Counter()
    ours, sdpa = ops.causal_attention, hf_attention.sdpa_attention_forward

    def count_ours(*args, **features):
        used = [name for name in ("window", "cu_seqlens") if features[name] is not None]
        counts.update(["ours", *{x.dtype for x in args}, *used, *["dropout_p"] * (features["dropout_p"] > 0)])
        return ours(*args, **features)

    def count_sdpa(*args, **features):
        counts["sdpa"] += 1
        return sdpa(*args, **features)

    monkeypatch.setattr(ops, "causal_attention", count_ours)
    monkeypatch.setattr(hf_attention, "sdpa_attention_forward", count_sdpa)
    return counts


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients(models, kind, padding, calls):
    model, (ids, mask) = models[kind], batch(padding)
    real = mask.bool()
    labels = ids.masked_fill(~real, -100)
    labels[:, 1:][~real[:, :-1]] = -100  # what a token of padding would predict
    results = {}
    for implementation in ("gptfast", "sdpa", "eager"):
        model.zero_grad()
        output = run(model, implementation, ids, attention_mask=mask, labels=labels)
        output.loss.backward()
        results[implementation] = [output.logits[real], *(p.grad.clone() for p in model.parameters())]
        if implementation == "gptfast":
            assert calls["ours"] == 2 and not calls["sdpa"]
            assert calls["cu_seqlens"] == (2 if padding in ("left", "both") else 0)
            assert calls["window"] == (2 if kind == "mistral" else 0)
    for theirs in (results["sdpa"], results["eager"]):
        for x, y in zip(results["gptfast"], theirs, strict=True):
            assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_without_a_mask(models, kind, calls):
    ids, _ = batch("none")
    ours = run(models[kind], "gptfast", ids).logits
    assert calls["ours"] == 2 and not calls["sdpa"]
    assert_close(ours, run(models[kind], "eager", ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("cache", [False, "dynamic", "static"])
@pytest.mark.parametrize("kind", KINDS)
def test_generate(models, kind, cache, padding, calls):
    model, (ids, mask) = models[kind], batch(padding)
    features = {"use_cache": bool(cache)} | ({"cache_implementation": "static"} if cache == "static" else {})
    results = {}
    for implementation in ("gptfast", "sdpa"):
        model.set_attn_implementation(implementation)
        results[implementation] = model.generate(
            ids, attention_mask=mask, max_new_tokens=6, do_sample=False, output_logits=True,
            return_dict_in_generate=True, **features,
        )  # fmt: skip
        if implementation == "gptfast" and (STATIC or cache != "static"):
            assert calls["ours"] >= 2  # the prompt
    ours, theirs = results["gptfast"], results["sdpa"]
    assert ours.sequences[:, T:].unique().numel() > 3
    assert torch.equal(ours.sequences, theirs.sequences)
    assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_several_tokens_after_a_cache(models, kind, padding, calls):
    """Chunks of a prompt give what the whole gives; with no padding, and on the right, without a dense mask."""
    model, (ids, mask) = models[kind], batch(padding)
    whole = run(model, "eager", ids, attention_mask=mask).logits
    model.set_attn_implementation("gptfast")
    cache, parts = None, []
    for start, end in ((0, 5), (5, 8), (8, T)):
        output = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True,
                       position_ids=torch.arange(start, end)[None])  # fmt: skip
        cache = output.past_key_values
        parts.append(output.logits)
    assert_close(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-5)
    assert calls["sdpa"] == (0 if padding != "left" else 4)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_that_only_a_matrix_can_say(models, kind, calls):
    model, (ids, mask) = models[kind], batch("left")
    mask[1, 6] = mask[2, 9:11] = 0  # holes
    ours = run(model, "gptfast", ids, attention_mask=mask).logits
    assert calls["sdpa"] == 2
    theirs = run(model, "eager", ids, attention_mask=mask).logits
    assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-4, atol=1e-5)

    seen = torch.rand(3, 1, T, T, generator=torch.Generator().manual_seed(2)) < 0.5  # not even causal
    seen |= torch.eye(T, dtype=torch.bool)
    additive = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        theirs = run(model, "sdpa", ids, attention_mask=seen).logits
        for custom in (seen, additive):
            assert_close(run(model, "gptfast", ids, attention_mask=custom).logits, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents(models, kind, calls):
    """Documents laid end to end, told apart by their positions, are each as if alone."""
    model, (ids, _) = models[kind], batch("none")
    lengths = (3, 7, 2)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ours = run(model, "gptfast", ids, position_ids=positions, use_cache=False).logits
    assert calls["cu_seqlens"] == 2 and not calls["sdpa"]
    for x, y in zip(ours.split(lengths, 1), ids.split(lengths, 1), strict=True):
        assert_close(x, run(model, "eager", y).logits, rtol=1e-4, atol=1e-5)


def test_packed_documents_by_their_boundaries(models, calls):
    """FlashAttention's arguments, which data collators make and "sdpa" leaves out."""
    model, (ids, _) = models["llama"], batch("none")
    cu, positions = torch.tensor([0, 3, 10, T], dtype=torch.int32), torch.arange(T)[None]
    features = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 7, "max_length_k": 7}
    ours = run(model, "gptfast", ids[:1], position_ids=positions, **features).logits
    assert calls["cu_seqlens"] == 2
    alone = run(model, "eager", ids[:1, 3:10]).logits
    assert_close(ours[:, 3:10], alone, rtol=1e-4, atol=1e-5)  # rotary positions are relative


@pytest.mark.parametrize("length", [T, T - 3, 1])
@pytest.mark.parametrize("padded", [False, True])
def test_cross_attention(length, padded):
    model = make("gpt2", add_cross_attention=True)
    ids, mask = batch("left")
    states = torch.randn(3, length, 32, generator=torch.Generator().manual_seed(3))
    seen = torch.ones(3, length, dtype=torch.long)
    if padded:
        seen[1, length // 2 + 1 :] = 0
    features = {"attention_mask": mask, "encoder_hidden_states": states, "encoder_attention_mask": seen}
    ours = run(model, "gptfast", ids, **features).logits
    for implementation in ("sdpa", "eager"):
        theirs = run(model, implementation, ids, **features).logits
        assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", PADDING)
def test_a_model_that_is_not_causal(padding):
    """BART's encoder, with as many queries as keys and no mask where nothing is padded, and its cross attention."""
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=V, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_attention_heads=4, decoder_ffn_dim=48, init_std=0.3, attn_implementation="gptfast",
    )  # fmt: skip
    model, (ids, mask) = transformers.BartModel(config).eval(), batch(padding)
    features = {"attention_mask": mask, "decoder_input_ids": ids, "decoder_attention_mask": mask}
    ours, theirs = (run(model, name, ids, **features) for name in ("gptfast", "eager"))
    for name in ("encoder_last_hidden_state", "last_hidden_state"):
        assert_close(ours[name][mask.bool()], theirs[name][mask.bool()], rtol=1e-4, atol=1e-5)


def test_a_bias_of_positions():
    """T5 adds one to its scores."""
    from transformers.models.t5 import modeling_t5

    if hasattr(modeling_t5, "create_causal_mask") and not hasattr(modeling_t5, "ALL_ATTENTION_FUNCTIONS"):
        pytest.skip("T5 does not use the AttentionInterface in this version of transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=V, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        attn_implementation="gptfast",
    )  # fmt: skip
    model, (ids, mask) = transformers.T5ForConditionalGeneration(config).eval(), batch("left")
    features = {"attention_mask": mask, "decoder_input_ids": ids, "decoder_attention_mask": mask}
    ours, theirs = (run(model, name, ids, **features).logits[mask.bool()] for name in ("gptfast", "eager"))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dropout_is_for_training(calls):
    model, (ids, _) = make("gpt2", attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0), batch("none")
    evaluated = model(ids).logits
    assert calls["ours"] == 2 and not calls["dropout_p"]
    model.train()
    assert not torch.allclose(model(ids).logits, evaluated)
    assert calls["ours"] == 4 and calls["dropout_p"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(models, kind, calls):
    model, (ids, mask) = models[kind], batch("left")
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (run(model, x, ids, attention_mask=mask).logits[mask.bool()] for x in ("gptfast", "sdpa"))
    assert calls[torch.bfloat16] == 2 and not calls[torch.float32]
    exact = run(model, "eager", ids, attention_mask=mask).logits[mask.bool()]
    assert (ours - exact).abs().mean() <= 1.5 * (theirs - exact).abs().mean()


def test_compiled(models, calls, recwarn):
    """The graph is whole, and without a mask nothing dense is in it."""
    model, (ids, mask) = models["llama"], batch("left")
    model.set_attn_implementation("gptfast")
    expected = model(ids).logits, model(ids, attention_mask=mask).logits
    assert calls["ours"] == 4
    torch.compiler.reset()
    hf_attention._uses_interface.cache_clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert_close(compiled(ids).logits, expected[0])
    assert calls["sdpa"] == (0 if OFFSETS else 2)
    assert_close(compiled(ids, attention_mask=mask).logits[mask.bool()], expected[1][mask.bool()])
    assert not [warning for warning in recwarn if "cache" in str(warning.message)]


def heads(Tq, Tk, Hkv=2, Dv=8):
    generator = torch.Generator().manual_seed(4)
    shapes = (3, 4, Tq, 8), (3, Hkv, Tk, 8), (3, Hkv, Tk, Dv)
    return [torch.randn(shape, generator=generator) for shape in shapes]


CAUSAL = SimpleNamespace(is_causal=True, num_key_value_groups=2)


def test_scaling_and_the_shape_of_the_result():
    q, k, v = heads(T, T)
    ours, weights = hf_attention.attention(CAUSAL, q, k, v, None, scaling=0.1)
    assert weights is None and ours.is_contiguous() and ours.shape == (3, T, 4, 8)
    assert_close(ours, hf_attention.sdpa_attention_forward(CAUSAL, q, k, v, None, scaling=0.1)[0])


@pytest.mark.parametrize("feature", ["block_indices", "head_mask", "indices", "s_aux", "softcap"])
def test_what_would_be_left_out_is_refused(feature):
    with pytest.raises(ValueError, match=f'{feature} is not supported by attn_implementation="gptfast"; use "eager"'):
        hf_attention.attention(CAUSAL, *heads(T, T), None, **{feature: torch.ones(4)})


def test_more_keys_than_queries_without_a_mask():
    """What "sdpa" makes of it: the keys of a static cache that begins here. One query sees all of them."""
    for Tq in (1, 5):
        q, k, v = heads(Tq, T)
        theirs = hf_attention.sdpa_attention_forward(CAUSAL, q, k, v, None)[0]
        assert_close(hf_attention.attention(CAUSAL, q, k, v, None)[0], theirs)


def test_a_caller_who_wants_the_mask_gets_it():
    these = {"batch_size": 3, "q_length": T, "q_offset": 0, "kv_length": T, "attention_mask": batch("left")[1].bool()}
    for padding in (these["attention_mask"], None):
        mask = hf_attention.causal_mask(
            **arguments(**these | {"attention_mask": padding}), allow_is_causal_skip=False,
            mask_function=masking_utils.causal_mask_function,
        )  # fmt: skip
        assert mask.dtype == torch.bool and mask.shape == (3, 1, T, T)


def test_a_paged_cache_is_for_sdpa(calls):
    """Its keys and values are put in there."""
    hf_attention.attention(CAUSAL, *heads(T, T), None, cache=object())
    assert calls["sdpa"] == 1 and not calls["ours"]


def test_a_model_that_computes_attention_itself_is_refused():
    """It would take our masks for its own, and be told None where it should be causal."""
    from transformers.models.bloom import modeling_bloom

    if not hasattr(modeling_bloom, "create_causal_mask") or hasattr(modeling_bloom, "ALL_ATTENTION_FUNCTIONS"):
        pytest.skip("BLOOM makes its masks in another way in this version of transformers")
    config = transformers.BloomConfig(vocab_size=V, hidden_size=32, n_layer=1, n_head=2, attn_implementation="gptfast")
    with pytest.raises(ValueError, match='the model of BloomConfig computes attention itself.*: use "eager"'):
        transformers.BloomForCausalLM(config)(batch("none")[0])


def test_a_custom_mask_of_integers_is_not_taken_for_ours():
    for Tq in (1, 2, 3):
        with pytest.raises(RuntimeError):  # of PyTorch
            hf_attention.attention(CAUSAL, *heads(Tq, T), torch.ones(3, 1, Tq, T, dtype=torch.int32))


def arguments(**these):
    """What this version of transformers calls a mask function with."""
    if not OFFSETS:
        start = these.pop("q_offset")
        these["cache_position"] = torch.arange(start, start + these.pop("q_length"))
    return these


def matrix(mask, B, Tq, Tk):
    """The mask [B, Tq, Tk] that `attention` computes with: its output for values that are one-hot by key."""
    q, k = torch.zeros(B, 1, Tq, 8), torch.zeros(B, 1, Tk, 8)
    v = torch.eye(Tk, 8 * -(-Tk // 8)).expand(B, 1, Tk, -1)
    module = SimpleNamespace(is_causal=True, num_key_value_groups=1)
    seen = [hf_attention.attention(module, q, k, v[..., x : x + 8], mask)[0][:, :, 0] for x in range(0, v.shape[-1], 8)]
    return torch.cat(seen, -1)[..., :Tk] > 0


def test_every_mask_says_what_the_dense_one_says():
    """Random paddings, holes, windows, documents, chunks and caches of both kinds; real queries see the same keys."""
    generator = torch.Generator().manual_seed(5)

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    forms = Counter()
    for _ in range(400):
        B, Tq, past, beyond = number(1, 3), number(1, 6), number(0, 3) * number(0, 2), number(0, 1) * number(0, 3)
        n, window = past + Tq, number(0, 1) * number(1, 6) or None
        function = masking_utils.causal_mask_function
        if window is not None:
            function = masking_utils.sliding_window_causal_mask_function(window)
        padding, skip, local = None, number(0, 9) > 0, window
        if number(0, 3):
            padding = torch.ones(B, n, dtype=torch.bool)
            for row in padding:
                row[: number(0, 1) * number(0, n - 1)] = False
                row[n - number(0, 1) * number(0, n - 1) :] = False
                row[number(0, n - 1)] &= number(0, 4) > 0
        elif number(0, 1) and past + beyond == 0:
            documents = torch.randint(0, 2, (B, n), generator=generator).cumsum(1)
            function = masking_utils.and_masks(function, masking_utils.packed_sequence_mask_function(documents))
            skip = False
        elif number(0, 3) == 0:
            function = masking_utils.and_masks(
                function, masking_utils.chunked_causal_mask_function(3, torch.zeros(B, dtype=torch.int64))
            )
            local = 1  # so that transformers does not leave the mask out
        offset = number(0, past) if beyond == 0 else 0  # keys that a sliding cache has dropped
        these = arguments(
            batch_size=B, q_length=Tq, q_offset=past, kv_length=n + beyond - offset, kv_offset=offset,
            mask_function=function, attention_mask=padding, local_size=local, allow_is_causal_skip=skip,
        )  # fmt: skip
        ours = hf_attention.causal_mask(**these)
        dense = masking_utils.sdpa_mask(**these | {"allow_is_causal_skip": False})[:, 0]
        real = torch.ones(B, Tq, dtype=torch.bool) if padding is None else padding[:, past:]
        Tk = n + beyond - offset
        if ours is None:
            forms["none"] += 1
        else:
            assert ours.dim() == 4  # else transformers would not hand it on untouched
            forms[f"{ours.dtype} {ours.shape[2] if ours.dtype == torch.uint32 else ''}"] += 1
        assert torch.equal(matrix(ours, B, Tq, Tk)[real], dense.expand(B, Tq, Tk)[real])
    assert len(forms) == 6 and min(forms.values()) >= 10, forms  # none, bool, and 0 to 3 rows


def test_a_module_that_leaves_its_window_to_the_mask(calls):
    q, k, v = heads(T, T)
    these = arguments(
        batch_size=3, q_length=T, q_offset=0, kv_length=T, attention_mask=None, local_size=WINDOW,
        mask_function=masking_utils.sliding_window_causal_mask_function(WINDOW),
    )  # fmt: skip
    ours = hf_attention.attention(CAUSAL, q, k, v, hf_attention.causal_mask(**these))[0]
    assert calls["window"] == 1
    assert_close(ours, hf_attention.sdpa_attention_forward(CAUSAL, q, k, v, masking_utils.sdpa_mask(**these))[0])
    said = hf_attention.attention(CAUSAL, q, k, v, None, sliding_window=WINDOW)[0]
    assert_close(ours, said)


def test_values_of_another_width_keep_their_mask(calls):
    q, k, v = heads(T, T, Dv=16)
    _, padding = batch("left")
    these = arguments(
        batch_size=3, q_length=T, q_offset=0, kv_length=T, attention_mask=padding.bool(), local_size=WINDOW,
        mask_function=masking_utils.sliding_window_causal_mask_function(WINDOW),
    )  # fmt: skip
    ours = hf_attention.attention(CAUSAL, q, k, v, hf_attention.causal_mask(**these), sliding_window=WINDOW)[0]
    assert calls["sdpa"] == 1
    dense = hf_attention.sdpa_attention_forward(CAUSAL, q, k, v, masking_utils.sdpa_mask(**these))[0]
    assert_close(ours[padding.bool()], dense[padding.bool()])

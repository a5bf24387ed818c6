"""Perplexity against transformers' plain loop, and the accounting of windows, documents and bytes."""

from __future__ import annotations

import math

import pytest
import torch

import gptfast
from gptfast.evaluate.perplexity import perplexity, windows

CONTEXT = 48
DOCUMENTS = ["A text with an é.", "b", "many words " * 9]


@torch.no_grad()
def plain_loop(theirs, encoding, documents, stride):
    """Hugging Face's guide, "Perplexity of fixed-length models", on each document behind an end-of-text token."""
    nats, tokens = 0.0, 0
    for document in documents:
        ids = torch.tensor([[encoding.eot_token, *document.encode()]])
        end = 1  # the first token is given
        for begin in range(0, ids.shape[1], stride):
            stop = min(begin + CONTEXT + 1, ids.shape[1])
            target = ids[:, begin:stop].clone()
            target[:, : end - begin] = -100
            logits = theirs(ids[:, begin : stop - 1]).logits
            nats += float(torch.nn.functional.cross_entropy(logits[0], target[0, 1:], reduction="sum"))
            tokens += stop - end
            end = stop
            if end == ids.shape[1]:
                break
    return nats, tokens


@pytest.mark.parametrize("stride", [1, 7, 24, 48])
def test_nats_equal_the_plain_loop(model, theirs, encoding, stride):
    got = perplexity(model, encoding, DOCUMENTS, stride)
    nats, tokens = plain_loop(theirs, encoding, DOCUMENTS, stride)
    assert got.nats == pytest.approx(nats, rel=1e-6) and got.tokens == tokens


def test_accounting(model, encoding):
    got = perplexity(model, encoding, DOCUMENTS)
    assert (got.bytes, got.tokens, got.documents) == (18 + 1 + 99, 118, 3)  # é has two bytes, a token each
    assert got.nats_per_token == got.nats / 118
    assert got.perplexity == pytest.approx(math.exp(got.nats / 118))
    assert got.bits_per_byte == pytest.approx(got.nats / math.log(2) / 118)
    parts = [perplexity(model, encoding, [document]) for document in DOCUMENTS]
    assert got.nats == pytest.approx(sum(part.nats for part in parts))  # no document sees another


def test_a_uniform_model_has_log2_v_bits_a_byte(encoding):
    model = gptfast.GPT(gptfast.GPTConfig(257, CONTEXT, 1, 2, 32))
    torch.nn.init.zeros_(model.wte.weight)
    got = perplexity(model, encoding, DOCUMENTS)
    assert got.bits_per_byte == pytest.approx(math.log2(257)) and got.perplexity == pytest.approx(257)


@pytest.mark.parametrize("context", [1, 2, 5, 8])
@pytest.mark.parametrize("tokens", [0, 1, 4, 8, 9, 31])
def test_windows_score_every_token_once_with_enough_before_it(context, tokens):
    for stride in range(1, context + 1):
        scored = []
        for begin, first, end in windows(tokens, context, stride):
            assert begin <= first < end <= begin + context
            assert all(t - begin >= min(t, context - stride) for t in range(first, end))
            scored += range(first, end)
        assert scored == list(range(tokens))


def test_progress_counts_bytes(model, encoding):
    done = []
    perplexity(model, encoding, DOCUMENTS, on_done=done.append)
    assert sum(done) == pytest.approx(118)


@pytest.mark.parametrize("stride", [0, -1, CONTEXT + 1])
def test_a_stride_that_leaves_tokens_out(model, encoding, stride):
    with pytest.raises(gptfast.GptfastError, match=f"the stride is {stride}; it must be from 1 to the model's context"):
        perplexity(model, encoding, DOCUMENTS, stride)


@pytest.mark.parametrize("documents", [[], [""]])
def test_no_text(model, encoding, documents):
    with pytest.raises(gptfast.GptfastError, match="no text to score"):
        perplexity(model, encoding, documents)

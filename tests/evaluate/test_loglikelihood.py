"""Log likelihoods against transformers, one request at a time: batches, shared contexts and cuts change nothing."""

from __future__ import annotations

import warnings

import pytest
import torch

import gptfast
from gptfast.evaluate import loglikelihood
from gptfast.evaluate.loglikelihood import Truncated, encode_pair, loglikelihoods, score

CONTEXT = 48


@torch.no_grad()
def one_by_one(theirs, requests):
    """The definition: all logits of the last context + 1 tokens, and of these the continuation's."""
    results = []
    for context, continuation in requests:
        ids = torch.tensor([(list(context) + list(continuation))[-(CONTEXT + 1) :]])
        logp = theirs(ids[:, :-1]).logits[0].log_softmax(-1)[-len(continuation) :]
        targets = ids[0, -len(continuation) :]
        chosen = logp.gather(1, targets[:, None])[:, 0].double()
        results.append((float(chosen.sum()), bool((logp.argmax(1) == targets).all()), len(continuation)))
    return results


def assert_same(got, want):
    assert [(greedy, n) for _, greedy, n in got] == [(greedy, n) for _, greedy, n in want]
    torch.testing.assert_close(torch.tensor([p for p, _, _ in got]), torch.tensor([p for p, _, _ in want]))


def random_requests(n_contexts, seed=0):
    """Contexts of all lengths, beyond the model's too, each with one to four continuations."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(257, (n,), generator=generator).tolist()

    def number(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    requests = []
    for _ in range(n_contexts):
        context = ids(number(1, 70))
        requests += [(context, ids(number(1, 20))) for _ in range(number(1, 5))]
    return requests


@pytest.mark.parametrize("tokens", [1, 100, 8192])  # positions in a batch: every row alone, some, all
def test_scores_equal_one_by_one(model, theirs, monkeypatch, tokens):
    monkeypatch.setattr(loglikelihood, "TOKENS", tokens)
    requests = random_requests(30)
    assert_same(score(model, requests), one_by_one(theirs, requests))


def test_logits_in_chunks_give_the_same(model, theirs, monkeypatch):
    monkeypatch.setattr(loglikelihood, "LOGITS", 3 * 257)
    requests = random_requests(5)
    assert_same(score(model, requests), one_by_one(theirs, requests))


def test_what_the_model_would_write_is_greedy(model):
    context = [1, 2, 3]
    written = model.generate(torch.tensor([context]), 6, temperature=0)[0, 3:].tolist()
    other = [*written[:5], (written[5] + 1) % 257]
    assert [greedy for _, greedy, _ in score(model, [(context, written), (context, other)])] == [True, False]


def test_equal_requests_and_a_window(encoding):
    """Requests that are the same twice, and attention in a band, whose cache is another path."""
    torch.manual_seed(0)
    model = gptfast.GPT(gptfast.GPTConfig(257, CONTEXT, 2, 2, 32, window=(4, None))).eval()
    requests = random_requests(6)
    together = score(model, requests + requests)
    alone = [score(model, [request])[0] for request in requests]
    assert_same(together, alone + alone)


def test_only_the_positions_of_continuations_meet_the_vocabulary(model):
    rows = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, logits: rows.append(logits.shape[:-1].numel()))
    score(model, [([1] * 30, [2, 3]), ([1] * 30, [4, 5, 6]), ([7] * 20, [8])])
    hook.remove()
    assert sum(rows) == 6


def test_a_shared_context_runs_once(model, monkeypatch):
    positions = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda idx, **more: positions.append(idx.numel()) or hidden(idx, **more))
    score(model, [([1] * 30, [k, 3]) for k in range(10)])
    assert positions == [29, 10 * 2]  # the last token of the context is a row's own


def test_texts(model, theirs, encoding):
    pairs = [("One day, ", "the end"), ("One day,", " the end"), ("", "x"), ("  \n", "y"), ("é", "ö")]
    ids = [
        (list(b"One day,"), list(b" the end")), (list(b"One day,"), list(b" the end")),
        ([encoding.eot_token], list(b"x")), ([encoding.eot_token], list(b"  \ny")),
        (list("é".encode()), list("ö".encode())),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(loglikelihoods(model, encoding, pairs), one_by_one(theirs, ids))


def test_pairs_are_split_as_the_harness_splits_them(gpt2_vocabulary):
    gpt2 = gptfast.get_encoding("gpt2")
    assert encode_pair(gpt2, "A man sits ", "on a roof") == encode_pair(gpt2, "A man sits", " on a roof")
    assert encode_pair(gpt2, "A man", " sits") == (gpt2.encode("A man"), gpt2.encode(" sits"))
    assert gpt2.encode("hello") != gpt2.encode("hel") + gpt2.encode("lo")  # a token spans the boundary
    assert encode_pair(gpt2, "hel", "lo") == (gpt2.encode("hel"), gpt2.encode("lo"))


def test_a_context_that_is_cut_is_said(model, theirs, encoding):
    pairs = [("x" * 100, "abc"), ("short", "abc"), ("y" * (CONTEXT + 1 - 3), "abc")]
    with pytest.warns(Truncated, match="1 of 3 contexts are too long for the model's 48 tokens"):
        got = loglikelihoods(model, encoding, pairs)
    assert_same(got, one_by_one(theirs, [(list(a.encode()), list(b.encode())) for a, b in pairs]))


def test_progress_counts_every_request(model):
    done = []
    requests = random_requests(10) * 2
    score(model, requests, done.append)
    assert sum(done) == len(requests)


def test_training_mode_comes_back_and_does_not_matter(encoding):
    torch.manual_seed(0)
    model = gptfast.GPT(gptfast.GPTConfig(257, CONTEXT, 1, 2, 32, dropout=0.5)).train()
    first, second = (loglikelihoods(model, encoding, [("a", "bc")]) for _ in range(2))
    assert first == second and model.training


@pytest.mark.parametrize("continuation", ["", "z" * (CONTEXT + 1)])
def test_continuations_that_cannot_be_scored(model, encoding, continuation):
    with pytest.raises(gptfast.GptfastError, match=f"has {len(continuation)} tokens; it must have at least one"):
        loglikelihoods(model, encoding, [("a", "b"), ("a", continuation)])

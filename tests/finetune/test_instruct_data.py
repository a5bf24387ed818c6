"""Instruction data: masks, splits, and packed rows that compute what padded ones do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gptfast
from gptfast.finetune.instruct_data import (
    Tokens,
    batches,
    every,
    fit_context,
    pack,
    pad,
    read_examples,
    split,
    target_losses,
    tokenise,
)  # fmt: skip
from gptfast.finetune.templates import Template

ENCODING = gptfast.get_encoding("bytes")
EOT = ENCODING.eot_token
ALPACA = Template.of("Q: {instruction}\n{input}\nA: {output}")
EXAMPLES = [
    {"instruction": "Add", "input": "1 and 2", "output": "3"},
    {"instruction": "Say why", "input": "", "output": "Because it is so"},
    {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "bc"), ("user", "d"),
                                                         ("assistant", "efg"))]},
]  # fmt: skip


def learned(tokens):
    """The targets as text, ^ for end-of-text, . for what is not learned."""
    return "".join("." if t < 0 else "^" if t == EOT else chr(t) for t in tokens.targets)


def test_only_responses_and_their_end_are_learned():
    whole = "Q: Add\n1 and 2\nA: 3"
    tokens = tokenise(EXAMPLES[0], ALPACA, ENCODING)
    assert bytes(tokens.ids).decode() == whole
    assert learned(tokens) == "." * (len(whole) - 2) + "3^"  # targets[t] is the token after ids[t]
    assert learned(tokenise(EXAMPLES[0], ALPACA, ENCODING, "all")) == whole[1:] + "^"
    tokens = tokenise(EXAMPLES[2], ALPACA, ENCODING)
    whole = "Q: a\nA: bc\n\nQ: d\nA: efg"
    assert bytes(tokens.ids).decode() == whole
    assert learned(tokens) == "." * 7 + "bc^" + "." * 9 + "efg^"
    assert learned(tokenise(EXAMPLES[2], ALPACA, ENCODING, "all")) == whole[1:10] + "^" + whole[11:] + "^"


def naive_loss(model, example, loss="response"):
    """(sum, number) of -log p over the learned tokens of one example, from the logits of the model alone with it. The
    example ends with end-of-text, as in the usual form of this loss.
    """
    ids, wanted = [], []
    for text, is_response in ALPACA.render(example):
        new = list(text.encode())
        ids, wanted = ids + new, wanted + [is_response or loss == "all"] * len(new)
    ids, wanted = ids + [EOT], wanted + [True]
    log_p = F.log_softmax(model(torch.tensor([ids])), -1)[0]
    total = -sum(log_p[t, ids[t + 1]] for t in range(len(ids) - 1) if wanted[t + 1])
    return total, sum(wanted[1:])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = gptfast.GPT(gptfast.GPTConfig(ENCODING.n_vocab, 32, 2, 2, 16)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("loss", ["response", "all"])
def test_packed_and_padded_losses_and_gradients_are_those_of_each_example_alone(model, loss):
    """To 1e-10 in fp64; the packed row is longer than the context."""
    examples = EXAMPLES[:2] * 2
    tokens = [tokenise(e, ALPACA, ENCODING, loss) for e in examples]
    total, n = (sum(x) for x in zip(*(naive_loss(model, e, loss) for e in examples), strict=True))
    want = torch.autograd.grad(total / n, list(model.parameters()))
    packed = pack(tokens)
    assert packed.idx.shape == (1, sum(len(t.ids) for t in tokens)) and packed.idx.shape[1] > 32
    for batch in (packed, pad(tokens), pad(tokens, 32)):
        assert batch.n == n and batch.tokens == sum(len(t.ids) for t in tokens)
        got = target_losses(model, batch) / batch.n
        torch.testing.assert_close(got, total / n, atol=1e-10, rtol=0)
        # The model's own loss, over all positions.
        own = model(batch.idx, batch.targets, batch.cu_seqlens, positions=batch.positions)
        torch.testing.assert_close(own, total / n, atol=1e-10, rtol=0)
        for mine, theirs in zip(torch.autograd.grad(got, list(model.parameters())), want, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_an_epoch_has_every_example_once_in_an_order_of_its_own():
    rng = np.random.default_rng(0)
    tokens = [Tokens([n] * int(rng.integers(1, 60)), [n] * 60) for n in range(50)]
    tokens = [Tokens(t.ids, t.targets[: len(t.ids)]) for t in tokens]
    seen, filled = {}, {}
    for packing in (True, False):
        for seed in (None, 0, 1):
            made = list(batches(tokens, 4, packing, None if seed is None else np.random.default_rng(seed)))
            rows = [sorted(set(b.idx[b.targets >= 0].tolist())) for b in made]
            assert sorted(sum(rows, [])) == list(range(50)) and len(made) == 13
            seen[packing, seed] = rows
            filled[packing] = sum(b.tokens for b in made) / sum(b.idx.numel() for b in made)
        assert seen[packing, 0] != seen[packing, 1]
    assert sorted(seen[True, 0]) != sorted(seen[True, 1])  # other batches, and not only their order
    assert filled[True] == 1 and filled[False] > 0.85  # examples of similar length are together


def test_long_examples_are_cut_or_left_out_and_counted():
    long, prompt_only = Tokens([1] * 9, [-100] * 4 + [2] * 5), Tokens([1] * 9, [-100] * 8 + [2])
    short = Tokens([1, 2], [-100, 3])
    fits = Tokens([1] * 6, [2] * 6)
    assert fit_context([fits], 6, "drop") == fit_context([fits], 6, "truncate") == ([fits], 0, 0)
    cut = fit_context([long, prompt_only, short], 6, "truncate")
    assert cut == ([Tokens([1] * 6, [-100] * 4 + [2] * 2), short], 1, 1)
    assert fit_context([long, prompt_only, short], 6, "drop") == ([short], 0, 2)


def test_the_books_split_and_one_by_seed():
    train, test, val = split(1100, None)
    assert (train, test, val) == (list(range(935)), list(range(935, 1045)), list(range(1045, 1100)))
    drawn = split(1100, 7)
    assert [len(part) for part in drawn] == [935, 110, 55] and sorted(sum(drawn, [])) == list(range(1100))
    assert drawn == split(1100, 7) != split(1100, 8)
    assert split(2, 0)[1] == []
    with pytest.raises(gptfast.GptfastError, match="1 examples are too few"):
        split(1, 0)


def test_the_real_data(shared_data, gpt2_vocabulary):
    encoding, template = gptfast.get_encoding("gpt2"), Template.of("alpaca")
    examples = read_examples(shared_data / "instruction" / "instruction-data.json")
    tokens = every(examples, "data", lambda e: tokenise(e, template, encoding))
    assert len(tokens) == 1100
    for example, (ids, targets) in zip(examples, tokens, strict=True):
        response = [t for t in targets if t >= 0]
        assert response[-1] == encoding.eot_token and encoding.decode(response[:-1]) == example["output"]
        assert encoding.decode(ids).endswith(f"### Response:\n{example['output']}")


def test_files(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(EXAMPLES))
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, EXAMPLES)) + "\n")
    assert read_examples(tmp_path / "a.json") == read_examples(tmp_path / "a.jsonl") == EXAMPLES
    for name, content, message in (
        ("b.json", b'{"instruction": "a"}', "no list of examples"),
        ("c.json", b"[]", "no list of examples"),
        ("d.json", b'[{"instruction": "a"}, 3]', "example 1 .from 0. is 3, not an object"),
        ("e.json", b"[", "not valid JSON"),
        ("f.jsonl", b'{"a": 1}\n{"a": 2\n', "line 2 is not valid JSON"),
        ("g.json", b"\xff", "not UTF-8"),
        ("h.csv", b"a,b", "neither .json"),
        ("i.json", rb'[{"a": "b"}, {"a": ["\ud83d"]}]', "example 1 .from 0. has half of a surrogate pair"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(gptfast.GptfastError, match=message):
            read_examples(tmp_path / name)
    with pytest.raises(gptfast.GptfastError, match="cannot read"):
        read_examples(tmp_path / "none.json")


def test_the_first_bad_example_is_named_and_all_are_counted():
    bad = {"instruction": "a", "output": ""}
    with pytest.raises(gptfast.GptfastError, match=r"f: example 1 .from 0.: it has no response .* .1 more are bad."):
        every([EXAMPLES[0], bad, EXAMPLES[1], bad], "f", lambda e: tokenise(e, ALPACA, ENCODING))

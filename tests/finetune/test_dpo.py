"""DPO: the loss of the paper, computed anew in fp64, and a run that learns which response is preferred."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gptfast
from gptfast.cli import main
from gptfast.finetune.dpo import (
    Pair,
    Referenced,
    _fit_pairs,
    dpo_loss,
    margins,
    pair_batch,
    pair_of,
    response_log_probabilities,
)  # fmt: skip
from gptfast.finetune.instruct_data import fit_context
from gptfast.finetune.templates import Template
from gptfast.report import read_metrics

ENCODING = gptfast.get_encoding("bytes")
TEMPLATE = Template.of("{instruction}={output}")
EXAMPLES = [
    {"instruction": "Hello", "chosen": "Good day", "rejected": "What"},
    {"instruction": "Why", "chosen": "So", "rejected": "Because I say so"},
    {"instruction": "And", "chosen": "yes", "rejected": "no"},
]


def new_model(seed, dtype=torch.float64):
    torch.manual_seed(seed)
    model = gptfast.GPT(gptfast.GPTConfig(ENCODING.n_vocab, 32, 2, 2, 16)).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def naive_log_p(model, prompt, response):
    """log p(response, end-of-text | prompt), token by token."""
    ids = [*prompt.encode(), *response.encode(), ENCODING.eot_token]
    log_p = F.log_softmax(model(torch.tensor([ids]))[0], -1)
    return sum(log_p[t, ids[t + 1]] for t in range(len(prompt) - 1, len(ids) - 1))


def test_loss_and_gradient_are_the_papers():
    policy, reference, beta = new_model(0), new_model(1), 0.3
    losses = []
    for e in EXAMPLES:
        ratio = {}
        for key in ("chosen", "rejected"):
            with torch.no_grad():
                ref = naive_log_p(reference, e["instruction"] + "=", e[key])
            ratio[key] = naive_log_p(policy, e["instruction"] + "=", e[key]) - ref
        losses.append(-torch.log(torch.sigmoid(beta * (ratio["chosen"] - ratio["rejected"]))))
    want = sum(losses)
    pairs = [pair_of(e, TEMPLATE, ENCODING) for e in EXAMPLES]
    with torch.no_grad():
        of_reference = response_log_probabilities(reference, pair_batch(pairs)).view(2, -1)
    got = dpo_loss(margins(policy, pair_batch(pairs), of_reference, beta))
    torch.testing.assert_close(got, want, atol=1e-10, rtol=0)
    parameters = list(policy.parameters())
    for mine, theirs in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(want, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_the_reference_follows_its_pairs_and_an_untrained_policy_has_no_margin():
    model = new_model(0, torch.float32)
    pairs = [pair_of(e, TEMPLATE, ENCODING) for e in EXAMPLES]
    data = Referenced(pairs, model, 2, torch.device("cpu"))
    for batch, reference in data.batches(np.array([2, 0, 1]), 2):
        m = margins(model, batch, reference, 0.5)
        torch.testing.assert_close(m, torch.zeros_like(m), atol=1e-4, rtol=0)
        torch.testing.assert_close(dpo_loss(m) / len(m), torch.tensor(math.log(2)), atol=1e-4, rtol=0)


def test_of_a_chat_only_the_last_response_counts():
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    pair = pair_of({"messages": turns, "chosen": "yes", "rejected": "no"}, TEMPLATE, ENCODING)
    for tokens, response in ((pair.chosen, "yes"), (pair.rejected, "no")):
        assert [t for t in tokens.targets if t >= 0] == [*response.encode(), ENCODING.eot_token]
    tight = Template("tight", "{instruction}{output}", separator="")  # a question of a single token
    pair = pair_of({"messages": turns, "chosen": "yes", "rejected": "no"}, tight, ENCODING)
    assert pair.chosen == ([*b"abcyes"], [-100, -100, *b"yes", ENCODING.eot_token])
    single = pair_of({"instruction": "c", "chosen": "yes", "rejected": "no"}, TEMPLATE, ENCODING)
    assert isinstance(single, Pair) and fit_context(single, 3, "drop").dropped == 2
    assert _fit_pairs([single], 3, "drop") == ([], 0, 1)  # a pair is left out, or cut, as one
    assert _fit_pairs([single], 3, "truncate")[1:] == (1, 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"chosen": ""}, "no text 'chosen'"),
        ({"chosen": " \n"}, "no text 'chosen'"),
        ({"rejected": 3}, "no text 'rejected'"),
        ({"instruction": ""}, "'instruction' is empty"),
        ({"messages": "Hi"}, "not a list"),
    ],
)
def test_bad_pairs_are_refused(change, message):
    with pytest.raises(gptfast.GptfastError, match=message):
        pair_of({"instruction": "a", "chosen": "yes", "rejected": "no", **change}, TEMPLATE, ENCODING)


@pytest.mark.parametrize("kind", ["instruction", "messages"])
@pytest.mark.parametrize("flags", [(), ("--lora-rank", "8")])
def test_a_run_learns_the_preference(tmp_path, capsys, flags, kind):
    new_model(0, torch.float32).save_pretrained(tmp_path / "base")
    pairs = [{"instruction": f"n{n}", "chosen": f"{n} ok", "rejected": f"{n} no"} for n in range(40)]
    TEMPLATE.save(tmp_path / "base")  # as --init was fine-tuned with, it goes on
    if kind == "messages":
        for pair in pairs:
            pair["messages"] = [{"role": "user", "content": pair.pop("instruction")}]
    pairs[7]["rejected"] = pairs[7]["chosen"]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    arguments = (
        "finetune-dpo", tmp_path / "pairs.json", "--init", tmp_path / "base", "--out", tmp_path / "run", "--encoding",
        "bytes", "--epochs", "3", "--lr", "1e-2", "--beta", "0.5",
        "--samples", "1", *flags,
    )  # fmt: skip
    assert main([str(a) for a in arguments]) == 0
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in row]
    assert rows[0]["val_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert rows[0]["val_margin"] == pytest.approx(0, abs=1e-3)
    assert rows[-1]["val_loss"] < 0.6 and rows[-1]["val_accuracy"] == 1 and rows[-1]["val_margin"] > 0.2
    said = capsys.readouterr().out
    assert "reward accuracy" in said and "1 pairs were left out" in said
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    assert Template.load(tmp_path / "run") == TEMPLATE
    assert (tmp_path / "run" / "adapter").is_dir() == bool(flags)
    assert (tmp_path / "run" / "samples" / "evaluation-000.txt").read_text().startswith("> n")


def test_beta_must_be_above_zero(tmp_path, capsys):
    assert main(["finetune-dpo", "x.json", "--init", "y", "--out", str(tmp_path / "run"), "--beta", "0"]) == 2
    assert "--beta is 0" in capsys.readouterr().err


def test_pairs_that_are_all_equal_teach_nothing(tmp_path, capsys):
    new_model(0, torch.float32).save_pretrained(tmp_path / "base")
    (tmp_path / "pairs.json").write_text(json.dumps([{"instruction": "a", "chosen": "b", "rejected": "b"}] * 5))
    flags = ("--init", str(tmp_path / "base"), "--out", str(tmp_path / "run"), "--encoding", "bytes")
    assert main(["finetune-dpo", str(tmp_path / "pairs.json"), *flags]) == 2
    assert "whose responses differ" in capsys.readouterr().err

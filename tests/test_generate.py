"""Sampling: the cache changes nothing, the filters keep what they say, and the command line writes text."""

from __future__ import annotations

import io

import pytest
import torch

import gptfast
from gptfast.checkpoint import find_checkpoint
from gptfast.cli import main
from gptfast.model import KVCache
from gptfast.sampling import probabilities, sample, stream

CONFIG = gptfast.GPTConfig(vocab_size=257, context_length=24, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = gptfast.GPT(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def command_line():
    pytest.importorskip("tyro", reason="the command line needs tyro", exc_type=ImportError)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 4])
def test_cached_logits_equal_uncached(window):
    torch.manual_seed(0)
    config = gptfast.GPTConfig(257, 24, 2, 2, 32, window=window)
    model = gptfast.GPT(config).double().eval()
    idx = torch.randint(257, (3, 24))
    whole = model(idx)
    cache = KVCache.empty(model, 3)
    parts = [model(piece, cache=cache) for piece in idx.split([5, 1, 1, 7, 1, 9], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@torch.no_grad()
def test_greedy_tokens_equal_plain_recomputation_also_past_the_context(model):
    idx = torch.randint(257, (2, 3), generator=torch.Generator().manual_seed(1))
    got = model.generate(idx, 40, temperature=0)
    want = idx
    for _ in range(40):  # every token from the last `context` ones, without a cache
        want = torch.cat([want, model(want[:, -24:])[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(got, want)


def test_greedy_tokens_equal_transformers(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    model.save_pretrained(tmp_path)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    idx = torch.randint(257, (2, 4))
    want = theirs.generate(idx, max_new_tokens=20, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(idx))
    assert torch.equal(model.generate(idx, 20, temperature=0), want)


def test_the_seed_decides(model):
    idx = torch.zeros(1, 1, dtype=torch.long)
    a, b, c = (model.generate(idx, 15, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_rows_stop_at_end_of_text(model):
    idx = torch.randint(257, (4, 2), generator=torch.Generator().manual_seed(0))
    free = model.generate(idx, 12, temperature=0)
    eos = int(free[0, 5])
    stopped = model.generate(idx, 12, temperature=0, eos_id=eos)
    for row, plain in zip(stopped.tolist(), free.tolist(), strict=True):
        end = 2 + plain[2:].index(eos) + 1 if eos in plain[2:] else len(row)
        assert row[:end] == plain[: len(row)][:end] and set(row[end:]) <= {eos}


def draws(logits, **how):
    generator = torch.Generator().manual_seed(0)
    return set(sample(logits.expand(4000, -1), generator=generator, **how).tolist())


def test_filters_keep_the_likeliest_only():
    logits = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03]).log()[
        torch.tensor([3, 0, 4, 1, 2])
    ]  # ids by rank: 1, 3, 4, 0, 2
    assert draws(logits) == {0, 1, 2, 3, 4}
    assert draws(logits, top_k=2) == {1, 3}
    assert draws(logits, top_p=0.7) == {1, 3}  # 0.5 + 0.25 is the first sum to reach 0.7
    assert draws(logits, top_p=0.76) == {1, 3, 4}
    assert draws(logits, top_p=0.01) == {1}
    assert draws(logits, temperature=0) == {1}


def test_top_p_of_a_flat_and_of_a_steep_distribution():
    kept = probabilities(torch.zeros(1, 1000), top_p=0.9) > 0  # more than the likeliest few hundred
    assert abs(int(kept.sum()) - 900) <= 1
    assert probabilities(torch.arange(7.0)[None], top_p=5e-324).tolist() == [[0.0] * 6 + [1.0]]


def test_training_mode_is_given_back(model):
    model.train()
    list(stream(model, torch.zeros(1, 1, dtype=torch.long), 2))
    assert model.training
    model.eval()


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"max_new_tokens": -1}]
)
def test_impossible_sampling_is_refused(model, bad):
    with pytest.raises(gptfast.GptfastError, match="cannot sample"):
        model.generate(torch.zeros(1, 1, dtype=torch.long), **{"max_new_tokens": 1, **bad})


def test_empty_prompt_is_refused(model):
    with pytest.raises(gptfast.GptfastError, match="at least one token"):
        model.generate(torch.zeros(1, 0, dtype=torch.long), 1)


@pytest.mark.usefixtures("command_line")
def test_command_writes_one_or_several_texts(model, tmp_path, capsys):
    model.save_pretrained(tmp_path)
    flags = ["generate", str(tmp_path), "--encoding", "bytes", "--max-new-tokens", "8", "--device", "cpu"]
    assert main([*flags, "--prompt", "The"]) == 0
    one = capsys.readouterr().out
    assert one.startswith("The") and len(one) > 4
    assert main([*flags, "--prompt", "The", "A", "And", "--temperature", "0"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("--- ")] == ["--- 1", "--- 2", "--- 3"]
    single = [
        main([*flags, "--prompt", p, "--temperature", "0"]) or capsys.readouterr().out for p in ("The", "A", "And")
    ]
    assert out == "".join(f"--- {n}\n{text}" for n, text in enumerate(single, 1))


@pytest.mark.usefixtures("command_line")
def test_ids_that_are_no_token_are_left_out(tmp_path, capsys):
    torch.manual_seed(0)
    padded = gptfast.GPT(gptfast.GPTConfig(300, 24, 1, 1, 8))
    padded.lm_head.weight.data[257:] *= 100  # so that about half of what is drawn has no bytes
    padded.save_pretrained(tmp_path)
    flags = ["generate", str(tmp_path), "--encoding", "bytes", "--max-new-tokens", "20", "--device", "cpu"]
    for prompts in (["a"], ["a", "b"]):
        assert main([*flags, "--prompt", *prompts]) == 0
        assert "a" in capsys.readouterr().out


@pytest.mark.usefixtures("command_line")
def test_a_character_that_the_output_cannot_show_is_escaped(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["generate", str(tmp_path), "--encoding", "bytes", "--max-new-tokens", "20", "--device", "cpu"]) == 0
    assert b"\\ufffd" in out.buffer.getvalue()


@pytest.mark.usefixtures("command_line")
def test_command_says_when_the_window_slides(model, tmp_path, capsys):
    model.save_pretrained(tmp_path)
    assert main(["generate", str(tmp_path), "--encoding", "bytes", "--max-new-tokens", "30", "--device", "cpu"]) == 0
    assert "the window slides" in capsys.readouterr().err


def test_a_fine_tuning_run_means_its_best_model(model, tmp_path):
    model.save_pretrained(tmp_path / "best")
    assert find_checkpoint(tmp_path) == tmp_path / "best"
    with pytest.raises(gptfast.GptfastError, match="no run with checkpoints"):
        find_checkpoint(tmp_path, "last")


@pytest.mark.usefixtures("command_line")
def test_command_refuses_what_is_no_model(tmp_path, capsys):
    assert main(["generate", str(tmp_path / "nothing")]) == 2
    assert "there is no file or folder" in capsys.readouterr().err


@pytest.mark.usefixtures("command_line")
def test_command_refuses_another_models_encoding(model, tmp_path, capsys):
    model.save_pretrained(tmp_path)
    assert main(["generate", str(tmp_path)]) == 2
    assert "pass --encoding" in capsys.readouterr().err
    gptfast.GPT(gptfast.GPTConfig(200, 24, 1, 1, 8)).save_pretrained(tmp_path)
    assert main(["generate", str(tmp_path), "--encoding", "bytes", "--device", "cpu"]) == 2
    assert "'bytes' has 257 tokens, the model 200" in capsys.readouterr().err

"""`gptfast finetune-instruct`: from a file to a run that transformers, PEFT and the chat can read."""

from __future__ import annotations

import json

import pytest
import torch

import gptfast
from gptfast.cli import main
from gptfast.finetune import instruct
from gptfast.finetune.instruct_data import pad, target_losses, tokenise
from gptfast.finetune.templates import Template
from gptfast.report import read_metrics

ENCODING = gptfast.get_encoding("bytes")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model folder of a small GPT over bytes."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    gptfast.GPT(gptfast.GPTConfig(ENCODING.n_vocab, 48, 2, 2, 32)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 examples whose answer is the word of the question."""
    file = tmp_path_factory.mktemp("data") / "echo.json"
    words = [
        f"{a}{b}" for a in ("red", "ox", "sun", "day") for b in ("s", "ly", "er", "est", "a", "o", "i", "u", "e", "y")
    ]
    file.write_text(json.dumps([{"instruction": word, "input": "", "output": word} for word in words]))
    return file


def tune(data, base, out, *flags):
    flags = (
        "--encoding", "bytes", "--template", "{instruction}={output}", "--precision", "fp32", "--samples", "2", *flags
    )  # fmt: skip
    return main(["finetune-instruct", str(data), "--init", str(base), "--out", str(out), *flags])


def loss_of(model, examples, loss="response"):
    batch = pad([tokenise(e, Template.of("{instruction}={output}"), ENCODING, loss) for e in examples])
    with torch.no_grad():
        return (target_losses(model, batch) / batch.n).item()


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--padding", "--batch-size", "3"),
        ("--lora-rank", "4", "--lora-alpha", "8", "--lora-dropout", "0.1", "--lora-targets", "c_attn", "c_fc"),
    ],
)
def test_a_run(data, base, tmp_path, capsys, flags):
    transformers = pytest.importorskip("transformers")
    run = tmp_path / "run"
    assert tune(data, base, run, "--epochs", "6", "--lr", "1e-2", *flags) == 0
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "val_loss" in row]
    assert len(rows) == 7 and rows[-1]["val_loss"] < rows[0]["val_loss"] - 0.1
    model = gptfast.GPT.from_pretrained(run / "best")
    test = json.loads((run / "test.json").read_text())
    assert len(test) == 4 and all(set(e) == {"instruction", "input", "output"} for e in test)
    best = min(row["val_loss"] for row in rows[1:])
    assert f"{loss_of(model, test):.4f}" in capsys.readouterr().out  # in the table
    everything = json.loads(data.read_text())
    parts = instruct.split_of(len(everything), "seed", 123)
    assert [everything[i] for i in parts["test"]] == test
    assert loss_of(model, [everything[i] for i in parts["val"]]) == pytest.approx(best, rel=1e-4)
    assert Template.load(run) == Template.of("{instruction}={output}")
    assert len(list((run / "samples").iterdir())) == 7
    assert "> " + everything[parts["val"][0]]["instruction"] in (run / "samples" / "evaluation-006.txt").read_text()
    idx = torch.randint(256, (1, 20))
    theirs = transformers.GPT2LMHeadModel.from_pretrained(run / "best").eval()
    torch.testing.assert_close(model(idx), theirs(idx).logits, atol=1e-4, rtol=1e-4)
    if "--lora-rank" in flags:
        peft = pytest.importorskip("peft")
        theirs = peft.PeftModel.from_pretrained(
            transformers.GPT2LMHeadModel.from_pretrained(base), run / "adapter"
        ).eval()
        torch.testing.assert_close(model(idx), theirs(idx).logits, atol=1e-4, rtol=1e-4)
        values = json.loads((run / "adapter" / "adapter_config.json").read_text())
        assert (values["r"], values["lora_alpha"], values["lora_dropout"]) == (4, 8, 0.1)
        for folder, hint in ((run, "it is a run: give its best/"), (run / "adapter", "a LoRA adapter alone")):
            with pytest.raises(gptfast.GptfastError, match=hint):
                gptfast.load_weights(folder)
    else:
        assert not (run / "adapter").exists()
    # The run names its tokenizer and is something to start from.
    more = tmp_path / "more"
    assert tune(data, run, more, "--epochs", "0.5", *flags) == 0
    assert read_metrics(more / "metrics.jsonl")[0]["val_loss"] == pytest.approx(best, rel=1e-4)
    if "--lora-rank" in flags:  # whose adapter says what it belongs on: the model in that run, not the run
        theirs = peft.AutoPeftModelForCausalLM.from_pretrained(more / "adapter").eval()
        ours = gptfast.GPT.from_pretrained(more / "best")
        torch.testing.assert_close(ours(idx), theirs(idx).logits, atol=1e-4, rtol=1e-4)


def test_packing_and_padding_train_alike_where_their_batches_are_the_same(data, base, tmp_path):
    """One batch of all training examples: the same gradients, so the same losses."""
    for flags in ((), ("--padding",)):
        assert tune(data, base, tmp_path / f"run{len(flags)}", "--batch-size", "34", "--epochs", "3", *flags) == 0
    packed, padded = (
        [r["loss"] for r in read_metrics(tmp_path / f"run{n}" / "metrics.jsonl") if "loss" in r] for n in (0, 1)
    )
    assert len(packed) == 3 and packed == pytest.approx(padded, rel=1e-5)


def test_each_epoch_has_an_order_of_its_own(data, base, tmp_path):
    """On a model that hardly moves, the same batches would have the same losses."""
    flags = ("--epochs", "2", "--lr", "1e-12", "--batch-size", "17", "--samples", "0", "--loss", "all")
    assert tune(data, base, tmp_path / "run", *flags) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    a, b, c, d = (row["loss"] for row in rows if "loss" in row)
    assert {a, b} != {c, d}
    everything = json.loads(data.read_text())
    val = [everything[i] for i in instruct.split_of(len(everything), "seed", 123)["val"]]
    expected = loss_of(gptfast.GPT.from_pretrained(base), val, "all")  # of prompts and responses
    assert rows[0]["val_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("long, said", [("drop", "5 examples were left out"), ("truncate", "5 examples are longer")])
def test_long_examples_are_cut_or_left_out_as_asked(data, base, tmp_path, capsys, long, said):
    examples = json.loads(data.read_text())[:20]
    for example in examples[:5]:
        example["output"] = "long" * 20
    (tmp_path / "long.json").write_text(json.dumps(examples))
    flags = ("--long", long, "--epochs", "0.1", "--samples", "0")
    assert tune(tmp_path / "long.json", base, tmp_path / "run", *flags) == 0
    assert said in capsys.readouterr().out


def test_an_answer_ends_at_end_of_text_or_a_stop_and_stays_in_the_context(base, monkeypatch):
    model, template = gptfast.GPT.from_pretrained(base), Template.of("phi3")
    asked = []

    def stream(model, idx, max_new_tokens, **sampling):
        asked.append(max_new_tokens)
        yield from (torch.tensor([byte]) for byte in b"one <|end|> two")

    monkeypatch.setattr("gptfast.sampling.stream", stream)
    assert instruct.answer(model, ENCODING, template, {"instruction": "a"}, 80) == "one"
    assert asked == [48 - len(template.prompt({"instruction": "a"}))]


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--template", "{instruction}"), "no {output}"),
        (("--lora-rank", "-1"), "--lora-rank is -1"),
        (("--lora-rank", "2", "--lora-targets", "q"), "called 'q'"),
        (("--lr", "0"), "--lr is 0"),
        (("--template", "alpaca"), "of the train part fits the context of 48 tokens"),
    ],
)
def test_bad_settings_are_one_line(data, base, tmp_path, capsys, flags, message):
    assert tune(data, base, tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_bad_data_and_folders_are_one_line(data, base, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    assert tune(tmp_path / "bad.jsonl", base, tmp_path / "run") == 2
    assert "bad.jsonl: example 1 (from 0): it has no response" in capsys.readouterr().err
    assert tune(data, tmp_path / "nowhere", tmp_path / "run") == 2
    assert tune(data, base, base) == 2
    assert "is not empty; choose another --out" in capsys.readouterr().err

"""The classifier against transformers' GPT2ForSequenceClassification; batches; what is saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gptfast
from gptfast.errors import GptfastError
from gptfast.finetune.batches import batches, packed, padded, padding_share
from gptfast.finetune.classifier import Classifier
from gptfast.lora import LoRALinear

PAD = 256  # <|endoftext|> of the encoding "bytes"
NAMES = ["zero", "one", "two"]


def make(position: Any = "last-token", length: int | None = None, **changes: Any) -> Classifier:
    """With weights large enough that an error shows."""
    torch.manual_seed(0)
    config: dict[str, Any] = {"vocab_size": 257, "context_length": 32, "n_layer": 2, "n_head": 2, "n_embd": 32}
    model = Classifier(gptfast.GPT(gptfast.GPTConfig(**config | changes)), NAMES, PAD, length, position)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def documents(seed: int = 0, n: int = 13, longest: int = 32) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, rng.integers(1, longest + 1)).tolist() for _ in range(n)]


def in_transformers(folder: Path, **changes: Any) -> Any:
    from transformers import GPT2ForSequenceClassification

    model, info = GPT2ForSequenceClassification.from_pretrained(folder, output_loading_info=True, **changes)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def of_lengths(ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """All in one batch, right-padded, and the place of each one's last token."""
    rows = [torch.tensor(x) for x in ids]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD), torch.tensor(
        [len(x) - 1 for x in ids]
    )


@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"tie_weights": False}], ids=str)
def test_transformers_agrees(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Logits of a padded batch and every gradient of the cross entropy."""
    model = make(**changes)
    model.save(tmp_path, gptfast.get_encoding("bytes"))
    theirs = in_transformers(tmp_path)
    assert theirs.config.id2label == dict(enumerate(NAMES)) and theirs.config.num_labels == 3
    idx, last = of_lengths(documents())
    labels = torch.arange(len(idx)) % 3
    logits, expected = model(idx, last), theirs(idx, labels=labels)
    torch.testing.assert_close(logits, expected.logits)
    F.cross_entropy(logits, labels).backward()
    expected.loss.backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        other = gradients[name.replace("body.", "transformer.")].grad
        if "c_" in name and name.endswith("weight"):  # Conv1D's are [in, out]
            other = other.T
        torch.testing.assert_close(parameter.grad, other, atol=1e-6, rtol=1e-4, msg=name)


def test_the_end_is_the_last_position_padding_or_not(tmp_path: Path) -> None:
    """As the book does; transformers does so without a padding token, a text at a time."""
    model = make("end", length=20)
    model.save(tmp_path, gptfast.get_encoding("bytes"))
    theirs = in_transformers(tmp_path)
    assert theirs.config.pad_token_id is None
    ids = documents(longest=20)
    expected = torch.cat([theirs(torch.tensor([x + [PAD] * (20 - len(x))])).logits for x in ids])
    np.testing.assert_allclose(model.probabilities(ids, 4), expected.detach().double().softmax(-1), atol=1e-6)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_loaded_classifier_is_the_saved_one(tmp_path: Path, loaded: bool) -> None:
    model, ids = make(length=24), documents()
    encoding = gptfast.Encoding.train(["a vocabulary of its own, saved beside the model"], 257 if loaded else 260)
    model.save(tmp_path / "best", encoding)
    again, tokenizer = Classifier.load(tmp_path if loaded else tmp_path / "best")  # of a run, its best
    assert tokenizer.hash == encoding.hash and not again.training
    assert (again.names, again.pad_id, again.length, again.position) == (NAMES, PAD, 24, "last-token")
    assert np.array_equal(again.probabilities(ids), model.probabilities(ids))


@pytest.mark.parametrize("size", [1, 4, 13])
def test_packed_equals_padded(size: int) -> None:
    model, ids = make(), documents()
    every = list(range(len(ids)))
    together: dict[str, Tensor] = {}
    gradients = {}
    for name, collate in (("padded", padded(PAD)), ("packed", packed(PAD, 32))):
        model.zero_grad()
        logits = torch.empty(len(ids), 3)
        for batch in batches(ids, size, collate, None):
            out = model.on(batch)
            logits[batch.texts] = out.detach()
            F.cross_entropy(out, torch.from_numpy(batch.texts % 3), reduction="sum").backward()
        together[name] = logits
        gradients[name] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    alone = torch.cat([model(torch.tensor([ids[i]]), torch.tensor([len(ids[i]) - 1])) for i in every])
    torch.testing.assert_close(together["padded"], alone.detach())
    torch.testing.assert_close(together["packed"], alone.detach())
    torch.testing.assert_close(gradients["packed"], gradients["padded"], atol=1e-5, rtol=1e-4)


def test_batches_hold_every_text_once_and_say_their_padding() -> None:
    ids = documents(n=50)
    lengths = np.array([len(x) for x in ids])
    for collate in (padded(PAD), packed(PAD, 32), padded(PAD, to=40)):
        for rng in (None, np.random.default_rng(1)):
            found = list(batches(ids, 8, collate, rng))
            assert len(found) == 7 and sorted(i for b in found for i in b.texts) == list(range(50))
            for batch in found:
                flat = batch.idx.flatten()
                assert batch.tokens == lengths[batch.texts].sum() == (flat != PAD).sum()
                if batch.idx.shape[1] != 40:
                    assert flat[batch.last].tolist() == [ids[i][-1] for i in batch.texts]
                if batch.cu_seqlens is not None:
                    assert batch.idx.shape[1] <= 32 and batch.cu_seqlens[-1] == len(flat)
    one, two = (list(batches(ids, 8, padded(PAD), np.random.default_rng(seed))) for seed in (1, 2))
    assert [b.texts.tolist() for b in one] != [b.texts.tolist() for b in two]
    assert padding_share([[1], [1, 2, 3]], 2, padded(PAD), 0) == pytest.approx(2 / 6)
    assert padding_share([[1], [1, 2, 3]], 2, packed(PAD, 4), 0) == 0
    assert padding_share([[1], [1, 2, 3]], 2, padded(PAD, to=10), 0) == pytest.approx(16 / 20)


@pytest.mark.parametrize(
    ("layers", "trained"),
    [
        ("head", {"score"}),
        ("last-block", {"score", "body.h.1", "body.ln_f"}),
        ("all", {"score", "body.h.0", "body.h.1", "body.ln_f", "body.wte", "body.wpe"}),
        ("lora", {"score", "body.h.0", "body.h.1"}),
    ],
)
def test_which_layers_train(layers: Any, trained: set[str]) -> None:
    model = make()
    model.train_only(layers)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {".".join(n.split(".")[: 3 if ".h." in n else 2]).removesuffix(".weight") for n in names} == trained
    if layers == "lora":
        assert all(".lora_" in name or name == "score.weight" for name in names)


def test_the_new_head_is_drawn_as_transformers_draws_it() -> None:
    weight = Classifier(gptfast.GPT(gptfast.GPTConfig(7, 8, 1, 1, 512)), NAMES, 0).score.weight
    assert weight.shape == (3, 512) and 0.018 < weight.std().item() < 0.022 and abs(weight.mean().item()) < 0.003


def test_lora_is_saved_merged_and_goes_on_training(tmp_path: Path) -> None:
    model, ids = make(), documents()
    model.train_only("lora")
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LoRALinear):
                layer.lora_B.normal_(std=0.1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model.probabilities(ids)
    model.save(tmp_path, gptfast.get_encoding("bytes"))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    again, _ = Classifier.load(tmp_path)
    np.testing.assert_allclose(again.probabilities(ids), expected, atol=1e-5)
    idx, last = of_lengths(ids)
    torch.testing.assert_close(in_transformers(tmp_path)(idx).logits, model(idx, last), atol=1e-4, rtol=1e-4)


def test_what_transformers_saves_over_it_has_the_same_classes(tmp_path: Path) -> None:
    """It sorts the names of label2id, so "10" comes before "9"; id2label says which is which."""
    model, encoding = make(), gptfast.get_encoding("bytes")
    model.names = ["9", "10", "11"]
    model.save(tmp_path, encoding)
    in_transformers(tmp_path).save_pretrained(tmp_path)
    assert list(json.loads((tmp_path / "config.json").read_text())["label2id"]) == ["10", "11", "9"]
    assert Classifier.load(tmp_path)[0].names == ["9", "10", "11"]


def test_banded_attention_is_loaded_here_and_refused_there(tmp_path: Path) -> None:
    model, ids = make(window=4), documents()
    model.save(tmp_path, gptfast.get_encoding("bytes"))
    assert np.array_equal(Classifier.load(tmp_path)[0].probabilities(ids), model.probabilities(ids))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gptfast"


def test_probabilities_are_without_dropout() -> None:
    model, ids = make(dropout=0.5), documents()
    expected = model.probabilities(ids)
    assert np.array_equal(model.train().probabilities(ids), expected) and model.training


def test_long_texts_keep_their_beginning() -> None:
    model, encoding = make(length=5), gptfast.get_encoding("bytes")
    ids, cut = model.encode(encoding, ["abcdefgh", "abcde", "x"])
    assert [encoding.decode(x) for x in ids] == ["abcde", "abcde", "x"] and cut == 1
    with pytest.raises(GptfastError, match="text 2 is empty"):
        model.encode(encoding, ["a", " \n"])


def test_what_is_no_classifier(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(GptfastError, match="holds no classifier .*finetune-classifier"):
            Classifier.load(folder)
    model = make()
    model.body.save_pretrained(tmp_path / "gpt")
    with pytest.raises(GptfastError, match="holds no classifier, but .*GPT2LMHeadModel"):
        Classifier.load(tmp_path / "gpt")
    model.save(tmp_path / "classifier", gptfast.get_encoding("bytes"))
    with pytest.raises(GptfastError, match="is a classifier and writes no text; `gptfast classify`"):
        gptfast.GPT.from_pretrained(tmp_path / "classifier")
    config = tmp_path / "classifier" / "config.json"
    whole = json.loads(config.read_text())
    wrong: list[Any] = [{"0": "a", "1": "b"}, {"1": "a", "2": "b", "3": "c"}, {str(k): "a" for k in range(4)}, None]
    for damage in (*({"id2label": names} for names in wrong), {"gptfast_classifier": {}}):
        config.write_text(json.dumps(whole | damage))
        with pytest.raises(GptfastError, match="config.json is damaged: it does not describe the classifier"):
            Classifier.load(tmp_path / "classifier")
    config.write_text(json.dumps(whole))
    state = tmp_path / "classifier" / "state.json"
    state.write_text(json.dumps({"encoding": "bytes", "encoding_hash": "0"}))
    with pytest.raises(GptfastError, match="is not the one that the classifier was trained with"):
        Classifier.load(tmp_path / "classifier")

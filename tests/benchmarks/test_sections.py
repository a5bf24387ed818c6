"""Every section runs on tiny sizes, and nothing of gptfast's in it fails or is wrong; what is wrong is seen."""

import importlib

import numpy as np
import pytest
import torch
from gptfast.benchmarks import data, decode, dispatch, load, tokenizer, tokenizer_texts
from gptfast.benchmarks.suite import Setup, measure
from gptfast.benchmarks.tokenizer_peers import PEERS, Job

import gptfast

CPU = torch.device("cpu")
DRY = Setup(CPU, dry=True)


@pytest.fixture(autouse=True)
def own_randomness():
    with torch.random.fork_rng(devices=[]):
        yield


def bad(rows):
    return [row for row in rows if row["form"].startswith("gptfast") and ("failed" in row or row["right"] is False)]


@pytest.mark.parametrize("section", ["dispatch", "decode", "load", "data", "tokenizer"])
def test_a_section_runs_and_is_right(section):
    cases = importlib.import_module(f"gptfast.benchmarks.{section}").cases(DRY)
    each = [measure(case, DRY) for case in cases]
    assert each
    for rows in each:
        assert not bad(rows) and any(row["form"] == "gptfast" for row in rows), rows
        assert not any("failed" in row for row in rows), rows


def test_greedy_texts_are_compared_with_those_of_transformers():
    pytest.importorskip("transformers")
    chosen = [case for case in decode.cases(DRY) if case.name == "generate" and case.dtype == "float32"]
    (case,) = chosen
    rows = measure(case, DRY)
    assert not bad(rows) and all(row["error"] == 0 for row in rows)
    values = case.inputs()
    wrong = case.forms["gptfast"](*values)()
    wrong[0, -1] += 1
    case.forms["gptfast"] = lambda *_: lambda: wrong
    assert bad(measure(case, DRY))


def test_a_call_is_beside_one_of_the_same_function_in_pytorch():
    for name, (shapes, ours, plain) in dispatch.operations(DRY).items():
        inputs = [torch.randint(dispatch.V, x) if isinstance(x, list) else torch.randn(x) for x in shapes]
        torch.testing.assert_close(ours(*inputs), plain(*inputs), msg=lambda text, name=name: f"{name}: {text}")


def test_the_weights_that_a_step_reads_are_counted():
    config = gptfast.GPTConfig.preset("tiny")
    model = gptfast.GPT(config)
    assert decode.number_of_weights(config) == model.num_parameters() - model.wpe.weight.numel()


def test_a_load_in_its_own_process_gives_seconds_memory_and_the_sum_of_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    size, total = load.write_checkpoint(path, "tiny", torch.float32, "safetensors")
    timed = load.fresh("gptfast", path)
    assert timed.seconds > 0 and timed.outputs.item() == pytest.approx(total)
    assert timed.peak_bytes is None or size < timed.peak_bytes < 2 * size
    with pytest.raises(RuntimeError, match="there is no file"):
        load.fresh("gptfast", tmp_path / "nothing.safetensors")


def test_documents_are_the_text():
    texts = data.documents(DRY)
    assert len(texts) > 1 and "\n\n".join(texts) == tokenizer_texts.random_words(20_000).decode().strip()


def test_a_batch_that_is_not_the_file_is_seen(tmp_path):
    case = data.batches(DRY, tmp_path, 2, 16)
    assert not bad(measure(case, DRY))
    tokens = np.fromfile(tmp_path / "train.bin", dtype=np.uint16)
    np.random.default_rng(0).permutation(tokens).tofile(tmp_path / "train.bin")
    assert bad(measure(case, DRY))


def test_without_a_vocabulary_one_is_trained_and_all_who_load_it_agree(tmp_path, monkeypatch):
    """Within this process: what each gives for the vocabulary that gptfast has just learned."""
    monkeypatch.setattr("gptfast.tokenizer.vocabularies.cached_file", lambda name: None)
    monkeypatch.setattr(tokenizer, "SHARED", tmp_path)
    text = tokenizer_texts.random_words(20_000)
    (name,) = tokenizer.vocabulary(tokenizer.ENCODINGS, text, tmp_path)
    ids = {}
    for peer in ("gptfast", "tiktoken", "tokenizers"):
        loaded = PEERS[peer](Job(peer, name, "encode", "", "str", "", str(tmp_path)))
        ids[peer] = loaded.ids(loaded.encode(text.decode()))
    assert len(ids["gptfast"]) < len(text) / 2  # it has learned something
    for peer in ids:
        np.testing.assert_array_equal(ids[peer].astype(np.int64), ids["gptfast"].astype(np.int64))


def test_ids_that_are_not_the_reference_are_seen(tmp_path):
    text = tokenizer_texts.random_words(20_000)
    (tmp_path / "words.txt").write_bytes(text)
    name = tokenizer.vocabulary(tokenizer.ENCODINGS, text, tmp_path)[0]
    case = tokenizer._case(DRY, "words", tmp_path / "words.txt", name, tokenizer.KINDS[0])
    assert not bad(measure(case, DRY))
    (ids,) = tmp_path.glob("*.npy")
    np.save(ids, np.load(ids)[::-1])
    assert bad(measure(case, DRY))

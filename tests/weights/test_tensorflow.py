"""The TensorFlow reader: a checkpoint that TensorFlow wrote (tests/golden/make_tensorflow_checkpoint.py says how), and
that file damaged in thousands of ways.
"""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gptfast import GPT, GptfastError
from gptfast.weights import load_weights, sstable, tensorflow
from gptfast.weights.crc32c import crc32c, masked

GOLDEN = Path(__file__).parents[1] / "golden" / "tensorflow"
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "checkpoint-folder"))


def test_tensors_are_those_that_tensorflow_wrote():
    tensors, values = tensorflow.read(GOLDEN), load_file(GOLDEN / "values.safetensors")
    assert tensors.keys() == values.keys()
    for name, value in values.items():
        assert torch.equal(tensors[name].read(), value.squeeze(0) if value.dim() == 3 else value), name


def test_the_model_computes_what_transformers_computes_from_the_same_values():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    state = {}
    for name, value in load_file(GOLDEN / "values.safetensors").items():
        scope, _, leaf = name.removeprefix("model/").rpartition("/")
        kind = {"g": "weight", "b": "bias", "w": "weight"}.get(leaf)
        path = f"{scope}.{kind}" if kind else f"{leaf}.weight"
        path = path.replace("/", ".")
        path = f"h.{path[1:]}" if path[0] == "h" else path
        state[f"transformer.{path}"] = value.squeeze(0) if value.dim() == 3 else value
    theirs.load_state_dict(state | {"lm_head.weight": state["transformer.wte.weight"]})
    ours = load_weights(GOLDEN).eval()
    assert ours.lm_head.weight is ours.wte.weight
    idx = torch.arange(6)[None]
    torch.testing.assert_close(ours(idx), theirs(idx).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["checkpoint", INDEX, DATA, "model.ckpt"])
def test_any_of_its_files_names_it(name):
    want = load_weights(GOLDEN).state_dict()
    assert all(torch.equal(want[key], value) for key, value in load_weights(GOLDEN / name).state_dict().items())


def test_an_absolute_path_of_another_machine_in_the_checkpoint_file(folder):
    (folder / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt"\n')
    assert load_weights(folder).config.n_layer == 2


def test_without_hparams_the_heads_must_be_said(folder):
    (folder / "hparams.json").unlink()
    with pytest.raises(GptfastError, match="how many heads"):
        load_weights(folder)
    config = load_weights(GOLDEN).config
    assert load_weights(folder, config=config).config == config


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / DATA).unlink(), "which is not in"),
        (lambda f: cut(f / DATA, 1), "is cut short"),
        (lambda f: cut(f / INDEX, 1), "does not end as such a table does"),
        (lambda f: flip(f / DATA, 100), "CRC-32C of model/h0/attn/c_attn/w does not fit"),
        (lambda f: flip(f / INDEX, 100), "CRC-32C does not fit"),
        (lambda f: (f / INDEX).unlink(), "no model.safetensors"),
        (lambda f: hparams(f, n_vocab=12), "vocabulary of 11 tokens, the configuration says 12"),
        (lambda f: hparams(f, n_ctx=7), r"model/wpe is \[6, 8\], should be \[7, 8\]"),
        (lambda f: hparams(f, n_layer=10**9), "which no model has"),
        (lambda f: hparams(f, n_layer=10**6), "only 28 tensors"),
        (lambda f: hparams(f, n_head=3), "describes no model"),
        (lambda f: hparams(f, n_embd="8"), "n_embd = '8'"),
        (lambda f: (f / "hparams.json").write_text("{}"), "has no 'n_vocab'"),
        (lambda f: shutil.copy(f / INDEX, f / "other.index") and (f / "checkpoint").unlink(), "2 files that end in"),
    ],
)
def test_damage_is_named(folder, damage, said):
    damage(folder)
    with pytest.raises(GptfastError, match=said):
        load_weights(folder)


def cut(path: Path, n: int) -> None:
    path.write_bytes(path.read_bytes()[:-n])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def hparams(folder: Path, **values) -> None:
    path = folder / "hparams.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def mended(data: bytes) -> bytes:
    """`data` with the CRC of its first block put right, so that damage gets past it."""
    footer = data[-48:]
    _, at = sstable.varint(footer, 0)
    _, at = sstable.varint(footer, at)
    index, _ = sstable.varint(footer, at)
    # The golden table: one data block, an empty filter block of 13 bytes, the index block.
    end = index - 13 - 5
    crc = masked(crc32c(np.frombuffer(data[: end + 1], np.uint8)))
    return data[: end + 1] + crc.to_bytes(4, "little") + data[end + 5 :]


def mutations(data: bytes, seed: int, n: int):
    rng = random.Random(seed)
    for _ in range(n):
        kind, at = rng.randrange(5), rng.randrange(len(data))
        changed = bytearray(data)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:  # a length or an offset as large as can be written
            changed[at : at + 9] = b"\xff" * rng.randrange(1, 9) + b"\x7f"
        elif kind == 3:
            other = rng.randrange(len(data))
            changed[at : at + 16] = data[other : other + rng.randrange(16)]
        else:
            del changed[at : at + rng.randrange(1, 9)]
        yield bytes(changed)


def test_the_mending_of_these_tests_is_right():
    data = (GOLDEN / INDEX).read_bytes()
    assert mended(data) == data


def test_a_damaged_index_gives_a_model_or_one_error(folder):
    """Thousands of mutations, most of them with the block's CRC put right; in little memory, and none may hang."""
    data = (folder / INDEX).read_bytes()
    want = load_weights(GOLDEN).state_dict()
    outcomes = {"same": 0, "error": 0}
    tracemalloc.start()
    for i, changed in enumerate(mutations(data, 0, 4000)):
        if i % 4:
            try:
                changed = mended(changed)
            except (sstable.Damaged, IndexError, ValueError):
                pass
        (folder / INDEX).write_bytes(changed)
        try:
            model = load(folder) if i % 8 == 0 else tensorflow.read(folder) and None
        except GptfastError as error:
            assert "\n" not in str(error)
            outcomes["error"] += 1
            continue
        if model is not None:
            assert all(torch.equal(want[name], value) for name, value in model.state_dict().items())
        outcomes["same"] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcomes["error"] > 1000
    assert peak < 64 << 20


def load(folder: Path) -> GPT:
    return load_weights(folder)


def test_damaged_data_is_found_by_its_crc(folder):
    data = (folder / DATA).read_bytes()
    tensors = tensorflow.read(folder)
    for changed in mutations(data, 1, 300):
        if changed == data:
            continue
        (folder / DATA).write_bytes(changed)
        with pytest.raises(GptfastError):
            for stored in (tensors if len(changed) == len(data) else tensorflow.read(folder)).values():
                stored.read()


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def block(entries: list[tuple[bytes, bytes]], kind: int = 0, shared: int = 0) -> bytes:
    body = b"".join(varint(shared) + varint(len(k)) + varint(len(v)) + k + v for k, v in entries)
    body += (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes([kind])
    return body + masked(crc32c(np.frombuffer(body, np.uint8))).to_bytes(4, "little")


def table(entries: list[tuple[bytes, bytes]], kind: int = 0, repeat: int = 1, shared: int = 0) -> bytes:
    data = block(entries, kind, shared)
    handle = varint(0) + varint(len(data) - 5)
    index = block([(bytes([i]), handle) for i in range(repeat)])
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    return data + index + footer.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


HEADER = (b"", b"\x08\x01")  # one data file


def entry(shape: list[int], size: int, offset: int = 0, dtype: int = 1, extra: bytes = b"") -> bytes:
    dims = b"".join(b"\x12" + varint(len(d)) + d for d in (b"\x08" + varint(n) for n in shape))
    head = b"\x08" + varint(dtype) + b"\x12" + varint(len(dims)) + dims
    return head + b"\x20" + varint(offset) + b"\x28" + varint(size) + b"\x35\0\0\0\0" + extra


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (table([HEADER], kind=1), "it is compressed"),
        (table([HEADER], repeat=3), "keys are not in order"),
        (table([(b"model/wte", b"")]), "it has no header"),
        (table([(b"", b"\x08\x01\x10\x01")]), "big-endian"),
        (table([(b"", b"\x08\xff\xff\xff\x7f")]), "data files"),
        (table([HEADER, (b"a" * 300, b"")]), "outside its block"),
        (table([HEADER], shared=5), "outside its block"),
        (table([HEADER, (b"\xff", b"")]), "not UTF-8"),
        (table([HEADER, (b"model/x", entry([1 << 40, 1 << 40], 8))]), "its shape needs"),
        (table([HEADER, (b"model/x", entry([1 << 50], 4 << 50))]), "is cut short"),
        (table([HEADER, (b"model/x", entry([2], 8, offset=1 << 62))]), "is cut short"),
        (table([HEADER, (b"model/x", entry([1] * 100_000, 4))]), "more than 8 dimensions"),
        (table([HEADER, (b"model/x", entry([2], 8, dtype=7))]), "TensorFlow's type 7"),
        (table([HEADER, (b"model/x", entry([2], 8, extra=b"\x3a\x00"))]), "kept in slices"),
        (table([HEADER, (b"model/x", entry([2], 8, extra=b"\x18\x05"))]), "data-00005-of-00001, which is not"),
        (table([HEADER, (b"model/x", b"\x0a\xff\xff\x7f")]), "cut short"),
        (b"x" * (sstable.MAX_BYTES + 1), "has more than"),
        (b"", "does not end"),
    ],
)
def test_hostile_indexes(folder, data, said):
    (folder / INDEX).write_bytes(data)
    with pytest.raises(GptfastError, match=said):
        load_weights(folder)


def test_tensors_that_overlap_cannot_ask_for_more_memory_than_the_file_has(folder):
    entries = [HEADER]
    entries += sorted(
        (name.encode(), entry(list(value.shape), value.nbytes))
        for name, value in load_file(GOLDEN / "values.safetensors").items()
    )
    (folder / INDEX).write_bytes(table(entries))
    (folder / DATA).write_bytes(bytes(1024))
    with pytest.raises(GptfastError, match="more than the file has"):
        load_weights(folder)

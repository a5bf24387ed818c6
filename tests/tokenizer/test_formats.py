"""Vocabulary files: read and written so that tiktoken and tokenizers give the same ids, and what damaged ones say."""

from __future__ import annotations

import base64
import json
import lzma
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from gptfast.errors import GptfastError
from gptfast.tokenizer import END_OF_TEXT, TIKTOKEN_NAMES, Encoding, get_encoding, load_tiktoken
from gptfast.tokenizer.byte_level import ALPHABET, BYTES, spell, unspell
from gptfast.tokenizer.published import MERGES, PAT_STR, R50K, Source

ENCODER = Source("gpt-2/encodings/main/encoder.json", "")
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA.replace("{1,3}", "")
WORDS = [
    "the ",
    "The",
    " a",
    "n't",
    "'LL ",
    "123",
    "4567 ",
    "naïve ",
    "東京",
    "。",
    "\n",
    "\r\n ",
    "  ",
    "\t",
    "🙂",
    "e\u0301",
    "!!",
    "==",
]
TEXT = "".join(random.Random(0).choices(WORDS, k=3_000))

pytestmark = pytest.mark.usefixtures("gpt2_vocabulary")


def cached(source: Source) -> Path:
    path = Path(os.environ["TIKTOKEN_CACHE_DIR"], source.cache_name)
    if not path.is_file():
        pytest.skip(f"{source.url} is not in tiktoken's cache")
    return path


def trained(split: Any, **model: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level]) if split else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    special = {"special_tokens": ["<pad>", END_OF_TEXT], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=400, show_progress=False, **special))
    return tokenizer


def damaged(tokenizer: Tokenizer, path: Path, **changes: Any) -> Path:
    value = json.loads(tokenizer.to_str())
    for key, change in changes.items():
        value[key] = change(value[key]) if callable(change) else change
    path.write_text(json.dumps(value))
    return path


def test_bytes_are_spelt_as_tokenizers_spells_them() -> None:
    assert sorted(ALPHABET) == sorted(pre_tokenizers.ByteLevel.alphabet()) and sorted(BYTES) == list(range(256))
    assert spell(" né\n".encode()) == "ĠnÃ©Ċ"
    assert all(unspell(spell(bytes([value, 65]))) == bytes([value, 65]) for value in range(256))
    assert unspell("a b") is None


@pytest.mark.parametrize("name", [*TIKTOKEN_NAMES, "bytes"])
def test_tokenizers_loads_what_is_saved(tmp_path: Path, name: str) -> None:
    encoding = get_encoding(name)
    encoding.save(tmp_path / "tokenizer.json")
    text = TEXT + END_OF_TEXT + " <|fim_prefix|><|start|>" + END_OF_TEXT * 2
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = encoding.encode(text, allowed_special="all")
    assert theirs.encode(text).ids == expected
    assert theirs.decode(expected, skip_special_tokens=False) == text
    again = get_encoding(tmp_path)
    assert again.encode(text, allowed_special="all") == expected
    assert (again.n_vocab, again.eot_token, again._special_tokens) == (
        encoding.n_vocab, encoding.eot_token, encoding._special_tokens
    )  # fmt: skip
    assert again.hash == encoding.hash or name == "bytes"


def test_real_text_in_a_saved_tokenizer_json(tmp_path: Path, shared_data) -> None:
    for name in ("gpt2", "cl100k_base", "o200k_base"):
        get_encoding(name).save(tmp_path / f"{name}.json")
        theirs = Tokenizer.from_file(str(tmp_path / f"{name}.json"))
        for file in ("code", "multilingual", "html"):
            text = lzma.open(shared_data / f"text/{file}.txt.xz", "rt", encoding="utf-8", newline="").read()[:400_000]
            assert theirs.encode(text).ids == get_encoding(name).encode(text, allowed_special="all")


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("pattern", [None, LLAMA, QWEN, PAT_STR["o200k"], r"[\p{L}\p{M}]+"])
def test_what_tokenizers_has_trained_is_loaded(tmp_path: Path, pattern: str | None, ignore_merges: bool) -> None:
    """GPT-2's pre-tokenizer, those of Llama 3 and Qwen 2, and one that leaves gaps between its matches."""
    split = pattern and pre_tokenizers.Split(Regex(pattern), "isolated")
    theirs = trained(split, ignore_merges=ignore_merges)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = get_encoding(str(tmp_path / "tokenizer.json"))
    text = TEXT[::-1] + END_OF_TEXT + "x<pad>" + TEXT
    expected = theirs.encode(text).ids
    assert ours.encode(text, allowed_special="all") == expected
    assert ours.decode(expected) == text
    assert ours.special_tokens_set == {"<pad>", END_OF_TEXT} and ours.eot_token == 1
    assert ours.n_vocab == theirs.get_vocab_size()
    assert list(ours.encode_iterator(iter(text), allowed_special="all")) == expected
    ours.save(tmp_path / "again.json")
    assert Tokenizer.from_file(str(tmp_path / "again.json")).encode(text).ids == expected


def test_a_token_that_no_merges_make(tmp_path: Path) -> None:
    """As in tiktoken, it stands for a whole pre-token that equals it, and nowhere else."""
    ranks = {bytes([i]): i for i in range(256)} | {b"abc": 256, b"cd": 257}
    own = Encoding("own", pat_str=PAT_STR["gpt2"], mergeable_ranks=ranks, special_tokens={})
    own.save(tmp_path / "tokenizer.json")
    theirs, again = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), get_encoding(tmp_path / "tokenizer.json")
    for text, ids in (("abc", [256]), ("abc1", [256, 49]), ("abcd", [97, 98, 257])):
        assert own.encode(text) == again.encode(text) == theirs.encode(text).ids == ids
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    file["model"]["ignore_merges"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(GptfastError, match="has the token 'abc', which no merge makes"):
        get_encoding(tmp_path / "tokenizer.json")


def test_a_split_on_a_plain_string_and_one_that_drops_the_rest(tmp_path: Path) -> None:
    for split in (pre_tokenizers.Split("==", "isolated"), pre_tokenizers.Split(Regex(LLAMA), "removed", invert=True)):
        theirs = trained(split)
        theirs.save(str(tmp_path / "tokenizer.json"))
        assert get_encoding(tmp_path / "tokenizer.json").encode(TEXT) == theirs.encode(TEXT).ids


def test_tokenizer_json_that_is_no_byte_level_bpe_is_refused(tmp_path: Path) -> None:
    tokenizer, path = trained(None), tmp_path / "tokenizer.json"
    split = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}

    def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
        return {"type": "Sequence", "pretokenizers": list(steps)}

    for changes, message in [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "no byte-level BPE: its model is 'WordPiece'"),
        ({"model": {"type": "Unigram", "vocab": []}}, "'Unigram'"),
        ({"model": "BPE"}, "its model is None"),
        ({"model": lambda m: m | {"byte_fallback": True}}, "byte_fallback = True"),
        ({"model": lambda m: m | {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix = '</w>'"),
        ({"normalizer": {"type": "NFC"}}, "normalizer NFC.*set it to null"),
        ({"pre_tokenizer": None}, "its pre-tokenizer is None"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "its pre-tokenizer is Metaspace"),
        ({"pre_tokenizer": sequence(split, split, byte_level)}, "Split \\+ Split \\+ ByteLevel"),
        ({"pre_tokenizer": sequence(split, byte_level)}, r"\\w means another thing here"),
        ({"pre_tokenizer": sequence(split | {"behavior": "MergedWithNext"}, byte_level)}, "Split MergedWithNext"),
        ({"pre_tokenizer": sequence(split, byte_level | {"use_regex": True})}, "splits text twice"),
        ({"pre_tokenizer": byte_level | {"add_prefix_space": True}}, "add_prefix_space.*set it to false"),
        ({"added_tokens": lambda a: [a[0] | {"lstrip": True}]}, "sets lstrip for '<pad>'"),
        ({"model": lambda m: m | {"vocab": {"a": 0}}}, "no id for the token '!'"),
        ({"model": lambda m: m | {"vocab": m["vocab"] | {"Ġ": "one"}}}, "gives the token 'Ġ' the id \"one\""),
        ({"model": lambda m: m | {"vocab": m["vocab"] | {"Ġ": 40}}}, "no usable vocabulary: the id 40 stands twice"),
        ({"model": lambda m: m | {"merges": m["merges"][:-1]}}, "which no merge makes; it is damaged"),
        ({"model": lambda m: m | {"merges": [["a", "b", "c"]]}}, r'merge 1 is \["a", "b", "c"\], not two tokens'),
        ({"model": lambda m: m | {"merges": m["merges"] + [["Ġ", "日"]]}}, "no id for the token 'Ġ日'"),
        ({"model": lambda m: m | {"merges": m["merges"][::-1]}}, "from other parts than its own bytes merge to"),
    ]:  # fmt: skip
        with pytest.raises(GptfastError, match=message) as raised:
            get_encoding(damaged(tokenizer, path, **changes))
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    for content, message in (("{", "is not valid JSON"), ("[]", "is damaged"), ("{}", "it has no 'model'")):
        path.write_text(content)
        with pytest.raises(GptfastError, match=message):
            get_encoding(path)
    ranks = {bytes([i]): i for i in range(256)}
    with pytest.raises(GptfastError, match=r"cannot save .*: \$ of the pattern"):
        Encoding("own", pat_str=r"a+$|.", mergeable_ranks=ranks, special_tokens={}).save(path)


# .tiktoken


@pytest.mark.parametrize("name", ["gpt2", "p50k_edit", "cl100k_base"])
def test_tiktoken_loads_what_is_saved(tmp_path: Path, name: str) -> None:
    encoding, path = get_encoding(name), tmp_path / "own.tiktoken"
    encoding.save(path)
    ranks = load_tiktoken_bpe(str(path))
    assert ranks == tiktoken.get_encoding(name)._mergeable_ranks
    again = get_encoding(path)
    assert again.hash == encoding.hash and again.n_vocab == encoding.n_vocab
    assert again.encode(TEXT + END_OF_TEXT, allowed_special="all") == encoding.encode(
        TEXT + END_OF_TEXT, allowed_special="all"
    )
    assert (
        load_tiktoken(path, name.split("_")[0].replace("p50k", "gpt2"), encoding._special_tokens).hash == encoding.hash
    )


def test_openais_files_are_known_by_their_content(tmp_path: Path) -> None:
    shutil.copy(cached(R50K), tmp_path / "vocabulary.tiktoken")
    for path in (tmp_path / "vocabulary.tiktoken", tmp_path, cached(R50K)):
        encoding = get_encoding(path)
        file = tmp_path / "vocabulary.tiktoken" if path == tmp_path else path
        assert encoding.hash == get_encoding("r50k_base").hash and encoding.name == str(file.resolve())
    assert get_encoding(tmp_path) is get_encoding(str(tmp_path))  # loaded once


def test_tiktoken_files_that_are_damaged(tmp_path: Path) -> None:
    lines = [base64.b64encode(bytes([i])) + b" %d" % i for i in range(256)] + [b"YWI= 256", b"YWJj 257"]
    path = tmp_path / "x.tiktoken"

    def load(change: list[bytes], **settings: Any) -> Encoding:
        path.write_bytes(b"\n".join(change) + b"\n")
        return load_tiktoken(path, **({"pat_str": "gpt2"} | settings))

    assert load([*lines, b""]).encode("abc ab") == [257, 32, 256]
    for change, message in [
        ([], "holds no token"),
        (lines[:7] + [b"!! 7"] + lines[8:], "line 8"),
        (lines[:7] + [b"Bw== seven"] + lines[8:], "line 8"),
        (lines[:7] + [b"Bw=="] + lines[8:], "line 8"),
        (lines[:7] + [b"Bw== 7 7"] + lines[8:], "line 8"),
        (lines[:7] + lines[8:], r"single byte b'\\x07'"),
        ([*lines, b"YWI= 258"], "b'ab' stands twice"),
        ([*lines, b"YWJk 257"], "id 257 stands twice"),
        (lines[:-2] + [b"YWJj 257"], "has gaps: no token has the rank 256"),
    ]:
        with pytest.raises(GptfastError, match=message) as raised:
            load(change)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    assert load(lines[:-2] + [b"YWJj 257"], special_tokens={"<s>": 256}).n_vocab == 258  # a special token fills the gap
    with pytest.raises(
        GptfastError, match=r"holds tokens, but not how text is split: keep x\.tiktoken\.json beside it"
    ):
        get_encoding(path)
    with pytest.raises(GptfastError, match="must end in .tiktoken or .json"):
        get_encoding("gpt2").save(tmp_path / "x.bin")


# encoder.json and vocab.bpe


def test_gpt2s_two_files(tmp_path: Path) -> None:
    theirs = data_gym_to_mergeable_bpe_ranks(str(cached(MERGES)), str(cached(ENCODER)))
    for encoder, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        folder = tmp_path / encoder
        folder.mkdir()
        shutil.copy(cached(ENCODER), folder / encoder)
        shutil.copy(cached(MERGES), folder / merges)
        for path in (folder, folder / encoder, folder / merges):
            encoding = get_encoding(path)
            assert encoding._mergeable_ranks == theirs and encoding._special_tokens == {END_OF_TEXT: 50256}
            assert encoding.hash == get_encoding("gpt2").hash


def test_what_tokenizers_saves_as_two_files(tmp_path: Path) -> None:
    theirs = trained(None)
    theirs.model.save(str(tmp_path))
    ours = get_encoding(tmp_path)  # special tokens have the first ids here
    assert ours.encode(TEXT) == theirs.encode(TEXT).ids and ours._special_tokens == {"<pad>": 0, END_OF_TEXT: 1}
    ours.save(tmp_path / "own.tiktoken")  # the order of the single bytes is of no account
    assert get_encoding(tmp_path / "own.tiktoken").encode(TEXT) == ours.encode(TEXT)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    last, before = sorted(vocab, key=vocab.__getitem__)[-1:-3:-1]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {last: vocab[before], before: vocab[last]}))
    swapped = get_encoding(tmp_path / "vocab.json")
    assert swapped.decode(swapped.encode(TEXT)) == TEXT and swapped.encode(TEXT) != ours.encode(TEXT)
    with pytest.raises(GptfastError, match=r"in another order than it merges them; save it as a \.json"):
        swapped.save(tmp_path / "own.tiktoken")


def test_two_files_that_are_damaged(tmp_path: Path) -> None:
    vocab = {c: i for i, c in enumerate(ALPHABET)} | {"ab": 256, "abc": 257, END_OF_TEXT: 258}
    encoder, merges = tmp_path / "encoder.json", tmp_path / "vocab.bpe"

    def load(vocab: Any, lines: list[str]) -> Encoding:
        encoder.write_text(json.dumps(vocab))
        merges.write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
        return get_encoding(tmp_path)

    good = ["a b", "ab c"]
    assert load(vocab, good).encode(f"abc{END_OF_TEXT}", allowed_special="all") == [257, 258]
    for value, lines, message in [
        (vocab, ["a b", "ab"], r"vocab\.bpe is damaged in line 3: not two tokens"),
        (vocab, ["a b c", "ab c"], r"vocab\.bpe is damaged in line 2: not two tokens"),
        (vocab, ["ab c", "a b"], r"in line 2: 'ab' is no token at that place"),
        (vocab, ["a b", "a b", "ab c"], "'ab'.*stands twice|b'ab' stands twice|has no id for the token 'ab'"),
        (vocab, ["a b"], r"the token 'abc', which .*vocab\.bpe does not make"),
        ({k: v for k, v in vocab.items() if k != "ab"}, good, r"encoder\.json has no id for the token 'ab'"),
        (vocab | {"ab": 255}, good, "the id 255 stands twice"),
        (vocab | {"ab": -1}, good, "gives the token 'ab' the id -1"),
        ([1], good, "is damaged"),
    ]:
        with pytest.raises(GptfastError, match=message) as raised:
            load(value, lines)
        assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
    merges.write_bytes(b"\xff")
    with pytest.raises(GptfastError, match=r"cannot read .*vocab\.bpe"):
        get_encoding(tmp_path)
    merges.unlink()
    with pytest.raises(GptfastError, match=r"vocab\.bpe is missing: encoder\.json and vocab\.bpe belong together"):
        get_encoding(encoder)
    with pytest.raises(GptfastError, match="holds no vocabulary: it needs a tokenizer.json"):
        get_encoding(tmp_path)
    with pytest.raises(GptfastError, match="no vocabulary at .*absent.json"):
        get_encoding(tmp_path / "absent.json")


def test_a_token_has_the_rank_of_the_merge_that_is_listed_first(tmp_path: Path) -> None:
    vocab = {c: i for i, c in enumerate(ALPHABET)} | {"bc": 256, "ab": 257, "abc": 258, "xy": 259}
    file = {
        "model": {"type": "BPE", "vocab": vocab},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    }
    path = tmp_path / "tokenizer.json"

    def write(*merges: str) -> Path:
        file["model"]["merges"] = merges
        path.write_text(json.dumps(file))
        return path

    text = "abc xyabc abxc"
    write("b c", "a b", "a bc", "x y", "ab c")  # the last one never comes about
    assert get_encoding(path).encode(text) == Tokenizer.from_file(str(path)).encode(text).ids
    for merges, message in (
        (("b c", "a b", "ab c", "x y", "a bc"), "merges 'abc' from other parts"),
        (("b c", "a b", "a bc", "x y", "b c"), "lists the merge 'b c' twice"),
    ):
        with pytest.raises(GptfastError, match=message):
            get_encoding(write(*merges))


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        (r"^a|[\s\S]", r"\^"), (r"a\Z|.", r"\\Z"), (r"a\Kb|.", r"\\K"), (r"(?m).", r"\(\?m"),
        (r"(?i-m:a)|.", r"\(\?i-m"),
        (r"(?s:.)", r"\(\?s"),
        (r"a(?i)b|c", r"\(\?i\)"),
        (r"[[:alpha:]]+|.", r"\[\[:"), (r"[^[:alpha:]]+|.", r"\[:alpha:\]"), (r"a{,2}b|.", r"\{,2\}"),
        (r"a*", "may match nothing"), (r"(?=B)|.", "may match nothing"), (r"(", "cannot be used"),
    ],
)  # fmt: skip
def test_patterns_that_oniguruma_reads_otherwise_are_refused(tmp_path: Path, pattern: str, part: str) -> None:
    path = tmp_path / "tokenizer.json"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    with pytest.raises(GptfastError, match=part) as raised:
        get_encoding(damaged(trained(None), path, pre_tokenizer=steps))
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_patterns_that_only_look_like_those_are_not_refused(tmp_path: Path) -> None:
    for pattern in (r"\^|\$|[^a-z\^]|[a-z]+", r"\\Z|[^\\]+|\\"):
        theirs = trained(pre_tokenizers.Split(Regex(pattern), "isolated"))
        theirs.save(str(tmp_path / "tokenizer.json"))
        text = r"ab^c$d\Z e\\" + TEXT
        assert get_encoding(tmp_path / "tokenizer.json").encode(text) == theirs.encode(text).ids


def test_added_tokens_that_contradict_others_are_refused(tmp_path: Path) -> None:
    tokenizer, path = trained(None), tmp_path / "tokenizer.json"

    def added(*texts: str, normalized: str = "", **changes: Any) -> Any:
        return lambda a: [
            *a, *(a[0] | {"id": 400 + i, "content": text, "normalized": text == normalized} | changes
                  for i, text in enumerate(texts))
        ]  # fmt: skip

    for texts in (
        ("<x", "<x>"),
        ("<x>", "<x"),
        ("x>", "<x>"),
        ("<x", "x>"),
        ("x>", "<x"),
        ("xy", "<xy>"),
        ("<xy>", "xy"),
    ):
        with pytest.raises(GptfastError, match="overlaps that of another which is normalized otherwise"):
            get_encoding(damaged(tokenizer, path, added_tokens=added(*texts, normalized=texts[1])))
        get_encoding(damaged(tokenizer, path, added_tokens=added(*texts)))  # the longest comes first
    damaged(tokenizer, path, added_tokens=added("<x>", "<y>", normalized="<y>"))
    text = "a<x><y>b"
    ours = get_encoding(path)
    assert ours.encode(text, allowed_special="all") == Tokenizer.from_file(str(path)).encode(text).ids
    with pytest.raises(GptfastError, match="the added token '<pad>' has the id 7, but 0 in model.vocab"):
        get_encoding(damaged(tokenizer, path, added_tokens=lambda a: [a[0] | {"id": 7}, a[1]]))


def test_json_of_other_types_is_one_error(tmp_path: Path) -> None:
    tokenizer, path = trained(None), tmp_path / "tokenizer.json"
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    changes: list[dict[str, Any]] = [
        *({"model": lambda m, v=v: m | {"vocab": v}} for v in ([], None, "a", 1)),
        *({"model": lambda m, v=v: m | {"merges": v}} for v in ({}, {"a b": 1}, None, [1], [None], [["a", 1]], [{}])),
        *({"model": lambda m, v=v: m | {"vocab": m["vocab"] | {"zz": v}}} for v in ("5", -5, 1 << 40, 1.5, None, True)),
        {"model": lambda m: m | {"ignore_merges": True, "vocab": m["vocab"] | {"zz": "5", "yy": 1}}},
        *({"normalizer": v} for v in ("NFC", [], 1)),
        *({"added_tokens": v} for v in (["x"], "x", {"a": 1}, [{"content": "x"}], [{"id": 1}])),
        *({"added_tokens": [{"content": v, "id": 1}]} for v in (1, None, ["x"])),
        *({"added_tokens": [{"content": "x", "id": v}]} for v in ("5", -5, 1 << 40, None, 1.0)),
        *({"pre_tokenizer": v} for v in ("x", [], {"pretokenizers": 1}, {"pretokenizers": ["x"]})),
        *(
            {"pre_tokenizer": {"pretokenizers": [{"type": "Split", "behavior": "Isolated", "pattern": v}, byte_level]}}
            for v in (None, "x", {}, {"Regex": 1}, {"String": 1})
        ),
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(GptfastError) as raised:
            get_encoding(damaged(tokenizer, path, **change))
        assert str(path) in str(raised.value) and "\n" not in str(raised.value), change
    vocabulary = tmp_path / "x.tiktoken"
    vocabulary.write_bytes(b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256)))
    settings = tmp_path / "x.tiktoken.json"
    for content in (
        "[" * 100_000, '{"pat_str": 1, "special_tokens": {}}', '{"pat_str": ".", "special_tokens": ["x"]}',
        '{"pat_str": ".", "special_tokens": {"x": "5"}}', '{"pat_str": ".", "special_tokens": {"x": -5}}',
        '{"pat_str": ".", "special_tokens": {"x": 1099511627776}}', '{"pat_str": ".", "special_tokens": null}',
    ):  # fmt: skip
        settings.write_text(content)
        with pytest.raises(GptfastError) as raised:
            get_encoding(vocabulary)
        assert str(settings) in str(raised.value) and "\n" not in str(raised.value)
    path.write_text("[" * 100_000)
    with pytest.raises(GptfastError, match="is not valid JSON"):
        get_encoding(path)

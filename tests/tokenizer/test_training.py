"""Training against the definition in plain Python and against Hugging Face's trainer; files, memory, errors."""

from __future__ import annotations

import gzip
import itertools
import json
import lzma
import os
import random
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import regex
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptfast import _core
from gptfast.errors import GptfastError
from gptfast.tokenizer import Encoding
from gptfast.tokenizer.published import END_OF_TEXT, PAT_STR
from gptfast.tokenizer.train import train

Merges = list[tuple[bytes, bytes]]

# GPT-2's order: what stands for itself in Latin-1, then the rest.
BYTES = sorted(range(256), key=lambda byte: (not (33 <= byte <= 126 or 161 <= byte <= 255 and byte != 173), byte))


def naive_merges(documents: Sequence[str], n_merges: int, pat_str: str) -> Merges:
    """The definition: count all pairs of neighbours, join the first of the most frequent ones, start again."""
    tokens = [bytes([byte]) for byte in BYTES]
    id_of = {byte: i for i, byte in enumerate(BYTES)}
    words = Counter(piece for document in documents for piece in regex.findall(pat_str, document))
    sequences = {word: [id_of[byte] for byte in word.encode()] for word in words}
    merges: Merges = []
    while len(merges) < n_merges:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, ids in sequences.items():
            for pair in itertools.pairwise(ids):
                pairs[pair] += words[word]
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        for word, ids in sequences.items():
            joined: list[int] = []
            for i in ids:
                if joined and (joined[-1], i) == (left, right):
                    joined[-1] = len(tokens)
                else:
                    joined.append(i)
            sequences[word] = joined
        merges.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return merges


def hugging_face_merges(documents: Sequence[str], n_merges: int, pattern: str = "gpt2") -> Merges:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == "gpt2")
    # Oniguruma's $ matches at the end of every line, and its {1,3}+ repeats.
    split = pre_tokenizers.Split(Regex(PAT_STR[pattern].replace("$", r"\z").replace("}+", "}")), "isolated")
    tokenizer.pre_tokenizer = (
        byte_level if pattern == "gpt2" else pre_tokenizers.Sequence([split, byte_level])  # type: ignore[assignment]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=256 + n_merges, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    spelled = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_of = dict(zip(spelled, BYTES, strict=True))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(bytes(byte_of[c] for c in part) for part in pair) for pair in merges]  # type: ignore[misc]


def quietly(*arguments: object, **settings: object) -> Encoding:
    """`train`, also where the text is too short for all the merges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train(*arguments, **settings)  # type: ignore[arg-type]


def merges_of(encoding: Encoding) -> Merges:
    pairs: Merges = encoding._bpe.merge_pairs()
    return pairs


# Few letters make ties and pairs that overlap (aaa, abab); the rest is there for the splitting.
alphabet = st.sampled_from(["a", "b", "a", "b", " ", "ab", "\n", "é", "'s", "1", "中", "\U0001f600", "\u00a0"])
documents_of_few_letters = st.lists(st.lists(alphabet, max_size=40).map("".join), min_size=1, max_size=6)


@settings(deadline=None, max_examples=300)
@given(documents=documents_of_few_letters, pattern=st.sampled_from([*PAT_STR, r"\S+|\s+"]))
@example(documents=["aaaa aaa aa abababab baba"], pattern="gpt2")
def test_merges_are_those_of_the_definition(documents: list[str], pattern: str) -> None:
    if not any(documents):
        return
    expected = naive_merges(documents, 60, PAT_STR.get(pattern, pattern))
    encoding = quietly(documents, 256 + 60, special_tokens=[], pattern=pattern)
    assert merges_of(encoding) == expected
    assert encoding.n_vocab == 256 + len(expected)
    assert [encoding.decode_single_token_bytes(i) for i in range(256)] == [bytes([byte]) for byte in BYTES]
    for document in documents:
        assert encoding.decode(encoding.encode(document)) == document


@pytest.mark.parametrize("pattern", PAT_STR)
@pytest.mark.parametrize("name", ["shakespeare/tinyshakespeare.txt", "text/multilingual.txt.xz", "text/code.txt.xz"])
def test_merges_equal_hugging_face(shared_data: Path, name: str, pattern: str) -> None:
    path = shared_data / name
    data = lzma.open(path).read(1_000_000) if path.suffix == ".xz" else path.read_bytes()
    text = data.decode("utf-8", errors="ignore")
    documents = [text[: len(text) // 2], text[len(text) // 2 :]]
    # All merges there are, nearly: at the end most pairs occur once, and ties decide everything.
    expected = hugging_face_merges(documents, 20_000, pattern)
    encoding = quietly(documents, 256 + 20_000, special_tokens=[], pattern=pattern, threads=2)
    assert merges_of(encoding) == expected


def test_the_trainer_says_which_ids_it_merged() -> None:
    counter = _core.WordCounter("gpt2", 1 << 20)
    counter.add_text("aaab aaab", 1)
    tokens, merges = _core.train_bpe(counter, 10)
    assert tokens[:256] == [bytes([byte]) for byte in BYTES]
    assert [(tokens[left], tokens[right]) for left, right in merges] == naive_merges(["aaab aaab"], 10, PAT_STR["gpt2"])
    assert tokens[256:] == [tokens[left] + tokens[right] for left, right in merges]


def random_words(megabytes: float, seed: int = 1) -> str:
    source = random.Random(seed)
    words = ["".join(source.choices("abcdefghij", k=source.randint(1, 9))) for _ in range(200_000)]
    n = int(megabytes * 1e6 / 6.5)
    return " ".join(words[int(200_000 * source.random() ** 3)] for _ in range(n))


def test_threads_change_nothing() -> None:
    text = random_words(3)
    texts = [text[: len(text) // 2], text[len(text) // 2 :]]
    encodings = [train(texts, 2000, threads=threads) for threads in (1, 2, 3)]
    assert len({encoding.hash for encoding in encodings}) == 1


def test_special_tokens_separate_documents_and_come_last(tmp_path: Path) -> None:
    documents = ["the cat sat", " on the mat\n", "", "the end"]
    apart = quietly(documents, 400, special_tokens=["<|a|>", END_OF_TEXT])
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeff{}<|a|>{}{e}{e}{}{}".format(*documents[:2], *documents[2:], e=END_OF_TEXT).encode())
    for source in (file, [file], [file.read_text("utf-8-sig")]):
        assert quietly(source, 400, special_tokens=["<|a|>", END_OF_TEXT]).hash == apart.hash
    assert apart.encode("<|a|>", allowed_special="all") == [apart.n_vocab - 2]
    assert apart.eot_token == apart.max_token_value == apart.n_vocab - 1
    # Unknown patterns are split elsewhere.
    other = [
        quietly(source, 400, special_tokens=["<|a|>", END_OF_TEXT], pattern=r"\S+|\s+") for source in (documents, file)
    ]
    assert other[0].hash == other[1].hash


def test_files_of_every_format(tmp_path: Path) -> None:
    documents = ["one document with some words", "another document with other words"]
    expected = quietly(documents, 300)
    text = END_OF_TEXT.join(documents)
    jsonl = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.jsonl").write_text(jsonl)
    for file in tmp_path.iterdir():
        assert quietly([file], 300).hash == expected.hash, file
    mixed = quietly([documents[0], tmp_path / "a.jsonl", documents[1]], 300)
    assert mixed.hash == quietly(documents * 2, 300).hash


def test_a_trained_encoding_is_what_tiktoken_and_tokenizers_make_of_it(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    text = random_words(0.3)
    encoding = train([text], 1000)
    twin = tiktoken.Encoding(
        "twin",
        pat_str=encoding._pat_str,
        mergeable_ranks=encoding._mergeable_ranks,
        special_tokens={END_OF_TEXT: encoding.eot_token},
    )
    ids = encoding.encode(text)
    assert twin.encode(text) == ids
    encoding.save(tmp_path / "tokenizer.json")
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == ids


def test_lone_surrogates_are_replaced() -> None:
    assert (
        quietly(["a\ud800b a\ud800b"], 260, special_tokens=[]).hash == quietly(["a�b a�b"], 260, special_tokens=[]).hash
    )


def test_the_rarest_words_are_forgotten_when_memory_is_short() -> None:
    source = random.Random(2)
    common = ["".join(source.choices("abcdefghij", k=8)) for _ in range(100)]
    rare = ["".join(source.choices("ABCDEFGHIJ", k=8)) for _ in range(1_000_000)]
    often = source.choices(common, k=len(rare))
    text = "".join(f" {word} {other}" for word, other in zip(often, rare, strict=True))
    encodings = []
    for threads in (1, 2):
        with pytest.warns(UserWarning, match=r"rare pre-tokens did not fit into 4,000,000 bytes"):
            encodings.append(train([text], 1500, threads=threads, words_bytes=4_000_000))
    assert encodings[0].hash == encodings[1].hash
    # The common ones are all still counted: what they merge to is what they would without the others.
    merged = [pair for pair in merges_of(encodings[0]) if b"".join(pair).strip().islower()]
    assert merged == merges_of(quietly([" " + " ".join(often)], 1500))[: len(merged)]
    assert len(merged) > 300

    counter = _core.WordCounter("gpt2", 4_000_000)
    counter.add_text(text, 2)
    assert 0 < counter.unique * 64 <= 4_000_000
    assert counter.pruned > 0
    assert counter.total == 2 * len(rare)


def test_fewer_merges_than_asked_for() -> None:
    with pytest.warns(UserWarning, match=r"only 3 merges: the encoding has 260 tokens instead of 1,000"):
        encoding = train(["abcd abcd"], 1000, pattern=r"\w+")
    assert encoding.n_vocab == 260
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert train(["abcd abcd"], 257).n_vocab == 257


def test_progress_is_told(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(random_words(1))
    told: list[tuple[str, int, int | None]] = []
    train([file], 5000, progress=lambda *state: told.append(state))
    counted = [state for state in told if state[0] == "count"]
    merged = [state for state in told if state[0] == "merge"]
    assert told == counted + merged
    assert counted[-1] == ("count", file.stat().st_size, file.stat().st_size)
    assert merged[-1] == ("merge", 5000 - 257, 5000 - 257)
    assert counted == sorted(counted) and merged == sorted(merged)


@pytest.fixture(scope="module")
def long_work() -> _core.WordCounter:
    """Counts from which a second's worth of merges can be learned."""
    source = random.Random(5)
    counter = _core.WordCounter("gpt2", 1 << 30)
    counter.add_text(" ".join("".join(source.choices("abcdefghijklmnop", k=12)) for _ in range(300_000)), 1)
    return counter


def test_what_progress_raises_ends_the_training(long_work: _core.WordCounter) -> None:
    def stop(done: int) -> None:
        raise RuntimeError(f"stopped after {done > 0}")

    with pytest.raises(RuntimeError, match="stopped after True"):
        _core.train_bpe(long_work, 500_000, stop)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_a_signal_ends_the_training(long_work: _core.WordCounter) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            _core.train_bpe(long_work, 500_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 300), "there is no text to train on"),
        ((["", ""], 300), "there is no text to train on"),
        ((["text"], 256), "vocab_size is 256; it must be at least 257"),
        ((["text"], -1), "vocab_size is -1; it must be at least 257"),
        (("text", 300), r"got one str to train on; pass \[text\]"),
        (([b"text"], 300), "cannot train on bytes"),
        (([Path("no-such-file.txt")], 300), "cannot read no-such-file.txt"),
        (([Path("no-such-file.jsonl")], 300), "no such file or folder"),
    ],
)
def test_bad_arguments(arguments: tuple[object, int], message: str) -> None:
    with pytest.raises(GptfastError, match=message):
        train(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "gpt3"}, "unknown pattern 'gpt3'; known: gpt2, cl100k, o200k"),
        ({"pattern": "("}, "cannot be used"),
        ({"special_tokens": "<|a|>"}, "special_tokens is one str"),
        ({"special_tokens": [""]}, "'' cannot be a special token"),
        ({"special_tokens": ["x"]}, "single bytes are tokens already"),
        ({"special_tokens": ["<|a|>", "<|a|>"]}, "given twice"),
        ({"threads": 0}, "must be at least 1"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(GptfastError, match=message):
        train(["text"], 300, **settings)  # type: ignore[arg-type]


def test_files_that_are_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    text = random_words(1).encode()
    for at in (0, len(text) // 2, len(text) - 1):
        file.write_bytes(text[:at] + b"\xff" + text[at + 1 :])
        with pytest.raises(GptfastError, match=rf"text\.txt is not UTF-8 at byte {at:,}; convert it"):
            train([file], 300, threads=2)
    file.write_bytes(b"\xef\xbb\xbf" + b"abc\xff")
    with pytest.raises(GptfastError, match=r"text\.txt is not UTF-8 at byte 6;"):
        train([file], 300)


def test_pieces_must_lie_in_the_data() -> None:
    import numpy as np

    counter = _core.WordCounter("", 1 << 20)
    for ends in ([2, 1], [-1], [5]):
        with pytest.raises(ValueError, match="piece . ends at"):
            counter.add_pieces(b"abcd", np.array(ends))
    counter = _core.WordCounter("", 1 << 20)
    counter.add_pieces(b"abcabc", np.array([3, 3, 6]))
    assert (counter.unique, counter.total) == (1, 2)


def test_documents_can_come_from_a_generator() -> None:
    def documents() -> Iterator[str]:
        yield from ("first document", "second document")

    assert quietly(documents(), 300).hash == quietly(list(documents()), 300).hash


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_as_a_file(tmp_path: Path) -> None:
    text = random_words(0.1)
    (tmp_path / "a.txt").write_text(text)
    os.mkfifo(tmp_path / "pipe.txt")
    writer = threading.Thread(target=(tmp_path / "pipe.txt").write_text, args=(text,))
    writer.start()
    trained = train([tmp_path / "pipe.txt"], 300)
    writer.join()
    assert trained.hash == train([tmp_path / "a.txt"], 300).hash


def test_a_vocabulary_larger_than_the_core_takes() -> None:
    with pytest.raises(GptfastError, match="vocab_size is 9+; it must be at most 2097151"):
        train(["text"], 10**23 - 1)

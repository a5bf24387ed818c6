"""The tokenizer wrapper: tiktoken's ids, the "bytes" encoding, and what it says when something is missing."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from gptfast.errors import GptfastError
from gptfast.tokenizer import ENCODING_NAMES, TIKTOKEN_NAMES, get_encoding

TEXT = "Hello, world!  I'll say:\r\n\tnaïve 東京 🙂 12345 <|endoftext|> end \n\n"


@pytest.mark.parametrize("name", TIKTOKEN_NAMES)
def test_ids_are_tiktokens(name: str, gpt2_vocabulary: None) -> None:
    ours, theirs = get_encoding(name), tiktoken.get_encoding(name)
    expected = theirs.encode_ordinary(TEXT)
    assert ours.encode_ordinary(TEXT) == expected
    assert ours.encode_to_numpy(TEXT).tolist() == expected
    assert ours.encode(TEXT, allowed_special="all") == theirs.encode(TEXT, allowed_special="all")
    assert ours.count(TEXT) == len(expected)
    assert ours.decode(expected) == TEXT
    assert ours.decode_bytes(expected) == TEXT.encode()
    assert (ours.n_vocab, ours.eot_token, ours.name) == (theirs.n_vocab, theirs.eot_token, name)
    assert ours.encode_to_numpy(TEXT).dtype == (np.uint16 if theirs.n_vocab <= 65536 else np.uint32)


def test_count_of_the_verdict(shared_data, gpt2_vocabulary: None) -> None:
    text = (shared_data / "verdict/the-verdict.txt").read_text(encoding="utf-8")
    assert get_encoding("gpt2").count(text) == 5145


def test_hash_names_the_vocabulary(gpt2_vocabulary: None) -> None:
    hashes = {name: get_encoding(name).hash for name in ENCODING_NAMES}
    assert hashes["gpt2"] == hashes["r50k_base"]  # the same vocabulary under two names
    assert len(set(hashes.values())) == len(ENCODING_NAMES) - 1


@given(st.text())
def test_bytes_are_utf8(text: str) -> None:
    encoding = get_encoding("bytes")
    ids = encoding.encode_ordinary(text)
    assert ids == list(text.encode()) == encoding.encode_to_numpy(text).tolist()
    assert encoding.decode(ids) == text


def test_bytes_special_tokens_follow_tiktokens_rules(gpt2_vocabulary: None) -> None:
    ours, gpt2 = get_encoding("bytes"), get_encoding("gpt2")
    text = "a<|endoftext|>b<|endoftext|>"
    assert ours.n_vocab == 257 and ours.eot_token == 256
    assert ours.encode(text, allowed_special="all") == [97, 256, 98, 256]
    assert ours.encode(text, allowed_special={"<|endoftext|>"}) == [97, 256, 98, 256]
    assert ours.encode(text, disallowed_special=()) == list(text.encode())
    assert ours.encode_ordinary(text) == list(text.encode())
    assert ours.decode([97, 256, 98, 256]) == text
    for encoding in (ours, gpt2):
        with pytest.raises(ValueError, match="special token"):
            encoding.encode(text)
    assert ours.encode_single_token("<|endoftext|>") == 256
    assert ours.decode_tokens_bytes([256, 255]) == [b"<|endoftext|>", b"\xff"]
    assert ours.decode([0xE6, 0x9D]) == "\ufffd"  # an unfinished character
    with pytest.raises(KeyError):
        ours.decode([257])


def test_copies_and_pickles() -> None:
    encoding = get_encoding("bytes")
    assert copy.deepcopy(encoding) is encoding
    assert pickle.loads(pickle.dumps(encoding)) is encoding


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(GptfastError, match="unknown tokenizer 'gpt-2'; did you mean 'gpt2'.*cl100k_base.*bytes"):
        get_encoding("gpt-2")


def test_missing_vocabulary_names_the_remedy(tmp_path) -> None:
    """In a process of its own: an empty cache, and a network that refuses."""
    script = """
        import socket
        def refuse(*args, **kwargs): raise OSError("no network")
        socket.socket.connect = socket.getaddrinfo = refuse
        from gptfast.errors import GptfastError
        from gptfast.tokenizer import get_encoding
        try:
            get_encoding("gpt2")
        except GptfastError as error:
            print(error)
    """
    env = {**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=env, capture_output=True, text=True)
    assert "TIKTOKEN_CACHE_DIR" in out.stdout and "'bytes'" in out.stdout, out.stderr
    assert len(out.stdout.splitlines()) == 1

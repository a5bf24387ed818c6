"""The cache of parts: it saves time, and whatever is in it the ids are the same."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
import tiktoken

from gptfast.tokenizer import Encoding, cache, core, published, vocabularies

pytestmark = pytest.mark.usefixtures("gpt2_vocabulary")

NAME = "r50k_base"
TEXT = "The cache's words — naïve 東京 🙂 1234567, hello\n\n   hellohellohello " * 3
NONE = b"\xff" * 8  # of a single byte


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(name: str = NAME) -> Encoding:
    return vocabularies._published(name, published.PUBLISHED[name])


def check(name: str = NAME) -> None:
    theirs = tiktoken.get_encoding(name)
    tokens = [token.decode(errors="replace") for token in theirs.token_byte_values()[::50]]
    assert load(name).encode_ordinary_batch([TEXT, *tokens]) == theirs.encode_ordinary_batch([TEXT, *tokens])


def given(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The parts with which the core is asked to load, from now on."""
    seen: list[bytes] = []
    original = core.from_tiktoken

    def spy(*args: object) -> object:
        seen.append(args[-1])  # type: ignore[arg-type]
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(core, "from_tiktoken", spy)
    return seen


@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"])
def test_the_ids_are_tiktokens_with_and_without_it(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = given(monkeypatch)
    check(name)
    (file,) = folder.iterdir()
    check(name)
    assert seen == [b"", file.read_bytes()[32:]]
    assert file.stem == published.PUBLISHED[name].sources[0].sha256
    assert len(seen[1]) == 8 * len(tiktoken.get_encoding(name)._mergeable_ranks)


def damaged(content: bytes) -> list[bytes]:
    flipped = bytearray(content)
    flipped[5000] ^= 1
    return [b"", content[:20], content[:-8], content + b"\0", bytes(flipped), b"x" * 100_000]


def wrong(content: bytes) -> list[bytes]:
    """Right checksums, and wrong pairs."""
    pairs = [content[at : at + 8] for at in range(32, len(content), 8)]
    ranks = tiktoken.get_encoding(NAME)._mergeable_ranks
    splits = (
        (rank, ranks.get(token[:i], rank), ranks.get(token[i:], rank)) for token, rank in ranks.items() for i in (1, 2)
    )
    others = ((rank, struct.pack("=II", *parts)) for rank, *parts in splits if max(parts) < rank)
    at, other = next((rank, parts) for rank, parts in others if parts != pairs[rank])  # right bytes, not the merge
    spoiled = [
        [*pairs[:at], other, *pairs[at + 1 :]],
        [*pairs[:at], pairs[at][4:] + pairs[at][:4], *pairs[at + 1 :]],
        [*pairs[:at], NONE, *pairs[at + 1 :]],
        [*pairs[:-1], struct.pack("=II", 4_000_000_000, 0)],
        [*pairs[:-1], struct.pack("=II", len(pairs), len(pairs) - 1)],
        [b"\0" * 8, *pairs[1:]],
        pairs[:-1],
        [*pairs, NONE],
        [],
    ]
    rest = [b"".join(each) for each in spoiled] + [content[32:-3]]
    return [hashlib.sha256(each).digest() + each for each in rest]


@pytest.mark.parametrize("spoil", [damaged, wrong])
def test_a_bad_file_is_ignored_and_rewritten(spoil, folder: Path) -> None:  # type: ignore[no-untyped-def]
    load()
    (file,) = folder.iterdir()
    content = file.read_bytes()
    for bad in spoil(content):
        file.write_bytes(bad)
        check()
        assert file.read_bytes() == content
    assert list(folder.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_does_not_matter(folder: Path) -> None:
    folder.write_text("no folder")
    check()
    assert folder.read_text() == "no folder"
    folder.unlink()
    (folder / f"{published.PUBLISHED[NAME].sources[0].sha256}.parts").mkdir(parents=True)
    check()
    assert [path.is_dir() for path in folder.iterdir()] == [True]  # nothing temporary is left


def test_it_is_switched_off_by_an_empty_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(cache.VARIABLE, "")
    check()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif("sys.platform != 'linux'")
def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (cache.VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.folder() == "/home/somebody/.cache/gptfast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert cache.folder() == "/var/cache/gptfast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert cache.folder() == ""

"""Where vocabularies come from: names, tiktoken's cache, its download; what is said when one cannot be had."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe
from tiktoken.model import MODEL_PREFIX_TO_ENCODING, MODEL_TO_ENCODING

import gptfast
from gptfast.errors import GptfastError
from gptfast.tokenizer import ENCODING_NAMES, TIKTOKEN_NAMES, models, patterns, published, vocabularies
from gptfast.tokenizer.published import MERGES, PAT_STR, PUBLISHED, R50K, Source

ENCODER = Source(
    "gpt-2/encodings/main/encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
)

pytestmark = pytest.mark.usefixtures("gpt2_vocabulary")


def run_python(script: str, **env: str) -> str:
    """What `script` prints in a process of its own, whose network refuses."""
    offline = """
        import socket
        def refuse(*args, **kwargs): raise OSError("no network")
        socket.socket.connect = socket.getaddrinfo = refuse
    """
    code = textwrap.dedent(offline) + textwrap.dedent(script)
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


LOAD = """
    import sys, gptfast
    for name in sys.argv[1:] or {names}:
        try:
            print(gptfast.get_encoding(name).encode("hello world"))
        except gptfast.GptfastError as error:
            print(error)
    print("tiktoken" in sys.modules)
"""


def test_the_tables_are_tiktokens() -> None:
    assert list(PUBLISHED) == gptfast.list_encoding_names() == list(TIKTOKEN_NAMES)
    assert ENCODING_NAMES == (*TIKTOKEN_NAMES, "bytes")
    assert set(tiktoken.list_encoding_names()) >= set(TIKTOKEN_NAMES)
    for name, entry in PUBLISHED.items():
        theirs = tiktoken.get_encoding(name)
        assert PAT_STR[entry.pattern] == theirs._pat_str and patterns.known_pattern(theirs._pat_str) == entry.pattern
        assert entry.special_tokens == theirs._special_tokens and entry.n_vocab == theirs.n_vocab
    assert dict(MODEL_TO_ENCODING) == models.MODEL_TO_ENCODING
    assert dict(MODEL_PREFIX_TO_ENCODING) == models.MODEL_PREFIX_TO_ENCODING


@pytest.mark.parametrize("name", TIKTOKEN_NAMES)
def test_the_cache_files_are_those_tiktoken_asks_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken.load
    from tiktoken_ext.openai_public import ENCODING_CONSTRUCTORS

    asked = set()

    def read_file_cached(address: str, expected_hash: str | None = None) -> bytes:
        asked.add((hashlib.sha1(address.encode()).hexdigest(), expected_hash))
        return b"{}" if address.endswith(".json") else b""

    monkeypatch.setattr(tiktoken.load, "read_file_cached", read_file_cached)
    try:
        ENCODING_CONSTRUCTORS[name]()
    except AssertionError:
        pass  # tiktoken notices that what it read is no vocabulary
    ours = {(source.cache_name, source.sha256) for source in PUBLISHED[name].sources}
    if name in ("gpt2", "r50k_base"):  # one vocabulary in two files
        assert asked <= ours | {(ENCODER.cache_name, ENCODER.sha256)} and asked & ours
    else:
        assert asked == ours


def test_gpt2_and_r50k_base_are_one_vocabulary() -> None:
    """So either file serves for both; the files are those whose sha256 is checked at each load."""
    paths = [Path(os.environ["TIKTOKEN_CACHE_DIR"], source.cache_name) for source in (R50K, MERGES, ENCODER)]
    for path, source in zip(paths, (R50K, MERGES, ENCODER), strict=True):
        if not path.is_file():
            pytest.skip(f"{source.url} is not in tiktoken's cache")
        assert hashlib.sha256(path.read_bytes()).hexdigest() == source.sha256
    assert load_tiktoken_bpe(str(paths[0])) == data_gym_to_mergeable_bpe_ranks(str(paths[1]), str(paths[2]))


@pytest.mark.parametrize("source", [R50K, MERGES])
def test_whichever_file_of_gpt2_is_there_is_loaded(tmp_path: Path, source: Source) -> None:
    shutil.copy(Path(os.environ["TIKTOKEN_CACHE_DIR"], source.cache_name), tmp_path)
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        env = {"DATA_GYM_CACHE_DIR": "/absent"} if variable == "TIKTOKEN_CACHE_DIR" else {}
        script = LOAD.format(names=["gpt2", "r50k_base"])
        if variable != "TIKTOKEN_CACHE_DIR":
            script = "\nimport os; os.environ.pop('TIKTOKEN_CACHE_DIR', None)\n" + textwrap.dedent(script)
        assert run_python(script, **env, **{variable: str(tmp_path)}).splitlines() == ["[31373, 995]"] * 2 + ["False"]
    assert [path.name for path in tmp_path.iterdir()] == [source.cache_name]


def test_a_missing_vocabulary_names_the_remedy(tmp_path: Path) -> None:
    for folder in (str(tmp_path / "absent"), ""):  # "" switches tiktoken's cache off
        said = run_python(LOAD.format(names=["cl100k_base"]), TIKTOKEN_CACHE_DIR=folder).splitlines()
        assert len(said) == 2
        assert "'cl100k_base' could not be loaded (" in said[0]
        assert "TIKTOKEN_CACHE_DIR" in said[0] and "'bytes'" in said[0]


def test_a_damaged_vocabulary_is_named_and_not_used(tmp_path: Path) -> None:
    source = PUBLISHED["cl100k_base"].sources[0]
    path = tmp_path / source.cache_name
    path.write_bytes(
        Path(os.environ["TIKTOKEN_CACHE_DIR"], source.cache_name).read_bytes().replace(b"IQ== 0", b"IQ== 1")
    )
    said = run_python(LOAD.format(names=["cl100k_base"]), TIKTOKEN_CACHE_DIR=str(tmp_path)).splitlines()
    assert len(said) == 2 and f"{path} is damaged: its sha256 is not 223921b76ee9...; " in said[0]


def test_a_download_is_tiktokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken.load

    content = Path(os.environ["TIKTOKEN_CACHE_DIR"], R50K.cache_name).read_bytes()
    asked = []
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.load, "read_file", lambda address: asked.append(address) or content)
    monkeypatch.setattr(vocabularies, "ENCODINGS", {})
    assert gptfast.get_encoding("gpt2").encode("hello world") == [31373, 995]
    assert asked == [R50K.url] and (tmp_path / R50K.cache_name).read_bytes() == content
    monkeypatch.setattr(tiktoken.load, "read_file", lambda address: b"what a hotel's network says")
    with pytest.raises(GptfastError, match="could not be loaded.*Hash mismatch"):
        gptfast.get_encoding("o200k_base")


def test_loading_needs_neither_tiktoken_nor_numpy() -> None:
    script = """
        import sys, gptfast
        gptfast.get_encoding("gpt2").encode("hello world")
        print([name for name in ("tiktoken", "numpy", "regex", "torch") if name in sys.modules])
    """
    assert run_python(script) == "[]"


def test_unknown_names_and_things_that_are_none() -> None:
    with pytest.raises(GptfastError, match="unknown tokenizer 'gpt-2'; did you mean 'gpt2'.*cl100k_base.*bytes"):
        gptfast.get_encoding("gpt-2")
    for wrong in (5, None, b"gpt2"):
        with pytest.raises(ValueError, match="must be a str or a path, not"):
            gptfast.get_encoding(wrong)  # type: ignore[arg-type]
    for path in ("./gpt-2", "absent.json", Path("gpt-3")):
        with pytest.raises(GptfastError, match="no vocabulary at"):
            gptfast.get_encoding(path)


def test_an_encoding_is_loaded_once() -> None:
    assert all(gptfast.get_encoding(name) is gptfast.get_encoding(name) for name in ENCODING_NAMES)


def test_encodings_of_models() -> None:
    for model in (
        "gpt2",
        "gpt-4",
        "gpt-4o",
        "gpt-3.5-turbo-0301",
        "gpt-oss-120b",
        "ft:gpt-4o:me",
        "ft:gpt-4:me",
        "gpt-5-mini",
    ):
        assert gptfast.encoding_name_for_model(model) == tiktoken.encoding_name_for_model(model)
    assert gptfast.encoding_for_model("gpt-4") is gptfast.get_encoding("cl100k_base")
    with pytest.raises(KeyError, match="Could not automatically map gpt-x to a tokeniser"):
        gptfast.encoding_for_model("gpt-x")


def test_no_special_token_stands_in_the_source() -> None:
    """hypothesis draws a package's constants into random text: whole tokens there would make tiktoken's tests fail."""
    special = {token for entry in PUBLISHED.values() for token in entry.special_tokens}
    root = Path(published.__file__).parents[1]
    for path in root.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not special & {node.value for node in nodes if isinstance(node, ast.Constant)}, path

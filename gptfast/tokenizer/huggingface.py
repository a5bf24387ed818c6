"""tokenizer.json, the file of Hugging Face's `tokenizers`: byte-level BPE is read and written, all else is refused.

`tokenizers` merges the pairs that are listed, in that order; the core merges any pair that is a token together, in the
order of the tokens. Both give the same ids when the merge that makes a token out of its own bytes is the listed one,
which is checked: until a token is made no merge crosses its ends, so its inside is the same wherever it stands.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import GptfastError
from ..files import atomic_write, read_json
from .byte_level import ALPHABET, spell
from .encoding import Encoding
from .formats import Vocabulary, split_ids, unspelt
from .published import PAT_STR

WHOLE = r"[\s\S]+"  # no splitting
# What Oniguruma, the engine of `tokenizers`, reads in another way than tiktoken's: `{1,3}+` repeats, `$` is the end of
# a line, and these classes have other characters in them.
_DIFFERENT = re.compile(r"\{\d+(,\d*)?\}\+|\$|\\[wWbBhH]")
# The patterns in the syntax of Oniguruma.
_ONIGURUMA = {
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": PAT_STR["o200k"],
}


def load(path: Path) -> Encoding:
    """Raises GptfastError for a damaged file, and for anything that is not byte-level BPE on text as it is."""
    file = read_json(path, "model")
    model = file["model"]
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not {"vocab", "merges"} <= model.keys():
        kind = model.get("type") if isinstance(model, dict) else None
        raise GptfastError(f"{path} is no byte-level BPE: its model is {kind!r}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise GptfastError(f"{path} is no plain byte-level BPE: its model has {key} = {model[key]!r}")
    if file.get("normalizer") is not None:
        kind = file["normalizer"].get("type")
        raise GptfastError(
            f"{path} changes text before encoding (normalizer {kind}); set it to null to leave text as it is"
        )
    pat_str = _read_pre_tokenizer(file.get("pre_tokenizer"), path)
    special = _read_added_tokens(file.get("added_tokens") or [], path)
    merges = _read_merges(model["merges"], path)

    tokens, listed = list(ALPHABET), set(merges)
    tokens += dict.fromkeys(left + right for left, right in merges)
    rest = model["vocab"].keys() - set(tokens) - special.keys()
    whole = bool(model.get("ignore_merges"))
    if rest and not whole:
        raise GptfastError(f"{path} has the token {min(rest)!r}, which no merge makes; it is damaged, copy it again")
    tokens += sorted(rest, key=model["vocab"].__getitem__)
    ids, _ = split_ids(model["vocab"], tokens, path)
    data_of = unspelt(tokens, path)
    encoding = Vocabulary(data_of, ids, special, pat_str).encoding(path)
    spelling = dict(zip(data_of, tokens, strict=True))
    made = [(spelling[left], spelling[right]) for left, right in encoding._bpe.merge_pairs()]
    odd = {"".join(pair) for pair in made if pair not in listed}
    if not whole:
        odd |= set(tokens[len(ALPHABET) :]) - {"".join(pair) for pair in made}
    if odd:
        raise GptfastError(
            f"{path} merges {min(odd)!r} from other parts than its own bytes merge to: its ids depend on more than the "
            "order of its tokens, and only `tokenizers` can use it"
        )
    return encoding


def _read_merges(merges: list[Any], path: Path) -> list[tuple[str, str]]:
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise GptfastError(f"{path} is damaged: merge {number} is {json.dumps(merges[number - 1])}, not two tokens")
    return pairs


def _read_added_tokens(added: list[dict[str, Any]], path: Path) -> dict[str, int]:
    for token in added:
        for key in ("lstrip", "rstrip", "single_word"):
            if token.get(key):
                raise GptfastError(
                    f"{path} sets {key} for {token['content']!r}, which has no counterpart here; set it false"
                )
    return {token["content"]: token["id"] for token in added}


def _read_pre_tokenizer(value: Any, path: Path) -> str:
    """The split pattern of a pre-tokenizer that ends in ByteLevel and splits at most once."""
    steps = value.get("pretokenizers", [value]) if isinstance(value, dict) else []
    kinds = [step.get("type") for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or kinds[:-1] not in ([], ["Split"]):
        found = " + ".join(map(str, kinds)) or None
        raise GptfastError(
            f"{path} is no byte-level BPE that splits text once: its pre-tokenizer is {found}, "
            "not ByteLevel or Split + ByteLevel"
        )
    if steps[-1].get("add_prefix_space"):
        raise GptfastError(
            f"{path} puts a space before every text (add_prefix_space); set it to false to leave text as it is"
        )
    splits_itself = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return PAT_STR["gpt2"] if splits_itself else WHOLE
    split = steps[0]
    way = (split.get("behavior"), bool(split.get("invert")))
    if splits_itself or way not in (("Isolated", False), ("Isolated", True), ("Removed", True)):
        raise GptfastError(
            f"{path} splits text twice, or drops some of it (Split {split.get('behavior')}); that is not supported"
        )
    pattern = split["pattern"].get("Regex") or re.escape(split["pattern"]["String"])
    return _from_oniguruma(pattern, keeps_gaps=way[0] == "Isolated", path=path)


def _from_oniguruma(pattern: str, keeps_gaps: bool, path: Path) -> str:
    from .patterns import known_pattern
    from .streaming import can_cut

    for name, spelling in _ONIGURUMA.items():
        if pattern == spelling:
            return PAT_STR[name]
    if known := known_pattern(pattern):
        return PAT_STR[known]
    if found := _DIFFERENT.search(pattern):
        raise GptfastError(f"{path} splits text by {pattern!r}, of which {found[0]} means another thing here")
    if can_cut(pattern) or not keeps_gaps:
        return pattern
    # What the pattern does not match is a piece too, up to the next match.
    return rf"(?:{pattern})|(?s:.)+?(?=(?:{pattern})|\z)"


def save(encoding: Encoding, path: Path) -> None:
    """Write a tokenizer.json with which `tokenizers` gives the same ids (as for allowed_special="all")."""
    special = encoding._special_tokens
    ids = {spell(token): i for token, i in encoding._mergeable_ranks.items()} | special
    file = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for text, i in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(encoding._pat_str, path),
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # as tiktoken: a pre-token that is a token is that token
            "vocab": dict(sorted(ids.items(), key=lambda item: item[1])),
            "merges": [f"{spell(left)} {spell(right)}" for left, right in encoding._bpe.merge_pairs()],
        },
    }  # fmt: skip
    with atomic_write(path, "w") as out:
        json.dump(file, out, ensure_ascii=False, indent=1)
        out.write("\n")


def _pre_tokenizer(pat_str: str, path: Path) -> dict[str, Any]:
    from .patterns import known_pattern

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    known = known_pattern(pat_str)
    if known == "gpt2":
        return byte_level | {"use_regex": True}
    if pat_str in (WHOLE, "bytes"):
        return byte_level
    pattern = _ONIGURUMA.get(known or "", pat_str)
    if found := _DIFFERENT.search(pattern):
        raise GptfastError(
            f"cannot save {path}: {found[0]} of the pattern {pat_str!r} means another thing to `tokenizers`"
        )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}

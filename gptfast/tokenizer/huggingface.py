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
# What Oniguruma, the engine of `tokenizers`, reads in another way than tiktoken's: `{1,3}+` repeats, `^` and `$` are at
# every line, (?m) and (?s) are other flags, a flag inside takes in the alternatives behind it, and these classes and
# escapes mean other characters and places.
_DIFFERENT = re.compile(
    r"\{\d+(,\d*)?\}\+|\{,\d*\}|\^|\$|\\[wWbBhHZKGRXNOyY]|\(\?[a-z]*-?[a-z]*[ms]|(?<=.)\(\?[a-z-]+\)|\[\[:"
    r"|\[:\^?[a-z]+:\]",
    re.DOTALL,
)
_ALIKE = re.compile(r"\\[^wWbBhHZKGRXNOyY]|\[\^(?!\[:)")  # other escapes, and the `^` that negates a class
# Texts in which a pattern that may match nothing is likely to do so.
_SAMPLES = ("", "a B1.\n", "'ll  \r\n\t東é !x")
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
    vocab = _typed(model["vocab"], dict, "model.vocab", path)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise GptfastError(f"{path} is no plain byte-level BPE: its model has {key} = {model[key]!r}")
    if file.get("normalizer") is not None:
        kind = _typed(file["normalizer"], dict, "normalizer", path).get("type")
        raise GptfastError(
            f"{path} changes text before encoding (normalizer {kind}); set it to null to leave text as it is"
        )
    pat_str = _read_pre_tokenizer(file.get("pre_tokenizer"), path)
    special = _read_added_tokens(file.get("added_tokens"), vocab, path)
    merges = _read_merges(model["merges"], path)

    first: dict[str, tuple[str, str]] = {}  # the merge that is listed first of those that make a token: it has the rank
    for pair in merges:
        if first.setdefault("".join(pair), pair) is not pair and first["".join(pair)] == pair:
            raise GptfastError(f"{path} is damaged: it lists the merge {' '.join(pair)!r} twice; copy it again")
    tokens = [*ALPHABET, *first]
    rest = vocab.keys() - set(tokens) - special.keys()
    whole = bool(model.get("ignore_merges"))
    if rest and not whole:
        raise GptfastError(f"{path} has the token {min(rest)!r}, which no merge makes; it is damaged, copy it again")
    split_ids(vocab, (), path)  # all ids are numbers, which can be sorted
    tokens += sorted(rest, key=vocab.__getitem__)
    ids, _ = split_ids(vocab, tokens, path)
    data_of = unspelt(tokens, path)
    encoding = Vocabulary(data_of, ids, special, pat_str).encoding(path)
    spelling = dict(zip(data_of, tokens, strict=True))
    made = [(spelling[left], spelling[right]) for left, right in encoding._bpe.merge_pairs()]
    odd = {"".join(pair) for pair in made if pair != first.get("".join(pair))}
    if not whole:
        odd |= set(tokens[len(ALPHABET) :]) - {"".join(pair) for pair in made}
    if odd:
        raise GptfastError(
            f"{path} merges {min(odd)!r} from other parts than its own bytes merge to: its ids depend on more than the "
            "order of its tokens, and only `tokenizers` can use it"
        )
    return encoding


def _typed(value: Any, kind: type, name: str, path: Path) -> Any:
    if not isinstance(value, kind):
        raise GptfastError(f"{path} is damaged: {name} is {type(value).__name__}, not {kind.__name__}; copy it again")
    return value


def _read_merges(merges: Any, path: Path) -> list[tuple[str, str]]:
    merges = _typed(merges, list, "model.merges", path)
    pairs: list[Any] = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) if isinstance(merge, list) else ()
        for merge in merges
    ]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise GptfastError(f"{path} is damaged: merge {number} is {json.dumps(merges[number - 1])}, not two tokens")
    return pairs


def _read_added_tokens(added: Any, vocab: dict[str, Any], path: Path) -> dict[str, int]:
    added = _typed(added or [], list, "added_tokens", path)
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or "id" not in token:
            raise GptfastError(f"{path} is damaged: the added token {json.dumps(token)[:80]} has no content or id")
        text, i = token["content"], token["id"]
        split_ids({text: i}, (), path)
        if vocab.get(text, i) != i:
            raise GptfastError(
                f"{path} is damaged: the added token {text!r} has the id {i}, but {json.dumps(vocab[text])} in "
                "model.vocab; copy it again"
            )
        for key in ("lstrip", "rstrip", "single_word"):
            if token.get(key):
                raise GptfastError(
                    f"{path} sets {key} for {token['content']!r}, which has no counterpart here; set it false"
                )
    # `tokenizers` looks for all tokens that are not normalized before the others; here the leftmost comes first.
    groups = [{token["content"] for token in added if bool(token.get("normalized")) is way} for way in (False, True)]
    odd = _runs_into(*groups) or _runs_into(*groups[::-1])
    if odd:
        raise GptfastError(
            f"{path} has the added token {odd!r}, whose text overlaps that of another which is normalized otherwise; "
            "set normalized to false for both"
        )
    return {token["content"]: token["id"] for token in added}


def _runs_into(ones: set[str], others: set[str]) -> str | None:
    """One of `others` that holds one of `ones`, or ends as one of them begins."""
    begins = {one[:end] for one in ones for end in range(1, len(one) + 1)}
    for other in others:
        for start in range(len(other)):
            end = start + 1
            while end <= len(other) and other[start:end] in begins:
                if end == len(other) or other[start:end] in ones:
                    return other
                end += 1
    return None


def _read_pre_tokenizer(value: Any, path: Path) -> str:
    """The split pattern of a pre-tokenizer that ends in ByteLevel and splits at most once."""
    steps = value.get("pretokenizers", [value]) if isinstance(value, dict) else []
    for step in _typed(steps, list, "pre_tokenizer.pretokenizers", path):
        _typed(step, dict, "a step of pre_tokenizer", path)
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
    given = _typed(split.get("pattern"), dict, "the pattern of Split", path)
    pattern = given.get("Regex") or re.escape(_typed(given.get("String"), str, "the pattern of Split", path))
    _typed(pattern, str, "the pattern of Split", path)
    return _from_oniguruma(pattern, keeps_gaps=way[0] == "Isolated", path=path)


def _from_oniguruma(pattern: str, keeps_gaps: bool, path: Path) -> str:
    from .patterns import known_pattern
    from .streaming import can_cut

    for name, spelling in _ONIGURUMA.items():
        if pattern == spelling:
            return PAT_STR[name]
    if known := known_pattern(pattern):
        return PAT_STR[known]
    if found := _different(pattern):
        raise GptfastError(f"{path} splits text by {pattern!r}, of which {found} means another thing here")
    try:
        matches_nothing = _may_match_nothing(pattern)
    except GptfastError as error:
        raise GptfastError(f"{path} is no usable vocabulary: {error}") from None
    if matches_nothing:
        raise GptfastError(f"{path} splits text by {pattern!r}, which may match nothing; that is not supported")
    if can_cut(pattern) or not keeps_gaps:
        return pattern
    # What the pattern does not match is a piece too, up to the next match.
    return rf"(?:{pattern})|[\s\S]+?(?=(?:{pattern})|\z)"


def _different(pattern: str) -> str | None:
    """The first part of `pattern` that the two engines read in different ways."""
    at = 0
    while at < len(pattern):
        if found := _DIFFERENT.match(pattern, at):
            return found[0]
        alike = _ALIKE.match(pattern, at)
        at = alike.end() if alike else at + 1
    return None


def _may_match_nothing(pattern: str) -> bool:
    from .patterns import Splitter

    compiled = Splitter(pattern).compiled
    return any(match.start() == match.end() for text in _SAMPLES for match in compiled.finditer(text))


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
        "pre_tokenizer": pre_tokenizer(encoding._pat_str, path),
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


def pre_tokenizer(pat_str: str, path: Path) -> dict[str, Any]:
    """What splits text by `pat_str` in a tokenizer.json. Raises GptfastError where `tokenizers` reads it otherwise."""
    from .patterns import known_pattern

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    known = known_pattern(pat_str)
    if known == "gpt2":
        return byte_level | {"use_regex": True}
    if pat_str in (WHOLE, "bytes"):
        return byte_level
    pattern = _ONIGURUMA.get(known or "", pat_str)
    if found := _different(pattern):
        raise GptfastError(
            f"cannot save {path}: {found} of the pattern {pat_str!r} means another thing to `tokenizers`"
        )
    if known is None and _may_match_nothing(pattern):
        raise GptfastError(f"cannot save {path}: the pattern {pat_str!r} may match nothing, which `tokenizers` counts")
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}

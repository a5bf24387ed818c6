"""Random text through gptfast and tiktoken: ids, errors and decoded text must be the same.

    python tests/tokenizer/fuzz_ids.py --strings 2000000 --seed 1 --encodings gpt2,cl100k_base,o200k_base

A seed always gives the same strings. The first difference is made as short as it gets and printed; it ends the run.
With `--texts ../shared/data` every file in that folder is read instead.
tests/tokenizer/test_ids.py runs a short one.
"""

from __future__ import annotations

import argparse
import bz2
import lzma
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 500  # strings in a batch
ASCII_LETTERS = "etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLU"
CONTRACTIONS = "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'Ve 'M 'lL 'D 'ſ 'L 'l 'r 'v '' ' ’s 'sa 'llama".split()
SPACES = "   \t\n\r\v\f\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000\u200b\ufeff"
PUNCTUATION = "...,,,!!??--__//**##==()[]{}<>|'\"`~@$%^&+;:\\«»—…、。「」！€£°©→∑"
NUMBERS = "0123456789" * 4 + "½²³٣५Ⅷ①〇፩𝟘"
# Runs of these: scripts with and without case, marks, emoji with joiners and modifiers.
SCRIPTS = [
    "éèêëàâäöüßñçøåÉÀÖÜØÅẞŒœ",
    "абвгдежзиклмнопрстуфхцчАБВГДЁ",
    "αβγδεζηθικλμνξοπρςστυφχψωΑΒΓΔΩ",
    "ǅǈǋǆǄᾈᾳIiİıſK",
    "אבגדהוזחטיכלמנסעפצקרשת",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "अआइईउकखगघचजटडतनपमयरलवशसह\u093e\u093f\u0940\u094d\u0902",
    "กขคงจฉชซญดตถทนบปผพฟภมยรลวศสหอ\u0e31\u0e34\u0e48\u0e49",
    "的一是不了人我在有他这中大来上国和也子时道说出",
    "あいうえおかきくけこさしすせそアイウエオカキクケコーっ",
    "가나다라마바사아자차카타파하한국어",
    "\u0300\u0301\u0302\u0323\u0328\u20dd\ufe0f\u0483",
    "😀😂❤️👍🏽👩\u200d👩\u200d👧🇩🇪🏳️\u200d🌈🎉",
    "ʰʲˠªºˀᵃ々〻ʕʖǀƻ",
    "𝒜𝒷𝔸𝕓𐐀𐐨𞤀𞤢𠀀𪛖\U000323af\U000323b0",
]
LINES = ["\n", "\r\n", "\n\n", " \n", "\n ", "/\n"]
END_OF_TEXT = "<|endoftext|>"
SOME = {END_OF_TEXT}


Difference = tuple[str, str, Any, Any]  # the text, what was called, our result and tiktoken's


class Generator:
    """Strings that mix everything the split patterns tell apart, and the tokens of a vocabulary."""

    def __init__(self, seed: int | str, tokens: list[bytes], specials: list[str]) -> None:
        self.random = random.Random(seed)
        self.tokens = tokens
        self.specials = specials
        self.kinds: list[Callable[[], str]] = [
            lambda: self.run(ASCII_LETTERS, 12),
            lambda: self.run(ASCII_LETTERS, 6).capitalize(),
            self.vocabulary,
            self.vocabulary,
            lambda: self.random.choice(CONTRACTIONS),
            lambda: " ",
            lambda: " " * self.random.randint(1, 9),
            lambda: self.run(SPACES, 5),
            lambda: self.random.choice(LINES),
            lambda: self.run(PUNCTUATION, 6),
            lambda: self.run(NUMBERS, 8),
            lambda: self.run(self.random.choice(SCRIPTS), 8),
            lambda: self.run(self.random.choice(SCRIPTS), 3),
            self.anything,
            self.rare,
        ]

    def text(self) -> str:
        return "".join(self.random.choice(self.kinds)() for _ in range(self.random.randint(0, 9)))

    def run(self, letters: str, longest: int) -> str:
        return "".join(self.random.choices(letters, k=self.random.randint(1, longest)))

    def vocabulary(self) -> str:
        """Tokens in a row, which need not be the tokens of what they spell; where they are no UTF-8, without that."""
        return b"".join(self.random.choices(self.tokens, k=self.random.randint(1, 4))).decode(errors="ignore")

    def anything(self) -> str:
        """Any code points, surrogates not among them."""
        limit = self.random.choice([0x80, 0x800, 0x10000, 0x110000])
        codes = [self.random.randrange(limit) for _ in range(self.random.randint(1, 4))]
        return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)

    def rare(self) -> str:
        kind = self.random.randrange(8)
        if kind < 3:  # a special token, or its beginning or end
            special = self.random.choice(self.specials)
            cut = self.random.randint(0, len(special))
            return self.random.choice([special, special, special[:cut], special[cut:], special[:cut] + special])
        if kind == 3:  # surrogates, alone or paired
            return "".join(chr(self.random.randrange(0xD800, 0xE000)) for _ in range(self.random.randint(1, 2)))
        if kind == 4:  # long enough for every limit in the code, now and then
            unit = self.run(self.random.choice([ASCII_LETTERS, SPACES, NUMBERS, PUNCTUATION, *SCRIPTS]), 2)
            return unit * self.random.choice([10, 20, 40, 70, 130, 300])
        if kind == 5:
            return self.run(ASCII_LETTERS, 300)
        return self.run(self.random.choice(SCRIPTS), 60)


def outcome(method: Callable[..., Any], text: str, kwargs: dict[str, Any]) -> Any:
    """What a call returns, or the kind of error; of a complaint about a special token also which."""
    try:
        result = method(text, **kwargs)
    except UnicodeEncodeError:
        return "UnicodeEncodeError"
    except ValueError as error:
        found = re.search(r"special token '(.*?)'", str(error))
        return "ValueError", found[1] if found else str(error)
    return result.tolist() if isinstance(result, np.ndarray) else result


def differences(ours: Any, theirs: Any, texts: list[str]) -> Iterator[Difference]:
    """Everything that is not the same."""
    ids = [theirs.encode_ordinary(text) for text in texts]
    batch = ours.encode_ordinary_batch(texts)
    batch_decoded = ours.decode_batch(batch)
    flat, bounds = ours.encode_batch_to_numpy(texts, disallowed_special=())
    flat = flat.tolist()
    for i, text in enumerate(texts):
        expected = ids[i]
        yield from check(text, "encode_ordinary", ours.encode_ordinary(text), expected)
        yield from check(text, "encode_ordinary_batch", batch[i], expected)
        yield from check(text, "encode_batch_to_numpy", flat[bounds[i] : bounds[i + 1]], expected)
        yield from check(text, "count", ours.count(text), len(expected))
        plain = not any("\ud800" <= c <= "\udfff" for c in text)
        decoded = text if plain else theirs.decode(expected)
        yield from check(text, "decode", ours.decode(batch[i]), decoded)
        yield from check(text, "decode_batch", batch_decoded[i], decoded)
        yield from check(text, "decode_bytes", ours.decode_bytes(np.array(batch[i], np.uint32)), decoded.encode())
        special = "<|" in text
        for allowed, disallowed in [(set(), ()), (set(), "all"), ("all", "all"), (SOME, ()), (SOME, "all")]:
            kwargs = {"allowed_special": allowed, "disallowed_special": disallowed}
            expect = outcome(theirs.encode, text, kwargs) if special else expected
            yield from check(text, f"encode {kwargs}", outcome(ours.encode, text, kwargs), expect)
            expect = outcome(theirs.encode_to_numpy, text, kwargs) if special or not plain else expected
            yield from check(text, f"encode_to_numpy {kwargs}", outcome(ours.encode_to_numpy, text, kwargs), expect)
    batch = ours.encode_batch(texts, allowed_special="all")
    for text, got in zip(texts, batch, strict=True):
        yield from check(text, "encode_batch", got, theirs.encode(text, allowed_special="all"))


def check(text: str, what: str, got: Any, expected: Any) -> Iterator[Difference]:
    if got != expected:
        yield text, what, got, expected


def shortest(ours: Any, theirs: Any, text: str) -> str:
    """`text` without everything that can go while there still is a difference."""
    step = len(text)
    while step:
        for start in range(0, len(text), step):
            less = text[:start] + text[start + step :]
            if next(differences(ours, theirs, [less]), None):
                text = less
                break
        else:
            step //= 2
    return text


def fuzz(ours: Any, theirs: Any, strings: int, seed: int) -> Difference | None:
    """The first difference in that many strings, at its shortest, or None."""
    specials = sorted(theirs.special_tokens_set)[:6] + [END_OF_TEXT] * 3 + ["<|unknown|>", "<|", "|>"]
    tokens = theirs.token_byte_values()
    for block in range(0, strings, BLOCK):
        generator = Generator(f"{seed}/{block}", tokens, specials)
        texts = [generator.text() for _ in range(min(BLOCK, strings - block))]
        for text, *rest in differences(ours, theirs, texts):
            short = shortest(ours, theirs, text)
            return next(differences(ours, theirs, [short]), (text, *rest))  # what needs its neighbours is shown whole
    return None


def texts_in(folder: Path) -> Iterator[tuple[str, str]]:
    """The name and the text of every file, unpacked."""
    open_as = {".xz": lzma.open, ".bz2": bz2.open}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open_as.get(path.suffix, open)(path, "rb") as file:
                yield path.name, file.read().decode("utf-8", errors="replace")


def text_difference(ours: Any, theirs: Any, text: str) -> str | None:
    """What is not the same about a long text, or None."""
    ordinary: dict[str, Any] = {"disallowed_special": ()}
    separated: list[np.ndarray] = []
    with ThreadPoolExecutor(2) as pool:  # tiktoken takes a minute for the longest
        for ids in pool.map(lambda document: theirs.encode_to_numpy(document, **ordinary), text.split(END_OF_TEXT)):
            separated += [ids, np.array([theirs.eot_token], np.uint32)]
    expected = np.concatenate(separated[:-1])
    for threads in (1, 2):
        got = ours.encode_to_numpy(text, allowed_special=SOME, num_threads=threads, **ordinary)
        if not np.array_equal(got, expected):
            return f"encode_to_numpy with {threads} threads"
    return None if ours.decode(expected) == text else "decode"


def main() -> int:
    import tiktoken

    import gptfast

    parser = argparse.ArgumentParser(description="Compare gptfast's ids with tiktoken's on random text")
    parser.add_argument("--strings", type=int, default=100_000, help="how many for each encoding")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--encodings", default="gpt2,cl100k_base,o200k_base", help="names with commas between")
    parser.add_argument("--texts", type=Path, help="a folder of texts to read instead")
    arguments = parser.parse_args()
    for name in arguments.encodings.split(","):
        start = time.perf_counter()
        ours, theirs = gptfast.get_encoding(name), tiktoken.get_encoding(name)
        if arguments.texts:
            for file, text in texts_in(arguments.texts):
                what = text_difference(ours, theirs, text)
                print(f"{name}: {file}, {len(text):,} characters: {what or 'equal'}", flush=True)
                if what:
                    return 1
            continue
        found = fuzz(ours, theirs, arguments.strings, arguments.seed)
        if found:
            text, what, got, expected = found
            print(f"{name}: {what} of {text!r}\n  gptfast  {got!r}\n  tiktoken {expected!r}")
            return 1
        seconds = time.perf_counter() - start
        print(f"{name}: {arguments.strings:,} strings of seed {arguments.seed} are equal ({seconds:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

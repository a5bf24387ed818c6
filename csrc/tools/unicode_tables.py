"""Writes csrc/core/unicode_tables.cpp, the class of every code point for `char_class` in csrc/core/unicode.hpp, and
gptfast/tokenizer/unassigned.py, the code points that this version of Unicode has not assigned.

    python csrc/tools/unicode_tables.py            # needs `pip install unicodedata2==16.0.0`, or Python 3.14

The Unicode version is the one of tiktoken's regex engine (fancy-regex 0.19 on regex-syntax 0.8.11, in tiktoken 0.14).
tests/tokenizer/test_unicode.py compares every code point with tiktoken: when a newer tiktoken makes it fail, raise
UNICODE_VERSION and run this again. The same version always gives the same bytes.
"""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

UNICODE_VERSION = "16.0.0"
PAGE = 128  # code points a page: of 32, 64, 128 and 256 the size with the smallest tables
ROOT = Path(__file__).parents[2]

# CharClass in csrc/core/unicode.hpp.
OTHER, SPACE, NEWLINE, NUMBER, UPPER, LOWER, LETTER, MARK = range(8)
CLASS_OF_CATEGORY = {
    "Nd": NUMBER, "Nl": NUMBER, "No": NUMBER,
    "Lu": UPPER, "Lt": UPPER, "Ll": LOWER, "Lm": LETTER, "Lo": LETTER,
    "Mn": MARK, "Mc": MARK, "Me": MARK,
    "Zs": SPACE, "Zl": SPACE, "Zp": SPACE,
}  # fmt: skip


def category_function() -> Callable[[str], str]:
    """`category` of the first Unicode database at hand that has UNICODE_VERSION."""
    found = []
    for name in ("unicodedata2", "unicodedata"):
        try:
            database = importlib.import_module(name)
        except ImportError:
            continue
        if database.unidata_version == UNICODE_VERSION:
            return database.category
        found.append(f"{name} has {database.unidata_version}")
    raise SystemExit(
        f"the tables need Unicode {UNICODE_VERSION}, but {' and '.join(found)}; "
        f"pip install unicodedata2=={UNICODE_VERSION}"
    )


def classes(category: Callable[[str], str]) -> bytes:
    """The class of each of the 1,114,112 code points."""
    table = bytearray(CLASS_OF_CATEGORY.get(category(chr(c)), OTHER) for c in range(0x110000))
    # White_Space is the separators (Z*) and these six controls; U+001C..U+001F, which Python's isspace adds, are not.
    for c in (0x09, 0x0B, 0x0C, 0x85):
        table[c] = SPACE
    for c in (0x0A, 0x0D):
        table[c] = NEWLINE
    return bytes(table)


def lines(values: bytes, per_line: int = 32) -> list[str]:
    return ["    " + ",".join(map(str, values[i : i + per_line])) + "," for i in range(0, len(values), per_line)]


def cpp_source(table: bytes) -> str:
    """unicode_tables.cpp, from the class of each code point."""
    count = max(c for c, value in enumerate(table) if value != OTHER) // PAGE + 1  # pages; past them all are kOther
    number: dict[bytes, int] = {}  # each distinct page once, in order of first use
    page_of = [number.setdefault(table[i * PAGE : (i + 1) * PAGE], len(number)) for i in range(count)]
    if len(number) > 256:
        raise SystemExit(f"{len(number)} distinct pages, but their numbers are one byte each; choose another PAGE")
    first = {page: page_of.index(page) * PAGE for page in range(len(number))}
    text = [
        f"// Made by csrc/tools/unicode_tables.py from Unicode {UNICODE_VERSION}; do not edit.",
        '#include "unicode.hpp"',
        "",
        "namespace gptfast::detail {",
        "",
        f"static_assert(kPageSize == {PAGE} && kPages == {count});",
        "",
        "// clang-format off",
        "const std::uint8_t kPageOf[kPages] = {",
        *lines(bytes(page_of)),
        "};",
        "",
        f"const std::uint8_t kClassOf[{len(number)}][kPageSize] = {{",
    ]
    for content, page in number.items():
        text += [f"    {{  // page {page}, U+{first[page]:04X}", *lines(content), "    },"]
    return "\n".join([*text, "};", "// clang-format on", "", "}  // namespace gptfast::detail", ""])


def python_source(category: Callable[[str], str]) -> str:
    """unassigned.py: the ranges of code points of category Cn, in hexadecimal."""
    ranges: list[list[int]] = []
    for c in range(0x110000):
        if category(chr(c)) == "Cn":
            if ranges and ranges[-1][1] == c - 1:
                ranges[-1][1] = c
            else:
                ranges.append([c, c])
    words = " ".join(f"{first:X}" if first == last else f"{first:X}-{last:X}" for first, last in ranges)
    return "\n".join(
        [
            f'"""Made by csrc/tools/unicode_tables.py from Unicode {UNICODE_VERSION}; do not edit."""',
            "",
            "# The code points that this version has not assigned, the noncharacters among them.",
            'UNASSIGNED = """',
            *textwrap.wrap(words, 118, break_on_hyphens=False),
            '"""',
            "",
        ]
    )


def outputs() -> dict[Path, str]:
    """Every generated file and its text."""
    category = category_function()
    return {
        ROOT / "csrc" / "core" / "unicode_tables.cpp": cpp_source(classes(category)),
        ROOT / "gptfast" / "tokenizer" / "unassigned.py": python_source(category),
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        raise SystemExit(__doc__)
    for path, text in outputs().items():
        path.write_text(text, encoding="ascii", newline="\n")

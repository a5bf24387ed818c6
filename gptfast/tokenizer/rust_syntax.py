r"""Rewrites a pattern of tiktoken's regex engine (Rust: fancy-regex on regex-syntax) for the PyPI package `regex`.

The two read the same characters differently: `$` is the very end in Rust, `[[:alpha:]]` is ASCII, `\h` a hexadecimal
digit, `[a&&[b-d]]` and `[a--b]` have one precedence, `{` may be a literal, `x{2}{3}` repeats once, `(?i)` outlives a
capture group that it stands in, and so on. The syntax that `regex` has no counterpart for is refused, not guessed:
subroutine calls, conditionals, absent operators, backtracking verbs, `\G`, the flags U and R; where case is ignored,
set operators and negated sets within sets.

The reader follows the parser of fancy-regex 0.19; what it accepts may still be refused by `regex.compile`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# What compiles the result: sets nest (V1), and case folds one character to one (-f), as Rust has it.
PREFIX = "(?V1)(?-f)"

POSIX = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": r"\x00-\x7F", "blank": r"\t\x20", "cntrl": r"\x00-\x1F\x7F",
    "digit": "0-9", "graph": "!-~", "lower": "a-z", "print": r"\x20-~", "punct": r"!-/:-@\[-`\{-~",
    "space": r"\t\n\x0B\f\r\x20", "upper": "A-Z", "word": "0-9A-Za-z_", "xdigit": "0-9A-Fa-f",
}  # fmt: skip
# Names that fancy-regex defines itself, as the members of a set.
PROPERTIES = {
    "alnum": r"\p{Alphabetic}\p{Nd}", "blank": r"\p{Zs}\t", "cntrl": r"\x00-\x1F\x7F-\x9F", "word": r"\w",
    "graph": r"[^\p{White_Space}\p{C}]", "print": r"[^\p{C}\t\n\x0B\f\r]", "cs": r"[\x00&&\x01]",
}  # fmt: skip
CONTROLS = {"a": 0x07, "b": 0x08, "e": 0x1B, "f": 0x0C, "n": 0x0A, "r": 0x0D, "t": 0x09, "v": 0x0B}
ASSERTIONS = {
    "A": r"\A", "z": r"\Z", "Z": r"(?=\n*\Z)", "b": r"\b", "B": r"\B", "<": r"\m", ">": r"\M", "K": r"\K",
    "R": r"(?>\r\n|[\n\x0B\f\r\x85\u2028\u2029])", "O": "(?s:.)", "N": ".",
}  # fmt: skip
# In Turkish these are other cases of i and I; Rust takes them for letters without case, `regex` for both.
TURKISH = frozenset({0x130, 0x131})
BOUNDARIES = {"start": r"\m", "end": r"\M", "start-half": r"(?<!\w)", "end-half": r"(?!\w)"}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}

REPEAT = re.compile(r"\{(?:(\d+)(,(\d*))?|,(\d*))\}")
COMMENT = r"\(\?#(?:\\.|[^\\)])*\)"
SPACE = re.compile(f"(?:{COMMENT})*", re.DOTALL)
SPACE_X = re.compile(rf"(?:[ \t\r\n]|#[^\n]*\n?|{COMMENT})*", re.DOTALL)
GROUP = re.compile(r"\(\?(=|!|<=|<!|>|P?<(\w+)>|'(\w+)')")
BACKREFERENCE = re.compile(r"\(\?P=(\w+)\)")
FLAGS = re.compile(r"\(\?([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])")


class Unsupported(ValueError):
    """The pattern is not valid, or uses what `regex` cannot express."""


@dataclass
class Translation:
    """`pattern` for `regex.compile`; where the pattern cuts the line of code points; whether it ever ignores case."""

    pattern: str
    cuts: set[int] = field(default_factory=set)
    ignores_case: bool = False


def translate(pattern: str) -> Translation:
    """The same pattern in the syntax of `regex`. Raises Unsupported with the reason and the place."""
    return _Reader(pattern).read()


def quote(code_point: int) -> str:
    c = chr(code_point)
    return c if c.isalnum() or code_point >= 0x80 else f"\\x{code_point:02X}"


class _Reader:
    def __init__(self, pattern: str) -> None:
        self.text = pattern
        self.at = 0
        self.flags = frozenset[str]()
        self.result = Translation("")
        self.refers = False  # whether there is a back-reference
        self.turkish = set[int]()  # of the set being read: its members whose case is not to be ignored
        self.depth = 0  # of sets within sets

    def read(self) -> Translation:
        out = [PREFIX]
        open_groups: list[frozenset[str] | None] = []  # the flags to go back to at ")"; None: keep the flags
        while self.skip_space():
            c = self.text[self.at]
            if found := BACKREFERENCE.match(self.text, self.at):
                self.at = found.end()
                out += [self.reference(found[1]), self.quantifier()]
                continue
            if c == "(":
                opened = self.group()
                if opened:
                    out.append(opened[0])
                    open_groups.append(opened[1])
                continue
            if c in "*+?":
                raise self.error("nothing to repeat")
            self.at += 1
            if c == "|":
                out.append(c)
                continue
            if c == ")":
                if not open_groups:
                    raise self.error("unbalanced parenthesis")
                flags = open_groups.pop()
                self.flags = self.flags if flags is None else flags
                out.append(")")
            elif c == "[":
                out.append(self.outer_set())
            elif c == "\\":
                out.append(self.escape())
            elif c == ".":
                out.append("(?s:.)" if "s" in self.flags else ".")
            elif c == "^":
                out.append("(?m:^)" if "m" in self.flags else r"\A")
            elif c == "$":
                out.append("(?m:$)" if "m" in self.flags else r"\Z")
            else:
                out.append(self.single(ord(c)))
            out.append(self.quantifier())
        if open_groups:
            raise self.error("unclosed group")
        if not self.refers:  # groups that nothing refers to cost time, and change what `findall` returns
            out = ["(?:" if part == "(" or part.startswith("(?P<") else part for part in out]
        self.result.pattern = "".join(out)
        return self.result

    def error(self, reason: str) -> Unsupported:
        return Unsupported(f"{reason} at character {self.at}")

    def skip_space(self) -> bool:
        """Steps over comments and, under the flag x, white space; False at the end of the pattern."""
        found = (SPACE_X if "x" in self.flags else SPACE).match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.at < len(self.text)

    def literal(self, code_point: int) -> str:
        self.result.cuts |= {code_point, code_point + 1}
        return quote(code_point)

    def single(self, code_point: int) -> str:
        atom = self.literal(code_point)
        caseless = code_point in TURKISH or (code_point < 0x80 and not chr(code_point).isalpha())
        return atom if caseless else self.fold(atom)

    def fold(self, atom: str) -> str:
        return f"(?i:{atom})" if "i" in self.flags else atom

    def quantifier(self) -> str:
        """The quantifier of the atom just read, or nothing. A second one is a literal or an error."""
        if not self.skip_space():
            return ""
        c, out = self.text[self.at], ""
        if c in "*+?":
            self.at += 1
            out = c
        elif c == "{":
            brace = self.text[self.at : self.text.find("}", self.at) + 1]
            found = REPEAT.fullmatch(re.sub(r"[ \t\r\n]", "", brace) if "x" in self.flags else brace)
            if not found:
                return ""
            low, comma, high, only_high = found.groups()
            self.at += len(brace)
            out = f"{{{low or 0},{(high or only_high or '') if comma or low is None else low}}}"
        if out and self.skip_space() and self.text[self.at] == "?":
            out, self.at = out + "?", self.at + 1
        if out and self.text[self.at : self.at + 1] == "+":
            if out.endswith("?") and len(out) > 1:
                raise self.error("a lazy quantifier cannot be possessive")
            out, self.at = out + "+", self.at + 1
        return out

    def group(self) -> tuple[str, frozenset[str] | None] | None:
        """Reads "(" and what qualifies it. None where it was flags alone, such as (?i)."""
        if found := GROUP.match(self.text, self.at):
            self.at = found.end()
            name = found[2] or found[3]
            return (f"(?P<{name}>" if name else f"(?{found[1]}"), None
        if found := FLAGS.match(self.text, self.at):
            on, off = set(found[1]), set(found[2] or "")
            if (on | off) - set("imsxu") or "u" in off:
                raise self.error(f"unsupported flags {found[0]}")
            if found[3] == ")" and not on | off:
                raise self.error("missing flags")
            before = self.flags
            self.at = found.end()
            self.flags = (self.flags | on) - off
            self.result.ignores_case |= "i" in self.flags
            return None if found[3] == ")" else ("(?:", before)
        if self.text.startswith(("(?", "(*"), self.at):
            raise self.error(f"unsupported group {self.text[self.at : self.at + 4]}...")
        self.at += 1
        return "(", None

    def escape(self) -> str:
        """An escape outside a set; `at` is behind the backslash."""
        c = self.text[self.at : self.at + 1]
        if found := re.compile(r"\d+|k(?:<(\w+)>|'(\w+)')").match(self.text, self.at):
            self.at = found.end()
            return self.reference(found[1] or found[2] or found[0])
        if c == "b" and (found := re.compile(r"b\{([a-z-]+)\}").match(self.text, self.at)):
            if found[1] not in BOUNDARIES:
                raise self.error(f"unknown boundary {found[0]}")
            self.at = found.end()
            return BOUNDARIES[found[1]]
        if c and c in ASSERTIONS:
            self.at += 1
            return ASSERTIONS[c]
        found_class = self.class_escape()
        if found_class:
            return self.fold(self.closed(f"[{found_class}]"))
        return self.single(self.character())

    def reference(self, group: str) -> str:
        self.refers = True
        return self.fold(f"\\g<{group}>")

    def closed(self, members: str) -> str:
        # `regex` ignores the case of a property only beside another member; this one is empty.
        return f"{members[:-1]}[\\x00&&\\x01]]" if "i" in self.flags else members

    def class_escape(self) -> str | None:
        r"""\d, \w, \s, \h, \p{...} and their opposites, as members of a set; None for anything else."""
        c = self.text[self.at : self.at + 1]
        if c and c in "dDwWsS":
            self.at += 1
            return "\\" + c
        if c and c in "hH":
            self.at += 1
            self.result.cuts |= {0x30, 0x3A, 0x41, 0x47, 0x61, 0x67}
            return "0-9A-Fa-f" if c == "h" else "[^0-9A-Fa-f]"
        if c not in ("p", "P"):
            return None
        found = re.compile(r"[pP](?:\{(\^?)([^}]*)\}|(\w))").match(self.text, self.at)
        if not found:
            raise self.error("incomplete property")
        self.at = found.end()
        name = found[2] or found[3]
        negated = (c == "P") != bool(found[1])
        if name.lower() in PROPERTIES:
            return f"[^{PROPERTIES[name.lower()]}]" if negated else PROPERTIES[name.lower()]
        return f"\\{'P' if negated else 'p'}{{{name}}}"

    def character(self) -> int:
        """The code point that an escape stands for; `at` is behind the backslash."""
        c = self.text[self.at : self.at + 1]
        if not c:
            raise self.error("trailing backslash")
        if c in HEX_DIGITS:
            found = re.compile(rf"[xuU](?:([0-9A-Fa-f]{{{HEX_DIGITS[c]}}})|\{{([0-9A-Fa-f]{{1,8}})\}})").match(
                self.text, self.at
            )
            value = int(found[1] or found[2], 16) if found else 0x110000
            if not found or value > 0x10FFFF or 0xD800 <= value < 0xE000:
                raise self.error("not a code point")
            self.at = found.end()
            return value
        if c.isascii() and c.isalnum() and c not in CONTROLS:
            raise self.error(f"unknown escape \\{c}")
        self.at += 1
        return CONTROLS.get(c, ord(c))

    def outer_set(self) -> str:
        self.turkish = set()
        negated = self.text.startswith("^", self.at)
        inner = self.fold(self.set())
        if not self.turkish:
            return inner
        apart = f"[{''.join(map(chr, sorted(self.turkish)))}]"
        return f"(?:(?!{apart}){inner})" if negated else f"(?:{inner}|{apart})"

    def set(self) -> str:
        """A set up to its "]"; `at` is behind its "["."""
        self.depth += 1
        negated = self.text[self.at : self.at + 1] == "^"
        self.at += negated
        whole, members = "", []  # what the operators so far made, and the members since the last operator
        operator = ""
        if self.text[self.at : self.at + 1] == "]":  # the first one is a member, and so are the first hyphens
            members.append(self.literal(ord("]")))
            self.at += 1
        else:
            while self.text.startswith("-", self.at):
                members.append(self.literal(ord("-")))
                self.at += 1
        while self.text[self.at : self.at + 1] != "]":
            if self.at >= len(self.text):
                raise self.error("unclosed set")
            two = self.text[self.at : self.at + 2]
            if two in ("&&", "--", "~~"):
                self.at += 2
                whole = self.operate(whole, operator, members)
                operator, members = two, []
            else:
                members.append(self.member())
        self.at += 1
        self.depth -= 1
        if "i" in self.flags and (operator or (negated and self.depth)):
            raise self.error("set operators and negated sets within sets are not supported where case is ignored")
        whole = self.operate(whole, operator, members)
        return self.closed(f"[^{whole}]" if negated else f"[{whole}]")

    def operate(self, left: str, operator: str, members: list[str]) -> str:
        right = "".join(members) or r"[\x00&&\x01]"
        return f"[{left}]{operator}[{right}]" if operator else right

    def member(self) -> str:
        """One member of a set: a nested set, a class, a character or a range of characters."""
        if found := re.compile(r"\[:(\^?)([a-z]+):\]").match(self.text, self.at):
            if found[2] not in POSIX:
                raise self.error(f"unknown class {found[0]}")
            self.at = found.end()
            return f"[{found[1]}{POSIX[found[2]]}]"
        c = self.text[self.at]
        self.at += 1
        if c == "[":
            return self.set()
        if c == "\\":
            named = self.class_escape()
            if named:
                return named
            low = self.character()
        else:
            low = ord(c)
        after = self.text[self.at : self.at + 2]
        if after[:1] != "-" or after in ("-]", "--"):
            return self.range(low, low)
        self.at += 1
        c = self.text[self.at : self.at + 1]
        self.at += 1
        if c == "\\":
            high = self.character()
        elif c and c != "[":
            high = ord(c)
        else:
            raise self.error("unfinished range")
        if high < low:
            raise self.error("a range from high to low")
        return self.range(low, high)

    def range(self, low: int, high: int) -> str:
        self.result.cuts |= {low, high + 1}
        apart = {c for c in TURKISH if low <= c <= high} if "i" in self.flags else set()
        if apart:
            self.turkish |= apart
            first, last = min(apart), max(apart)
            self.result.cuts |= {first, last + 1}
            parts = [(low, first - 1), (last + 1, high)]
            return "".join(f"{quote(a)}-{quote(b)}" for a, b in parts if a <= b)
        return quote(low) if low == high else f"{quote(low)}-{quote(high)}"

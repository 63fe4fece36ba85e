"""Which paths of a source are left out: patterns with the meaning that they have in a .gitignore file, over bytes.

A later rule beats an earlier one, rules of a deeper `.vaultignore` beat those above it, `--exclude` beats them all. A
directory that is left out is not entered, so nothing below it can be taken in again. Ignore files come with data, so they
are hostile: matching takes time that grows with the lengths of pattern and path, never with the ways to combine them.

pathspec was tried: it reads some patterns otherwise than git does (`a[!a]`, `[z-a]`), and some take it for ever.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

IGNORE_FILE: Final = b".vaultignore"
IGNORE_FILE_SIZE_MAX: Final = 1 << 20
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_CLASS_NAMES: Final = {
    b"alnum": rb"[0-9A-Za-z]",
    b"alpha": rb"[A-Za-z]",
    b"blank": rb"[ \t]",
    b"cntrl": rb"[\x00-\x1f\x7f]",
    b"digit": rb"[0-9]",
    b"graph": rb"[!-~]",
    b"lower": rb"[a-z]",
    b"print": rb"[ -~]",
    b"punct": rb"[!-/:-@\[-`{-~]",
    b"space": rb"[ \t-\r]",
    b"upper": rb"[A-Z]",
    b"xdigit": rb"[0-9A-Fa-f]",
}

Segment = re.Pattern[bytes] | None  # None: any number of segments, which is what `**` stands for


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of an ignore file."""

    segments: tuple[Segment, ...]
    takes_in: bool  # the line began with "!"
    directories_only: bool


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Rules that hold for paths below a directory; `base` is that directory's path with a slash, or b""."""

    base: bytes
    rules: tuple[Rule, ...]

    def decide(self, path: bytes, is_directory: bool) -> bool | None:
        """Return True to leave path out, False to take it in, None if no rule speaks of it."""
        below = path[len(self.base) :].split(b"/")
        for rule in reversed(self.rules):
            if (is_directory or not rule.directories_only) and _matches(rule.segments, below):
                return not rule.takes_in
        return None


def parse_rules(lines: Iterable[bytes], base: bytes = b"") -> RuleSet:
    """Return the rules of patterns. Like git it passes over one that can match nothing."""
    return RuleSet(base, tuple(rule for line in lines if (rule := _parse_rule(line)) is not None))


def parse_ignore_file(data: bytes, base: bytes) -> RuleSet:
    """Return the rules of an ignore file that lies in the directory base."""
    lines = data.removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    return parse_rules((line.removesuffix(b"\r") for line in lines), base)


def is_excluded(path: bytes, is_directory: bool, rule_sets: Sequence[RuleSet]) -> bool:
    """Return whether a path is left out. rule_sets go from the weakest to the strongest."""
    for rules in reversed(rule_sets):
        decision = rules.decide(path, is_directory)
        if decision is not None:
            return decision
    return False


def _matches(segments: Sequence[Segment], path: Sequence[bytes]) -> bool:
    """Return whether segments match a path. Only the last `**` is ever given another try: that is enough."""
    at = position = 0
    retry = -1
    retry_position = 0
    while position < len(path):
        segment = segments[at] if at < len(segments) else None
        if at < len(segments) and segment is None:
            retry, retry_position = at, position
            at += 1
        elif segment is not None and segment.fullmatch(path[position]):
            at += 1
            position += 1
        elif retry >= 0:
            retry_position += 1
            at, position = retry + 1, retry_position
        else:
            return False
    return at == len(segments)


def _parse_rule(line: bytes) -> Rule | None:
    pattern = _without_trailing_spaces(line)
    if not pattern or pattern.startswith(b"#"):
        return None
    takes_in = pattern.startswith(b"!")
    pattern = pattern[takes_in:]
    directories_only = pattern.endswith(b"/")
    pattern = pattern[:-1] if directories_only else pattern
    anchored = b"/" in pattern
    segments = _parse_segments(pattern.removeprefix(b"/")) if pattern else None
    if segments is None:
        return None
    return Rule((*(() if anchored else (None,)), *segments), takes_in, directories_only)


def _without_trailing_spaces(line: bytes) -> bytes:
    """Return line without spaces at its end; one behind a backslash stays."""
    end = at = 0
    while at < len(line):
        step = 2 if line[at : at + 1] == b"\\" else 1
        if line[at : at + 1] != b" ":
            end = min(at + step, len(line))
        at += step
    return line[:end]


def _parse_segments(pattern: bytes) -> list[Segment] | None:
    """Return what matches the segments of a path, or None if the pattern can match nothing."""
    segments: list[Segment] = []
    pieces: list[bytes] = [b""]  # regular expressions, with a star between each two
    start = at = 0
    while at <= len(pattern):
        byte = pattern[at : at + 1]
        if byte in (b"/", b""):
            stars = pattern[start:at]
            if len(stars) > 1 and not stars.strip(b"*") and (segments or byte):
                segments += [None] if byte else [None, re.compile(b".*", re.DOTALL)]  # at the end: one segment or more
            else:
                segments.append(_compile(pieces))
            pieces = [b""]
            start = at + 1
        elif byte == b"*":
            pieces.append(b"")
        elif byte == b"?":
            pieces[-1] += b"."
        elif byte == b"[":
            parsed = _parse_class(pattern, at)
            if parsed is None:
                return None
            members, at = parsed
            pieces[-1] += b"[" + b"".join(b"\\x%02x" % member for member in members) + b"]" if members else b"(?!)"
        elif byte == b"\\":
            at += 1
            if at == len(pattern):
                return None
            pieces[-1] += re.escape(pattern[at : at + 1])
        else:
            pieces[-1] += re.escape(byte)
        at += 1
    return segments


def _compile(pieces: Sequence[bytes]) -> re.Pattern[bytes]:
    """Return a regular expression for pieces with stars between them.

    A piece in the middle may take the first place that it fits: the star behind it makes up for what that leaves. Atomic
    groups say so, and keep the engine from trying the other places.
    """
    if len(pieces) == 1:
        return re.compile(pieces[0], re.DOTALL)
    middle = b"".join(b"(?>.*?" + piece + b")" for piece in pieces[1:-1] if piece)
    return re.compile(pieces[0] + middle + b".*" + pieces[-1], re.DOTALL)


def _parse_class(pattern: bytes, at: int) -> tuple[list[int], int] | None:
    """Return the bytes that the class beginning at `at` stands for, and where it ends; None if it does not end."""
    at += 1
    negated = pattern[at : at + 1] in (b"!", b"^")
    at += negated
    members: set[int] = set()
    before = -1  # the byte that a range may begin with
    first = True
    while first or pattern[at : at + 1] != b"]":
        first = False
        if (
            pattern[at : at + 2] == b"[:"
            and (end := pattern.find(b"]", at + 2)) > at + 2
            and pattern[end - 1 : end] == b":"
        ):
            named = _CLASS_NAMES.get(pattern[at + 2 : end - 1])
            if named is None:
                return None
            members.update(byte for byte in range(256) if re.match(named, bytes((byte,))))
            before, at = -1, end + 1
            continue
        is_range = pattern[at : at + 1] == b"-" and before >= 0 and pattern[at + 1 : at + 2] not in (b"", b"]")
        at += is_range
        at += pattern[at : at + 1] == b"\\"
        if at >= len(pattern):
            return None
        byte = pattern[at]
        members.update(range(before, byte + 1) if is_range else (byte,))
        before = -1 if is_range else byte
        at += 1
    members.discard(ord("/"))
    return [byte for byte in range(256) if (byte in members) != negated and byte != ord("/")], at

"""Which paths of a source are left out: patterns with the meaning that they have in a .gitignore file, over bytes.

A later rule beats an earlier one, rules of a deeper `.vaultignore` beat those above it, `--exclude` beats them all. A
directory that is left out is not entered, so nothing below it can be taken in again.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vault.errors import UsageError

IGNORE_FILE: Final = b".vaultignore"
IGNORE_FILE_SIZE_MAX: Final = 1 << 20
_CLASS = re.compile(rb"\[([!^]?)((?:\]|\[:\w+:\]|\\.|[^\]\\])(?:\[:\w+:\]|\\.|[^\]\\])*)\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of an ignore file."""

    regex: "re.Pattern[bytes]"
    takes_in: bool  # the line began with "!"
    directories_only: bool


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Rules that hold for paths below a directory; `base` is that directory's path with a slash, or b""."""

    base: bytes
    rules: tuple[Rule, ...]

    def decide(self, path: bytes, is_directory: bool) -> bool | None:
        """Return True to leave path out, False to take it in, None if no rule speaks of it."""
        below = path[len(self.base) :]
        for rule in reversed(self.rules):
            if (is_directory or not rule.directories_only) and rule.regex.fullmatch(below):
                return not rule.takes_in
        return None


def parse_rules(lines: Iterable[bytes], base: bytes = b"") -> RuleSet:
    """Return the rules of an ignore file's lines.

    Raises:
        UsageError: a pattern cannot be understood.
    """
    return RuleSet(base, tuple(rule for line in lines if (rule := _parse_rule(line)) is not None))


def is_excluded(path: bytes, is_directory: bool, rule_sets: Sequence[RuleSet]) -> bool:
    """Return whether a path is left out. rule_sets go from the weakest to the strongest."""
    for rules in reversed(rule_sets):
        decision = rules.decide(path, is_directory)
        if decision is not None:
            return decision
    return False


def _parse_rule(line: bytes) -> Rule | None:
    pattern = line.rstrip(b"\r\n")
    while pattern.endswith(b" ") and not pattern.endswith(b"\\ "):
        pattern = pattern[:-1]
    if not pattern or pattern.startswith(b"#"):
        return None
    takes_in = pattern.startswith(b"!")
    pattern = pattern[takes_in:]
    directories_only = pattern.endswith(b"/")
    pattern = pattern.rstrip(b"/") if directories_only else pattern
    anchored = b"/" in pattern
    pattern = pattern.removeprefix(b"/")
    if not pattern:
        return None
    try:
        prefix = b"" if anchored else b"(?:.*/)?"
        return Rule(re.compile(prefix + _translate(pattern), re.DOTALL), takes_in, directories_only)
    except re.error as error:
        raise UsageError(f"pattern {line.decode(errors='replace').strip()!r}: {error}") from error


def _translate(pattern: bytes) -> bytes:
    """Return a regular expression for one glob."""
    out = []
    at = 0
    while at < len(pattern):
        rest = pattern[at:]
        starts_part = at == 0 or pattern[at - 1 : at] == b"/"
        if starts_part and rest.startswith(b"**/"):
            out.append(b"(?:.*/)?")
            at += 3
        elif starts_part and rest == b"**":
            out.append(b".+")
            at += 2
        elif rest.startswith(b"*"):
            out.append(b"[^/]*")
            at += len(rest) - len(rest.lstrip(b"*"))
        elif rest.startswith(b"?"):
            out.append(b"[^/]")
            at += 1
        elif rest.startswith(b"[") and (match := _CLASS.match(rest)):
            out.append(b"(?!/)[" + (b"^" if match[1] else b"") + match[2].replace(b"[", rb"\[") + b"]")
            at += match.end()
        elif rest.startswith(b"\\") and len(rest) > 1:
            out.append(re.escape(rest[1:2]))
            at += 2
        else:
            out.append(re.escape(rest[:1]))
            at += 1
    return b"".join(out)

"""Differences between runs, for JSON and for people. Nothing here prints."""

import os
from collections.abc import Iterator
from typing import Final

from vault.cli.output import Output, name_text, one_line
from vault.ops.differences import REASONS, Difference

FILES_SHOWN: Final = 10
_VALUE_SHOWN: Final = 200  # characters
_SIGNS: Final = {"added": "+", "removed": "-", "changed": "~"}
_COLORS: Final = {"+": "green", "-": "red", "@": "cyan"}


def difference_record(difference: Difference) -> dict[str, object]:
    """Return a difference for JSON."""
    return {
        "cause": str(difference.cause),
        "name": difference.name,
        "old": difference.old,
        "new": difference.new,
        "note": difference.note,
        "reason": REASONS[difference.cause],
        "lines": list(difference.lines),
        "files": [
            {
                "kind": file.kind,
                "path": name_text(file.path),
                "opened_old": file.opened_old,
                "opened_new": file.opened_new,
            }
            for file in difference.files
        ],
    }


def difference_lines(out: Output, difference: Difference, *, details: bool = True) -> Iterator[str]:
    """Yield a difference for people: what it is, then what changed in a file, or which files."""
    old, new, note = difference.old, difference.new, one_line(difference.note)
    name = out.styled(one_line(difference.name), "bold")
    values = "" if old == new else f"{_value(old)} -> {_value(new)}"
    yield "  ".join(word for word in (str(difference.cause), name, values, note) if word)
    if not details:
        return
    for line in difference.lines:
        text = one_line(line)
        yield f"    {out.styled(text, _COLORS[line[0]])}" if line[:1] in _COLORS else f"    {text}"
    for file in difference.files[:FILES_SHOWN]:
        who = {(True, True): "both opened it", (True, False): "the first opened it", (False, True): "the second opened it"}
        seen = who.get((file.opened_old, file.opened_new), "not opened")
        yield f"    {_SIGNS.get(file.kind, '~')} {one_line(os.fsdecode(file.path))}  {seen}"
    if len(difference.files) > FILES_SHOWN:
        yield f"    and {len(difference.files) - FILES_SHOWN:,} more; --json has them"


def short(differences: tuple[Difference, ...], *, most: int = 3) -> str:
    """Return the likeliest differences on one line: `script train.py changed, parameter lr`."""
    words = [_short(difference) for difference in differences[:most]]
    more = f" and {len(differences) - most:,} more" if len(differences) > most else ""
    return one_line(", ".join(words) + more)


def _short(difference: Difference) -> str:
    what = "is new" if difference.old is None else "is gone" if difference.new is None else "changed"
    return f"{difference.cause} {difference.name} {what}"


def _value(value: str | None) -> str:
    if value is None:
        return "none"
    text = one_line(value[: _VALUE_SHOWN + 1])
    return (text if len(text) <= _VALUE_SHOWN else text[: _VALUE_SHOWN - 1] + "…") or "''"

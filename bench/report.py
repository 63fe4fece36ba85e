"""Turns results into a page: a table for each scenario, medians with ratios to the reference, and their origin."""

import textwrap
from collections.abc import Iterator, Mapping

from bench.results import Column, Results, Table, speed_ratio

_LINE_LENGTH = 120
_UNITS = {"MB": (1e-6, "MB"), "MB/s": (1e-6, "MB/s"), "ms": (1e3, "ms"), "us": (1e6, "us")}


def render(
    results: Results, tables: tuple[Table, ...], machine: Mapping[str, str], versions: Mapping[str, str], command: str
) -> str:
    """Return the page as Markdown."""
    lines = [
        "# Performance",
        "",
        "Written by a program: do not edit. Every figure is a median of",
        "",
        f"    {command}",
        "",
        "in which all candidates take turns on the same trees; each table is of one run. In parentheses: how many times as",
        "fast (or small) as the reference in the first row; above 1 is better. Absolute figures are worth little on",
        "another machine, ratios more.",
        "",
        *(f"- {name}: {value}" for name, value in machine.items()),
        "",
    ]
    lines += sections(results, tables)
    lines += ["## Versions", "", *(f"- {name}: {version}" for name, version in versions.items()), ""]
    return "\n".join(lines)


def sections(results: Results, tables: tuple[Table, ...], words: Mapping[str, object] | None = None) -> Iterator[str]:
    """Yield the lines of each table that has figures, with its title and note; `words` fill the gaps in notes."""
    for table in tables:
        if results.samples.get(table.id):
            note = table.note.format(**words) if words is not None else table.note
            yield from (f"## {table.title}", "", *_table(results, table), "")
            yield from ([*textwrap.wrap(note, _LINE_LENGTH, break_long_words=False), ""] if note else [])


def _table(results: Results, table: Table) -> Iterator[str]:
    rows = sorted(results.rows(table.id), key=lambda row: row != table.reference)
    columns = [c for c in table.columns if any(results.median(table.id, row, c.id) is not None for row in rows)]
    yield "| | " + " | ".join(f"{column.heading}, {column.unit}" for column in columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for row in rows:
        cells = [_cell(results, table, row, column) for column in columns]
        yield f"| {row} | " + " | ".join(cells) + " |"


def _cell(results: Results, table: Table, row: str, column: Column) -> str:
    value = results.median(table.id, row, column.id)
    if value is None:
        return ""
    text = number_text(value, column.unit)
    reference = results.median(table.id, table.reference, column.id) if column.compared else None
    if reference is None or row == table.reference:
        return text
    return f"{text} ({speed_ratio(column, value, reference):.2f})"


def number_text(value: float, unit: str) -> str:
    """Return a figure in its unit, with as many digits as mean something."""
    factor, _ = _UNITS.get(unit, (1.0, unit))
    value *= factor
    if unit.endswith("/s") or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 or unit in ("MB", "ms", "us") else f"{value:.2f}"

"""Turns what was measured over S3 into a page of its own: targets first, then tables, then who did not work."""

from collections.abc import Iterator, Mapping

from bench.report import number_text, sections
from bench.results import Results
from bench.s3_tables import ALL, targets


def render(
    results: Results,
    machine: Mapping[str, str],
    versions: Mapping[str, str],
    failures: Mapping[str, str],
    words: Mapping[str, object],
    command: str,
) -> str:
    """Return the page as Markdown; `words` fill the gaps in the tables' notes."""
    lines = [
        "# Performance over S3",
        "",
        "Written by a program: do not edit. Every figure is a median of",
        "",
        f"    {command}",
        "",
        "against a Ceph RADOS gateway on the same machine that keeps its data in memory: directly, and over a proxy that",
        "holds every request for 20 ms. Gateway, proxy, peers and readers share the processors, so nobody is as fast as",
        "with a service elsewhere; all take turns on the same bytes. In parentheses: how many times as fast as the",
        "reference in the first row; above 1 is better. Figures of a folder store are in [performance](performance.md).",
        "",
        *(f"- {name}: {value}" for name, value in machine.items()),
        "",
        "## Targets",
        "",
        "| | wanted | measured | |",
        "|---|---:|---:|---|",
        *_targets(results),
        "",
        *sections(results, ALL, words),
        "## Who did not work",
        "",
        *([f"- {name}: {_first_line(text)}" for name, text in failures.items()] or ["Everybody did."]),
        "",
        "## Versions",
        "",
        *(f"- {name}: {version}" for name, version in versions.items()),
        "",
    ]
    return "\n".join(lines)


def _targets(results: Results) -> Iterator[str]:
    for target in targets():
        figure = target.figure(results)
        sign = "<=" if target.at_most else ">="
        if figure is not None:
            verdict = "met" if target.is_met(figure) else "**not met**"
            yield f"| {target.words} | {sign} {target.least:g} | {number_text(figure, '')} | {verdict} |"


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")[:200]

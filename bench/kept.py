"""Results that outlive a benchmark: a file beside its workspace, with those of each scenario as it was measured last.

So a benchmark that is cut off has not measured in vain, and one scenario can be measured anew for the page. Results of
other sizes, of another machine or from before the page's form changed are not mixed in. Threads: one.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Final

from bench.results import Results

_FORM: Final = 1


class KeptResults:
    """What was measured by one machine at one size, by scenario."""

    def __init__(self, path: str, sizes: str, machine: Mapping[str, str]) -> None:
        """Read the file if there is one, and take from it what fits.

        Args:
            path: the file.
            sizes: the name of the sizes that are measured now.
            machine: where.
        """
        self._path = path
        self._origin = {"form": _FORM, "sizes": sizes, "machine": dict(machine)}
        self._scenarios: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = {}
        try:
            with open(path, encoding="utf-8") as file:
                kept = json.load(file)
        except (FileNotFoundError, ValueError):
            return
        if kept.get("origin") == self._origin:
            self._scenarios = kept["scenarios"]

    def keep(self, scenario: str, results: Results) -> None:
        """Put what one scenario has measured in the place of what it measured before."""
        self._scenarios[scenario] = results.samples
        with open(f"{self._path}.new", "w", encoding="utf-8") as file:
            json.dump({"origin": self._origin, "scenarios": self._scenarios}, file)
        os.replace(f"{self._path}.new", self._path)

    def merged(self, scenarios: Iterable[str]) -> Results:
        """Return the samples of these scenarios as one, as far as there are any."""
        merged = Results()
        for scenario in scenarios:
            for table, rows in self._scenarios.get(scenario, {}).items():
                for row, columns in rows.items():
                    for column, values in columns.items():
                        for value in values:
                            merged.add(table, row, column, value)
        return merged

"""What was measured: samples by table, row and column, and their medians. Knows nothing of files or commands."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a table. `more_is_better` gives the direction of the ratio; `compared` says whether one is shown."""

    id: str
    heading: str
    unit: str  # "s", "ms", "MB", "files/s", "MB/s", "reads/s", "entries/s"
    compared: bool = True

    @property
    def more_is_better(self) -> bool:
        return self.unit.endswith("/s")


@dataclass(frozen=True, slots=True)
class Table:
    """A table of figures: a row for each candidate; ratios compare with the row `reference`."""

    id: str
    title: str
    reference: str
    columns: tuple[Column, ...]
    note: str = ""


@dataclass(slots=True)
class Results:
    """All samples of a run. Times are seconds, memory and sizes bytes, rates per second."""

    samples: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)

    def add(self, table: str, row: str, column: str, value: float) -> None:
        """Note one sample."""
        self.samples.setdefault(table, {}).setdefault(row, {}).setdefault(column, []).append(value)

    def rows(self, table: str) -> Iterator[str]:
        """Yield the rows of a table in the order in which they came."""
        yield from self.samples.get(table, {})

    def median(self, table: str, row: str, column: str) -> float | None:
        """Return the median of a figure, or None if it was not measured."""
        values = self.samples.get(table, {}).get(row, {}).get(column)
        return statistics.median(values) if values else None

    def spread(self, table: str, row: str, column: str) -> tuple[float, float] | None:
        """Return the smallest and the largest sample."""
        values = self.samples.get(table, {}).get(row, {}).get(column)
        return (min(values), max(values)) if values else None


def speed_ratio(column: Column, value: float, reference: float) -> float:
    """Return how many times as fast (or as small) value is: above 1 is better than the reference."""
    if column.more_is_better:
        return value / reference if reference else float("inf")
    return reference / value if value else float("inf")

"""The tables of the benchmark over S3, and the targets that they are held against."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.results import Column, Results, Table

_LINES: Final = (("far", "20 ms"), ("near", "no latency"))


def _columns(unit: str, *, compared: bool = True) -> tuple[Column, ...]:
    return tuple(Column(line, words, unit, compared) for line, words in _LINES)


BOTO: Final = "boto3, ranges in parallel"
LARGE: Final = Table(
    "s3_large",
    "Cold sequential read of a large file",
    BOTO,
    _columns("MB/s"),
    "One file laid out like safetensors, stored whole. `vault`: one reader, 1 MiB a call, on a mount just made with an "
    "empty cache. `boto3`: the very object of the store, 16 ranges of 8 MiB at one time, written to a local file.",
)
PACKS: Final = "boto3, packs in parallel"
SMALL: Final = Table(
    "s3_small",
    "Cold pass over small files",
    PACKS,
    _columns("files/s"),
    "Four readers on a mount just made with an empty cache. `boto3` downloads the packs that hold the same bytes, as "
    "above, and opens no file. Peers mount the same files as objects of their own; they read the first {peer_files:,} of "
    "{small_files:,} in tree order. With a plan: `vault prefetch --plan` reads ahead in the order of an earlier run.",
)
WARM: Final = Table(
    "s3_warm",
    "Warm pass: the second one, everything in this node's cache",
    "vault, folder store",
    (
        Column("small_1", "small files, 1 reader", "files/s"),
        Column("small_4", "small files, 4 readers", "files/s"),
        Column("large_1", "large file", "MB/s"),
    ),
    "The same trees, committed to a folder store on this machine, are what it should come up to. The large file is read "
    "again a few seconds after its first pass: from then on the kernel reads it itself.",
)
COMMIT: Final = Table(
    "s3_commit",
    "Committing small files to S3",
    "rclone copy, one tar",
    (*_columns("s"), Column("requests", "requests", "count", compared=False)),
    "The source is in the page cache. rclone copies 32 files, or 16 parts of one, at one time. Requests: over the line "
    "with latency.",
)
TINY: Final = Table(
    "s3_tiny",
    "Committing tiny files to S3",
    "rclone copy, files",
    (*_columns("s"), Column("requests", "requests", "count", compared=False)),
    "{tiny_files:,} files of 1 to 7 kB: here the requests decide, not the bytes. Otherwise as above.",
)
FIRST: Final = Table(
    "s3_first",
    "First file on a node that has never seen the snapshot (Vault alone)",
    "",
    (
        Column("commit", "commit", "s", compared=False),
        Column("commit_requests", "requests of the commit", "count", compared=False),
        Column("listing", "start of `vault mount` to the file's folder listed", "s", compared=False),
        Column("file", "first file after that", "s", compared=False),
        Column("requests", "requests", "count", compared=False),
        Column("fetched", "fetched", "MB", compared=False),
    ),
    "With 20 ms latency. Files are hard links of a few tiny ones, 1,000 a folder; the file lies in a folder in the middle.",
)
COUNT: Final = Table(
    "s3_requests",
    "Requests for 1,000,000 small files committed",
    "",
    (
        Column("files", "files measured", "count", compared=False),
        Column("bytes", "of", "MB", compared=False),
        Column("requests", "requests", "count", compared=False),
        Column("million", "for 1,000,000 of them", "count", compared=False),
    ),
    "For larger counts than were measured: in proportion.",
)
CLUSTER: Final = Table(
    "s3_cluster",
    "Commit on a Dask cluster from a source with latency",
    "1 worker",
    (Column("time", "time", "s"),),
    "Real scheduler and workers. The source: small files as objects of their own, over a line with {latency_ms} ms.",
)
ALL: Final = (LARGE, SMALL, WARM, COMMIT, TINY, FIRST, COUNT, CLUSTER)


@dataclass(frozen=True, slots=True)
class Target:
    """What was promised, and how the figure is found in the results."""

    words: str
    least: float  # the figure must be at least this; at most, if `at_most`
    figure: Callable[[Results], float | None]
    at_most: bool = False

    def is_met(self, figure: float) -> bool:
        """Tell whether a figure is good enough."""
        return figure <= self.least if self.at_most else figure >= self.least


def _rate(table: Table, row: str, other: str, column: str) -> Callable[[Results], float | None]:
    """Return what divides two rates of a table."""
    return lambda results: _ratio(results.median(table.id, row, column), results.median(table.id, other, column))


def _speed(table: Table, row: str, other: str, column: str) -> Callable[[Results], float | None]:
    """Return what divides two times of a table, the other's by ours."""
    return lambda results: _ratio(results.median(table.id, other, column), results.median(table.id, row, column))


def _ratio(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference


def _first_file(results: Results) -> float | None:
    times = [results.median(FIRST.id, row, column) for row in results.rows(FIRST.id) for column in ("listing", "file")]
    return sum(time for time in times if time is not None) if times else None


def _million(results: Results) -> float | None:
    figures = [results.median(COUNT.id, row, "million") for row in results.rows(COUNT.id)]
    known = [figure for figure in figures if figure is not None]
    return min(known) if known else None


def targets() -> tuple[Target, ...]:
    """Return all targets, each for both lines where a line matters."""
    found = []
    for line, words in _LINES:
        found += [
            Target(f"cold sequential read / boto3, {words}", 0.8, _rate(LARGE, "vault", BOTO, line)),
            Target(
                f"cold small files / rclone mount, {words}", 5, _rate(SMALL, "vault, in tree order", "rclone mount", line)
            ),
            Target(f"cold small files / s3fs, {words}", 5, _rate(SMALL, "vault, in tree order", "s3fs", line)),
            Target(
                f"cold small files / boto3 of the packs, {words}", 0.5, _rate(SMALL, "vault, in tree order", PACKS, line)
            ),
            Target(
                f"cold small files at random with a plan / boto3 of the packs, {words}",
                0.8,
                _rate(SMALL, "vault, at random with a plan", PACKS, line),
            ),
            Target(
                f"commit / rclone copy of a tar, {words}", 0.7, _speed(COMMIT, "vault commit", "rclone copy, one tar", line)
            ),
            Target(
                f"commit of tiny files / rclone copy of them, {words}",
                10,
                _speed(TINY, "vault commit", "rclone copy, files", line),
            ),
        ]
    for column in WARM.columns:
        found.append(
            Target(
                f"warm pass / folder store, {column.heading}",
                0.9,
                _rate(WARM, "vault, S3 store", WARM.reference, column.id),
            )
        )
    found += [
        Target("first file of the large snapshot, s", 1.0, _first_file, at_most=True),
        Target("requests for 1,000,000 tiny files", 999, _million, at_most=True),
        Target("two workers / one", 1.6, _speed(CLUSTER, "2 workers", "1 worker", "time")),
    ]
    return tuple(found)

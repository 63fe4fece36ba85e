"""What data reached: the runs that opened it, what they made, the runs that opened that, and so on.

The first step is by file: who opened what was asked about. From then on it is by version: all that a run made counts as
reached, and so does whoever opened any file of it. So nothing that was reached is left out, as far as mounts saw it, and
something may be named that was not. Threads: as the Audit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vault.ids import Digest
from vault.ops.audit import Audit, Read
from vault.ops.lineage import version_of
from vault.repo.run_index import Source
from vault.repo.run_model import Run
from vault.repo.version_index import Made


@dataclass(frozen=True, slots=True)
class Reached:
    """A run that was reached, by the shortest way."""

    run: Run
    steps: int  # 0: it opened what was asked about; 1: it opened what such a run had made ...
    through: Made | None  # the version that it opened, from steps 1 on
    source: Run | None  # the run that had made that version
    reads: tuple[Read, ...]  # at step 0
    made: tuple[Made, ...]  # what the run made: reached, too


def reached_through(audit: Audit, reads: Iterable[Read]) -> Iterator[Reached]:
    """Yield the runs that data reached, the nearest first, and those that started last first.

    Args:
        audit: answers about runs.
        reads: who opened the data, as `Audit.readers_of` and its like tell.
    """
    first: dict[str, list[Read]] = {}
    for read in reads:
        first.setdefault(read.run.run, []).append(read)
    readers: dict[Digest, list[Source]] = {}
    for source in audit.index.sources():
        readers.setdefault(source.snapshot, []).append(source)
    seen = set(first)
    nearer = [Reached(found[0].run, 0, None, None, tuple(found), made_by(audit, found[0].run)) for found in first.values()]
    while nearer:
        further: list[Reached] = []
        for reached in nearer:
            yield reached
            for made in reached.made:
                for source in readers.get(made.snapshot, ()):
                    run = audit.index.run(source.run) if source.run not in seen and _is_of(audit, source, made) else None
                    if run is not None:
                        seen.add(run.run)
                        further.append(Reached(run, reached.steps + 1, made, reached.run, (), made_by(audit, run)))
        nearer = sorted(further, key=lambda found: (found.run.started, found.run.run), reverse=True)


def made_by(audit: Audit, run: Run) -> tuple[Made, ...]:
    """Return the versions that a run made: those whose commit names it, and those that it told of."""
    found = {made.ref: made for made in audit.versions.made_by(run.run)}
    for output in run.outputs:
        made = audit.versions.version(output.dataset, output.version)
        if made is not None and made.snapshot.hex() == output.snapshot and made.run in (None, run.run):
            found.setdefault(made.ref, made)
    return tuple(sorted(found.values(), key=lambda made: (made.time, made.ref)))


def _is_of(audit: Audit, source: Source, made: Made) -> bool:
    """Whether what was read is what a run made, and not the same bytes that were there before it made them."""
    named = version_of(audit, source.ref)
    return named is None or named.snapshot != made.snapshot or made.time <= named.time

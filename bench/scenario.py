"""What every scenario has at hand: the workspace, the candidates and their turns, the results."""

import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.candidates import Candidate
from bench.execute import Command, Finished, run
from bench.results import Results
from bench.workspace import Workspace

SETTLE_S: Final = (
    2.5  # a file is trusted by its time stamps only when they are a little old; nobody commits faster than that
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is."""

    small_files: int
    large_bytes: int
    entries: int
    scales: tuple[int, ...]
    repeat: int
    random_s: float
    starts: int


QUICK: Final = Sizes(4_000, 512 << 20, 20_000, (100_000,), 1, 1.0, 5)
NORMAL: Final = Sizes(20_000, 2_200_000_000, 300_000, (1_000_000,), 3, 3.0, 11)
FULL: Final = Sizes(20_000, 2_200_000_000, 300_000, (1_000_000, 10_000_000), 5, 3.0, 11)


@dataclass(slots=True)
class Bench:
    """One run of the benchmark."""

    workspace: Workspace
    candidates: Sequence[Candidate]
    sizes: Sizes
    results: Results
    _turns: random.Random = field(default_factory=lambda: random.Random(0))

    def rounds(self, *, commits: bool = False, increments: bool = False, mounts: bool = False) -> Iterator[list[Candidate]]:
        """Yield the candidates that can do this, once a repetition, in another order each time: noise hits all alike."""
        fit = [c for c in self.candidates if c.commits >= commits and c.increments >= increments and c.mounts >= mounts]
        for _ in range(self.sizes.repeat):
            self._turns.shuffle(fit)
            yield list(fit)

    def place(self, area: str, candidate: Candidate) -> str:
        """Return the folder in which a candidate keeps what it stores of one area (a tree and its versions)."""
        owner = getattr(candidate, "shares_image_of", None) or candidate.name
        return self.workspace.folder(area, owner.replace(" ", "-"))

    def run(self, command: Command) -> Finished:
        """Run a command of a candidate."""
        return run(self.workspace, command)

    def say(self, text: str) -> None:
        """Tell the reader where the benchmark is."""
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)

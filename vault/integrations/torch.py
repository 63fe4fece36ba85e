"""PyTorch: a sampler that tells the mount which files come next, so that they are here when a worker opens them.

    sampler = PrefetchingSampler(RandomSampler(dataset), dataset.paths)
    loader = DataLoader(dataset, sampler=sampler, num_workers=8)

Wraps any sampler, and batch samplers too. Indices come out as they go in: the same ones, in the same order. torch is not
imported. Works where the sampler is iterated over: in the main process of a DataLoader, or in its workers, forked or not.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final, Generic, TypeVar

from vault.ops.hints import StrPath, prefetch

AHEAD: Final = 4096
_AT_ONCE: Final = 256  # files that are told in one go

T = TypeVar("T")


class PrefetchingSampler(Generic[T]):
    """A sampler that yields what another one yields, and tells the mount of it `ahead` files before."""

    def __init__(
        self,
        sampler: Iterable[T],
        paths: Sequence[StrPath] | Callable[[Any], StrPath | Iterable[StrPath]],
        *,
        ahead: int = AHEAD,
    ) -> None:
        """Wrap a sampler.

        Args:
            sampler: yields indices, or lists of them (a batch sampler). Its other attributes stay at hand, `set_epoch` too.
            paths: the file of each index: a sequence, or a function that returns one path or several.
            ahead: how many indices are taken from the sampler before they are needed.
        """
        self.sampler = sampler
        self._paths = paths
        self._ahead = max(ahead, 1)

    def __iter__(self) -> Iterator[T]:
        """Yield the indices of one epoch."""
        upcoming = iter(self.sampler)
        waiting: deque[T] = deque()
        step = min(self._ahead, _AT_ONCE)
        while True:
            while len(waiting) <= self._ahead - step:
                more = list(islice(upcoming, step))
                if not more:
                    yield from waiting
                    return
                prefetch(chain.from_iterable(map(self._paths_of, more)))
                waiting.extend(more)
            yield waiting.popleft()

    def __len__(self) -> int:
        """Return how many there are, if the sampler knows."""
        return len(self.sampler)  # type: ignore[arg-type] # as torch's own samplers do: a TypeError tells

    def __getattr__(self, name: str) -> Any:
        if name in ("sampler", "__setstate__"):  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def _paths_of(self, index: Any) -> Iterator[StrPath]:
        """Yield the files of an index, or of all indices of a batch."""
        if isinstance(index, list):  # a batch
            for part in index:
                yield from self._paths_of(part)
            return
        found = self._paths(index) if callable(self._paths) else self._paths[index]
        if isinstance(found, str | bytes | os.PathLike):
            yield found
        else:
            yield from found

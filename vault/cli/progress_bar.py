"""Progress on a terminal: phase, bar, counts, rate and time left. Drawn by rich, loaded only once work takes long.

Threads: `update` is called by one.
"""

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_QUIET_S: Final = 0.4  # what is done by then needs no bar
_EVERY_S: Final = 0.1


class ProgressBar:
    """Draws progress on stderr."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._drawn_s = self._started_s + _QUIET_S - _EVERY_S
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self.files_total = 0
        self.size_bytes_total = 0

    def update(self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0) -> None:
        """Draw how far the work is."""
        now_s = time.monotonic()
        if now_s - self._drawn_s < _EVERY_S:
            return
        self._drawn_s = now_s
        self._begin()
        assert self._progress is not None and self._task is not None
        total = size_bytes_total or self.size_bytes_total
        known_files = files_total or self.files_total
        self._progress.update(
            self._task,
            description=phase,
            completed=size_bytes,
            total=max(total, size_bytes) if total else None,
            files=f"{files:,} of {known_files:,} files" if known_files else f"{files:,} files",
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _begin(self) -> None:
        if self._progress is not None:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[files]}"),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            expand=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=None, files="")

"""Progress on a terminal: phase, bar, counts, rate and time left. Drawn by rich, loaded only once work takes long.

Threads: `update` is called by one; the estimate runs in a thread of its own and sets two numbers.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_QUIET_S: Final = 0.4  # what is done by then needs no bar
_EVERY_S: Final = 0.1


class ProgressBar:
    """Draws progress on stderr."""

    def __init__(self, estimate: Callable[[], tuple[int, int]] | None = None, *, color: bool = True) -> None:
        """Start the clock; see `Output.progress`."""
        self._drawn_s = time.monotonic() + _QUIET_S - _EVERY_S
        self._estimate = estimate
        self._color = color
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._files_total = 0
        self._size_bytes_total = 0

    def update(self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0) -> None:
        """Draw how far the work is."""
        now_s = time.monotonic()
        if now_s - self._drawn_s < _EVERY_S:
            return
        self._drawn_s = now_s
        is_new = self._begin()
        assert self._progress is not None and self._task is not None
        files_total, size_bytes_total = files_total or self._files_total, size_bytes_total or self._size_bytes_total
        self._progress.update(
            self._task,
            description=phase,
            completed=size_bytes,
            total=max(size_bytes_total, size_bytes) if size_bytes_total else None,
            files=f"{files:,} of {max(files_total, files):,} files" if files_total else f"{files:,} files",
        )
        if is_new:
            self._progress.start()

    def close(self) -> None:
        """Take the bar away. The next update draws it again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _begin(self) -> bool:
        """Make a bar if there is none, and tell whether one was made."""
        if self._progress is not None:
            return False
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
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
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True, no_color=not self._color),
            transient=True,
            redirect_stdout=False,  # else rich would print the answer to stderr, where its bar is
            redirect_stderr=False,
            expand=True,
        )
        self._task = self._progress.add_task("", total=None, files="")
        if self._estimate is not None:
            threading.Thread(target=self._learn_totals, args=(self._estimate,), daemon=True).start()
            self._estimate = None
        return True

    def _learn_totals(self, estimate: Callable[[], tuple[int, int]]) -> None:
        self._files_total, self._size_bytes_total = estimate()

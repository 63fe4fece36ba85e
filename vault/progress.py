"""Progress as an argument: counts of known units, and a value that does nothing. Renderers live in cli/output."""

from typing import Protocol


class Progress(Protocol):
    """What long work reports to. Calls come from the thread that started the work, at most some 100 times a second."""

    def update(self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0) -> None:
        """Say how far the work is; a total of 0 is not known yet."""
        ...


class Silent:
    """A Progress that says nothing."""

    def update(self, *, phase: str, files: int, size_bytes: int, files_total: int = 0, size_bytes_total: int = 0) -> None:
        """Do nothing."""


SILENT = Silent()

"""Packs of 250 KB, so that a small commit or copy has several of them, as a large one has.

Threads: it holds for all of the process.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from vault.repo import packer


@contextmanager
def small_packs() -> Iterator[None]:
    """Publish a pack once it is 250 KB long."""
    before = packer.StagedPack.__init__.__kwdefaults__
    packer.StagedPack.__init__.__kwdefaults__ = {"length_target": 250_000}
    try:
        yield
    finally:
        packer.StagedPack.__init__.__kwdefaults__ = before

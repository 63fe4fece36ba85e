"""Packs of 250 KB, so that a small commit or copy has several of them, as a large one has.

Threads: it holds for all of the process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vault.repo import pack_uploads, packer

LENGTH: Final = 250_000


@contextmanager
def small_packs() -> Iterator[None]:
    """Publish or upload a pack once it is 250 KB long."""
    makers = (packer.StagedPack.__init__, pack_uploads.PackUploads.__init__)
    before = [maker.__kwdefaults__ for maker in makers]
    for maker, defaults in zip(makers, before, strict=True):
        maker.__kwdefaults__ = {**(defaults or {}), "length_target": LENGTH}
    try:
        yield
    finally:
        for maker, defaults in zip(makers, before, strict=True):
            maker.__kwdefaults__ = defaults

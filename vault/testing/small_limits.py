"""Limits that are small enough for examples of a few files to go past them, in this process, for the time of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vault.format import tree_check, tree_encoder
from vault.ops import freeze


@contextmanager
def small_limits() -> Iterator[None]:
    """Store files from 64 KiB on as large ones, and page directories from seven names on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freeze, "PACKED_SIZE_MAX", 64 << 10)
        for module in (tree_encoder, tree_check):
            patch.setattr(module, "SINGLE_PAGE_ENTRIES_MAX", 6)
        patch.setattr(tree_encoder, "PAGE_ENTRIES_MIN", 3)
        patch.setattr(tree_encoder, "PAGE_ENTRIES_MAX", 6)
        yield

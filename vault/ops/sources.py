"""From the name of a source to the source: a folder or file of this machine, or a URL."""

import os
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

from vault.errors import UsageError
from vault.ops.source import Source, Walk
from vault.progress import SILENT, Progress

_URL: Final = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHAINED: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*(://[^:]*)?::")  # as in zip://images::s3://bucket/images.zip


def is_url(source: bytes) -> bool:
    """Tell whether a source is named by a URL; else it is a path."""
    return _URL.match(source) is not None or _CHAINED.match(source) is not None


def open_source(
    source: bytes,
    *,
    exclude: Sequence[bytes] = (),
    skip_special: bool = False,
    forbidden: Sequence[str] = (),
    store_url: str = "",
    as_it_is: bool = False,
    progress: Progress = SILENT,
) -> Source:
    """Return what a path or URL names. Arguments as those of Walk and UrlSource; a URL is listed when it is iterated over.

    Raises:
        SourceUnreadable: there is nothing.
        UsageError: the URL makes no sense, or needs a package that is not installed.
    """
    if is_url(source) and not os.path.lexists(source):
        found = _URL.match(source)
        if found is None or found[1].lower() != b"file" or _CHAINED.match(source):
            from vault.ops.url_source import UrlSource

            return UrlSource(source, exclude=exclude, skip_special=skip_special, store_url=store_url, progress=progress)
        source = _file_path(source)
    return Walk(source, exclude=exclude, skip_special=skip_special, forbidden=forbidden, as_it_is=as_it_is)


def _file_path(url: bytes) -> bytes:
    """Return the path that a file URL names (RFC 8089): it has more to tell than fsspec would."""
    parts = urlsplit(os.fsdecode(url))
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise UsageError(f"{os.fsdecode(url)} names no folder of this machine: write file:///folder")
    return os.fsencode(unquote(parts.path, errors="surrogateescape"))

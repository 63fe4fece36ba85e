"""From the name of a store to the store: `open_store`.

A store class is named as "module:Class" and imported on use, so that a folder store costs no HTTP library. Opening asks
nothing of the store: whether it holds a repository is seen by whoever reads `vault.json`.
"""

import importlib
import os
import re
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import unquote, urlsplit

from vault.errors import UsageError
from vault.stores.base import Store

_BUNDLE: Final = ".vault"  # what a zip is called that `vault bundle` makes
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How stores whose names start with `<scheme>://` are opened."""

    target: str  # "module:Class"; the class takes the text of the URL
    install: str  # what to install if an import fails; empty if the base install has it all


SCHEMES: Final[dict[str, Scheme]] = {
    "file": Scheme("vault.stores.local:LocalStore", ""),
    "s3": Scheme("vault.stores.s3.store:S3Store", "pip install 'vaultfs[s3]'"),
    "zip": Scheme("vault.stores.zipfile:ZipStore", ""),
}


def open_store(url: str) -> Store:
    """Return the store that a path or URL names. `~` is expanded; nothing is created.

    Raises:
        UsageError: the text names no store, or needs a package that is not installed.
    """
    if not url:
        raise UsageError("no store is named: give --store or set VAULTFS_STORE")
    match = _SCHEME.match(url)
    if match is None:
        path = os.path.expanduser(url)
        is_bundle = path.endswith(_BUNDLE) and not os.path.isdir(path)
        return _load(SCHEMES["zip" if is_bundle else "file"], path)
    name = match[1].lower()
    scheme = SCHEMES.get(name)
    if scheme is None:
        known = ", ".join(f"{known}://" for known in sorted(SCHEMES))
        raise UsageError(f"this vault has no {name}:// stores: give the path of a folder, or one of {known}")
    return _load(scheme, _file_path(url) if name == "file" else url)


def _load(scheme: Scheme, place: str) -> Store:
    module, _, class_name = scheme.target.partition(":")
    try:
        store_class = getattr(importlib.import_module(module), class_name)
    except ModuleNotFoundError as error:
        if not scheme.install:
            raise
        raise UsageError(f"{place} needs {error.name}, which is not installed: {scheme.install}") from error
    return cast(Store, store_class(place))


def _file_path(url: str) -> str:
    """Return the path that a file URL names (RFC 8089)."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path.startswith("/"):
        raise UsageError(f"{url} names no folder of this machine: write file:///folder")
    return unquote(parts.path, errors="surrogateescape")

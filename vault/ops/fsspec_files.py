"""Whatever fsspec can read as a source: https://, gs://, sftp://, memory://, zip:// and chains of them.

Options of a file system come from fsspec's own configuration (FSSPEC_... variables, ~/.config/fsspec). Most of them do not
say with the bytes which state of a file they are of: so a file is asked about before and after it is read, and is what it
was if all that both answers say of its state is the same. Threads: safe, as far as fsspec's file system is.
"""

import importlib
import re
import stat
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote, unquote

from vault.errors import SourceChanged, SourceUnreadable, UsageError
from vault.ops.url_files import NEVER, Listed, Seen, asked_again

_READERS: Final = 32
_LISTINGS_AT_ONCE: Final = 8
# What file systems call that which changes with a file's content: what no other content has, and what one may have that was
# written within a tick of the service's clock (many a web server makes ETags of times).
_OF_CONTENT: Final = "generation version_id VersionId md5Hash content_md5 Content-MD5 Digest CRC crc32c checksum".split()
_STATE: Final = (
    *_OF_CONTENT,
    *"ETag etag e_tag LastModified Last-Modified last_modified mtime modified updated created date_time".split(),
)
_TIMES: Final = ("LastModified", "Last-Modified", "last_modified", "mtime", "modified", "updated", "created")
_WITHOUT_RANGES: Final = frozenset(
    {"zip", "tar", "libarchive", "git", "github", "ftp", "blockcache", "filecache", "simplecache"}
)
_WEB: Final = frozenset({"http", "https"})
_SEPARATOR: Final = "\n"


class FsspecFiles:
    """Files below a URL."""

    readers = _READERS

    def __init__(self, url: str) -> None:
        """Name a URL.

        Raises:
            UsageError: fsspec, or what it needs for this URL, is not installed; or the URL makes no sense.
            SourceUnreadable: what the URL leads through (an archive) is not there.
        """
        try:
            core = importlib.import_module("fsspec.core")
        except ModuleNotFoundError as error:
            raise UsageError(
                f"{_shown(url)} needs {error.name}, which is not installed: pip install 'vaultfs[fsspec]'"
            ) from error
        try:
            self._files, self._root = core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"{_shown(url)}: {error}") from error
        except Exception as error:
            raise SourceUnreadable(_shown(url), str(error) or repr(error)) from error
        self.url = _shown(url)
        protocols = self._files.protocol if isinstance(self._files.protocol, tuple | list) else (self._files.protocol,)
        # A web server answers for a folder with a page of links, which looks like a file.
        self._is_web = bool(_WEB.intersection(protocols))
        self._is_page = self._is_web and url.endswith("/")
        self._has_ranges = not _WITHOUT_RANGES.intersection(protocols)
        self.is_single = False

    def list(self) -> Iterator[Listed]:
        """Yield the files, folder by folder. See UrlFiles."""
        self._files.invalidate_cache()
        try:
            root = self._ask(self.url, lambda: self._files.info(self._root))
        except SourceChanged as error:
            raise SourceUnreadable(self.url, "there is nothing of this name") from error
        if root.get("type") == "file" and not self._is_page:
            name = self._root.rstrip("/").rpartition("/")[2]
            self.is_single = True
            self.url = self.url.rpartition("/")[0]
            yield _listed(name, root)
            return
        with ThreadPoolExecutor(_LISTINGS_AT_ONCE, "vault-list") as pool:
            waiting: deque[Future[Sequence[Any]]] = deque([pool.submit(self._folder, self._root)])
            try:
                while waiting:
                    for found in waiting.popleft().result():
                        path = self._below(found["name"])
                        if not path:
                            continue
                        if found.get("type") == "directory":
                            yield Listed(path.rstrip("/") + "/", 0, "", 0)
                            waiting.append(pool.submit(self._folder, found["name"]))
                        else:
                            yield _listed(path, found)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def read(self, path: str, seen: Seen, offset: int, length: int) -> bytes:
        """Return a range of a file. See UrlFiles."""
        end = min(offset + length, seen.st_size)
        if offset >= end:
            return b""
        data = self._ask(f"{self.url}/{path}", lambda: self._files.cat_file(self._name(path), start=offset, end=end))
        if len(data) != end - offset:
            raise SourceChanged(f"{self.url}/{path}")
        return bytes(data)

    def check(self, path: str, seen: Seen) -> None:
        """Ask for the state of a file once more. See UrlFiles."""
        name = self._name(path)
        self._files.invalidate_cache()
        now = self._ask(f"{self.url}/{path}", lambda: self._files.info(name))
        if int(now.get("size") or 0) != seen.st_size or not _same_state(seen.state, _state_of(now)):
            raise SourceChanged(f"{self.url}/{path}")

    def copy(self, path: str, seen: Seen, target: str) -> bool:
        """Copy a member of an archive, in which any step back begins anew, and what a web server gives as a whole only."""
        name, where = self._name(path), f"{self.url}/{path}"
        if self._has_ranges and not (self._is_web and not self._ask(where, lambda: self._files.info(name)).get("partial")):
            return False
        self._ask(where, lambda: self._files.get_file(name, target))
        return True

    def _folder(self, name: str) -> Sequence[Any]:
        found = self._ask(name, lambda: self._files.ls(name, detail=True))
        # A listing of links (https://) says nothing of sizes; and some name the folder itself among what it holds.
        return [
            self._ask(entry["name"], lambda entry=entry: {**entry, **self._files.info(entry["name"])})
            if entry.get("type") != "directory" and entry.get("size") is None
            else entry
            for entry in found
            if entry["name"].rstrip("/") != name.rstrip("/")
        ]

    def _ask(self, where: str, call: Any) -> Any:
        return asked_again(call, where, lambda error: isinstance(error, PermissionError | NotImplementedError | ValueError))

    def _below(self, name: str) -> str:
        root = self._root.rstrip("/")
        if not root:
            return name.lstrip("/")
        if self._is_page:
            name = unquote(name, errors="surrogateescape")
        return name[len(root) + 1 :] if name.startswith(f"{root}/") else ""

    def _name(self, path: str) -> str:
        if self.is_single:
            return str(self._root)
        root = self._root.rstrip("/")
        return f"{root}/{quote(path) if self._is_page else path}" if root else path


def _listed(path: str, found: Mapping[str, Any]) -> Listed:
    mode = found.get("mode")
    if not isinstance(mode, int):
        mode = int(found.get("external_attr") or 0) >> 16  # of an archive's entry
    size = found.get("size")
    if size is None:
        raise SourceUnreadable(path, "its size is not known")
    state = _state_of(found)
    of_content = any(found.get(name) is not None for name in _OF_CONTENT)
    changed_ns = 0 if of_content else _changed_ns(found) if state else NEVER
    return Listed(path, int(size), state, changed_ns, bool(mode & stat.S_IXUSR))


def _state_of(found: Mapping[str, Any]) -> str:
    known = ((name, found[name]) for name in _STATE if found.get(name) is not None)
    return _SEPARATOR.join(f"{name}={_text(value)}" for name, value in known)


def _text(value: object) -> str:
    """Return a text that is the same for a time that comes as an object once, and as a number another time."""
    if isinstance(value, datetime):
        value = value.timestamp()
    return f"{value:.6f}" if isinstance(value, float) else str(value).replace(_SEPARATOR, " ")


def _same_state(before: str, after: str) -> bool:
    """Tell whether all that both say of a file's state is the same."""
    known = dict(part.split("=", 1) for part in before.split(_SEPARATOR) if part)
    now = dict(part.split("=", 1) for part in after.split(_SEPARATOR) if part)
    return all(now[name] == value for name, value in known.items() if name in now)


def _changed_ns(found: Mapping[str, Any]) -> int:
    for name in _TIMES:
        value = found.get(name)
        if name == "Last-Modified" and isinstance(value, str):
            with suppress(ValueError):
                value = parsedate_to_datetime(value)
        if isinstance(value, datetime):
            return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1_000_000_000)
        if isinstance(value, int | float) and value > 0:
            return int(value * 1_000_000_000)
    return NEVER


def _shown(url: str) -> str:
    """Return a URL without the users and passwords that it may have, nor what may be signed in a query."""
    return re.sub(r"\?[^:]*", "", re.sub(r"://[^/@]*@", "://", url)).rstrip("/")

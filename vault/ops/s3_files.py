"""A bucket, or a prefix in one, as a source: flat listings, and reads that fail if the object is another one by then.

A listing of a thousand objects is one request, whatever folders they are in. Each read names the ETag that the listing
had, so that bytes of two states are never mixed, and nothing need be asked afterwards. Requests are repeated as those of a
store are (vault/stores/s3/requests.py). Threads: safe.
"""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from vault.clock import monotonic_s
from vault.errors import KeyExists, KeyNotFound, SourceChanged, SourceUnreadable, StoreError, UsageError
from vault.ops.url_files import Listed, Seen
from vault.stores.s3.answers import CutOff, Question
from vault.stores.s3.client import CONNECTIONS, Access
from vault.stores.s3.place import Place
from vault.stores.s3.requests import DEADLINE_S, Requests

_URL = re.compile(r"s3a?://([^/?#:@]+)(?:/(.*))?\Z", re.IGNORECASE | re.DOTALL)
_PAGE: Final = 1000
_PIECE: Final = 1 << 20


class S3Files:
    """Objects below s3://BUCKET/PREFIX, or one of them."""

    readers = CONNECTIONS

    def __init__(self, url: str) -> None:
        """Name a bucket and prefix. Raises UsageError."""
        match = _URL.match(url)
        if match is None:
            raise UsageError("a source in S3 is named s3://BUCKET/PREFIX; hosts and keys belong to boto3's settings")
        self._prefix = (match[2] or "").rstrip("/")
        self._place = Place(match[1], "")
        self._requests = Requests(self._place, Access(), DEADLINE_S)
        self.url = f"{self._place.url}/{self._prefix}".rstrip("/")
        self.is_single = False

    def list(self) -> Iterator[Listed]:
        """Yield the objects in the order of their keys. See UrlFiles."""
        below = f"{self._prefix}/" if self._prefix else ""
        is_empty = True
        for found in self._objects(below):
            is_empty = False
            if found["Key"] != below:  # the mark of the folder itself
                yield _listed(found, found["Key"][len(below) :])
        if is_empty:
            yield self._single()

    def read(self, path: str, seen: Seen, offset: int, length: int) -> bytes:
        """Return a range of an object. See UrlFiles."""
        key = self._key(path)
        end = min(offset + length, seen.st_size)
        if offset >= end:
            if not seen.st_size:
                self._size_now(path, key, seen)
            return b""
        until_s = monotonic_s() + DEADLINE_S

        def read(client: Any) -> bytes:
            answer = client.get_object(
                Bucket=self._place.bucket, Key=key, IfMatch=seen.state, Range=f"bytes={offset}-{end - 1}"
            )
            pieces = []
            left = end - offset
            while left:
                piece = answer["Body"].read(min(left, _PIECE))
                if not piece or monotonic_s() > until_s:
                    raise CutOff
                pieces.append(piece)
                left -= len(piece)
            answer["Body"].close()
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

        data: bytes = self._ask(path, "GetObject", key, read)
        return data

    def check(self, path: str, seen: Seen) -> None:
        """Do nothing: every read has named the state that was seen."""

    def copy(self, path: str, seen: Seen, target: str) -> bool:
        """Do nothing: any range is read as it is needed."""
        return False

    def _size_now(self, path: str, key: str, seen: Seen) -> None:
        """See that an empty object is what was seen: it has no range to ask for."""
        self._ask(
            path,
            "HeadObject",
            key,
            lambda client: client.head_object(Bucket=self._place.bucket, Key=key, IfMatch=seen.state),
        )

    def _ask(self, path: str, operation: str, key: str, call: Any) -> Any:
        where = f"{self.url}/{path}"
        try:
            return self._requests.ask(Question(operation, key), call)
        except (KeyExists, KeyNotFound) as error:  # 412, of which a store's key would be the cause, or 404
            raise SourceChanged(where) from error
        except StoreError as error:
            raise SourceUnreadable(where, str(error)) from error

    def _objects(self, prefix: str) -> Iterator[Any]:
        after = ""
        while True:
            try:
                page = self._requests.ask(Question("ListObjectsV2"), partial(self._page, prefix, after))
            except StoreError as error:
                raise SourceUnreadable(self.url, str(error)) from error
            found = page.get("Contents", ())
            yield from found
            if not page.get("IsTruncated") or not found:
                return
            after = found[-1]["Key"]

    def _page(self, prefix: str, after: str, client: Any) -> Any:
        more = {"StartAfter": after} if after else {}
        return client.list_objects_v2(Bucket=self._place.bucket, Prefix=prefix, MaxKeys=_PAGE, **more)

    def _single(self) -> Listed:
        """Return the object that the URL names itself. Raises SourceUnreadable: there is none."""
        if self._prefix:
            for found in self._objects(self._prefix):
                if found["Key"] == self._prefix:
                    self.is_single = True
                    self._prefix, _, name = self._prefix.rpartition("/")
                    self.url = f"{self._place.url}/{self._prefix}".rstrip("/")
                    return _listed(found, name)
                break  # it would be the first
        raise SourceUnreadable(self.url, "there is no object of this name, nor below it")

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path


def _listed(found: Any, path: str) -> Listed:
    return Listed(path, int(found["Size"]), str(found["ETag"]), 0)

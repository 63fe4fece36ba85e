"""Uploads in parts: side by side, gone on with where an earlier one was cut off, and visible all at once at their end.

A key that is this large names its content, or is derived from what its name says. So it does no harm that some services
(Ceph 16) do not honour create-once at the end of such an upload, and let the last of two writers replace the same bytes:
the key is looked for before the first part and again before the last step, which leaves a moment.

What was cut off stays with the service until somebody goes on with it, or a rule of the bucket removes it.
Threads: safe. Processes: each looks for itself what was left behind.
"""

import base64
import logging
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from vault.errors import KeyExists, KeyNotFound, SourceChanged, StoreError, StoreUnavailable
from vault.stores.base import ReadRange
from vault.stores.s3.answers import Question
from vault.stores.s3.body import body_of
from vault.stores.s3.parts import Part, cut, md5, part_size
from vault.stores.s3.requests import SLOW_LINE_BYTES_S, Requests

logger = logging.getLogger(__name__)

AT_ONCE: Final = 8
UNFINISHED_MAX: Final = 10_000  # uploads of others that are looked through
_MEMORY_SIZE: Final = 512 << 20  # of parts on their way
_PARTS_PAGE: Final = 1000
_WRITER: Final = "vault-writer"


@dataclass(frozen=True, slots=True)
class Upload:
    """One that was begun."""

    key: str
    upload_id: str
    begun_s: float
    writer: str = ""  # empty if another process has begun it


def writer_of(writer: str) -> dict[str, str]:
    """Return the metadata by which an object is known again as the work of one call."""
    return {_WRITER: writer}


class Uploads:
    """The uploads of one store."""

    def __init__(self, requests: Requests, head: Callable[[str], Mapping[str, Any]]) -> None:
        """Make the uploads of a store, whose `head` says what is known of a key, or raises KeyNotFound."""
        self._requests = requests
        self._head = head
        self._place = requests.place
        self._left: tuple[int, dict[str, list[Upload]]] | None = None  # (process, what was cut off, by key)

    def send(self, key: str, size: int, read: ReadRange) -> None:
        """Create a key in parts.

        Raises:
            KeyExists: it is there. Known before the first byte is sent, or at the end.
            StoreError: as the service says; what was sent stays for the next try.
        """
        if self._exists(key):
            raise KeyExists(key)
        upload, there = self._begin(key, size)
        try:
            etags = self._send_parts(upload, there, size, read)
        except StoreError:
            self._keep(upload)
            raise
        except BaseException:
            self._abort(upload)  # the source is not what it was: nobody will go on with this
            raise
        if self._exists(key):
            self._abort(upload)
            raise KeyExists(key)
        self._finish(upload, etags)

    def is_by(self, key: str, writer: str) -> bool:
        """Say whether a key is there and was made by the call that called itself so."""
        metadata = self._metadata(key)
        return metadata is not None and metadata.get(_WRITER) == writer

    def unfinished(self) -> Iterator[Upload]:
        """Yield the uploads of this store that are neither finished nor given up, at most UNFINISHED_MAX of them."""
        return islice(self._list(), UNFINISHED_MAX)

    # The steps of an upload.

    def _begin(self, key: str, size: int) -> tuple[Upload, dict[int, tuple[str, int]]]:
        """Return an upload to go on with and its parts, by number: (ETag, size); or a new one."""
        for upload in self._taken(key):
            try:
                there = dict(self._parts(upload))
            except StoreUnavailable:
                raise
            except StoreError:
                continue  # finished or given up by somebody else, or we may not see it
            lengths = {part.number: part.length for part in cut(size)}
            if there and all(lengths.get(number) == length for number, (_, length) in there.items()):
                return upload, there
        writer = secrets.token_hex(8)
        question = Question("CreateMultipartUpload", key)
        answer = self._requests.ask(
            question,
            lambda client: client.create_multipart_upload(**self._at(key), Metadata=writer_of(writer)),
        )
        return Upload(key, str(answer["UploadId"]), 0.0, writer), {}

    def _send_parts(
        self, upload: Upload, there: Mapping[int, tuple[str, int]], size: int, read: ReadRange
    ) -> list[tuple[int, str]]:
        """Send what is not there, and return the ETag of each part by number."""
        width = max(2, min(AT_ONCE, _MEMORY_SIZE // part_size(size)))
        etags: list[tuple[int, str]] = []
        on_their_way: deque[Future[tuple[int, str]]] = deque()
        with ThreadPoolExecutor(width, "vault-s3-upload") as pool:
            try:
                for part in cut(size):
                    if len(on_their_way) >= 2 * width:
                        etags.append(on_their_way.popleft().result())
                    on_their_way.append(pool.submit(self._send_part, upload, part, there.get(part.number), read))
                etags += [future.result() for future in on_their_way]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return etags

    def _send_part(self, upload: Upload, part: Part, there: tuple[str, int] | None, read: ReadRange) -> tuple[int, str]:
        data = read(part.offset, part.length)
        if memoryview(data).nbytes != part.length:
            raise SourceChanged(upload.key)
        checksum = md5(data)
        if there is not None and there[0].strip('"') == checksum.hex():
            return part.number, there[0]
        encoded = base64.b64encode(checksum).decode()
        answer = self._requests.ask(
            Question("UploadPart", upload.key),
            lambda client: client.upload_part(
                **self._at(upload.key),
                UploadId=upload.upload_id,
                PartNumber=part.number,
                Body=body_of(data),
                ContentMD5=encoded,
            ),
            more_s=part.length / SLOW_LINE_BYTES_S,
        )
        return part.number, str(answer["ETag"])

    def _finish(self, upload: Upload, etags: list[tuple[int, str]]) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in etags]
        lost: list[bool] = []
        try:
            self._requests.ask(
                Question("CompleteMultipartUpload", upload.key),
                lambda client: client.complete_multipart_upload(
                    **self._at(upload.key), UploadId=upload.upload_id, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
                ),
                lambda: lost.append(True),
            )
        except KeyExists:
            if not (lost and self.is_by(upload.key, upload.writer)):
                self._abort(upload)
                raise
        except StoreError:
            # It is no longer there: an earlier try has finished it and its answer was lost, or somebody else has.
            if self._metadata(upload.key) is None:
                self._keep(upload)
                raise
            if not self.is_by(upload.key, upload.writer):
                raise KeyExists(upload.key) from None

    def _abort(self, upload: Upload) -> None:
        """Give an upload up that we have begun. Best effort: a rule of the bucket removes what stays."""
        if not upload.writer:
            return
        try:
            self._requests.ask(
                Question("AbortMultipartUpload", upload.key),
                lambda client: client.abort_multipart_upload(**self._at(upload.key), UploadId=upload.upload_id),
            )
        except StoreError as error:
            logger.debug("an upload of %s stays unfinished: %s", upload.key, error)

    # What is there already.

    def _exists(self, key: str) -> bool:
        return self._metadata(key) is not None

    def _metadata(self, key: str) -> Mapping[str, str] | None:
        try:
            metadata: Mapping[str, str] = self._head(key).get("Metadata", {})
        except KeyNotFound:
            return None
        return metadata

    def _keep(self, upload: Upload) -> None:
        """Remember an upload that was cut off, for the next try of this process."""
        self._left_behind().setdefault(upload.key, []).append(upload)

    def _taken(self, key: str) -> list[Upload]:
        """Return the uploads of a key that were cut off; each is handed out once."""
        return self._left_behind().pop(key, [])

    def _left_behind(self) -> dict[str, list[Upload]]:
        if self._left is None or self._left[0] != os.getpid():
            found: dict[str, list[Upload]] = {}
            try:
                for upload in self.unfinished():
                    found.setdefault(upload.key, []).append(upload)
            except StoreUnavailable:
                raise
            except StoreError as error:
                logger.debug("unfinished uploads cannot be listed, so none is gone on with: %s", error)
            self._left = (os.getpid(), found)
        return self._left[1]

    def _list(self) -> Iterator[Upload]:
        asked: dict[str, Any] = {"Bucket": self._place.bucket, "Prefix": self._place.prefix}
        while True:
            page = self._ask("ListMultipartUploads", "", lambda client: client.list_multipart_uploads(**asked))
            for found in page.get("Uploads", ()):
                key = str(found["Key"])[len(self._place.prefix) :]
                yield Upload(key, str(found["UploadId"]), found["Initiated"].timestamp())
            if not page.get("IsTruncated"):
                return
            asked.update({"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]})

    def _parts(self, upload: Upload) -> Iterator[tuple[int, tuple[str, int]]]:
        asked: dict[str, Any] = {**self._at(upload.key), "UploadId": upload.upload_id, "MaxParts": _PARTS_PAGE}
        while True:
            page = self._ask("ListParts", upload.key, lambda client: client.list_parts(**asked))
            for found in page.get("Parts", ()):
                asked["PartNumberMarker"] = int(found["PartNumber"])
                yield int(found["PartNumber"]), (str(found["ETag"]), int(found["Size"]))
            if not page.get("IsTruncated"):
                return

    def _ask(self, operation: str, key: str, call: Callable[[Any], Mapping[str, Any]]) -> Mapping[str, Any]:
        return self._requests.ask(Question(operation, key), call)

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._place.bucket, "Key": self._place.name(key)}

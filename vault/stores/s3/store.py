"""A store in an S3 bucket: an object for each key, created once by If-None-Match, read in ranges.

Few and large requests: a pack is one PUT, what is larger goes in parts side by side. What each promise of a store rests on
here is said in docs/format/stores.md, section 3. Nothing is cached: that is for wrappers.

Threads: safe, and safe after a fork; a Stage belongs to one thread.
"""

import base64
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from vault.clock import monotonic_s, now_ns
from vault.errors import KeyExists, KeyNotFound, StorePermission, StoreRefused, StoreUnavailable, UsageError
from vault.stores.base import Buffer, ReadRange, check_key, check_prefix, check_range, is_key
from vault.stores.s3.answers import CutOff, Question, clock_difference_s, is_behind_the_end
from vault.stores.s3.body import body_of
from vault.stores.s3.client import Access
from vault.stores.s3.parts import count_parts, expected_etag, md5
from vault.stores.s3.place import Place, parse_place
from vault.stores.s3.requests import DEADLINE_S, SLOW_LINE_BYTES_S, Requests
from vault.stores.s3.spool import Spool
from vault.stores.s3.uploads import Uploads, writer_of

SINGLE_PUT_MAX: Final = 160 << 20  # a pack and its slack: one request, and create-once wherever PUT honours it
UPLOAD_WHOLE_MAX: Final = 72 << 20  # packs that are uploaded side by side; larger files go in parts side by side
_PAGE: Final = 1000
_PIECE_MIN: Final = 64 << 10
_PIECE_LARGEST: Final = 4 << 20
_PIECE_REUSED: Final = 1 << 20  # into memory of the caller's: what libraries allocate for it is used again, too
_PIECE_TIME_S: Final = 0.5  # the clock is looked at about this often while an answer comes
_REQUESTS: Final = 16


class S3Store:
    """Bytes by key in a bucket."""

    def __init__(self, url: str, *, access: Access | None = None, deadline_s: float = DEADLINE_S) -> None:
        """Name a store; nothing is asked before the first use.

        Args:
            url: s3://BUCKET/PREFIX.
            access: what overrides boto3's settings.
            deadline_s: how long a call tries again before it raises StoreUnavailable. An upload in parts has that long
                for each of them.
        """
        self._place = parse_place(url)
        self._requests = Requests(self._place, access or Access(), deadline_s)
        self._deadline_s = deadline_s
        self._uploads = Uploads(self._requests, self._head)

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    @property
    def url(self) -> str:
        """The bucket and the prefix."""
        return self._place.url

    @property
    def requests_max(self) -> int:
        """How many requests at one time make it faster. See RemoteFiles."""
        return _REQUESTS

    @property
    def request_counts(self) -> Counter[str]:
        """How many requests this process has sent, by their names at S3; what was repeated counts again."""
        return self._requests.counts.copy()

    # Reading.

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a key. See ByteReader."""
        check_range(offset, length)
        check_key(key)
        if length == 0:
            self.size(key)
            return b""
        try:
            return self._requests.ask(Question("GetObject", key), self._reading(key, offset, length).go_on)
        except StorePermission as error:
            raise self._missing_or_denied(key, error) from error

    def get_into(self, key: str, offset: int, into: memoryview) -> tuple[int, int]:
        """Read a range of a key into memory, and tell its size. See ReadsInto."""
        check_range(offset, len(into))
        check_key(key)
        if not into:
            return 0, self.size(key)
        reading = self._reading(key, offset, len(into), into)
        try:
            self._requests.ask(Question("GetObject", key), reading.go_on)
        except StorePermission as error:
            raise self._missing_or_denied(key, error) from error
        return reading.length, self.size(key) if reading.whole_size is None else reading.whole_size

    def size(self, key: str) -> int:
        """Return the number of bytes of a key. See ByteReader."""
        check_key(key)
        return int(self._head(key)["ContentLength"])

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix in byte order. Names that can be no key are passed over."""
        return self._walk(self._place.name(check_prefix(prefix)))

    # Writing.

    def put(self, key: str, data: Buffer) -> None:
        """Create a key. See Store.

        A StoreUnavailable says that no answer came, not that nothing was done: to know, ask for the key.
        """
        check_key(key)
        view = memoryview(data).cast("B")
        if len(view) > SINGLE_PUT_MAX:
            self._uploads.send(key, len(view), lambda offset, length: bytes(view[offset : offset + length]))
        else:
            self._put(key, data)

    def stage(self) -> "S3Stage":
        """Start a stored file. Its bytes stay on this machine until its key is known."""
        return S3Stage(self)

    def upload(self, key: str, size: int, read: ReadRange) -> None:
        """Create a key from where its bytes lie. See vault.stores.base.Uploads."""
        check_key(key)
        if size > UPLOAD_WHOLE_MAX:
            self._uploads.send(key, size, read)
            return
        try:
            self._head(key)
        except KeyNotFound:
            self._put(key, read(0, size) if size else b"")
        else:
            raise KeyExists(key)

    def holds(self, key: str, size: int, read: ReadRange) -> bool | None:
        """Tell by checksums whether a key has these bytes. See vault.stores.base.Uploads."""
        check_key(key)
        found = self._head(key)
        if found["ContentLength"] != size:
            return False
        etag = str(found.get("ETag", "")).strip('"')
        digest, _, parts = etag.partition("-")
        is_plain = found.get("ServerSideEncryption", "AES256") == "AES256" and not found.get("SSECustomerAlgorithm")
        if not is_plain or len(digest) != 32:
            return None  # its ETag is no MD5
        if parts and parts != str(count_parts(size)):
            return None  # somebody else's parts
        return etag == expected_etag(size, bool(parts), read)

    def publish(self, key: str, spool: Spool) -> None:
        """Create a key from what a stage has kept."""
        check_key(key)
        if spool.size > SINGLE_PUT_MAX:
            self._uploads.send(key, spool.size, spool.read)
        else:
            self._put(key, spool.read(0, spool.size))

    def delete(self, key: str) -> None:
        """Remove a key. See Deleter."""
        check_key(key)
        self._requests.ask(
            Question("DeleteObject", key),
            lambda client: client.delete_object(Bucket=self._place.bucket, Key=self._place.name(key)),
        )

    # For those who look after a store.

    def count_unfinished(self, max_age_s: float) -> int:
        """Return how many uploads in parts were begun longer ago than that, and neither finished nor given up."""
        begun_before_s = now_ns() / 1e9 - max_age_s
        return sum(found.begun_s < begun_before_s for found in self._uploads.unfinished())

    def clock_ahead_s(self) -> float | None:
        """Return by how much the clock of this machine is ahead of the service's; None if it does not tell."""
        answer = self._list_page(self._place.prefix, "", 1)
        return clock_difference_s(answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""))

    # Parts.

    def _put(self, key: str, data: Buffer) -> None:
        writer = secrets.token_hex(8)
        checksum = base64.b64encode(md5(data)).decode()
        lost: list[bool] = []

        def put(client: Any) -> None:
            client.put_object(
                Bucket=self._place.bucket,
                Key=self._place.name(key),
                Body=body_of(data),
                ContentMD5=checksum,
                IfNoneMatch="*",
                Metadata=writer_of(writer),
            )

        try:
            more_s = memoryview(data).nbytes / SLOW_LINE_BYTES_S
            self._requests.ask(Question("PutObject", key), put, lambda: lost.append(True), more_s=more_s)
        except KeyExists:
            # The answer to an earlier try may have been lost, and it is our own object that is in the way.
            if not (lost and self._uploads.is_by(key, writer)):
                raise

    def _reading(self, key: str, offset: int, length: int | None, into: memoryview | None = None) -> "_Reading":
        return _Reading(self._place, key, offset, length, monotonic_s() + self._deadline_s, into)

    def _head(self, key: str) -> Mapping[str, Any]:
        def head(client: Any) -> Mapping[str, Any]:
            found: Mapping[str, Any] = client.head_object(Bucket=self._place.bucket, Key=self._place.name(key))
            return found

        try:
            return self._requests.ask(Question("HeadObject", key), head)
        except StorePermission as error:
            raise self._missing_or_denied(key, error) from error
        except StoreRefused:
            self._list_page(self._place.name(key), "", 1)  # an answer to HEAD has no body: this one says what is wrong
            raise

    def _missing_or_denied(self, key: str, error: StorePermission) -> StorePermission | KeyNotFound:
        """Return what a refusal to read means: S3 hides from who may not list whether there is such a key.

        So it does from who may list below a prefix alone, though a listing of that one key is then allowed. An answer to
        HEAD has no body, so that wrong credentials look like a missing right: the listing tells that, by what it raises.
        """
        name = self._place.name(key)
        try:
            page = self._list_page(name, "", 1)
        except StorePermission:
            rights = f"{error.needed}; and for s3:ListBucket, without which a missing file looks like a forbidden one"
            return StorePermission(error.where, rights)
        found = [entry["Key"] for entry in page.get("Contents", ())]
        return error if name in found else KeyNotFound(key)

    def _walk(self, prefix: str) -> Iterator[str]:
        last = ""
        while True:
            page = self._list_page(prefix, last, _PAGE)
            names = [str(entry["Key"]) for entry in page.get("Contents", ())]
            for name in names:
                if name <= last:
                    raise StoreUnavailable(self.url, f"it lists {name!r} behind {last!r}: its listings are not in order")
                last = name
                key = name[len(self._place.prefix) :]
                if is_key(key):
                    yield key
            if not page.get("IsTruncated") or not names:
                return

    def _list_page(self, prefix: str, after: str, count: int) -> Mapping[str, Any]:
        more = {"StartAfter": after} if after else {}  # a token would bind us to one client

        def look(client: Any) -> Mapping[str, Any]:
            page: Mapping[str, Any] = client.list_objects_v2(
                Bucket=self._place.bucket, Prefix=prefix, MaxKeys=count, **more
            )
            return page

        return self._requests.ask(Question("ListObjectsV2"), look)


class S3Stage:
    """A stored file in the making, of an S3Store."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._spool: Spool | None = Spool()

    def write(self, data: Buffer) -> None:
        """Append data. See Stage."""
        self._open_spool().write(data)

    def publish(self, key: str) -> None:
        """Upload what was written. See Stage."""
        spool, self._spool = self._open_spool(), None
        try:
            self._store.publish(key, spool)
        finally:
            spool.close()

    def __enter__(self) -> "S3Stage":
        return self

    def __exit__(self, *exc: object) -> None:
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()

    def _open_spool(self) -> Spool:
        if self._spool is None:
            raise UsageError("this stage has been published or discarded")
        return self._spool


class _Reading:
    """A range that is being read: what came before a connection broke is kept."""

    def __init__(
        self, place: Place, key: str, offset: int, length: int | None, until_s: float, into: memoryview | None = None
    ) -> None:
        self._place = place
        self._key = key
        self._begin = self._next = offset
        self._end = None if length is None else offset + length  # drawn in once the size of the object is known
        self._until_s = until_s
        self._into = into
        self._pieces: list[bytes] = []  # unless they go there
        self.whole_size: int | None = None  # of the object, once an answer has told it

    def go_on(self, client: Any) -> bytes:
        """Ask for what is missing, and return all of it. For Requests.ask."""
        if self._end is not None and self._next >= self._end:
            return b"".join(self._pieces)
        wanted = {}
        if self._next or self._end is not None:
            wanted["Range"] = f"bytes={self._next}-{'' if self._end is None else self._end - 1}"
        try:
            answer = client.get_object(Bucket=self._place.bucket, Key=self._place.name(self._key), **wanted)
        except Exception as error:
            if is_behind_the_end(error):
                return b"".join(self._pieces)
            raise
        body = answer["Body"]
        try:
            size = self.whole_size = self._whole_size(answer)
            if self._end is None:  # no mount asks like that, so that none is kept waiting
                self._until_s += size / SLOW_LINE_BYTES_S
            self._end = size if self._end is None else min(size, self._end)
            self._read(body, self._end)
        finally:
            body.close()
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    @property
    def length(self) -> int:
        """How many bytes have come."""
        return self._next - self._begin

    def _read(self, body: Any, end: int) -> None:
        """Read to the end, in pieces that a slow line fills soon enough for us to look at the clock."""
        length = _PIECE_MIN
        largest = _PIECE_LARGEST if self._into is None else _PIECE_REUSED
        seen_s = monotonic_s()
        while self._next < end:
            done = self._read_piece(body, min(length, end - self._next))
            now_s = monotonic_s()
            if not done or now_s > self._until_s:
                raise CutOff
            self._next += done
            length = min(2 * length, largest) if now_s - seen_s < _PIECE_TIME_S else max(length // 2, _PIECE_MIN)
            seen_s = now_s
        body.read(1)  # its end: the connection can be used again

    def _read_piece(self, body: Any, length: int) -> int:
        if self._into is not None:
            return int(body.readinto(self._into[self.length : self.length + length]))
        piece = body.read(length)
        self._pieces.append(piece)
        return len(piece)

    def _whole_size(self, answer: Mapping[str, Any]) -> int:
        """Return the size of the object, having seen that the bytes are those that were asked for."""
        said = answer.get("ContentRange")
        if said is None:
            start, whole = 0, int(answer["ContentLength"])
        else:
            span, _, size = str(said).removeprefix("bytes ").partition("/")
            start, whole = int(span.partition("-")[0]), int(size)
        if start != self._next:
            reason = f"asked for {self._key} from byte {self._next} on, it sent it from {start} on"
            raise StoreUnavailable(self._place.url, reason)
        return whole

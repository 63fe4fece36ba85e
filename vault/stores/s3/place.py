"""Which part of which bucket is a store: s3://BUCKET or s3://BUCKET/PREFIX. Pure."""

import re
from dataclasses import dataclass
from typing import Final

from vault.errors import UsageError
from vault.stores.base import is_key

PREFIX_LENGTH_MAX: Final = 500  # with it a key of ours stays below the 1,024 characters of S3
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")  # old buckets, and those of Ceph, may have more than AWS allows
_URL = re.compile(r"[Ss]3://([^/?#]*)(?:/([^?#]*))?([?#].*)?\Z")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store lies."""

    bucket: str
    prefix: str  # "" or a text that ends in "/"

    @property
    def url(self) -> str:
        """As a user names it."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def name(self, key: str) -> str:
        """Return the name in the bucket of a key, or of a prefix of keys."""
        return self.prefix + key

    def resource(self, key: str = "*") -> str:
        """Return what a policy calls a key."""
        return f"arn:aws:s3:::{self.bucket}/{self.prefix}{key}"


def parse_place(url: str) -> Place:
    """Return what a URL names. Raises UsageError; its text repeats nothing that could be a password."""
    match = _URL.match(url)
    if match is None:
        raise UsageError("a store in S3 is named s3://BUCKET/PREFIX")
    bucket, prefix, more = match[1], (match[2] or "").strip("/"), match[3]
    if more:
        raise UsageError(
            f"s3://{bucket}/{prefix} takes nothing behind '?' or '#': name another service than AWS by AWS_ENDPOINT_URL"
        )
    if not _BUCKET.match(bucket):
        raise UsageError(
            "a store in S3 is named s3://BUCKET/PREFIX, without a host or keys: those belong to boto3's settings"
        )
    if prefix and (len(prefix) > PREFIX_LENGTH_MAX or not is_key(prefix)):
        raise UsageError(f"{prefix!r} cannot be the prefix of a store: use letters, digits and . _ = + @ - between slashes")
    return Place(bucket, f"{prefix}/" if prefix else "")

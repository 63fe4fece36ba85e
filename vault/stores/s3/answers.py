"""What a service's refusal means: from the errors of botocore to ours, and whether to ask again.

Texts of services are not trusted to say what to do next; they are kept where ours has nothing better. Pure, but for the
clock that is compared. Threads: safe.
"""

import re
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, Final
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
    SSOTokenLoadError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)

from vault.clock import now_ns
from vault.errors import KeyExists, KeyNotFound, StoreError, StoreFull, StorePermission, StoreRefused, StoreUnavailable
from vault.stores.s3.place import Place

# What each operation needs the right for. A test with restricted users holds docs/how-to/least-privilege.md to it.
RIGHTS: Final = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListParts": "s3:ListMultipartUploadParts",
}
_OF_BUCKETS: Final = ("ListObjectsV2", "ListMultipartUploads")

_AGAIN: Final = frozenset(
    "InternalError ServiceUnavailable SlowDown Throttling ThrottlingException RequestThrottled TooManyRequests "
    "RequestTimeout RequestTimeoutException OperationAborted ConditionalRequestConflict BadDigest IncompleteBody".split()
)
_AGAIN_STATUSES: Final = frozenset({409, 429, 500, 502, 503, 504})
_STALE: Final = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidAccessKeyId", "InvalidToken"}
)
_ELSEWHERE: Final = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_FULL: Final = frozenset({"QuotaExceeded", "EntityTooLarge", "InsufficientStorage", "XMinioStorageFull"})
_NOT_FOUND: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_NO_KEYS: Final = "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_OLD_KEYS: Final = "the credentials have expired: renew them (as with 'aws sso login'), then run the command again"


class What(Enum):
    """What to do after an error."""

    GIVE_UP = "give up"
    RENEW = "renew"  # read the credentials anew and ask once more
    REPEAT = "repeat"  # nothing was sent, or nothing is known of what was: the same may work later


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, for messages."""

    operation: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an error means."""

    error: StoreError
    what: What = What.GIVE_UP
    was_sent: bool = True  # the service may have done what it was asked
    was_answered: bool = False  # by something that speaks HTTP


class CutOff(Exception):
    """An answer ended before all of its bytes had come."""


def understand(error: Exception, question: Question, place: Place) -> Refusal | None:
    """Return what an error means; None if it is none of a service's or of the way to it."""
    if isinstance(error, ClientError):
        return replace(_answered(error, question, place), was_answered=True)
    if isinstance(error, CutOff | IncompleteReadError | ResponseStreamingError):
        return Refusal(StoreUnavailable(place.url, "an answer was cut off"), What.REPEAT)
    if isinstance(error, SSLError):
        return Refusal(StoreRefused(place.url, _unsafe(error)), was_sent=False)
    if isinstance(error, EndpointConnectionError):
        reason = f"no connection to {_address(error)}: {_innermost(error)}"
        return Refusal(StoreUnavailable(place.url, reason), What.REPEAT, was_sent=False)
    if isinstance(error, ConnectionError | HTTPClientError):
        return Refusal(StoreUnavailable(place.url, _short(error)), What.REPEAT)
    if isinstance(error, NoCredentialsError):
        return Refusal(StoreRefused(place.url, _NO_KEYS), was_sent=False)
    if isinstance(error, TokenRetrievalError | SSOTokenLoadError | UnauthorizedSSOTokenError | CredentialRetrievalError):
        return Refusal(StoreRefused(place.url, f"{_OLD_KEYS} ({_short(error)})"), What.RENEW, was_sent=False)
    if isinstance(error, PartialCredentialsError | ProfileNotFound | BotoCoreError | ValueError):
        return Refusal(StoreRefused(place.url, f"boto3's settings: {_short(error)}"), was_sent=False)
    return None


def code_of(error: ClientError) -> str:
    """Return the service's word for an error; of an answer without a body, its status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """Return the HTTP status of an answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_behind_the_end(error: Exception) -> bool:
    """Say whether a service means that a range begins at the end of an object, or behind it."""
    return isinstance(error, ClientError) and (code_of(error) == "InvalidRange" or status_of(error) == 416)


def _answered(error: ClientError, question: Question, place: Place) -> Refusal:
    code, status = code_of(error), status_of(error)
    said = _short(error.response.get("Error", {}).get("Message") or code or f"HTTP {status}")
    where = f"{place.url}/{question.key}" if question.key else place.url
    if code in _NOT_FOUND and question.key:
        return Refusal(KeyNotFound(question.key))
    if code == "PreconditionFailed" or status == 412:
        return Refusal(KeyExists(question.key))
    if code == "NoSuchBucket" or (status == 404 and not question.key):
        make = f"there is no bucket {place.bucket}: see its name, or make it ('aws s3 mb s3://{place.bucket}')"
        return Refusal(StoreRefused(place.url, make))
    if code == "NoSuchUpload":
        return Refusal(StoreUnavailable(place.url, f"the upload of {question.key} was ended by somebody else; try again"))
    if code == "RequestTimeTooSkewed":
        return Refusal(StoreRefused(place.url, _clocks(error)))
    if code in _STALE:
        reason = "the service does not know this access key: see AWS_ACCESS_KEY_ID or AWS_PROFILE"
        return Refusal(StoreRefused(place.url, reason if code == "InvalidAccessKeyId" else _OLD_KEYS), What.RENEW)
    if code == "SignatureDoesNotMatch":
        reason = "the secret key does not fit the access key: see AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
        return Refusal(StoreRefused(place.url, reason))
    if code in _ELSEWHERE or status == 301:
        return Refusal(StoreRefused(place.url, _elsewhere(error, said)))
    if code in _FULL or status == 507:
        return Refusal(StoreFull(where))
    if code in _AGAIN or status in _AGAIN_STATUSES:
        return Refusal(StoreUnavailable(place.url, f"{code or status}: {said}"), What.REPEAT)
    if status in (401, 403):
        return Refusal(StorePermission(where, _right(question, place)))
    return Refusal(StoreRefused(where, f"{question.operation} was answered with {status} {code}: {said}"))


def _right(question: Question, place: Place) -> str:
    right = RIGHTS.get(question.operation, "access")
    resource = f"arn:aws:s3:::{place.bucket}" if question.operation in _OF_BUCKETS else place.resource(question.key or "*")
    return f"{right} on {resource}"


def _elsewhere(error: ClientError, said: str) -> str:
    answer: dict[str, Any] = error.response
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = answer.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
    if region:
        return f"the bucket lies in the region {region}: set AWS_DEFAULT_REGION={region}"
    return f"the bucket is served elsewhere ({said}): see AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"


def _clocks(error: ClientError) -> str:
    ahead_s = clock_difference_s(error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))
    if ahead_s is None:
        return "the clock of this machine differs from the service's: set it (timedatectl)"
    direction = "ahead of" if ahead_s > 0 else "behind"
    return f"the clock of this machine is {abs(ahead_s) / 60:,.0f} minutes {direction} the service's: set it (timedatectl)"


def _unsafe(error: SSLError) -> str:
    said = _innermost(error)
    if "wrong version number" in said:
        return f"{_address(error)} does not speak TLS: write http:// in AWS_ENDPOINT_URL, if that is meant"
    return f"the connection to {_address(error)} is not safe: {said}; AWS_CA_BUNDLE names a file with your own authority"


def _address(error: BotoCoreError) -> str:
    parts = urlsplit(str(error.kwargs.get("endpoint_url", "")))
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else "it"


def _innermost(error: BotoCoreError) -> str:
    """Return what the system said, out of the layers of text around it."""
    said = _short(error.kwargs.get("error", error))
    found = re.findall(r"\[(?:Errno -?\d+|SSL: \w+)\] ([^()\[\]]+)", said)
    return str(found[-1]).strip() if found else said


def clock_difference_s(date: str) -> float | None:
    """Return by how much this machine is ahead of the Date of an answer that has just come; None if it is no date."""
    try:
        return now_ns() / 1e9 - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return None


def _short(said: object) -> str:
    """Return what an error says on one line; botocore's own texts end in a full stop, and may quote long addresses."""
    return " ".join(str(said).split())[:300].rstrip(". ")

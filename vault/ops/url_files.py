"""What a source by URL has to offer, and the errors and retries that all of them share.

What is asked of S3 goes through boto3 (s3_files.py), everything else through fsspec (fsspec_files.py). Both are loaded when
they are needed.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeVar

from vault.errors import SourceChanged, SourceUnreadable

TRIES: Final = 5
_PAUSE_S: Final = 0.2

T = TypeVar("T")


class Listed(NamedTuple):
    """What a listing says of a file, or of a folder's mark."""

    path: str  # below the URL; that of a mark ends in a slash
    size: int
    state: str  # what changes with the content: ETag, version, times; "" if nothing is known to
    changed_ns: int  # when it did last; 0 if no two contents have one state, NEVER if the state says nothing
    executable: bool = False


NEVER: Final = 1 << 62  # the stat cache believes no state that is as young as that


@dataclass(frozen=True, slots=True)
class Seen:
    """A file's state in the terms of a file system, as SourceFile and the stat cache have it."""

    st_ino: int  # of its state
    st_mode: int
    st_size: int
    st_mtime_ns: int
    state: str
    st_dev: int = 0
    st_ctime_ns: int = 0


class UrlFiles(Protocol):
    """The files below a URL. Threads: safe."""

    @property
    def url(self) -> str:
        """The URL, without anything secret in it."""
        ...

    @property
    def readers(self) -> int:
        """How many files to read at one time."""
        ...

    @property
    def is_single(self) -> bool:
        """Whether the URL names one file; known once it was listed."""
        ...

    def list(self) -> Iterator[Listed]:
        """Yield every file, in any order. The only one of a URL that names a file has its name.

        Raises:
            SourceUnreadable: there is nothing, or it does not answer.
        """
        ...

    def read(self, path: str, seen: Seen, offset: int, length: int) -> bytes:
        """Return a range of a file, fewer bytes only at its end.

        Raises:
            SourceChanged: it is known not to be what was seen any more.
            SourceUnreadable: naming the file.
        """
        ...

    def check(self, path: str, seen: Seen) -> None:
        """Raise SourceChanged unless the file is what was seen, if `read` does not tell by itself; SourceUnreadable."""
        ...

    def copy(self, path: str, seen: Seen, target: str) -> bool:
        """Copy a large file into an empty file of this machine, if a range costs more than its bytes; tell whether it was.

        Raises as `read`.
        """
        ...


def asked_again(call: Callable[[], T], where: str, is_final: Callable[[Exception], bool]) -> T:
    """Return what call returns, asking several times, with pauses that grow.

    Args:
        call: asks a service; any exception of it is taken for the service's.
        where: what is asked for, for messages.
        is_final: tells an answer from a failure that may pass.

    Raises:
        SourceChanged: it is not there any more.
        SourceUnreadable: what call raised last.
    """
    for number in range(TRIES):
        try:
            return call()
        except FileNotFoundError as error:
            raise SourceChanged(where) from error
        except (SourceChanged, SourceUnreadable):
            raise
        except Exception as error:
            if number == TRIES - 1 or is_final(error):
                raise SourceUnreadable(where, f"{type(error).__name__}: {error}" if str(error) else repr(error)) from error
        time.sleep(random.uniform(0.5, 1.0) * _PAUSE_S * 2**number)
    raise AssertionError("the last try returns or raises")

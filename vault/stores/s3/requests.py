"""Asks a service until there is an answer or the time is up: with jitter, and with a client of each process's own.

A request is repeated when nothing is known of the last one's fate, or when the service said that it is busy. What a lost
answer means is for the caller to find out, who is told of each. Before a service has answered this object for the first
time, nobody waits long: a wrong address looks just like a service that is away.

Threads: safe. Processes: after a fork each has connections of its own; the parent's are left alone, not closed.
"""

import atexit
import logging
import os
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TypeVar

from vault.clock import monotonic_s
from vault.errors import StoreUnavailable
from vault.stores.s3.answers import Question, Refusal, What, understand
from vault.stores.s3.client import Access, make_client
from vault.stores.s3.place import Place
from vault.stores.time_limit import time_left_s

logger = logging.getLogger(__name__)

# A mount answers within 60 s. The last try may begin when this has passed, and take a connection and a silence more.
DEADLINE_S: Final = 40.0
FIRST_DEADLINE_S: Final = 5.0
_PAUSE_FIRST_S: Final = 0.05
_PAUSE_MAX_S: Final = 4.0
SLOW_LINE_BYTES_S: Final = 1e6  # so long is large data given beside the deadline
_REPEATED_MAX: Final = 1000  # far more than the deadline lets happen

T = TypeVar("T")


class Requests:
    """The requests of one store."""

    def __init__(self, place: Place, access: Access, deadline_s: float) -> None:
        self.place = place
        self.counts: Counter[str] = Counter()  # how often each operation was sent, repetitions too; of this process
        self._access = access
        self._deadline_s = deadline_s
        self._answered = False
        self._clients: dict[int, Any] = {}  # by process; those of a parent stay, so that nothing closes its connections
        self._locks: dict[int, threading.Lock] = {}
        self._telling: set[int] = set()  # processes that say at their end what they have asked

    def ask(
        self, question: Question, call: Callable[[Any], T], lost: Callable[[], None] = lambda: None, *, more_s: float = 0.0
    ) -> T:
        """Return what call returns.

        Args:
            question: what is asked, for messages.
            call: does it, given a client, and reads the answer to its end; raises CutOff if that comes early.
            lost: told whenever a request may have been carried out although it is repeated, or given up.
            more_s: how much longer than usual it may be tried again, because there is much to send.

        Raises:
            StoreError: as answers.py understands it; StoreUnavailable when the time is up.
        """
        begun_s = monotonic_s()
        pause_s = _PAUSE_FIRST_S
        renewed = False
        for number in range(1, _REPEATED_MAX + 1):
            client = None
            try:
                client = self._client()
                answer = call(client)
                self._answered = True
                return answer
            except Exception as error:
                refusal = understand(error, question, self.place)
                if refusal is None:
                    raise
                cause = error
            self._answered = self._answered or refusal.was_answered
            if refusal.what is What.RENEW and not renewed:
                renewed = True
                self._forget(client)
                continue
            if refusal.what is not What.REPEAT:
                raise refusal.error from cause
            if refusal.was_sent:
                lost()
            pause_s = self._wait(refusal, begun_s, more_s, number, pause_s, cause)
        raise AssertionError("the deadline has passed before")

    def count(self, operation: str) -> None:
        """Note a request."""
        with self._lock():
            self.counts[operation] += 1

    def _wait(
        self, refusal: Refusal, begun_s: float, more_s: float, number: int, pause_s: float, cause: Exception
    ) -> float:
        """Sleep before the next try, and return how long to sleep at most before the one after it."""
        deadline_s = self._deadline_s if self._answered else min(FIRST_DEADLINE_S, self._deadline_s)
        left_s = min(begun_s + deadline_s - monotonic_s(), time_left_s())
        if left_s <= 0:
            assert isinstance(refusal.error, StoreUnavailable)
            reason = f"{refusal.error.reason}; asked {number} times in {monotonic_s() - begun_s:.0f} s"
            raise StoreUnavailable(refusal.error.where, reason) from cause
        logger.log(logging.INFO if number == 3 else logging.DEBUG, "%s; asking again", refusal.error)
        time.sleep(min(random.uniform(pause_s / 2, pause_s), left_s))
        return min(2 * pause_s, _PAUSE_MAX_S)

    def _client(self) -> Any:
        own = os.getpid()
        client = self._clients.get(own)
        if client is None:
            with self._lock():
                client = self._clients.get(own)
                if client is None:
                    client = self._clients[own] = make_client(self._access, self.count)
                    if own not in self._telling:
                        self._telling.add(own)
                        atexit.register(_tell, weakref.ref(self), own)
        return client

    def _forget(self, client: Any) -> None:
        """Drop a client whose credentials are not taken any more: the next one reads them where they are kept."""
        own = os.getpid()
        with self._lock():
            if client is not None and self._clients.get(own) is client:
                del self._clients[own]

    def _lock(self) -> threading.Lock:
        # One for each process: a lock that another thread held when we were forked is never given back.
        return self._locks.setdefault(os.getpid(), threading.Lock())


def _tell(found: "weakref.ref[Requests]", process: int) -> None:
    """Say how often a service was asked, to who wants to hear more (`vault -v`): requests are what S3 is paid for."""
    requests = found()
    if requests is not None and os.getpid() == process and requests.counts:
        each = ", ".join(f"{count:,} {operation}" for operation, count in requests.counts.most_common())
        total = requests.counts.total()
        noun = "request" if total == 1 else "requests"
        logger.info("%s %s to %s: %s", f"{total:,}", noun, requests.place.url, each)

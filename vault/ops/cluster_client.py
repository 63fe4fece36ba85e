"""The one home of Dask: a connection to a scheduler, what its workers must be like, and tasks whose results come anyhow.

A task that was lost with its worker is given to another one by the scheduler. What goes wrong with the cluster itself is
told as ClusterError; what a task raises is raised here as it is. Threads: one.
"""

import importlib
import importlib.metadata
import queue
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

from vault.clock import monotonic_s
from vault.errors import ClusterError, UsageError, VaultError

CONNECT_TIMEOUT_S: Final = 15.0
WORKERS_TIMEOUT_S: Final = 30.0
LOOK_EVERY_S: Final = 1.0
GATHER_TIMEOUT_S: Final = (
    10.0  # for a result that is some hundred kilobytes; then somebody looks whether it can come at all
)
CLOSE_TIMEOUT_S: Final = 2.0
_DISTRIBUTION: Final = "vaultfs"
_LOST: Final = "the connection to the scheduler is lost; see that it runs, and run the command again"

T = TypeVar("T")


def own_version() -> str:
    """Return which vaultfs this is."""
    return importlib.metadata.version(_DISTRIBUTION)


class Task(Generic[T]):
    """Something that a worker does, and what to do with what comes of it."""

    def __init__(self, future: Any, then: Callable[[T], None]) -> None:
        self.future = future  # kept: while somebody has it, its result is kept too, and made again if it is lost
        self.then = then


class Cluster:
    """A connection to a scheduler. Use as a context manager: leaving it cancels what is under way."""

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: of the scheduler: tcp://HOST:8786.

        Raises:
            UsageError: distributed is not installed.
            ClusterError: no scheduler answers there, or it has no workers.
        """
        self._address = address
        try:
            self._dask = importlib.import_module("distributed")
        except ModuleNotFoundError as error:
            raise UsageError(
                f"--cluster needs {error.name}, which is not installed: pip install 'vaultfs[dask]'"
            ) from error
        try:
            self._client = self._dask.Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False, name="vault-commit")
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(address, "no Dask scheduler answers there; see its address and that it runs") from error
        self._tasks: dict[str, Task[Any]] = {}
        self._alone_since_s = 0.0
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()  # futures; Dask's own iterator outlives a lost scheduler
        try:
            self._client.wait_for_workers(1, timeout=WORKERS_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            self._client.close(timeout=CLOSE_TIMEOUT_S)
            raise ClusterError(address, "the scheduler has no workers; start some: dask worker " + address) from error

    @property
    def threads(self) -> int:
        """How many tasks the workers do at one time."""
        return max(1, sum(self._threads_by_worker().values()))

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        return len(self._threads_by_worker())

    @property
    def under_way(self) -> int:
        """How many tasks have not been answered by `step`."""
        return len(self._tasks)

    def check(self, check_worker: Callable[[Any], None], job: object) -> None:
        """See that every worker has this version of vault, and that check_worker(job) finds nothing there.

        Raises:
            ClusterError: naming the worker, and what to do about it.
        """
        ours = own_version()
        for worker, theirs in self._ask_all(importlib.metadata.version, _DISTRIBUTION).items():
            if isinstance(theirs, importlib.metadata.PackageNotFoundError):
                raise ClusterError(worker, "vaultfs is not installed on this worker: pip install vaultfs there")
            if theirs != ours:
                raise ClusterError(
                    worker, f"this worker has vaultfs {theirs}, and this machine {ours}: install one version"
                )
        for worker, problem in self._ask_all(check_worker, job).items():
            if problem is not None:
                raise ClusterError(worker, str(problem) or repr(problem)) from problem

    def submit(self, then: Callable[[T], None], function: Callable[..., T], *arguments: object) -> Task[T]:
        """Let a worker call a function of a module; what it returns is handed to `then` by `step`. A Task as an argument
        stands for its result, and stays where it is."""
        given = [each.future if isinstance(each, Task) else each for each in arguments]
        task = Task(self._client.submit(function, *given, pure=False), then)
        self._tasks[task.future.key] = task
        task.future.add_done_callback(self._done.put)
        return task

    def keep(self, function: Callable[..., T], *arguments: object) -> Task[T]:
        """Let a worker call a function, and keep the result for later tasks."""
        return Task(self._client.submit(function, *arguments, pure=False), lambda _: None)

    def step(self) -> None:
        """Wait until a task is done, and do what is to be done then.

        Raises:
            ClusterError: its workers died again and again, or the connection is lost.
            VaultError: as the task says.
        """
        future = self._wait()
        task = self._tasks.pop(future.key)
        try:
            result = self._result(future)
        except VaultError:  # some are OSErrors, too
            raise
        except self._dask.CancelledError as error:
            raise ClusterError(self._address, "the scheduler has given up the tasks of this commit") from error
        except self._dask.scheduler.KilledWorker as error:
            raise ClusterError(
                self._address, f"workers died again and again over one task: see their logs ({error})"
            ) from error
        except (OSError, TimeoutError, ImportError) as error:
            raise ClusterError(self._address, f"a worker failed: {type(error).__name__}: {error}") from error
        task.then(result)

    def __enter__(self) -> "Cluster":
        """Return self."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Cancel what is under way, and let go of the scheduler."""
        futures = [task.future for task in self._tasks.values()]
        self._tasks.clear()
        if futures:
            self._client.cancel(futures)
        self._client.close(timeout=CLOSE_TIMEOUT_S)

    def _threads_by_worker(self) -> dict[str, int]:
        try:
            found: dict[str, int] = self._client.nthreads()
        except (OSError, TimeoutError) as error:
            raise ClusterError(self._address, _LOST) from error
        return found

    def _wait(self) -> Any:
        """Return a future that is done. Raises ClusterError once nobody is left who could do anything."""
        while True:
            with suppress(queue.Empty):
                return self._done.get(timeout=LOOK_EVERY_S)
            self._look()

    def _result(self, future: Any) -> Any:
        """Return the result of a future that is done, which may be lost by now with its worker: then it is made anew.

        Raises what the task raises, and as `_wait`.
        """
        while True:
            try:
                return future.result(timeout=GATHER_TIMEOUT_S)
            except TimeoutError:
                if future.status == "error":
                    raise  # the task's own
            self._look()

    def _look(self) -> None:
        """Raise ClusterError if the scheduler is gone, or has had no workers for some time."""
        if self._client.status != "running":
            raise ClusterError(self._address, _LOST)
        if self.workers:
            self._alone_since_s = 0.0
            return
        self._alone_since_s = self._alone_since_s or monotonic_s()
        if monotonic_s() - self._alone_since_s > WORKERS_TIMEOUT_S:
            raise ClusterError(self._address, "all workers are gone; start some, and run the command again")

    def _ask_all(self, function: Callable[..., object], argument: object) -> dict[str, Any]:
        """Return what each worker returns, or raises."""
        try:
            answers: dict[str, Any] = self._client.run(function, argument, on_error="return")
        except (OSError, TimeoutError) as error:
            raise ClusterError(self._address, f"its workers do not answer: {error}") from error
        return answers

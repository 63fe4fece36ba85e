"""What a program tells of the run that it is.

    import vault

    with vault.run(params={"lr": 0.1}) as run:
        run.log_metric("loss", loss, step=step)
        run.commit_output("ckpts/best.pt", "resnet50", step=step)

The run is the one that a mount, `vault run` or a scheduler knows this process by: what is told here and what is seen of it
meet in one record. Nothing told here can end a training: a store that is away gets it later, a full disk loses it with a
warning. Threads: safe. Forks: a child that tells something gets a journal of its own.
"""

import atexit
import logging
import os
import sys
import threading
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Final, SupportsFloat

from vault.capture.this_process import identify_this_process
from vault.clock import format_time, now_ns
from vault.errors import CacheUnusable, StoreError
from vault.format.records import Metric, Output
from vault.ids import check_label, check_name
from vault.ops.commit import CommitResult, commit
from vault.ops.outputs import step_in
from vault.ops.reporting import Reporter, is_launched, params_of, start_of, store_id_of, text_of
from vault.ops.running import new_run_id
from vault.repo.repository import Repository
from vault.settings import absolute, load_settings
from vault.stores.registry import open_store

_LOCAL_RANKS: Final = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")
_METRICS_AT_ONCE: Final = 512

logger = logging.getLogger(__name__)


class LiveRun:
    """The run that this process belongs to, while it goes on."""

    def __init__(
        self,
        *,
        params: Mapping[str, object] | None = None,
        message: str = "",
        store: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        """Use `vault.run`."""
        settings = load_settings()
        opened = open_store(settings.store if store is None else store)
        self._url = opened.url
        self._cache_root = settings.cache_dir if cache_dir is None else absolute(cache_dir)
        self._open = partial(Repository.open, opened, self._cache_root)
        self._message = message
        self._committing = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        store_id = store_id_of(self._open, self._cache_root, self._url)
        spool_root = os.path.join(self._cache_root, store_id, "spool") if store_id else ""
        self._identity = identify_this_process(store_id, spool_root)
        self.id = self._identity.run if self._identity is not None else new_run_id(sys.argv[:1])
        self._reporter = self._new_reporter()
        self._begin(params_of(params or {}))
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"<run {self.id}>"

    def __enter__(self) -> "LiveRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        status = error.code if isinstance(error, SystemExit) else int(error is not None)
        self.close(exit_status=status if isinstance(status, int) and 0 <= status < 256 else int(status is not None))

    def log_metric(self, name: str, value: SupportsFloat, *, step: int | None = None) -> None:
        """Tell a number. What is not finite is kept as null. Raises TypeError or ValueError for what is no number."""
        self.log_metrics({name: value}, step=step)

    def log_metrics(self, values: Mapping[str, SupportsFloat], *, step: int | None = None) -> None:
        """Tell several numbers of one step. Errors as of `log_metric`."""
        now = format_time(now_ns())
        step = None if step is None or step < 0 else int(step)
        metrics = [Metric(name=text_of(str(n)), value=_finite(float(v)), time=now, step=step) for n, v in values.items()]
        reporter = self._ours()
        for begin in range(0, len(metrics) if reporter else 0, _METRICS_AT_ONCE):
            assert reporter is not None
            reporter.say(metrics=tuple(metrics[begin : begin + _METRICS_AT_ONCE]))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Tell parameters: any values, as texts. A later one replaces an earlier one; what may be a secret is left out."""
        if (reporter := self._ours()) is not None:
            reporter.say(params=params_of(params))

    def log_tracker(self, name: str, tracker_id: str) -> None:
        """Tell under which ID an experiment tracker knows this run: `run.log_tracker("mlflow", mlflow_run_id)`."""
        if (reporter := self._ours()) is not None:
            reporter.say(trackers={text_of(name): text_of(tracker_id)})

    def commit_output(
        self,
        path: str | os.PathLike[str],
        dataset: str,
        *,
        step: int | None = None,
        label: str = "",
        message: str = "",
    ) -> CommitResult | None:
        """Commit a finished file or folder as a version of a dataset that this run made. Returns when the store has it.

        Args:
            path: the file or folder; nothing may write to it any more.
            dataset: its name.
            step: of the training; read from the path's name if left out. The version is labelled `step-N`.
            label: another label instead.
            message: why; that of the run if empty.

        Returns:
            What the commit made; None if the store is away, which is said once.

        Raises:
            InvalidRef: the name of the dataset or the label makes no sense.
            SourceUnreadable, SourceChanged: naming the file.
        """
        from vault.api import user_name

        check_name(dataset)
        if label:
            check_label(label)
        step = step_in(os.path.basename(os.path.normpath(os.fspath(path)))) if step is None else step
        label = label or ("" if step is None else f"step-{step}")
        reporter = self._ours()
        repository = None if reporter is None else reporter.repository()
        if reporter is None or repository is None:
            logger.warning("%s is not committed: the store is away, or nothing can be kept here", path)
            return None
        author = user_name()
        try:
            with self._committing:
                made = commit(
                    repository,
                    os.fsencode(path),
                    dataset,
                    message=message or self._message,
                    author=author,
                    run=self.id,
                )
                if label:
                    repository.datasets.set_label(dataset, label, made.version, author=author)
        except (StoreError, CacheUnusable) as error:
            logger.warning("%s is not committed: %s", path, error)
            return None
        output = Output(
            dataset=dataset,
            version=made.version,
            snapshot=made.snapshot.hex(),
            time=format_time(now_ns()),
            path=text_of(os.path.abspath(os.fspath(path)), 4096),
            label=label,
            step=step,
        )
        reporter.say(outputs=(output,))
        reporter.flush()
        return made

    def flush(self) -> bool:
        """Send what was told so far. Returns whether the store has it. It is done every few seconds anyway."""
        reporter = self._ours()
        return reporter is not None and reporter.flush(now=True)

    def close(self, *, exit_status: int | None = None) -> None:
        """Say that the run has ended here, and send the rest. Done at the end of `with`, or of the program."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        atexit.unregister(self.close)
        if exit_status is None and getattr(sys, "last_value", None) is not None:
            exit_status = 1  # the program ends with a traceback
        if self._reporter is not None:
            self._reporter.finish(exit_status=exit_status)
            self._reporter.close()
        _forget(self)

    # How it begins.

    def _begin(self, params: Mapping[str, str]) -> None:
        """Begin an attempt, unless `vault run` has: then this is a part of that."""
        if self._reporter is None:
            return
        identity = self._identity
        tree = [process.key for process in identity.tree] if identity else []
        if is_launched(self._cache_root, self._url, self.id, tree):
            self._reporter.say(params=params)
            self._reporter.start_flushing()
            return
        process = identity.tree[0] if identity else None
        command = process.command if process else tuple(sys.orig_argv)
        executable = (process.executable if process else "") or sys.executable
        how = identity.how if identity else "vault.run()"
        self._reporter.launch(start_of(identity, how, command, executable, message=self._message), params=params)
        is_first = next((os.environ[name] for name in _LOCAL_RANKS if os.environ.get(name)), "0") == "0"
        self._reporter.start_flushing(first=partial(self._capture, command, executable) if is_first else None)

    def _capture(self, command: tuple[str, ...], executable: str) -> None:
        reporter = self._reporter
        if reporter is not None:
            reporter.flush(now=True)  # that it has begun comes first
            reporter.capture_program(command, executable, os.environ, pid=os.getpid())

    def _new_reporter(self) -> Reporter | None:
        try:
            return Reporter(self._open, self.id, cache_root=self._cache_root, store_url=self._url, warn=logger.warning)
        except CacheUnusable as error:
            logger.warning("nothing that run %s tells is kept: %s", self.id, error)
            return None

    def _ours(self) -> Reporter | None:
        """Return what speaks for this process: after a fork that is another one, as locks and threads stay behind."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._committing = threading.Lock()
            self._closed = False
            self._reporter = self._new_reporter()
            if self._reporter is not None:
                self._reporter.start_flushing()
        return None if self._closed else self._reporter


_current: list[LiveRun] = []


def run(
    *,
    params: Mapping[str, object] | None = None,
    message: str = "",
    store: str | None = None,
    cache_dir: str | None = None,
) -> LiveRun:
    """Begin to tell of the run that this process belongs to; use it with `with`.

    Args:
        params: parameters to put on record.
        message: why this is run.
        store: which; None takes VAULTFS_STORE, or what `config.toml` says.
        cache_dir: where what is told lies until the store has it; None takes VAULTFS_CACHE_DIR or the platform's place.

    Raises:
        UsageError: no store is named.
    """
    live = LiveRun(params=params, message=message, store=store, cache_dir=cache_dir)
    _current.append(live)
    return live


def current_run() -> LiveRun:
    """Return the run that was begun last and goes on; begins one if there is none."""
    return _current[-1] if _current else run()


def log_metric(name: str, value: SupportsFloat, *, step: int | None = None) -> None:
    """Do what `LiveRun.log_metric` does, for `current_run`."""
    current_run().log_metric(name, value, step=step)


def log_params(params: Mapping[str, object]) -> None:
    """Do what `LiveRun.log_params` does, for `current_run`."""
    current_run().log_params(params)


def commit_output(
    path: str | os.PathLike[str], dataset: str, *, step: int | None = None, label: str = "", message: str = ""
) -> CommitResult | None:
    """Do what `LiveRun.commit_output` does, for `current_run`."""
    return current_run().commit_output(path, dataset, step=step, label=label, message=message)


def _forget(live: LiveRun) -> None:
    if live in _current:
        _current.remove(live)


def _finite(value: float) -> float | None:
    return value if value - value == 0 else None

"""A run's own voice: what it tells reaches its journal, now or later, and never stops what it speaks for.

A Reporter keeps a box (repo/report_box.py) and sends from it while the store answers. What is left in boxes whose owners
were killed, or whose store was away, is delivered by whoever looks next: `deliver_left`. Threads: safe, but `repository` is
for the thread that uses it.
"""

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from vault.capture.attribution import Identity
from vault.capture.proc import RUN_VARIABLE, decode
from vault.capture.redaction import redact_command
from vault.clock import format_time, monotonic_s, now_ns
from vault.errors import CacheUnusable, FormatError, NotARepository, StoreError, VaultError
from vault.format.records import CaptureEntry, Finish, Metric, Output, Start
from vault.ids import RunId
from vault.repo import liveness
from vault.repo.report_box import ReportBox, Said, boxes_left, noted_in_boxes, remember_store, remembered_store
from vault.repo.repository import Repository
from vault.repo.run_model import RANK

FLUSH_EVERY_S: Final = 5.0
RETRY_EVERY_S: Final = 30.0
TEXT_LENGTH: Final = 1024  # characters of a short text in an entry
_RANKS: Final = (
    *("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "PALS_RANKID", "FLUX_TASK_RANK"),
    "JOB_COMPLETION_INDEX",
)
CAPTURE_VARIABLE: Final = "VAULTFS_CAPTURE"
_CAPTURED: Final = "captured"  # folder of a box: what is to be frozen once the store is there
_LAUNCHED: Final = "launched"
_FINISHED: Final = "finished"

logger = logging.getLogger(__name__)


class _Launched(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever goes on must know: which process the attempt lives in."""

    pid: int
    ticks: int
    boot: str


class Reporter:
    """What one process tells of a run."""

    def __init__(
        self,
        open_repository: Callable[[], Repository],
        run: RunId,
        *,
        cache_root: str,
        store_url: str,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        """Make the box; the store is opened when something is sent.

        Args:
            open_repository: opens the store; called again while it is away.
            run: the run that is spoken for.
            cache_root: where boxes lie.
            store_url: the store, as a user names it.
            warn: told once of each thing that goes wrong.

        Raises:
            CacheUnusable: there is no place for the box.
        """
        self.run = run
        self._open = open_repository
        self._cache_root = cache_root
        self._url = store_url
        self._warn = warn
        self._warned: set[str] = set()
        self._box = ReportBox.create(cache_root, store_url, run)
        self._repository: Repository | None = None
        self._retry_at_s = 0.0
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = self._launched = False

    @property
    def writer(self) -> str:
        """The name under which the journal is written."""
        return self._box.header.writer

    def repository(self, *, now: bool = False) -> Repository | None:
        """Return the store, opened; None while it is away. Unless `now`, it is asked for again only after a while."""
        with self._lock:
            if self._repository is None and (now or monotonic_s() >= self._retry_at_s):
                try:
                    self._repository = self._open()
                except (StoreError, NotARepository, FormatError, OSError) as error:
                    self._retry_at_s = monotonic_s() + RETRY_EVERY_S
                    self._complain("away", f"{_sentence(error)}; what the run reports is kept, and delivered later")
                else:
                    remember_store(self._cache_root, self._url, self._repository.config.store)
            return self._repository

    def launch(self, start: Start, *, params: Mapping[str, str]) -> None:
        """Say that an attempt begins. Raises FormatError for parameters that no entry can hold, CacheUnusable."""
        self._box.say(Said(launch=start, params=dict(params)))
        self._launched = True
        self.lives_in(os.getpid())

    def lives_in(self, pid: int) -> None:
        """Note the process that the attempt lives in, for the case that this one is killed."""
        if not self._launched:
            return
        launched = _Launched(pid=pid, ticks=liveness.start_ticks(pid) or 0, boot=liveness.boot_id())
        with contextlib.suppress(OSError):
            self._box.note(_LAUNCHED, msgspec.json.encode(launched))

    def say(
        self,
        *,
        params: Mapping[str, str] | None = None,
        metrics: tuple[Metric, ...] = (),
        outputs: tuple[Output, ...] = (),
        trackers: Mapping[str, str] | None = None,
    ) -> bool:
        """Tell something; it is sent by and by. Returns whether it was taken: a full disk loses it, with one warning."""
        said = Said(params=dict(params or {}), metrics=metrics, outputs=outputs, trackers=dict(trackers or {}))
        return self._say(said)

    def capture(self, fields: Mapping[str, Any]) -> None:
        """Tell what was captured: fields of CaptureEntry."""
        self._say(Said(capture=_capture_entry(self._box, fields)))

    def capture_program(
        self, command: Sequence[str], executable: str, environment: Mapping[str, str], *, pid: int = 0
    ) -> None:
        """Put code, environment and machine of a program on record, as far as that goes. pid: 0 if it does not run yet."""
        from vault.capture.look import look
        from vault.ops.capturing import Staging, Subject, capture

        if environment.get(CAPTURE_VARIABLE, "").strip().lower() in ("off", "0", "no", "false"):
            self.capture({"gaps": (f"nothing was captured: {CAPTURE_VARIABLE} of the run says so",)})
            return
        repository = self.repository()
        try:
            subject = Subject(
                cwd=os.getcwd(),
                command=command,
                executable=executable,
                pid=pid,
                environment=dict(environment),
                forbidden=(os.path.realpath(self._cache_root),),
            )
            if repository is not None:
                self.capture(capture(repository, subject))
                return
            folder = f"{self._box.folder}/capturing"
            os.mkdir(folder, 0o700)
            staging = Staging(folder)
            staging.take(look(subject))
            staging.finish(durable=False)
            os.rename(folder, f"{self._box.folder}/{_CAPTURED}")
        except (VaultError, OSError, RuntimeError) as error:  # RuntimeError: the interpreter shuts down
            self.capture({"gaps": (f"not captured: {error}"[:TEXT_LENGTH],)})

    def flush(self, *, now: bool = False) -> bool:
        """Send what was told so far, if the store is there. Returns whether it has all of it."""
        repository = self.repository(now=now)
        if repository is None:
            return False
        if not now and monotonic_s() < self._retry_at_s:
            return False
        try:
            with self._sending:
                _freeze_captured(self._box, repository)
            self._box.send(repository.store)
        except (VaultError, OSError) as error:
            self._retry_at_s = monotonic_s() + RETRY_EVERY_S
            self._complain("send", f"{_sentence(error)}; what the run reports is kept, and delivered later")
            return False
        return True

    def start_flushing(self, *, first: Callable[[], None] | None = None) -> None:
        """Send every few seconds from now on, in a thread of its own; `first` is called by it before."""
        self._thread = threading.Thread(target=self._keep_flushing, args=(first,), name="vault-reports", daemon=True)
        self._thread.start()

    def finish(self, *, exit_status: int | None = None, signal: str = "", output_tail: str = "") -> None:
        """Say how the attempt ended that `launch` began; without one, nothing."""
        if self._launched:
            self._launched = False
            finish = Finish(ended=format_time(now_ns()), exit_status=exit_status, signal=signal, output_tail=output_tail)
            self._say(Said(finish=finish))
            with contextlib.suppress(OSError):
                self._box.note(_FINISHED)

    def close(self) -> bool:
        """End the attempt if nobody has, and send the rest. Returns whether the store has all of it."""
        if self._closed:
            return True
        self._closed = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=RETRY_EVERY_S)
        self.finish()
        is_sent = self.flush(now=True)
        self._box.let_go(remove=is_sent)
        if not is_sent:
            self._complain(
                "kept", f"reports of run {self.run} wait in {self._box.folder}: the next vault command delivers them"
            )
        return is_sent

    def _say(self, said: Said) -> bool:
        try:
            self._box.say(said)
        except (FormatError, CacheUnusable) as error:
            self._complain(type(error).__name__, f"a report of run {self.run} is lost: {error}")
            return False
        return True

    def _keep_flushing(self, first: Callable[[], None] | None) -> None:
        try:
            if first is not None:
                first()
            while not self._wake.wait(FLUSH_EVERY_S):
                self.flush()
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end what we speak for
            self._complain("thread", f"reports of run {self.run} are kept, and no longer sent: {error!r}")

    def _complain(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            self._warn(text)


def deliver_left(repository: Repository) -> int:
    """Deliver what is left in boxes whose owners are gone. Returns how many entries that were; never raises.

    An attempt that nobody saw end is ended as far as is known, once its process is gone.
    """
    delivered = 0
    for box in boxes_left(repository.cache_root, repository.store.url):
        try:
            is_over = _finish(box)
            _freeze_captured(box, repository)
            delivered += box.send(repository.store)
            if is_over:
                box.let_go(remove=True)
        except (VaultError, OSError) as error:
            logger.warning("reports of run %s are not delivered: %s", box.run, error)
    return delivered


def store_id_of(open_repository: Callable[[], Repository], cache_root: str, store_url: str) -> str:
    """Return the ID of a store, also while it is away; "" if it was never seen here. Run IDs may hang on it."""
    try:
        found = open_repository().config.store
    except (StoreError, NotARepository, FormatError, OSError):
        return remembered_store(cache_root, store_url)  # whoever sends something says why it is away
    remember_store(cache_root, store_url, found)
    return found


def is_launched(cache_root: str, store_url: str, run: RunId, tree: Iterable[tuple[int, int]]) -> bool:
    """Say whether `vault run` on this machine began an attempt of a run in one of these processes: (pid, start ticks)."""
    keys = set(tree)
    for data in noted_in_boxes(cache_root, store_url, run, _LAUNCHED):
        with contextlib.suppress(msgspec.MsgspecError):
            launched = msgspec.json.decode(data, type=_Launched)
            if (launched.pid, launched.ticks) in keys and launched.boot == liveness.boot_id():
                return True
    return False


def start_of(
    run_identity: Identity | None, how: str, command: tuple[str, ...], executable: str, *, message: str = ""
) -> Start:
    """Return the start of an attempt that this process begins.

    Args:
        run_identity: whose process this is, if /proc tells.
        how: what named the run.
        command: what is run; secrets are taken out here.
        executable: its path.
        message: a word of whoever started it.
    """
    import pwd
    import socket

    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = ""
    details = dict(run_identity.details) if run_identity else {}
    if rank := rank_of(os.environ):
        details[RANK] = text_of(rank)
    if message:
        details["message"] = text_of(message)
    try:
        cwd = os.getcwd()
    except OSError:
        cwd = ""
    return Start(
        identity=how,
        uid=uid,
        user=user,
        host=socket.gethostname(),
        started=format_time(now_ns()),
        pid=os.getpid(),
        command=redact_command([text_of(word, 65536) for word in command]),
        executable=text_of(executable, 4096),
        cwd=text_of(cwd, 4096),
        boot=liveness.boot_id(),
        attempt=run_identity.attempt if run_identity else "",
        details=details,
        trackers=dict(run_identity.trackers) if run_identity else {},
        disagreement=run_identity.disagreement if run_identity and how != RUN_VARIABLE else "",
        gaps=run_identity.gaps if run_identity else ("nothing to be seen of this process in /proc",),
    )


def rank_of(environment: Mapping[str, str]) -> str:
    """Return which of several processes this is that were started together; "" if it is alone."""
    return next((environment[name] for name in _RANKS if environment.get(name)), "")


def params_of(pairs: Mapping[str, object]) -> dict[str, str]:
    """Return parameters as an entry holds them: texts, cut to size, without what looks like a secret."""
    found = {}
    for name, value in pairs.items():
        key = text_of(str(name), 256)
        shown = redact_command([f"{key}={text_of(str(value))}"])[0] if key else ""
        found[key] = shown.partition("=")[2][:TEXT_LENGTH] if shown.startswith(f"{key}=") else "***"
    return found


def text_of(text: str, length: int = TEXT_LENGTH) -> str:
    """Return text that JSON can hold, cut to size: bytes that were no UTF-8 as backslash escapes."""
    return decode(text[:length].encode(errors="surrogateescape"))[:length]


def _finish(box: ReportBox) -> bool:
    """End the attempt of a box if it has one, and nobody has. Returns whether it is over."""
    noted = box.noted(_LAUNCHED)
    if noted is None or box.noted(_FINISHED) is not None:
        return True
    try:
        launched = msgspec.json.decode(noted, type=_Launched)
    except msgspec.MsgspecError:
        return True
    here = launched.boot == liveness.boot_id()
    if not here and box.header.host != os.uname().nodename:
        return False  # another machine that shares this folder: only it can tell
    if here and liveness.is_alive(launched.pid, launched.ticks):
        return False
    if not any(said.finish for said in box.lines_left()):
        last = max(os.stat(f"{box.folder}/{name}").st_mtime for name in os.listdir(box.folder))
        box.say(Said(finish=Finish(ended=format_time(int(last * 1e6) * 1000))))
    box.note(_FINISHED)
    return True


def _freeze_captured(box: ReportBox, repository: Repository) -> None:
    """Put what was captured while the store was away into it, and on record."""
    folder = f"{box.folder}/{_CAPTURED}"
    if not os.path.exists(folder):
        return
    from vault.ops.capturing import freeze_staged

    box.say(Said(capture=_capture_entry(box, freeze_staged(repository, folder))))
    shutil.rmtree(folder, ignore_errors=True)


def _capture_entry(box: ReportBox, fields: Mapping[str, Any]) -> CaptureEntry:
    now = format_time(now_ns())
    return CaptureEntry(n=1, prev=None, writer=box.header.writer, time=now, captured=now, **fields)


def _sentence(error: BaseException) -> str:
    return str(error) or type(error).__name__

"""Follows plans: fetches what will be read, in the order in which it will be, as far ahead of the readers as fits.

Plans come as files (vault/repo/plan_box.py) from `vault prefetch`, and as paths through the mount's pipe (hint_pipe.py).
Each has a Window (vault/ops/prefetch.py) that is asked for more as pieces are fetched and as readers come nearer; where
readers are is seen in the tables that their opens are counted in. Pieces go through the fetcher's queue, behind what a
reader waits for.

Threads: one, `Plans.run`; the queue's threads take pieces from a Followed.
"""

import logging
import threading
from array import array
from collections import deque
from collections.abc import Iterator
from typing import Final

from vault.clock import monotonic_s
from vault.errors import CacheUnusable, FormatError, StoreUnavailable, VaultError
from vault.ids import Digest, parse_digest
from vault.ops.hint_paths import HintPaths
from vault.ops.prefetch import Window, size_ahead
from vault.repo.opened import OpenedSoFar
from vault.repo.plan_box import (
    PLANS_MAX,
    PlanState,
    forget_states,
    load_plan,
    load_state,
    make_folder,
    plan_names,
    remove_plan,
    save_state,
)
from vault.repo.repository import Repository
from vault.view import open_view
from vault_fuse.fetch_queue import FetchQueue, Piece
from vault_fuse.hint_pipe import HintPipe

logger = logging.getLogger(__name__)

TICK_S: Final = 0.05
IDLE_TICK_S: Final = 0.2
TABLES_EVERY_S: Final = 0.5
STATE_EVERY_S: Final = 1.0
READY_MIN: Final = 64  # pieces that wait for the queue before more are made
BATCHES_AT_ONCE: Final = 16
TRIES_MAX: Final = 3  # of one piece
PAUSE_S: Final = 2.0  # after the store or the cache has failed
JUMP_OPENS: Final = 32  # files in a row that were opened beyond what was handed out: the reader is there
JUMP_AFTER_S: Final = 1.0  # without one that was
HINT_AGE_S_MAX: Final = 300.0  # without an open, until what came through the pipe by then is forgotten
HINTED_SNAPSHOTS_MAX: Final = 8
HINTS_AHEAD_MAX: Final = 1 << 20  # paths of one snapshot that were found and wait
LINES_AT_ONCE: Final = 4096
_NOWHERE: Final = 0xFFFFFFFF


class Followed:
    """One order that is being followed. A Source of the fetcher's queue."""

    def __init__(self, window: Window, opened: OpenedSoFar) -> None:
        self.window = window
        self.opened = opened
        self.ready: deque[Piece] = deque()
        self.under_way = 0
        self.bytes_fetched = 0
        self.error = ""
        self.moved_s = monotonic_s()
        self._tries: dict[Piece, int] = {}
        self._pause_until_s = 0.0
        self._looked_s = 0.0

    def next_piece(self) -> Piece | None:
        """Return what to fetch next. See Source."""
        if not self.ready or monotonic_s() < self._pause_until_s:
            return None
        self.under_way += 1
        return self.ready.popleft()

    def done(self, piece: Piece, error: Exception | None) -> None:
        """Hear that a piece is here, or why it is not. See Source."""
        self.under_way -= 1
        if error is None:
            self._tries.pop(piece, None)
            self.bytes_fetched += piece.length
            return
        self.error = str(error)
        if isinstance(error, StoreUnavailable | CacheUnusable):
            self._pause_until_s = monotonic_s() + PAUSE_S
            tries = self._tries[piece] = self._tries.get(piece, 0) + 1
            if tries < TRIES_MAX:
                self.ready.appendleft(piece)
                return
        self._tries.pop(piece, None)  # who reads it will hear what is wrong

    def advance(self, now_s: float) -> None:
        """See where readers are, and make pieces of what comes into reach."""
        if now_s - self._looked_s >= TABLES_EVERY_S:
            self._looked_s = now_s
            self.opened.refresh()
        if self.window.advance():
            self.moved_s = now_s
        for _ in range(BATCHES_AT_ONCE):
            if len(self.ready) >= READY_MIN:
                break
            batch = self.window.next_batch()
            if not batch:
                break
            self.ready.extend(Piece(*found) for found in batch)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it is waiting to be fetched, or being fetched."""
        return not self.ready and not self.under_way

    def close(self) -> None:
        """Let go of the tables."""
        self.opened.close()


class _FilePlan:
    """A plan that was left in a file."""

    def __init__(self, folder: str, name: str, numbers: "array[int]", entries_total: int, followed: Followed) -> None:
        self.folder = folder
        self.name = name
        self.followed = followed
        self._files = len(numbers)
        self._places = array("I", (_NOWHERE,)) * entries_total
        for place, number in enumerate(numbers):
            if number < entries_total:
                self._places[number] = place
        self._beyond: deque[int] = deque(maxlen=JUMP_OPENS)  # places of the latest opens that lie beyond what is handed out
        self._saved = PlanState(files=-1)
        self._saved_s = 0.0

    def advance(self, now_s: float) -> None:
        """See where readers are, also if that is not where the plan is."""
        self.followed.advance(now_s)
        for number in self.followed.opened.first_opens():
            place = self._places[number] if number < len(self._places) else _NOWHERE
            if place != _NOWHERE and place >= self.followed.window.place:
                self._beyond.append(place)
        if now_s - self.followed.moved_s <= JUMP_AFTER_S:
            return
        near = self.followed.window.opened_beyond()
        beyond = near if len(near) >= JUMP_OPENS else self._beyond
        if len(beyond) >= JUMP_OPENS:
            logger.debug("plan %s goes on at file %d of %d, where its reader is", self.name, min(beyond), self._files)
            self.followed.window.pass_over(min(beyond))
            self.followed.moved_s = now_s
            self._beyond.clear()

    @property
    def is_over(self) -> bool:
        """Whether all of it is here, or was passed."""
        return self.followed.window.is_at_end and self.followed.is_idle

    def save(self, now_s: float, *, is_over: bool = False) -> None:
        """Note how far it is, for who has left it and for a fetcher that comes after this one."""
        followed = self.followed
        done = max(followed.window.place - followed.window.files_ahead, 0)
        state = PlanState(
            files=self._files,
            files_done=self._files if is_over else done,
            files_fetched=self._files if is_over else max(followed.window.place - len(followed.ready), 0),
            bytes_fetched=followed.bytes_fetched,
            is_over=is_over,
            is_full=not is_over and followed.is_idle and followed.window.is_full,
            error=followed.error,
        )
        if state != self._saved and (is_over or now_s - self._saved_s >= STATE_EVERY_S):
            self._saved, self._saved_s = state, now_s
            save_state(self.folder, self.name, state)


class _Hinted(Iterator[int]):
    """Numbers of one snapshot that came through the pipe and wait. Goes on after it had nothing to give."""

    def __init__(self) -> None:
        self.waiting: deque[int] = deque()

    def __next__(self) -> int:
        if not self.waiting:
            raise StopIteration
        return self.waiting.popleft()


class Plans:
    """All plans of one mount."""

    def __init__(
        self,
        queue: FetchQueue,
        repository: Repository,
        *,
        folder: str,
        spool_root: str,
        cache_bytes: int,
        mountpoint: str,
        pipe: HintPipe | None,
    ) -> None:
        """Prepare. Nothing is fetched before `run`.

        Args:
            queue: of the fetcher.
            repository: opened in this process.
            folder: where plans are left; made here.
            spool_root: where opens are counted: `<cache>/<store>/spool`.
            cache_bytes: how much this machine keeps.
            mountpoint: where the mount is, for absolute paths.
            pipe: through which paths come.
        """
        self._queue = queue
        self._repository = repository
        self._folder = folder
        self._spool_root = spool_root
        self._cache_bytes = cache_bytes
        self._pipe = pipe
        self._paths = HintPaths(repository, mountpoint)
        self._plans: dict[str, _FilePlan] = {}
        self._hinted: dict[Digest, tuple[_Hinted, Followed]] = {}

    def run(self) -> None:
        """Follow plans for ever."""
        make_folder(self._folder)
        while True:
            try:
                self.tick(monotonic_s())
            except (VaultError, OSError) as error:
                logger.warning("plans wait: %s", error)
                threading.Event().wait(PAUSE_S)
            except Exception:  # a plan that breaks must not end all others
                logger.exception("plans wait")
                threading.Event().wait(PAUSE_S)
            threading.Event().wait(TICK_S if self._plans or self._hinted else IDLE_TICK_S)

    def tick(self, now_s: float) -> None:
        """Do what is to be done now."""
        self._take_plans()
        for name, plan in list(self._plans.items()):
            plan.advance(now_s)
            plan.save(now_s, is_over=plan.is_over)
            if plan.is_over:
                self._end(name)
            elif plan.followed.ready:
                self._queue.feed(plan.followed)
        if self._pipe is not None:
            self._take_hints(now_s)

    # Plans in files.

    def _take_plans(self) -> None:
        names = plan_names(self._folder)
        for name in [*names[:-PLANS_MAX], *(self._plans.keys() - set(names))]:
            self._end(name)
        for name in names[-PLANS_MAX:]:
            if name not in self._plans:
                try:
                    self._plans[name] = self._begin(name)
                except (FormatError, FileNotFoundError) as error:
                    logger.warning("plan %s is left alone: %s", name, error)
                    self._end(name)

    def _begin(self, name: str) -> _FilePlan:
        plan = load_plan(self._folder, name)
        snapshot = parse_digest(plan.head.snapshot)
        view = open_view(self._repository, snapshot)
        opened = OpenedSoFar(self._spool_root, snapshot)
        ahead = plan.head.size_ahead or size_ahead(self._cache_bytes, view.size_bytes_total)
        window = Window(view, plan.numbers, ahead, opened.times)
        known = load_state(self._folder, name)
        if known is not None:
            window.pass_over(known.files_done)  # the fetcher before this one came so far
        logger.info("plan %s: %d files of %s, %s", name, len(plan.numbers), plan.head.ref, plan.head.origin)
        return _FilePlan(self._folder, name, plan.numbers, view.entries_total, Followed(window, opened))

    def _end(self, name: str) -> None:
        plan = self._plans.pop(name, None)
        if plan is not None:
            self._queue.drop(plan.followed)
            plan.followed.close()
        remove_plan(self._folder, name)
        forget_states(self._folder)

    # Paths from the pipe.

    def _take_hints(self, now_s: float) -> None:
        assert self._pipe is not None
        for hinted, followed in self._hinted.values():
            if followed.window.files_ahead and now_s - followed.moved_s > HINT_AGE_S_MAX:
                followed.moved_s = now_s
                hinted.waiting.clear()
                followed.window.pass_all()  # nobody came: these were no good hints
        for line in self._pipe.take(LINES_AT_ONCE):
            found = self._paths.find(line)
            if found is not None:
                snapshot, number = found
                waiting = self._stream(snapshot, now_s).waiting
                if len(waiting) < HINTS_AHEAD_MAX:
                    waiting.append(number)
        for _, followed in self._hinted.values():
            followed.advance(now_s)
            if followed.ready:
                self._queue.feed(followed)

    def _stream(self, snapshot: Digest, now_s: float) -> _Hinted:
        known = self._hinted.get(snapshot)
        if known is None:
            if len(self._hinted) >= HINTED_SNAPSHOTS_MAX:
                oldest = min(self._hinted, key=lambda other: self._hinted[other][1].moved_s)
                _, followed = self._hinted.pop(oldest)
                self._queue.drop(followed)
                followed.close()
            hinted = _Hinted()
            opened = OpenedSoFar(self._spool_root, snapshot)
            view = self._paths.view(snapshot)
            window = Window(view, hinted, size_ahead(self._cache_bytes, view.size_bytes_total), opened.times)
            known = self._hinted[snapshot] = hinted, Followed(window, opened)
        if not known[1].window.files_ahead:
            known[1].moved_s = now_s
        return known[0]

"""Where plans for a mount's fetcher wait: files in the mount's private folder, named by when they came.

    plans/<time>-<pid>.plan     a line of JSON (PlanHead), then entry numbers, 4 bytes each, in the order of reading
    plans/<time>-<pid>.state    a line of JSON (PlanState): how far it is, rewritten while it goes on and at its end

The folder is made by a fetcher that follows plans, so its being there says that plans are welcome. A plan file is taken
away when its end is reached, or to make room; a fetcher that is started again goes on where readers are. Ephemeral and
private to this machine: another version of vault refuses it. Threads and processes: any may add, one fetcher follows.
"""

import os
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from vault.clock import now_ns
from vault.errors import FormatError
from vault.repo.liveness import is_held
from vault.repo.read_table import remove_if_there

FOLDER: Final = "plans"
PLANS_MAX: Final = 16
PLAN_FILES_MAX: Final = 1 << 26
HEAD_LENGTH_MAX: Final = 64 << 10
ALIVE: Final = "alive"  # held by a mount in its private folder
_PLAN, _STATE, _UNFINISHED = ".plan", ".state", ".new"


class PlanHead(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan is for."""

    v: int = 1
    snapshot: str
    ref: str
    size_ahead: int = 0  # bytes ahead of the reader; 0: as many as suit the cache
    origin: str = ""  # what made it, for people: "run:RUN"


class PlanState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a plan is."""

    files: int  # of the plan
    files_fetched: int = 0  # that are here, or were passed over
    files_done: int = 0  # that the reader has reached, or passed
    bytes_fetched: int = 0
    is_over: bool = False
    is_full: bool = False  # all that fits ahead of the readers is here: it goes on when they come nearer
    error: str = ""  # the last thing that went wrong


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A plan as it was found."""

    name: str
    head: PlanHead
    numbers: "array[int]"


def make_folder(folder: str) -> None:
    """Make a plan folder, so that plans are left there. Raises OSError."""
    os.makedirs(folder, mode=0o700, exist_ok=True)


def plan_folders(cache_dir: str) -> list[str]:
    """Return the plan folders of mounts of a store that run now and follow plans, the latest mount last.

    Args:
        cache_dir: of the store: `<cache>/<store>`.
    """
    root = f"{cache_dir}/mounts"
    try:
        mounts = [f"{root}/{name}" for name in os.listdir(root)]
    except FileNotFoundError:
        return []
    found = [mount for mount in mounts if os.path.isdir(f"{mount}/{FOLDER}") and is_held(f"{mount}/{ALIVE}")]
    return [f"{mount}/{FOLDER}" for mount in sorted(found, key=os.path.getmtime)]


def add_plan(folder: str, head: PlanHead, numbers: Iterable[int]) -> str:
    """Leave a plan for a fetcher. Returns its name.

    Raises:
        OSError: the folder is gone, with its mount, or the disk is full.
        FormatError: it is too long.
    """
    items = array("I", numbers)
    if len(items) > PLAN_FILES_MAX:
        raise FormatError("plan", f"{len(items):,} files; at most {PLAN_FILES_MAX:,} are followed")
    name = f"{now_ns():020d}-{os.getpid()}"
    path = f"{folder}/{name}{_PLAN}"
    with open(path + _UNFINISHED, "xb", opener=_private) as file:
        file.write(msgspec.json.encode(head) + b"\n")
        items.tofile(file)
    os.rename(path + _UNFINISHED, path)
    return name


def plan_names(folder: str) -> list[str]:
    """Return the names of the plans that wait or go on, the oldest first. Raises FileNotFoundError."""
    return sorted(name.removesuffix(_PLAN) for name in os.listdir(folder) if name.endswith(_PLAN))


def load_plan(folder: str, name: str) -> PlanFile:
    """Return a plan. Raises OSError, FormatError."""
    with open(f"{folder}/{name}{_PLAN}", "rb") as file:
        line = file.readline(HEAD_LENGTH_MAX)
        try:
            head = msgspec.json.decode(line, type=PlanHead)
        except msgspec.MsgspecError as error:
            raise FormatError("plan", str(error)) from error
        size = os.fstat(file.fileno()).st_size - len(line)
        if head.v != 1 or size % 4 or size > 4 * PLAN_FILES_MAX:
            raise FormatError("plan", f"version {head.v}, {size} bytes")
        numbers = array("I")
        numbers.fromfile(file, size // 4)
    return PlanFile(name, head, numbers)


def remove_plan(folder: str, name: str) -> None:
    """Take a plan away. What is known of it stays."""
    remove_if_there(f"{folder}/{name}{_PLAN}")


def save_state(folder: str, name: str, state: PlanState) -> None:
    """Note how far a plan is. Raises OSError."""
    path = f"{folder}/{name}{_STATE}"
    with open(path + _UNFINISHED, "wb", opener=_private) as file:
        file.write(msgspec.json.encode(state) + b"\n")
    os.rename(path + _UNFINISHED, path)


def load_state(folder: str, name: str) -> PlanState | None:
    """Return how far a plan is; None if nobody has begun it."""
    try:
        with open(f"{folder}/{name}{_STATE}", "rb") as file:
            return msgspec.json.decode(file.read(HEAD_LENGTH_MAX), type=PlanState)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise FormatError("plan", str(error)) from error


def forget_states(folder: str, kept: int = PLANS_MAX) -> None:
    """Remove what is known of the oldest plans that are over."""
    names = sorted(name for name in os.listdir(folder) if name.endswith(_STATE))
    for name in names[: -kept or None]:
        if not os.path.exists(f"{folder}/{name.removesuffix(_STATE)}{_PLAN}"):
            remove_if_there(f"{folder}/{name}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)

"""What the command of a repetition finds where: restored code, fresh scratch folders, places to write to. Threads: one."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vault.capture.environment import linked_folders
from vault.format.records import CodeTree
from vault.ids import parse_digest
from vault.ops.checkout import checkout
from vault.ops.listing import root_entry
from vault.ops.originals import Original
from vault.ops.preflight import Preflight, interpreter_of
from vault.ops.repetition_data import mountpoints
from vault.ops.repetition_place import Place
from vault.repo.repository import Repository
from vault.repo.trees import TreeReader

_SYSTEM: Final = ("/usr", "/etc", "/bin", "/lib", "/lib64", "/sbin", "/proc", "/sys", "/dev", "/run", "/boot")
_FRESH: Final = ("/tmp", "/var/tmp", "/dev/shm")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a command must find."""

    flight: Preflight
    originals: Sequence[Original]
    executable: str
    environment: str = ""  # a folder that was built for it


def lay_out(place: Place, repository: Repository, needs: Needs) -> None:
    """Say what is to be found where, and restore the code.

    Raises:
        MountError: symlinks of the code lead in circles.
        StoreError, IntegrityError: the code cannot be read.
    """
    _refresh_scratch(place)
    trees = needs.flight.capture.code if needs.flight.capture is not None else ()
    _restore_code(place, repository, trees)
    _place_cwd(place, needs.flight, trees)
    _place_outputs(place, needs)
    for path in sorted(set(_kept_in_sight(needs)), key=len):  # a folder before what is in it
        hidden = place.covers(path)
        if hidden is not None and not any(target.startswith(f"{path}/") or target == path for target in place.binds):
            place.put(path, path)
    for name in ("store", "cache"):
        place.put(place.folder(name), place.folder(name), writable=True)
    os.makedirs(os.path.join(place.folder("scratch"), "root"), exist_ok=True)


def _refresh_scratch(place: Place) -> None:
    for number, target in enumerate(_FRESH):
        if os.path.isdir(target):
            place.put(place.folder("fresh", str(number)), target, writable=True)
    if os.path.isdir(cache := os.path.expanduser("~/.cache")):
        place.put(place.folder("fresh", "cache"), cache, writable=True)


def _restore_code(place: Place, repository: Repository, trees: Sequence[CodeTree]) -> None:
    for number, tree in enumerate(trees):
        source = os.path.join(place.folder("code"), str(number))
        objects = repository.object_reader()
        checkout(objects, root_entry(TreeReader(objects), parse_digest(tree.snapshot)), os.fsencode(source))
        place.put(source, tree.root, writable=True)


def _place_cwd(place: Place, flight: Preflight, trees: Sequence[CodeTree]) -> None:
    cwd = flight.attempt.parts[0].start.cwd
    is_code = any(cwd == tree.root or cwd.startswith(f"{tree.root}/") for tree in trees)
    shown = (*_SYSTEM, *mountpoints(flight))  # the system's, or the data's: nothing is put there
    is_shown = cwd == "/" or any(cwd == known or cwd.startswith(f"{known}/") for known in shown)
    if is_code or is_shown:
        return
    if trees:
        place.put(place.folder("cwd"), cwd, writable=True)
    elif os.path.isdir(cwd):
        place.put(cwd, cwd)


def _place_outputs(place: Place, needs: Needs) -> None:
    for number, original in enumerate(needs.originals):
        if original.path:
            folder = place.leads_to(os.path.dirname(original.path) if original.is_file else original.path)
            bind = place.covers(folder)
            if bind is None or not bind.writable:
                place.put(place.folder("out", str(number)), folder, writable=True)
            os.makedirs(place.real(folder), exist_ok=True)
    cwd = needs.flight.attempt.parts[0].start.cwd
    bind = place.covers(cwd)
    if bind is not None and bind.writable:
        os.makedirs(place.real(cwd), exist_ok=True)


def _kept_in_sight(needs: Needs) -> Iterator[str]:
    """Yield folders that the command is run by."""
    yield os.path.dirname(needs.executable)
    found = interpreter_of(needs.flight.attempt, needs.executable)
    if found is not None:
        yield from (found.prefix, found.base, *found.sites)
        yield from (path for site in found.sites for path in linked_folders(site))
    if needs.environment:
        yield needs.environment

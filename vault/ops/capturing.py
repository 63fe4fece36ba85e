"""Puts what was found of a run (vault/capture/look.py) into the store: code and environment as snapshots, facts as fields.

    capture(repository, subject)      for a program that looks with its own rights, as `vault run` does
    Staging                           for what comes from a helper through a pipe: checked, and kept in a folder meanwhile

A staging folder outlives its process: what is in it can be frozen when the store is there again. Whoever sent it is not
trusted: names stay inside the folder, and links are made last, so that nothing is ever written through one.
Threads: one at a time.
"""

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import msgspec

from vault.capture.found import (
    FILE_SIZE_MAX,
    TREE_FILES_MAX,
    TREE_SIZE_MAX,
    TREES_MAX,
    FoundEnvironment,
    FoundFacts,
    FoundFile,
    FoundLink,
    FoundTree,
    Item,
)
from vault.capture.look import Subject, look
from vault.errors import FormatError
from vault.format.records import CodeTree, Environment
from vault.format.tree import DEPTH_MAX, NAME_LENGTH_MAX
from vault.ops.freeze import freeze
from vault.repo.repository import Repository
from vault.stores.base import LocalFiles

__all__ = ["Staging", "Subject", "capture", "freeze_staged"]

_FOUND: Final = "found"
_ENVIRONMENT: Final = "environment"
_LOCK_NAME_MAX: Final = 128
_LOCKS_SIZE_MAX: Final = 16 << 20
_libc = ctypes.CDLL(None, use_errno=True)


class _Staged(msgspec.Struct, frozen=True, kw_only=True):
    """What a staging folder holds beside the trees."""

    trees: dict[int, CodeTree] = {}
    environment: Environment | None = None
    facts: FoundFacts = FoundFacts()


def capture(repository: Repository, subject: Subject) -> dict[str, object]:
    """Look at a program with the rights of this process, and put its code and environment into the store.

    Returns:
        Fields of a capture entry: code, environment, platform, variables, gaps.

    Raises:
        StoreError: as the store says. What else fails becomes a gap.
    """
    with tempfile.TemporaryDirectory(prefix="capture-", dir=_place(repository)) as folder:
        staging = Staging(folder)
        staging.take(look(replace(subject, forbidden=own_folders(repository))))
        staging.finish(durable=False)
        return freeze_staged(repository, folder)


def own_folders(repository: Repository) -> list[str]:
    """Return the folders of a repository on this machine, which are nobody's code."""
    local = [repository.store.url] if isinstance(repository.store, LocalFiles) else []
    return [os.path.realpath(path) for path in (repository.cache_root, *local)]


class Staging:
    """A folder that takes what is found."""

    def __init__(self, folder: str) -> None:
        """Use an empty folder, private to this process's user."""
        self._folder = folder
        self._trees: dict[int, CodeTree] = {}
        self._files: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._links: list[FoundLink] = []
        self._environment: Environment | None = None
        self._facts: FoundFacts | None = None

    def take(self, items: Iterable[Item]) -> None:
        """Keep what comes.

        Raises:
            FormatError: it is more, or named otherwise, than whoever looks may send.
            OSError: the folder cannot be written.
        """
        for item in items:
            if isinstance(item, FoundFile):
                self._take_file(item)
            elif isinstance(item, FoundLink):
                self._count(item.tree, len(item.target))
                self._links.append(item)
            elif isinstance(item, FoundTree):
                os.makedirs(self._root(self._number(item.tree)), 0o700, exist_ok=True)
                self._trees[item.tree] = item.facts
            elif isinstance(item, FoundEnvironment):
                self._take_environment(item)
            else:
                self._facts = item

    @property
    def is_complete(self) -> bool:
        """Whether whoever looked came to its end."""
        return self._facts is not None

    def finish(self, *gaps: str, durable: bool = True) -> None:
        """Complete the folder: from now on it can be frozen, by anybody and after any crash.

        Args:
            gaps: what else is not in it.
            durable: whether it is to survive a loss of power.
        """
        for link in self._links:
            path = self._path(link.tree, link.path)
            with contextlib.suppress(FileExistsError, NotADirectoryError, ValueError):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.symlink(link.target, path)
        facts = self._facts or FoundFacts()
        facts = msgspec.structs.replace(facts, gaps=(*gaps, *facts.gaps)[:64])
        data = msgspec.json.encode(_Staged(trees=self._trees, environment=self._environment, facts=facts))
        if durable:
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _libc.syncfs(descriptor)  # one wait for thousands of files
            finally:
                os.close(descriptor)
        with open(f"{self._folder}/{_FOUND}.new", "xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.rename(f"{self._folder}/{_FOUND}.new", f"{self._folder}/{_FOUND}")

    def _take_file(self, file: FoundFile) -> None:
        if len(file.data) > FILE_SIZE_MAX:
            raise FormatError("capture", f"a file of {len(file.data):,} bytes")
        self._count(file.tree, len(file.data))
        path = self._path(file.tree, file.path)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700 if file.executable else 0o600
            )
        except (FileExistsError, NotADirectoryError) as error:
            raise FormatError("capture", "two files of one name") from error
        with os.fdopen(descriptor, "wb") as target:
            target.write(file.data)

    def _take_environment(self, found: FoundEnvironment) -> None:
        if self._environment is not None:
            raise FormatError("capture", "two environments")
        if sum(map(len, found.locks.values())) > _LOCKS_SIZE_MAX:
            raise FormatError("capture", "too many lock files")
        root = f"{self._folder}/{_ENVIRONMENT}"
        os.mkdir(root, 0o700)
        with open(f"{root}/environment.json", "xb") as file:
            file.write(found.document)
        for name, data in found.locks.items():
            if not name or "/" in name or "\0" in name or name in (".", "..") or len(name) > _LOCK_NAME_MAX:
                raise FormatError("capture", "a lock file of that name")
            os.makedirs(f"{root}/lock", 0o700, exist_ok=True)
            with open(f"{root}/lock/{name}", "xb") as file:
                file.write(data)
        self._environment = Environment(
            snapshot="0" * 64,
            interpreter=found.interpreter[:1024],
            prefix=found.prefix[:4096],
            packages=max(found.packages, 0),
            libraries=max(found.libraries, 0),
        )

    def _count(self, tree: int, size: int) -> None:
        number = self._number(tree)
        self._files[number] = self._files.get(number, 0) + 1
        self._sizes[number] = self._sizes.get(number, 0) + size
        if self._files[number] > TREE_FILES_MAX or self._sizes[number] > 2 * TREE_SIZE_MAX:
            raise FormatError("capture", "a tree that is larger than allowed")

    def _number(self, tree: int) -> int:
        if not 0 <= tree < TREES_MAX:
            raise FormatError("capture", f"a tree number {tree}")
        return tree

    def _root(self, tree: int) -> bytes:
        return os.fsencode(f"{self._folder}/code-{tree}")

    def _path(self, tree: int, name: bytes) -> bytes:
        parts = name.split(b"/")
        bad = any(part in (b"", b".", b"..", b".git") or len(part) > NAME_LENGTH_MAX or b"\0" in part for part in parts)
        if bad or len(parts) > min(DEPTH_MAX, 100) or len(name) > 3000:
            raise FormatError("capture", "a path that leads elsewhere")
        return self._root(tree) + b"/" + name


def is_staged(folder: str) -> bool:
    """Say whether a staging folder is complete."""
    return os.path.exists(f"{folder}/{_FOUND}")


def freeze_staged(repository: Repository, folder: str) -> dict[str, object]:
    """Put what a complete staging folder holds into the store. Returns fields of a capture entry.

    Raises:
        FormatError: it is none.
        StoreError: as the store says; the folder may be tried again.
    """
    try:
        with open(f"{folder}/{_FOUND}", "rb") as file:
            staged = msgspec.json.decode(file.read(), type=_Staged)
    except (OSError, msgspec.MsgspecError) as error:
        raise FormatError("capture", f"{folder}: {error}") from error
    code = []
    for number, tree in sorted(staged.trees.items()):
        frozen = freeze(repository, os.fsencode(f"{folder}/code-{number}"), skip_special=True, as_it_is=True)
        code.append(
            msgspec.structs.replace(tree, snapshot=frozen.snapshot.hex(), files=frozen.files, bytes=frozen.size_bytes)
        )
    code.sort(key=lambda tree: not tree.script)
    environment = staged.environment
    if environment is not None:
        frozen = freeze(repository, os.fsencode(f"{folder}/{_ENVIRONMENT}"), as_it_is=True)
        environment = msgspec.structs.replace(environment, snapshot=frozen.snapshot.hex())
    return {
        "code": tuple(code),
        "environment": environment,
        "platform": staged.facts.platform,
        "variables": staged.facts.variables,
        "gaps": staged.facts.gaps,
    }


def _place(repository: Repository) -> str:
    place = os.path.join(repository.cache_dir, "captures")
    os.makedirs(place, 0o700, exist_ok=True)
    for name in os.listdir(place):
        path = f"{place}/{name}"
        with contextlib.suppress(OSError):
            if os.stat(path).st_mtime < os.stat(place).st_mtime - 86400:
                shutil.rmtree(path, ignore_errors=True)
    return place

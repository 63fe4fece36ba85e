"""The state of an edit view: what it stands on, and the layer with what was changed. No mount is made here.

A view of ~/clean keeps its state beside it, in ~/.clean.vault-edit (or elsewhere, then that name is a symlink):

    edit.json     store, version, which layer is in use; replaced as a whole
    layer-N/      upper and work of the overlay; N grows by one with each commit
    lower/        where the version is mounted for the view alone
    lock          held by the command that works on the view

So the state outlives reboots and a cache that is deleted. A list of the views of a user is kept beside (`views`), of
symlinks that may be lost: `vault edit DIR` finds the state by its place. Threads: one.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from vault.clock import format_time, now_ns
from vault.errors import FormatError, TargetUnwritable, UsageError
from vault.format.tree import Kind
from vault.ids import Digest, RunId, check_name, parse_digest
from vault.ops.descent import remove_tree
from vault.ops.diff import Change
from vault.ops.edit_commit import Base, EditCommit, commit_patch, survey
from vault.ops.edit_contents import Contents
from vault.ops.exclude import IGNORE_FILE, IGNORE_FILE_SIZE_MAX
from vault.ops.overlay_layer import TRUSTED, USER, Layer, read_layer
from vault.progress import SILENT, Progress
from vault.repo.content import read_content
from vault.repo.repository import Repository
from vault.repo.tree_edit import Changed, find_path
from vault.repo.trees import PagesAbove, TreeReader
from vault.settings import state_dir
from vault.stores.durable import sync_directory

STATE_SIZE_MAX: Final = 1 << 20
VIEWS_MAX: Final = 100_000  # of a user, in the list
VIEW_SOURCE: Final = "vault-edit-"  # begins what the table of mounts names as the source of a view
_STATE: Final = "edit.json"
_FORMAT: Final = 1
_LAYER: Final = "layer-"
_CAPABILITY: Final = 21  # CAP_SYS_ADMIN: to see attributes of the kind "trusted"


class ViewState(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down of a view."""

    format: int
    id: str
    store: str
    dataset: str
    version: int
    snapshot: str
    newest: int  # the newest version when the view came to stand on this one
    layer: int
    attributes: str  # how the kernel's own attributes begin
    created: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What a view has changed."""

    changes: list[Change]
    changed: Changed
    trees: TreeReader  # of both sides
    excluded: int
    files_read: int


@dataclass(slots=True)
class EditView:
    """A view: where it is, and its state as it was read last."""

    target: str
    folder: str
    state: ViewState

    @property
    def base(self) -> Base:
        """The version that it stands on."""
        state = self.state
        return Base(state.dataset, state.version, Digest(parse_digest(state.snapshot)), state.newest)

    @property
    def source(self) -> str:
        """What the table of mounts names as the source of its overlay."""
        return f"{VIEW_SOURCE}{self.state.id}"

    @property
    def layer(self) -> str:
        """The folder of the layer in use."""
        return os.path.join(self.folder, f"{_LAYER}{self.state.layer}")

    @property
    def upper(self) -> str:
        """What was changed."""
        return os.path.join(self.layer, "upper")

    @property
    def work(self) -> str:
        """The kernel's own folder beside it."""
        return os.path.join(self.layer, "work")

    @property
    def lower(self) -> str:
        """Where the store is mounted for this view."""
        return os.path.join(self.folder, "lower")

    def look(self, repository: Repository, *, pages: PagesAbove | None = None, progress: Progress = SILENT) -> Survey:
        """Return what was changed. Reads the layer alone, and contents that are not known by their times.

        Args:
            repository: of the view's store.
            pages: where the pages of the changed tree are put.
            progress: told how many files were looked at.

        Raises:
            SourceUnreadable, SourceChanged, SpecialFile: naming the file.
        """
        layer = self._read(repository)
        with Contents(repository, store=False, progress=progress) as contents:
            layer.fill(contents.digests(layer.files))
            changes, changed, trees = survey(repository, self.base.snapshot, layer.patch, pages)
            return Survey(changes, changed, trees, layer.excluded, contents.files_read)

    def commit(
        self,
        repository: Repository,
        *,
        message: str,
        author: str,
        run: RunId | None = None,
        rebase: bool = False,
        progress: Progress = SILENT,
    ) -> EditCommit:
        """Make what was changed the next version. The view's state is as before: see `advance`.

        Raises:
            SourceUnreadable, SourceChanged, SpecialFile: naming the file.
            EditConflict, StoreError: as `commit_patch`.
        """
        layer = self._read(repository)
        with Contents(repository, store=True, progress=progress) as contents:
            layer.fill(contents.digests(layer.files))
            done = commit_patch(
                repository,
                contents,
                self.base,
                layer.patch,
                message=message,
                author=author,
                run=run,
                rebase=rebase,
            )
            return replace(done, excluded=layer.excluded)

    def advance(self, done: EditCommit) -> None:
        """Let the view stand on what a commit has made, with an empty layer. One replaced file is all the change."""
        state = msgspec.structs.replace(
            self.state,
            version=done.version,
            snapshot=done.snapshot.hex(),
            newest=done.newest,
            layer=self.state.layer + 1,
        )
        _make_layer(self.folder, state.layer, self.upper)
        _write(self.folder, state)
        self.state = state

    def old_layers(self) -> list[str]:
        """Return layers that were committed: nothing in them is needed, but by who has them open."""
        names = [name for name in os.listdir(self.folder) if name.startswith(_LAYER)]
        numbers = [int(name.removeprefix(_LAYER)) for name in names if name.removeprefix(_LAYER).isdecimal()]
        return [os.path.join(self.folder, f"{_LAYER}{number}") for number in numbers if number < self.state.layer]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other commands from working on this view. Raises UsageError: one does."""
        descriptor = os.open(os.path.join(self.folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: a mount that is started inherits that
            except (BlockingIOError, PermissionError):
                raise UsageError(f"another command works on the edit view {self.target}: wait until it is done") from None
            self.state = _read(self.folder)
            yield
        finally:
            os.close(descriptor)

    def forget(self) -> None:
        """Remove the state of a view that is not mounted, with all that was changed. Its folder stays, empty."""
        remove_tree(os.fsencode(os.path.realpath(self.folder)))
        if os.path.islink(self.folder):
            os.unlink(self.folder)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(_views_dir(), self.state.id))

    def _read(self, repository: Repository) -> Layer:
        if self.state.attributes == TRUSTED and not _may_see_trusted():
            raise UsageError(f"the edit view {self.target} was made by root, who alone can read what was changed there")
        objects = repository.object_reader()
        try:
            trees, snapshot = TreeReader(objects), self.base.snapshot

            def read_ignore_file(folder: bytes) -> bytes | None:
                entry = find_path(trees, snapshot, folder + b"/" + IGNORE_FILE if folder else IGNORE_FILE)
                if entry is None or entry.kind not in (Kind.FILE, Kind.EXECUTABLE) or entry.size > IGNORE_FILE_SIZE_MAX:
                    return None
                return b"".join(bytes(piece) for piece in read_content(objects, entry))

            return read_layer(os.fsencode(self.upper), self.state.attributes, read_ignore_file)
        finally:
            objects.close()


def state_folder(target: str) -> str:
    """Return where the state of a view lies: beside it."""
    folder, name = os.path.split(os.path.abspath(target))
    if not name:
        raise UsageError(f"{target} cannot be an edit view: name a folder in another one")
    return os.path.join(folder, f".{name}.vault-edit")


def find_view(target: str) -> EditView | None:
    """Return the view of a folder, or None. Raises FormatError: its state is damaged."""
    target = real_target(target)
    folder = state_folder(target) if os.path.basename(target) else ""
    if not folder or not os.path.lexists(os.path.join(folder, _STATE)):
        return None
    return EditView(target, folder, _read(folder))


def open_view_of(target: str) -> EditView:
    """Return the view of a folder. Raises UsageError: there is none."""
    view = find_view(target)
    if view is None:
        raise UsageError(f"{target} is no edit view: 'vault edit REF {target}' makes one, 'vault edit --list' shows all")
    return view


def make_view(target: str, store: str, base: Base, *, attributes: str = TRUSTED, place: str = "") -> EditView:
    """Make the state of a new view, durably.

    Args:
        target: the folder that it will be seen in.
        store: URL of the store.
        base: what it stands on.
        attributes: TRUSTED, or USER in a user namespace.
        place: the folder in which the state lies; "": beside the target.

    Raises:
        UsageError: there is one.
        TargetUnwritable: it cannot be written there.
    """
    assert attributes in (TRUSTED, USER)
    folder = state_folder(target)
    state = ViewState(
        format=_FORMAT,
        id=secrets.token_hex(8),
        store=store,
        dataset=base.dataset,
        version=base.version,
        snapshot=base.snapshot.hex(),
        newest=base.newest,
        layer=1,
        attributes=attributes,
        created=format_time(now_ns()),
    )
    try:
        if os.path.lexists(folder):
            raise UsageError(f"{folder} is there already, and is no state of an edit view: remove it")
        real = folder
        if place:
            real = os.path.join(os.path.realpath(place), f"{os.path.basename(target)}-{state.id}")
        # It gets its name once it is complete: what a crash leaves is no view.
        unfinished = f"{real}.{state.id}"
        os.mkdir(unfinished, 0o700)
        os.mkdir(os.path.join(unfinished, "lower"), 0o755)
        _make_layer(unfinished, state.layer, None)
        _write(unfinished, state)
        os.rename(unfinished, real)
        sync_directory(os.path.dirname(real))
        if place:
            os.symlink(real, folder)
            sync_directory(os.path.dirname(folder))
    except OSError as error:
        raise TargetUnwritable(folder, error.strerror or str(error)) from error
    view = EditView(target, folder, state)
    enlist(view)
    return view


def enlist(view: EditView) -> None:
    """Put a view on the user's list, best effort: it is found without."""
    folder = _views_dir()
    with contextlib.suppress(OSError):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, view.state.id))
        os.symlink(view.folder, os.path.join(folder, view.state.id))


def views() -> list[EditView]:
    """Return the views on the user's list that are still there, by path."""
    found = []
    folder = _views_dir()
    try:
        names = sorted(os.listdir(folder))[:VIEWS_MAX]
    except OSError:
        return []
    for name in names:
        with contextlib.suppress(OSError, FormatError):
            place = os.readlink(os.path.join(folder, name))
            target = os.path.join(os.path.dirname(place), os.path.basename(place)[1:].removesuffix(".vault-edit"))
            found.append(EditView(target, place, _read(place)))
    return sorted(found, key=lambda view: view.target)


def real_target(target: str) -> str:
    """Return the path of a view without symlinks, not touching the last part: a dead mount may be on it."""
    named = os.path.abspath(os.path.expanduser(target))
    named = os.path.realpath(named) if os.path.islink(named) else named
    return os.path.join(os.path.realpath(os.path.dirname(named)), os.path.basename(named))


def _views_dir() -> str:
    return os.path.join(state_dir(), "edits")


def _make_layer(folder: str, number: int, like: str | None) -> None:
    """Make an empty layer in the place of what a killed command has left; its root has the mode and owner of another's."""
    layer = os.path.join(folder, f"{_LAYER}{number}")
    if os.path.lexists(layer):
        remove_tree(os.fsencode(layer))
    os.mkdir(layer, 0o700)
    upper = os.path.join(layer, "upper")
    os.mkdir(upper, 0o755)
    os.mkdir(os.path.join(layer, "work"), 0o700)
    if like is not None:
        status = os.stat(like)
        os.chown(upper, status.st_uid, status.st_gid)
        os.chmod(upper, stat.S_IMODE(status.st_mode))
    sync_directory(layer)
    sync_directory(folder)


def _write(folder: str, state: ViewState) -> None:
    path = os.path.join(folder, _STATE)
    descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, msgspec.json.format(msgspec.json.encode(state)) + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(f"{path}.new", path)
    sync_directory(folder)


def _read(folder: str) -> ViewState:
    path = os.path.join(folder, _STATE)
    try:
        with open(path, "rb") as file:
            data = file.read(STATE_SIZE_MAX)
        state = msgspec.json.decode(data, type=ViewState)
        check_name(state.dataset)
        parse_digest(state.snapshot)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise UsageError(f"{path} belongs to another user: only its owner may work on this edit view") from error
        raise FormatError("edit view", f"{path}: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise FormatError("edit view", f"{path}: {error}") from error
    if state.format > _FORMAT:
        raise FormatError("edit view", f"{path} has format {state.format}, made by a newer vault: upgrade vaultfs")
    return state


def _may_see_trusted() -> bool:
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> _CAPABILITY & 1)
    except (OSError, ValueError):
        pass
    return os.geteuid() == 0

"""`vault edit`, and `vault commit` of an edit view."""

import contextlib
import os
import shlex
import subprocess
from collections.abc import Sequence
from typing import Final

import click

from vault.api import Vault, open_vault, user_name
from vault.cli.change_text import totals_text
from vault.cli.commands import examples
from vault.cli.options import Session, complete_ref, completer, session_options
from vault.cli.output import count_text, digest_text, one_line, size_text
from vault.errors import MountError, UsageError
from vault.ids import RunId, parse_ref
from vault.ops.edit_commit import Base, EditCommit
from vault.ops.edit_view import EditView, enlist, find_view, make_view, open_view_of, real_target, views
from vault.ops.overlay_layer import TRUSTED, USER
from vault.repo.liveness import hold, is_held
from vault_fuse import device as fuse_device
from vault_fuse import overlay
from vault_fuse.mounting import choose_engine
from vault_fuse.overlay_session import run_in_view
from vault_fuse.users import User

_SESSION: Final = "session"  # held as long as a command runs in the view


@click.command(
    epilog=examples(
        "vault edit imagenet@v3 ~/clean",
        "vault status ~/clean; vault commit ~/clean -m 'non-JPEGs removed'",
        "vault edit ~/clean",
        "vault edit imagenet@v3 ~/clean -- bash",
        "vault edit --list",
        "vault edit --discard ~/clean",
    )
)
@click.argument("ref", required=False, default="", shell_complete=complete_ref)
@click.argument("target", metavar="[DIR]", required=False, default="", shell_complete=completer("complete_folder"))
@click.argument("command", metavar="[-- COMMAND…]", nargs=-1, type=click.UNPROCESSED)
@click.option("--state", metavar="DIR", default="", help="Where to keep what is changed; beside the view if left out.")
@click.option("--list", "list_all", is_flag=True, help="List your edit views.")
@click.option("--detach", metavar="DIR", default="", help="Take a view out of sight, and keep what was changed.")
@click.option("--discard", metavar="DIR", default="", help="End a view; what was not committed is lost.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before something is lost.")
@session_options
def edit(
    session: Session,
    ref: str,
    target: str,
    command: tuple[str, ...],
    state: str,
    list_all: bool,
    detach: str,
    discard: str,
    yes: bool,
) -> int | None:
    """Show the version REF in the empty folder DIR, where it can be changed with any tool. Nothing is copied.

    'vault status DIR' says what was changed, 'vault commit DIR' makes it the next version. What was changed survives
    crashes and restarts: 'vault edit DIR' shows it again. Who is not root gives a COMMAND, such as a shell: it alone
    sees the view.
    """
    if list_all or detach or discard:
        if list_all:
            _list(session)
        if detach:
            _detach(session, open_view_of(detach))
        if discard:
            _discard(session, open_view_of(discard), yes=yes)
        return None
    if not target:
        ref, target = "", ref
    if not target:
        raise UsageError("name a version and an empty folder: vault edit imagenet@v3 ~/clean")
    target = real_target(target)
    view, is_new = find_view(target), False
    if view is None:
        if not ref:
            raise UsageError(
                f"{target} is no edit view: name the version too: vault edit imagenet@v3 {shlex.quote(target)}"
            )
        view, is_new = _make(session, ref, target, state), True
    elif ref:
        _check_same(view, session, ref)
    may_mount = fuse_device.can_mount_directly()
    try:
        with view.held():
            was_to_do = may_mount and overlay.show(view, lambda: _start_lower(session, view))
            if not may_mount and command:
                _refuse_in_session(view)
                overlay.check_target(view)
                _start_lower(session, view)
    except MountError:
        if is_new:
            with contextlib.suppress(MountError, OSError):
                overlay.take_away(view, lower=True)
                view.forget()
        raise
    enlist(view)
    if not may_mount:
        return _run_for_user(view, command)
    _say_shown(session, view, was_to_do=was_to_do)
    return subprocess.run(command, cwd=view.target, check=False).returncode if command else None


def commit_view(session: Session, target: bytes, *, message: str, author: str, rebase: bool) -> None:
    """Carry out `vault commit DIR` for an edit view.

    Raises:
        UsageError: DIR is no edit view.
        EditConflict: others have committed; nothing was changed.
    """
    view, out = open_view_of(os.fsdecode(target)), session.out
    vault = open_vault(view.state.store, cache_dir=session.cache_dir)
    users: list[User] = []
    with view.held():
        before = view.base
        is_shown = overlay.is_shown(view)
        if is_shown:
            overlay.make_read_only(view)
        else:
            _refuse_in_session(view)
        try:
            with out.progress() as progress:
                done = view.commit(
                    vault.repository,
                    message=message,
                    author=author or user_name(),
                    run=_own_run(vault),
                    rebase=rebase,
                    progress=progress,
                )
        except BaseException:
            if is_shown:
                overlay.make_writable(view)
            raise
        has_moved = done.version != before.version
        if has_moved:
            if is_shown:
                users = overlay.take_away(view, lower=False, although_used=True)
            view.advance(done)
            if is_shown:
                overlay.show(view, lambda: _start_lower(session, view))
            overlay.sweep(view)
        elif is_shown:
            overlay.make_writable(view)
    _say_committed(session, view, done)
    if users:
        out.note(
            f"{overlay.users_text(users)} still sees {before.ref} as it was edited, read-only: enter {view.target} anew "
            "there, as with 'cd \"$PWD\"'"
        )
    if has_moved and not is_shown:
        out.note(f"the view is not mounted: 'vault edit {shlex.quote(view.target)}' shows it")


def _make(session: Session, ref: str, target: str, place: str) -> EditView:
    vault = session.open()
    parsed = parse_ref(ref)
    if parsed.path:
        raise UsageError(f"{ref}: an edit view shows a whole version: vault edit {parsed.name}@{parsed.selector} DIR")
    version = vault.version(ref)
    newest = vault.dataset(parsed.name).newest
    base = Base(parsed.name, version.number, version.snapshot, newest)
    attributes = TRUSTED if fuse_device.can_mount_directly() else USER
    if os.path.isdir(target) and os.listdir(target):
        raise MountError(target, "is not empty: an edit view needs a folder of its own")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    return make_view(target, vault.url, base, attributes=attributes, place=place)


def _check_same(view: EditView, session: Session, ref: str) -> None:
    """Raise UsageError if a view is of something else than is asked for: nothing is taken for what it is not."""
    parsed = parse_ref(ref)
    version = open_vault(view.state.store, cache_dir=session.cache_dir).version(ref)
    if parsed.name != view.base.dataset or version.number != view.base.version:
        raise UsageError(
            f"{view.target} is an edit view of {view.base.ref}: 'vault edit {view.target}' shows it; to edit {ref}, name "
            f"another folder, or end this one with 'vault edit --discard {view.target}'"
        )


def _start_lower(session: Session, view: EditView) -> None:
    overlay.start_lower(view, view.state.store, session.cache_dir, choose_engine(session.engine))


def _run_for_user(view: EditView, command: Sequence[str]) -> int:
    """Run a command in the view, as a child, and take away what the view stands on when it has ended."""
    if not command:
        raise MountError(
            view.target,
            f"who is not root sees an edit view in a command of its own: vault edit {view.target} -- bash",
        )
    held = hold(os.path.join(view.folder, _SESSION))
    child = os.fork()
    if not child:
        try:
            run_in_view(view, command)
        except MountError as error:
            os.write(2, f"vault: {one_line(str(error))}\n".encode(errors="backslashreplace"))
        finally:
            os._exit(126)
    _, status = os.waitpid(child, 0)
    overlay.take_away(view, lower=True)
    os.close(held)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _refuse_in_session(view: EditView) -> None:
    """Raise UsageError if a command sees the view that this process does not see: its work must not be taken apart."""
    if is_held(os.path.join(view.folder, _SESSION)):
        raise UsageError(f"{view.target} is being edited in a command of 'vault edit': work on it there, or end that first")


def _say_shown(session: Session, view: EditView, *, was_to_do: bool) -> None:
    out, target = session.out, view.target
    out.summary(
        {"path": target, "ref": view.base.ref, "state": view.folder, "mounted": was_to_do},
        one_line(f"{view.base.ref} can be edited in {target}" if was_to_do else f"{target} shows {view.base.ref} already"),
    )
    quoted = shlex.quote(target)
    out.note(f"'vault status {quoted}' says what was changed, 'vault commit {quoted} -m WHY' makes it a version")


def _say_committed(session: Session, view: EditView, done: EditCommit) -> None:
    out = session.out
    changes = done.changes
    record = {
        "dataset": done.dataset,
        "version": done.version,
        "ref": done.ref,
        "snapshot": done.snapshot.hex(),
        "files": done.files,
        "bytes": done.size_bytes,
        "new_bytes": done.new_bytes,
        "stored_bytes": done.stored_bytes,
        "files_read": done.files_read,
        "excluded": done.excluded,
        "skipped_special": 0,
        "unchanged": done.unchanged,
        "elapsed_s": round(out.elapsed_s, 3),
        "path": view.target,
        "parent": done.parent,
        "rebased": done.rebased,
        "added": changes.added,
        "removed": changes.removed,
        "changed": changes.changed,
        "renamed": changes.renamed,
    }
    totals = f"{digest_text(done.snapshot)}  {count_text(done.files, 'file')}  {size_text(done.size_bytes)}"
    news = f"{totals_text(changes)}; {size_text(done.stored_bytes)} stored"
    news = "nothing new, no version made" if done.unchanged else news
    on_top = f" on top of {done.parent}" if done.rebased else ""
    out.summary(record, f"{out.styled(done.ref, 'yellow')}  {totals}  ({news}{on_top})")
    if out.quiet:
        out.lines([done.ref])


def _list(session: Session) -> None:
    out, found = session.out, views()
    rows = []
    for view in found:
        shown = overlay.is_shown(view)
        out.answer(
            "view",
            {"path": view.target, "ref": view.base.ref, "store": view.state.store, "state": view.folder, "mounted": shown},
        )
        rows.append((out.styled(view.base.ref, "yellow"), view.target, "" if shown else "not mounted"))
    out.table(rows)
    out.summary({"views": len(found)})


def _detach(session: Session, view: EditView) -> None:
    with view.held():
        overlay.take_away(view, lower=True)
    session.out.summary({"path": view.target}, one_line(f"{view.target} is out of sight"))
    session.out.note(f"what was changed is kept: 'vault edit {shlex.quote(view.target)}' shows it again")


def _discard(session: Session, view: EditView, *, yes: bool) -> None:
    out = session.out
    with view.held():
        lost = _lost(session, view)
        if lost and not yes:
            if not out.is_terminal or out.as_json:
                raise UsageError(f"{view.target}: {lost} would be lost; commit it, or add --yes")
            if not click.confirm(f"{lost} in {view.target} will be lost. Go on?", err=True):
                raise UsageError("nothing was done")
        overlay.take_away(view, lower=True)
        view.forget()
    out.summary({"path": view.target, "lost": lost}, one_line(f"the edit view {view.target} is ended"))


def _lost(session: Session, view: EditView) -> str:
    """Return in words what was changed and not committed."""
    changes = view.look(open_vault(view.state.store, cache_dir=session.cache_dir).repository).changes
    return "" if not changes else f"{len(changes):,} {'change' if len(changes) == 1 else 'changes'}"


def _own_run(vault: Vault) -> RunId | None:
    from vault.capture.this_process import run_on_record

    repository = vault.repository
    return run_on_record(repository.config.store, os.path.join(repository.cache_dir, "spool"))

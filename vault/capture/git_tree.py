"""What git knows of a tree of code: commit, branch, remote, which files it tracks, and which it does not ignore.

A tree's own configuration may name programs (filters, fsmonitor, hooks, transports). None is ever run: only commands that
read the index and the objects are asked, with no configuration but the tree's, no transport and no lock; what differs from
the index is found by hashing the files here. So filters are not applied: a file under one (LFS) counts as changed.
A tree that is neither the caller's nor root's is not shown to git at all; head and remote are then read by hand.
Threads: safe.
"""

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from typing import Final

from vault.capture.proc import decode, read_bounded
from vault.capture.redaction import redact_url

LISTING_SIZE_MAX: Final = 64 << 20
TIME_MAX_S: Final = 20.0
_SMALL: Final = 64 << 10
_OPTIONS: Final = tuple(
    word
    for setting in (
        *("core.fsmonitor=false", "core.hooksPath=/dev/null", "core.attributesFile=/dev/null", "protocol.allow=never"),
        *("safe.directory=*", "core.untrackedCache=false", "maintenance.auto=false", "core.pager=cat"),
    )
    for word in ("-c", setting)
)


class GitFailed(Exception):
    """git did not answer; says why, for the list of gaps."""


@dataclass(slots=True)
class GitTree:
    """A worktree."""

    root: str
    head: str = ""
    branch: str = ""
    remote: str = ""
    tracked: dict[bytes, tuple[str, str]] = field(default_factory=dict)  # path -> mode, ID of its content in the index
    staged: set[bytes] = field(default_factory=set)  # paths whose index differs from head
    untracked: list[bytes] = field(default_factory=list)


def find_worktree(folder: str) -> str:
    """Return the root of the worktree that a folder is in, or ""; not beyond the file system that it is on."""
    folder = os.path.abspath(folder)
    try:
        device = os.stat(folder).st_dev
        while os.stat(folder).st_dev == device:
            if os.path.lexists(f"{folder}/.git"):
                return folder
            if folder == "/":
                break
            folder = os.path.dirname(folder)
    except OSError:
        pass
    return ""


def is_strange(root: str) -> int | None:
    """Return the owner of a worktree that is neither ours nor root's; None if it is."""
    for path in (root, f"{root}/.git"):
        owner = os.stat(path).st_uid
        if owner not in (0, os.geteuid()):
            return owner
    return None


def ask_git(root: str, *, exclude: Sequence[str] = ()) -> GitTree:
    """Return what git says of a worktree.

    Args:
        root: where its `.git` is.
        exclude: folders below it that must not be entered, relative to it.

    Raises:
        GitFailed: it is not installed, cannot read the tree, or took too long.
    """
    until_s = time.monotonic() + TIME_MAX_S
    tree = GitTree(root)
    tracked = _git(root, until_s, "ls-files", "-s", "-z")
    for line in tracked.split(b"\0"):
        facts, tab, path = line.partition(b"\t")
        parts = facts.split()
        if tab and len(parts) == 3:
            tree.tracked[path] = (parts[0].decode("ascii", "replace"), parts[1].decode("ascii", "replace"))
    excludes = [word for path in exclude for word in ("-x", f"/{_escape(path)}/")]
    others = _git(root, until_s, "ls-files", "--others", "--exclude-standard", "-z", *excludes)
    tree.untracked = [path for path in others.split(b"\0") if path and not path.endswith(b"/")]
    tree.head = _line(root, until_s, "rev-parse", "--verify", "-q", "HEAD")
    tree.branch = _line(root, until_s, "symbolic-ref", "-q", "--short", "HEAD")
    remotes = _line(root, until_s, "config", "--local", "--get-regexp", r"^remote\..*\.url$").splitlines()
    urls = {name: url for name, _, url in (line.partition(" ") for line in remotes)}
    tree.remote = redact_url(urls.get("remote.origin.url") or next(iter(urls.values()), ""))
    if tree.head:
        differs = _git(
            root, until_s, "diff-index", "--cached", "--name-only", "--no-renames", "--no-ext-diff", "-z", "HEAD"
        )
        tree.staged = {path for path in differs.split(b"\0") if path}
    else:
        tree.staged = set(tree.tracked)
    return tree


def read_by_hand(root: str) -> GitTree:
    """Return head, branch and remote of a worktree as its files say, as far as they do."""
    tree = GitTree(root)
    folder = f"{root}/.git"
    link = _small(folder)
    if link.startswith("gitdir:"):  # a linked worktree, or a submodule
        folder = os.path.join(root, link[7:].strip())
    common = os.path.join(folder, _small(f"{folder}/commondir").strip() or ".")
    head = _small(f"{folder}/HEAD").strip()
    if head.startswith("ref:"):
        ref = head[4:].strip()
        tree.branch = ref.removeprefix("refs/heads/")
        head = ""
        if ref.startswith("refs/") and ".." not in ref:
            head = _small(f"{folder}/{ref}").strip() or _small(f"{common}/{ref}").strip() or _packed(common, ref)
    tree.head = head if len(head) in (40, 64) and all(c in "0123456789abcdef" for c in head) else ""
    section = ""
    for line in map(str.strip, _small(f"{common}/config").splitlines()):
        if line.startswith("["):
            section = line
        elif section.startswith("[remote ") and line.partition("=")[0].strip() == "url":
            tree.remote = redact_url(line.partition("=")[2])
            if section == '[remote "origin"]':
                break
    return tree


def is_as_indexed(data: bytes, content_id: str) -> bool:
    """Say whether a file's bytes are those that the index names, line ends aside as git may convert them."""
    make = sha1 if len(content_id) == 40 else sha256
    for bytes_ in (data, data.replace(b"\r\n", b"\n")) if b"\r\n" in data else (data,):
        if make(b"blob %d\0" % len(bytes_) + bytes_, usedforsecurity=False).hexdigest() == content_id:
            return True
    return False


def _packed(folder: str, ref: str) -> str:
    try:
        lines = decode(read_bounded(f"{folder}/packed-refs", 4 << 20)).splitlines()
    except OSError:
        return ""
    return next((line.split(" ")[0] for line in lines if line.endswith(f" {ref}")), "")


def _small(path: str) -> str:
    try:
        return decode(read_bounded(path, _SMALL))
    except OSError:
        return ""


def _escape(path: str) -> str:
    return "".join(f"\\{c}" if c in "\\*?[]!# " else c for c in path)


def _line(root: str, until_s: float, *arguments: str) -> str:
    """Return the answer to a question that may have none."""
    try:
        return decode(_git(root, until_s, *arguments)).strip()
    except GitFailed:
        return ""


def _git(root: str, until_s: float, *arguments: str) -> bytes:
    program = shutil.which("git", path="/usr/local/bin:/usr/bin:/bin")
    if program is None:
        raise GitFailed("git is not installed")
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
    }
    command = [program, "--no-pager", "--literal-pathspecs", *_OPTIONS, "-C", root, f"--work-tree={root}", *arguments]
    command.insert(-len(arguments), f"--git-dir={root}/.git")
    try:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd="/", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise GitFailed(f"git cannot be started: {error.strerror}") from error
    try:
        output, words = _read_both(process, until_s)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
        process.wait()
    if process.returncode:
        raise GitFailed(
            f"git cannot read it: {decode(words).strip().splitlines()[0][:200] if words.strip() else 'no reason'}"
        )
    return output


def _read_both(process: "subprocess.Popen[bytes]", until_s: float) -> tuple[bytes, bytes]:
    assert process.stdout is not None
    assert process.stderr is not None
    parts: dict[int, bytearray] = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    limits = dict(zip(parts, (LISTING_SIZE_MAX, _SMALL), strict=True))
    left = set(parts)
    while left:
        ready = select.select(list(left), [], [], max(until_s - time.monotonic(), 0))[0]
        if not ready:
            raise GitFailed(f"git took longer than {TIME_MAX_S:.0f} s")
        for descriptor in ready:
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                left.discard(descriptor)
            elif len(parts[descriptor]) + len(piece) <= limits[descriptor]:
                parts[descriptor] += piece
            elif descriptor == process.stdout.fileno():
                raise GitFailed(f"git lists more than {LISTING_SIZE_MAX >> 20} MiB of names")
    out, words = (bytes(part) for part in parts.values())
    return out, words


def walk_plain(root: str, *, files_max: int, forbidden: Sequence[str] = ()) -> Iterator[bytes]:
    """Yield the paths of files below a folder that is under no version control, as far as they may be code; bounded."""
    device = os.stat(root).st_dev
    places = {os.fsencode(path) for path in forbidden}
    count = 0
    for folder, folders, files in os.walk(os.fsencode(root)):
        depth = folder.count(b"/") - os.fsencode(root).count(b"/")
        folders[:] = sorted(
            name
            for name in folders
            if depth < 8
            and not name.startswith(b".")
            and name not in (b"__pycache__", b"node_modules", b"site-packages", b"wandb", b"mlruns", b"lightning_logs")
            and not os.path.exists(folder + b"/" + name + b"/pyvenv.cfg")
            and folder + b"/" + name not in places
            and _device(folder + b"/" + name) == device
        )
        for name in sorted(files):
            count += 1
            if count > files_max:
                return
            yield os.path.relpath(folder + b"/" + name, os.fsencode(root))


def _device(path: bytes) -> int:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return -1

"""The code of a run as it lies on disk: the git worktree that it runs in, or the script and the modules beside it.

Files are read once, with caps on each, on all and on their number; what is over a cap, may hold secrets, or cannot be read
is named instead. Symlinks are kept and never followed, other file systems below a tree never entered: a mount of ours may
be one. Threads: safe.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from vault.capture.found import (
    FILE_SIZE_MAX,
    TREE_FILES_MAX,
    TREE_SIZE_MAX,
    TREES_MAX,
    FoundFile,
    FoundLink,
    FoundTree,
    Item,
    LeftOut,
    listed,
)
from vault.capture.git_tree import (
    GitFailed,
    GitTree,
    ask_git,
    find_worktree,
    is_as_indexed,
    is_strange,
    read_by_hand,
    walk_plain,
)
from vault.capture.proc import decode
from vault.format.records import CodeTree

TREE_TIME_S_MAX: Final = 30.0
_PLAIN_FILES_MAX: Final = 5_000
_PLAIN_FILE_SIZE_MAX: Final = 1 << 20
_PLAIN_SIZE_MAX: Final = 32 << 20
_NO_SNAPSHOT: Final = "0" * 64
_SOURCE_SUFFIXES: Final = (
    ".py .pyx .pxd .pyi .ipynb .sh .bash .zsh .pl .rb .r .R .jl .lua .m .js .ts .go .rs .c .h .cc .cpp .cu .cuh .hpp .java "
    ".scala .yaml .yml .json .toml .cfg .ini .conf .txt .md .sql .gin .jsonnet .hcl .mk .cmake"
).split()
_SCRIPT_SUFFIXES: Final = (".py", ".sh", ".bash", ".pl", ".rb", ".R", ".r", ".jl", ".lua", ".js", ".m", ".ipynb")
_INTERPRETERS: Final = (
    "python",
    "pypy",
    "bash",
    "sh",
    "dash",
    "zsh",
    "ksh",
    "perl",
    "ruby",
    "Rscript",
    "julia",
    "node",
    "lua",
)
_SYSTEM: Final = ("/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/", "/opt/", "/proc/", "/sys/", "/dev/", "/nix/", "/snap/")
_SECRET_FILES: Final = frozenset(
    (
        ".env .netrc _netrc .pypirc .npmrc .git-credentials .pgpass .htpasswd .dockercfg id_rsa id_dsa id_ecdsa id_ed25519 "
        "credentials credentials.json secrets.json secrets.yaml secrets.yml secrets.toml kaggle.json .boto .s3cfg"
    ).split()
)
_SECRET_SUFFIXES: Final = (".pem", ".key", ".p12", ".pfx", ".jks", ".keystore", ".kdbx", ".ppk")


@dataclass(slots=True)
class _Tree:
    """A tree while it is read."""

    number: int
    root: str
    left_out: LeftOut = field(default_factory=LeftOut)
    files: int = 0
    size_bytes: int = 0
    until_s: float = 0.0
    device: int = 0
    files_max: int = TREE_FILES_MAX
    file_size_max: int = FILE_SIZE_MAX
    size_max: int = TREE_SIZE_MAX


def find_script(command: Sequence[str], cwd: str) -> str:
    """Return the absolute path of the script or module that a command runs; "" if it names none that is there.

    The first word counts as well (`./train.sh`); tools of the system or of a virtual environment are no scripts of a run.
    """
    words = list(command[:256])
    is_module = False
    for index, word in enumerate(words):
        if is_module:
            base = os.path.join(cwd or "/", *word.split("."))
            for path in (f"{base}.py", f"{base}/__main__.py"):
                if os.path.isfile(path):
                    return os.path.normpath(path)
            is_module = False
            continue
        if word in ("-m", "--module") and index:
            is_module = True
            continue
        if not word or word.startswith("-") or len(word) > 4096:
            continue
        path = os.path.normpath(os.path.join(cwd or "/", word))
        runs = word.endswith(_SCRIPT_SUFFIXES) or (index == 0 and "/" in word) or (index == 1 and _is_interpreter(words[0]))
        if runs and os.path.isfile(path) and not _is_tool(path) and (index or _has_shebang(path)):
            return path
    return ""


def look_at_code(
    scripts: Sequence[str], cwd: str, forbidden: Sequence[str], gaps: list[str], *, may_ask_git: bool = True
) -> Iterator[Item]:
    """Yield the files of each tree of code, and the tree behind them.

    Args:
        scripts: what was run, absolute paths; the one that counts most first.
        cwd: where the run was started.
        forbidden: folders that are never entered: mounts, the store.
        gaps: takes what could not be captured.
        may_ask_git: whether git may be started.
    """
    trees: dict[tuple[str, bool], str] = {}  # (root, whether git keeps it) -> script, in the order of the scripts
    for script in scripts:
        root = find_worktree(os.path.dirname(script))
        if _is_below(root or script, forbidden):
            continue
        if root:
            trees.setdefault((root, True), script)
        elif not any(is_git and os.path.commonpath([script, known]) == known for known, is_git in trees):
            trees.setdefault((os.path.dirname(script), False), script)
    if cwd and (root := find_worktree(cwd)) and not _is_below(root, forbidden):
        trees.setdefault((root, True), "")
    for number, ((root, is_git), script) in enumerate(list(trees.items())[:TREES_MAX]):
        if is_git:
            yield from _git_tree(number, root, script, forbidden, gaps, may_ask_git)
        else:
            yield from _plain_tree(number, root, script, forbidden)
    if not trees:
        gaps.append("code: the command names no script, and it was not started in a git worktree")


def _git_tree(
    number: int, root: str, script: str, forbidden: Sequence[str], gaps: list[str], may_ask_git: bool
) -> Iterator[Item]:
    git = GitTree(root)
    is_known = False
    try:
        owner = is_strange(root)
        if not may_ask_git:
            gaps.append(
                f"code: {root} is in a container, where git is not started: what is changed or ignored is not known"
            )
        elif owner is None:
            inside = [os.path.relpath(path, root) for path in forbidden if path.startswith(f"{root}/")]
            git = ask_git(root, exclude=inside)
            is_known = True
        else:
            gaps.append(f"code: {root} belongs to another user ({owner}), so git was not asked what is changed or ignored")
    except (GitFailed, OSError) as error:
        gaps.append(f"code: {root}: {error}; what is changed or ignored is not known"[:1024])
    tree = _tree(number, root)
    if not is_known:
        git = read_by_hand(root)
        yield from _files(tree, _front(_plain_names(tree, forbidden), script, root), script)
        yield _finished(tree, script, git)
        return
    changed: set[bytes] = set(git.staged)
    names = [*git.tracked, *git.untracked]
    script_name = os.fsencode(os.path.relpath(script, root)) if script else b""
    if script_name and script_name not in git.tracked and script_name not in git.untracked:
        git.untracked.append(script_name)  # it is ignored, but it ran
        names.append(script_name)
    for name in _front(names, script, root):
        mode, content_id = git.tracked.get(name, ("", ""))
        if mode == "160000":
            tree.left_out.add(decode(name), f"a submodule at {content_id}")
            continue
        if content_id and not os.path.lexists(os.fsencode(root) + b"/" + name):
            changed.add(name)
            continue
        for item in _files(tree, [name], script):
            if content_id and isinstance(item, FoundFile | FoundLink):
                data = item.data if isinstance(item, FoundFile) else item.target
                if not is_as_indexed(data, content_id):
                    changed.add(name)
            yield item
    yield _finished(tree, script, git, sorted(changed))


def _plain_tree(number: int, folder: str, script: str, forbidden: Sequence[str]) -> Iterator[Item]:
    """Yield the script, and source files in and below its folder; that one alone where many others keep theirs."""
    tree = _tree(number, folder)
    tree.file_size_max, tree.size_max = _PLAIN_FILE_SIZE_MAX, _PLAIN_SIZE_MAX
    own = os.fsencode(os.path.basename(script))
    shared = folder in ("/", "/tmp", "/var/tmp", "/dev/shm", "/home", "/root") or os.path.dirname(folder) == "/home"
    if shared:
        tree.left_out.add(folder, "a folder for everybody's files: only the script itself is kept")
        names = [own]
    else:
        names = [own, *(name for name in _plain_names(tree, forbidden) if name != own and _is_source(name))]
    yield from _files(tree, names, script)
    yield _finished(tree, script, GitTree(folder))


def _plain_names(tree: _Tree, forbidden: Sequence[str]) -> list[bytes]:
    names = list(walk_plain(tree.root, files_max=_PLAIN_FILES_MAX + 1, forbidden=forbidden))
    if len(names) > _PLAIN_FILES_MAX:
        tree.left_out.add("files", f"only the first {_PLAIN_FILES_MAX:,} were looked at")
    return names


def _files(tree: _Tree, names: Sequence[bytes], script: str) -> Iterator[FoundFile | FoundLink]:
    for name in names:
        shown = decode(name)
        if _may_hold_secrets(os.path.basename(shown)):
            tree.left_out.add(shown, "files of this name hold secrets")
        elif tree.files >= tree.files_max:
            tree.left_out.add(shown, f"more than {tree.files_max:,} files")
        elif time.monotonic() > tree.until_s:
            tree.left_out.add(shown, f"reading took longer than {TREE_TIME_S_MAX:.0f} s")
        else:
            item = _read(tree, name, shown)
            if item is not None:
                yield item


def _read(tree: _Tree, name: bytes, shown: str) -> FoundFile | FoundLink | None:
    path = os.fsencode(tree.root) + b"/" + name
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            tree.files += 1
            return FoundLink(tree.number, name, os.readlink(path))
        if not stat.S_ISREG(status.st_mode):
            tree.left_out.add(shown, "no regular file")
            return None
        if status.st_dev != tree.device:
            tree.left_out.add(shown, "on another file system")
            return None
        if status.st_size > tree.file_size_max:
            tree.left_out.add(shown, f"larger than {tree.file_size_max >> 20} MiB ({status.st_size:,} bytes)")
            return None
        if tree.size_bytes + status.st_size > tree.size_max:
            tree.left_out.add(shown, f"all together larger than {tree.size_max >> 20} MiB")
            return None
        data = _content(path, tree.file_size_max)
    except OSError as error:
        if error.errno != errno.ENOENT:
            tree.left_out.add(shown, error.strerror or str(error))
        return None
    if data is None:
        tree.left_out.add(shown, "it grew while it was read")
        return None
    tree.files += 1
    tree.size_bytes += len(data)
    return FoundFile(tree.number, name, data, bool(status.st_mode & stat.S_IXUSR))


def _content(path: bytes, size_max: int) -> bytes | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        parts = []
        left = size_max + 1
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts) if left else None
    finally:
        os.close(descriptor)


def _tree(number: int, root: str) -> _Tree:
    try:
        device = os.stat(root).st_dev
    except OSError:
        device = -1
    return _Tree(number, root, until_s=time.monotonic() + TREE_TIME_S_MAX, device=device)


def _finished(tree: _Tree, script: str, git: GitTree, changed: Sequence[bytes] = ()) -> FoundTree:
    facts = CodeTree(
        root=tree.root[:4096],
        snapshot=_NO_SNAPSHOT,
        files=0,
        bytes=0,
        script=os.path.relpath(script, tree.root)[:4096] if script else "",
        vcs="git" if os.path.lexists(f"{tree.root}/.git") else "",
        head=git.head[:64],
        branch=git.branch[:1024],
        remote=git.remote[:1024],
        changed=listed([decode(name) for name in changed]),
        untracked=listed([decode(name) for name in sorted(git.untracked)]),
        left_out=tree.left_out.texts(),
    )
    return FoundTree(tree.number, facts)


def _front(names: Sequence[bytes], script: str, root: str) -> list[bytes]:
    """Return names with the script first, then its folder, so that a cap leaves out what lies farther away."""
    own = os.fsencode(os.path.relpath(script, root)) if script else b""
    folder = os.path.dirname(own)
    near = folder + b"/" if folder else b""
    return sorted(names, key=lambda name: (name != own, not name.startswith(near), name.count(b"/")))


def _is_source(name: bytes) -> bool:
    base = decode(os.path.basename(name))
    return base.endswith(tuple(_SOURCE_SUFFIXES)) or base in ("Makefile", "Dockerfile", "Snakefile")


def _may_hold_secrets(name: str) -> bool:
    return name in _SECRET_FILES or name.endswith(_SECRET_SUFFIXES) or name.startswith(".env.")


def _is_interpreter(word: str) -> bool:
    return os.path.basename(word).rstrip("0123456789.") in _INTERPRETERS


def _is_tool(path: str) -> bool:
    if path.startswith(_SYSTEM):
        return True
    folder = os.path.dirname(path)
    if os.path.basename(folder) == "bin" and os.path.exists(f"{os.path.dirname(folder)}/pyvenv.cfg"):
        return True
    return os.path.basename(folder) == "bin" and os.path.exists(f"{os.path.dirname(folder)}/conda-meta")


def _has_shebang(path: str) -> bool:
    try:
        return (_content(os.fsencode(path), FILE_SIZE_MAX) or b"").startswith(b"#!")
    except OSError:
        return False


def _is_below(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in places)

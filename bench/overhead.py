"""Scenarios of what comes on top: recording, and the start of a command."""

import os
import random
import subprocess
import sys

from bench import caches, readers
from bench.execute import Command
from bench.mounting import mounted
from bench.scenario import Bench
from bench.tables import FIRST_OPEN, RECORDING, START
from bench.trees import Tree
from bench.vaultfs import VAULT, Vault, vault

_OPENS = 1000
_PASSES = 5  # warm passes of each mount, in turns: the difference is small, the noise is not


def recording(bench: Bench, tree: Tree, number: int) -> None:
    """Read the small files warm through two mounts of one store side by side, one of which records nothing."""
    vault = next((c for c in bench.candidates if isinstance(c, Vault) and c.commits), None)
    if vault is None:
        return
    place = bench.place("small", vault)
    rows = {"recording on": vault, "recording off": Vault(name="recording off", records=False)}
    caches.warm(place)
    names = list(tree.files)
    for count in (1, 4):
        with (
            mounted(bench.workspace, rows["recording on"], place, tree.path, number) as recorded,
            mounted(bench.workspace, rows["recording off"], place, tree.path, number) as unrecorded,
        ):
            roots = {"recording on": recorded.root, "recording off": unrecorded.root}
            for turn in range(_PASSES * bench.sizes.repeat + 1):
                random.Random(turn).shuffle(names)
                for row in sorted(roots, reverse=bool(turn % 2)):
                    done = readers.read_files(bench.workspace, roots[row], names, count)
                    if turn:  # the first pass fills the kernel's caches
                        bench.results.add(RECORDING.id, row, f"warm_{count}", done.count / done.elapsed_s)
            for row in roots:
                value = bench.results.median(RECORDING.id, row, f"warm_{count}") or 0
                bench.say(f"{row}, {count} readers: {value:,.0f} files/s")


def first_opens(bench: Bench, tree: Tree, number: int) -> None:
    """Time the first open of new runs, and those after it, with capture and without."""
    vault = next((c for c in bench.candidates if isinstance(c, Vault) and c.commits), None)
    if vault is None:
        return
    place = bench.place("small", vault)
    rows = {"capture on": vault, "capture off": Vault(name="capture off", captures=False)}
    worktree = _worktree(bench.workspace.folder("worktree"))
    job = os.path.join(os.path.dirname(os.path.abspath(__file__)), "opener.py")
    with (
        mounted(bench.workspace, rows["capture on"], place, tree.path, number) as captured,
        mounted(bench.workspace, rows["capture off"], place, tree.path, number) as plain,
    ):
        roots = {"capture on": captured.root, "capture off": plain.root}
        for turn in range(2 * bench.sizes.starts):
            for row in sorted(roots, reverse=bool(turn % 2)):
                names = random.Random(turn).sample(list(tree.files), _OPENS)
                argv = (sys.executable, "-I", "-S", job, roots[row], *names)
                done = subprocess.run(
                    argv, cwd=worktree, capture_output=True, text=True, check=True, start_new_session=True
                )
                first_ns, rest_ns = map(int, done.stdout.split())
                bench.results.add(FIRST_OPEN.id, row, "first", first_ns / 1e9)
                bench.results.add(FIRST_OPEN.id, row, "next", rest_ns / 1e9 / (_OPENS - 1))
    for row in rows:
        bench.say(f"{row}: {(bench.results.median(FIRST_OPEN.id, row, 'first') or 0) * 1e3:.1f} ms to open the first file")
    bench.workspace.remove(worktree)


def _worktree(folder: str) -> str:
    """Make a git worktree of 200 small files, one of them changed."""
    for index in range(200):
        with open(f"{folder}/module{index}.py", "w", encoding="ascii") as file:
            file.write(f"VALUE = {index}\n" * 40)
    git = ("git", "-c", "user.name=bench", "-c", "user.email=bench@example.org", "-C", folder)
    for arguments in (("init", "-q"), ("add", "."), ("commit", "-qm", "as it was")):
        subprocess.run([*git, *arguments], check=True)
    with open(f"{folder}/module0.py", "a", encoding="ascii") as file:
        file.write("# changed\n")
    return folder


def starts(bench: Bench) -> None:
    """Time commands that do next to nothing."""
    commands = {
        "python -c pass": (sys.executable, "-c", "pass"),
        "vault --help": (VAULT, "--help"),
        "vault --version": (VAULT, "--version"),
        "vault commit --help": (VAULT, "commit", "--help"),
        "vault mount --help": (VAULT, "mount", "--help"),
    }
    place = bench.place("starts", Vault())
    bench.run(vault(place, "init"))
    launched = vault(place, "run", "--", "true")
    for _ in range(bench.sizes.starts):
        for row, argv in commands.items():
            bench.results.add(START.id, row, "time", bench.run(Command(argv)).elapsed_s)
        bench.results.add(START.id, "vault run -- true", "time", bench.run(launched).elapsed_s)
    bench.workspace.remove(bench.workspace.folder("starts"))

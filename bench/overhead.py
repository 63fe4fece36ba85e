"""Scenarios of what comes on top: recording, and the start of a command."""

import random
import sys

from bench import caches, readers
from bench.execute import Command
from bench.mounting import mounted
from bench.scenario import Bench
from bench.tables import RECORDING, START
from bench.trees import Tree
from bench.vaultfs import VAULT, Vault

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


def starts(bench: Bench) -> None:
    """Time commands that do next to nothing."""
    commands = {
        "python -c pass": (sys.executable, "-c", "pass"),
        "vault --help": (VAULT, "--help"),
        "vault --version": (VAULT, "--version"),
        "vault commit --help": (VAULT, "commit", "--help"),
        "vault mount --help": (VAULT, "mount", "--help"),
    }
    for _ in range(bench.sizes.starts):
        for row, argv in commands.items():
            bench.results.add(START.id, row, "time", bench.run(Command(argv)).elapsed_s)

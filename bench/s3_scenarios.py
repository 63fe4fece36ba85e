"""What is measured over S3, and in which order: a large file, small files, commits, the first file of a large snapshot."""

import contextlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench import memory, readers, trees
from bench.candidates import Mount
from bench.execute import Command, Finished, run
from bench.mounting import Mounted, mounted
from bench.results import Results, Table
from bench.s3_candidates import (
    PLAIN,
    STORE,
    Mounts,
    RcloneMount,
    S3fsMount,
    VaultMount,
    rclone_copy,
    vault_command,
)
from bench.s3_service import Line, Service
from bench.s3_tables import BOTO, COMMIT, COUNT, FIRST, LARGE, PACKS, SMALL, TINY, WARM
from bench.trees import Tree
from bench.vaultfs import DATASET, VAULT, vault
from bench.workspace import BenchError, Workspace

_CLIENT: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "s3_client.py")
_DOWNLOADS_AT_ONCE: Final = 16
_READERS: Final = 4
_GIVE_BACK_S: Final = 12.0  # until the gateway has given back the memory of what was deleted
_SETTLE_S: Final = 3.0  # until a file that has come is proven as a whole, so that the kernel may read it
BYTES_PER_SMALL_FILE: Final = 110_000
_MILLION: Final = 1_000_000
_RUN: Final = "bench-order"


@dataclass(frozen=True, slots=True)
class S3Sizes:
    """How large everything is."""

    large_bytes: int
    small_files: int
    tiny_files: int
    peer_files: int  # that slow peers read
    entries: int
    cluster_files: int
    repeat: int  # of reads
    repeat_commits: int


QUICK: Final = S3Sizes(256 << 20, 1_500, 1_500, 150, 50_000, 600, 1, 1)
NORMAL: Final = S3Sizes(2_000_000_000, 20_000, 20_000, 1_000, 1_000_000, 3_000, 3, 2)


@dataclass(slots=True)
class S3Bench:
    """One run of the benchmark over S3."""

    workspace: Workspace
    service: Service
    sizes: S3Sizes
    results: Results
    failures: dict[str, str] = field(default_factory=dict)  # who did not work, and its words
    _turns: random.Random = field(default_factory=lambda: random.Random(0))

    def run(self, command: Command) -> Finished:
        """Run a command."""
        return run(self.workspace, command)

    def say(self, text: str) -> None:
        """Tell the reader where the benchmark is."""
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)

    def note(self, table: Table, row: str, column: str, value: float) -> None:
        """Add a sample, and say it."""
        self.results.add(table.id, row, column, value)
        self.say(f"{table.title.lower()}, {column}: {row} {value:,.2f}")

    def touch_memory(self) -> None:
        """Let nobody pay for memory that the host has taken back since it was last used: what is read is kept in files."""
        memory.touch_free(2 * max(self.sizes.large_bytes, self.sizes.small_files * BYTES_PER_SMALL_FILE))

    def in_turns(self, work: Sequence[Callable[[], None]]) -> None:
        """Do things in another order each time: noise hits all alike."""
        order = list(work)
        self._turns.shuffle(order)
        for each in order:
            each()

    @contextlib.contextmanager
    def tolerant(self, name: str) -> Iterator[None]:
        """Go on without somebody who does not work, and say so on the page."""
        try:
            yield
        except BenchError as error:
            self.failures[name] = str(error)
            self.say(f"without {name}: {error}")

    @contextlib.contextmanager
    def fresh(self, candidate: Mounts, *, count: Line | None = None) -> Iterator[tuple[Mounted, str]]:
        """Mount on a node that has seen nothing: yields the mount, and the folder of its caches, gone at the end.

        Args:
            candidate: what is mounted.
            count: the line whose requests are counted from just before on.
        """
        missing = candidate.missing()
        if missing is not None:
            raise BenchError(f"{missing} is missing")
        self.touch_memory()
        place = self.workspace.folder("nodes", candidate.name.replace(" ", "-"))
        self.workspace.remove(place)
        os.makedirs(place)
        if count is not None:
            count.proxy.reset()
        try:
            with mounted(self.workspace, candidate, place, "", 1) as mount:  # type: ignore[arg-type] # it needs no more
                yield mount, place
        finally:
            self.workspace.remove(place)

    def download(self, line: Line, bucket: str, keys: Mapping[str, int]) -> float:
        """Download objects the plain way; returns the seconds."""
        self.touch_memory()
        folder = self.workspace.folder("download")
        job = {"bucket": bucket, "keys": dict(keys), "folder": folder, "threads": _DOWNLOADS_AT_ONCE}
        path = f"{self.workspace.folder('jobs')}/download.json"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(job, file)
        done = self.run(Command((sys.executable, _CLIENT, path), line.variables()))
        answer = json.loads(done.output.splitlines()[-1])
        self.workspace.remove(folder)
        if answer["bytes"] != sum(keys.values()):
            raise BenchError(f"{answer['bytes']:,} bytes were downloaded instead of {sum(keys.values()):,}")
        return float(answer["elapsed_s"])

    def commit(self, line: Line, bucket: str, tree: str) -> tuple[float, int]:
        """Commit a tree to a new store, with an empty cache directory; returns seconds and requests of the commit."""
        place = self.workspace.folder("committer")
        self.run(vault_command(line, bucket, place, "init"))
        try:
            with line.counted() as counted:
                done = self.run(vault_command(line, bucket, place, "commit", tree, DATASET))
        finally:
            self.workspace.remove(place)
        return done.elapsed_s, counted.requests


# One large file.


def large(bench: S3Bench) -> None:
    """Read a large file cold and warm, beside a download of the same bytes."""
    folder = bench.workspace.folder("large-tree")
    tree = trees.checkpoint(folder, bench.sizes.large_bytes)
    with bench.service.bucket() as bucket:
        bench.commit(bench.service.lines[-1], bucket, tree.path)
        whole = {
            key: size for key, size in bench.service.sizes(bucket, f"{STORE}/whole/").items() if size == tree.bytes_total
        }
        if len(whole) != 1:
            raise BenchError("the large file is not stored as one object: there is nothing to compare with")
        for _ in range(bench.sizes.repeat):
            for line in bench.service.lines:
                bench.in_turns(
                    [
                        lambda line=line: _download_large(bench, line, bucket, whole),
                        lambda line=line: _read_large(bench, line, bucket, tree),
                    ]
                )
    _warm_large(bench, tree)
    bench.workspace.remove(folder)


def _download_large(bench: S3Bench, line: Line, bucket: str, whole: Mapping[str, int]) -> None:
    bench.note(LARGE, BOTO, line.id, sum(whole.values()) / bench.download(line, bucket, whole))


def _read_large(bench: S3Bench, line: Line, bucket: str, tree: Tree) -> None:
    with bench.fresh(VaultMount(line, bucket)) as (mount, _):
        done = readers.read_sequentially(bench.workspace, mount.root, tree.files[0], tree.bytes_total, 1)
        _require(done.bytes_total == tree.bytes_total, "vault", "the large file")
        bench.note(LARGE, "vault", line.id, done.bytes_total / done.elapsed_s)
        if line is bench.service.far:
            os.close(os.open(f"{mount.root}/{tree.files[0]}", os.O_RDONLY))  # whereupon it is proven as a whole
            time.sleep(_SETTLE_S)
            again = readers.read_sequentially(bench.workspace, mount.root, tree.files[0], tree.bytes_total, 1)
            bench.note(WARM, "vault, S3 store", "large_1", again.bytes_total / again.elapsed_s)


def _warm_large(bench: S3Bench, tree: Tree) -> None:
    with _local_mount(bench, tree) as mount:
        for repetition in range(1 + bench.sizes.repeat):
            done = readers.read_sequentially(bench.workspace, mount.root, tree.files[0], tree.bytes_total, 1)
            if repetition:
                bench.note(WARM, WARM.reference, "large_1", done.bytes_total / done.elapsed_s)


# Many small ones.


def small(bench: S3Bench) -> None:
    """Commit small files over both lines; then read them."""
    folder = bench.workspace.folder("small-tree")
    tree = trees.image_folders(folder, bench.sizes.small_files)
    tar = f"{bench.workspace.folder('tar')}/small.tar"
    bench.run(Command(("tar", "-cf", tar, "-C", folder, ".")))
    far, near = bench.service.lines
    with bench.service.bucket() as bucket:
        _commit_small(bench, near, bucket, tree, tar)
    _let_memory_return(bench)
    with bench.service.bucket() as bucket:
        _commit_small(bench, far, bucket, tree, tar)
        bench.workspace.remove(os.path.dirname(tar))
        _read_small(bench, bucket, tree)
    _warm_small(bench, tree)
    bench.workspace.remove(folder)


def _commit_small(bench: S3Bench, line: Line, bucket: str, tree: Tree, tar: str) -> None:
    """Commit the tree; beside it copy it as one tar, and as files, which stay with the store."""

    def copy_tar() -> None:
        with bench.tolerant("rclone copy"), bench.service.bucket() as other:
            bench.note(COMMIT, COMMIT.reference, line.id, bench.run(rclone_copy(line, tar, other, "tar")).elapsed_s)

    def commit(where: str) -> None:
        elapsed_s, requests = bench.commit(line, where, tree.path)
        bench.note(COMMIT, "vault commit", line.id, elapsed_s)
        if line is bench.service.far:
            bench.note(COMMIT, "vault commit", "requests", requests)
            _note_requests(bench, "of some 110 kB", len(tree.files), tree.bytes_total, requests)

    def commit_elsewhere() -> None:
        with bench.service.bucket() as other:
            commit(other)

    for _ in range(bench.sizes.repeat_commits - 1):
        bench.in_turns([copy_tar, commit_elsewhere])
        _let_memory_return(bench)
    bench.in_turns([copy_tar, lambda: commit(bucket)])
    if line is bench.service.far:  # once is enough: it takes long, and only what is read later is needed
        _let_memory_return(bench)
        with bench.tolerant("rclone copy"):
            with line.counted() as counted:
                copied = bench.run(rclone_copy(line, tree.path, bucket, PLAIN))
            bench.note(COMMIT, "rclone copy, files", line.id, copied.elapsed_s)
            bench.note(COMMIT, "rclone copy, files", "requests", counted.requests)


def _let_memory_return(bench: S3Bench) -> None:
    """Wait until a gateway that keeps all in memory has room again."""
    if bench.sizes is not QUICK:
        time.sleep(_GIVE_BACK_S)


def _note_requests(bench: S3Bench, row: str, files: int, size_bytes: int, requests: int) -> None:
    for column, value in (("files", files), ("bytes", size_bytes), ("requests", requests)):
        bench.results.add(COUNT.id, row, column, value)
    bench.note(COUNT, row, "million", requests * _MILLION / files)


def _read_small(bench: S3Bench, bucket: str, tree: Tree) -> None:
    packs = {key: size for key, size in bench.service.sizes(bucket, f"{STORE}/packs/").items() if key.endswith(".pack")}
    chance = random.Random(3)
    names = list(tree.files)
    chance.shuffle(names)
    for repetition in range(bench.sizes.repeat):
        for line in bench.service.lines:
            work: list[Callable[[], None]] = [
                lambda line=line: _download_packs(bench, line, bucket, packs, len(tree.files)),
                lambda line=line: _read_cold(bench, line, bucket, tree, tree.files, "vault, in tree order"),
            ]
            if repetition == 0:
                work += [
                    lambda line=line: _read_cold(bench, line, bucket, tree, names, "vault, at random"),
                    lambda line=line: _read_peer(bench, line, RcloneMount(line, bucket), tree),
                    lambda line=line: _read_peer(bench, line, S3fsMount(line, bucket), tree),
                ]
            bench.in_turns(work)
            with bench.tolerant("vault prefetch"):
                _read_with_plan(bench, line, bucket, tree, names)


def _download_packs(bench: S3Bench, line: Line, bucket: str, packs: Mapping[str, int], files: int) -> None:
    bench.note(SMALL, PACKS, line.id, files / bench.download(line, bucket, packs))


def _read_cold(bench: S3Bench, line: Line, bucket: str, tree: Tree, names: Sequence[str], row: str) -> None:
    in_order = names is tree.files
    with bench.fresh(VaultMount(line, bucket)) as (mount, _), _as_run("" if in_order else _RUN):
        done = readers.read_files(bench.workspace, mount.root, names, _READERS)
        _require(done.bytes_total == tree.bytes_total, row, "the small files")
        bench.note(SMALL, row, line.id, done.count / done.elapsed_s)
        if line is bench.service.far and in_order:
            for count in (1, _READERS):
                again = readers.read_files(bench.workspace, mount.root, names, count)
                bench.note(WARM, "vault, S3 store", f"small_{count}", again.count / again.elapsed_s)


def _read_with_plan(bench: S3Bench, line: Line, bucket: str, tree: Tree, names: Sequence[str]) -> None:
    """Read in an order that an earlier run has left on record, while that is read ahead."""
    row = "vault, at random with a plan"
    with bench.fresh(VaultMount(line, bucket)) as (mount, place):
        command = vault_command(line, bucket, f"{place}/cache", "prefetch", "--plan", f"run:{_RUN}")
        bench.run(command)
        done = readers.read_files(bench.workspace, mount.root, names, _READERS)
        _require(done.bytes_total == tree.bytes_total, row, "the small files")
        bench.note(SMALL, row, line.id, done.count / done.elapsed_s)


def _read_peer(bench: S3Bench, line: Line, peer: Mounts, tree: Tree) -> None:
    names = tree.files[: bench.sizes.peer_files]
    with bench.tolerant(f"{peer.name}, {line.words}"), bench.fresh(peer) as (mount, _):
        done = readers.read_files(bench.workspace, mount.root, names, _READERS)
        wanted = sum(os.path.getsize(f"{tree.path}/{name}") for name in names)
        _require(done.bytes_total == wanted, peer.name, "the small files")
        bench.note(SMALL, peer.name, line.id, done.count / done.elapsed_s)


def _warm_small(bench: S3Bench, tree: Tree) -> None:
    with _local_mount(bench, tree) as mount:
        for _ in range(bench.sizes.repeat):
            for count in (1, _READERS):
                readers.read_files(bench.workspace, mount.root, tree.files, _READERS)
                done = readers.read_files(bench.workspace, mount.root, tree.files, count)
                bench.note(WARM, WARM.reference, f"small_{count}", done.count / done.elapsed_s)


# Tiny ones.


def tiny(bench: S3Bench) -> None:
    """Commit tiny files over both lines, beside a copy of each as an object of its own."""
    folder = bench.workspace.folder("tiny-tree")
    tree = trees.tiny_files(folder, bench.sizes.tiny_files)

    def commit(line: Line) -> None:
        with bench.service.bucket() as bucket:
            elapsed_s, requests = bench.commit(line, bucket, tree.path)
        bench.note(TINY, "vault commit", line.id, elapsed_s)
        if line is bench.service.far:
            bench.note(TINY, "vault commit", "requests", requests)
            _note_requests(bench, "of 1 to 7 kB", len(tree.files), tree.bytes_total, requests)

    def copy(line: Line) -> None:
        with bench.tolerant("rclone copy"), bench.service.bucket() as bucket:
            with line.counted() as counted:
                bench.note(TINY, TINY.reference, line.id, bench.run(rclone_copy(line, tree.path, bucket, PLAIN)).elapsed_s)
            if line is bench.service.far:
                bench.note(TINY, TINY.reference, "requests", counted.requests)

    for line in bench.service.lines:
        for repetition in range(bench.sizes.repeat_commits):
            work: list[Callable[[], None]] = [lambda line=line: commit(line)]
            if repetition == 0:
                work.append(lambda line=line: copy(line))
            bench.in_turns(work)
    bench.workspace.remove(folder)


# The first file.


def first(bench: S3Bench) -> None:
    """Commit a snapshot of very many files; open one of them on a node that has never seen it."""
    folder = bench.workspace.folder("entries-tree")
    trees.many_links(folder, bench.sizes.entries)
    folders = sorted(os.listdir(folder))
    middle = folders[len(folders) // 2]
    name = sorted(os.listdir(f"{folder}/{middle}"))[0]
    line = bench.service.far
    row = f"vault, {bench.sizes.entries:,} entries"
    with bench.service.bucket() as bucket:
        elapsed_s, requests = bench.commit(line, bucket, folder)
        bench.note(FIRST, row, "commit", elapsed_s)
        bench.note(FIRST, row, "commit_requests", requests)
        _note_requests(bench, "of a few bytes, mostly equal", bench.sizes.entries, 0, requests)
        for _ in range(bench.sizes.repeat):
            with bench.fresh(VaultMount(line, bucket, below=middle), count=line) as (mount, _):
                started = time.monotonic()
                with open(f"{mount.root}/{name}", "rb") as file:
                    content = file.read()
                bench.note(FIRST, row, "file", time.monotonic() - started)
                asked = line.proxy.statistics()
                bench.note(FIRST, row, "listing", mount.first_listing_s)
            with open(f"{folder}/{middle}/{name}", "rb") as file:
                _require(content == file.read(), "vault", name)
            bench.note(FIRST, row, "requests", sum(asked.requests.values()))
            bench.note(FIRST, row, "fetched", asked.down_bytes)
    bench.workspace.remove(folder)


# What several of them need.


@contextlib.contextmanager
def _local_mount(bench: S3Bench, tree: Tree) -> Iterator[Mounted]:
    """Mount the same tree from a folder store on this machine."""
    place = bench.workspace.folder("local")
    for command in (vault(place, "init"), vault(place, "commit", tree.path, DATASET)):
        bench.run(command)
    try:
        with mounted(bench.workspace, _Local(), place, tree.path, 1) as mount:  # type: ignore[arg-type] # it needs no more
            yield mount
    finally:
        bench.workspace.remove(place)


@dataclass(frozen=True, slots=True)
class _Local:
    name: str = "vault local"
    mounts: bool = True

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        return Mount(vault(place, "mount", point), f"{point}/{DATASET}@latest", (VAULT, "umount", point))


@contextlib.contextmanager
def _as_run(name: str) -> Iterator[None]:
    """Let readers that are started in the block belong to a run of this name, if one is given."""
    if name:
        os.environ["VAULTFS_RUN"] = name
    try:
        yield
    finally:
        os.environ.pop("VAULTFS_RUN", None)


def _require(holds: bool, who: str, what: str) -> None:
    if not holds:
        raise BenchError(f"{who} served other bytes than were stored of {what}: its figures would mean nothing")

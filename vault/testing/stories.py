"""A store in which runs made weights from data and from each other's weights, for tests that ask where things are from.

    story = Story.make(tmp_path)
    story.audit()

    digits@v1, digits@v2 (train/3.txt changed) -> run-1 reads v1, makes resnet@v1 -> run-2 reads v2 and resnet@v1 with
    other code, makes resnet@v2 -> run-3 reads resnet@v2 alone; run-4 reads digits@v1/test and nothing else

Written as mounts and `vault run` write it, without either. Threads: none.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from vault.format.records import CodeTree, Environment, Finish, Metric, Output, Start
from vault.ids import Digest, RunId
from vault.ops.audit import Audit
from vault.ops.commit import commit
from vault.ops.freeze import freeze
from vault.repo.repository import Repository
from vault.repo.run_writer import RunWriter
from vault.testing.places import Place
from vault.testing.runs import record_run
from vault.testing.trees import Tree

DIGITS: Final[Tree] = {
    b"train": {b"%d.txt" % number: b"train %d" % number for number in range(10)},
    b"test": {b"%d.txt" % number: b"test %d" % number for number in range(4)},
}
TRAIN: Final = [b"train/%d.txt" % number for number in range(10)]
TEST: Final = [b"test/%d.txt" % number for number in range(4)]
CODE: Final = "import model\n\nsteps = 100\n\nmodel.train(steps)\n"
OTHER_CODE: Final = "import model\n\nsteps = 200\n\nmodel.train(steps)\n"


@dataclass(frozen=True, slots=True)
class Story:
    """A place with runs in it."""

    place: Place

    @classmethod
    def make(cls, root: str | os.PathLike[str]) -> "Story":
        """Make the store below a folder."""
        story = cls(Place.make(root))
        changed = {**DIGITS, b"train": {**DIGITS[b"train"], b"3.txt": b"relabelled"}}  # type: ignore[dict-item]
        for tree in (DIGITS, changed):
            commit(story.repository, story.place.write(tree), "digits", author="ana")
        story.run("run-1", {"digits@v1": TRAIN}, at=1, code=CODE, params={"lr": "0.1"}, accuracy=0.7, makes=b"weights 1")
        reads = {"digits@v2": TRAIN, "resnet@v1": [b"model.bin"]}
        story.run("run-2", reads, at=2, code=OTHER_CODE, params={"lr": "0.3"}, accuracy=0.8, makes=b"weights 2")
        story.run("run-3", {"resnet@v2": [b"model.bin"]}, at=3)
        story.run("run-4", {"digits@v1": TEST[:2]}, at=4)
        return story

    @property
    def repository(self) -> Repository:
        """The repository, opened anew."""
        return self.place.repository()

    def audit(self) -> Audit:
        """Return what answers questions, opened anew."""
        return Audit(self.repository)

    def run(
        self,
        run: str,
        reads: Mapping[str, Sequence[bytes]],
        *,
        at: int,
        host: str = "node7",
        code: str = "",
        packages: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        accuracy: float | None = None,
        makes: bytes = b"",
        exit_status: int = 0,
    ) -> None:
        """Add one attempt of a run, at an hour of a day."""
        time = f"2026-01-02T{at:02}:00:00.000000Z"
        repository = self.repository
        writer = RunWriter(repository.store, RunId(run), f"{host}-{run}-{at}")
        command = ("python", "train.py", "--lr", (params or {}).get("lr", "1"))
        start = Start(identity="VAULTFS_RUN", uid=1000, user="ada", host=host, started=time, command=command, cwd="/job")
        writer.report(launch=start, params=dict(params or {}))
        if code:
            writer.capture(**self.capture(code, packages or {"torch": "2.9.0", "six": "1.17.0"}))
        if reads:
            record_run(repository, run, reads, writer=f"{host}-mount-{at}", time=time, host=host)
        if accuracy is not None:
            writer.report(metrics=(Metric(name="acc", value=accuracy, time=time, step=at),))
        if makes:
            made = commit(repository, self.place.write({b"model.bin": makes}), "resnet", author="ada", run=RunId(run))
            output = Output(
                dataset="resnet", version=made.version, snapshot=made.snapshot.hex(), time=time, path="/job/out"
            )
            writer.report(outputs=(output,))
        writer.report(finish=Finish(ended=time, exit_status=exit_status, output_tail="done\n"))

    def capture(self, code: str, packages: Mapping[str, str]) -> dict[str, object]:
        """Return the fields of a capture, with its snapshots in the store."""
        tree = self._freeze({b"train.py": code.encode(), b"README.md": b"about\n"})
        document = {
            "interpreter": "CPython 3.11.2",
            "packages": [{"name": name, "version": version} for name, version in sorted(packages.items())],
            "libraries": [{"path": "lib/libcudart.so.12", "size": 9, "soname": "libcudart.so.12", "version": "12.4"}],
        }
        environment = self._freeze({b"environment.json": msgspec.json.encode(document)})
        return {
            "code": (
                CodeTree(root="/job", snapshot=tree.hex(), files=2, bytes=99, script="train.py", vcs="git", head="ab" * 20),
            ),
            "environment": Environment(
                snapshot=environment.hex(), interpreter="CPython 3.11.2", packages=len(packages), libraries=1
            ),
            "platform": {"kernel": "Linux 6.1", "cpu": "EPYC"},
            "variables": {"OMP_NUM_THREADS": "4", "RANK": "0"},
        }

    def _freeze(self, tree: Tree) -> Digest:
        return freeze(self.repository, self.place.write(tree)).snapshot

"""A store in a bucket, used in the process of a test and by commands: for tests of machines that share it.

    with bucket_place(gateway, folder) as place:
        place.commit({b"a": b"content"})                 # data@v1, in this process
        site = place.site("node", proxy.url)             # for commands and mounts of another machine, by another way
        assert place.opened("run-1") == {("data@v1", "a"): 1}

Each name of a cache is another machine. Commands take most of a second to start; what this does in the process takes
milliseconds. Threads: none.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from vault.ops.audit import Audit
from vault.ops.commit import CommitResult, commit
from vault.ops.run_filter import Filter
from vault.ops.verify import verify
from vault.repo.repository import Repository
from vault.repo.run_model import Run
from vault.stores.s3.client import Access
from vault.stores.s3.store import S3Store
from vault.testing.gateway import Gateway
from vault.testing.mounts import Site
from vault.testing.trees import Tree, write_tree

HOME = "home"  # the machine that asks and commits, if no other is named


@dataclass(frozen=True, slots=True)
class BucketPlace:
    """A store in a bucket of its own, and a folder for what lies beside it."""

    gateway: Gateway
    url: str
    folder: str
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def store(self, endpoint: str = "") -> S3Store:
        """Return the store, reached through an endpoint; the gateway's own if that is empty."""
        keys = self.gateway
        return S3Store(self.url, access=Access(endpoint or keys.url, keys.access_key, keys.secret_key, "us-east-1"))

    def repository(self, machine: str = HOME, endpoint: str = "") -> Repository:
        """Return the repository, opened anew by a machine."""
        return Repository.open(self.store(endpoint), self.cache(machine))

    def site(self, machine: str, endpoint: str = "") -> Site:
        """Return the same for commands in processes of their own."""
        variables = self.gateway.variables(AWS_ENDPOINT_URL=endpoint or self.gateway.url)
        return Site(self.url, self.cache(machine), variables=variables)

    def cache(self, machine: str) -> str:
        """Return the cache directory of a machine."""
        return os.path.join(self.folder, machine)

    def write(self, tree: Tree) -> bytes:
        """Return a new folder that holds a tree."""
        source = os.path.join(os.fsencode(self.folder), b"source-%d" % next(self._numbers))
        write_tree(source, tree)
        return source

    def commit(
        self, tree: Tree, name: str = "data", *, machine: str = HOME, endpoint: str = "", message: str = ""
    ) -> CommitResult:
        """Make a tree the next version of a dataset."""
        return commit(self.repository(machine, endpoint), self.write(tree), name, message=message)

    def versions(self, name: str = "data") -> list[int]:
        """Return the versions of a dataset that are there, after checking every byte of the store."""
        repository = self.repository()
        assert [f"{problem.where}: {problem.reason}" for problem in verify(repository, data=True)] == []
        return [version.number for version in repository.datasets.load(name).versions]

    def runs(self) -> dict[str, Run]:
        """Return the runs on record, by name."""
        return {run.run: run for run in Audit(self.repository()).runs(Filter())}

    def opened(self, name: str) -> dict[tuple[str, str], int]:
        """Return what a run opened and how often, by ref and path, after checking that its journals have no gaps."""
        for writer, numbers in self.journals(name).items():
            assert numbers == list(range(1, len(numbers) + 1)), writer
        audit = Audit(self.repository())
        found = audit.opened_files(audit.run(name))
        return {(file.ref, os.fsdecode(file.path)): file.opens for file in found}

    def journals(self, name: str) -> dict[str, list[int]]:
        """Return the numbers of the entries in each journal of a run, by who wrote it."""
        found: dict[str, list[int]] = {}
        for key in self.store().list(f"runs/{name}/"):
            writer, number = key.split("/")[2:]
            found.setdefault(writer, []).append(int(number.partition(".")[0]))
        return found


@contextlib.contextmanager
def bucket_place(gateway: Gateway, folder: str | os.PathLike[str]) -> Iterator[BucketPlace]:
    """Make an empty store in a new bucket, which goes away at the end."""
    with gateway.bucket() as name:
        place = BucketPlace(gateway, f"s3://{name}/vault", os.fspath(folder))
        Repository.init(place.store(), place.cache(HOME))
        yield place

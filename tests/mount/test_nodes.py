"""Two machines and one bucket: both read and record at once, one commits while the other reads, one loses its line.

The machines are namespaces (vault/testing/namespaces.py), each with a network, mounts, processes, a name, a boot and a
cache of its own. What they did is asked from a third place, which reaches the service by another way.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from vault.testing.buckets import BucketPlace, bucket_place
from vault.testing.gateway import Gateway
from vault.testing.mounts import Site, wait_for
from vault.testing.namespaces import Node, why_no_nodes
from vault.testing.trees import Tree, noise

pytestmark = pytest.mark.skipif(bool(why_no_nodes()), reason=why_no_nodes() or "there can be nodes")

DEADLINE_S = 8
WHOLE = noise(5 << 20, seed=1)
FILES: dict[str, bytes] = {f"{number:03}": noise(3000, seed=number) for number in range(60)} | {"whole": WHOLE}

# Reads files, past the page cache, and says for each what it got: `python -c … FOLDER NAME…`.
READ = """
import hashlib, os, sys
for name in sys.argv[2:]:
    try:
        with open(os.path.join(sys.argv[1], name), "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            print(name, hashlib.sha256(file.readall()).hexdigest(), flush=True)
    except OSError as error:
        print(name, error.errno, flush=True)
"""


@dataclass(frozen=True, eq=False)
class Machine:
    """A node with a store."""

    node: Node
    site: Site
    path: str  # where it mounts

    def reading(self, run: str, ref: str, *names: str) -> list[str]:
        """Return the command of a reader that counts as a run."""
        return ["env", f"VAULTFS_RUN={run}", self.site.python, "-c", READ, f"{self.path}/{ref}", *names]

    def read(self, run: str, *names: str, ref: str = "data@v1") -> dict[str, str]:
        """Read files as a run. Returns the hash of each, or the number of its error."""
        return answers(self.node.run(*self.reading(run, ref, *names)).stdout)


def answers(output: bytes) -> dict[str, str]:
    return dict(line.split() for line in output.decode().splitlines())


def hashes(*names: str, files: dict[str, bytes] = FILES) -> dict[str, str]:
    return {name: hashlib.sha256(files[name]).hexdigest() for name in names}


@pytest.fixture(scope="module")
def nodes(gateway: Gateway) -> Iterator[tuple[Node, Node]]:
    with Node("alpha", to=gateway.url) as alpha, Node("beta", to=gateway.url) as beta:
        yield alpha, beta


@dataclass(frozen=True)
class Cluster:
    """A bucket with data, and the two machines that use it."""

    place: BucketPlace
    alpha: Machine
    beta: Machine


def tree_of(files: dict[str, bytes]) -> Tree:
    return {os.fsencode(name): data for name, data in files.items()}


@pytest.fixture(scope="module")
def cluster(gateway: Gateway, nodes: tuple[Node, Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with bucket_place(gateway, tmp_path_factory.mktemp("cluster")) as place:

        def machine(node: Node) -> Machine:
            site = place.site(node.name, node.url)
            return Machine(node, replace(site, wrap=node.wrap), f"{place.folder}/{node.name}-vault")

        place.commit(tree_of(FILES))
        yield Cluster(place, machine(nodes[0]), machine(nodes[1]))


def test_two_nodes_read_and_record_into_one_store_at_once(cluster):
    alpha, beta, place = cluster.alpha, cluster.beta, cluster.place
    shares = {alpha: [f"{n:03}" for n in range(40)] + ["whole"], beta: [f"{n:03}" for n in range(20, 60)] + ["whole"]}
    with alpha.node.mounted(alpha.site, alpha.path), beta.node.mounted(beta.site, beta.path):
        began = [
            (machine, names, machine.node.start(*machine.reading(run, "data@v1", *names)))
            for machine, names in shares.items()
            for run in ("both", f"own-{machine.node.name}")
        ]
        for _, names, process in began:
            output, words = process.communicate(timeout=60)
            assert process.returncode == 0, words
            assert answers(output) == hashes(*names)
    runs = place.runs()
    assert sorted(runs["both"].hosts) == ["alpha", "beta"]
    twice = {name for name in FILES if name == "whole" or 20 <= int(name) < 40}
    assert place.opened("both") == {("data@v1", name): 2 if name in twice else 1 for name in FILES}
    for machine, names in shares.items():
        own = f"own-{machine.node.name}"
        assert runs[own].hosts == (machine.node.name,)
        assert place.opened(own) == {("data@v1", name): 1 for name in names}
    third = place.site("a third place")
    for path, readers in ("030", {"both", "own-alpha", "own-beta"}), ("059", {"both", "own-beta"}):
        assert {record["run"] for record in third.json("audit", f"data@v1/{path}") if record["type"] == "read"} == readers
    shown = third.vault("runs").stdout
    assert "both" in shown
    assert place.versions() == [1]


def test_one_node_commits_while_the_other_reads_the_latest(cluster):
    alpha, beta, place = cluster.alpha, cluster.beta, cluster.place
    versions = {number: {"file": b"version %d" % number} for number in (1, 2)}
    place.commit(tree_of(versions[1]), "moves")
    with beta.node.mounted(beta.site, beta.path):

        def shows(number: int) -> bool:
            found = beta.read("follows", "file", ref="moves@latest")
            assert found in (hashes("file", files=versions[1]), hashes("file", files=versions[2]))
            return found == hashes("file", files=versions[number])

        assert shows(1)
        alpha.site.commit(place.write(tree_of(versions[2])), "moves")
        wait_for("the new version on the other node", lambda: shows(2))
        assert beta.read("follows", "file", ref="moves@v1") == hashes("file", files=versions[1]), "it stays what it is"
    assert {ref for ref, _ in place.opened("follows")} == {"moves@v1", "moves@v2"}


def test_a_node_that_loses_its_line_reads_what_it_has_and_tells_later(cluster):
    alpha, place = cluster.alpha, cluster.place
    here = [f"{n:03}" for n in range(30)]
    alpha.site.vault("cache", "prune", "--all")
    with alpha.node.mounted(alpha.site, alpha.path, ("--deadline", str(DEADLINE_S))):
        assert alpha.read("before", *here) == hashes(*here)
        with alpha.node.link_down():
            assert alpha.read("cut-off", *here, "001") == hashes(*here), "what is here is read as ever"
            began_s = time.monotonic()
            assert alpha.read("cut-off", "whole") == {"whole": "5"}, "EIO"
            assert time.monotonic() - began_s < 2 * DEADLINE_S
            waiting = alpha.node.start(*alpha.reading("cut-off", "data@v1", "whole"))
            assert "cut-off" not in place.runs()
        output, words = waiting.communicate(timeout=60)
        assert answers(output) == hashes("whole"), (words, "it waited, and went on")
        wait_for("the records of before and in between", lambda: {"before", "cut-off"} <= place.runs().keys(), timeout_s=90)
    assert place.opened("before") == {("data@v1", name): 1 for name in here}
    told = place.opened("cut-off")
    assert told.pop(("data@v1", "whole")) in (1, 2), "the one that failed may have failed at its open"
    assert told == {("data@v1", name): 1 for name in here} | {("data@v1", "001"): 2}
    assert place.versions() == [1]


def test_the_names_that_a_node_tells_are_its_own(nodes, cluster):
    """The nodes are what the tests above take them for."""
    machines = cluster.alpha, cluster.beta
    script = "hostname; cat /proc/sys/kernel/random/boot_id; readlink /proc/self/ns/net /proc/self/ns/mnt /proc/self/ns/pid"
    told = [machine.node.run("sh", "-c", script).stdout.split() for machine in machines]
    assert [words[0] for words in told] == [b"alpha", b"beta"]
    assert all(one != other for one, other in zip(*told, strict=True))
    assert json.loads(machines[0].node.run("ip", "-j", "route").stdout)[0]["dev"] == "eth0"

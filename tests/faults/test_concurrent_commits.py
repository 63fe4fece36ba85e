"""Several processes commit to one store at once: each succeeds, and nothing is lost, doubled or damaged."""

import functools
import os
import shutil
from pathlib import Path

import pytest

from vault.ops.commit import commit
from vault.ops.verify import verify
from vault.testing.places import SMALL_CHUNKS, Place
from vault.testing.together import together
from vault.testing.trees import Tree, noise, text, write_tree
from vault.view import open_view

PROCESSES = 4
LARGE = 5 << 20


@functools.cache
def content(kind: str, seed: int) -> bytes:
    return noise(LARGE, seed) if kind == "noise" else text(LARGE, seed)


def tree_of(number: int) -> Tree:
    """Return a tree that shares most of its contents with those of other numbers."""
    return {
        b"mine": b"%d" % number,
        b"shared": {b"%d" % n: noise(3000, n) for n in range(50)},
        b"large": content("noise", 0),
        b"edited": content("noise", 0)[: LARGE // 2] + b"%d" % number + content("noise", 0)[LARGE // 2 :],
        b"table": content("text", number % 2),
        b"many": {b"%05d" % (number * 1000 + n): b"%d" % n for n in range(300)},
    }


def commit_tree(root: str, number: int, dataset: str, cache: str) -> tuple[int, str]:
    place = Place(root)
    source = os.path.join(root, f"source{number}").encode()
    result = commit(place.repository(cache), source, dataset, message=f"by {number}")
    return result.version, result.snapshot.hex()


@pytest.mark.parametrize("datasets", ["one", "several"])
@pytest.mark.parametrize("caches", ["one", "several"])
def test_different_trees_at_once(fast_path: Path, datasets: str, caches: str) -> None:
    place = Place.make(fast_path)
    for number in range(PROCESSES):
        write_tree(os.path.join(place.root, f"source{number}").encode(), tree_of(number))
    name = ["d"] * PROCESSES if datasets == "one" else [f"d{number}" for number in range(PROCESSES)]
    cache = ["cache"] * PROCESSES if caches == "one" else [f"cache{number}" for number in range(PROCESSES)]
    made = together(commit_tree, [(place.root, n, name[n], cache[n]) for n in range(PROCESSES)])
    assert sorted(version for version, _ in made) == (
        list(range(1, PROCESSES + 1)) if datasets == "one" else [1] * PROCESSES
    )
    repository = place.repository("fresh")
    for number, (version, snapshot) in enumerate(made):
        found = repository.datasets.load(name[number]).version(version)
        assert found is not None
        assert (found.snapshot.hex(), found.message) == (snapshot, f"by {number}")
        for machine in ("fresh", cache[number]):
            assert place.read(found.snapshot, machine) == tree_of(number)
    assert place.problems("fresh") == []
    assert place.temporary() == []


def test_one_tree_by_all_at_once(fast_path: Path) -> None:
    """Packs, maps and whole files of one name: who comes second finds them, looks at them and goes on."""
    place = Place.make(fast_path)
    for number in range(PROCESSES):
        write_tree(os.path.join(place.root, f"source{number}").encode(), tree_of(0))
    made = together(commit_tree, [(place.root, n, f"d{n}", f"cache{n}") for n in range(PROCESSES)])
    assert len({snapshot for _, snapshot in made}) == 1
    assert len(place.keys("whole/")) == 2
    assert len(place.keys("maps/")) == 1
    assert place.problems("fresh") == []
    assert place.temporary() == []
    dataset = place.repository("fresh").datasets.load("d3")
    assert place.read(dataset.versions[0].snapshot, "fresh") == tree_of(0)


def commit_again_and_again(root: str, turns: int) -> int:
    place = Place(root)
    repository = place.repository()
    source = os.path.join(root, "changing").encode()
    for turn in range(turns):
        write_tree(source, {b"%d" % turn: {b"%d" % n: noise(500, 100 * turn + n) for n in range(20)}})
        result = commit(repository, source, "changing")
        view = open_view(repository, result.snapshot)
        found = view.find(b"%d/7" % turn)
        assert found is not None
        assert bytes(view.read(found, 0, 500)) == noise(500, 100 * turn + 7)
        view.close()
    return turns


def spoil_the_index(root: str, turns: int) -> int:
    """Delete the index, fill it with garbage, and make it anew, as often as there are turns."""
    place = Place(root)
    for turn in range(turns):
        index = os.path.join(place.repository().cache_dir, "index.lmdb")
        if turn % 3 == 0:
            shutil.rmtree(index, ignore_errors=True)
        elif turn % 3 == 1:
            Path(index, "state").unlink(missing_ok=True)
        place.repository().index.refresh()
    return turns


def verify_again_and_again(root: str, turns: int) -> int:
    for _ in range(turns):
        problems = list(verify(Place(root).repository(), data=True))
        assert not problems, problems
    return turns


def test_commits_while_others_make_the_index_anew_and_verify(fast_path: Path) -> None:
    place = Place.make(fast_path, SMALL_CHUNKS)
    commit(place.repository(), place.write({b"%d" % n: noise(100, n) for n in range(2000)}), "d")
    jobs = [commit_again_and_again, spoil_the_index, verify_again_and_again]
    assert together(one_of, [(job.__name__, place.root, 25) for job in jobs]) == [25, 25, 25]
    assert len(place.repository("fresh").datasets.load("changing").versions) == 25
    assert place.problems("fresh") == []


def one_of(name: str, root: str, turns: int) -> int:
    job = {"commit_again_and_again": commit_again_and_again, "spoil_the_index": spoil_the_index}.get(
        name, verify_again_and_again
    )
    return job(root, turns)

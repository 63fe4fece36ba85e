"""Records on their way from a mount to a bucket: the service goes away, its answers get lost, processes die in between; and
every open arrives once, in order."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob

import pytest

from vault.repo.spool import list_spools
from vault.testing import proxy_faults as faults
from vault.testing.buckets import BucketPlace, bucket_place
from vault.testing.gateway import Gateway
from vault.testing.mounts import Mount, Site, mounted, run, wait_for
from vault.testing.proxy import Proxy
from vault.testing.trees import noise

FILES = 40
RUNS = "/runs/"
NO_CAPTURE = ("--no-capture",)  # it has a test of its own


@dataclass(frozen=True)
class Line:
    """A store in a bucket, and a machine that reaches it through a proxy."""

    proxy: Proxy
    place: BucketPlace
    site: Site
    mountpoint: str

    def entries(self, name: str) -> int:
        """Return how many entries the journals of a run have in the bucket."""
        return sum(map(len, self.place.journals(name).values()))

    def opened(self, name: str) -> dict[str, int]:
        """Return what is on record, asked from elsewhere."""
        return {path: opens for (_, path), opens in self.place.opened(name).items()}


@pytest.fixture(scope="module")
def place(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketPlace]:
    with bucket_place(gateway, tmp_path_factory.mktemp("records")) as made:
        made.commit({b"%02d" % number: noise(500, seed=number) for number in range(FILES)})
        yield made


@pytest.fixture
def line(place: BucketPlace, gateway: Gateway, tmp_path) -> Iterator[Line]:
    """A machine of the test's own."""
    with Proxy(gateway.url) as proxy:
        yield Line(proxy, place, place.site(tmp_path.name, proxy.url), str(tmp_path / "mnt"))


def read(mount: Mount, name: str, files: str) -> None:
    """Read files, a pattern of the shell, as a run."""
    run("sh", "-ec", f'cat "$0"/{files} > /dev/null', f"{mount.path}/data@v1", variables={"VAULTFS_RUN": name})


def spools(site: Site) -> list[str]:
    """Return the folders in which records of this machine's mounts wait, or may wait."""
    roots = [f"{site.cache}/{name}/spool" for name in os.listdir(site.cache)]
    return [spool.folder for root in roots for spool in list_spools(root)]


def stop(processes: list[int]) -> None:
    for process in processes:
        os.kill(process, signal.SIGSTOP)


def kill(mount: Mount) -> None:
    """Kill every process of a mount."""
    for process in [*mount.processes(), mount.pid]:
        os.kill(process, signal.SIGKILL)
    mount.wait_for_end()


def waits(site: Site, name: str) -> bool:
    """Say whether something of a run waits on this machine: counts that stand in no entry, or an entry."""
    parts = (f"tables/{name}~*", f"journals/{name}/[0-9]*")
    return any(glob(f"{spool}/{part}") for spool in spools(site) for part in parts)


def test_records_wait_while_the_service_is_out_of_reach_and_arrive_once(line, direct):
    with mounted(line.site, line.mountpoint, engine=direct, options=NO_CAPTURE) as mount:
        read(mount, "before", "*")
        with line.proxy.away():
            read(mount, "while", "0?")
            read(mount, "while", "00")
            wait_for("somebody to notice", lambda: "does not answer" in mount.words(), timeout_s=60)
            read(mount, "while", "1?")
            assert waits(line.site, "while")
            assert not line.entries("while")
        wait_for("the records", lambda: line.entries("while"))
        mount.unmount()
    assert line.opened("while") == {f"{number:02}": 2 if number == 0 else 1 for number in range(20)}
    assert line.opened("before") == {f"{number:02}": 1 for number in range(FILES)}
    assert spools(line.site) == []


def test_code_and_machine_of_a_run_are_kept_though_the_service_was_away(line, direct):
    with mounted(line.site, line.mountpoint, engine=direct) as mount:
        read(mount, "seen", "*")
        with line.proxy.away():
            read(mount, "seen-not", "*")
            wait_for("somebody to notice", lambda: "does not answer" in mount.words(), timeout_s=60)

        def captured() -> bool:
            found = line.place.runs()
            return all(name in found and found[name].history[0].capture for name in ("seen", "seen-not"))

        wait_for("both captures", captured, timeout_s=90)
        mount.unmount()
    assert spools(line.site) == []


@pytest.mark.parametrize(
    "fault",
    [
        faults.loses_answer(method="PUT", path_contains=RUNS, times=2),
        faults.slow_down(method="PUT", path_contains=RUNS, times=3),
        faults.expired_token(method="PUT", path_contains=RUNS, times=2),
    ],
    ids=["answers are lost", "slow down", "credentials expire"],
)
def test_an_entry_is_in_the_journal_once_whatever_its_put_meets(line, direct, tmp_path, fault):
    line.proxy.add(fault)
    with mounted(line.site, line.mountpoint, engine=direct, options=NO_CAPTURE) as mount:
        name = f"unlucky-{tmp_path.name}"
        read(mount, name, "0?")
        wait_for("the first entry", lambda: line.entries(name))
        read(mount, name, "1?")
        mount.unmount()
    assert line.opened(name) == {f"{number:02}": 1 for number in range(20)}
    assert line.proxy.unused == []
    assert spools(line.site) == []


def test_a_mount_that_is_killed_before_it_knows_what_arrived_is_followed_by_one_that_finds_out(line, direct):
    """The service has the entry, and everybody who could have heard of it is dead."""
    with mounted(line.site, line.mountpoint, engine=direct, options=NO_CAPTURE) as mount:
        shippers = mount.shippers()
        which = {"method": "PUT", "path_contains": RUNS}
        line.proxy.add(faults.calls(lambda: stop(shippers), after=True, **which), faults.loses_answer(**which))
        read(mount, "killed", "0?")
        wait_for("the first entry", lambda: line.entries("killed"))
        read(mount, "killed", "1?")
        kill(mount)
    entries = line.entries("killed")
    with mounted(line.site, line.mountpoint, engine=direct, options=NO_CAPTURE) as mount:
        wait_for("what the first mount has left to be shipped", lambda: len(spools(line.site)) == 1)
        read(mount, "next", "2?")
        mount.unmount()
    assert line.entries("killed") > entries
    assert line.opened("killed") == {f"{number:02}": 1 for number in range(20)}
    assert line.opened("next") == {f"{number:02}": 1 for number in range(20, 30)}
    assert spools(line.site) == []


def test_records_of_a_mount_that_never_reached_the_service_again_are_delivered_by_a_question(line, direct):
    with mounted(line.site, line.mountpoint, engine=direct, options=NO_CAPTURE) as mount:
        read(mount, "first", "*")
        wait_for("its record", lambda: line.entries("first"))
        with line.proxy.away():
            read(mount, "later", "*")
            kill(mount)
        assert "later" not in line.place.runs(), "another machine cannot know"
    assert line.site.runs()["later"]["inputs"][0]["files_opened"] == FILES
    assert line.opened("later") == line.opened("first") == {f"{number:02}": 1 for number in range(FILES)}

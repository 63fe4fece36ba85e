"""Records on their way from a mount to a bucket: the service goes away, its answers get lost, processes die in between; and
every open arrives once, in order."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from glob import glob

import pytest

from vault.repo.spool import list_spools
from vault.testing import proxy_faults as faults
from vault.testing.gateway import Gateway
from vault.testing.mounts import Mount, Site, mounted, run, wait_for
from vault.testing.proxy import Proxy
from vault.testing.trees import noise, write_tree

FILES = 40
RUNS = "/runs/"
NO_CAPTURE = ("--no-capture",)  # it has a test of its own


@dataclass(frozen=True)
class Line:
    """A store in a bucket, as seen through a proxy, and as it is."""

    proxy: Proxy
    site: Site  # through the proxy
    plain: Site  # past it, from another machine
    mountpoint: str

    def entries(self, name: str) -> list[str]:
        """Return the keys of a run's journals, as far as they are in the bucket."""
        from vault.stores.registry import open_store

        with pytest.MonkeyPatch.context() as patch:
            for variable, value in self.plain.variables.items():
                patch.setenv(variable, value)
            return [key for key in open_store(self.plain.store).list("runs/") if f"/{name}/" in key]

    def opened(self, name: str) -> dict[str, int]:
        """Return what is on record, asked from elsewhere, after checking the journal's chain."""
        keys = self.entries(name)
        assert [int(key[-15:-5]) for key in keys] == list(range(1, len(keys) + 1)), keys
        return {path: opens for (_, path), opens in self.plain.opened(name).items()}


@pytest.fixture
def line(gateway: Gateway, tmp_path) -> Iterator[Line]:
    with gateway.bucket() as bucket, Proxy(gateway.url) as proxy:
        store = f"s3://{bucket}/vault"
        plain = Site(store, str(tmp_path / "elsewhere"), variables=gateway.variables())
        write_tree(os.fsencode(tmp_path / "source"), {b"%02d" % number: noise(500, seed=number) for number in range(FILES)})
        plain.vault("init")
        plain.commit(str(tmp_path / "source"), "data")
        through = replace(plain, cache=str(tmp_path / "cache"), variables=gateway.variables(AWS_ENDPOINT_URL=proxy.url))
        yield Line(proxy, through, plain, str(tmp_path / "mnt"))


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
        read(mount, "before", "*")
        with line.proxy.away():
            read(mount, "while", "*")
            wait_for("somebody to notice", lambda: "does not answer" in mount.words(), timeout_s=60)

        def captured() -> bool:
            found = line.plain.runs()
            return all(name in found and found[name]["history"][0]["captured"] for name in ("before", "while"))

        wait_for("both captures", captured, timeout_s=90)
        mount.unmount()
    assert spools(line.site) == []


@pytest.mark.parametrize(
    "fault",
    [
        faults.loses_answer(method="PUT", path_contains=RUNS, times=2),
        faults.answers(500, "InternalError", forwarded=True, method="PUT", path_contains=RUNS, times=2),
        faults.slow_down(method="PUT", path_contains=RUNS, times=3),
        faults.drops(method="PUT", path_contains=RUNS, times=3),
        faults.expired_token(method="PUT", path_contains=RUNS, times=2),
    ],
    ids=["answers are lost", "errors though it is done", "slow down", "dropped", "credentials expire"],
)
def test_an_entry_is_in_the_journal_once_whatever_its_put_meets(line, direct, fault):
    line.proxy.add(fault)
    with mounted(line.site, line.mountpoint, engine=direct, options=NO_CAPTURE) as mount:
        read(mount, "unlucky", "0?")
        wait_for("the first entry", lambda: line.entries("unlucky"))
        read(mount, "unlucky", "1?")
        mount.unmount()
    assert line.opened("unlucky") == {f"{number:02}": 1 for number in range(20)}
    assert line.proxy.unused == []
    assert spools(line.site) == []


def test_a_mount_that_is_killed_before_it_knows_what_arrived_is_followed_by_one_that_finds_out(line, direct):
    """The service has the entry, and everybody who could have heard of it is dead."""
    with mounted(line.site, line.mountpoint, engine=direct, options=NO_CAPTURE) as mount:
        shippers = mount.shippers()
        which = {"method": "PUT", "path_contains": RUNS}
        line.proxy.add(faults.calls(lambda: stop(shippers), **which), faults.loses_answer(**which))
        read(mount, "killed", "0?")
        wait_for("the first entry", lambda: line.entries("killed"))
        read(mount, "killed", "1?")
        kill(mount)
    entries = line.entries("killed")
    with mounted(line.site, line.mountpoint, engine=direct, options=NO_CAPTURE) as mount:
        wait_for("what the first mount has left to be shipped", lambda: len(spools(line.site)) == 1)
        read(mount, "next", "2?")
        mount.unmount()
    assert len(line.entries("killed")) > len(entries)
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
        assert "later" not in line.plain.runs(), "another machine cannot know"
    assert line.site.runs()["later"]["inputs"][0]["files_opened"] == FILES
    assert line.opened("later") == line.opened("first") == {f"{number:02}": 1 for number in range(FILES)}

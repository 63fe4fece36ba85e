"""Records while store, spool or reader are out of reach: nothing is lost, counted twice or read without a record."""

import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vault.api import open_vault
from vault.repo.spool import list_spools
from vault.testing.mounts import Mount, Site, mounted, run, wait_for
from vault.testing.trees import noise, write_tree

FILES = 1200

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root takes disks away and makes namespaces")


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("records")
    write_tree(os.fsencode(folder / "source"), {b"%04d" % number: noise(40, seed=number) for number in range(FILES)})
    site = Site.make(str(folder))
    site.commit(str(folder / "source"), "data")
    return site


@pytest.fixture
def own(stored: Site, tmp_path) -> Site:
    """The store, copied, and an empty cache."""
    run("cp", "-a", stored.store, str(tmp_path / "store"))
    return Site(str(tmp_path / "store"), str(tmp_path / "cache"))


def read(mount: Mount, name: str, files: str) -> None:
    """Read files, a pattern of the shell, as a run."""
    run("sh", "-ec", f'cat "$0"/{files} > /dev/null', f"{mount.path}/data@v1", variables={"VAULTFS_RUN": name})


@contextmanager
def read_only(path: str) -> Iterator[None]:
    """Make a folder read-only for everybody, root too."""
    run("mount", "--bind", path, path)
    try:
        run("mount", "-o", "remount,bind,ro", path)
        yield
    finally:
        run("umount", "--lazy", path)  # the mount has files of it open


def spooled(site: Site) -> list[str]:
    """Return the files in which records wait."""
    found = [f"{folder}/{name}" for folder, _, names in os.walk(site.cache) for name in names if "/spool/" in folder]
    return [path for path in found if "/tables/" in path or os.path.basename(path).isdigit()]


def spooled_of_others(site: Site, mount: Mount) -> list[str]:
    """Return the spools of mounts that have ended."""
    roots = [f"{site.cache}/{name}/spool" for name in os.listdir(site.cache)]
    return [spool.folder for root in roots for spool in list_spools(root) if spool.writer.pid != mount.pid]


def test_reads_go_on_while_the_store_takes_no_records_which_arrive_later_once(own, engine, tmp_path):
    with mounted(own, str(tmp_path / "mnt"), engine=engine) as mount:
        with read_only(own.store):
            read(mount, "away", "000?")
            read(mount, "away", "0001")
            read(mount, "away", "001?")
            wait_for("the shipper to notice", lambda: "takes no records" in mount.words())
            assert mount.status("health") == "ok\n"
            assert spooled(own)
            assert "away" not in own.runs()
        assert own.runs()["away"]["inputs"][0]["files_opened"] == 20, "asking for runs takes what waits along"
        mount.unmount()
    expected = {("data@v1", f"00{number:02}"): 2 if number == 1 else 1 for number in range(20)}
    assert own.opened("away") == expected
    assert spooled(own) == []


def test_records_wait_for_the_store_over_the_end_of_a_mount(own, engine, tmp_path):
    with read_only(own.store):
        with mounted(own, str(tmp_path / "mnt"), engine=engine) as mount:
            read(mount, "ended", "000?")
        with mounted(own, str(tmp_path / "mnt"), engine=engine) as mount:
            read(mount, "killed", "001?")
            for process in [*mount.processes(), mount.pid]:
                os.kill(process, signal.SIGKILL)
            mount.wait_for_end()
        assert len(spooled(own)) >= 2
    with mounted(own, str(tmp_path / "mnt"), engine=engine) as mount:  # its shipper finds what others left
        wait_for("both runs", lambda: not spooled_of_others(own, mount))
    for name, tens in ("ended", 0), ("killed", 1):
        assert own.opened(name) == {("data@v1", f"00{tens}{number}"): 1 for number in range(10)}
        assert own.runs()[name]["ended"]
    assert spooled(own) == []


@pytest.fixture
def small(own: Site, tmp_path) -> Iterator[Site]:
    """A site whose cache lies on a disk of 12 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=12m", "none", str(place))
    try:
        yield Site(own.store, f"{place}/cache")
    finally:
        run("umount", "--lazy", str(place))


def test_what_cannot_be_recorded_is_not_opened(small, engine, tmp_path):
    options = ("--no-capture", "--log", str(tmp_path / "log"))  # the code of this project does not fit that disk
    with mounted(small, str(tmp_path / "mnt"), engine=engine, options=options) as mount:
        read(mount, "before", "000?")
        held = os.open(f"{mount.path}/data@v1/0500", os.O_RDONLY)
        fill = os.path.join(os.path.dirname(small.cache), "fill")
        fill_up(fill)
        done = subprocess.run(
            ["cat", f"{mount.path}/data@v1/0600"],
            env={**os.environ, "VAULTFS_RUN": "new"},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"Input/output error" in done.stderr
        assert os.pread(held, 100, 0) == noise(40, seed=500), "what is open is read on"
        os.close(held)
        assert "reads are refused, because they cannot be recorded" in mount.words()
        assert os.strerror(errno.ENOSPC) in mount.words()
        os.unlink(fill)
        read(mount, "new", "0600")
        read(mount, "before", "000?")
        mount.unmount()
    assert small.opened("new") == {("data@v1", "0600"): 1}
    assert set(small.opened("before").values()) == {2}


def fill_up(path: str) -> None:
    with open(path, "wb", buffering=0) as file:
        size = 1 << 20
        while size >= 512:
            try:
                file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                size //= 2


def test_a_spool_that_is_removed_while_in_use_is_made_anew(own, engine, tmp_path):
    with mounted(own, str(tmp_path / "mnt"), engine=engine) as mount:
        read(mount, "lost", "0001")
        run("sh", "-c", 'rm -rf "$0"/*/spool', own.cache)
        read(mount, "kept", "000?")
        mount.unmount()
    assert len(own.opened("kept")) == 10


# Processes in other namespaces.


def child_of(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        (child,) = file.read().split()
    return int(child)


@contextmanager
def contained(site: Site, place: str, engine: str) -> Iterator[int]:
    """Mount in a container: with process IDs and a mount table of its own. Gives a process of it, as the host counts."""
    os.mkdir(place)
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command += site.command("mount", "--foreground", "--json", "--engine", engine, place)
    with subprocess.Popen(command, env=site.environment(), stdout=subprocess.PIPE, text=True) as container:
        assert container.stdout is not None
        try:
            assert json.loads(container.stdout.readline())["type"] == "summary"
            process = child_of(container.pid)
            yield process
            os.kill(process, signal.SIGTERM)
            assert container.wait(timeout=30) == 0
        finally:
            container.kill()


def test_a_reader_outside_of_the_mounts_container_is_recorded_as_not_visible(own, engine, tmp_path):
    place = str(tmp_path / "mnt")
    inside = ("cat", f"{place}/data@v1/0001", f"{place}/data@v1/0002")
    with contained(own, place, engine) as process:
        own.runs()  # on the host: it must leave a mount alone that it cannot judge
        # In its mount namespace but not among its processes: as a process of the host that sees the mount.
        run("nsenter", f"--target={process}", "--mount", *inside, variables={"VAULTFS_RUN": "outside"})
        run("nsenter", f"--target={process}", "--mount", "--pid", *inside, variables={"VAULTFS_RUN": "inside"})
    runs = own.runs()
    assert set(own.opened("inside")) == {("data@v1", "0001"), ("data@v1", "0002")}
    assert "outside" not in runs
    (unseen,) = [record for name, record in runs.items() if name != "inside"]
    assert unseen["run"].startswith("unknown-")
    assert any("PID namespace" in gap for gap in unseen["gaps"])
    assert unseen["user"] == "root"
    assert own.opened(unseen["run"]) == {("data@v1", "0001"): 1, ("data@v1", "0002"): 1}


def test_asking_for_runs_on_the_host_takes_nothing_from_a_mount_in_a_container(own, engine, tmp_path):
    """They may share a cache directory, and the host finds none of the container's process IDs."""
    place = str(tmp_path / "mnt")
    with contained(own, place, engine) as process:
        inside = ("nsenter", f"--target={process}", "--mount", "--pid", "--", "sh", "-c")
        program = f"cat {place}/data@v1/000? && read line && cat {place}/data@v1/000?"
        with subprocess.Popen(
            [*inside, program], env={**os.environ, "VAULTFS_RUN": "long"}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as reader:
            wait_for("its reads", lambda: spooled(own))
            for _ in range(3):
                own.runs()
            with mounted(own, str(tmp_path / "host"), engine=engine) as mount:
                read(mount, "host", "0100")
            reader.communicate(b"go on\n", timeout=30)
        assert reader.returncode == 0
    assert own.opened("long") == {("data@v1", f"000{number}"): 2 for number in range(10)}
    assert own.opened("host") == {("data@v1", "0100"): 1}
    assert own.runs()["long"]["attempts"] == 1


def test_a_reader_in_a_container_is_seen_by_the_hosts_mount(own, engine, tmp_path):
    with mounted(own, str(tmp_path / "mnt"), engine=engine) as mount:
        command = ["unshare", "--pid", "--fork", "--mount", "cat", f"{mount.path}/data@v1/0003"]
        run(*command, variables={"VAULTFS_RUN": "container"})
        mount.unmount()
    assert own.opened("container") == {("data@v1", "0003"): 1}


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


RECYCLE = """
set -e
echo 400 > /proc/sys/kernel/pid_max
$VAULT mount --engine "$1" "$2" > /dev/null
for n in $(seq 1000 1199); do
    VAULTFS_RUN=r$n cat "$2/data@v1/$n" > /dev/null
    # Others use numbers up, and open files at once: in a pid that a reader of a moment ago had, or nearly.
    for m in 1 2 3 4; do VAULTFS_RUN=other$m cat "$2/data@v1/000$m" > /dev/null & done; wait
    sh -c : ; sh -c :
done
$VAULT umount "$2"
"""


@pytest.mark.slow
@pytest.mark.skipif(kernel() < (6, 14), reason="pid_max is the whole machine's before Linux 6.14")
def test_a_process_that_has_the_number_of_an_ended_one_is_another(own, engine, tmp_path):
    """With 400 process IDs in all, some 1,400 processes get numbers that others had: none gets the run of a former one."""
    place = tmp_path / "mnt"
    place.mkdir()
    variables = {**own.environment(), "VAULT": " ".join(own.command())}
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "bash",
        "-c",
        RECYCLE,
        "bash",
        engine,
        str(place),
    ]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
        assert int(file.read()) > 400, "the machine's own limit is as it was"
    audit = open_vault(own.store, cache_dir=own.cache).open_audit()

    def opened(name: str) -> dict[bytes, int | None]:
        return {file.path: file.opens for file in audit.opened_files(audit.run(name))}

    for number in range(1000, 1200):
        assert opened(f"r{number}") == {b"%d" % number: 1}
    for number in range(1, 5):
        assert opened(f"other{number}") == {b"000%d" % number: 200}

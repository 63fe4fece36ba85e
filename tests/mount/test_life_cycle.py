"""How mounts begin and end: in the background and in front, refused, busy, dead, twice, in odd places."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from vault.testing.mounts import Mount, Site, is_mounted, mount_types, mounted, run, wait_for
from vault.testing.trees import write_tree

USAGE, NOT_FOUND, MOUNT = 2, 3, 7


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A store with one small version."""
    folder = tmp_path_factory.mktemp("stored")
    write_tree(os.fsencode(folder / "source"), {b"a": b"content", b"b": {b"c": b"more"}})
    site = Site.make(str(folder))
    site.commit(str(folder / "source"), "data")
    return site


@pytest.fixture
def place(tmp_path) -> str:
    """An empty folder to mount on."""
    (tmp_path / "mnt").mkdir()
    return str(tmp_path / "mnt")


def content(mount: Mount) -> str:
    with open(f"{mount.path}/data@v1/a", encoding="ascii") as file:
        return file.read()


@contextmanager
def foreground(site: Site, place: str, engine: str) -> Iterator[tuple["subprocess.Popen[str]", Mount]]:
    """Mount in the foreground, in a process group of its own, as a terminal does."""
    command = site.command("mount", "--foreground", "--engine", engine, "--json", place)
    with subprocess.Popen(
        command, env=site.environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            summary = json.loads(process.stdout.readline())
            assert summary["pid"] == process.pid
            mount = Mount(site, place, summary["engine"], process.pid, os.devnull)
            yield process, mount
            mount.remove()
        finally:
            process.kill()


# Beginning.


def test_mount_returns_when_it_answers(stored, place, engine):
    done = stored.vault("mount", place, "--engine", engine)
    assert f"{stored.store} is mounted on {place}" in done.stdout
    assert os.listdir(f"{place}/data@v1") == ["a", "b"]
    assert stored.vault("umount", place).stdout == f"{place} is unmounted\n"
    assert os.listdir(place) == []


def test_the_background_process_is_nobodys_child_and_keeps_nothing_of_the_caller(stored, place, engine):
    with mounted(stored, place, engine=engine) as mount:
        assert os.readlink(f"/proc/{mount.pid}/cwd") == "/"
        assert os.getsid(mount.pid) == mount.pid
        for descriptor, target in ((0, "/dev/null"), (1, mount.log), (2, mount.log)):
            assert os.readlink(f"/proc/{mount.pid}/fd/{descriptor}") == target


def test_nothing_is_left_after_the_end(stored, place, engine, tmp_path):
    site = Site(stored.store, str(tmp_path / "cache"))
    with mounted(site, place, engine=engine) as mount:
        assert content(mount) == "content"
        (folder,) = [name for name in os.listdir(site.cache) if len(name) == 32]
        mount.unmount()
        assert os.listdir(f"{site.cache}/{folder}/mounts") == []
        assert os.listdir(f"{site.cache}/{folder}/spool") == [], "all records are in the store"
        assert not mount.processes()


@pytest.mark.parametrize("by_terminal", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_foreground_ends_with_a_signal_and_unmounts(stored, place, engine, number, by_terminal):
    with foreground(stored, place, engine) as (process, mount):
        assert content(mount) == "content"
        if by_terminal:
            os.killpg(process.pid, number)  # Ctrl-C goes to all of them
        else:
            process.send_signal(number)
        assert process.wait(timeout=20) == 0
        assert not is_mounted(place)
        mount.wait_for_end()


def test_the_background_ends_with_a_signal_and_unmounts(stored, place, engine):
    with mounted(stored, place, engine=engine) as mount:
        os.kill(mount.pid, signal.SIGTERM)
        mount.wait_for_end()
        assert not is_mounted(place)


def test_a_signal_to_a_busy_mount_takes_it_out_of_sight(stored, place, engine):
    with mounted(stored, place, engine=engine) as mount:
        descriptor = os.open(f"{mount.path}/data@v1/a", os.O_RDONLY)
        os.kill(mount.pid, signal.SIGTERM)
        wait_for("the mount to be out of sight", lambda: not is_mounted(place))
        if engine == "direct":
            assert os.read(descriptor, 100) == b"content", "who has it open reads on"
            os.close(descriptor)
        else:  # libfuse ends at once
            with contextlib.suppress(OSError):
                os.close(descriptor)
        mount.wait_for_end()


def test_the_log_says_what_happens_in_the_background(stored, place, engine, tmp_path):
    log = str(tmp_path / "logs" / "mine.log")
    with mounted(stored, place, engine=engine, options=("--log", log)) as mount:
        assert mount.log == log
        assert os.stat(log).st_mode & 0o777 == 0o600
    with mounted(stored, place, engine=engine) as mount:
        assert mount.log.startswith(stored.cache)
        assert os.path.exists(mount.log)


def test_the_environment_chooses_the_engine(stored, place, engine):
    summary = stored.with_variables(VAULTFS_ENGINE=engine).json("mount", place)[-1]
    assert summary["engine"] == engine
    stored.vault("umount", place)


def test_an_option_beats_the_environment(stored, place, engine):
    site = stored.with_variables(VAULTFS_ENGINE="direct" if engine == "fusepy" else "fusepy")
    with mounted(site, place, engine=engine) as mount:
        assert mount.status("engine") == f"{engine}\n"


def test_the_direct_engine_is_the_default(stored, place, direct):
    assert stored.json("mount", place)[-1]["engine"] == direct
    stored.vault("umount", place)


def test_an_engine_that_is_none_is_refused(stored, place):
    done = stored.with_variables(VAULTFS_ENGINE="warp").vault("mount", place, status=USAGE)
    assert "no engine 'warp'" in done.stderr
    assert "direct, fusepy" in done.stderr


# Places.


def refused(site: Site, place: str, *, status: int = MOUNT) -> str:
    for engine in ("direct", "fusepy"):
        done = site.vault("mount", place, "--engine", engine, status=status)
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
    return done.stderr


def test_a_folder_that_is_not_empty_is_refused(stored, place):
    write_tree(os.fsencode(place), {b"precious": b"data"})
    assert "is not empty (it holds 'precious')" in refused(stored, place)
    assert not is_mounted(place)


def test_a_folder_that_is_not_there_is_refused(stored, place):
    assert f"make it with 'mkdir -p {place}/x'" in refused(stored, f"{place}/x")


def test_a_file_is_refused(stored, tmp_path):
    (tmp_path / "file").touch()
    assert "is not a folder" in refused(stored, str(tmp_path / "file"))


def test_what_is_no_store_is_refused(tmp_path, place):
    assert refused(Site(str(tmp_path / "no"), str(tmp_path / "cache")), place, status=NOT_FOUND)
    (tmp_path / "empty").mkdir()
    assert refused(Site(str(tmp_path / "empty"), str(tmp_path / "cache")), place, status=NOT_FOUND)
    assert not is_mounted(place)


def test_a_second_mount_on_the_same_place_is_refused(stored, place, engine):
    with mounted(stored, place, engine=engine) as mount:
        assert f"take it away with 'vault umount {place}'" in refused(stored, place)
        assert content(mount) == "content"


def test_a_store_can_be_mounted_twice(stored, tmp_path, engine):
    with mounted(stored, str(tmp_path / "one"), engine=engine) as one:
        with mounted(stored, str(tmp_path / "two"), engine="direct") as two:
            assert content(one) == content(two) == "content"
            assert one.pid != two.pid
        assert content(one) == "content"


ODD = {
    "space": b"with space",
    "comma": b"with,comma,ro",
    "newline": b"new\nline",
    "backslash": b"back\\slash \\040",
    "unicode": "Ünïcödé ☃".encode(),
    "bytes": b"\xff\xfe",
    "dash": b"-dash",
    "percent": b"%s%n",
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_names_of_mount_points_and_stores(stored, tmp_path, engine, kind):
    folder = os.path.join(os.fsencode(tmp_path), ODD[kind])
    os.mkdir(folder)
    store = os.fsdecode(folder) + "/store"
    shutil.copytree(stored.store, store)
    with mounted(Site(store, stored.cache), folder + b"/mnt", engine=engine) as mount:
        assert content(mount) == "content"
        assert mount_types()[mount.path] == "fuse.vault"
        with open(f"{mount.path}/.vault/store", encoding="utf-8", errors="surrogateescape") as file:
            assert file.read() == f"{store}\n"


@pytest.mark.parametrize("way", ["relative", "slash", "dots", "link"])
def test_a_place_can_be_named_in_several_ways(stored, tmp_path, engine, way):
    place = tmp_path / "mnt"
    place.mkdir()
    (tmp_path / "link").symlink_to("mnt")
    named = {"relative": "mnt", "slash": f"{place}/", "dots": f"{tmp_path}/./mnt/../mnt", "link": f"{tmp_path}/link"}[way]
    inside = Site(stored.store, stored.cache, wrap=("env", "-C", str(tmp_path)))
    inside.vault("mount", named, "--engine", engine)
    try:
        assert mount_types()[str(place)] == "fuse.vault"
        assert "mounted here already" in inside.vault("mount", named, status=MOUNT).stderr
    finally:
        inside.vault("umount", named)
    assert not is_mounted(str(place))


# Ending.


def test_what_is_not_mounted_cannot_be_unmounted(stored, place, tmp_path):
    for path in (place, f"{place}/nothing", "/proc", "/"):
        assert "no vault is mounted here" in stored.vault("umount", path, status=MOUNT).stderr
    with mounted(stored, str(tmp_path / "elsewhere"), engine="direct") as mount:
        assert "; there is one on /" in stored.vault("umount", place, status=MOUNT).stderr
        assert "no vault is mounted here" in stored.vault("umount", f"{mount.path}/data@v1", status=MOUNT).stderr


USES: dict[str, list[str]] = {
    "file": ["tail", "-f", "{path}/data@v1/a"],
    "folder": ["sh", "-c", "cd {path}/data@v1/b && exec tail -f /dev/null"],
    "mapping": ["python3", "-c", "import mmap,time; f=open('{path}/data@v1/a'); m=mmap.mmap(f.fileno(),0,prot=1); "
                "f.close(); print('x', flush=True); time.sleep(99)"],
}  # fmt: skip


@contextmanager
def user_of(mount: Mount, what: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = [part.format(path=mount.path) for part in USES[what]]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as user:
        try:
            wait_for(f"a {what} in use", lambda: mount.path in uses(user.pid))
            yield user
        finally:
            user.kill()


def uses(pid: int) -> str:
    links = [f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd"))]
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        found = maps.read()
    for link in links:
        with contextlib.suppress(FileNotFoundError):  # closed just now
            found += os.readlink(link)
    return found


@pytest.mark.parametrize("what", USES)
def test_a_mount_in_use_stays_and_its_user_is_named(stored, place, engine, what):
    with mounted(stored, place, engine=engine) as mount:
        with user_of(mount, what) as user:
            with open(f"/proc/{user.pid}/comm", encoding="ascii") as file:
                name = file.read().strip()
            done = stored.vault("umount", place, status=MOUNT)
            assert f"{name} (process {user.pid}: {place}/data@v1/" in done.stderr
            assert "--lazy" in done.stderr
            assert content(mount) == "content"
        mount.unmount()


def test_a_lazy_unmount_lets_users_finish(stored, place, engine):
    with mounted(stored, place, engine=engine) as mount:
        with open(f"{place}/data@v1/b/c", encoding="ascii") as file:
            stored.vault("umount", "--lazy", place)
            assert not is_mounted(place)
            assert os.listdir(place) == []
            assert file.read() == "more"
            assert mount.is_running()
        mount.wait_for_end()


def test_the_place_can_be_used_again_at_once(stored, place, engine):
    for _ in range(3):
        with mounted(stored, place, engine=engine) as mount:
            assert content(mount) == "content"


def system_umount(mount: Mount) -> None:
    run("umount", mount.path)


def fusermount(mount: Mount) -> None:
    run("fusermount3", "-u", "--", mount.path)


@pytest.mark.skipif(os.geteuid() != 0, reason="umount(8) is root's")
@pytest.mark.parametrize("unmount", [system_umount, fusermount])
def test_the_systems_own_commands_unmount_cleanly(stored, place, engine, unmount: Callable[[Mount], None]):
    with mounted(stored, place, engine=engine) as mount:
        run("cat", f"{place}/data@v1/a", variables={"VAULTFS_RUN": f"by-{unmount.__name__}-{engine}"})
        unmount(mount)
        mount.wait_for_end()
        assert stored.opened(f"by-{unmount.__name__}-{engine}") == {("data@v1", "a"): 1}


def test_a_dead_fusepy_mount_is_replaced_by_the_next(stored, place, engine):
    with mounted(stored, place, engine=engine) as mount:
        mount.kill()
        with mounted(stored, place, engine=engine) as again:
            assert content(again) == "content"

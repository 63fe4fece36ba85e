"""A mounted snapshot beside its source and its checkout: names, status, links and contents are the same."""

import filecmp
import hashlib
import os
import stat
import subprocess
from collections.abc import Callable

import pytest

from vault.testing.mounts import mount_types, mounted, run
from vault.testing.trees import Executable, Link, content, paths, read_tree

KINDS = {
    dict: stat.S_IFDIR | 0o555,
    bytes: stat.S_IFREG | 0o444,
    Executable: stat.S_IFREG | 0o555,
    Link: stat.S_IFLNK | 0o777,
}


def test_a_mount_shows_what_was_committed_and_nothing_else(root, shelf):
    assert read_tree(root) == shelf.tree


def test_a_mount_shows_what_a_checkout_writes(root, shelf):
    assert read_tree(root) == read_tree(shelf.checkout)


def test_diff_finds_no_difference(root, shelf):
    run("diff", "-r", "--no-dereference", root, shelf.checkout)


def test_find_lists_the_same_paths_types_and_sizes(root, shelf):
    def find(folder: bytes, kind: str, what: bytes) -> list[bytes]:
        return sorted(run("find", folder, "-type", kind, "-printf", what).stdout.split(b"\0"))

    for kind, what in ("d", b"%P\\0"), ("f", b"%P %s\\0"), ("l", b"%P %l\\0"):
        assert find(root, kind, what) == find(shelf.checkout, kind, what)


def test_status_is_that_of_an_immutable_file_of_the_commits_time(root, shelf):
    for path, node in paths(shelf.tree).items():
        status = os.lstat(root + b"/" + path)
        assert status.st_mode == KINDS[type(node)], path
        assert status.st_mtime_ns == status.st_ctime_ns == shelf.time_ns, path
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid()), path
        assert status.st_nlink == (2 if isinstance(node, dict) else 1), path
        data = content(node)
        if data is not None:
            assert status.st_size == len(data), path
            assert status.st_blocks == (len(data) + 511) // 512, path
        elif isinstance(node, Link):
            assert status.st_size == len(node.target), path


def test_inode_numbers_tell_files_apart_and_stay(root):
    def numbers() -> list[tuple[bytes, int]]:
        return sorted((entry.name, entry.stat(follow_symlinks=False).st_ino) for entry in os.scandir(root + b"/packed"))

    found = numbers()
    assert len({number for _, number in found}) == len(found)
    assert numbers() == found


def test_symlinks_are_kept_and_lead_where_they_led(root, shelf):
    links = root + b"/links/"
    for name, node in shelf.tree[b"links"].items():
        assert os.readlink(links + name) == node.target
    assert os.path.samefile(links + b"to-file", root + b"/packed/raw-0")
    assert sorted(os.listdir(links + b"to-folder")) == sorted(shelf.tree[b"packed"])
    with pytest.raises(FileNotFoundError):
        os.stat(links + b"dangling")
    with pytest.raises(OSError, match="symbolic links"):
        os.stat(links + b"loop")
    with open(links + b"absolute", "rb") as file:
        assert os.fsencode(b" - fuse.vault ".decode()) in file.read()


def test_executables_run(root):
    assert run(root + b"/run.sh").stdout == b"it runs\n"


def test_what_is_not_executable_does_not_run(root):
    with pytest.raises(PermissionError):
        subprocess.run([root + b"/packed/text-100"], check=False)


def test_a_name_that_is_not_there_is_not_there(root):
    for path in b"nothing", b"packed/nothing", b"names/" + b"x" * 254, b"Empty":
        with pytest.raises(FileNotFoundError):
            os.lstat(root + b"/" + path)
    with pytest.raises(NotADirectoryError):
        os.lstat(root + b"/empty/below a file")
    with pytest.raises(OSError, match="too long"):
        os.lstat(root + b"/" + b"x" * 256)


def test_sums_of_contents_are_the_same(root, shelf):
    names = sorted(path for path, node in paths(shelf.tree).items() if content(node))
    said = run("sha256sum", "--zero", "--", *(root + b"/" + name for name in names)).stdout.split(b"\0")[:-1]
    sums = [hashlib.sha256(content(paths(shelf.tree)[name]) or b"").hexdigest().encode() for name in names]
    assert [line.split(b" ", 1)[0] for line in said] == sums


def test_cp_makes_a_copy_that_equals_the_checkout(root, shelf, tmp_path):
    copy = os.fsencode(tmp_path / "copy")
    run("cp", "-a", root + b"/packed", copy)
    assert filecmp.dircmp(copy, shelf.checkout + b"/packed").diff_files == []
    assert read_tree(copy) == shelf.tree[b"packed"]


def test_tar_reads_it_all(root, shelf, tmp_path):
    archive = os.fsencode(tmp_path / "all.tar")
    run("tar", "-C", root, "-cf", archive, ".")
    unpacked = os.fsencode(tmp_path / "unpacked")
    os.mkdir(unpacked)
    run("tar", "-C", unpacked, "-xf", archive)
    assert read_tree(unpacked) == shelf.tree
    run("chmod", "-R", "u+w", unpacked)  # as it came: nobody may write there
    run("rm", "-rf", unpacked, archive)


def test_the_mount_says_what_it_is(mount, shelf):
    assert mount_types()[mount.path] == "fuse.vault"
    with open("/proc/mounts", encoding="utf-8") as table:
        (line,) = [line for line in table if line.split()[1] == mount.path]
    source, _, kind, options = line.split()[:4]
    assert (source, kind) == (shelf.site.store, "fuse.vault")
    assert {"ro", "nosuid", "nodev", "default_permissions"} <= set(options.split(","))


def test_statfs_says_something_useful(root):
    disk = os.statvfs(root)
    assert disk.f_namemax == 255
    assert disk.f_bfree == disk.f_bavail == 0
    assert disk.f_blocks * disk.f_frsize > 1 << 20
    assert disk.f_flag & os.ST_RDONLY
    assert run("df", "--output=source,size", root).stdout.count(b"\n") == 2


def test_dots_lead_where_they_should(root, mount):
    assert os.path.samefile(root + b"/packed/..", root)
    assert os.path.samefile(root + b"/names/\x80/../..", root)
    assert os.path.samefile(root + b"/..", mount.path)


def test_a_path_may_be_longer_than_the_kernel_takes_in_one_call(site, engine, tmp_path):
    """Each folder is opened by its name in the one above, as `find` and `rm -r` do."""
    name, depth = b"n" * 30, 300

    def descend(top: bytes, step: Callable[[int], None]) -> int:
        descriptor = os.open(top, os.O_RDONLY)
        for _ in range(depth):
            step(descriptor)
            below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        return descriptor

    os.mkdir(tmp_path / "source")
    bottom = descend(os.fsencode(tmp_path / "source"), lambda above: os.mkdir(name, dir_fd=above))
    with open(os.open(b"deep", os.O_WRONLY | os.O_CREAT, dir_fd=bottom), "wb") as file:
        file.write(b"down here")
    os.close(bottom)
    site.commit(str(tmp_path / "source"), "deep")
    with mounted(site, str(tmp_path / "mnt"), engine=engine) as mount:
        bottom = descend(os.fsencode(mount.path) + b"/deep@v1", lambda above: None)
        assert os.listdir(bottom) == ["deep"]
        with open(os.open(b"deep", os.O_RDONLY, dir_fd=bottom), "rb") as file:
            assert file.read() == b"down here"
        os.close(bottom)
        found = run("find", f"{mount.path}/deep@v1", "-name", "deep", "-printf", "%d %s").stdout
        assert found == b"%d 9" % (depth + 1)
    run("rm", "-rf", str(tmp_path / "source"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts overlays")
def test_an_overlay_makes_a_version_writable_for_who_needs_that(mount, root, shelf, tmp_path):
    for name in ("upper", "work", "merged"):
        os.mkdir(tmp_path / name)
    options = f"lowerdir={os.fsdecode(root)},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    merged = os.fsencode(tmp_path / "merged")
    run("mount", "-t", "overlay", "-o", options, "none", merged)
    try:
        assert read_tree(merged + b"/large") == shelf.tree[b"large"]
        assert read_tree(merged + b"/names") == shelf.tree[b"names"]
        with open(merged + b"/packed/text-100", "ab") as file:
            file.write(b"more")
        assert os.path.getsize(merged + b"/packed/text-100") == 104
        assert os.path.getsize(root + b"/packed/text-100") == 100
    finally:
        run("umount", merged)

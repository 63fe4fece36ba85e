"""The peers: restic, borg, squashfs and erofs, each set up in the way that suits it best here.

The data is random, so nothing is lost by turning compression off where that is possible: no peer wastes time on it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from bench.candidates import Mount, missing_tools
from bench.execute import Command

PACKAGES = (
    "restic",
    "borgbackup",
    "squashfuse",
    "squashfs-tools",
    "erofs-utils",
    "erofsfuse",
    "fuse3",
    "libfuse2",
)  # Debian's names


@dataclass(frozen=True, slots=True)
class Restic:
    """restic with a repository in a folder."""

    name: str = "restic"
    commits: bool = True
    increments: bool = True
    mounts: bool = True

    def missing(self) -> str | None:
        return missing_tools("restic", "fusermount")

    def version(self) -> Sequence[str]:
        return ("restic", "version")

    def prepare(self, place: str) -> Sequence[Command]:
        return (self._command(place, "init"),)

    def commit(self, place: str, tree: str, number: int) -> Command:
        return self._command(place, "backup", "--compression", "off", ".", cwd=tree)

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        start = self._command(place, "mount", point)
        return Mount(start, f"{point}/snapshots/latest", ("fusermount", "-u", point))

    def _command(self, place: str, *arguments: str, cwd: str | None = None) -> Command:
        env = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": f"{place}/cache"}
        return Command(("restic", "--quiet", "--repo", f"{place}/repository", *arguments), env, cwd)


@dataclass(frozen=True, slots=True)
class Borg:
    """borg without encryption and compression."""

    name: str = "borg"
    commits: bool = True
    increments: bool = True
    mounts: bool = True

    def missing(self) -> str | None:
        return missing_tools("borg")

    def version(self) -> Sequence[str]:
        return ("borg", "--version")

    def prepare(self, place: str) -> Sequence[Command]:
        return (self._command(place, "init", "--encryption", "none", f"{place}/repository"),)

    def commit(self, place: str, tree: str, number: int) -> Command:
        return self._command(place, "create", "--compression", "none", f"{place}/repository::v{number}", ".", cwd=tree)

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        start = self._command(place, "mount", "--foreground", f"{place}/repository::v{number}", point)
        return Mount(start, point, ("borg", "umount", point))

    def _command(self, place: str, *arguments: str, cwd: str | None = None) -> Command:
        env = {"BORG_BASE_DIR": f"{place}/base", "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}
        return Command(("borg", *arguments), {**env, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}, cwd)


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a file system, made once and mounted: squashfs or erofs, through FUSE or in the kernel."""

    name: str
    make: tuple[str, ...]  # IMAGE and TREE are replaced
    start: tuple[str, ...]  # IMAGE and POINT are replaced
    stop: tuple[str, ...]
    tools: tuple[str, ...]
    shares_image_of: str | None = None  # it mounts the image that another candidate has made
    as_root: bool = False
    increments: bool = False
    mounts: bool = True

    @property
    def commits(self) -> bool:
        return self.shares_image_of is None

    def missing(self) -> str | None:
        if self.as_root and os.geteuid() != 0:
            return "the rights of root"
        return missing_tools(*self.tools)

    def version(self) -> Sequence[str]:
        return (self.tools[0], "-version" if self.tools[0] == "mksquashfs" else "--version")

    def prepare(self, place: str) -> Sequence[Command]:
        return ()

    def commit(self, place: str, tree: str, number: int) -> Command:
        return Command(_replace(self.make, IMAGE=f"{place}/image", TREE=tree))

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        return Mount(
            Command(_replace(self.start, IMAGE=f"{place}/image", POINT=point)), point, _replace(self.stop, POINT=point)
        )


def _replace(words: tuple[str, ...], **values: str) -> tuple[str, ...]:
    return tuple(values.get(word, word) for word in words)


_UNMOUNT = ("fusermount", "-u", "POINT")
_MAKE_EROFS = ("mkfs.erofs", "--quiet", "IMAGE", "TREE")
PEERS = (
    Restic(),
    Borg(),
    Image(
        "squashfuse",
        ("mksquashfs", "TREE", "IMAGE", "-noappend", "-no-progress", "-quiet", "-noI", "-noD", "-noF", "-noX"),
        ("squashfuse_ll", "IMAGE", "POINT"),
        _UNMOUNT,
        ("mksquashfs", "squashfuse_ll"),
    ),
    Image("erofsfuse", _MAKE_EROFS, ("erofsfuse", "IMAGE", "POINT"), _UNMOUNT, ("mkfs.erofs", "erofsfuse")),
    Image(
        "erofs in the kernel",
        _MAKE_EROFS,
        ("mount", "-t", "erofs", "-o", "ro,loop", "IMAGE", "POINT"),
        ("umount", "POINT"),
        ("mkfs.erofs", "mount"),
        shares_image_of="erofsfuse",
        as_root=True,
    ),
)

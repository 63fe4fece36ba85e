"""Who reads from S3 and writes to it: Vault, rclone, s3fs. They describe commands, and run none.

Each is set up in the way that suits it best for data that does not change: no times and checksums are asked for that
nobody looks at.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from bench.candidates import Mount, missing_tools
from bench.execute import Command
from bench.s3_service import Line
from bench.vaultfs import DATASET, VAULT

PACKAGES: Final = ("ceph-mon", "ceph-osd", "radosgw", "ceph-common", "rclone", "s3fs")  # Debian's names
STORE: Final = "vault"  # the prefix of Vault's store in a bucket
PLAIN: Final = "plain"  # the prefix of the same files as objects of their own
_TRANSFERS: Final = "32"


class Mounts(Protocol):
    """What can be mounted over a line. The shape is that of bench.mounting."""

    @property
    def name(self) -> str: ...

    @property
    def mounts(self) -> bool: ...

    def missing(self) -> str | None:
        """Return what is missing on this machine, or None."""
        ...

    def version(self) -> Sequence[str]:
        """Return the command that prints its version."""
        ...

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        """Return how it is mounted; only `place`, a folder for its caches, and `point` mean something here."""
        ...


def vault_command(line: Line, bucket: str, cache: str, *arguments: str, run: str = "") -> Command:
    """Return a vault command on a store in a bucket."""
    env = {**line.variables(), "VAULTFS_STORE": f"s3://{bucket}/{STORE}", "VAULTFS_CACHE_DIR": cache}
    return Command((VAULT, *arguments), {**env, "VAULTFS_RUN": run} if run else env)


def rclone_command(line: Line, *arguments: str) -> Command:
    """Return an rclone command; its remote is called `s3:`."""
    env = {
        "RCLONE_CONFIG": "/dev/null",
        "AWS_CA_BUNDLE": "",  # which it refuses to work with
        "RCLONE_CONFIG_S3_TYPE": "s3",
        "RCLONE_CONFIG_S3_PROVIDER": "Ceph",
        "RCLONE_CONFIG_S3_ENDPOINT": line.gateway.url,
        "RCLONE_CONFIG_S3_ACCESS_KEY_ID": line.gateway.access_key,
        "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY": line.gateway.secret_key,
    }
    return Command(("rclone", *arguments), env)


def rclone_copy(line: Line, source: str, bucket: str, prefix: str) -> Command:
    """Return what copies a file or folder into a bucket: many at one time, large ones in parts."""
    fast = ("--transfers", _TRANSFERS, "--checkers", _TRANSFERS, "--s3-no-check-bucket", "--s3-no-head", "--no-traverse")
    large = ("--s3-disable-checksum", "--s3-chunk-size", "16M", "--s3-upload-concurrency", "16")
    return rclone_command(line, "copy", *fast, *large, source, f"s3:{bucket}/{prefix}")


@dataclass(frozen=True, slots=True)
class VaultMount:
    """Vault's mount of a store in a bucket. Its cache is in the place: an empty place is a node that has seen nothing."""

    line: Line
    bucket: str
    below: str = ""  # what is listed first
    run: str = ""
    name: str = "vault"
    mounts: bool = True

    def missing(self) -> str | None:
        return None if os.access(VAULT, os.X_OK) else VAULT

    def version(self) -> Sequence[str]:
        return (VAULT, "--version")

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        start = vault_command(self.line, self.bucket, f"{place}/cache", "mount", point, run=self.run)
        root = f"{point}/{DATASET}@latest"
        return Mount(start, f"{root}/{self.below}" if self.below else root, (VAULT, "umount", point))


@dataclass(frozen=True, slots=True)
class RcloneMount:
    """rclone's mount of the plain objects."""

    line: Line
    bucket: str
    name: str = "rclone mount"
    mounts: bool = True

    def missing(self) -> str | None:
        return missing_tools("rclone", "fusermount")

    def version(self) -> Sequence[str]:
        return ("rclone", "version")

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        quick = ("--read-only", "--no-modtime", "--no-checksum", "--use-server-modtime", "--vfs-fast-fingerprint")
        cache = ("--cache-dir", f"{place}/cache", "--dir-cache-time", "1h", "--attr-timeout", "1h")
        start = rclone_command(self.line, "mount", *quick, *cache, f"s3:{self.bucket}/{PLAIN}", point)
        return Mount(start, point, ("fusermount", "-u", point))


@dataclass(frozen=True, slots=True)
class S3fsMount:
    """s3fs's mount of the plain objects."""

    line: Line
    bucket: str
    name: str = "s3fs"
    mounts: bool = True

    def missing(self) -> str | None:
        return missing_tools("s3fs", "fusermount")

    def version(self) -> Sequence[str]:
        return ("s3fs", "--version")

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        options = {
            "url": self.line.gateway.url,
            "use_path_request_style": "",
            "ro": "",
            "max_stat_cache_size": "1000000",
            "multireq_max": "64",
            "parallel_count": "16",
            "enable_noobj_cache": "",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}" if value else name)]
        env = {"AWSACCESSKEYID": self.line.gateway.access_key, "AWSSECRETACCESSKEY": self.line.gateway.secret_key}
        start = Command(("s3fs", f"{self.bucket}:/{PLAIN}", point, "-f", *words), env)
        return Mount(start, point, ("fusermount", "-u", point))

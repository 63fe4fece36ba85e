"""Vault as a candidate: the `vault` command of this environment, with a folder store and a cache of its own."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.candidates import Mount
from bench.execute import Command

DATASET = "bench"
_UNRECORDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "unrecorded.py")
VAULT = os.path.join(os.path.dirname(sys.executable), "vault")


def vault(place: str, *arguments: str) -> Command:
    """Return a vault command on the store of a place."""
    return Command((VAULT, *arguments), {"VAULTFS_STORE": f"{place}/store", "VAULTFS_CACHE_DIR": f"{place}/cache"})


@dataclass(frozen=True, slots=True)
class Vault:
    """Vault with one of its mount engines. The second engine mounts what the first has committed."""

    name: str = "vault"
    engine: str | None = None
    shares_image_of: str | None = None
    records: bool = True
    captures: bool = True
    increments: bool = True
    mounts: bool = True

    @property
    def commits(self) -> bool:
        return self.shares_image_of is None

    def missing(self) -> str | None:
        return None if os.access(VAULT, os.X_OK) else VAULT

    def version(self) -> Sequence[str]:
        return (VAULT, "--version")

    def prepare(self, place: str) -> Sequence[Command]:
        return (vault(place, "init"),)

    def commit(self, place: str, tree: str, number: int) -> Command:
        return vault(place, "commit", tree, DATASET, "-m", f"version {number}")

    def mount(self, place: str, tree: str, number: int, point: str) -> Mount:
        if self.records:
            engine = ("--engine", self.engine) if self.engine else ()
            capture = () if self.captures else ("--no-capture",)
            start = vault(place, "mount", *engine, *capture, point)
        else:
            start = Command((sys.executable, _UNRECORDED, f"{place}/store", f"{place}/cache", point))
        return Mount(start, f"{point}/{DATASET}@latest", (VAULT, "umount", point))

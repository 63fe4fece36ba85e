"""The small files below `.vault/`: what a mount is and how it fares, for people and programs without our command."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from vault_fuse.namespace import Namespace
from vault_fuse.statistics import ERRORS, Statistics

NAMES = ("cache", "engine", "health", "pid", "snapshots", "statistics", "store", "version")
CacheFigures = Callable[[], Mapping[str, int | str]]


@dataclass(frozen=True, slots=True)
class MountFacts:
    """What does not change while a mount lives."""

    store: str
    engine: str
    pid: int


def render(
    name: str, facts: MountFacts, namespace: Namespace, statistics: Statistics, cache: Mapping[str, int | str] | None = None
) -> bytes:
    """Return the content of a status file.

    Args:
        name: which one. KeyError is raised for a name that is none.
        facts: what does not change.
        namespace: what is shown.
        statistics: of all processes of the mount.
        cache: how the node's cache fares; None for a store that needs none.
    """
    if name == "snapshots":
        shown = {path: found.snapshot.hex() for path, found in sorted(namespace.versions().items())}
        return json.dumps(shown, indent=1).encode() + b"\n"
    if name == "cache":
        if not cache:
            return b"{}\n"
        return _json_of_one_length(cache).encode()
    if name == "statistics":
        remote = statistics.remote_as_dict() if cache is not None else {}
        return _json_of_one_length({**statistics.as_dict(), **remote}).encode()
    texts = {
        "engine": facts.engine,
        "health": "ok" if not statistics.total(ERRORS) else f"{statistics.total(ERRORS)} failed requests, see the log",
        "pid": str(facts.pid),
        "store": facts.store,
        "version": version("vaultfs"),
    }
    return os.fsencode(texts[name]) + b"\n"  # the store's path need not be UTF-8


def _json_of_one_length(values: Mapping[str, int | str]) -> str:
    """Return JSON of a length that does not change: who reads it in several pieces must not get parts that do not fit."""
    lines = (f" {json.dumps(name):<24}: {json.dumps(value):>20}" for name, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"

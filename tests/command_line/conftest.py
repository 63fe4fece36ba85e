"""What the tests of commands share: a small store with two versions, and the reference of their JSON to check against."""

import json
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from vault.testing.mounts import Site
from vault.testing.trees import Link, Tree, write_tree

ROOT = Path(__file__).parents[2]
HOSTILE = b"esc\x1b[31mred\nnext line"
NOT_UTF8 = b"n\xff\xfename"
FIRST: Tree = {
    b"labels.csv": b"a,b\n",
    b"link": Link(b"labels.csv"),
    HOSTILE: b"x",
    NOT_UTF8: b"y",
    b"train": {b"n01": {b"%d.JPEG" % number: bytes([number]) * 5000 for number in range(5)}, b"n02": {b"same": b"x" * 900}},
    b"old": {b"gone.txt": b"gone\n"},
}


@pytest.fixture
def site(tmp_path) -> Site:
    """An empty store of the test's own."""
    return Site.make(str(tmp_path))


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Site:
    """A store with two versions of `imagenet` and one of `vision/coco`. Tests read it and change nothing."""
    folder = tmp_path_factory.mktemp("library")
    site = Site.make(str(folder))
    write_tree(os.fsencode(folder / "source"), FIRST)
    site.vault("commit", str(folder / "source"), "imagenet", "-m", "as downloaded\nfrom the\x1b[31m net", "--author", "ana")
    (folder / "source/labels.csv").write_text("a,b\nc,d\n")
    (folder / "source/old/gone.txt").unlink()
    (folder / "source/old").rmdir()
    (folder / "source/new file").write_text("new\n")
    site.vault("commit", str(folder / "source"), "imagenet", "-m", "non-JPEGs removed", "--author", "ana")
    site.vault("label", "imagenet@v1", "golden")
    site.vault("commit", str(folder / "source/train"), "vision/coco", "--author", "ben")
    return site


class Reference:
    """docs/reference/json.md: which fields objects have."""

    def __init__(self, page: str) -> None:
        self.objects: dict[tuple[str, str], dict[str, tuple[str, bool]]] = {}
        self.seen: set[tuple[str, str, str]] = set()
        for section in re.split(r"^## ", page, flags=re.M)[1:]:
            title, _, body = section.partition("\n")
            command = title.removeprefix("vault ")
            if command == "error":
                rows = re.findall(r"^\| `(\w+)`(\??) \| ([^|]+?) \|", body, re.M)
                self.objects["error", "error"] = {field: (kind, bool(optional)) for field, optional, kind in rows}
                continue
            for name, table in re.findall(r"^(?:Each of )?`(\w+)`[^\n]*\n+(?:[^|\n][^\n]*\n+)*((?:\|.*\n)+)", body, re.M):
                rows = re.findall(r"^\| `(\w+)`(\??) \| ([^|]+?) \|", table, re.M)
                assert (command, name) not in self.objects
                self.objects[command, name] = {field: (kind, bool(optional)) for field, optional, kind in rows}

    def check(self, command: str, lines: str) -> list[dict[str, Any]]:
        """Return the objects of an answer, after checking that it is what the reference says."""
        assert lines.isascii() and lines.endswith("\n")
        records = [json.loads(line) for line in lines.splitlines()]
        for number, record in enumerate(records):
            kind = record["type"]
            is_last = number == len(records) - 1
            assert is_last == (kind in ("summary", "error")), "the last is a summary or an error, and only the last"
            self._check_object(command, kind, {name: value for name, value in record.items() if name != "type"})
        return records

    def never_seen(self, command: str) -> set[tuple[str, str]]:
        """Return the documented fields of a command that no answer has shown so far, by object."""
        known = {(kind, field) for (name, kind), fields in self.objects.items() if name == command for field in fields}
        return known - {(kind, field) for name, kind, field in self.seen if name == command}

    def _check_object(self, command: str, kind: str, record: dict[str, Any]) -> None:
        if kind == "error":
            fields = self.objects["error", "error"]
            record = {name: value for name, value in record.items() if name in fields}  # an error's own fields follow
        else:
            fields = self.objects[command, kind]
        where = f"{command} --json, {kind}"
        assert record.keys() <= fields.keys(), f"{where}: fields that are not documented"
        assert {name for name, (_, optional) in fields.items() if not optional} <= record.keys(), (
            f"{where}: fields are missing"
        )
        for name, value in record.items():
            self.seen.add((command, kind, name))
            assert _is(value, fields[name][0]), f"{where}: {name} is no {fields[name][0]}: {value!r}"
            for below in value if name == "inputs" else ():
                self._check_object("runs", "inputs", below)
            if (name, command) == ("entry", "show"):
                self._check_object("ls", "entry", value)
            if name == "record" and command in ("audit", "runs show"):
                self._check_object("runs", "run", value)
            for below in value if name == "history" else ():
                self._check_object("runs", "history", below)
            for below in value if (name, command) == ("differences", "runs show") else ():
                self._check_object("compare", "difference", below)


def _is(value: Any, kind: str) -> bool:
    if kind.endswith(" or null"):
        return value is None or _is(value, kind.removesuffix(" or null"))
    if kind.startswith("["):
        return isinstance(value, list) and all(_is(item, kind[1:-1]) for item in value)
    checks = {
        "string": lambda: isinstance(value, str),
        "integer": lambda: type(value) is int,
        "number": lambda: type(value) in (int, float),
        "boolean": lambda: type(value) is bool,
        "object": lambda: isinstance(value, dict),
        "digest": lambda: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
        "time": lambda: isinstance(value, str) and value.endswith("Z") and bool(datetime.fromisoformat(value)),
        "ref": lambda: isinstance(value, str) and re.fullmatch(r"(?s)[a-z0-9._/-]+@v\d+(/.+)?", value) is not None,
    }
    return bool(checks[kind]())


@pytest.fixture(scope="session")
def reference() -> Iterator[Reference]:
    """The reference; it notes which fields were seen."""
    return Reference((ROOT / "docs/reference/json.md").read_text())

"""The cache's LMDB files: shared in a process, opened anew in a fork, rebuilt when damaged, foreign or not synced."""

import os
from pathlib import Path

import pytest

from vault.repo.lmdb_file import LmdbFile

DB = b"things"


def put(file: LmdbFile, key: bytes, value: bytes) -> None:
    with file.write() as transaction:
        transaction.put(key, value, db=file.db(DB))


def get(file: LmdbFile, key: bytes) -> bytes | None:
    with file.read() as transaction:
        value: bytes | None = transaction.get(key, db=file.db(DB))
        return value


def test_two_instances_share_one_environment(tmp_path: Path) -> None:
    one = LmdbFile(str(tmp_path / "x"), version=1, databases=[DB])
    two = LmdbFile(str(tmp_path / "x"), version=1, databases=[DB])
    put(one, b"k", b"v")
    assert get(two, b"k") == b"v"
    one.close()
    assert get(two, b"k") == b"v"
    two.close()


def test_a_fork_opens_its_own(tmp_path: Path) -> None:
    parent = LmdbFile(str(tmp_path / "x"), version=1, databases=[DB])
    put(parent, b"k", b"v")
    child = os.fork()
    if not child:
        own = LmdbFile(str(tmp_path / "x"), version=1, databases=[DB])
        put(own, b"from", b"child")
        os._exit(0 if get(own, b"k") == b"v" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert get(parent, b"from") == b"child"
    parent.close()


@pytest.mark.parametrize("defect", ["version", "garbage", "other boot"])
def test_what_cannot_be_trusted_is_rebuilt(tmp_path: Path, defect: str) -> None:
    path = tmp_path / "x"
    file = LmdbFile(str(path), version=1, databases=[DB])
    put(file, b"k", b"v")
    file.close()
    if defect == "garbage":
        (path / "data.mdb").write_bytes(b"\xff" * 8192)
    elif defect == "other boot":
        (path / "state").write_text("1 another-boot")
    again = LmdbFile(str(path), version=2 if defect == "version" else 1, databases=[DB])
    assert get(again, b"k") is None
    put(again, b"k", b"w")
    assert get(again, b"k") == b"w"
    again.close()


def test_a_synced_file_outlives_the_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = LmdbFile(str(tmp_path / "x"), version=1, databases=[DB])
    put(file, b"k", b"v")
    file.sync()
    file.close()
    monkeypatch.setattr("vault.repo.lmdb_file._boot_id", lambda: "next-boot")
    again = LmdbFile(str(tmp_path / "x"), version=1, databases=[DB])
    assert get(again, b"k") == b"v"
    again.close()

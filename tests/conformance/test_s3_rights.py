"""docs/how-to/least-privilege.md, applied to users of a real service: each may do what the page says, and no more."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from vault.errors import KeyNotFound, StorePermission
from vault.ids import RunId
from vault.repo.runs import Runs
from vault.stores.s3 import parts
from vault.stores.s3.client import Access
from vault.stores.s3.store import S3Store
from vault.testing.gateway import Gateway
from vault.testing.mounts import Site, mounted, wait_for, why_not_mountable

PAGE = Path(__file__).parents[2] / "docs/how-to/least-privilege.md"
PREFIX = "team/vault"
REAL_PREFIX = "team/real"  # what commands use
ROLES = {
    "nobody": (),
    "lister": (),
    "reader": ("Read",),
    "recorder": ("Read", "Record"),
    "node": ("Read", "Record", "Capture"),
    "writer": ("Read", "Write"),
    "remover": ("Read", "Write", "Remove"),
}


def statements(titles: tuple[str, ...], bucket: str) -> dict[str, list[Any]]:
    """Return policies of the page, for both stores of a bucket."""
    found = (policy(title, bucket, prefix) for title in titles for prefix in (PREFIX, REAL_PREFIX))
    return {"Statement": [part for one in found for part in one["Statement"]]}


def policy(title: str, bucket: str, prefix: str = PREFIX) -> dict[str, Any]:
    section = PAGE.read_text().partition(f"\n## {title}\n")[2]
    block = re.search(r"```json\n(.*?)```", section, re.S)
    assert block is not None
    found: dict[str, Any] = json.loads(block[1].replace("BUCKET", bucket).replace("PREFIX", prefix))
    return found


@pytest.fixture(scope="module")
def rights(gateway: Gateway) -> Iterator[tuple[str, dict[str, Gateway]]]:
    """A bucket, and a user for each role."""
    with ExitStack() as stack:
        bucket = stack.enter_context(gateway.bucket())
        users = {role: stack.enter_context(gateway.new_user()) for role in ROLES}
        gateway.allow(bucket, {users[role].user: statements(titles, bucket) for role, titles in ROLES.items() if titles})
        yield bucket, users


def store_of(rights: tuple[str, dict[str, Gateway]], role: str, prefix: str = PREFIX) -> S3Store:
    bucket, users = rights
    user = users[role]
    return S3Store(f"s3://{bucket}/{prefix}", access=Access(user.url, user.access_key, user.secret_key, "us-east-1"))


@pytest.fixture(scope="module")
def filled(gateway: Gateway, rights: tuple[str, dict[str, Gateway]]) -> tuple[str, dict[str, Gateway]]:
    bucket, _ = rights
    for prefix in (PREFIX, "other/vault"):
        owner = S3Store(f"s3://{bucket}/{prefix}", access=Access(gateway.url, gateway.access_key, gateway.secret_key))
        owner.put("packs/aa/x", b"0123456789")
    return rights


@pytest.mark.parametrize("role", ["reader", "recorder", "writer", "remover"])
def test_who_may_read_reads_this_store_and_no_other(filled, role: str) -> None:
    store = store_of(filled, role)
    assert store.get("packs/aa/x", offset=2, length=3) == b"234"
    assert store.size("packs/aa/x") == 10
    assert "packs/aa/x" in list(store.list("packs/"))
    for ask in (store.get, store.size):
        with pytest.raises(KeyNotFound):
            ask("none")
    other = store_of(filled, role, "other/vault")
    for ask in (other.get, other.size, lambda key: list(other.list(""))):
        with pytest.raises(StorePermission):
            ask("packs/aa/x")


def test_who_may_do_nothing_is_told_what_is_needed(filled) -> None:
    store = store_of(filled, "nobody")
    bucket, _ = filled
    with pytest.raises(StorePermission, match=f"s3:GetObject on arn:aws:s3:::{bucket}/team/vault/packs/aa/x"):
        store.get("packs/aa/x")
    with pytest.raises(StorePermission, match=r"s3:GetObject on .*; and for s3:ListBucket"):
        store.size("none")
    with pytest.raises(StorePermission, match=f"ask its owner for s3:ListBucket on arn:aws:s3:::{bucket}"):
        list(store.list(""))
    with pytest.raises(StorePermission, match="ask its owner for s3:PutObject on"):
        store.put("a", b"")


def test_who_may_only_list_is_told_apart_what_is_missing_and_what_is_forbidden(filled, gateway: Gateway) -> None:
    # As AWS answers a reader whose right to list is bound to the prefix: 403 for whatever is not there.
    bucket, users = filled
    listing = {"Statement": policy("Read", bucket)["Statement"][1:]}
    before = {users[role].user: statements(titles, bucket) for role, titles in ROLES.items() if titles}
    gateway.allow(bucket, {**before, users["lister"].user: listing})
    store = store_of(filled, "lister")
    assert list(store.list("packs/")) == ["packs/aa/x"]
    with pytest.raises(StorePermission, match=r"s3:GetObject on [^;]*$"):
        store.get("packs/aa/x")
    for ask in (store.get, store.size):
        with pytest.raises(KeyNotFound):
            ask("packs/aa/none")


@pytest.mark.parametrize("role", ["reader", "recorder", "writer"])
def test_what_a_role_may_write(filled, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_SIZE", 5 << 20)
    monkeypatch.setattr("vault.stores.s3.store.UPLOAD_WHOLE_MAX", 5 << 20)
    store = store_of(filled, role)
    allowed = {"reader": (), "recorder": ("runs/",), "writer": ("runs/", "packs/", "datasets/")}[role]
    for prefix in ("runs/", "packs/", "datasets/"):
        key = f"{prefix}{role}"
        if prefix in allowed:
            store.put(key, b"data")
            assert store.get(key) == b"data"
        else:
            with pytest.raises(StorePermission, match=f"s3:PutObject on .*/{key}"):
                store.put(key, b"data")
    if role == "writer":
        store.upload("whole/x", 6 << 20, lambda _, length: bytes(length))
        assert store.size("whole/x") == 6 << 20
        assert store.count_unfinished(-60.0) == 0
    with pytest.raises(StorePermission, match="s3:DeleteObject"):
        store.delete("packs/aa/x")


def test_who_may_remove_removes(filled) -> None:
    store = store_of(filled, "remover")
    store.put("packs/bb/y", b"")
    store.delete("packs/bb/y")
    with pytest.raises(KeyNotFound):
        store.size("packs/bb/y")


@pytest.mark.fuse
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(bool(why_not_mountable("direct")), reason=why_not_mountable("direct") or "-")
def test_commands_and_mounts_of_each_role(gateway: Gateway, rights: tuple[str, dict[str, Gateway]], tmp_path: Path) -> None:
    bucket, users = rights
    store = f"s3://{bucket}/{REAL_PREFIX}"

    def site(role: str) -> Site:
        return Site(store, str(tmp_path / role), variables=users[role].variables())

    user = users["writer"]
    journals = Runs(S3Store(store, access=Access(user.url, user.access_key, user.secret_key, "us-east-1")))

    def runs() -> set[str]:
        return {run for run, _ in journals.journals()}

    def is_captured(run: str) -> bool:
        return any(attempt.capture is not None for attempt in journals.load(RunId(run))[0].history)

    writer, reader, recorder = site("writer"), site("reader"), site("recorder")
    writer.vault("init")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("content\n")
    writer.commit(str(tmp_path / "source"), "digits")
    assert reader.vault("cat", "digits@v1/file").stdout == "content\n"
    assert f"s3:PutObject on arn:aws:s3:::{bucket}/" in reader.vault("label", "digits@v1", "best", status=4).stderr
    assert f"s3:PutObject on arn:aws:s3:::{bucket}/" in recorder.vault("label", "digits@v1", "best", status=4).stderr
    assert "note     writing" in reader.vault("doctor", status=None).stdout
    for role in ("reader", "recorder", "node"):
        one = site(role)
        with mounted(one, str(tmp_path / "mnt"), engine="direct") as mount:
            script = "import sys; print(open(sys.argv[1]).read(), flush=True); sys.stdin.read()"
            with subprocess.Popen(
                [sys.executable, "-c", script, f"{mount.path}/digits@v1/file"],
                env=one.with_variables(VAULTFS_RUN=f"by-{role}").environment(),
                cwd=tmp_path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as reading:
                assert reading.stdout is not None
                assert reading.stdout.readline() == b"content\n"
                if role == "recorder":
                    wait_for("the record", lambda: "by-recorder" in runs())
                if role == "node":
                    wait_for("what was captured", lambda: "by-node" in runs() and is_captured("by-node"), timeout_s=60)
    assert runs() == {"by-recorder", "by-node"}
    assert not is_captured("by-recorder")

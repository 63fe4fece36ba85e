"""From the name of a store to the store."""

import subprocess
import sys
from pathlib import Path

import pytest

from vault.errors import UsageError
from vault.stores.local import LocalStore
from vault.stores.registry import SCHEMES, Scheme, open_store


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/data/store", "/data/store"),
        ("/data//x/../store/", "/data/store"),
        ("file:///data/store", "/data/store"),
        ("FILE:///data/store", "/data/store"),
        ("file://localhost/data/my%20store", "/data/my store"),
        ("/data/a:b", "/data/a:b"),
    ],
)
def test_a_folder(url: str, path: str) -> None:
    store = open_store(url)
    assert isinstance(store, LocalStore)
    assert store.url == path


def test_paths_may_be_relative_or_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert open_store("store").url == f"{tmp_path}/store"
    assert open_store("~/store").url == "/home/ada/store"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "VAULTFS_STORE"),
        ("gopher://bucket/prefix", r"no gopher:// stores.*file://"),
        ("https://vault.example.org", r"no https:// stores"),
        ("gopher://x", r"no gopher:// stores"),
        ("file://elsewhere/data", "no folder of this machine"),
        ("file:///data?x=1", "no folder of this machine"),
    ],
)
def test_what_names_no_store(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_store(url)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, "ftp", Scheme("no_such_package.store:Store", "pip install 'vaultfs[ftp]'"))
    with pytest.raises(UsageError, match=r"no_such_package, which is not installed: pip install 'vaultfs\[ftp\]'"):
        open_store("ftp://host/")


def test_opening_a_folder_costs_no_network_library() -> None:
    code = "import sys; from vault.stores.registry import open_store; open_store('/x'); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"ctypes", "socket", "ssl", "http", "asyncio", "multiprocessing", "boto3"} & set(modules)

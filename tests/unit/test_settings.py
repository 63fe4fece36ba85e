"""Where settings come from, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vault.errors import UsageError
from vault.settings import CONFIG_SIZE_MAX, Settings, absolute, config_path, load_settings, size_in_bytes, wants_color


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where `config.toml` is looked for; it is not there yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "config" / "vaultfs" / "config.toml"
    path.parent.mkdir(parents=True)
    assert config_path() == str(path)
    return path


def test_defaults(config, tmp_path):
    assert load_settings({}) == Settings("", f"{tmp_path}/cache/vaultfs", "")


def test_the_environment_beats_the_file_beats_defaults(config):
    config.write_text('store = "/from/file"\ncache_dir = "/cache/from/file"\nengine = "fusepy"\n')
    assert load_settings({}) == Settings("/from/file", "/cache/from/file", "fusepy")
    given = {"VAULTFS_STORE": "/from/env", "VAULTFS_CACHE_DIR": "/cache/from/env"}
    assert load_settings(given) == Settings("/from/env", "/cache/from/env", "fusepy")
    assert load_settings({"VAULTFS_STORE": ""}).store == "/from/file", "empty is as if it were not set"


def test_the_environment_of_the_process_is_the_default(config, monkeypatch):
    monkeypatch.setenv("VAULTFS_STORE", "/mine")
    assert load_settings().store == "/mine"


def test_the_file_is_not_read_if_all_is_chosen(config):
    config.write_text("this is no TOML")
    given = {"VAULTFS_STORE": "/s", "VAULTFS_CACHE_DIR": "/c", "VAULTFS_ENGINE": "direct"}
    given |= {"VAULTFS_NODE_CACHE": "~/n", "VAULTFS_NODE_CACHE_SIZE": "2TB"}
    assert load_settings(given) == Settings("/s", "/c", "direct", os.path.expanduser("~/n"), "2TB")


def test_the_other_programs_variables_are_never_read(config):
    assert load_settings({"VAULT_STORE": "/x", "VAULT_ADDR": "https://x", "VAULT_CACHE_DIR": "/y"}).store == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stoer = '/x'", "there is no setting 'stoer'; known are store, cache_dir, engine"),
        ("store = 7", "store must be a text in quotes"),
        ("store = /x", "config.toml: "),
        ("store = 'relative/path'", "store must be a path that starts with '/' or '~'; it is 'relative/path'"),
        ("cache_dir = './cache'", "cache_dir must be a path"),
        ("[store]\npath = '/x'", "store must be a text in quotes"),
        ("store = '/x'\nstore = '/y'", "config.toml: "),
        ("# " + "x" * CONFIG_SIZE_MAX, "is larger than"),
    ],
)  # fmt: skip
def test_what_the_file_may_not_hold(config, text, says):
    config.write_text(text)
    with pytest.raises(UsageError, match=r"config\.toml") as caught:
        load_settings({})
    assert says in str(caught.value)


@pytest.mark.parametrize("store", ["/data/store", "~/store", "file:///data", "s3://bucket/prefix", ""])
def test_paths_and_urls_that_it_may_hold(config, store):
    config.write_text(f'store = "{store}"')
    assert load_settings({}).store == store


def test_bytes_that_are_no_text(config):
    config.write_bytes(b"store = '/x\xff'")
    with pytest.raises(UsageError, match=r"config\.toml"):
        load_settings({})


def test_a_file_that_cannot_be_read(config):
    config.mkdir()
    with pytest.raises(UsageError, match=r"cannot read .*config\.toml: Is a directory"):
        load_settings({})


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else takes root")
def test_a_home_that_is_not_ours_has_no_file(config):
    """As after `sudo -u`, with the variables of the caller."""
    config.write_text('store = "/x"')
    config.parent.chmod(0o700)
    code = "import os, sys; from vault.settings import load_settings; load_settings({}); os.setuid(65534)\n"
    code += "print(repr(load_settings({}).store))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "''\n"


def test_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ana")
    monkeypatch.chdir(tmp_path)
    assert [absolute(path) for path in ("~/x", "x", "/a//b/../c")] == ["/home/ana/x", f"{tmp_path}/x", "/a/c"]


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "xterm"}, True),
    ],
)
def test_colours(environment, wanted):
    assert wants_color(environment) == wanted


def test_a_size_is_a_number_of_bytes_or_a_part_of_the_disk(tmp_path):
    assert size_in_bytes("2TB", "/") == 2 * 10**12
    assert size_in_bytes("500 GiB", "/") == 500 << 30
    assert size_in_bytes("1.5kB", "/") == 1500
    assert size_in_bytes("0B", "/") == 0
    disk = os.statvfs(tmp_path)
    assert size_in_bytes("10%", str(tmp_path / "not" / "yet")) == disk.f_frsize * disk.f_blocks // 10


@pytest.mark.parametrize("text", ["", "2", "TB", "-1GB", "2XB", "101%", "1e3GB", "1" * 20 + "B"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError):
        size_in_bytes(text, "/")

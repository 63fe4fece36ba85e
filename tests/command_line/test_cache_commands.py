"""`vault warm` and `vault cache` as they are typed, on a store in a bucket."""

import json
import os
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vault.testing.gateway import Gateway
from vault.testing.mounts import Site
from vault.testing.proxy import Proxy

WAIT_S = 60.0
MIB = 1 << 20


@pytest.fixture(scope="module")
def url(gateway: Gateway, shared_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store in a bucket with one version; tests have a cache of their own."""
    folder = tmp_path_factory.mktemp("source")
    chance = random.Random(3)
    for name, files in (("train", 8), ("val", 2)):
        (folder / "data" / name).mkdir(parents=True)
        for number in range(files):
            (folder / "data" / name / f"{number}.bin").write_bytes(chance.randbytes(200_000))
    (folder / "data" / "weights.bin").write_bytes(chance.randbytes(6 * MIB))
    url = f"s3://{shared_bucket}/{secrets.token_hex(6)}/store"
    writer = Site(url, str(folder / "cache"), variables=gateway.variables())
    writer.vault("init")
    writer.vault("commit", str(folder / "data"), "digits", "-m", "all")
    return url


@pytest.fixture
def site(gateway: Gateway, url: str, tmp_path: Path) -> Iterator[Site]:
    yield Site(url, str(tmp_path / "cache"), variables=gateway.variables())


def lines(site: Site, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in site.vault(*arguments, "--json").stdout.splitlines()]


def last(site: Site, *arguments: str) -> dict[str, Any]:
    return lines(site, *arguments)[-1]


def test_what_is_warm_is_not_fetched_again_and_can_be_read(site: Site, tmp_path: Path) -> None:
    first = last(site, "warm", "digits@v1", "--wait")
    assert first["files"] == 11
    assert first["fetched_bytes"] > 8_000_000
    again = last(site, "warm", "digits@v1", "--wait")
    assert again["fetched_bytes"] == 0
    assert again["here_bytes"] >= first["fetched_bytes"]
    before = last(site, "cache", "status")
    site.vault("checkout", "digits@v1", str(tmp_path / "out"))
    assert (tmp_path / "out/val/1.bin").stat().st_size == 200_000
    assert last(site, "cache", "status")["requests"] == before["requests"]


def test_a_part_is_named_by_a_pattern_or_a_path(site: Site) -> None:
    some = last(site, "warm", "digits@v1", "--only", "val/**", "--wait")
    assert some["files"] == 2
    assert some["fetched_bytes"] < 2_000_000
    assert last(site, "warm", "digits@v1/val", "--wait")["fetched_bytes"] == 0
    assert last(site, "warm", "digits@v1/weights.bin", "--wait")["fetched_bytes"] >= 6 * MIB
    assert "matches" in site.vault("warm", "digits@v1", "--only", "nothing*", "--wait", status=2).stderr


def test_without_wait_it_goes_on_in_the_background(site: Site) -> None:
    begun = last(site, "warm", "digits@v1")
    until_s = time.monotonic() + WAIT_S
    while not Path(begun["log"]).read_text().startswith("digits@v1 is here"):
        assert time.monotonic() < until_s, Path(begun["log"]).read_text()
        time.sleep(0.1)
    assert last(site, "warm", "digits@v1", "--wait")["fetched_bytes"] == 0


def test_a_warm_up_that_is_interrupted_says_how_far_it_was_and_goes_on_there(site: Site, gateway: Gateway) -> None:
    with Proxy(gateway.url, bandwidth_bytes_s=200_000) as proxy:
        slow = replace(site, variables={**site.variables, "AWS_ENDPOINT_URL": proxy.url})
        running = subprocess.Popen(
            slow.command("warm", "digits@v1", "--wait", "--cache-size", "1GB"),
            env=slow.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            until_s = time.monotonic() + WAIT_S
            while not (under_way := [line for line in lines(site, "cache", "status") if line["type"] == "warming"]):
                assert running.poll() is None and time.monotonic() < until_s
            assert (under_way[0]["ref"], under_way[0]["process"]) == ("digits@v1", running.pid)
            assert 8_000_000 < under_way[0]["total_bytes"] < 9_000_000
            running.send_signal(signal.SIGINT)
            proxy.bandwidth_bytes_s = None  # what is on its way comes to its end
            _, said = running.communicate(timeout=WAIT_S)
        finally:
            running.kill()
            running.wait()
    assert running.returncode == 130
    assert "Traceback" not in said
    assert not [line for line in lines(site, "cache", "status") if line["type"] == "warming"]
    done = last(site, "warm", "digits@v1", "--wait")
    assert done["here_bytes"] + done["fetched_bytes"] > 8_000_000


def test_status_says_where_and_how_much(site: Site, tmp_path: Path) -> None:
    last(site, "warm", "digits@v1", "--wait", "--cache", str(tmp_path / "nvme"), "--cache-size", "1GB")
    text = site.vault("cache", "status", "--cache", str(tmp_path / "nvme")).stdout
    assert text.startswith(f"{tmp_path}/nvme/")
    assert " of 1.0 GB" in text
    assert "whole: 2 files" in text
    assert last(site, "cache", "status")["used_bytes"] < 100_000  # another cache


def test_a_version_that_does_not_fit_is_refused_before_anything_is_fetched(site: Site) -> None:
    refused = site.vault("warm", "digits@v1", "--wait", "--cache-size", "5MB", status=2)
    assert "--cache-size" in refused.stderr
    assert "--only" in refused.stderr


def test_a_pinned_version_stays_until_it_is_unpinned(site: Site) -> None:
    last(site, "warm", "digits@v1", "--wait")
    assert last(site, "cache", "pin", "digits@v1")["stored_files"] >= 3
    assert "pinned: digits@v1" in site.vault("cache", "status").stdout
    last(site, "cache", "prune", "--to", "0B")
    assert last(site, "warm", "digits@v1", "--wait")["fetched_bytes"] == 0
    assert last(site, "cache", "unpin", "digits@v1")["was_pinned"] is True
    assert last(site, "cache", "unpin", "digits@v1")["was_pinned"] is False
    assert last(site, "cache", "prune", "--to", "0B")["freed_bytes"] > 8_000_000
    assert last(site, "warm", "digits@v1", "--wait")["fetched_bytes"] > 8_000_000
    last(site, "cache", "pin", "digits@v1")
    assert last(site, "cache", "prune", "--all")["used_bytes"] < 100_000
    assert "pinned: " not in site.vault("cache", "status").stdout


def test_prune_wants_to_know_how_much(site: Site) -> None:
    site.vault("cache", "prune", status=2)
    site.vault("cache", "prune", "--all", "--to", "1GB", status=2)


def test_a_check_finds_what_is_damaged_and_forgets_it(site: Site, tmp_path: Path) -> None:
    last(site, "warm", "digits@v1", "--wait")
    assert last(site, "cache", "check")["damaged"] == 0
    for path in (tmp_path / "cache").rglob("*.pack"):
        with open(path, "r+b") as file:
            file.seek(300_000)
            file.write(b"damaged")
    assert last(site, "cache", "check")["damaged"] == 1
    assert last(site, "cache", "check")["damaged"] == 0
    assert 0 < last(site, "warm", "digits@v1", "--wait")["fetched_bytes"] <= 256 << 10


def test_a_store_of_this_machine_has_no_cache(tmp_path: Path) -> None:
    near = Site.make(str(tmp_path))
    (tmp_path / "file").write_bytes(b"x")
    near.vault("commit", str(tmp_path / "file"), "d", "-m", "x")
    assert "where it lies" in near.vault("cache", "status", status=2).stderr
    assert "where it lies" in near.vault("warm", "d@v1", "--wait", status=2).stderr
    assert not [name for name in os.listdir(tmp_path) if "blocks" in name]


def test_prefetch_without_a_mount_fills_the_cache_and_says_so(site: Site, reference: Any, tmp_path: Path) -> None:
    listed = tmp_path / "upcoming"
    listed.write_text("digits@v1/train/3.bin\n/vault/digits@latest/val/0.bin\ndigits@v1/none\n\n")
    plan, summary = reference.check("prefetch", site.vault("prefetch", "--list", str(listed), "--json").stdout)
    assert (plan["files"], plan["files_fetched"], plan["handed_over"], plan["complete"]) == (2, 2, False, True)
    assert (summary["files"], summary["missing"]) == (2, 1)
    cut = reference.check("prefetch", site.vault("prefetch", "--list", str(listed), "--ahead", "1kB", "--json").stdout)[0]
    assert (cut["files_fetched"], cut["complete"]) == (1, False)
    typed = subprocess.run(
        site.command("prefetch", "-", "--json"), input=listed.read_bytes(), env=site.environment(), capture_output=True,
        timeout=WAIT_S, check=True,
    )  # fmt: skip
    [summary] = reference.check("prefetch", typed.stdout.decode())
    assert (summary["files"], summary["missing"], summary["handed_over"]) == (2, 1, False)
    assert "2 files" in site.vault("prefetch", "--list", str(listed)).stdout
    assert not reference.never_seen("prefetch")
    for wrong in (("--list", str(tmp_path / "gone")), ("--list", str(listed), "--ahead", "much")):
        assert site.vault("prefetch", *wrong, status=2).stderr
    assert "there is no run" in site.vault("prefetch", "--plan", "run:none", status=3).stderr

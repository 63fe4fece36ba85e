"""A team with a bucket, as one types it: commit from here, from a bucket, on a cluster; warm, read, prefetch, copy."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vault.testing.gateway import Gateway
from vault.testing.mounts import is_mounted, wait_for, why_not_mountable
from vault.testing.transcripts import Prompt

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

BIN = os.path.dirname(sys.executable)
TRAIN = """
import os, sys
images = sorted(os.path.join(folder, name) for folder, _, names in os.walk(sys.argv[1]) for name in names)
print("trained on", sum(len(open(image, "rb").read()) for image in images), "bytes")
"""


@pytest.fixture
def buckets(gateway: Gateway) -> Iterator[tuple[str, str, str]]:
    """The team's bucket, one with raw images, and one for the public."""
    with gateway.bucket() as team, gateway.bucket() as raw, gateway.bucket() as public:
        client = gateway.client()
        for number in range(6):
            client.put_object(Bucket=raw, Key=f"imagenet/train/{number % 2}/{number}.JPEG", Body=bytes([number]) * 1000)
        client.close()
        yield team, raw, public


@contextmanager
def cluster(folder: Path, variables: dict[str, str]) -> Iterator[str]:
    """Start a Dask scheduler and a worker, each in a process. Gives the scheduler's address."""
    pytest.importorskip("distributed")
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    worker = ["worker", "--scheduler-file", str(file), "--no-nanny", "--no-dashboard", "--local-directory", str(folder)]
    processes = []
    try:
        with (folder / "dask.log").open("wb") as log:
            for arguments in scheduler, worker:
                processes.append(subprocess.Popen([*dask, *arguments], env=variables, stdout=log, stderr=log, cwd=folder))
        wait_for("the scheduler", lambda: file.exists() and file.stat().st_size, timeout_s=60)
        yield json.loads(file.read_text())["address"]
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait(30)


def test_what_a_team_does_with_a_bucket(gateway, buckets, tmp_path):
    if missing := why_not_mountable("direct"):
        pytest.skip(missing)
    team, raw, public = buckets
    for number in range(6):
        folder = tmp_path / f"imagenet/train/{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.JPEG").write_bytes(bytes([number]) * 1000)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "vault").mkdir()
    variables = gateway.variables(
        HOME=str(tmp_path),
        PATH=f"{BIN}:{os.environ['PATH']}",
        VAULTFS_STORE=f"s3://{team}/team-vault",
        VAULTFS_CACHE_DIR=str(tmp_path / "cache"),
    )
    with cluster(tmp_path, variables) as scheduler, Prompt(str(tmp_path), variables) as prompt:

        def type_and_see(command: str, pattern: str) -> "re.Match[str]":
            done = prompt.type(command)
            assert done.status == 0, f"{command}: {done.output}"
            found = re.search(pattern, done.output)
            assert found, f"{command}: {done.output}"
            return found

        try:
            # Three ways to the same snapshot.
            type_and_see(f"vault init s3://{team}/team-vault", rf"made an empty store in s3://{team}/team-vault")
            one = type_and_see("vault commit imagenet imagenet -m here", r"imagenet@v1  (b3:[0-9a-f]{12})  6 files")
            other = type_and_see(f"vault commit s3://{raw}/imagenet raw -m there", r"raw@v1  (b3:[0-9a-f]{12})  6 files")
            (tmp_path / "imagenet/labels.csv").write_text("0,tench\n")
            command = f"vault commit imagenet imagenet -m 'on a cluster' --cluster {scheduler}"
            type_and_see(command, r"imagenet@v2  b3:[0-9a-f]{12}  7 files")
            assert one[1] == other[1]
            type_and_see("vault diff imagenet@v1 imagenet@v2", r"\+ labels\.csv")
            type_and_see("vault diff --exit-code imagenet@v1 raw@v1 && echo equal", "equal")

            # A node with a cache of its own: fetched before it is read, kept, looked at.
            cache = "--cache node --cache-size 100MB"
            type_and_see(f"vault mount vault {cache}", rf"s3://{team}/team-vault is mounted on")
            type_and_see(f"vault warm imagenet@v2 --only 'train/**' --wait {cache}", r"imagenet@v2")
            type_and_see(f"vault cache status {cache}", r"of 100")
            type_and_see(f"vault cache pin imagenet@v2 {cache}", r"imagenet@v2")
            type_and_see(f"vault cache status {cache}", r"imagenet@v2")
            type_and_see("VAULTFS_RUN=first python train.py vault/imagenet@latest", "trained on 6008 bytes")
            type_and_see(f"vault cache unpin imagenet@v2 {cache}", r"imagenet@v2")
            type_and_see(f"vault cache prune --all {cache}", r"B")

            # Again in the order of the first run, and in one that a sampler says.
            wait_for("the first run's record", lambda: "first" in prompt.type("vault runs").output)
            type_and_see(f"vault prefetch --plan run:first {cache}", r"imagenet@v2|first")
            type_and_see("VAULTFS_RUN=second python train.py vault/imagenet@latest", "trained on 6008 bytes")
            type_and_see(f"echo imagenet@v1/train/1/5.JPEG | vault prefetch - --wait {cache}", r"\S")
            type_and_see("vault umount vault", r"is unmounted")
            type_and_see("vault audit imagenet@v2/labels.csv", r"(?s)(second.*first|first.*second)")

            # For everybody else: the version, and nothing of who read it.
            type_and_see(f"vault init s3://{public}/vault", "made an empty store")
            type_and_see(f"vault sync imagenet@v2 --to s3://{public}/vault", r"imagenet@v1")
            type_and_see(f"vault ls --store s3://{public}/vault imagenet@v1", "labels.csv")
            assert "first" not in prompt.type(f"vault runs --store s3://{public}/vault").output
            for store in team + "/team-vault", public + "/vault":
                type_and_see(f"vault verify --data --store s3://{store}", "no damage found")
        finally:
            if is_mounted(str(tmp_path / "vault")):
                prompt.type("vault umount --lazy vault")

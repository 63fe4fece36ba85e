"""A commit belongs to the run that it is a part of, as a mount on this machine knows it."""

import subprocess
import sys

import pytest

from vault.repo.repository import Repository
from vault.stores.registry import open_store
from vault.testing.mounts import Site, mounted, why_not_mountable

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(bool(why_not_mountable("direct")), reason=why_not_mountable("direct") or ""),
]


def test_a_script_that_reads_and_then_commits_is_one_run(tmp_path):
    """Nothing names it: its process tree does."""
    site = Site.make(str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("data\n")
    site.commit(str(tmp_path / "data"), "data")
    commit = " ".join([sys.executable, "-m", "vault", "commit", str(tmp_path / "made"), "made"])
    with mounted(site, str(tmp_path / "mnt"), engine="direct") as mount:
        script = f"cat {mount.path}/data@v1/x > {tmp_path}/made; {commit}"
        subprocess.run(["setsid", "--wait", "bash", "-c", script], env=site.environment(), check=True, capture_output=True)
        [run] = [run for run, record in site.runs().items() if record["inputs"]]
    datasets = Repository.open(open_store(site.store), site.cache).datasets
    assert datasets.load("made").versions[0].run == run
    assert datasets.load("data").versions[0].run is None


def test_reads_and_outputs_of_vault_run_meet_in_one_record(tmp_path):
    site = Site.make(str(tmp_path))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("data\n")
    site.commit(str(tmp_path / "data"), "data")
    with mounted(site, str(tmp_path / "mnt"), engine="direct") as mount:
        copy = ["cp", f"{mount.path}/data@v1/x", str(tmp_path / "made")]
        site.vault("run", "--name", "r1", "--out", f"{tmp_path}/made=made", "--", *copy)
        record = site.runs()["r1"]
    assert [used["ref"] for used in record["inputs"]] == ["data@v1"]
    assert record["attempts"] == 1
    assert Repository.open(open_store(site.store), site.cache).datasets.load("made").versions[0].run == "r1"

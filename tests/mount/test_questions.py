"""What real jobs leave, asked for whole: two trainings through a mount, the second from the weights of the first."""

import os
import shlex
import subprocess
import sys

import pytest

from vault.testing.mounts import Site, mounted, wait_for

pytestmark = pytest.mark.fuse

JOB = """import pathlib, sys
data, out = map(pathlib.Path, sys.argv[1:3])
steps = 100
weights = b"".join(path.read_bytes() for path in sorted((data / "train").iterdir()))
weights += b"".join(pathlib.Path(earlier).read_bytes() for earlier in sys.argv[3:])
out.mkdir()
(out / "model.bin").write_bytes(weights * steps)
"""


def record(site: Site, name: str, cwd: os.PathLike[str], *command: str, out: str) -> None:
    words = site.command("run", "--name", name, "--out", f"{out}=resnet", "--", sys.executable, "code/train.py", *command)
    done = subprocess.run(words, cwd=cwd, env=site.environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_two_trainings_are_compared_and_traced(tmp_path):
    site = Site.make(str(tmp_path))
    for folder in ("train", "test"):
        (tmp_path / "source" / folder).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "source" / folder / f"{number}.txt").write_text(f"{folder} {number}")
    site.commit(str(tmp_path / "source"), "digits")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/train.py").write_text(JOB)
    with mounted(site, str(tmp_path / "mnt"), engine="direct") as mount:
        record(site, "base", tmp_path, "mnt/digits@v1", "out1", out="out1")
        (tmp_path / "code/train.py").write_text(JOB.replace("100", "200"))
        weights = f"{mount.path}/resnet@v1/model.bin"
        wait_for("the mount to show the new version", lambda: os.path.exists(weights))
        record(site, "warm", tmp_path, "mnt/digits@v1", "out2", weights, out="out2")
        records = site.json("compare", "base", "warm")
        found = {(known["cause"], known["name"]): known for known in records if known["type"] == "difference"}
        assert "+steps = 200" in found["script", "train.py"]["lines"]
        assert ("data", "resnet@v1") in found
        text = site.vault("lineage", "resnet@latest").stdout
        for name in ("resnet@v2", "run warm", "resnet@v1", "run base", "digits@v1", "code b3:"):
            assert name in text, f"{name} is not in\n{text}"
        (tmp_path / "out2/model.bin").rename(tmp_path / "renamed")
        origin = site.json("whence", str(tmp_path / "renamed"))[0]
        assert (origin["ref"], origin["run"], {used["ref"] for used in origin["inputs"]}) == (
            "resnet@v2", "warm", {"digits@v1", "resnet@v1"},
        )  # fmt: skip
        reached = site.json("audit", "--through", "digits@v1/train/0.txt")[:-1]
        assert {known["run"] for known in reached} == {"base", "warm"}
        assert site.vault("audit", "--run", "warm", "--never", "digits@v1/test").stdout.startswith("warm opened none of")
        assert site.vault("audit", "--run", "warm", "--never", "digits@v1/train", status=1).stdout.count("\n") == 3
    assert site.json("audit", "--run", "base", "--never", "digits@v1/test")[-1]["certain"] is True
    shown = site.vault("runs", "show", "warm").stdout
    assert f"code  {tmp_path}/code/train.py" in shown and "exit status 0" in shown


def test_two_runs_in_one_process_tree_are_told_apart(tmp_path):
    site = Site.make(str(tmp_path))
    (tmp_path / "source").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "source" / name).write_text(name)
    site.commit(str(tmp_path / "source"), "letters")
    with mounted(site, str(tmp_path / "mnt"), engine="direct") as mount:
        vault = " ".join(map(shlex.quote, site.command("run", "-q", "--name")))
        data = f"{mount.path}/letters@v1"
        script = (
            f"{vault} outer -- sh -c 'cat {data}/a; {vault} inner -- cat {data}/b' & {vault} beside -- cat {data}/c; wait"
        )
        subprocess.run(["sh", "-ec", script], env=site.environment(), stdout=subprocess.DEVNULL, check=True, timeout=60)
    opened = {run: {path for _, path in site.opened(run)} for run in site.runs()}
    assert opened == {"outer": {"a"}, "inner": {"b"}, "beside": {"c"}}

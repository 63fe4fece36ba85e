"""A real training, from a killed first attempt to a bundle: PyTorch with two ranks, loader processes, safetensors.

Needs torch and safetensors: `make test-torch`.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vault.testing.mounts import Site, mounted, wait_for, why_not_mountable

pytest.importorskip("torch", reason="torch is not installed: make test-torch")
pytest.importorskip("safetensors", reason="safetensors is not installed: make test-torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.fuse,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not_mountable("direct")), reason="no mount of the direct engine"),
]
NET = Path(__file__).parent / "net"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py")
JOB_TIMEOUT_S = 180.0


@dataclass
class Lab:
    """A git worktree with a training in it, a store with images, and a mount."""

    site: Site
    code: Path
    mount: str

    def arguments(self, name: str, *options: str, out: str, dataset: str) -> list[str]:
        """Return a training on record, as arguments of vault."""
        data = f"{self.mount}/images@v1"
        return ["run", "--name", name, "--out", f"{out}={dataset}", "--", *TORCHRUN, "--data", data, "--out", out, *options]

    def train(self, name: str, *options: str, out: str, dataset: str) -> None:
        """Run a training to its end."""
        command = self.site.command(*self.arguments(name, *options, out=out, dataset=dataset))
        subprocess.run(command, cwd=self.code, env=self.site.environment(), check=True, timeout=JOB_TIMEOUT_S)

    def ask(self, *arguments: str, status: int = 0) -> list[dict]:
        """Return the objects that a command prints."""
        done = self.site.vault(*arguments, "--json", status=status, timeout_s=JOB_TIMEOUT_S)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def edit(self, name: str, old: str, new: str) -> None:
        """Change one source file."""
        path = self.code / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Make the lab, and train: `base` is killed and resumed with another train.py, `warm` goes on from its weights."""
    folder = tmp_path_factory.mktemp("lab")
    write_images(folder / "images")
    code = folder / "net"
    shutil.copytree(NET, code, ignore=shutil.ignore_patterns("__pycache__"))
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(code))
    for arguments in (("init", "-q"), ("add", "."), ("commit", "-qm", "as it was")):
        subprocess.run([*git, *arguments], check=True)
    site = Site.make(str(folder))
    site.commit(str(folder / "images"), "images")
    with mounted(site, str(folder / "mnt"), engine="direct") as mount:
        lab = Lab(site, code, mount.path)
        killed_after_an_epoch(lab)
        lab.edit("train.py", "lr=0.5", "lr=0.25")
        lab.train("base", "--epochs", "2", out="ckpts", dataset="net")
        lab.edit("model.py", "ReLU", "Tanh")
        weights = f"{mount.path}/net@latest/step-2.safetensors"
        wait_for("the new weights below the mount", lambda: os.path.exists(weights))
        lab.train("warm", "--epochs", "2", "--share", "0.1", "--weights", weights, out="ckpts2", dataset="net2")
        yield lab


def write_images(folder: Path) -> None:
    """Write 600 images of 8 by 8 points in ten classes."""
    chance = random.Random(1)
    for label in range(10):
        shape = [chance.randrange(256) for _ in range(64)]
        (folder / str(label)).mkdir(parents=True)
        for number in range(60):
            points = bytes(min(255, max(0, point + chance.randrange(-60, 60))) for point in shape)
            (folder / str(label) / f"{number:03}.raw").write_bytes(points)


def killed_after_an_epoch(lab: Lab) -> None:
    """Begin `base` and kill all of it, `vault run` too, once it has written a checkpoint."""
    command = lab.site.command(*lab.arguments("base", "--epochs", "50", "--pause", "1", out="ckpts", dataset="net"))
    job = subprocess.Popen(command, cwd=lab.code, env=lab.site.environment(), start_new_session=True)
    try:
        wait_for("a checkpoint", (lab.code / "ckpts" / "step-1.safetensors").exists, timeout_s=JOB_TIMEOUT_S)
    finally:
        for pid in below(job.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.wait()


def below(pid: int) -> list[int]:
    """Return a process and all that it has started: ranks lead sessions of their own."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found = [pid]
    for known in found:
        found += children.get(known, [])
    return found


def test_attempts_tell_what_was_changed_between_them(lab: Lab) -> None:
    shown = lab.site.vault("runs", "show", "base").stdout
    assert "attempt 2" in shown
    assert "train.py" in shown[shown.index("resumed with") :]
    assert "lr=0.25" in shown


def test_comparing_names_the_changed_file_and_the_weights(lab: Lab) -> None:
    compared = lab.site.vault("compare", "base", "warm").stdout
    assert "model.py" in compared
    assert "torch.nn.Tanh()" in compared
    assert "net@v" in compared


def test_lineage_goes_from_the_weights_to_the_data(lab: Lab) -> None:
    shown = lab.site.vault("lineage", "net2@latest").stdout
    chain = [shown.index(part) for part in ("net2@", "run warm", "net@", "run base")]
    assert chain == sorted(chain)
    assert shown.count("images@v1") == 2


def test_weights_are_found_by_their_bytes_after_a_copy(lab: Lab, tmp_path: Path) -> None:
    copy = tmp_path / "renamed.bin"
    shutil.copy(lab.code / "ckpts2" / "step-2.safetensors", copy)
    assert "run warm" in lab.site.vault("whence", str(copy)).stdout


def test_images_reach_models_through_the_warm_start(lab: Lab) -> None:
    opened = {path for ref, path in lab.site.opened("warm") if ref == "images@v1"}
    assert 0 < len(opened) <= 0.11 * 600
    unread = next(p for p in (f"{c}/{n:03}.raw" for c in range(10) for n in range(60)) if p not in opened)
    reached = {record["run"] for record in lab.ask("audit", "--through", f"images@v1/{unread}") if "run" in record}
    assert {"base", "warm"} <= reached


def verdict(lab: Lab, run: str, *options: str, status: int) -> dict:
    """Return the verdict over a repetition."""
    [found] = [record for record in lab.ask("reproduce", run, *options, status=status) if record["type"] == "verdict"]
    return found


def test_a_deterministic_run_repeats_to_the_byte(lab: Lab) -> None:
    lab.train("again", "--epochs", "2", out="ckpts3", dataset="net3")
    assert verdict(lab, "again", status=0)["level"] == "L0"


def test_a_run_without_a_seed_repeats_within_a_tolerance_or_says_how_far_off_it_is(lab: Lab) -> None:
    lab.train("loose", "--epochs", "1", "--seed", "-1", out="ckpts4", dataset="net4")
    assert verdict(lab, "loose", "--tolerance", "atol=10", status=0)["level"] == "L2"
    strict = verdict(lab, "loose", status=1)
    assert strict["level"] == "L4"
    assert float(strict["figures"]["largest absolute error"]) > 0


def test_a_bundle_stands_alone_and_is_small(lab: Lab, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("all.vault", "opened.vault")]
    lab.site.vault("bundle", "warm", "-o", str(files[0]), "--yes")
    lab.site.vault("bundle", "warm", "-o", str(files[1]), "--yes", "--only-opened")
    snapshot = lab.ask("show", "images@v1")[-1]["snapshot"]
    elsewhere = Site.make(str(tmp_path))  # knows nothing of the first store
    for file in files:
        elsewhere.vault("bundle", "verify", str(file))
        shown = elsewhere.json("--store", str(file), "show", "images@v1")[-1]
        assert shown["snapshot"] == snapshot
    sizes = [sum_of_images(elsewhere, file, tmp_path / "mnt") for file in files]
    assert 0 < sizes[1] <= 0.11 * sizes[0]


def sum_of_images(site: Site, bundle: Path, mountpoint: Path) -> int:
    """Return how many bytes of images a mounted bundle gives."""
    mountpoint.mkdir(exist_ok=True)
    site.vault("mount", "--bundle", str(bundle), str(mountpoint))
    total = 0
    try:
        images = list((mountpoint / "images@v1").glob("*/*.raw"))
        assert len(images) == 600  # the tree is whole, whatever contents are there
        for image in images:
            with contextlib.suppress(OSError):
                total += len(image.read_bytes())
    finally:
        site.vault("umount", str(mountpoint))
    return total

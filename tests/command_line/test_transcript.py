"""The main job as a user does it at a prompt: commit, commit again, mount, train, and ask who read what."""

import getpass
import json
import os
import re
import shutil
import socket
import sys

import pytest

from vault.testing.mounts import Site, is_mounted, wait_for, why_not_mountable
from vault.testing.terminals import terminal
from vault.testing.transcripts import Prompt

pytestmark = pytest.mark.fuse

BIN = os.path.dirname(sys.executable)
TRAIN = """
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("--data")
data = os.path.join(parser.parse_args().data, "train")
images = [os.path.join(folder, name) for folder, _, names in os.walk(data) for name in names]
print("trained on", sum(len(open(image, "rb").read()) for image in sorted(images)[1:]), "bytes")
"""


@pytest.fixture
def prompt(tmp_path):
    if missing := why_not_mountable("direct"):
        pytest.skip(missing)
    for folder in ("imagenet/train/n01440764", "imagenet/train/n01443537", "vault"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(6):
        name = f"imagenet/train/n0144{['0764', '3537'][number % 2]}/{number}.JPEG"
        (tmp_path / name).write_bytes(bytes([number]) * 1000)
    (tmp_path / "imagenet/train/n01440764/notes.txt").write_text("no image")
    (tmp_path / "imagenet/labels.csv").write_text("n01440764,tench\n")
    (tmp_path / "train.py").write_text(TRAIN)
    variables = {
        "HOME": str(tmp_path),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "VAULTFS_STORE": str(tmp_path / "vault-store"),
        "VAULTFS_CACHE_DIR": str(tmp_path / "cache"),
    }
    mountpoint = str(tmp_path / "vault")
    try:
        with Prompt(str(tmp_path), variables) as prompt:
            yield prompt
            if is_mounted(mountpoint):
                prompt.type(f"vault umount --lazy {mountpoint}")
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)


def test_the_main_job_from_end_to_end(prompt, tmp_path):
    who = f"{getpass.getuser()}@{socket.gethostname()}"

    def type_and_see(command: str, pattern: str, *, status: int = 0) -> "re.Match[str]":
        done = prompt.type(command)
        assert done.status == status, done.output
        found = re.search(pattern, done.output)
        assert found, f"{command}: {done.output}"
        return found

    # Freeze, change, freeze again.
    type_and_see("vault init", r"made an empty store in .*/vault-store\n")
    type_and_see('vault commit ./imagenet imagenet -m "as downloaded"', r"imagenet@v1  b3:[0-9a-f]{12}  8 files  6\.0 kB")
    (tmp_path / "imagenet/train/n01440764/notes.txt").unlink()
    type_and_see(
        'vault commit ./imagenet imagenet -m "non-JPEGs removed"', r"imagenet@v2  b3:[0-9a-f]{12}  7 files  6\.0 kB"
    )
    type_and_see("vault commit ./imagenet imagenet", "nothing new, no version made")
    type_and_see("vault log imagenet", r"(?s)imagenet@v2 \(latest\).*non-JPEGs removed.*imagenet@v1.*as downloaded")
    type_and_see("vault ls imagenet@v2/train", "^n01440764/\nn01443537/\n$")
    type_and_see("vault show imagenet@v2", r"holds +7 files in 4 folders, 6\.0 kB \(6,016 bytes\)")
    type_and_see("vault cat imagenet@v2/labels.csv", "^n01440764,tench\n$")
    type_and_see("vault diff imagenet@v1 imagenet@v2", r"^- train/n01440764/notes\.txt\n1 removed; 0 B came, 8 B went\n$")

    # Train through the mount: any program, nothing imported, nothing declared.
    type_and_see("vault mount vault", r"/vault-store is mounted on .*/vault\n")
    type_and_see("ls vault", "imagenet@latest")
    type_and_see("readlink vault/imagenet@latest", "^imagenet@v2\n$")
    type_and_see("python train.py --data vault/imagenet@latest", "trained on 5000 bytes")

    # Who read what?
    command = r"python train\.py --data vault/imagenet@latest"
    found = type_and_see(
        "vault runs --class training",
        rf"(adhoc-\S+)  \d{{4}}-\d\d-\d\d \d\d:\d\d.*  {re.escape(who)}  training\n"
        rf"    {command}\n    imagenet@v2  5 of 7 files opened\n$",
    )
    run = found[1]
    one, not_read = "train/n01440764/2.JPEG", "train/n01440764/0.JPEG"
    type_and_see(f"vault audit imagenet@v2/{one}", rf"^{run}  .*\n    {command}\n    imagenet@v2/{one}  1 open\n$")
    type_and_see(f"vault audit imagenet@v2/{not_read}", f"^no run on record has opened imagenet@v2/{not_read}\n$")
    type_and_see(f"vault audit imagenet@v1/{one}", "no run on record has opened")
    type_and_see(f"vault audit --content imagenet@v1/{one}", rf"^{run}  .*\n.*\n    imagenet@v2/{one}  1 open\n$")
    type_and_see("vault audit imagenet", rf"{run}.*\n.*\n    imagenet@v2  5 of 7 files opened")
    type_and_see(f"vault audit --run {run}", r"imagenet@v2  5 of 7 files opened")
    images = sorted((tmp_path / "imagenet/train").rglob("*.JPEG"))
    files = prompt.type(f"vault audit --run {run[-6:]} --files --json").output.splitlines()
    opened = {record["path"]: record["opens"] for record in map(json.loads, files[:-1])}
    assert sorted(opened) == sorted(str(path.relative_to(tmp_path / "imagenet")) for path in images[1:])
    assert set(opened.values()) == {1}

    # All the rest.
    type_and_see("vault checkout imagenet@v2 copy && diff -r copy imagenet && echo equal", "equal\n$")
    type_and_see("diff -r vault/imagenet@v2 imagenet && echo equal", "^equal\n$")
    type_and_see("vault verify --data", "no damage found: 2 versions of 1 dataset")
    type_and_see(
        "vault doctor | grep /vault", r"ok +mount +\S+/vault shows \S+/vault-store \(engine direct, process \d+\): ok"
    )
    type_and_see("vault umount vault", r"/vault is unmounted\n")
    assert not is_mounted(str(tmp_path / "vault"))
    wait_for("the run to be over", lambda: "going on" not in prompt.type("vault runs --class training").output)


def test_a_mount_in_use_names_its_users(prompt, tmp_path):
    prompt.type("vault init; vault commit imagenet imagenet; vault mount vault")
    prompt.type("tail -f vault/imagenet@v1/labels.csv > /dev/null & wait_pid=$!")
    wait_for("the reader", lambda: "tail" in prompt.type("vault umount vault").output)
    done = prompt.type("vault umount vault")
    assert done.status == 7
    assert re.search(r"/vault: is in use by tail \(process \d+: .*/labels\.csv\); end them, or use --lazy\n", done.output)
    prompt.type("kill $wait_pid; wait $wait_pid")
    assert prompt.type("vault umount vault").status == 0


def test_a_mount_in_the_foreground_ends_with_ctrl_c(tmp_path):
    if missing := why_not_mountable("direct"):
        pytest.skip(missing)
    site = Site.make(str(tmp_path))
    (tmp_path / "mnt").mkdir()
    with terminal(site.command("mount", "--foreground", str(tmp_path / "mnt")), site.environment()) as screen:
        screen.wait_for(r"is mounted on")
        assert is_mounted(str(tmp_path / "mnt"))
        screen.type("\x03")
        assert screen.end() == 0
        assert "Traceback" not in screen.shown
    assert not is_mounted(str(tmp_path / "mnt"))
